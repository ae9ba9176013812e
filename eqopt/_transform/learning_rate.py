"""The last link: the learning rate, constant or scheduled."""

import equinox as eqx
from jaxtyping import Array, Float, Inexact

from .._base import checks
from .._base.arithmetic import times
from .._base.converters import flag
from .._base.trees import increment, zero_count
from .._base.types import Count, Params, Scalar
from .._objective.objective import Context
from .._schedule.base import AbstractSchedule, as_rate, as_schedule, value_at
from .._transformation.base import AbstractLeafwise
from .._transformation.leafwise import Rule


@checks.typed
def _scale(update: Inexact[Array, "*shape"], factor: Float[Array, ""]) -> Inexact[Array, "*shape"]:
    return times(factor, update)


@checks.typed
class ScaleByLearningRateState(eqx.Module):
    """The state of [`eqopt.ScaleByLearningRate`][].

    **Arguments:**

    - `count`: the number of steps taken, int32 of shape `()`.
    """

    count: Count


class ScaleByLearningRate(AbstractLeafwise[ScaleByLearningRateState]):
    r"""Multiplies the updates by the learning rate, and flips their sign, downhill: $u \leftarrow
    -\gamma_t u$.

    The rate is constant or follows a schedule, which is called with the number of steps taken
    before this one. The state is the same in both cases, so a number and a schedule may be
    exchanged.

    **Arguments:**

    - `learning_rate`: the rate $\gamma_t$, a number or a schedule, not negative.
    - `flip_sign`: whether to flip the sign; `False` goes uphill.
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    flip_sign: bool = eqx.field(converter=flag("flip_sign"), static=True, default=True)

    def init_state(self, params: Params, context: Context) -> ScaleByLearningRateState:
        return ScaleByLearningRateState(zero_count())

    def rule(
        self, state: ScaleByLearningRateState, params: Params | None, context: Context
    ) -> Rule:
        rate = value_at(self.learning_rate, state.count)
        new = ScaleByLearningRateState(increment(state.count))
        return Rule(_scale, new, scalars=(-rate if self.flip_sign else rate,))


@checks.typed
class ScaleByScheduleState(eqx.Module):
    """The state of [`eqopt.ScaleBySchedule`][].

    **Arguments:**

    - `count`: the number of steps taken, int32 of shape `()`.
    """

    count: Count


class ScaleBySchedule(AbstractLeafwise[ScaleByScheduleState]):
    r"""Multiplies the updates by a schedule: $u \leftarrow s(t)\, u$.

    **Arguments:**

    - `step_size_fn`: the factor $s(t)$, of any sign, as an [`eqopt.writing.AbstractSchedule`][] or
        a function of the count; $t$ is the number of steps taken before this one.
    """

    step_size_fn: AbstractSchedule = eqx.field(converter=lambda x: as_schedule("step_size_fn", x))

    def init_state(self, params: Params, context: Context) -> ScaleByScheduleState:
        return ScaleByScheduleState(zero_count())

    def rule(self, state: ScaleByScheduleState, params: Params | None, context: Context) -> Rule:
        new = ScaleByScheduleState(increment(state.count))
        return Rule(_scale, new, scalars=(self.step_size_fn(state.count),))
