"""Transformations that are applied only at some steps."""

from typing import Any, Generic

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from .._base import checks
from .._base.converters import flag
from .._base.trees import conj, increment, zero_count
from .._base.types import Count, Function, Params, State, Updates
from .._objective.objective import accepted, Context
from .._transformation.base import AbstractTransformation, check_state, check_transformation
from .._transformation.conditional import apply_when
from .._transformation.nesting import check_nesting, Requirement


class ConditionallyTransformState(eqx.Module, Generic[State]):
    """The state of [`eqopt.ConditionallyTransform`][].

    **Arguments:**

    - `inner_state`: the state of the inner transformation.
    - `step`: the number of calls so far, int32 of shape `()`.
    """

    inner_state: State
    step: Count


class ConditionallyTransform(
    AbstractTransformation[ConditionallyTransformState[State]], Generic[State]
):
    """Applies a transformation at some steps; at the others the updates pass unchanged.

    At the others the inner transformation is not computed, and its state stays as it is.

    **Arguments:**

    - `inner`: the transformation.
    - `should_transform_fn`: called with the number of calls so far, an int32 of shape `()`; returns
        whether to apply the transformation, a boolean of shape `()`. A function is static: a new
        function object is compiled again. A Module is a tree: its arrays are data.
    - `forward_extra_args`: whether `should_transform_fn` is also given extra arguments by name:
        `value`, `grad`, `value_fn`, `key` and others, if it takes them and the user gave them.

    Raises a `TypeError` if `should_transform_fn` does not return one boolean.
    """

    inner: AbstractTransformation[State]
    should_transform_fn: Function
    forward_extra_args: bool = eqx.field(
        converter=flag("forward_extra_args"), static=True, default=False
    )

    def __check_init__(self) -> None:
        _check_fields(self)
        why = "at the other steps the updates pass it by; with `ConditionallyMask` they are 0"
        check_nesting(self, self.inner, {Requirement.MOVES: why})

    def init_state(self, params: Params, context: Context) -> ConditionallyTransformState[State]:
        return ConditionallyTransformState(self.inner.init_state(params, context), zero_count())

    def transform(
        self,
        updates: Updates,
        state: ConditionallyTransformState[State],
        params: Params | None,
        context: Context,
    ) -> tuple[Updates, ConditionallyTransformState[State]]:
        updates, inner_state = _transform(self, updates, state, params, context, pass_on=True)
        return updates, ConditionallyTransformState(inner_state, increment(state.step))


class ConditionallyMaskState(eqx.Module, Generic[State]):
    """The state of [`eqopt.ConditionallyMask`][].

    **Arguments:**

    - `step`: the number of calls so far, int32 of shape `()`.
    - `inner_state`: the state of the inner transformation.
    """

    step: Count
    inner_state: State


class ConditionallyMask(AbstractTransformation[ConditionallyMaskState[State]], Generic[State]):
    """Applies a transformation at some steps; at the others the updates are zero.

    At the others the inner transformation is not computed, and its state stays as it is.

    **Arguments:**

    - `inner`: the transformation.
    - `should_transform_fn`: called with the number of calls so far, an int32 of shape `()`; returns
        whether to apply the transformation, a boolean of shape `()`. A function is static: a new
        function object is compiled again. A Module is a tree: its arrays are data.
    - `forward_extra_args`: whether `should_transform_fn` is also given extra arguments by name:
        `value`, `grad`, `value_fn`, `key` and others, if it takes them and the user gave them.

    Raises a `TypeError` if `should_transform_fn` does not return one boolean.
    """

    inner: AbstractTransformation[State]
    should_transform_fn: Function
    forward_extra_args: bool = eqx.field(
        converter=flag("forward_extra_args"), static=True, default=False
    )

    def __check_init__(self) -> None:
        _check_fields(self)

    def init_state(self, params: Params, context: Context) -> ConditionallyMaskState[State]:
        return ConditionallyMaskState(zero_count(), self.inner.init_state(params, context))

    def transform(
        self,
        updates: Updates,
        state: ConditionallyMaskState[State],
        params: Params | None,
        context: Context,
    ) -> tuple[Updates, ConditionallyMaskState[State]]:
        updates, inner_state = _transform(self, updates, state, params, context, pass_on=False)
        return updates, ConditionallyMaskState(increment(state.step), inner_state)


def _check_fields(self: ConditionallyTransform[Any] | ConditionallyMask[Any]) -> None:
    check_transformation("inner", self.inner)
    fn = self.should_transform_fn
    if not callable(fn) or isinstance(fn, type):
        raise TypeError(f"`should_transform_fn` must be a function of the step; got {fn!r}")


def _transform(
    self: ConditionallyTransform[Any] | ConditionallyMask[Any],
    updates: Updates,
    state: ConditionallyTransformState[Any] | ConditionallyMaskState[Any],
    params: Params | None,
    context: Context,
    *,
    pass_on: bool,
) -> tuple[Updates, PyTree]:
    check_state(self.inner, state.inner_state, "state.inner_state")
    condition = _ask(self.should_transform_fn, state.step, context, self.forward_extra_args)
    return apply_when(
        condition, self.inner, updates, state.inner_state, params, context, pass_on=pass_on
    )


def _ask(fn: Function, step: Count, context: Context, forward: bool) -> Bool[Array, ""]:
    given: dict[str, object] = {}
    if forward:
        everything = {
            "value": context.value,
            # The function that the user gave.
            "grad": None if context.grad is None else conj(context.grad),
            "key": context.key,
            **context.extra,
        }
        objective = context.value_fn
        if objective is not None:
            everything["value_fn"] = lambda params: objective(params)[0]
        given = accepted(fn, {name: x for name, x in everything.items() if x is not None})
    answer = checks.call_traced("`should_transform_fn`", fn, step, **given)
    if isinstance(answer, bool):
        return jnp.asarray(answer)
    if not checks.is_array(answer) or answer.dtype != bool or answer.shape != ():
        raise TypeError(
            f"`should_transform_fn` must return one boolean; it returned {checks.describe(answer)}"
        )
    return jnp.asarray(answer)
