"""GaLore: any rule, applied to gradients projected to low rank."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Inexact, PyTree

from ..._base import checks
from ..._base.arithmetic import cast, real_dtype, times, wider
from ..._base.converters import non_negative, optional, size, steps
from ..._base.trees import increment, replicated, zero_count, zeros_like
from ..._base.types import Count, Leaves, Params, Scalar, Steps, Updates
from ..._objective.objective import Context
from ..._transformation.base import (
    AbstractTransformation,
    AnyTransformation,
    check_state,
    check_transformation,
)
from ..adam import ScaleByAdam
from .dimensions import AbstractDimensions, as_dimensions
from .matrices import adjoint, Form, forms_of, Groups


def as_base_optimizer(value: Any) -> AnyTransformation:
    check_transformation("base_optimizer", value)
    return value


# Functions of one parameter, a stack of matrices.


@checks.typed
def _leading(x: Inexact[Array, "batch m n"], rank: int) -> Inexact[Array, "batch largest rank"]:
    """The first singular vectors of each matrix, on its longer side."""
    # Treated as constants: singular vectors have no derivative where two singular values are equal,
    # as for a gradient of zero.
    left, _, right = jnp.linalg.svd(lax.stop_gradient(x), full_matrices=False)
    return adjoint(right[:, :rank]) if _is_wide(x) else left[..., :rank]


def _is_wide(x: Array) -> bool:
    return x.shape[-2] < x.shape[-1]


@checks.typed
def _projected(
    x: Inexact[Array, "batch m n"], projector: Inexact[Array, "batch largest rank"]
) -> Inexact[Array, "batch _ _"]:
    projector = cast(projector, x.dtype)
    return x @ projector if _is_wide(x) else adjoint(projector) @ x


@checks.typed
def _lifted(
    wide: bool,
    x: Inexact[Array, "batch _ _"],
    projector: Inexact[Array, "batch largest rank"],
    scale: Float[Array, ""],
) -> Inexact[Array, "batch m n"]:
    projector = cast(projector, x.dtype)
    return times(scale, x @ adjoint(projector) if wide else projector @ x)


def _matrices(x: Array, form: Form) -> Inexact[Array, "batch m n"]:
    # A decomposition needs whole matrices.
    return form.matrices(replicated(cast(x, wider(x.dtype))))


def _kept(x: Array, form: Form) -> Array:
    """A stack in the form that the state keeps: without the first axis if there are no batch
    axes."""
    return x if form.batched else lax.squeeze(x, (0,))


def _stack(x: Array, form: Form) -> Array:
    """Undoes `_kept`."""
    return x if form.batched else lax.expand_dims(x, (0,))


def _beginning(x: Array, form: Form, rank: int) -> tuple[Array, Array]:
    """The zeros that stand for a projected parameter, and for its projector."""
    batch, m, n = x.shape
    rank = min(rank, m, n)
    # Computed like sums, so that they are placed like the axes that they share with the parameter.
    rows, columns = jnp.sum(x, -1, keepdims=True), jnp.sum(x, -2, keepdims=True)
    if _is_wide(x):
        low, projector = rows, jnp.swapaxes(columns, -1, -2)
        low_shape = (batch, m, rank)
    else:
        low, projector = columns, rows
        low_shape = (batch, rank, n)
    low = jnp.broadcast_to(low, low_shape)
    projector = jnp.broadcast_to(projector, (batch, max(m, n), rank))
    return _kept(zeros_like(low), form), _kept(zeros_like(projector), form)


# Functions of all parameters


def _places(leaves: Sequence[Any], forms: Sequence[Form | None]) -> list[tuple[int, Form]]:
    """Which leaves are projected, and their forms."""
    pairs = enumerate(zip(leaves, forms, strict=True))
    return [(i, form) for i, (x, form) in pairs if x is not None and form is not None and x.size]


@dataclasses.dataclass
class _Subspaces:
    """The projection of the gradients of one step.

    **Arguments:**

    - `places`: which leaves are projected, and their forms.
    - `groups`: the leaves of equal size.
    - `wide`, `projectors`: for each group, whether its matrices have more columns than rows, and
        the stack of projectors.
    """

    places: list[tuple[int, Form]]
    groups: Groups
    wide: list[bool]
    projectors: list[Array]

    def down(self, leaves: Sequence[object]) -> Leaves:
        """Projects those leaves."""
        stacks = self.groups.stacked([_matrices(x, form) for x, form in self._of(leaves)])
        return self._replaced(leaves, list(map(_projected, stacks, self.projectors)))

    def up(self, leaves: Sequence[Any], references: Sequence[Any], scale: Scalar) -> Leaves:
        """Projects back, and multiplies by `scale`."""
        low = [_stack(cast(x, wider(x.dtype)), f) for x, f in self._of(leaves)]
        high = [
            _lifted(wide, x, p, cast(jnp.asarray(scale), real_dtype(x.dtype)))
            for wide, x, p in zip(self.wide, self.groups.stacked(low), self.projectors, strict=True)
        ]
        found = list(leaves)
        for (i, form), x in zip(self.places, self.groups.apart(high), strict=True):
            found[i] = form.back(x, references[i])
        return found

    def kept(self, old: Sequence[object]) -> Leaves:
        """The projectors by leaf; from `old` for leaves without a gradient."""
        return self._replaced(old, self.projectors)

    def _of(self, leaves: Sequence[Any]) -> list[tuple[Array, Form]]:
        return [(leaves[i], form) for i, form in self.places]

    def _replaced(self, leaves: Sequence[object], stacks: Sequence[Array]) -> Leaves:
        found = list(leaves)
        for (i, form), x in zip(self.places, self.groups.apart(stacks), strict=True):
            found[i] = _kept(x, form)
        return found


def _subspaces(
    leaves: Sequence[Any], old: Sequence[Any], forms: Sequence[Form | None], due: Bool[Array, ""]
) -> _Subspaces:
    """The projectors of this step: new ones if they are due."""
    places = _places(leaves, forms)
    matrices = [_matrices(leaves[i], form) for i, form in places]
    groups = Groups(matrices)

    def new(stacks: list[Array], before: list[Array]) -> list[Array]:
        pairs = zip(stacks, before, strict=True)
        return [cast(_leading(x, p.shape[-1]), p.dtype) for x, p in pairs]

    def same(stacks: list[Array], before: list[Array]) -> list[Array]:
        return before

    stacks = groups.stacked(matrices)
    before = groups.stacked([_stack(old[i], form) for i, form in places])
    projectors = lax.cond(due, new, same, stacks, before) if places else []
    return _Subspaces(places, groups, list(map(_is_wide, stacks)), projectors)


@checks.typed
class ScaleByGaLoreState(eqx.Module):
    """The state of [`eqopt.ScaleByGaLore`][].

    **Arguments:**

    - `count`: the number of steps taken, int32 of shape `()`.
    - `base_optimizer_state`: the state of the base optimizer, which sees only the projected
        parameters.
    - `projector`: for each matrix the orthonormal columns that it is projected on, of shape
        `(max(m, n), rank)`, with one axis in front for all batch axes; at least float32. `None` for
        parameters that are not matrices.
    """

    count: Count
    base_optimizer_state: Any
    projector: PyTree


class ScaleByGaLore(AbstractTransformation[ScaleByGaLoreState]):
    r"""Applies a rule to gradients that are projected on few directions, and projects the result
    back.

    With $P$ the first $r$ left singular vectors of the gradient $G$, an $m \times n$ matrix with
    $m \ge n$, as it was at the last multiple of `update_proj_gap` steps, and $\rho$ the rule,

    $$U = \alpha P\, \rho(P^H G).$$

    Where $m < n$, $P$ holds the right singular vectors, and $U = \alpha\, \rho(G P) P^H$. The
    rule's state has only $r$ rows, or columns. Parameters that are not matrices go to the rule
    unchanged, without $\alpha$.

    Gradients of equal size are stacked, and decomposed and projected together.

    **Arguments:**

    - `rank`: the number of directions $r$, at least 1; a smaller matrix keeps all its directions.
    - `update_proj_gap`: the number of steps from one projector to the next, at least 1.
    - `scale`: the factor of the updates of matrices, $\alpha \ge 0$.
    - `base_optimizer`: the rule, any transformation whose updates point uphill; `None` is
        [`eqopt.ScaleByAdam`][].
    - `weight_dimension_numbers`: which parameters are matrices, and how, as for [`eqopt.Muon`][].
        Each index of the batch axes has its own projector.

    The base optimizer gets the parameters and `grad`, projected like the gradient, and the other
    arguments unchanged, except `value_fn`, which is a function of whole parameters. When the
    projector changes, the base optimizer's state stays as it is.

    !!! note
        The paper, and its code, project the other side: matrices with $m \ge n$ from the right.
        Here the state is smaller, and the projector larger. (optax makes the same choice.)

        The singular vectors are computed in the gradient's own dtype, and at least in float32;
        optax always computes them in float32.

    ??? cite "Reference"
        Zhao et al., *GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection*, ICML
        2024, algorithm 2 (arXiv 2403.03507).
    """

    rank: int = eqx.field(converter=size("rank"), static=True, default=128)
    update_proj_gap: Steps = eqx.field(converter=steps("update_proj_gap", at_least=1), default=200)
    scale: Scalar = eqx.field(converter=non_negative("scale"), default=1.0)
    base_optimizer: AnyTransformation | None = eqx.field(
        converter=optional(as_base_optimizer), default=None
    )
    weight_dimension_numbers: AbstractDimensions | None = eqx.field(
        converter=optional(as_dimensions), default=None
    )

    def init_state(self, params: Params, context: Context) -> ScaleByGaLoreState:
        leaves, treedef = checks.flatten(params)
        forms = forms_of(params, self.weight_dimension_numbers, "params")
        low: Leaves = list(leaves)
        projectors: Leaves = [None] * len(leaves)
        for i, form in _places(leaves, forms):
            low[i], projectors[i] = _beginning(_matrices(leaves[i], form), form, self.rank)
        inside = dataclasses.replace(context, value_fn=None, whole=None)
        base_state = self._base().init_state(treedef.unflatten(low), inside)
        return ScaleByGaLoreState(zero_count(), base_state, treedef.unflatten(projectors))

    def transform(
        self, updates: Updates, state: ScaleByGaLoreState, params: Params | None, context: Context
    ) -> tuple[Updates, ScaleByGaLoreState]:
        base = self._base()
        check_state(base, state.base_optimizer_state, "state.base_optimizer_state")
        leaves, treedef = checks.flatten(updates)
        forms = forms_of(updates, self.weight_dimension_numbers, "updates")
        old = treedef.flatten_up_to(state.projector)
        due = lax.rem(state.count, jnp.asarray(self.update_proj_gap)) == 0
        subspaces = _subspaces(leaves, old, forms, due)

        def down(tree: PyTree) -> PyTree:
            found = [] if tree is None else treedef.flatten_up_to(tree)
            given = found and all(found[i] is not None for i, _ in subspaces.places)
            return treedef.unflatten(subspaces.down(found)) if given else None

        inside = dataclasses.replace(context, grad=down(context.grad), value_fn=None, whole=None)
        low, base_state = base.transform(
            treedef.unflatten(subspaces.down(leaves)),
            state.base_optimizer_state,
            down(params),
            inside,
        )
        out = subspaces.up(treedef.flatten_up_to(low), leaves, self.scale)
        projector = treedef.unflatten(subspaces.kept(old))
        after = ScaleByGaLoreState(increment(state.count), base_state, projector)
        return treedef.unflatten(out), after

    def _base(self) -> AnyTransformation:
        return ScaleByAdam() if self.base_optimizer is None else self.base_optimizer
