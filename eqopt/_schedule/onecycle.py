"""One cycle: up to a peak, and down far below the first value."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._base.converters import positive, real, steps
from .._base.types import Scalar, Steps
from .base import (
    AbstractSchedule,
    as_real,
    as_steps,
    cosine_interpolation,
    interpolate,
    linear_interpolation,
)


class CosineOneCycle(AbstractSchedule):
    r"""Rises to a peak and falls to almost nothing, each along half a cosine.

    With $H$ the peak value and $T$ the number of steps, it goes through

    | count | value |
    | --- | --- |
    | $0$ | $H / d$ |
    | $\lfloor a T \rfloor$ | $H$ |
    | $T$ and later | $H / (d f)$ |

    **Arguments:**

    - `transition_steps`: the number of steps $T$ in the cycle; at least 1.
    - `peak_value`: the largest value $H$.
    - `pct_start`: the part $a$ of the cycle that is spent rising; from 0 to 1.
    - `div_factor`: how many times $d$ smaller than the peak the first value is; greater than 0.
    - `final_div_factor`: how many times $f$ smaller than the first value the last one is; greater
        than 0.

    **Raises:** a `ValueError` where an argument is out of its range.

    ??? cite "Reference"

        Smith and Topin, *Super-Convergence: Very Fast Training of Neural Networks Using Large
        Learning Rates*, 2017. [arXiv:1708.07120](https://arxiv.org/abs/1708.07120)
    """

    transition_steps: Steps = eqx.field(converter=steps("transition_steps", at_least=1))
    peak_value: Scalar = eqx.field(converter=real("peak_value"))
    pct_start: Scalar = eqx.field(converter=real("pct_start", at_least=0, at_most=1), default=0.3)
    div_factor: Scalar = eqx.field(converter=positive("div_factor"), default=25.0)
    final_div_factor: Scalar = eqx.field(converter=positive("final_div_factor"), default=1e4)

    def at(self, count: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
        num_steps, peak = as_steps(self.transition_steps), as_real(self.peak_value)
        first = peak / as_real(self.div_factor)
        last = first / as_real(self.final_div_factor)
        boundaries = jnp.stack([_part(self.pct_start, num_steps), num_steps])
        levels = jnp.stack([first, peak, last])
        return interpolate(count, boundaries, levels, cosine_interpolation)


class LinearOneCycle(AbstractSchedule):
    r"""Rises to a peak, falls back, and falls on to almost nothing, each in a straight line.

    With $H$ the peak value and $T$ the number of steps, it goes through

    | count | value |
    | --- | --- |
    | $0$ | $H / d$ |
    | $\lfloor a T \rfloor$ | $H$ |
    | $\lfloor b T \rfloor$ | $H / d$ |
    | $T$ and later | $H / (d f)$ |

    **Arguments:**

    - `transition_steps`: the number of steps $T$ in the cycle; at least 1.
    - `peak_value`: the largest value $H$.
    - `pct_start`: the part $a$ of the cycle that is spent rising; from 0 to 1.
    - `pct_final`: the part $b$ of the cycle after which the first value is reached again; from
        `pct_start` to 1.
    - `div_factor`: how many times $d$ smaller than the peak the first value is; greater than 0.
    - `final_div_factor`: how many times $f$ smaller than the first value the last one is; greater
        than 0.

    **Raises:** a `ValueError` where an argument is out of its range.

    ??? cite "Reference"

        Smith and Topin, *Super-Convergence: Very Fast Training of Neural Networks Using Large
        Learning Rates*, 2017. [arXiv:1708.07120](https://arxiv.org/abs/1708.07120)
    """

    transition_steps: Steps = eqx.field(converter=steps("transition_steps", at_least=1))
    peak_value: Scalar = eqx.field(converter=real("peak_value"))
    pct_start: Scalar = eqx.field(converter=real("pct_start", at_least=0, at_most=1), default=0.3)
    pct_final: Scalar = eqx.field(converter=real("pct_final", at_least=0, at_most=1), default=0.85)
    div_factor: Scalar = eqx.field(converter=positive("div_factor"), default=25.0)
    final_div_factor: Scalar = eqx.field(converter=positive("final_div_factor"), default=1e4)

    def __check_init__(self):
        concrete = isinstance(self.pct_start, np.generic) and isinstance(self.pct_final, np.generic)
        if concrete and float(self.pct_final) < float(self.pct_start):
            raise ValueError(
                f"`pct_final` must be at least `pct_start`, which is {self.pct_start}; "
                f"got {self.pct_final}"
            )

    def at(self, count: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
        num_steps, peak = as_steps(self.transition_steps), as_real(self.peak_value)
        first = peak / as_real(self.div_factor)
        last = first / as_real(self.final_div_factor)
        boundaries = jnp.stack(
            [_part(self.pct_start, num_steps), _part(self.pct_final, num_steps), num_steps]
        )
        levels = jnp.stack([first, peak, first, last])
        return interpolate(count, boundaries, levels, linear_interpolation)


def _part(fraction: Scalar, num_steps: Int[Array, ""]) -> Int[Array, ""]:
    """A part of the steps, rounded down."""
    # At most all steps: float32 rounds large numbers of steps, sometimes up.
    return jnp.minimum((as_real(fraction) * as_real(num_steps)).astype(jnp.int32), num_steps)
