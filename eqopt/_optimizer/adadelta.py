"""Adadelta."""

import equinox as eqx

from .._base.converters import decay_factor, non_negative, optional, positive
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, as_rate
from .._transform.adadelta import ScaleByAdadelta, ScaleByAdadeltaState
from .._transform.decay import AddDecayedWeights
from .._transform.learning_rate import ScaleByLearningRate, ScaleByLearningRateState
from .._transformation.base import AbstractOptimizer, AbstractTransformation, EmptyState
from .._wrapper.chain import Chain, ChainState
from ..selectors._selector import AbstractSelector, as_selector

_State = ChainState[tuple[EmptyState, ScaleByAdadeltaState, ScaleByLearningRateState]]


class Adadelta(AbstractOptimizer[_State]):
    """Steps by the gradient, times the ratio of the typical past step to the typical gradient.

    It is a chain of [`eqopt.AddDecayedWeights`][], [`eqopt.ScaleByAdadelta`][] and
    [`eqopt.ScaleByLearningRate`][].

    !!! note
        Without a rate it is the paper's method, and descends. optax's `adadelta()` leaves out the
        sign along with the rate, and climbs.

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative; the paper has none, which
        is 1.
    - `rho`: the decay of both averages, in $[0, 1)$.
    - `eps`: added to both averages under the root, positive. It sets the length of the first steps,
        which would be 0 without it.
    - `weight_decay`: the decay, not negative. It comes before the averages, as the gradient of a
        penalty.
    - `weight_decay_mask`: the parameters that decay: a selector, a function from the parameters to
        booleans, or a tree of booleans; `None` is everything.
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate, default=1.0)
    rho: Scalar = eqx.field(converter=decay_factor("rho"), default=0.9)
    eps: Scalar = eqx.field(converter=positive("eps"), default=1e-6)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=0.0)
    weight_decay_mask: AbstractSelector | None = eqx.field(
        converter=optional(as_selector), default=None
    )

    def compose(self) -> AbstractTransformation[_State]:
        return Chain(
            AddDecayedWeights(self.weight_decay, self.weight_decay_mask),
            ScaleByAdadelta(self.rho, self.eps),
            ScaleByLearningRate(self.learning_rate),
        )
