"""Optimistic gradient descent."""

import equinox as eqx

from .._base.converters import non_negative
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, as_rate
from .._transform.learning_rate import ScaleByLearningRate, ScaleByLearningRateState
from .._transform.optimistic import ScaleByOptimisticGradient, ScaleByOptimisticGradientState
from .._transformation.base import AbstractOptimizer, AbstractTransformation
from .._wrapper.chain import Chain, ChainState

_State = ChainState[tuple[ScaleByOptimisticGradientState, ScaleByLearningRateState]]


class OptimisticGradientDescent(AbstractOptimizer[_State]):
    """Goes down the gradient plus its last change, for games.

    It is a chain of [`eqopt.ScaleByOptimisticGradient`][] and [`eqopt.ScaleByLearningRate`][].

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative.
    - `alpha`: the factor of the gradient, not negative.
    - `beta`: the factor of its change, not negative.
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    alpha: Scalar = eqx.field(converter=non_negative("alpha"), default=1.0)
    beta: Scalar = eqx.field(converter=non_negative("beta"), default=1.0)

    def compose(self) -> AbstractTransformation[_State]:
        return Chain(
            ScaleByOptimisticGradient(self.alpha, self.beta),
            ScaleByLearningRate(self.learning_rate),
        )
