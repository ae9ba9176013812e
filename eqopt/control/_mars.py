"""MARS: gradients corrected by their change since the last step."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, PyTree

from .._base import checks
from .._base.arithmetic import minus, plus, times, within
from .._base.converters import decay_factor, non_negative, optional, positive, to_dtype
from .._base.fields import from_fields
from .._base.trees import zeros_like
from .._base.types import Params, Scalar
from .._objective.objective import Context
from .._schedule.base import AbstractSchedule, as_rate
from .._transform.adam import ScaleByAdam, ScaleByAdamState
from .._transform.decay import AddDecayedWeights
from .._transform.learning_rate import ScaleByLearningRate, ScaleByLearningRateState
from .._transformation.base import (
    AbstractLeafwise,
    AbstractOptimizer,
    AbstractTransformation,
    EmptyState,
)
from .._transformation.leafwise import Rule
from .._wrapper.chain import Chain, ChainState
from ..selectors._selector import AbstractSelector, as_selector
from . import _blocks


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
        factor = within(_blocks.norms(block_ndim, corrected), max_norm)
        limited = _blocks.multiplied(factor, corrected)
        corrected = _blocks.selected(factor > 0, limited, jnp.zeros_like(corrected))
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
        converter=_blocks.block_size("block_ndim"), static=True, default=2
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


class MARS(
    AbstractOptimizer[
        ChainState[
            tuple[ReduceVarianceState, ScaleByAdamState, EmptyState, ScaleByLearningRateState]
        ]
    ]
):
    r"""Steps as [`eqopt.AdamW`][] does, with gradients that are corrected by their change.

    $$\theta_{t+1} = \theta_t - \gamma_t \left(\operatorname{Adam}(c_t) + \lambda \theta_t\right),
    \qquad c_t = g_t + \gamma \frac{\beta_1}{1 - \beta_1} (g_t - g_{t-1})$$

    where the norm of $c_t$ is limited. It is a chain of [`eqopt.control.ReduceVariance`][],
    [`eqopt.ScaleByAdam`][], [`eqopt.AddDecayedWeights`][] and [`eqopt.ScaleByLearningRate`][]. It
    keeps 12 bytes for each parameter in float32.

    ```python
    import eqopt

    opt = eqopt.control.MARS(3e-3, weight_decay=0.01)
    ```

    !!! note
        The authors train vectors by plain AdamW, with another rate: use an [`eqopt.Partition`][].

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative.
    - `b1`: the decay of the average gradient, in $[0, 1)$.
    - `b2`: the decay of the average squared gradient, in $[0, 1)$.
    - `gamma`: the scale of the correction, not negative.
    - `max_norm`: the limit on the norm, positive; `None` is no limit.
    - `eps`: added to the root of the average square, not negative.
    - `eps_root`: added under that root, not negative.
    - `mu_dtype`: the dtype of the average gradient; `None` is the parameter's, and float32 for half
        precision.
    - `weight_decay`: the decay, in proportion to the learning rate, not negative.
    - `mask`: the parameters that decay: a selector, a function from the parameters to booleans, or
        a tree of booleans, possibly a prefix; `None` is everything.

    ??? cite "Reference"
        Yuan, Liu, Wu, Zhou and Gu, *MARS: Unleashing the Power of Variance Reduction for Training
        Large Models*, 2024, algorithm 2 (arXiv 2411.10438).
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.95)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.99)
    gamma: Scalar = eqx.field(converter=non_negative("gamma"), default=0.025)
    max_norm: Scalar | None = eqx.field(converter=optional(positive("max_norm")), default=1.0)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)
    eps_root: Scalar = eqx.field(converter=non_negative("eps_root"), default=0.0)
    mu_dtype: np.dtype | None = eqx.field(converter=to_dtype("mu_dtype"), static=True, default=None)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=0.0)
    mask: AbstractSelector | None = eqx.field(converter=optional(as_selector), default=None)

    def compose(
        self,
    ) -> AbstractTransformation[
        ChainState[
            tuple[ReduceVarianceState, ScaleByAdamState, EmptyState, ScaleByLearningRateState]
        ]
    ]:
        return Chain(
            ReduceVariance(self.gamma, self.b1, self.max_norm),
            from_fields(ScaleByAdam, self, nesterov=False),
            AddDecayedWeights(self.weight_decay, self.mask),
            ScaleByLearningRate(self.learning_rate),
        )
