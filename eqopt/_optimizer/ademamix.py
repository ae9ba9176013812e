"""AdEMAMix, and the simplified AdEMAMix."""

import equinox as eqx
import numpy as np

from .._base.converters import decay_factor, non_negative, optional, to_dtype
from .._base.fields import from_fields
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, as_rate, scheduled_real
from .._transform.ademamix import (
    ScaleByAdEMAMix,
    ScaleByAdEMAMixState,
    ScaleBySimplifiedAdEMAMix,
    ScaleBySimplifiedAdEMAMixState,
)
from .._transform.decay import AddDecayedWeights
from .._transform.learning_rate import ScaleByLearningRate, ScaleByLearningRateState
from .._transformation.base import AbstractOptimizer, AbstractTransformation, EmptyState
from .._wrapper.chain import Chain, ChainState
from ..selectors._selector import AbstractSelector, as_selector

_State = ChainState[tuple[ScaleByAdEMAMixState, EmptyState, ScaleByLearningRateState]]
_SimplifiedState = ChainState[
    tuple[ScaleBySimplifiedAdEMAMixState, EmptyState, ScaleByLearningRateState]
]


class AdEMAMix(AbstractOptimizer[_State]):
    """Steps as [`eqopt.AdamW`][] does, by a mixture of a fast and a slow average of the gradients.

    It is a chain of [`eqopt.ScaleByAdEMAMix`][], [`eqopt.AddDecayedWeights`][] and
    [`eqopt.ScaleByLearningRate`][].

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative.
    - `b1`: the decay of the fast average, in $[0, 1)$.
    - `b2`: the decay of the average squared gradient, in $[0, 1)$.
    - `b3`: the decay of the slow average, a number in $[0, 1)$ or a schedule.
    - `alpha`: the weight of the slow average, a number or a schedule, not negative. (The default is
        5, as in optax, and not 6 as in the link.)
    - `eps`: added to the root of the average square, not negative.
    - `eps_root`: added under that root, not negative.
    - `mu_dtype`: the dtype of both averages; `None` is the parameter's, and float32 for half
        precision.
    - `weight_decay`: the decay, in proportion to the learning rate, not negative.
    - `mask`: the parameters that decay: a selector, a function from the parameters to booleans, or
        a tree of booleans, possibly a prefix; `None` is everything.
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.999)
    b3: Scalar | AbstractSchedule = eqx.field(
        converter=scheduled_real("b3", at_least=0, below=1), default=0.9999
    )
    alpha: Scalar | AbstractSchedule = eqx.field(
        converter=scheduled_real("alpha", at_least=0), default=5.0
    )
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)
    eps_root: Scalar = eqx.field(converter=non_negative("eps_root"), default=0.0)
    mu_dtype: np.dtype | None = eqx.field(converter=to_dtype("mu_dtype"), static=True, default=None)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=0.0)
    mask: AbstractSelector | None = eqx.field(converter=optional(as_selector), default=None)

    def compose(self) -> AbstractTransformation[_State]:
        return Chain(
            from_fields(ScaleByAdEMAMix, self),
            AddDecayedWeights(self.weight_decay, self.mask),
            ScaleByLearningRate(self.learning_rate),
        )


class SimplifiedAdEMAMix(AbstractOptimizer[_SimplifiedState]):
    """Steps as [`eqopt.AdEMAMix`][] does, with one average less.

    It is a chain of [`eqopt.ScaleBySimplifiedAdEMAMix`][], [`eqopt.AddDecayedWeights`][] and
    [`eqopt.ScaleByLearningRate`][]. By default its steps are a hundred times as long as Adam's, so
    use a learning rate that is a hundred times smaller.

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative.
    - `b1`: the decay of the sum of gradients, in $[0, 1)$.
    - `b2`: the decay of the average squared gradient, in $[0, 1)$.
    - `alpha`: the additional weight of the newest gradient, a number or a schedule, not negative.
    - `eps`: added to the root of the average square, not negative.
    - `eps_root`: added under that root, not negative.
    - `weight_decay`: the decay, in proportion to the learning rate, not negative.
    - `mask`: the parameters that decay: a selector, a function from the parameters to booleans, or
        a tree of booleans, possibly a prefix; `None` is everything.
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.99)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.95)
    alpha: Scalar | AbstractSchedule = eqx.field(
        converter=scheduled_real("alpha", at_least=0), default=0.0
    )
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)
    eps_root: Scalar = eqx.field(converter=non_negative("eps_root"), default=0.0)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=0.0)
    mask: AbstractSelector | None = eqx.field(converter=optional(as_selector), default=None)

    def compose(self) -> AbstractTransformation[_SimplifiedState]:
        return Chain(
            from_fields(ScaleBySimplifiedAdEMAMix, self),
            AddDecayedWeights(self.weight_decay, self.mask),
            ScaleByLearningRate(self.learning_rate),
        )
