"""Gradient descent with Polyak's step size."""

import equinox as eqx

from .._base.converters import non_negative, positive, real
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, scheduled_real
from .._transform.learning_rate import ScaleByLearningRate, ScaleByLearningRateState
from .._transform.polyak import ScaleByPolyak, variant
from .._transformation.base import AbstractOptimizer, AbstractTransformation, EmptyState
from .._wrapper.chain import Chain, ChainState

_State = ChainState[tuple[EmptyState, ScaleByLearningRateState]]


class PolyakSGD(AbstractOptimizer[_State]):
    r"""Goes down the gradient by Polyak's step size:
    $\theta_{t+1} = \theta_t - s_t\, \gamma_t\, g_t$ with
    $\gamma_t = \min((f_t - f_\star) / (\|g_t\|^2 + \epsilon),\, \gamma_{\max})$.

    It is a chain of [`eqopt.ScaleByPolyak`][] and [`eqopt.ScaleByLearningRate`][].

    !!! note
        `scaling` multiplies the step. optax scales the gradient before it divides by the square of
        its norm, so in effect `scaling` divides the step.

    **Arguments:**

    - `max_learning_rate`: the largest step size $\gamma_{\max}$, before it is scaled; positive.
    - `scaling`: the factor $s_t \ge 0$, a number or a schedule. A convex objective converges with
        factors below 2.
    - `f_min`: the least value of the objective, or a guess of it. It is 0 for models that can fit
        all their data.
    - `eps`: added to the denominator, $\epsilon \ge 0$.
    - `variant`: `"sps"`, or `"sps+"` for a step size of 0 where $f < f_\star$; with `"sps"` it is
        negative there.

    Its `update` needs `value`; `step` passes it.
    """

    max_learning_rate: Scalar = eqx.field(converter=positive("max_learning_rate"), default=1.0)
    scaling: Scalar | AbstractSchedule = eqx.field(
        converter=scheduled_real("scaling", at_least=0), default=1.0
    )
    f_min: Scalar = eqx.field(converter=real("f_min"), default=0.0)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=0.0)
    variant: str = eqx.field(converter=variant, static=True, default="sps")

    def compose(self) -> AbstractTransformation[_State]:
        polyak = ScaleByPolyak(self.f_min, self.max_learning_rate, self.eps, self.variant)
        return Chain(polyak, ScaleByLearningRate(self.scaling))
