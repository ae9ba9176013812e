"""MADGRAD."""

import equinox as eqx

from .._base.converters import decay_factor, non_negative
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, as_rate
from .._transform.decay import AddDecayedWeights
from .._transform.madgrad import ScaleByMADGRAD, ScaleByMADGRADState
from .._transformation.base import AbstractOptimizer, AbstractTransformation, EmptyState
from .._wrapper.chain import Chain, ChainState

_State = ChainState[tuple[EmptyState, ScaleByMADGRADState]]


class MADGRAD(AbstractOptimizer[_State]):
    """Averages all gradients, divided by the cube root of the sum of their squares.

    It is a chain of [`eqopt.AddDecayedWeights`][] and [`eqopt.ScaleByMADGRAD`][]. It needs less
    weight decay than other optimizers, and often none.

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative.
    - `momentum`: the weight of the old parameters in each step, in $[0, 1)$.
    - `weight_decay`: the factor of an added l2 penalty, not negative.
    - `eps`: added to the cube root and to the rate, not negative.
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    momentum: Scalar = eqx.field(converter=decay_factor("momentum"), default=0.9)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=0.0)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-6)

    def compose(self) -> AbstractTransformation[_State]:
        return Chain(
            AddDecayedWeights(self.weight_decay),
            ScaleByMADGRAD(self.learning_rate, self.momentum, self.eps),
        )
