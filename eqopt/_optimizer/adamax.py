"""Adamax, with and without weight decay."""

import equinox as eqx

from .._base.converters import decay_factor, non_negative, optional
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, as_rate
from .._transform.adamax import ScaleByAdamax, ScaleByAdamaxState
from .._transform.decay import AddDecayedWeights
from .._transform.learning_rate import ScaleByLearningRate, ScaleByLearningRateState
from .._transformation.base import AbstractOptimizer, AbstractTransformation, EmptyState
from .._wrapper.chain import Chain, ChainState
from ..selectors._selector import AbstractSelector, as_selector

_AdamaxState = ChainState[tuple[ScaleByAdamaxState, ScaleByLearningRateState]]
_AdamaxWState = ChainState[tuple[ScaleByAdamaxState, EmptyState, ScaleByLearningRateState]]


class Adamax(AbstractOptimizer[_AdamaxState]):
    """Steps by the average gradient, divided by the largest gradient.

    It is a chain of [`eqopt.ScaleByAdamax`][] and [`eqopt.ScaleByLearningRate`][].

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative.
    - `b1`: the decay of the average gradient, in $[0, 1)$.
    - `b2`: the decay of the largest gradient, in $[0, 1)$.
    - `eps`: added to the modulus of each gradient, not negative, as in torch; the paper has none.
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.999)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)

    def compose(self) -> AbstractTransformation[_AdamaxState]:
        return Chain(
            ScaleByAdamax(self.b1, self.b2, self.eps), ScaleByLearningRate(self.learning_rate)
        )


class AdamaxW(AbstractOptimizer[_AdamaxWState]):
    """Steps as [`eqopt.Adamax`][] does, with decoupled weight decay.

    It is a chain of [`eqopt.ScaleByAdamax`][], [`eqopt.AddDecayedWeights`][] and
    [`eqopt.ScaleByLearningRate`][].

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative.
    - `b1`: the decay of the average gradient, in $[0, 1)$.
    - `b2`: the decay of the largest gradient, in $[0, 1)$.
    - `eps`: added to the modulus of each gradient, not negative, as in torch; the paper has none.
    - `weight_decay`: the decay, in proportion to the learning rate, not negative.
    - `mask`: the parameters that decay: a selector, a function from the parameters to booleans, or
        a tree of booleans, possibly a prefix; `None` is everything.
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.999)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=1e-4)
    mask: AbstractSelector | None = eqx.field(converter=optional(as_selector), default=None)

    def compose(self) -> AbstractTransformation[_AdamaxWState]:
        return Chain(
            ScaleByAdamax(self.b1, self.b2, self.eps),
            AddDecayedWeights(self.weight_decay, self.mask),
            ScaleByLearningRate(self.learning_rate),
        )
