"""Complex parameters as pairs of real ones."""

from typing import Generic

import equinox as eqx
from jax import lax
from jaxtyping import Array, Float, PyTree

from .._base import checks
from .._base.arithmetic import is_complex
from .._base.types import Params, State, Updates
from .._objective.objective import Context
from .._transformation.base import AbstractTransformation, check_state, check_transformation
from .._transformation.eval_params import AbstractEvalState
from .._transformation.nesting import refuse_selectors
from .._transformation.reparametrization import (
    AbstractReparametrization,
    eval_params_in,
    init_in,
    transform_in,
)


class _Pair(eqx.Module):
    real: Float[Array, "*shape"] | None
    imag: Float[Array, "*shape"] | None


class _Split(AbstractReparametrization):
    """Which leaves, in order, are complex. Static."""

    is_complex: tuple[bool, ...] = eqx.field(static=True)

    def pack(self, tree: PyTree) -> PyTree:
        leaves, treedef = checks.flatten(tree)
        return treedef.unflatten(
            [_split(x) if pair else x for x, pair in zip(leaves, self.is_complex, strict=True)]
        )

    def unpack(self, packed: PyTree, like: PyTree) -> PyTree:
        _, treedef = checks.flatten(like)
        leaves = treedef.flatten_up_to(packed)
        return treedef.unflatten(
            [_merged(x) if pair else x for x, pair in zip(leaves, self.is_complex, strict=True)]
        )


def _split(x: Array | None) -> _Pair:
    return _Pair(None, None) if x is None else _Pair(lax.real(x), lax.imag(x))


def _merged(pair: _Pair) -> Array | None:
    if pair.real is None or pair.imag is None:
        return None
    # Not `real + 1j * imag`, where one infinite part makes the other NaN.
    return lax.complex(pair.real, pair.imag)


class SplitRealAndImaginaryState(AbstractEvalState, Generic[State]):
    """The state of [`eqopt.SplitRealAndImaginary`][].

    **Arguments:**

    - `inner_state`: the state of the inner transformation, in which a complex parameter is a pair.
    - `split`: which parameters are complex. Static.
    """

    inner_state: State
    split: _Split

    def eval_params(self, params: Params) -> Params:
        return eval_params_in(self.split, params, self.inner_state)


class SplitRealAndImaginary(
    AbstractTransformation[SplitRealAndImaginaryState[State]], Generic[State]
):
    r"""Applies a transformation to the real and imaginary parts of complex parameters.

    For `inner`, a parameter $x + iy$ is a pair of real parameters, $x$ and $y$. Its update, its
    part of `grad`, and its part of extra arguments that are trees of inexact arrays like the
    parameters are pairs too. The objective `value_fn` is a function of such pairs. Real parameters
    stay as they are.

    Gradients are taken exactly as `jax.grad` returns them; the parts are the derivatives by $x$ and
    by $y$.

    A line search inside works, but its cache is about pairs, so `step` evaluates the objective
    again. Outside, in a chain with the wrapper, the search saves that evaluation.

    **Arguments:**

    - `inner`: the transformation.
    """

    inner: AbstractTransformation[State]

    def __check_init__(self) -> None:
        check_transformation("inner", self.inner)
        why = "here a complex one is two others. Put it around"
        refuse_selectors(self, self.inner, why)

    def init_state(self, params: Params, context: Context) -> SplitRealAndImaginaryState[State]:
        leaves, _ = checks.flatten(params)
        split = _Split(tuple(x is not None and is_complex(x) for x in leaves))
        return SplitRealAndImaginaryState(init_in(split, self.inner, params, context), split)

    def transform(
        self,
        updates: Updates,
        state: SplitRealAndImaginaryState[State],
        params: Params | None,
        context: Context,
    ) -> tuple[Updates, SplitRealAndImaginaryState[State]]:
        check_state(self.inner, state.inner_state, "state.inner_state")
        split = state.split
        leaves, _ = checks.flatten(updates)
        checks.check_num_leaves(leaves, len(split.is_complex), "updates")
        out, inner_state = transform_in(
            split, self.inner, updates, state.inner_state, params, context
        )
        return out, SplitRealAndImaginaryState(inner_state, split)
