"""NovoGrad."""

import equinox as eqx

from .._base.converters import decay_factor, non_negative
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, as_rate
from .._transform.learning_rate import ScaleByLearningRate, ScaleByLearningRateState
from .._transform.novograd import ScaleByNovoGrad, ScaleByNovoGradState
from .._transformation.base import AbstractOptimizer, AbstractTransformation
from .._wrapper.chain import Chain, ChainState

_State = ChainState[tuple[ScaleByNovoGradState, ScaleByLearningRateState]]


class NovoGrad(AbstractOptimizer[_State]):
    """Steps by the gradient of each leaf, divided by its usual length, with momentum.

    It is a chain of [`eqopt.ScaleByNovoGrad`][] and [`eqopt.ScaleByLearningRate`][].

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative.
    - `b1`: the momentum's factor, in $[0, 1)$.
    - `b2`: the decay of the average squared norm, in $[0, 1)$.
    - `eps`: added to the root of that average, not negative.
    - `eps_root`: added under that root, not negative.
    - `weight_decay`: the decay, which becomes part of the momentum, not negative.
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.25)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-6)
    eps_root: Scalar = eqx.field(converter=non_negative("eps_root"), default=0.0)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=0.0)

    def compose(self) -> AbstractTransformation[_State]:
        return Chain(
            ScaleByNovoGrad(
                b1=self.b1,
                b2=self.b2,
                eps=self.eps,
                eps_root=self.eps_root,
                weight_decay=self.weight_decay,
            ),
            ScaleByLearningRate(self.learning_rate),
        )
