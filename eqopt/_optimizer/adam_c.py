"""AdamC: weight decay in proportion to the square of the learning rate."""

from typing import Any

import equinox as eqx
import numpy as np

from .._base.converters import decay_factor, flag, non_negative, optional, positive, to_dtype
from .._base.fields import from_fields
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, as_rate
from .._transform.adam import ScaleByAdam
from .._transform.control.decay import DecayByRate, DecayWeights
from .._transform.learning_rate import ScaleByLearningRate
from .._transformation.base import AbstractOptimizer, AbstractTransformation
from .._wrapper.chain import Chain, ChainState
from ..selectors._selector import AbstractSelector, as_selector

_State = ChainState[tuple[Any, ...]]


class AdamC(AbstractOptimizer[_State]):
    r"""Steps as [`eqopt.AdamW`][] does; weights that a normalization follows decay in proportion to
    the square of the rate.

    $$\theta_{t+1} = (1 - \delta_t)\, \theta_t - \gamma_t
    \frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon}, \qquad
    \delta_t = \lambda\, \frac{\gamma_t^2}{\gamma_{\max}}$$

    where a normalization follows, and $\delta_t = \lambda \gamma_t$ elsewhere. With AdamW the ratio
    of gradient and norm of such weights grows while the rate falls, and with it the gradients near
    the end of training; here it stays. While the rate is $\gamma_{\max}$, both are the same.

    It is a chain of [`eqopt.ScaleByAdam`][], [`eqopt.ScaleByLearningRate`][] and
    [`eqopt.control.DecayWeights`][], twice if `normalized` is given. It keeps 8 bytes for each
    parameter in float32.

    ```python
    import eqopt

    rate = eqopt.WarmupCosineDecay(peak_value=1e-3, warmup_steps=100, decay_steps=10_000)
    opt = eqopt.control.AdamC(rate, 1e-3, weight_decay=0.05, normalized=eqopt.ByNdim(2))
    ```

    !!! note
        pytorch-optimizer takes the first rate for $\gamma_{\max}$, which is 0 or small with a
        warm-up.

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative.
    - `max_learning_rate`: the highest rate of that schedule, positive.
    - `b1`: the decay of the average gradient, in $[0, 1)$.
    - `b2`: the decay of the average squared gradient, in $[0, 1)$.
    - `eps`: added to the root of the average square, not negative.
    - `eps_root`: added under that root, not negative.
    - `mu_dtype`: the dtype of the average gradient; `None` is the parameter's, and float32 for half
        precision.
    - `nesterov`: whether to look ahead, as Nesterov's momentum does.
    - `weight_decay`: the decay, in proportion to the learning rate or its square, not negative.
    - `normalized`: the parameters that a normalization follows: a selector, a function from the
        parameters to booleans, or a tree of booleans, possibly a prefix; `None` is everything. All
        others decay as with AdamW.

    ??? cite "Reference"
        Defazio, *Why Gradients Rapidly Increase Near the End of Training*, 2025, algorithm 1 (arXiv
        2506.02285).
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    max_learning_rate: Scalar = eqx.field(converter=positive("max_learning_rate"))
    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.999)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)
    eps_root: Scalar = eqx.field(converter=non_negative("eps_root"), default=0.0)
    mu_dtype: np.dtype | None = eqx.field(converter=to_dtype("mu_dtype"), static=True, default=None)
    nesterov: bool = eqx.field(converter=flag("nesterov"), static=True, default=False)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=0.0)
    normalized: AbstractSelector | None = eqx.field(converter=optional(as_selector), default=None)

    def compose(self) -> AbstractTransformation[_State]:
        decay, rate = self.weight_decay, self.learning_rate
        corrected = DecayByRate(decay, rate, self.max_learning_rate)
        decays = [DecayWeights(corrected, self.normalized)]
        if self.normalized is not None:
            decays.append(DecayWeights(DecayByRate(decay, rate), ~self.normalized))
        return Chain(from_fields(ScaleByAdam, self), ScaleByLearningRate(rate), *decays)
