"""StableAdamW: Adam whose steps are shorter where the gradient exceeds its average."""

import equinox as eqx
import numpy as np

from .._base import blocks
from .._base.converters import decay_factor, non_negative, optional, to_dtype
from .._base.fields import from_fields
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, as_rate
from .._transform.learning_rate import ScaleByLearningRate, ScaleByLearningRateState
from .._transform.stable_adam import ScaleByStableAdam, ScaleByStableAdamState
from .._transformation.base import AbstractOptimizer, AbstractTransformation
from .._wrapper.chain import Chain, ChainState
from ..selectors._selector import AbstractSelector, as_selector


class StableAdamW(
    AbstractOptimizer[ChainState[tuple[ScaleByStableAdamState, ScaleByLearningRateState]]]
):
    r"""Steps as [`eqopt.AdamW`][] does, and shorter where the gradient exceeds its average.

    $$\theta_{t+1} = \theta_t - \frac{\gamma_t}{\max(1, \rho_t)}
    \left(\frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon} + \lambda \theta_t\right), \qquad
    \rho_t^2 = \operatorname{mean}\left(\frac{|g_t|^2}{\max(\hat v_t, \epsilon^2)}\right)$$

    It is a chain of [`eqopt.control.ScaleByStableAdam`][] and [`eqopt.ScaleByLearningRate`][]. It
    needs no clipping of gradients. It keeps 8 bytes for each parameter in float32.

    ```python
    import eqopt

    opt = eqopt.control.StableAdamW(1e-3, weight_decay=0.1, mask=eqopt.ByNdim(2))
    ```

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative.
    - `b1`: the decay of the average gradient, in $[0, 1)$.
    - `b2`: the decay of the average squared gradient, in $[0, 1)$.
    - `eps`: added to the root of the average square, not negative.
    - `mu_dtype`: the dtype of the average gradient; `None` is the parameter's, and float32 for half
        precision.
    - `weight_decay`: the decay, in proportion to the learning rate, not negative.
    - `mask`: the parameters that decay: a selector, a function from the parameters to booleans, or
        a tree of booleans, possibly a prefix; `None` is everything.
    - `block_ndim`: the number of trailing axes that one mean is over, at least 1: 2 is each matrix
        of a stack, 1 is each row, `None` the whole leaf. A leaf with fewer axes is one block.

    ??? cite "Reference"
        Wortsman et al., *Stable and low-precision training for large-scale vision-language models*,
        NeurIPS 2023, algorithm 2 (arXiv 2304.13013).
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.99)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)
    mu_dtype: np.dtype | None = eqx.field(converter=to_dtype("mu_dtype"), static=True, default=None)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=1e-2)
    mask: AbstractSelector | None = eqx.field(converter=optional(as_selector), default=None)
    block_ndim: int | None = eqx.field(
        converter=blocks.block_size("block_ndim"), static=True, default=2
    )

    def compose(
        self,
    ) -> AbstractTransformation[
        ChainState[tuple[ScaleByStableAdamState, ScaleByLearningRateState]]
    ]:
        return Chain(from_fields(ScaleByStableAdam, self), ScaleByLearningRate(self.learning_rate))
