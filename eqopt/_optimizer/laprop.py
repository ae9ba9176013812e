"""LaProp: the gradient is normalized before it is averaged."""

import equinox as eqx
import numpy as np

from .._base.converters import decay_factor, non_negative, optional, to_dtype
from .._base.fields import from_fields
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, as_rate
from .._transform.decay import AddDecayedWeights
from .._transform.laprop import ScaleByLaProp, ScaleByLaPropState
from .._transform.learning_rate import ScaleByLearningRate, ScaleByLearningRateState
from .._transformation.base import (
    AbstractOptimizer,
    AbstractTransformation,
    EmptyState,
)
from .._wrapper.chain import Chain, ChainState
from ..selectors._selector import AbstractSelector, as_selector


class LaProp(
    AbstractOptimizer[ChainState[tuple[ScaleByLaPropState, EmptyState, ScaleByLearningRateState]]]
):
    r"""Steps by an average of gradients that are normalized first.

    $$\theta_{t+1} = \theta_t - \gamma_t \left(\frac{m_t}{1 - \beta_1^t} + \lambda \theta_t\right),
    \qquad m_t = \beta_1 m_{t-1} + (1 - \beta_1)\, \frac{g_t}{\sqrt{\hat v_t} + \epsilon}$$

    It is a chain of [`eqopt.control.ScaleByLaProp`][], [`eqopt.AddDecayedWeights`][] and
    [`eqopt.ScaleByLearningRate`][]. It keeps 8 bytes for each parameter in float32.

    ```python
    import eqopt

    opt = eqopt.control.LaProp(4e-4, b2=0.99, weight_decay=0.1)
    ```

    !!! note
        In pytorch-optimizer the decay comes after the step; for this, use
        [`eqopt.control.DecayWeights`][] with `after_step=True` as a last link.

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative.
    - `b1`: the decay of the average normalized gradient, in $[0, 1)$.
    - `b2`: the decay of the average squared gradient, in $[0, 1)$.
    - `eps`: added to the root of the average square, not negative.
    - `eps_root`: added under that root, not negative.
    - `mu_dtype`: the dtype of the average; `None` is the parameter's, and float32 for half
        precision.
    - `weight_decay`: the decay, in proportion to the learning rate, not negative.
    - `mask`: the parameters that decay: a selector, a function from the parameters to booleans, or
        a tree of booleans, possibly a prefix; `None` is everything.

    ??? cite "Reference"
        Ziyin, Wang and Ueda, *LaProp: Separating Momentum and Adaptivity in Adam*, 2020, algorithm
        1 (arXiv 2002.04839).
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.999)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-15)
    eps_root: Scalar = eqx.field(converter=non_negative("eps_root"), default=0.0)
    mu_dtype: np.dtype | None = eqx.field(converter=to_dtype("mu_dtype"), static=True, default=None)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=0.0)
    mask: AbstractSelector | None = eqx.field(converter=optional(as_selector), default=None)

    def compose(
        self,
    ) -> AbstractTransformation[
        ChainState[tuple[ScaleByLaPropState, EmptyState, ScaleByLearningRateState]]
    ]:
        return Chain(
            from_fields(ScaleByLaProp, self),
            AddDecayedWeights(self.weight_decay, self.mask),
            ScaleByLearningRate(self.learning_rate),
        )
