"""Adam and its variants."""

import equinox as eqx

from .._base.converters import decay_factor, non_negative
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, maybe_rate
from .._transform.adam import ScaleByAdam, ScaleByAdamState
from .._transform.belief import ScaleByBelief, ScaleByBeliefState
from .._transform.block import ScaleByTrustRatio
from .._transform.decay import AddDecayedWeights
from .._transform.learning_rate import ScaleByLearningRateState
from .._transformation.base import AbstractTransformation, EmptyState
from .._wrapper.chain import Chain, ChainState
from ._base import AbstractOptimizerDef, scale_by

_AdamState = ChainState[tuple[ScaleByAdamState, EmptyState, ScaleByLearningRateState]]
_BeliefState = ChainState[tuple[ScaleByBeliefState, EmptyState, ScaleByLearningRateState]]
_LAMBState = ChainState[tuple[ScaleByAdamState, EmptyState, EmptyState, ScaleByLearningRateState]]


class Adam(AbstractOptimizerDef[_AdamState]):
    """Steps by the average gradient, divided by the root of the average squared gradient.

    It is a chain of [`eqopt.ScaleByAdam`][], [`eqopt.AddDecayedWeights`][] and
    [`eqopt.ScaleByLearningRate`][].

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative; with `None`, to be given at
        each step.
    - `beta1`: the decay of the average gradient, in $[0, 1)$.
    - `beta2`: the decay of the average squared gradient, in $[0, 1)$.
    - `eps`: added to the root of the average square, not negative.
    - `weight_decay`: the decay, in proportion to the learning rate, not negative. It is apart from
        the averages, as in [`eqopt.AdamW`][].
    """

    learning_rate: Scalar | AbstractSchedule | None = eqx.field(converter=maybe_rate, default=None)
    beta1: Scalar = eqx.field(converter=decay_factor("beta1"), default=0.9)
    beta2: Scalar = eqx.field(converter=decay_factor("beta2"), default=0.999)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=0.0)

    def compose(self) -> AbstractTransformation[_AdamState]:
        return Chain(
            ScaleByAdam(self.beta1, self.beta2, self.eps),
            AddDecayedWeights(self.weight_decay),
            scale_by(self.learning_rate),
        )


class AdaBelief(AbstractOptimizerDef[_BeliefState]):
    """Steps by the average gradient, divided by how far gradients usually are from it.

    It is a chain of [`eqopt.ScaleByBelief`][], [`eqopt.AddDecayedWeights`][] and
    [`eqopt.ScaleByLearningRate`][].

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative; with `None`, to be given at
        each step.
    - `beta1`: the decay of the average gradient, in $[0, 1)$.
    - `beta2`: the decay of the average squared distance from it, in $[0, 1)$.
    - `eps`: added both to that average, at each step, and to its root; not negative.
    - `weight_decay`: the decay, in proportion to the learning rate, not negative. It is apart from
        the averages.
    """

    learning_rate: Scalar | AbstractSchedule | None = eqx.field(converter=maybe_rate, default=None)
    beta1: Scalar = eqx.field(converter=decay_factor("beta1"), default=0.9)
    beta2: Scalar = eqx.field(converter=decay_factor("beta2"), default=0.999)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-16)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=0.0)

    def compose(self) -> AbstractTransformation[_BeliefState]:
        return Chain(
            ScaleByBelief(self.beta1, self.beta2, self.eps, self.eps),
            AddDecayedWeights(self.weight_decay),
            scale_by(self.learning_rate),
        )


class LAMB(AbstractOptimizerDef[_LAMBState]):
    """Steps as [`eqopt.flax_optim.Adam`][] does, with a length in proportion to each parameter's
    length.

    It is a chain of [`eqopt.ScaleByAdam`][], [`eqopt.AddDecayedWeights`][],
    [`eqopt.ScaleByTrustRatio`][] and [`eqopt.ScaleByLearningRate`][].

    !!! warning
        A parameter that is zero stays zero, as it did in flax.optim. In [`eqopt.LAMB`][] it moves.
        A gradient of zero gives an update of zero; in flax.optim it gave NaN.

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative; with `None`, to be given at
        each step.
    - `beta1`: the decay of the average gradient, in $[0, 1)$.
    - `beta2`: the decay of the average squared gradient, in $[0, 1)$.
    - `weight_decay`: the decay, not negative; the decayed weights are scaled together with the
        update.
    - `eps`: added to the root of the average square, not negative.
    """

    learning_rate: Scalar | AbstractSchedule | None = eqx.field(converter=maybe_rate, default=None)
    beta1: Scalar = eqx.field(converter=decay_factor("beta1"), default=0.9)
    beta2: Scalar = eqx.field(converter=decay_factor("beta2"), default=0.999)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=0.0)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-6)

    def compose(self) -> AbstractTransformation[_LAMBState]:
        return Chain(
            ScaleByAdam(self.beta1, self.beta2, self.eps),
            AddDecayedWeights(self.weight_decay),
            ScaleByTrustRatio(zeros_move=False),
            scale_by(self.learning_rate),
        )
