"""Transformations that remember nothing."""

import equinox as eqx
from jaxtyping import Array, Float, Inexact

from .._base import checks
from .._base.arithmetic import times
from .._base.converters import real
from .._base.types import Function, Params, Scalar, Updates
from .._objective.objective import Context
from .._transformation.base import AbstractLeafwise, AbstractTransformation, EmptyState
from .._transformation.leafwise import Rule
from .._transformation.masking import no_updates


class Identity(AbstractTransformation[EmptyState]):
    """Leaves the updates as they are."""

    def init_state(self, params: Params, context: Context) -> EmptyState:
        return EmptyState()

    def transform(
        self, updates: Updates, state: EmptyState, params: Params | None, context: Context
    ) -> tuple[Updates, EmptyState]:
        return updates, state


@checks.typed
def scale(update: Inexact[Array, "*shape"], factor: Float[Array, ""]) -> Inexact[Array, "*shape"]:
    return times(factor, update)


class Scale(AbstractLeafwise[EmptyState]):
    r"""Multiplies the updates by a constant: $u \leftarrow s u$.

    !!! note
        To go downhill, use [`eqopt.ScaleByLearningRate`][], which flips the sign, or a negative
        `step_size`.

    **Arguments:**

    - `step_size`: the factor $s$, any real number.
    """

    step_size: Scalar = eqx.field(converter=real("step_size"))

    def init_state(self, params: Params, context: Context) -> EmptyState:
        return EmptyState()

    def rule(self, state: EmptyState, params: Params | None, context: Context) -> Rule:
        return Rule(scale, state, scalars=(self.step_size,))


class SetToZero(AbstractTransformation[EmptyState]):
    r"""Sets the updates to zero, NaN and infinity included: $u \leftarrow 0$."""

    def init_state(self, params: Params, context: Context) -> EmptyState:
        return EmptyState()

    def transform(
        self, updates: Updates, state: EmptyState, params: Params | None, context: Context
    ) -> tuple[Updates, EmptyState]:
        return no_updates(updates, params, context), state


class Stateless(AbstractTransformation[EmptyState]):
    r"""Applies a function to the updates: $u \leftarrow f(u, \theta)$.

    **Arguments:**

    - `f`: called `f(updates, params)`, where `params` is `None` if the user gave none; it returns
        updates of the same structure and shapes. Both are trees of arrays, with `None` for leaves
        that are not trained. A function is static: a new function object is compiled again. A
        Module is a tree: its arrays are data.

    Raises a `ValueError` that names the leaf if what `f` returns does not fit.
    """

    f: Function

    def __check_init__(self) -> None:
        if not callable(self.f):
            raise TypeError(f"`f` must be a function of updates and parameters; got {self.f!r}")

    def init_state(self, params: Params, context: Context) -> EmptyState:
        return EmptyState()

    def transform(
        self, updates: Updates, state: EmptyState, params: Params | None, context: Context
    ) -> tuple[Updates, EmptyState]:
        return checks.conform_to(
            self.f(updates, params), updates, "f(updates, params)", any_dtype=True
        ), state


class StatelessWithTreeMap(AbstractTransformation[EmptyState]):
    r"""Applies a function to the update of each leaf: $u_i \leftarrow f(u_i, \theta_i)$.

    **Arguments:**

    - `f`: called `f(update, param)` with two arrays of one shape, where `param` is `None` if the
        user gave none; it returns an array of that shape. It is not called for leaves without a
        gradient. Its static parts are as in [`eqopt.Stateless`][].

    Raises a `ValueError` that names the leaf if what `f` returns does not fit.
    """

    f: Function

    def __check_init__(self) -> None:
        if not callable(self.f):
            raise TypeError(f"`f` must be a function of an update and a parameter; got {self.f!r}")

    def init_state(self, params: Params, context: Context) -> EmptyState:
        return EmptyState()

    def transform(
        self, updates: Updates, state: EmptyState, params: Params | None, context: Context
    ) -> tuple[Updates, EmptyState]:
        leaves, treedef = checks.flatten(updates)
        own = [None] * len(leaves) if params is None else treedef.flatten_up_to(params)
        pairs = zip(leaves, own, strict=True)
        out = treedef.unflatten([None if u is None else self.f(u, x) for u, x in pairs])
        return checks.conform_to(out, updates, "f(update, param)", any_dtype=True), state
