"""The length of one update in the direction of another."""

import functools
from typing import Generic, TypeVar

import equinox as eqx
import jax
from jaxtyping import Array, Inexact

from .._base import blocks, checks
from .._base.arithmetic import cast, wider
from .._base.types import Params, Updates
from .._objective.objective import Context
from .._transformation.base import AbstractTransformation, check_state, check_transformation
from .._transformation.nesting import check_nesting, Requirement

_Magnitude = TypeVar("_Magnitude", bound=eqx.Module)
_Direction = TypeVar("_Direction", bound=eqx.Module)


class GraftState(eqx.Module, Generic[_Magnitude, _Direction]):
    """The state of [`eqopt.control.Graft`][].

    **Arguments:**

    - `magnitude`: the state of the transformation that gives the length.
    - `direction`: the state of the transformation that gives the direction.
    """

    magnitude: _Magnitude
    direction: _Direction


class Graft(
    AbstractTransformation[GraftState[_Magnitude, _Direction]], Generic[_Magnitude, _Direction]
):
    r"""Takes the length of the update from one transformation, and its direction from another.

    For each matrix, with the updates $m$ and $d$ that the two make of the same gradient,

    $$u = \|m\|\, \frac{d}{\|d\|}.$$

    A preconditioned direction so takes over the learning rate, and its schedule, of an optimizer
    that is already tuned. If $d$ has no direction, because its norm is 0 or not finite, the update
    is zero.

    **Arguments:**

    - `magnitude`: the transformation that gives the length.
    - `direction`: the transformation that gives the direction. Both are to end before the learning
        rate, or both after it.
    - `block_ndim`: the number of trailing axes that one norm is over, at least 1: 2 is each matrix
        of a stack, 1 is each row, `None` the whole leaf. A leaf with fewer axes is one block.

    ??? cite "Reference"
        Agarwal, Anil, Hazan, Koren and Zhang, *Disentangling Adaptive Gradient Methods from
        Learning Rates*, 2020, algorithm 1 (arXiv 2002.11803).
    """

    magnitude: AbstractTransformation[_Magnitude]
    direction: AbstractTransformation[_Direction]
    block_ndim: int | None = eqx.field(
        converter=blocks.block_size("block_ndim"), static=True, default=2
    )

    def __check_init__(self) -> None:
        why = "the update has the length of another one. Put it around `Graft`, or after it"
        for name, x in (("magnitude", self.magnitude), ("direction", self.direction)):
            check_transformation(name, x)
            check_nesting(self, x, {Requirement.MOVES: why, Requirement.STEP: why})

    def init_state(self, params: Params, context: Context) -> GraftState[_Magnitude, _Direction]:
        return GraftState(
            self.magnitude.init_state(params, context), self.direction.init_state(params, context)
        )

    def transform(
        self,
        updates: Updates,
        state: GraftState[_Magnitude, _Direction],
        params: Params | None,
        context: Context,
    ) -> tuple[Updates, GraftState[_Magnitude, _Direction]]:
        check_state(self.magnitude, state.magnitude, "state.magnitude")
        check_state(self.direction, state.direction, "state.direction")
        lengths, magnitude = self.magnitude.transform(updates, state.magnitude, params, context)
        ways, direction = self.direction.transform(updates, state.direction, params, context)

        def graft(m: Array | None, d: Array | None) -> Array | None:
            if m is None or d is None:
                return None
            dtype = wider(m.dtype, d.dtype)
            return _grafted(self.block_ndim, cast(m, dtype), cast(d, dtype))

        new = jax.tree.map(graft, lengths, ways, is_leaf=checks.is_none)
        return new, GraftState(magnitude, direction)


@functools.partial(jax.jit, static_argnums=0)
@checks.typed
def _grafted(
    block_ndim: int | None,
    magnitude: Inexact[Array, "*shape"],
    direction: Inexact[Array, "*shape"],
) -> Inexact[Array, "*shape"]:
    unit, _ = blocks.units(block_ndim, direction)
    return blocks.multiplied(blocks.norms(block_ndim, magnitude), unit)
