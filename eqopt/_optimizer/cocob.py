"""Coin betting."""

import equinox as eqx

from .._base.converters import non_negative, optional, positive
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, as_rate
from .._transform.cocob import ScaleByCOCOB, ScaleByCOCOBState
from .._transform.decay import AddDecayedWeights
from .._transform.learning_rate import ScaleByLearningRate, ScaleByLearningRateState
from .._transformation.base import AbstractOptimizer, AbstractTransformation, EmptyState
from .._wrapper.chain import Chain, ChainState
from ..selectors._selector import AbstractSelector, as_selector

_State = ChainState[tuple[EmptyState, ScaleByLearningRateState, ScaleByCOCOBState]]


class COCOB(AbstractOptimizer[_State]):
    """Bets on the signs of the gradients, and needs no learning rate.

    It is a chain of [`eqopt.AddDecayedWeights`][], [`eqopt.ScaleByLearningRate`][] (which here
    scales the gradients and does not flip their sign) and [`eqopt.ScaleByCOCOB`][].

    **Arguments:**

    - `learning_rate`: the weight of each gradient, a number or a schedule, not negative. A constant
        weight matters only in comparison with `eps`, if gradients are tiny.
    - `alpha`: keeps the first bets small, not negative: at first, a parameter moves by about `1 /
        alpha` a step.
    - `eps`: the smallest scale of the gradients, positive.
    - `weight_decay`: the factor of an added l2 penalty, not negative.
    - `mask`: the parameters that decay: a selector, a function from the parameters to booleans, or
        a tree of booleans, possibly a prefix; `None` is everything.
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate, default=1.0)
    alpha: Scalar = eqx.field(converter=non_negative("alpha"), default=100.0)
    eps: Scalar = eqx.field(converter=positive("eps"), default=1e-8)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=0.0)
    mask: AbstractSelector | None = eqx.field(converter=optional(as_selector), default=None)

    def compose(self) -> AbstractTransformation[_State]:
        return Chain(
            AddDecayedWeights(self.weight_decay, self.mask),
            ScaleByLearningRate(self.learning_rate, flip_sign=False),
            ScaleByCOCOB(self.alpha, self.eps),
        )
