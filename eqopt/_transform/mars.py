"""MARS: gradients corrected by their change since the last step."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, PyTree

from .._base import blocks, checks
from .._base.arithmetic import minus, plus, times, within
from .._base.converters import decay_factor, non_negative, optional, positive
from .._base.trees import zeros_like
from .._base.types import Params, Scalar
from .._objective.objective import Context
from .._transformation.base import (
    AbstractLeafwise,
)
from .._transformation.leafwise import Rule
from ..selectors._selector import AbstractSelector, as_selector


@checks.typed
def _reduce(
    block_ndim: int | None,
    update: Inexact[Array, "*shape"],
    last: Inexact[Array, "*shape"],
    weight: Float[Array, ""],
    max_norm: Float[Array, ""] | None = None,
) -> tuple[Inexact[Array, "*shape"], Inexact[Array, "*shape"]]:
    corrected = plus(update, times(weight, minus(update, last)))
    if max_norm is not None:
        factor = within(blocks.norms(block_ndim, corrected), max_norm)
        limited = blocks.multiplied(factor, corrected)
        corrected = blocks.selected(factor > 0, limited, jnp.zeros_like(corrected))
    return corrected, update


@checks.typed
class ReduceVarianceState(eqx.Module):
    """The state of [`eqopt.control.ReduceVariance`][].

    **Arguments:**

    - `last`: the gradients of the last step, like the parameters; zero at first.
    """

    last: PyTree


class ReduceVariance(AbstractLeafwise[ReduceVarianceState]):
    r"""Adds to each gradient a multiple of its change since the last step, and limits its norm.

    For each matrix, with $g_0 = 0$,

    $$c_t = g_t + \gamma \frac{\beta_1}{1 - \beta_1} (g_t - g_{t-1}), \qquad
    u_t = c_t \min\left(1, \frac{r}{\|c_t\|}\right).$$

    An average with the decay $\beta_1$ lags behind the gradient; the correction looks ahead. Put it
    first in a chain: before [`eqopt.ScaleByAdam`][] it gives MARS-AdamW, which is
    [`eqopt.control.MARS`][], before [`eqopt.ScaleByLion`][] with equal decays MARS-Lion, and before
    [`eqopt.ScaleByMuon`][] MARS-M. It keeps 4 bytes for each parameter in float32.

    A corrected gradient whose norm is not finite becomes zero.

    !!! note
        This is the approximate form, as in all implementations. The exact one takes $g_{t-1}$ anew
        on the batch of this step. In heavyball there is no limit on the norm (`max_norm=None`), and
        $\gamma$ is 0.0025.

    **Arguments:**

    - `gamma`: the scale of the correction, $\gamma \ge 0$.
    - `b1`: the decay $\beta_1$ of the average that comes after it, in $[0, 1)$.
    - `max_norm`: the limit on the norm, $r > 0$; `None` is no limit.
    - `mask`: the parameters whose gradients are corrected: a selector, a function from the
        parameters to booleans, or a tree of booleans, possibly a prefix; `None` is everything. The
        authors leave vectors out.
    - `block_ndim`: the number of trailing axes that one norm is over, at least 1: 2 is each matrix
        of a stack, 1 is each row, `None` the whole leaf. A leaf with fewer axes is one block.

    ??? cite "Reference"
        Yuan, Liu, Wu, Zhou and Gu, *MARS: Unleashing the Power of Variance Reduction for Training
        Large Models*, 2024, equations 5 and 6 (arXiv 2411.10438).
    """

    gamma: Scalar = eqx.field(converter=non_negative("gamma"), default=0.025)
    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.95)
    max_norm: Scalar | None = eqx.field(converter=optional(positive("max_norm")), default=1.0)
    mask: AbstractSelector | None = eqx.field(converter=optional(as_selector), default=None)
    block_ndim: int | None = eqx.field(
        converter=blocks.block_size("block_ndim"), static=True, default=2
    )

    def init_state(self, params: Params, context: Context) -> ReduceVarianceState:
        if self.mask is not None:
            self.mask.select(params)  # so that a wrong mask raises at once
        return ReduceVarianceState(zeros_like(params))

    def rule(self, state: ReduceVarianceState, params: Params | None, context: Context) -> Rule:
        decay = jnp.asarray(self.b1)
        weight = jnp.asarray(self.gamma) * decay / (1 - decay)
        near = state.last if params is None else params
        return Rule(
            _reduce,
            state,
            trees=("last",),
            scalars=(weight,) if self.max_norm is None else (weight, self.max_norm),
            options=(self.block_ndim,),
            mask=None if self.mask is None else self.mask.select(near),
        )
