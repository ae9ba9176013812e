"""ADOPT."""

import equinox as eqx
import numpy as np

from .._base.converters import decay_factor, flag, non_negative, to_dtype
from .._base.fields import from_fields
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, as_rate, as_schedule
from .._transform.adopt import clip_value_pow, ScaleByADOPT, ScaleByADOPTState
from .._transform.learning_rate import ScaleByLearningRate, ScaleByLearningRateState
from .._transformation.base import AbstractOptimizer, AbstractTransformation
from .._wrapper.chain import Chain, ChainState

_State = ChainState[tuple[ScaleByADOPTState, ScaleByLearningRateState]]


class ADOPT(AbstractOptimizer[_State]):
    """Averages gradients, each divided by the root of the average square of the earlier gradients.

    It is a chain of [`eqopt.ScaleByADOPT`][] and [`eqopt.ScaleByLearningRate`][].

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative.
    - `b1`: the decay of the average, in $[0, 1)$.
    - `b2`: the decay of the average squared gradient, in $[0, 1)$.
    - `eps`: the smallest divisor, not negative.
    - `mu_dtype`: the dtype of the average gradient; `None` is the parameter's, and float32 for half
        precision.
    - `nesterov`: whether to look ahead, as Nesterov's momentum does.
    - `use_clipping`: whether each divided gradient is clipped.
    - `clip_value_fn`: the limit, not negative: an [`eqopt.writing.AbstractSchedule`][], or a
        function of the count, which is static; by default [`eqopt.options.clip_value_pow`][].
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.9999)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-6)
    mu_dtype: np.dtype | None = eqx.field(converter=to_dtype("mu_dtype"), static=True, default=None)
    nesterov: bool = eqx.field(converter=flag("nesterov"), static=True, default=False)
    use_clipping: bool = eqx.field(converter=flag("use_clipping"), static=True, default=True)
    clip_value_fn: AbstractSchedule = eqx.field(
        converter=lambda x: as_schedule("clip_value_fn", x), default=clip_value_pow
    )

    def compose(self) -> AbstractTransformation[_State]:
        return Chain(from_fields(ScaleByADOPT, self), ScaleByLearningRate(self.learning_rate))
