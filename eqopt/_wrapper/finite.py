"""Skipping steps with infinite or NaN numbers."""

from collections.abc import Callable
from typing import Any, Generic

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from .._base import checks
from .._base.converters import steps
from .._base.trees import all_finite, increment, select, zero_count, zeros_exactly_like
from .._base.types import Count, Params, State, Steps, Updates
from .._objective.cache import LinesearchState
from .._objective.objective import Context
from .._transformation.base import AbstractTransformation, check_state, check_transformation
from .._transformation.conditional import apply_when


def accept_update(gives_up: Bool[Array, ""]) -> Bool[Array, ""]:
    """Makes [`eqopt.ApplyIfFinite`][] apply updates that are not finite, once it gives up.

    **Arguments:**

    - `gives_up`: whether it gives up, a boolean of shape `()`.
    """
    return gives_up


def skip_update(gives_up: Bool[Array, ""]) -> Bool[Array, ""]:
    """Makes [`eqopt.ApplyIfFinite`][] skip updates without a limit: it never gives up.

    **Arguments:**

    - `gives_up`: whether it would give up, a boolean of shape `()`.
    """
    return jnp.zeros_like(gives_up)


def raise_error(gives_up: Bool[Array, ""]) -> Bool[Array, ""]:
    """Makes [`eqopt.ApplyIfFinite`][] raise an error at run time, once it gives up.

    **Arguments:**

    - `gives_up`: whether it gives up, a boolean of shape `()`.
    """
    return eqx.error_if(
        jnp.zeros_like(gives_up),
        gives_up,
        "`ApplyIfFinite`: more than `max_consecutive_errors` updates in a row were not finite",
    )


def _on_give_up(value: object) -> Callable[[Array], Array]:
    if callable(value) and not isinstance(value, type):
        fn: Any = value
        return fn
    raise TypeError(
        "`on_give_up` must be `eqopt.options.accept_update`, `eqopt.options.skip_update`, "
        "`eqopt.options.raise_error` or another function from a boolean to a boolean; "
        f"got {value!r}"
    )


class ApplyIfFiniteState(eqx.Module, Generic[State]):
    """The state of [`eqopt.ApplyIfFinite`][].

    **Arguments:**

    - `notfinite_count`: how many updates in a row, up to the last one, were not finite, int32 of
        shape `()`.
    - `last_finite`: whether the last update was finite, a boolean of shape `()`.
    - `total_notfinite`: how many updates were not finite in all, int32 of shape `()`.
    - `inner_state`: the state of the inner transformation.
    """

    notfinite_count: Count
    last_finite: Bool[Array, ""]
    total_notfinite: Count
    inner_state: State


class ApplyIfFinite(AbstractTransformation[ApplyIfFiniteState[State]], Generic[State]):
    """Skips every step that is not finite: the updates are zero, and the inner state stays.

    A step is not finite if the incoming updates or the inner transformation's updates hold a NaN or
    an infinity, or if a finite number in its state becomes NaN or infinite (a gradient whose square
    overflows). If the gradient itself is not finite, the inner transformation is not computed.

    !!! note
        After more than `max_consecutive_errors` such steps in a row it gives up, at each further
        such step. By default it then applies the update although it is not finite. The inner state
        stays sound: it is not changed by a step that would make it infinite or NaN. The next finite
        gradient is a normal step.

    **Arguments:**

    - `inner`: the transformation.
    - `max_consecutive_errors`: the largest number of steps in a row to skip; at least 0.
    - `on_give_up`: what to do after these: [`eqopt.options.accept_update`][],
        [`eqopt.options.skip_update`][] or [`eqopt.options.raise_error`][]; or a function of a
        boolean array (whether to give up at this step) that returns whether to apply the update.

    With `raise_error`, raises at run time: within `eqx.filter_jit`, an
    `equinox.EquinoxRuntimeError`.
    """

    inner: AbstractTransformation[State]
    max_consecutive_errors: Steps = eqx.field(converter=steps("max_consecutive_errors"))
    on_give_up: Callable[[Array], Array] = eqx.field(
        converter=_on_give_up, static=True, default=accept_update
    )

    def __check_init__(self) -> None:
        check_transformation("inner", self.inner)

    def init_state(self, params: Params, context: Context) -> ApplyIfFiniteState[State]:
        inner_state = self.inner.init_state(params, context)
        return ApplyIfFiniteState(zero_count(), jnp.ones((), bool), zero_count(), inner_state)

    def transform(
        self,
        updates: Updates,
        state: ApplyIfFiniteState[State],
        params: Params | None,
        context: Context,
    ) -> tuple[Updates, ApplyIfFiniteState[State]]:
        check_state(self.inner, state.inner_state, "state.inner_state")
        if_bad = increment(state.notfinite_count)
        exhausted = if_bad > self.max_consecutive_errors
        given = all_finite(updates)
        accepted = self.on_give_up(exhausted & ~given)
        out, inner_state = apply_when(
            given | accepted, self.inner, updates, state.inner_state, params, context
        )
        # True for a skipped step: its updates are zero, and its state is unchanged.
        sound = all_finite(out) & _stays_finite(state.inner_state, inner_state)
        finite = given & sound
        accepted = accepted | self.on_give_up(exhausted & given & ~sound)
        new = ApplyIfFiniteState(
            jnp.where(finite, 0, if_bad),
            finite,
            jnp.where(finite, state.total_notfinite, increment(state.total_notfinite)),
            select(sound, inner_state, state.inner_state),
        )
        return select(finite | accepted, out, zeros_exactly_like(out)), new


def _stays_finite(old: object, new: object) -> Bool[Array, ""]:
    """Whether every number that was finite still is.

    Numbers that are unknown may be infinite: the lowest loss, before the first step. A line search
    marks its failure by an infinity, and recovers by itself.
    """
    found = [
        jnp.all(jnp.isfinite(b) | ~jnp.isfinite(a))
        for a, b in zip(_numbers(old), _numbers(new), strict=True)
    ]
    return jnp.all(jnp.stack(found)) if found else jnp.asarray(True)


def _numbers(state: object) -> list[Any]:
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, LinesearchState))
    return [x for x in leaves if checks.is_inexact(x)]
