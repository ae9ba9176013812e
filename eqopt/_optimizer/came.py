"""Steps by CAME, which divides an average of normalized gradients by its uncertainty."""

import equinox as eqx
import numpy as np

from .._base.converters import decay_factor, non_negative, optional, positive, to_dtype
from .._base.fields import from_fields
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, as_rate
from .._transform.came import ScaleByCAME, ScaleByCAMEState
from .._transform.decay import AddDecayedWeights
from .._transform.learning_rate import ScaleByLearningRate, ScaleByLearningRateState
from .._transformation.base import (
    AbstractOptimizer,
    AbstractTransformation,
    EmptyState,
)
from .._wrapper.chain import Chain, ChainState
from ..selectors._selector import AbstractSelector, as_selector


class CAME(
    AbstractOptimizer[ChainState[tuple[ScaleByCAMEState, EmptyState, ScaleByLearningRateState]]]
):
    r"""Steps by an average of gradients normalized as by Adafactor, less where it is uncertain.

    $$\theta_{t+1} = \theta_t - \gamma_t \left(\frac{m_t}{\sqrt{S_t}} + \lambda \theta_t\right)$$

    with the average $m_t$ of the normalized gradients and the factored average $S_t$ of their
    squared distance from it. It is a chain of [`eqopt.control.ScaleByCAME`][],
    [`eqopt.AddDecayedWeights`][] and [`eqopt.ScaleByLearningRate`][]. It keeps 4 bytes for each
    parameter in float32, and four vectors for each matrix.

    ```python
    import eqopt

    opt = eqopt.control.CAME(2e-4, weight_decay=0.01)
    ```

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative.
    - `b1`: the decay of the average normalized gradient, in $[0, 1)$.
    - `b2`: the decay of the average square, in $[0, 1)$.
    - `b3`: the decay of the average distance, in $[0, 1)$.
    - `clipping_threshold`: the largest root mean square of a matrix before it is averaged,
        positive.
    - `eps`: added to the squares, positive.
    - `eps_confidence`: added to the squared distances, positive.
    - `mu_dtype`: the dtype of the average; `None` is the parameter's, and float32 for half
        precision.
    - `weight_decay`: the decay, in proportion to the learning rate, not negative.
    - `mask`: the parameters that decay: a selector, a function from the parameters to booleans, or
        a tree of booleans, possibly a prefix; `None` is everything.

    ??? cite "Reference"
        Luo et al., *CAME: Confidence-guided Adaptive Memory Efficient Optimization*, ACL 2023,
        algorithm 2 (arXiv 2307.02047).
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.999)
    b3: Scalar = eqx.field(converter=decay_factor("b3"), default=0.9999)
    clipping_threshold: Scalar = eqx.field(converter=positive("clipping_threshold"), default=1.0)
    eps: Scalar = eqx.field(converter=positive("eps"), default=1e-30)
    eps_confidence: Scalar = eqx.field(converter=positive("eps_confidence"), default=1e-16)
    mu_dtype: np.dtype | None = eqx.field(converter=to_dtype("mu_dtype"), static=True, default=None)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=0.0)
    mask: AbstractSelector | None = eqx.field(converter=optional(as_selector), default=None)

    def compose(
        self,
    ) -> AbstractTransformation[
        ChainState[tuple[ScaleByCAMEState, EmptyState, ScaleByLearningRateState]]
    ]:
        return Chain(
            from_fields(ScaleByCAME, self),
            AddDecayedWeights(self.weight_decay, self.mask),
            ScaleByLearningRate(self.learning_rate),
        )
