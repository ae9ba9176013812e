"""Shared by wrappers that apply their inner transformation only at some steps."""

from typing import Any

import equinox as eqx
import jax
from jax import lax
from jaxtyping import Array, Bool, PyTree

from .._base import checks
from .._base.arithmetic import cast, wider
from .._base.trees import full_like
from .._base.types import Params, State, Updates
from .._objective.objective import Context
from .base import AbstractTransformation


def apply_when(
    condition: Bool[Array, ""],
    inner: AbstractTransformation[State],
    updates: Updates,
    state: State,
    params: Params | None,
    context: Context,
    *,
    pass_on: bool = False,
) -> tuple[Updates, State]:
    """Applies `inner` if the condition holds; otherwise `inner` is not computed.

    The state then stays as it is, and the updates are zeros, or unchanged with `pass_on`.
    """

    def transform(updates: Updates, state: State) -> tuple[Updates, State]:
        return inner.transform(updates, state, params, context)

    # Traced once, for the branch and for the output dtypes, which may be wider than the updates'.
    traced = eqx.filter_closure_convert(transform, updates, state)
    shapes, _ = jax.eval_shape(lambda u, s: traced(u, s), updates, state)
    leaves, treedef = checks.flatten(updates)
    dtypes = [
        None if u is None or x is None else wider(u.dtype, x.dtype)
        for u, x in zip(leaves, treedef.flatten_up_to(shapes), strict=True)
    ]

    def each(make: Any, tree: PyTree) -> Updates:
        pairs = zip(treedef.flatten_up_to(tree), dtypes, strict=True)
        return treedef.unflatten([None if d is None else make(x, d) for x, d in pairs])

    def applied() -> tuple[Updates, State]:
        new_updates, new_state = traced(updates, state)
        return each(cast, new_updates), new_state

    def skipped() -> tuple[Updates, State]:
        return each(cast if pass_on else _zeros, updates), state

    return lax.cond(condition, applied, skipped)


def _zeros(x: Array, dtype: object) -> Array:
    return full_like(x, 0, dtype)
