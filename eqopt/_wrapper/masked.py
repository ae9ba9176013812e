"""A transformation of some of the parameters."""

import dataclasses
from typing import Any, Generic

import equinox as eqx
from jaxtyping import PyTree

from .. import _check
from .._hyperparameter import flag
from .._objective import Context
from .._selector import AbstractSelector, as_selector
from .._transformation import AbstractTransformation, check_state, check_transformation
from .._types import Params, State, Updates


class MaskedState(eqx.Module, Generic[State]):
    """The state of [`eqopt.Masked`][].

    **Arguments:**

    - `inner_state`: the state of the inner transformation, with `None` for what is masked out.
    - `chosen`: whether each leaf of the parameters, in order, is chosen. Static.
    """

    inner_state: State
    # Static: it decides what is computed. It is resolved once, in `init`, because the inner state
    # has the holes that it had then.
    chosen: tuple[bool, ...] = eqx.field(static=True)


class Masked(AbstractTransformation[MaskedState[State]], Generic[State]):
    """Applies a transformation to some of the parameters; the other updates pass unchanged.

    !!! warning
        What is masked out keeps its raw gradient as update; it is not frozen.

    **Arguments:**

    - `inner`: the transformation.
    - `mask`: what it is applied to: a selector, a function from the parameters to booleans, or a
        tree of booleans, possibly a prefix. It is resolved once, in `init`.
    - `mask_compatible_extra_args`: whether extra arguments that are trees like the parameters are
        masked too.

    The inner transformation sees `None` for what is masked out; an objective, in `value_fn`, is
    still called with all parameters.

    Raises a `ValueError` that names the leaf if the mask does not fit the parameters.
    """

    inner: AbstractTransformation[State]
    mask: AbstractSelector = eqx.field(converter=as_selector)
    mask_compatible_extra_args: bool = eqx.field(
        converter=flag("mask_compatible_extra_args"), static=True, default=False
    )

    def __check_init__(self) -> None:
        check_transformation("inner", self.inner)

    def init_state(self, params: Params, context: Context) -> MaskedState[State]:
        leaves, _ = _check.flatten(self.mask.select(params))
        chosen = tuple(leaves)
        inner = self.inner.init_state(_hide(params, chosen), _narrow(context, params, chosen))
        return MaskedState(inner, chosen)

    def transform(
        self,
        updates: Updates,
        state: MaskedState[State],
        params: Params | None,
        context: Context,
    ) -> tuple[Updates, MaskedState[State]]:
        check_state(self.inner, state.inner_state, "state.inner_state")
        chosen = state.chosen
        leaves, treedef = _check.flatten(updates)
        if len(leaves) != len(chosen):
            raise ValueError(
                f"`state` was made for {len(chosen)} leaves; `updates` has {len(leaves)}"
            )
        if self.mask_compatible_extra_args:
            extra = {
                name: _hide(x, chosen) if _check.like(x, updates) else x
                for name, x in context.extra.items()
            }
            context = eqx.tree_at(lambda c: c.extra, context, extra, is_leaf=_check.is_none)
        inner, inner_state = self.inner.transform(
            _hide(updates, chosen),
            state.inner_state,
            None if params is None else _hide(params, chosen),
            _narrow(context, params, chosen),
        )
        inner_leaves = treedef.flatten_up_to(inner)
        merged = [a if c else b for a, b, c in zip(inner_leaves, leaves, chosen, strict=True)]
        return treedef.unflatten(merged), MaskedState(inner_state, chosen)


def _hide(tree: PyTree, chosen: tuple[bool, ...], *, complement: bool = False) -> PyTree:
    leaves, treedef = _check.flatten(tree)
    kept = [x if c is not complement else None for x, c in zip(leaves, chosen, strict=True)]
    return treedef.unflatten(kept)


def _narrow(context: Context, params: Params | None, chosen: tuple[bool, ...]) -> Context:
    """What of the context concerns the chosen parameters."""
    grad: Any = None if context.grad is None else _hide(context.grad, chosen)
    objective = context.value_fn
    if objective is not None and params is not None:
        rest = eqx.combine(_hide(params, chosen, complement=True), objective.rest)
        objective = dataclasses.replace(objective, rest=rest)
    return dataclasses.replace(context, grad=grad, value_fn=objective)
