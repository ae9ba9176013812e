"""ACProp."""

import equinox as eqx

from .._base.converters import decay_factor, non_negative, optional
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, as_rate
from .._transform.acprop import ScaleByACProp, ScaleByACPropState
from .._transform.decay import AddDecayedWeights
from .._transform.learning_rate import ScaleByLearningRate, ScaleByLearningRateState
from .._transformation.base import AbstractOptimizer, AbstractTransformation, EmptyState
from .._wrapper.chain import Chain, ChainState
from ..selectors._selector import AbstractSelector, as_selector

_State = ChainState[tuple[ScaleByACPropState, EmptyState, ScaleByLearningRateState]]


class ACProp(AbstractOptimizer[_State]):
    """Steps by the gradient, divided by the typical distance of earlier gradients from their
    average.

    It is a chain of [`eqopt.ScaleByACProp`][], [`eqopt.AddDecayedWeights`][] and
    [`eqopt.ScaleByLearningRate`][].

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative.
    - `b1`: the decay of the average gradient, in $[0, 1)$.
    - `b2`: the decay of the average squared distance from it, in $[0, 1)$.
    - `eps`: added to the root of that average, not negative.
    - `eps_root`: added to that average at each step, not negative.
    - `weight_decay`: the decay, in proportion to the learning rate, not negative.
    - `mask`: the parameters that decay: a selector, a function from the parameters to booleans, or
        a tree of booleans, possibly a prefix; `None` is everything.
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.999)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-16)
    eps_root: Scalar = eqx.field(converter=non_negative("eps_root"), default=1e-16)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=0.0)
    mask: AbstractSelector | None = eqx.field(converter=optional(as_selector), default=None)

    def compose(self) -> AbstractTransformation[_State]:
        return Chain(
            ScaleByACProp(self.b1, self.b2, self.eps, self.eps_root),
            AddDecayedWeights(self.weight_decay, self.mask),
            ScaleByLearningRate(self.learning_rate),
        )
