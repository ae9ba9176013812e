"""AdaBelief."""

import equinox as eqx

from .._base.converters import decay_factor, flag, non_negative
from .._base.fields import from_fields
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, as_rate
from .._transform.belief import ScaleByBelief, ScaleByBeliefState
from .._transform.learning_rate import ScaleByLearningRate, ScaleByLearningRateState
from .._transformation.base import AbstractOptimizer, AbstractTransformation
from .._wrapper.chain import Chain, ChainState

_State = ChainState[tuple[ScaleByBeliefState, ScaleByLearningRateState]]


class AdaBelief(AbstractOptimizer[_State]):
    """Steps by the average gradient, divided by how far gradients usually are from it.

    It is a chain of [`eqopt.ScaleByBelief`][] and [`eqopt.ScaleByLearningRate`][].

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative.
    - `b1`: the decay of the average gradient, in $[0, 1)$.
    - `b2`: the decay of the average squared distance from it, in $[0, 1)$.
    - `eps`: added to the root of that average, not negative.
    - `eps_root`: added to that average at each step, not negative.
    - `nesterov`: whether to look ahead, as Nesterov's momentum does.
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.999)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-16)
    eps_root: Scalar = eqx.field(converter=non_negative("eps_root"), default=1e-16)
    nesterov: bool = eqx.field(converter=flag("nesterov"), static=True, default=False)

    def compose(self) -> AbstractTransformation[_State]:
        return Chain(from_fields(ScaleByBelief, self), ScaleByLearningRate(self.learning_rate))
