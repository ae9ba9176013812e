"""MARS: Adam with gradients that are corrected by their change."""

import equinox as eqx
import numpy as np

from .._base.converters import decay_factor, non_negative, optional, positive, to_dtype
from .._base.fields import from_fields
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, as_rate
from .._transform.adam import ScaleByAdam, ScaleByAdamState
from .._transform.decay import AddDecayedWeights
from .._transform.learning_rate import ScaleByLearningRate, ScaleByLearningRateState
from .._transform.mars import ReduceVariance, ReduceVarianceState
from .._transformation.base import (
    AbstractOptimizer,
    AbstractTransformation,
    EmptyState,
)
from .._wrapper.chain import Chain, ChainState
from ..selectors._selector import AbstractSelector, as_selector


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
