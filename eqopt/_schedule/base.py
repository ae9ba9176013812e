"""The abstract schedule, and code that the schedules share."""

import abc
import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import wadler_lindig as wl
from jaxtyping import Array, Float, Int

from .._base.checks import call_traced, describe, is_array, is_plain_function, typed
from .._base.converters import canonicalize, float_dtype, module_pdoc, optional, real
from .._base.types import Function, Scalar, ScalarLike
from .._jit import compiled_call


class AbstractSchedule(eqx.Module):
    """A hyper-parameter as a function of the number of steps taken so far.

    A schedule is called with the count *before* it is incremented, so the first step sees 0. It
    works elementwise: called on an array of counts it gives an array of values, ready to plot.
    """

    @abc.abstractmethod
    def at(self, count: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The rule: from counts of any shape to the values there, elementwise."""

    def __call__(self, count: int | np.ndarray | Int[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Gives the value at each count."""
        return compiled_call.call(
            _evaluate, canonicalize(self), np.asarray(count) if type(count) is int else count
        )

    def __pdoc__(self, **kwargs: object) -> wl.AbstractDoc:
        return module_pdoc(self, **kwargs)


class FunctionSchedule(AbstractSchedule):
    """Calls a function of the count. Plain functions are wrapped in it wherever a schedule is
    accepted.

    **Arguments:**

    - `function`: from an integer count of shape `()` to a number. It is static: a new function
        object is compiled again. To tune its numbers, write your own schedule.
    """

    function: Function = eqx.field(static=True)

    def at(self, count: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
        # The function need not work elementwise: it is always called with one count.
        return jnp.vectorize(self._scalar)(count)

    def _scalar(self, count: Int[Array, ""]) -> Float[Array, ""]:
        name = f"the schedule `{_name(self.function)}`"
        value = call_traced(name, self.function, count)
        numeric = isinstance(value, int | float) or is_array(value)
        if not numeric or jnp.shape(value) != () or jnp.iscomplexobj(value):
            raise TypeError(f"{name} must return one real number; it returned {describe(value)}")
        return jnp.asarray(value).astype(float_dtype())


def _name(function: Function) -> str:
    return function.__name__ if inspect.isroutine(function) else type(function).__name__


def as_schedule(name: str, value: object) -> AbstractSchedule:
    """Takes a schedule or a function of the count; refuses anything else."""
    if isinstance(value, AbstractSchedule):
        return value
    if is_plain_function(value):
        return FunctionSchedule(value)
    raise TypeError(
        f"`{name}` must be a schedule (an `eqopt.writing.AbstractSchedule`, or a function of the "
        f"count); got a {type(value).__name__}"
    )


def scheduled_real(
    name: str, **bounds: Any
) -> Callable[[ScalarLike | AbstractSchedule | Function], Scalar | AbstractSchedule]:
    """Makes the converter of a real number that may follow a schedule.

    **Arguments:**

    - `name`: the field's name, for messages.
    - `**bounds`: the bounds of a number, as for [`eqopt.writing.real`][]. They do not apply to a
        schedule.
    """
    convert = real(name, **bounds)

    def convert_either(
        value: ScalarLike | AbstractSchedule | Function,
    ) -> Scalar | AbstractSchedule:
        if isinstance(value, AbstractSchedule) or callable(value):
            return as_schedule(name, value)
        return convert(value)

    return convert_either


# The converters of most learning rates: of one that is required, and of one that may be `None`.
as_rate = scheduled_real("learning_rate", at_least=0)
maybe_rate = optional(as_rate)


def _evaluate(schedule: AbstractSchedule, counts: object) -> Array:
    counts = jnp.asarray(counts)
    if not jnp.issubdtype(counts.dtype, jnp.integer):
        raise TypeError(f"a schedule is called with integer counts; got {counts.dtype}")
    values = schedule.at(counts.astype(jnp.int32))
    if values.shape != counts.shape:
        raise ValueError(
            f"`{type(schedule).__name__}.at` must return as many values as there are counts, of "
            f"shape {counts.shape}; it returned shape {values.shape}"
        )
    return values


def value_at(value: Scalar | AbstractSchedule, count: Int[Array, ""]) -> Float[Array, ""]:
    """The number in force at `count`."""
    if isinstance(value, AbstractSchedule):
        return value(count)
    return jnp.asarray(value)


class Constant(AbstractSchedule):
    r"""Has the same value at every count. A number is wrapped in it wherever a schedule is needed.

    $$\eta_t = \eta$$

    **Arguments:**

    - `value`: the value $\eta$.
    """

    value: Scalar = eqx.field(converter=real("value"))

    def at(self, count: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jnp.broadcast_to(as_real(self.value), count.shape)


# Shared code. Counts stay integers until they have been subtracted from one another: float32 is
# exact only to 2**24. They are clipped at 0, so that a schedule before its start is finite, and so
# are the derivatives through the `where` that does not select it.


def as_real(x: object) -> Float[Array, "..."]:
    """A field that holds real numbers, as it enters the arithmetic."""
    return jnp.asarray(x, float_dtype())


def as_steps(x: object) -> Int[Array, "..."]:
    """A field that holds numbers of steps, as it enters the arithmetic."""
    return jnp.asarray(x, jnp.int32)


def since(count: Int[Array, "*shape"], begin: Int[Array, ""]) -> Int[Array, "*shape"]:
    """The steps taken since `begin`, at least 0."""
    return jnp.maximum(count - begin, 0)


@typed
def remaining(count: Int[Array, "*shape"], num_steps: Int[Array, ""]) -> Float[Array, "*shape"]:
    """The fraction of `num_steps` that is left: from 1 at a count of 0 down to 0. 0 without
    steps."""
    # Not `1 - count / num_steps`, which cancels towards the end.
    left = num_steps - jnp.clip(count, 0, num_steps)
    return as_real(left) / as_real(jnp.maximum(num_steps, 1))


@typed
def line(
    count: Int[Array, "*shape"],
    num_steps: Int[Array, ""],
    start: Float[Array, ""],
    end: Float[Array, ""],
) -> Float[Array, "*shape"]:
    """The straight line from `start` to `end`. `end` if there are no steps."""
    # Both parts are computed from integers: the first steps up from 0 are as precise as the last.
    length = jnp.maximum(num_steps, 1)
    left = num_steps - jnp.clip(count, 0, num_steps)
    return start * (as_real(left) / as_real(length)) + end * (
        as_real(length - left) / as_real(length)
    )


@typed
def between(
    start: Float[Array, "*#shape"], end: Float[Array, "*#shape"], weight: Float[Array, "*#shape"]
) -> Float[Array, "*#shape"]:
    """From `end` at a weight of 0 to `start` at 1."""
    # Not `end + (start - end) * weight`, which need not be `start` at 1.
    return start * weight + end * (1 - weight)


@typed
def cosine(
    count: Int[Array, "*shape"], num_steps: Int[Array, ""], exponent: Float[Array, ""]
) -> Float[Array, "*shape"]:
    """Half a period of the cosine, raised to a power: from 1 at a count of 0 down to 0."""
    # Not `(1 + cos(pi * t)) / 2`: equal to it, and this does not cancel towards the end.
    half = jnp.sin(jnp.pi / 2 * remaining(count, num_steps))
    return (half * half) ** exponent


@typed
def exponential(
    count: Int[Array, "*shape"],
    init_value: Float[Array, ""],
    num_steps: Int[Array, ""],
    decay_rate: Float[Array, ""],
    end_value: Float[Array, ""] | None,
    staircase: bool,
) -> Float[Array, "*shape"]:
    """Multiplies by `decay_rate` every `num_steps`, up or down to the end value."""
    count, num_steps = jnp.maximum(count, 0), jnp.maximum(num_steps, 1)
    if staircase:
        periods = as_real(count // num_steps)
    else:
        periods = as_real(count) / as_real(num_steps)
    # Growth is stopped before overflow: beyond `end_value` the derivative would be 0 * inf.
    growth = jax.lax.stop_gradient(jnp.log(decay_rate))
    highest = float(np.log(np.finfo(float_dtype()).max)) / 2
    periods = jnp.where(periods * growth > highest, highest / growth, periods)
    value = init_value * decay_rate**periods
    if end_value is None:
        return value
    return jnp.where(decay_rate < 1, jnp.maximum(value, end_value), jnp.minimum(value, end_value))


@typed
def num_passed(count: Int[Array, "*shape"], boundaries: Int[Array, " n"]) -> Int[Array, "*shape"]:
    """How many of the boundaries have been reached; each is reached at its own count."""
    ends = jnp.broadcast_to(boundaries, (*count.shape, *boundaries.shape))
    return jnp.sum(count[..., None] >= ends, axis=-1, dtype=jnp.int32)


def interpolate(
    count: Int[Array, "*shape"],
    boundaries: Int[Array, " n"],
    levels: Float[Array, " n+1"],
    curve: Function,
) -> Float[Array, "*shape"]:
    """Goes from level to level, each reached at its boundary, along the given curve."""
    index = num_passed(count, boundaries)
    following = jnp.minimum(index + 1, boundaries.size)
    begins = jnp.concatenate([jnp.zeros(1, jnp.int32), boundaries])
    length = jnp.maximum(begins[following] - begins[index], 1)
    # After the last boundary both levels are the last level, so the fraction does not matter.
    step = jnp.clip(count - begins[index], 0, length)
    weight = as_real(curve(as_real(step) / as_real(length)))
    return between(levels[following], levels[index], weight)


def linear_interpolation(fraction: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Goes from one level to the next in a straight line: $f(x) = x$."""
    return fraction


def cosine_interpolation(fraction: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    r"""Goes from one level to the next along half a cosine: $f(x) = (1 - \cos \pi x) / 2$."""
    half = jnp.sin(jnp.pi / 2 * fraction)
    return half * half
