"""A transformation of a part of the parameters."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._base import checks
from .._base.trees import placed_like
from .._base.types import Params, Updates
from .._jit import compiled_call
from .._objective.objective import Context
from ..selectors._selector import AbstractSelector
from .base import AnyTransformation

# A choice of parameters: a boolean for each leaf, in order.
Chosen = tuple[bool, ...]


def resolved(mask: AbstractSelector, params: Params) -> Chosen:
    """For each leaf, whether a mask chooses it."""
    leaves, _ = checks.flatten(mask.select(params))
    return tuple(leaves)


def check_mask(
    owner: object,
    before: Chosen,
    resolve: Callable[[PyTree], Chosen],
    updates: Updates,
    params: Params | None,
) -> None:
    """Refuses a mask that chooses other parameters than the mask in `init` did."""
    changed = first_change(before, resolve, updates, params)
    if changed is not None:
        path, then, now = changed
        raise ValueError(
            f"`{type(owner).__name__}` has another mask than the one that its state was made for: "
            f"whether `{path}` is chosen was {then}, and is {now}. Make the state anew by `init`; "
            "or use `eqopt.Freeze`, whose mask may change between steps"
        )


def first_change(
    before: tuple[object, ...],
    resolve: Callable[[PyTree], tuple[object, ...]],
    updates: Updates,
    params: Params | None,
) -> tuple[str, object, object] | None:
    """The first parameter whose assignment has changed since the state was made, or `None`.

    Gives its path, its assignment then, and its assignment now.

    **Arguments:**

    - `before`: each leaf's assignment when the state was made.
    - `resolve`: gives the present assignments, from a tree like the parameters.
    """
    name, tree = ("updates", updates) if params is None else ("params", params)
    for own, x in (("updates", updates), (name, tree)):
        leaves, _ = checks.flatten(x)
        checks.check_num_leaves(leaves, len(before), own)
    columns = zip(checks.paths(name, tree), leaves, before, resolve(tree), strict=True)
    changes = ((path, then, now) for path, x, then, now in columns if x is not None and now != then)
    return next(changes, None)


def no_updates(updates: Updates, params: Params | None, context: Context) -> Updates:
    """Zeros for the updates.

    Within a larger program they are constants: the compiler then computes no gradient of a frozen
    parameter, and leaves the parameter untouched. If the updates are a program's result, they are
    placed like the parameters.
    """
    whole = context.whole
    within = compiled_call.is_inside_trace() or (whole is not None and whole.evaluation is not None)
    near = updates if params is None else params

    def zero(u: Any, x: Any) -> Any:
        if u is None:
            return None
        zeros = jnp.zeros_like(u)
        return zeros if within else placed_like(zeros, x)

    return jax.tree.map(zero, updates, near, is_leaf=checks.is_none)


def others(chosen: Chosen) -> Chosen:
    """The complement: the leaves that are not chosen."""
    return tuple(not c for c in chosen)


def hide(tree: PyTree, chosen: Chosen, *, name: str = "updates") -> PyTree:
    """The tree, with `None` for leaves that are not chosen; a `ValueError` if it has other
    leaves."""
    leaves, treedef = checks.flatten(tree)
    checks.check_num_leaves(leaves, len(chosen), name)
    return treedef.unflatten([x if c else None for x, c in zip(leaves, chosen, strict=True)])


def narrow(context: Context, params: Params | None, chosen: Chosen) -> Context:
    """The context, restricted to the chosen parameters."""
    grad: object = None if context.grad is None else hide(context.grad, chosen, name="grad")
    objective = context.value_fn
    if objective is not None and params is not None:
        rest = eqx.combine(hide(params, others(chosen)), objective.rest)
        objective = dataclasses.replace(objective, rest=rest)
    return dataclasses.replace(context, grad=grad, value_fn=objective)


def transform_part(
    inner: AnyTransformation,
    chosen: Chosen,
    updates: Updates,
    inner_state: object,
    params: Params | None,
    context: Context,
    *,
    mask_extra: bool = False,
) -> tuple[Updates, PyTree]:
    """Applies a transformation to the chosen updates; the others pass unchanged."""
    hidden = hide(updates, chosen)
    if mask_extra:
        extra = {
            name: hide(x, chosen) if is_like(x, updates) else x for name, x in context.extra.items()
        }
        context = dataclasses.replace(context, extra=extra)
    out, inner_state = inner.transform(
        hidden,
        inner_state,
        None if params is None else hide(params, chosen, name="params"),
        narrow(context, params, chosen),
    )
    leaves, treedef = checks.flatten(updates)
    transformed = treedef.flatten_up_to(out)
    merged = [a if c else b for a, b, c in zip(transformed, leaves, chosen, strict=True)]
    return treedef.unflatten(merged), inner_state


def is_like(x: Any, tree: PyTree) -> bool:
    """Whether an extra argument is a tree like the parameters.

    A number is not such a tree, even if the only parameter is a number.
    """
    return checks.like(x, tree) and not (checks.is_array(x) and x.shape == ())
