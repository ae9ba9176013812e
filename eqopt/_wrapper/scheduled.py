"""A schedule for any hyper-parameter."""

from collections.abc import Callable
from typing import Any, Generic

import equinox as eqx
import jax
import numpy as np

from .._base.trees import increment, zero_count
from .._base.types import Count, Params, State, Updates
from .._objective.objective import Context
from .._schedule.base import AbstractSchedule, as_schedule
from .._transformation.base import AbstractTransformation, check_state, check_transformation


class ScheduledState(eqx.Module, Generic[State]):
    """The state of [`eqopt.Scheduled`][].

    **Arguments:**

    - `count`: the number of steps taken, int32 of shape `()`.
    - `inner_state`: the state of the inner transformation.
    """

    count: Count
    inner_state: State


class Scheduled(AbstractTransformation[ScheduledState[State]], Generic[State]):
    """Lets a hyper-parameter of a transformation follow a schedule.

    At each step the hyper-parameter is set to the schedule's value, and the inner transformation
    then works as if it had been built with that value.

    **Arguments:**

    - `inner`: the transformation.
    - `where`: a function from `inner` to the hyper-parameter, as in `eqx.tree_at`:
        `lambda opt: opt.weight_decay`.
    - `schedule`: an [`eqopt.writing.AbstractSchedule`][], or a function of the count.

    To schedule several hyper-parameters, nest:
    `Scheduled(Scheduled(opt, ...), lambda s: s.inner.b1, ...)`.

    Raises a `ValueError` if `where` does not return a number.
    """

    inner: AbstractTransformation[State]
    where: Callable[[Any], Any] = eqx.field(static=True)
    schedule: AbstractSchedule = eqx.field(converter=lambda x: as_schedule("schedule", x))

    def __check_init__(self) -> None:
        check_transformation("inner", self.inner)
        try:
            found = self.where(self.inner)
        except AttributeError as e:
            raise ValueError(f"`where` does not lead to a hyper-parameter: {e}") from None
        if not isinstance(found, jax.Array | np.ndarray | np.generic):
            raise ValueError(
                f"`where` must lead to one number of `{type(self.inner).__name__}`; it leads to "
                f"{found if found is None else 'a ' + type(found).__name__}"
            )

    def init_state(self, params: Params, context: Context) -> ScheduledState[State]:
        count = zero_count()
        return ScheduledState(count, self.at(count).init_state(params, context))

    def transform(
        self,
        updates: Updates,
        state: ScheduledState[State],
        params: Params | None,
        context: Context,
    ) -> tuple[Updates, ScheduledState[State]]:
        check_state(self.inner, state.inner_state, "state.inner_state")
        inner = self.at(state.count)
        updates, inner_state = inner.transform(updates, state.inner_state, params, context)
        return updates, ScheduledState(increment(state.count), inner_state)

    def at(self, count: Count) -> AbstractTransformation[State]:
        """Gives the inner transformation with its values at the given count."""
        value = self.schedule(count).astype(self.where(self.inner).dtype)
        return eqx.tree_at(self.where, self.inner, value)
