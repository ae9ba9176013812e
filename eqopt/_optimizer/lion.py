"""Lion."""

import equinox as eqx
import numpy as np

from .._base.converters import decay_factor, non_negative, optional, to_dtype
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, as_rate
from .._transform.decay import AddDecayedWeights
from .._transform.learning_rate import ScaleByLearningRate, ScaleByLearningRateState
from .._transform.lion import ScaleByLion, ScaleByLionState
from .._transformation.base import AbstractOptimizer, AbstractTransformation, EmptyState
from .._wrapper.chain import Chain, ChainState
from ..selectors._selector import AbstractSelector, as_selector

_State = ChainState[tuple[ScaleByLionState, EmptyState, ScaleByLearningRateState]]


class Lion(AbstractOptimizer[_State]):
    """Steps by the sign of an averaged gradient, every entry by the same amount.

    It is a chain of [`eqopt.ScaleByLion`][], [`eqopt.AddDecayedWeights`][] and
    [`eqopt.ScaleByLearningRate`][]. It needs a learning rate three to ten times smaller than
    Adam's, and a weight decay larger by the same factor.

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative.
    - `b1`: the weight of the average in the update, in $[0, 1)$.
    - `b2`: the decay of the average, in $[0, 1)$.
    - `mu_dtype`: the dtype of the average; `None` is the parameter's, and float32 for half
        precision.
    - `weight_decay`: the decay, in proportion to the learning rate, not negative.
    - `mask`: the parameters that decay: a selector, a function from the parameters to booleans, or
        a tree of booleans, possibly a prefix; `None` is everything.
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.99)
    mu_dtype: np.dtype | None = eqx.field(converter=to_dtype("mu_dtype"), static=True, default=None)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=1e-3)
    mask: AbstractSelector | None = eqx.field(converter=optional(as_selector), default=None)

    def compose(self) -> AbstractTransformation[_State]:
        return Chain(
            ScaleByLion(self.b1, self.b2, self.mu_dtype),
            AddDecayedWeights(self.weight_decay, self.mask),
            ScaleByLearningRate(self.learning_rate),
        )
