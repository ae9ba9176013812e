"""RMSProp."""

import equinox as eqx

from .._base.converters import decay_factor, flag, non_negative, optional, real
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, as_rate
from .._transform.average import Trace, TraceState
from .._transform.basic import Identity
from .._transform.learning_rate import ScaleByLearningRate, ScaleByLearningRateState
from .._transform.rms import ScaleByRMS, ScaleByRMSState, ScaleByStddev, ScaleByStddevState
from .._transformation.base import (
    AbstractOptimizer,
    AbstractTransformation,
    AnyTransformation,
    EmptyState,
)
from .._wrapper.chain import Chain, ChainState

_Moments = ScaleByRMSState | ScaleByStddevState
_State = ChainState[tuple[_Moments, ScaleByLearningRateState, TraceState | EmptyState]]


class RMSProp(AbstractOptimizer[_State]):
    """Divides the gradient by the root of the average of its squares.

    It is a chain of [`eqopt.ScaleByRMS`][] (or, centered, [`eqopt.ScaleByStddev`][]),
    [`eqopt.ScaleByLearningRate`][] and, if there is momentum, [`eqopt.Trace`][].

    !!! note
        The momentum comes after the learning rate, as in optax and in torch: when a schedule lowers
        the rate, what the momentum has gathered keeps its size.

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative.
    - `decay`: the decay of the averages, in $[0, 1)$.
    - `eps`: added to the denominator, not negative.
    - `initial_scale`: the average of squares to begin with, not negative.
    - `eps_in_sqrt`: whether `eps` is added under the root, or to it, as torch does.
    - `centered`: whether to divide by the standard deviation instead.
    - `momentum`: the momentum's factor, in $[0, 1]$; `None` is none.
    - `nesterov`: whether to look ahead, as Nesterov's momentum does.
    - `bias_correction`: whether the averages are debiased.
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    decay: Scalar = eqx.field(converter=decay_factor("decay"), default=0.9)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)
    initial_scale: Scalar = eqx.field(converter=non_negative("initial_scale"), default=0.0)
    eps_in_sqrt: bool = eqx.field(converter=flag("eps_in_sqrt"), static=True, default=True)
    centered: bool = eqx.field(converter=flag("centered"), static=True, default=False)
    momentum: Scalar | None = eqx.field(
        converter=optional(real("momentum", at_least=0, at_most=1)), default=None
    )
    nesterov: bool = eqx.field(converter=flag("nesterov"), static=True, default=False)
    bias_correction: bool = eqx.field(converter=flag("bias_correction"), static=True, default=False)

    def compose(self) -> AbstractTransformation[_State]:
        scaling = ScaleByStddev if self.centered else ScaleByRMS
        moments: AnyTransformation = scaling(
            self.decay, self.eps, self.initial_scale, self.eps_in_sqrt, self.bias_correction
        )
        memory: AnyTransformation = (
            Identity() if self.momentum is None else Trace(self.momentum, self.nesterov)
        )
        return Chain(moments, ScaleByLearningRate(self.learning_rate), memory)
