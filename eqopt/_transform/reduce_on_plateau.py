"""Smaller steps once the objective no longer falls."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, Int

from .._base import checks
from .._base.arithmetic import times
from .._base.converters import float_dtype, non_negative, real, steps
from .._base.trees import increment, zero_count
from .._base.types import Params, Scalar, Steps
from .._objective.objective import Context
from .._transformation.base import AbstractLeafwise
from .._transformation.leafwise import Rule


@checks.typed
def _scale(update: Inexact[Array, "*shape"], factor: Float[Array, ""]) -> Inexact[Array, "*shape"]:
    return times(factor, update)


@checks.typed
class ReduceOnPlateauState(eqx.Module):
    """The state of [`eqopt.ReduceOnPlateau`][]. All fields have shape `()`.

    **Arguments:**

    - `scale`: the factor in force.
    - `best_value`: the lowest average so far; infinite at first.
    - `plateau_count`: the number of averages since the last improvement, int32.
    - `cooldown_count`: the number of averages left in the cooldown, int32.
    - `num_values`: the number of values in the average, int32.
    - `avg_value`: the average of these values.
    """

    scale: Float[Array, ""]
    best_value: Float[Array, ""]
    plateau_count: Int[Array, ""]
    cooldown_count: Int[Array, ""]
    num_values: Int[Array, ""]
    avg_value: Float[Array, ""]


class ReduceOnPlateau(AbstractLeafwise[ReduceOnPlateauState]):
    r"""Multiplies the updates by a scale, $u \leftarrow s\, u$, which is reduced each time the
    objective has not improved for a while.

    The scale begins at 1. `value` is averaged over $n$ steps, and the average $v$ is an improvement
    on the best one, $v_\star$, if

    $$v < v_\star - (\rho\, |v_\star| + \tau).$$

    After `patience` averages in a row without an improvement, $s \leftarrow \max(f s, s_{\min})$,
    already in this step, and the next `cooldown` averages do not count.

    !!! note
        optax requires $v < (1 - \rho)\, v_\star - \tau$, where for a negative $v_\star$ a slightly
        worse value counts as an improvement. For positive values both rules are the same.

    **Arguments:**

    - `factor`: the factor $f$, in $(0, 1)$.
    - `patience`: the number of averages without an improvement before a reduction, at least 1.
    - `rtol`: the relative part $\rho$ of the required improvement, in $[0, 1]$.
    - `atol`: the absolute part $\tau \ge 0$ of the required improvement.
    - `cooldown`: the number of averages that do not count after the scale was reduced.
    - `accumulation_size`: the number $n$ of values in an average, at least 1. Use many for the
        values of mini-batches, and 1 for the values of a validation set.
    - `min_scale`: the smallest scale $s_{\min}$, in $[0, 1]$.

    Its `update` needs `value`; `step` passes it. A NaN `value` is not an improvement.

    Raises a `ValueError` if both tolerances are 0.
    """

    factor: Scalar = eqx.field(converter=real("factor", above=0, below=1), default=0.1)
    patience: Steps = eqx.field(converter=steps("patience", at_least=1), default=10)
    rtol: Scalar = eqx.field(converter=real("rtol", at_least=0, at_most=1), default=1e-4)
    atol: Scalar = eqx.field(converter=non_negative("atol"), default=0.0)
    cooldown: Steps = eqx.field(converter=steps("cooldown"), default=0)
    accumulation_size: Steps = eqx.field(
        converter=steps("accumulation_size", at_least=1), default=1
    )
    min_scale: Scalar = eqx.field(converter=real("min_scale", at_least=0, at_most=1), default=0.0)

    def __check_init__(self) -> None:
        given = isinstance(self.rtol, np.generic) and isinstance(self.atol, np.generic)
        if given and self.rtol == self.atol == 0:
            raise ValueError("one of `rtol` and `atol` must be above 0; both are 0")

    def init_state(self, params: Params, context: Context) -> ReduceOnPlateauState:
        dtype = float_dtype()
        return ReduceOnPlateauState(
            scale=jnp.ones((), dtype),
            best_value=jnp.full((), np.inf, dtype),
            plateau_count=zero_count(),
            cooldown_count=zero_count(),
            num_values=zero_count(),
            avg_value=jnp.zeros((), dtype),
        )

    def rule(self, state: ReduceOnPlateauState, params: Params | None, context: Context) -> Rule:
        dtype = float_dtype()
        value = jnp.asarray(context.require("value", self)).astype(dtype)
        num_values = increment(state.num_values)
        weights = state.num_values.astype(dtype), num_values.astype(dtype)
        average = (weights[0] * state.avg_value + value) / weights[1]
        # Not `==`: the size may have been made smaller during training.
        complete = num_values >= jnp.asarray(self.accumulation_size)
        looked = self._look(state, average)
        new = ReduceOnPlateauState(
            scale=jnp.where(complete, looked.scale, state.scale),
            best_value=jnp.where(complete, looked.best_value, state.best_value),
            plateau_count=jnp.where(complete, looked.plateau_count, state.plateau_count),
            cooldown_count=jnp.where(complete, looked.cooldown_count, state.cooldown_count),
            num_values=jnp.where(complete, 0, num_values),
            avg_value=jnp.where(complete, 0, average),
        )
        return Rule(_scale, new, scalars=(new.scale,))

    def _look(self, state: ReduceOnPlateauState, average: Float[Array, ""]) -> ReduceOnPlateauState:
        best = state.best_value
        # For the infinite best value at the start, the margin would be infinite.
        margin = jnp.where(jnp.isfinite(best), self.rtol * jnp.abs(best) + self.atol, 0)
        improved = average < best - margin
        cooling = state.cooldown_count > 0
        plateau_count = jnp.where(improved | cooling, 0, increment(state.plateau_count))
        reduce = plateau_count >= jnp.asarray(self.patience)
        reduced = jnp.maximum(state.scale * self.factor, self.min_scale)
        return ReduceOnPlateauState(
            scale=jnp.where(reduce, reduced, state.scale),
            best_value=jnp.where(improved, average, best),
            plateau_count=jnp.where(reduce, 0, plateau_count),
            cooldown_count=jnp.where(
                cooling, state.cooldown_count - 1, jnp.where(reduce, jnp.asarray(self.cooldown), 0)
            ),
            num_values=state.num_values,
            avg_value=state.avg_value,
        )
