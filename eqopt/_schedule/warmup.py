"""A linear rise to a peak, with and without a decay after it."""

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._base.converters import flag, optional, positive, real, steps
from .._base.types import Scalar, Steps
from .base import AbstractSchedule, as_real, as_steps, between, cosine, exponential, line, since


class WarmupConstant(AbstractSchedule):
    r"""Rises in a straight line to a value, and holds it.

    $$\eta_t = I + (H - I) \min(t / W, 1)$$

    If `warmup_steps` is 0, the value is `peak_value` at every count. (optax has `init_value`
    there.) All arguments are by keyword, since `init_value` comes first in optax.

    **Arguments:**

    - `init_value`: the value $I$ at the first step.
    - `peak_value`: the value $H$ from the count $W$ on.
    - `warmup_steps`: the number of steps $W$ in which the value rises; at least 0.

    **Raises:** a `ValueError` where an argument is out of its range.
    """

    init_value: Scalar = eqx.field(converter=real("init_value"), default=0.0, kw_only=True)
    peak_value: Scalar = eqx.field(converter=real("peak_value"), kw_only=True)
    warmup_steps: Steps = eqx.field(converter=steps("warmup_steps"), kw_only=True)

    def at(self, count: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
        return _warmup(count, self.init_value, self.peak_value, self.warmup_steps)


class WarmupCosineDecay(AbstractSchedule):
    r"""Rises in a straight line to a peak, then decays along half a cosine.

    $$\eta_t = \begin{cases}
    I + (H - I) \, t / W & t < W \\
    E + (H - E) \, c_t^p & t \geq W
    \end{cases} \qquad
    c_t = \frac{1}{2} \left(1 + \cos \frac{\pi \min(t - W, D - W)}{D - W} \right)$$

    All arguments are by keyword, since `init_value` comes first in optax.

    !!! warning

        `decay_steps` is the length of the whole schedule, the warm-up included.

    **Arguments:**

    - `init_value`: the value $I$ at the first step.
    - `peak_value`: the value $H$ at the end of the warm-up.
    - `warmup_steps`: the number of steps $W$ in which the value rises; at least 0.
    - `decay_steps`: the number of steps $D$ until the end; greater than `warmup_steps`.
    - `end_value`: the value $E$ from the count $D$ on.
    - `exponent`: the power $p$ that the cosine is raised to; greater than 0.

    **Raises:** a `ValueError` where an argument is out of its range.

    ??? cite "Reference"

        Loshchilov and Hutter, *SGDR: Stochastic Gradient Descent with Warm Restarts*, 2017,
        equation 5. [arXiv:1608.03983](https://arxiv.org/abs/1608.03983)
    """

    init_value: Scalar = eqx.field(converter=real("init_value"), default=0.0, kw_only=True)
    peak_value: Scalar = eqx.field(converter=real("peak_value"), kw_only=True)
    warmup_steps: Steps = eqx.field(converter=steps("warmup_steps"), kw_only=True)
    decay_steps: Steps = eqx.field(converter=steps("decay_steps", at_least=1), kw_only=True)
    end_value: Scalar = eqx.field(converter=real("end_value"), default=0.0, kw_only=True)
    exponent: Scalar = eqx.field(converter=positive("exponent"), default=1.0, kw_only=True)

    def __check_init__(self):
        warmup, decay = self.warmup_steps, self.decay_steps
        concrete = isinstance(warmup, np.generic) and isinstance(decay, np.generic)
        if concrete and int(decay) <= int(warmup):
            raise ValueError(
                "`decay_steps` counts the warm-up too, and must be greater than `warmup_steps`, "
                f"which is {warmup}; got {decay}"
            )

    def at(self, count: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
        warmup_steps = as_steps(self.warmup_steps)
        rise = _warmup(count, self.init_value, self.peak_value, self.warmup_steps)
        weight = cosine(
            since(count, warmup_steps),
            since(as_steps(self.decay_steps), warmup_steps),
            as_real(self.exponent),
        )
        decay = between(as_real(self.peak_value), as_real(self.end_value), weight)
        return jnp.where(count < warmup_steps, rise, decay)


class WarmupExponentialDecay(AbstractSchedule):
    r"""Rises in a straight line to a peak, then decays by a constant factor.

    $$\eta_t = \begin{cases}
    I + (H - I) \, t / W & t < W \\
    H \, r^{\max(t - W - B, 0) / T} & t \geq W
    \end{cases}$$

    With `staircase` the exponent is rounded down to a whole number. The decaying value is then kept
    from falling below `end_value` (from rising above it, if $r \geq 1$). All arguments are by
    keyword, since `init_value` comes first in optax.

    **Arguments:**

    - `init_value`: the value $I$ at the first step.
    - `peak_value`: the value $H$ at the end of the warm-up.
    - `warmup_steps`: the number of steps $W$ in which the value rises; at least 0.
    - `transition_steps`: the number of steps $T$ in which the value is multiplied by $r$ once; at
        least 1.
    - `decay_rate`: the factor $r$; greater than 0.
    - `transition_begin`: the number of steps $B$ between the warm-up and the decay; at least 0.
    - `staircase`: whether the value falls in jumps, every $T$ steps, instead of at each step.
    - `end_value`: the bound of the value; `None` is no bound.

    **Raises:** a `ValueError` where an argument is out of its range.
    """

    init_value: Scalar = eqx.field(converter=real("init_value"), default=0.0, kw_only=True)
    peak_value: Scalar = eqx.field(converter=real("peak_value"), kw_only=True)
    warmup_steps: Steps = eqx.field(converter=steps("warmup_steps"), kw_only=True)
    transition_steps: Steps = eqx.field(
        converter=steps("transition_steps", at_least=1), kw_only=True
    )
    decay_rate: Scalar = eqx.field(converter=positive("decay_rate"), kw_only=True)
    transition_begin: Steps = eqx.field(
        converter=steps("transition_begin"), default=0, kw_only=True
    )
    staircase: bool = eqx.field(
        static=True, converter=flag("staircase"), default=False, kw_only=True
    )
    end_value: Scalar | None = eqx.field(
        converter=optional(real("end_value")), default=None, kw_only=True
    )

    def at(self, count: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
        warmup_steps = as_steps(self.warmup_steps)
        rise = _warmup(count, self.init_value, self.peak_value, self.warmup_steps)
        decay = exponential(
            since(since(count, warmup_steps), as_steps(self.transition_begin)),
            as_real(self.peak_value),
            as_steps(self.transition_steps),
            as_real(self.decay_rate),
            None if self.end_value is None else as_real(self.end_value),
            self.staircase,
        )
        return jnp.where(count < warmup_steps, rise, decay)


def _cycles(
    value: Sequence[Mapping[str, object] | WarmupCosineDecay],
) -> tuple[WarmupCosineDecay, ...]:
    if not isinstance(value, Sequence) or len(value) == 0:
        raise ValueError(f"`cosine_kwargs` must be a sequence of at least one cycle; got {value!r}")
    return tuple(_cycle(f"cosine_kwargs[{i}]", cycle) for i, cycle in enumerate(value))


def _cycle(name: str, value: Mapping[str, Any] | WarmupCosineDecay) -> WarmupCosineDecay:
    if isinstance(value, WarmupCosineDecay):
        return value
    if isinstance(value, Mapping):
        return WarmupCosineDecay(**value)
    raise TypeError(
        f"`{name}` must be an `eqopt.WarmupCosineDecay`, or a dict of its arguments; "
        f"got a {type(value).__name__}"
    )


class SGDR(AbstractSchedule):
    """Runs cycles of warm-up and cosine decay one after another: gradient descent with restarts.

    Each cycle lasts for its own `decay_steps`, and sees counts that start at 0. The last one holds
    its end value.

    **Arguments:**

    - `cosine_kwargs`: a sequence of cycles, each an `eqopt.WarmupCosineDecay` or a dict of its
        arguments; at least one.

    **Raises:** a `ValueError` where there is no cycle, or an argument of one is out of its range.

    ??? cite "Reference"

        Loshchilov and Hutter, *SGDR: Stochastic Gradient Descent with Warm Restarts*, 2017,
        section 3. [arXiv:1608.03983](https://arxiv.org/abs/1608.03983)
    """

    cosine_kwargs: tuple[WarmupCosineDecay, ...] = eqx.field(converter=_cycles)

    def __check_init__(self):
        lengths = [cycle.decay_steps for cycle in self.cosine_kwargs]
        total = sum(int(length) for length in lengths if isinstance(length, np.generic))
        if total > np.iinfo(np.int32).max:
            raise ValueError(f"`cosine_kwargs` must last for less than 2**31 steps; got {total}")

    def at(self, count: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
        first, *rest = self.cosine_kwargs
        value = first.at(count)
        begin = as_steps(first.decay_steps)
        for cycle in rest:
            value = jnp.where(count < begin, value, cycle.at(since(count, begin)))
            begin = begin + as_steps(cycle.decay_steps)
        return value


def _warmup(
    count: Int[Array, "*shape"], init_value: Scalar, peak_value: Scalar, warmup_steps: Steps
) -> Float[Array, "*shape"]:
    """The linear rise, and the peak value after it (at once, if there is no rise)."""
    return line(count, as_steps(warmup_steps), as_real(init_value), as_real(peak_value))
