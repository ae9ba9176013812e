"""Parameters that stay nonnegative."""

from jax import lax
from jaxtyping import Array, Inexact

from .._base import checks
from .._base.arithmetic import is_complex
from .._base.types import Params, Updates
from .._objective.objective import Context, require_params
from .._transformation import leafwise
from .._transformation.base import EmptyState
from .._transformation.leafwise import Rule
from .._transformation.nesting import AbstractConstrained, Requirement


@checks.typed
def _keep_nonnegative(
    update: Inexact[Array, "*shape"], param: Inexact[Array, "*shape"]
) -> Inexact[Array, "*shape"]:
    if is_complex(update):
        return lax.complex(
            _keep_nonnegative(lax.real(update), lax.real(param)),
            _keep_nonnegative(lax.imag(update), lax.imag(param)),
        )
    # Not by the sum. `-param` is a number of the parameter's dtype, so an update that is at least
    # `-param` is still so after rounding to that dtype, and the sum is not negative.
    least = lax.neg(param)
    return lax.select(lax.lt(update, least), least, update)


class KeepParamsNonnegative(AbstractConstrained[EmptyState]):
    r"""Limits the updates so that no parameter becomes negative: $u \leftarrow \max(u, -\theta)$.

    The limit is exact: added by [`eqopt.apply_updates`][], in any dtype, the updates give
    parameters that are at least 0. A negative parameter becomes 0. Both parts of a complex
    parameter are kept nonnegative. NaN passes.

    It comes last in a chain: a link after it is refused. For other sets, see [`eqopt.Project`][].

    Raises a `ValueError` if `update` is given no parameters.
    """

    def requirements(self) -> frozenset[Requirement]:
        return frozenset({Requirement.MOVES, Requirement.EXACT, Requirement.LANDS})

    def init_state(self, params: Params, context: Context) -> EmptyState:
        return EmptyState()

    def transform(
        self, updates: Updates, state: EmptyState, params: Params | None, context: Context
    ) -> tuple[Updates, EmptyState]:
        params = require_params(params, self, context)
        rule = Rule(_keep_nonnegative, state, needs_params=True)
        return leafwise.run((rule,), updates, params)[0], state
