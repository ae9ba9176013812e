"""Adagrad."""

import equinox as eqx

from .._base.converters import non_negative
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, as_rate
from .._transform.learning_rate import ScaleByLearningRate, ScaleByLearningRateState
from .._transform.rss import ScaleByRSS, ScaleByRSSState
from .._transformation.base import AbstractOptimizer, AbstractTransformation
from .._wrapper.chain import Chain, ChainState

_State = ChainState[tuple[ScaleByRSSState, ScaleByLearningRateState]]


class Adagrad(AbstractOptimizer[_State]):
    """Divides the gradient by the root of the sum of all its squares so far.

    It is a chain of [`eqopt.ScaleByRSS`][] and [`eqopt.ScaleByLearningRate`][]. The sum only grows,
    so the steps shrink, as one over the root of their number.

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative.
    - `initial_accumulator_value`: the sum to begin with, not negative.
    - `eps`: added to the sum under the root, not negative.
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    initial_accumulator_value: Scalar = eqx.field(
        converter=non_negative("initial_accumulator_value"), default=0.1
    )
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-7)

    def compose(self) -> AbstractTransformation[_State]:
        return Chain(
            ScaleByRSS(self.initial_accumulator_value, self.eps),
            ScaleByLearningRate(self.learning_rate),
        )
