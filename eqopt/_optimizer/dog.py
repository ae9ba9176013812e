"""Distance over gradients, and over weighted gradients."""

import equinox as eqx

from .._base.converters import non_negative, optional, positive
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, as_rate
from .._transform.basic import Identity
from .._transform.decay import AddDecayedWeights
from .._transform.dog import (
    AbstractInitialStep,
    initial_step,
    ScaleByDoG,
    ScaleByDoGState,
    ScaleByDoWG,
    ScaleByDoWGState,
)
from .._transform.learning_rate import ScaleByLearningRate, ScaleByLearningRateState
from .._transformation.base import AbstractOptimizer, AbstractTransformation, EmptyState
from .._wrapper.chain import Chain, ChainState
from ..selectors._selector import AbstractSelector, as_selector

_DoGState = ChainState[tuple[EmptyState, ScaleByDoGState, ScaleByLearningRateState]]
_DoWGState = ChainState[tuple[EmptyState, ScaleByDoWGState, ScaleByLearningRateState]]


def _decay(
    weight_decay: Scalar | None, mask: AbstractSelector | None
) -> AbstractTransformation[EmptyState]:
    return Identity() if weight_decay is None else AddDecayedWeights(weight_decay, mask)


class DoG(AbstractOptimizer[_DoGState]):
    """Steps by the largest distance moved so far, divided by the root of the sum of squared
    gradients.

    It is a chain of [`eqopt.AddDecayedWeights`][], if there is decay, [`eqopt.ScaleByDoG`][] and
    [`eqopt.ScaleByLearningRate`][]. The authors advise to evaluate with averaged parameters; see
    [`eqopt.ParamEMA`][].

    **Arguments:**

    - `learning_rate`: a factor of the steps, a number or a schedule, not negative.
    - `init_step`: how to begin: an [`eqopt.options.InitialDistance`][], an
        [`eqopt.options.InitialDistanceHeuristic`][] or an [`eqopt.options.InitialLearningRate`][].
        (The pairs `("distance", x)`, `("heuristic", x)` and `("learning_rate", x)` are accepted
        too.)
    - `eps`: added to the sum of the squared norms, not negative.
    - `weight_decay`: the factor of an added l2 penalty, not negative; `None` is none.
    - `mask`: the parameters that decay: a selector, a function from the parameters to booleans, or
        a tree of booleans, possibly a prefix; `None` is everything.
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate, default=1.0)
    init_step: AbstractInitialStep = eqx.field(converter=initial_step, default=("heuristic", 1e-6))
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)
    weight_decay: Scalar | None = eqx.field(
        converter=optional(non_negative("weight_decay")), default=None
    )
    mask: AbstractSelector | None = eqx.field(converter=optional(as_selector), default=None)

    def compose(self) -> AbstractTransformation[_DoGState]:
        return Chain(
            _decay(self.weight_decay, self.mask),
            ScaleByDoG(self.init_step, self.eps),
            ScaleByLearningRate(self.learning_rate),
        )


class DoWG(AbstractOptimizer[_DoWGState]):
    """Steps as [`eqopt.DoG`][] does, but gives later gradients a larger weight.

    It is a chain of [`eqopt.AddDecayedWeights`][], if there is decay, [`eqopt.ScaleByDoWG`][] and
    [`eqopt.ScaleByLearningRate`][].

    **Arguments:**

    - `learning_rate`: a factor of the steps, a number or a schedule, not negative.
    - `init_estim_sq_dist`: the squared distance to begin with, positive; `None` is `eps`.
    - `eps`: added to the root of the weighted sum, positive.
    - `weight_decay`: the factor of an added l2 penalty, not negative; `None` is none.
    - `mask`: the parameters that decay: a selector, a function from the parameters to booleans, or
        a tree of booleans, possibly a prefix; `None` is everything.
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate, default=1.0)
    init_estim_sq_dist: Scalar | None = eqx.field(
        converter=optional(positive("init_estim_sq_dist")), default=None
    )
    eps: Scalar = eqx.field(converter=positive("eps"), default=1e-4)
    weight_decay: Scalar | None = eqx.field(
        converter=optional(non_negative("weight_decay")), default=None
    )
    mask: AbstractSelector | None = eqx.field(converter=optional(as_selector), default=None)

    def compose(self) -> AbstractTransformation[_DoWGState]:
        return Chain(
            _decay(self.weight_decay, self.mask),
            ScaleByDoWG(self.init_estim_sq_dist, self.eps),
            ScaleByLearningRate(self.learning_rate),
        )
