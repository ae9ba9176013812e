"""Half a cosine."""

import equinox as eqx
from jaxtyping import Array, Float, Int

from .._base.converters import positive, real, steps
from .._base.types import Scalar, Steps
from .base import AbstractSchedule, as_real, as_steps, between, cosine


class CosineDecay(AbstractSchedule):
    r"""Decays along half a cosine: slowly, then fast, then slowly again.

    $$\eta_t = I \left[ \alpha + (1 - \alpha) c_t^p \right], \qquad
    c_t = \frac{1}{2} \left(1 + \cos \frac{\pi \min(t, T)}{T} \right)$$

    **Arguments:**

    - `init_value`: the value $I$ at the first step.
    - `decay_steps`: the number of steps $T$ until the end; at least 1.
    - `alpha`: the last value divided by the first one, $\alpha$. It is a ratio, while
        `eqopt.WarmupCosineDecay` takes the last value itself.
    - `exponent`: the power $p$ that the cosine is raised to; greater than 0.

    **Raises:** a `ValueError` where an argument is out of its range.

    ??? cite "Reference"

        Loshchilov and Hutter, *SGDR: Stochastic Gradient Descent with Warm Restarts*, 2017,
        equation 5. [arXiv:1608.03983](https://arxiv.org/abs/1608.03983)
    """

    init_value: Scalar = eqx.field(converter=real("init_value"))
    decay_steps: Steps = eqx.field(converter=steps("decay_steps", at_least=1))
    alpha: Scalar = eqx.field(converter=real("alpha"), default=0.0)
    exponent: Scalar = eqx.field(converter=positive("exponent"), default=1.0)

    def at(self, count: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
        init_value = as_real(self.init_value)
        weight = cosine(count, as_steps(self.decay_steps), as_real(self.exponent))
        return between(init_value, init_value * as_real(self.alpha), weight)
