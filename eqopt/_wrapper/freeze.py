"""Parameters that stay as they are."""

from typing import Generic

import equinox as eqx

from .._base.types import Params, State, Updates
from .._objective.objective import Context
from .._transformation.base import (
    AbstractTransformation,
    check_state,
    check_transformation,
    EmptyState,
)
from .._transformation.masking import (
    check_mask,
    Chosen,
    hide,
    narrow,
    no_updates,
    others,
    resolved,
    transform_part,
)
from ..selectors._selector import AbstractSelector, as_selector


class Freeze(AbstractTransformation[EmptyState]):
    """Sets the updates of some parameters to zero; the others pass unchanged.

    It belongs at the end of a chain: a link after it may move frozen parameters. The links before
    it still keep states for frozen parameters, so the mask may change between steps, for example to
    unfreeze a model layer by layer. [`eqopt.SelectiveTransform`][] keeps no such states.

    **Arguments:**

    - `mask`: the frozen parameters: a selector, a function from the parameters to booleans, or a
        tree of booleans, possibly a prefix.

    Raises a `ValueError` that names the leaf if the mask does not fit the parameters.
    """

    mask: AbstractSelector = eqx.field(converter=as_selector)

    def init_state(self, params: Params, context: Context) -> EmptyState:
        self.mask.select(params)  # so that a wrong mask raises at once
        return EmptyState()

    def transform(
        self, updates: Updates, state: EmptyState, params: Params | None, context: Context
    ) -> tuple[Updates, EmptyState]:
        frozen = resolved(self.mask, updates if params is None else params)
        return _stopped(updates, frozen, params, context), state


class SelectiveTransformState(eqx.Module, Generic[State]):
    """The state of [`eqopt.SelectiveTransform`][].

    **Arguments:**

    - `inner_state`: the state of the optimizer, with `None` for frozen parameters.
    - `frozen`: whether each leaf of the parameters, in order, is frozen. Static.
    """

    inner_state: State
    frozen: tuple[bool, ...] = eqx.field(static=True)


class SelectiveTransform(AbstractTransformation[SelectiveTransformState[State]], Generic[State]):
    """Applies an optimizer to all parameters except the frozen ones, whose updates are zero.

    The optimizer does not see frozen parameters: it has no state for them, and norms ignore them.

    **Arguments:**

    - `optimizer`: the optimizer.
    - `freeze_mask`: the frozen parameters: a selector, a function from the parameters to booleans,
        or a tree of booleans, possibly a prefix. It must choose the same parameters at each step.

    Raises a `ValueError` that names the leaf if the mask does not fit the parameters, or chooses
    others than it did in `init`.
    """

    optimizer: AbstractTransformation[State]
    freeze_mask: AbstractSelector = eqx.field(converter=as_selector)

    def __check_init__(self) -> None:
        check_transformation("optimizer", self.optimizer)

    def init_state(self, params: Params, context: Context) -> SelectiveTransformState[State]:
        frozen = self._frozen(params)
        trained = others(frozen)
        inner = self.optimizer.init_state(hide(params, trained), narrow(context, params, trained))
        return SelectiveTransformState(inner, frozen)

    def transform(
        self,
        updates: Updates,
        state: SelectiveTransformState[State],
        params: Params | None,
        context: Context,
    ) -> tuple[Updates, SelectiveTransformState[State]]:
        check_state(self.optimizer, state.inner_state, "state.inner_state")
        check_mask(self, state.frozen, self._frozen, updates, params)
        updates, inner_state = transform_part(
            self.optimizer, others(state.frozen), updates, state.inner_state, params, context
        )
        stopped = _stopped(updates, state.frozen, params, context)
        return stopped, SelectiveTransformState(inner_state, state.frozen)

    def _frozen(self, params: Params) -> Chosen:
        return resolved(self.freeze_mask, params)


def _stopped(updates: Updates, frozen: Chosen, params: Params | None, context: Context) -> Updates:
    zeros = no_updates(hide(updates, frozen), params, context)
    return eqx.combine(hide(updates, others(frozen)), zeros)
