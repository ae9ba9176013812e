"""Decay by a constant factor."""

import equinox as eqx
from jaxtyping import Array, Float, Int

from .._base.converters import flag, optional, positive, real, steps
from .._base.types import Scalar, Steps
from .base import AbstractSchedule, as_real, as_steps, exponential, since


class ExponentialDecay(AbstractSchedule):
    r"""Multiplies the value by `decay_rate` every `transition_steps` steps.

    $$\eta_t = I \, r^{\max(t - B, 0) / T}$$

    With `staircase` the exponent is rounded down to a whole number. The value is then kept from
    falling below `end_value` (from rising above it, if $r \geq 1$).

    **Arguments:**

    - `init_value`: the value $I$ up to the count $B$.
    - `transition_steps`: the number of steps $T$ in which the value is multiplied by $r$ once; at
        least 1.
    - `decay_rate`: the factor $r$; greater than 0.
    - `transition_begin`: the number of steps $B$ before the decay begins; at least 0.
    - `staircase`: whether the value falls in jumps, every $T$ steps, instead of at each step.
    - `end_value`: the bound of the value; `None` is no bound.

    **Raises:** a `ValueError` where an argument is out of its range. In optax a rate of 0 or 0
    steps mean a constant `init_value`; here both are errors.
    """

    init_value: Scalar = eqx.field(converter=real("init_value"))
    transition_steps: Steps = eqx.field(converter=steps("transition_steps", at_least=1))
    decay_rate: Scalar = eqx.field(converter=positive("decay_rate"))
    transition_begin: Steps = eqx.field(converter=steps("transition_begin"), default=0)
    staircase: bool = eqx.field(static=True, converter=flag("staircase"), default=False)
    end_value: Scalar | None = eqx.field(converter=optional(real("end_value")), default=None)

    def at(self, count: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
        return exponential(
            since(count, as_steps(self.transition_begin)),
            as_real(self.init_value),
            as_steps(self.transition_steps),
            as_real(self.decay_rate),
            None if self.end_value is None else as_real(self.end_value),
            self.staircase,
        )
