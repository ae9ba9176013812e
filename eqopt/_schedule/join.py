"""One schedule after another."""

from collections.abc import Sequence
from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._base.compat import Tracer
from .._base.converters import steps
from .._base.types import Function, ScalarLike, StepsLike
from .base import AbstractSchedule, as_real, as_schedule, as_steps, Constant, since

_Boundaries: TypeAlias = Sequence[StepsLike] | np.ndarray | Array


def _schedules(
    value: Sequence[AbstractSchedule | Function | ScalarLike],
) -> tuple[AbstractSchedule, ...]:
    if not isinstance(value, Sequence) or len(value) == 0:
        raise ValueError(f"`schedules` must be a sequence of at least one schedule; got {value!r}")
    return tuple(_schedule(f"schedules[{i}]", schedule) for i, schedule in enumerate(value))


def _schedule(name: str, value: object) -> AbstractSchedule:
    if isinstance(value, int | float | np.ndarray | np.generic | jax.Array):
        return Constant(value)
    return as_schedule(name, value)


def _boundaries(value: _Boundaries) -> Int[Array | np.ndarray, " n"]:
    array = isinstance(value, np.ndarray | jax.Array) and value.ndim == 1
    if not array and not isinstance(value, Sequence):
        raise TypeError(f"`boundaries` must be a sequence of counts; got {value!r}")
    counts = [steps(f"boundaries[{i}]")(boundary) for i, boundary in enumerate(value)]
    if any(isinstance(x, Tracer) for x in counts):
        return jnp.stack([as_steps(x) for x in counts])
    return np.array(counts, np.int32)


class Join(AbstractSchedule):
    r"""Follows one schedule up to a boundary, then the next one, which starts at 0 there.

    $$\eta_t = \eta^{(i)}_{t - b_i}, \qquad b_i \leq t < b_{i+1}, \quad b_0 = 0$$

    All schedules are evaluated, and one is selected; each schedule sees only counts from its own
    part.

    **Arguments:**

    - `schedules`: a sequence of `n` schedules $\eta^{(i)}$, at least one; a number stands for
        `eqopt.Constant`, and a function of the count for itself.
    - `boundaries`: the counts $b_1, b_2, \ldots$ at which the next schedule takes over: `n - 1` of
        them, at least 0, increasing. They are stored as an array of shape `(n - 1,)`, a leaf.

    **Raises:** a `ValueError` where the lengths do not match or the boundaries do not increase.
    """

    schedules: tuple[AbstractSchedule, ...] = eqx.field(converter=_schedules)
    boundaries: Int[Array | np.ndarray, " n"] = eqx.field(converter=_boundaries)

    def __check_init__(self):
        num_schedules, num_boundaries = len(self.schedules), len(self.boundaries)
        if num_boundaries != num_schedules - 1:
            raise ValueError(
                f"`boundaries` must be one fewer than the {num_schedules} `schedules`; "
                f"got {num_boundaries}"
            )
        if isinstance(self.boundaries, np.ndarray) and np.any(np.diff(self.boundaries) <= 0):
            raise ValueError(f"`boundaries` must increase; got {self.boundaries.tolist()}")

    def at(self, count: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
        # Each schedule sees only its own counts: outside of them its value and its derivatives may
        # be infinite, and such derivatives would pass through the `where`.
        ends = [*as_steps(self.boundaries)]
        begins = [jnp.zeros((), jnp.int32), *ends]
        counts = [*(jnp.minimum(count, end - 1) for end in ends), count]
        values = [
            as_real(schedule(since(own, begin)))
            for schedule, own, begin in zip(self.schedules, counts, begins, strict=True)
        ]
        value, *later = values
        for end, following in zip(ends, later, strict=True):
            value = jnp.where(count < end, value, following)
        return value
