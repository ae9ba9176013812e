"""Rescaling by the size of past gradients."""

import equinox as eqx

from .._base.converters import decay_factor, flag, non_negative, positive
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, maybe_rate
from .._transform.adadelta import ScaleByAdadelta, ScaleByAdadeltaState
from .._transform.decay import AddDecayedWeights
from .._transform.learning_rate import ScaleByLearningRateState
from .._transform.rms import ScaleByRMS, ScaleByRMSState, ScaleByStddev, ScaleByStddevState
from .._transform.rss import ScaleByRSS, ScaleByRSSState
from .._transformation.base import AbstractTransformation, AnyTransformation, EmptyState
from .._wrapper.chain import Chain, ChainState
from ._base import AbstractOptimizerDef, scale_by

_AdadeltaState = ChainState[tuple[ScaleByAdadeltaState, EmptyState, ScaleByLearningRateState]]
_AdagradState = ChainState[tuple[ScaleByRSSState, ScaleByLearningRateState]]
_RMSPropState = ChainState[tuple[ScaleByRMSState | ScaleByStddevState, ScaleByLearningRateState]]


class Adadelta(AbstractOptimizerDef[_AdadeltaState]):
    """Steps by the gradient, times the ratio of the typical past step to the typical gradient.

    It is a chain of [`eqopt.ScaleByAdadelta`][], [`eqopt.AddDecayedWeights`][] and
    [`eqopt.ScaleByLearningRate`][].

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative; with `None`, to be given at
        each step. The paper has none, which is 1.
    - `rho`: the decay of both averages, in $[0, 1)$.
    - `eps`: added to both averages under the root, positive.
    - `weight_decay`: the decay, in proportion to the learning rate, not negative. It is apart from
        the averages; in [`eqopt.Adadelta`][] it comes before them.
    """

    learning_rate: Scalar | AbstractSchedule | None = eqx.field(converter=maybe_rate, default=None)
    rho: Scalar = eqx.field(converter=decay_factor("rho"), default=0.9)
    eps: Scalar = eqx.field(converter=positive("eps"), default=1e-6)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=0.0)

    def compose(self) -> AbstractTransformation[_AdadeltaState]:
        return Chain(
            ScaleByAdadelta(self.rho, self.eps),
            AddDecayedWeights(self.weight_decay),
            scale_by(self.learning_rate),
        )


class Adagrad(AbstractOptimizerDef[_AdagradState]):
    """Divides the gradient by the root of the sum of all its squares so far.

    It is a chain of [`eqopt.ScaleByRSS`][] and [`eqopt.ScaleByLearningRate`][]. The sum begins at
    0, and `eps` is added to its root; in [`eqopt.Adagrad`][] it begins at 0.1, and `eps` is added
    under the root.

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative; with `None`, to be given at
        each step.
    - `eps`: added to the root of the sum, not negative.
    """

    learning_rate: Scalar | AbstractSchedule | None = eqx.field(converter=maybe_rate, default=None)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)

    def compose(self) -> AbstractTransformation[_AdagradState]:
        return Chain(ScaleByRSS(0.0, self.eps, eps_in_sqrt=False), scale_by(self.learning_rate))


class RMSProp(AbstractOptimizerDef[_RMSPropState]):
    """Divides the gradient by the root of the average of its squares.

    It is a chain of [`eqopt.ScaleByRMS`][] (or, centered, [`eqopt.ScaleByStddev`][]) and
    [`eqopt.ScaleByLearningRate`][]. `eps` is added to the root; in [`eqopt.RMSProp`][] it is by
    default added under the root.

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative; with `None`, to be given at
        each step.
    - `beta2`: the decay of the average of squares, in $[0, 1)$.
    - `eps`: added to the root of the average, not negative.
    - `centered`: whether to divide by the standard deviation instead.
    """

    learning_rate: Scalar | AbstractSchedule | None = eqx.field(converter=maybe_rate, default=None)
    beta2: Scalar = eqx.field(converter=decay_factor("beta2"), default=0.9)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)
    centered: bool = eqx.field(converter=flag("centered"), static=True, default=False)

    def compose(self) -> AbstractTransformation[_RMSPropState]:
        scaling = ScaleByStddev if self.centered else ScaleByRMS
        moments: AnyTransformation = scaling(self.beta2, self.eps, eps_in_sqrt=False)
        return Chain(moments, scale_by(self.learning_rate))
