"""AMSGrad."""

import equinox as eqx
import numpy as np

from .._base.converters import decay_factor, flag, non_negative, to_dtype
from .._base.fields import from_fields
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, as_rate
from .._transform.amsgrad import ScaleByAMSGrad, ScaleByAMSGradState
from .._transform.learning_rate import ScaleByLearningRate, ScaleByLearningRateState
from .._transformation.base import AbstractOptimizer, AbstractTransformation
from .._wrapper.chain import Chain, ChainState

_State = ChainState[tuple[ScaleByAMSGradState, ScaleByLearningRateState]]


class AMSGrad(AbstractOptimizer[_State]):
    """Steps as [`eqopt.Adam`][] does, with step sizes that never grow.

    It is a chain of [`eqopt.ScaleByAMSGrad`][] and [`eqopt.ScaleByLearningRate`][].

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative.
    - `b1`: the decay of the average gradient, in $[0, 1)$.
    - `b2`: the decay of the average squared gradient, in $[0, 1)$.
    - `eps`: added to the root of the largest average square, not negative.
    - `eps_root`: added under that root, not negative.
    - `mu_dtype`: the dtype of the average gradient; `None` is the parameter's, and float32 for half
        precision.
    - `bias_correction_mu`: whether the average gradient is debiased.
    - `bias_correction_nu`: whether the average squared gradient is debiased, before the maximum is
        taken.
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.999)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)
    eps_root: Scalar = eqx.field(converter=non_negative("eps_root"), default=0.0)
    mu_dtype: np.dtype | None = eqx.field(converter=to_dtype("mu_dtype"), static=True, default=None)
    bias_correction_mu: bool = eqx.field(
        converter=flag("bias_correction_mu"), static=True, default=True
    )
    bias_correction_nu: bool = eqx.field(
        converter=flag("bias_correction_nu"), static=True, default=True
    )

    def compose(self) -> AbstractTransformation[_State]:
        return Chain(from_fields(ScaleByAMSGrad, self), ScaleByLearningRate(self.learning_rate))
