"""Gradient descent, with and without momentum."""

import equinox as eqx

from .._base.converters import flag, non_negative, real
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, maybe_rate
from .._transform.average import Trace, TraceState
from .._transform.block import ScaleByTrustRatio
from .._transform.decay import AddDecayedWeights
from .._transform.learning_rate import ScaleByLearningRateState
from .._transformation.base import AbstractTransformation, EmptyState
from .._wrapper.chain import Chain, ChainState
from ._base import AbstractOptimizerDef, scale_by

_DescentState = ChainState[tuple[ScaleByLearningRateState]]
_MomentumState = ChainState[tuple[EmptyState, TraceState, ScaleByLearningRateState]]
_LARSState = ChainState[tuple[EmptyState, ScaleByLearningRateState, TraceState]]


class GradientDescent(AbstractOptimizerDef[_DescentState]):
    r"""Goes down the gradient: $\theta_{t+1} = \theta_t - \gamma_t\, g_t$.

    It is [`eqopt.ScaleByLearningRate`][].

    **Arguments:**

    - `learning_rate`: the rate $\gamma_t \ge 0$, a number or a schedule; with `None`, to be given
        at each step.
    """

    learning_rate: Scalar | AbstractSchedule | None = eqx.field(converter=maybe_rate, default=None)

    def compose(self) -> AbstractTransformation[_DescentState]:
        return Chain(scale_by(self.learning_rate))


class Momentum(AbstractOptimizerDef[_MomentumState]):
    r"""Goes down the decaying sum of the gradients.

    It is a chain of [`eqopt.AddDecayedWeights`][], [`eqopt.Trace`][] and
    [`eqopt.ScaleByLearningRate`][].

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative; with `None`, to be given at
        each step.
    - `beta`: the momentum's factor, in $[0, 1]$.
    - `weight_decay`: the decay, not negative. It comes before the momentum, as the gradient of an
        $\ell_2$ penalty.
    - `nesterov`: whether the momentum is Nesterov's.
    """

    learning_rate: Scalar | AbstractSchedule | None = eqx.field(converter=maybe_rate, default=None)
    beta: Scalar = eqx.field(converter=real("beta", at_least=0, at_most=1), default=0.9)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=0.0)
    nesterov: bool = eqx.field(converter=flag("nesterov"), static=True, default=False)

    def compose(self) -> AbstractTransformation[_MomentumState]:
        return Chain(
            AddDecayedWeights(self.weight_decay),
            Trace(self.beta, self.nesterov),
            scale_by(self.learning_rate),
        )


class LARS(AbstractOptimizerDef[_LARSState]):
    r"""Steps by the gradient, with a length in proportion to each parameter's length, with
    momentum.

    It is a chain of [`eqopt.ScaleByTrustRatio`][], [`eqopt.ScaleByLearningRate`][] and
    [`eqopt.Trace`][].

    !!! note
        The ratio is to the sum of the norms of gradient and decay, as in the paper; in
        [`eqopt.LARS`][], as in optax, to the norm of their sum. Without decay they are the same.

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative; with `None`, to be given at
        each step.
    - `beta`: the momentum's factor, in $[0, 1]$.
    - `weight_decay`: the decay, not negative. It is added to the gradient.
    - `trust_coefficient`: the ratio of a step's length to the parameter's length at a rate of 1;
        not negative. A parameter or a gradient of zero has the ratio 1 instead.
    - `eps`: added to the norms in the denominator, not negative.
    - `nesterov`: whether the momentum is Nesterov's.
    """

    learning_rate: Scalar | AbstractSchedule | None = eqx.field(converter=maybe_rate, default=None)
    beta: Scalar = eqx.field(converter=real("beta", at_least=0, at_most=1), default=0.9)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=0.0)
    trust_coefficient: Scalar = eqx.field(converter=non_negative("trust_coefficient"), default=1e-3)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=0.0)
    nesterov: bool = eqx.field(converter=flag("nesterov"), static=True, default=False)

    def compose(self) -> AbstractTransformation[_LARSState]:
        return Chain(
            ScaleByTrustRatio(
                trust_coefficient=self.trust_coefficient,
                eps=self.eps,
                weight_decay=self.weight_decay,
            ),
            scale_by(self.learning_rate),
            Trace(self.beta, self.nesterov),
        )
