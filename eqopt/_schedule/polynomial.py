"""Straight lines and powers of the time that is left."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._base.converters import positive, real, steps
from .._base.types import Scalar, Steps
from .base import AbstractSchedule, as_real, as_steps, between, line, remaining, since


class Polynomial(AbstractSchedule):
    r"""Goes from one value to another along a power of the time that is left.

    $$\eta_t = E + (I - E) \left(1 - \frac{s}{T}\right)^P, \qquad s = \min(\max(t - B, 0), T)$$

    !!! warning

        If `transition_steps` is 0, the value is `init_value` at every count, and `end_value` is
        never reached. This is optax's rule.

    **Arguments:**

    - `init_value`: the value $I$ up to the count $B$.
    - `end_value`: the value $E$ from the count $B + T$ on.
    - `power`: the power $P$; greater than 0.
    - `transition_steps`: the number of steps $T$ from one to the other; at least 0.
    - `transition_begin`: the number of steps $B$ before the transition begins; at least 0.

    **Raises:** a `ValueError` where an argument is out of its range.
    """

    init_value: Scalar = eqx.field(converter=real("init_value"))
    end_value: Scalar = eqx.field(converter=real("end_value"))
    power: Scalar = eqx.field(converter=positive("power"))
    transition_steps: Steps = eqx.field(converter=steps("transition_steps"))
    transition_begin: Steps = eqx.field(converter=steps("transition_begin"), default=0)

    def at(self, count: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
        num_steps = as_steps(self.transition_steps)
        left = remaining(since(count, as_steps(self.transition_begin)), num_steps)
        weight = jnp.where(num_steps > 0, left ** as_real(self.power), 1.0)
        return between(as_real(self.init_value), as_real(self.end_value), weight)


class Linear(AbstractSchedule):
    r"""Goes from one value to another in a straight line.

    $$\eta_t = I + (E - I) \frac{s}{T}, \qquad s = \min(\max(t - B, 0), T)$$

    !!! warning

        If `transition_steps` is 0, the value is `init_value` at every count, and `end_value` is
        never reached. This is optax's rule.

    **Arguments:**

    - `init_value`: the value $I$ up to the count $B$.
    - `end_value`: the value $E$ from the count $B + T$ on.
    - `transition_steps`: the number of steps $T$ from one to the other; at least 0.
    - `transition_begin`: the number of steps $B$ before the transition begins; at least 0.

    **Raises:** a `ValueError` where an argument is out of its range.
    """

    init_value: Scalar = eqx.field(converter=real("init_value"))
    end_value: Scalar = eqx.field(converter=real("end_value"))
    transition_steps: Steps = eqx.field(converter=steps("transition_steps"))
    transition_begin: Steps = eqx.field(converter=steps("transition_begin"), default=0)

    def at(self, count: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
        num_steps, init_value = as_steps(self.transition_steps), as_real(self.init_value)
        taken = since(count, as_steps(self.transition_begin))
        value = line(taken, num_steps, init_value, as_real(self.end_value))
        return jnp.where(num_steps > 0, value, init_value)
