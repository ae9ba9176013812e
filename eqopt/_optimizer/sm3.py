"""SM3."""

import equinox as eqx

from .._base.converters import decay_factor
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, as_rate
from .._transform.learning_rate import ScaleByLearningRate, ScaleByLearningRateState
from .._transform.sm3 import ScaleBySM3, ScaleBySM3State
from .._transformation.base import AbstractOptimizer, AbstractTransformation
from .._wrapper.chain import Chain, ChainState

_State = ChainState[tuple[ScaleBySM3State, ScaleByLearningRateState]]


class SM3(AbstractOptimizer[_State]):
    """Steps as Adagrad does, with little memory, and momentum.

    It is a chain of [`eqopt.ScaleBySM3`][] and [`eqopt.ScaleByLearningRate`][].

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative.
    - `momentum`: the decay of the average of the rescaled gradients, in $[0, 1)$.
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    momentum: Scalar = eqx.field(converter=decay_factor("momentum"), default=0.9)

    def compose(self) -> AbstractTransformation[_State]:
        return Chain(ScaleBySM3(self.momentum), ScaleByLearningRate(self.learning_rate))
