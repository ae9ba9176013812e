"""The updates to a point that a penalty or a set has chosen."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Inexact

from .._base import checks
from .._base.arithmetic import cast, wider
from .._base.trees import add, narrowed
from .._base.types import Leaves, Params, Updates
from ._base import AbstractBox, AbstractPenalty, by_parts, neighbor


@jax.jit
@checks.typed
def _toward(
    param: Inexact[Array, "*shape"], target: Inexact[Array, "*shape"]
) -> Inexact[Array, "*shape"]:
    """The update to a target, in the parameter's dtype."""
    dtype = wider(param.dtype)
    return narrowed(lax.sub(cast(target, dtype), cast(param, dtype)), param.dtype)


@jax.jit
@checks.typed
def _into(
    param: Float[Array, "*shape"],
    target: Float[Array, "*shape"],
    low: Float[Array, "*shape"] | None,
    high: Float[Array, "*shape"] | None,
) -> Float[Array, "*shape"]:
    """The update to a target, such that the parameter ends up between bounds."""
    update = _toward(param, target)
    # The update itself is rounded, so the sum may miss the target. The neighboring update toward
    # the inside is not less than the exact one, and rounding is monotonic: one neighbor is enough.
    reached = add(param, update)
    if low is not None:
        update = jnp.where(reached < low, neighbor(update, np.inf), update)
    if high is not None:
        update = jnp.where(reached > high, neighbor(update, -np.inf), update)
    return update


def updates_toward(penalty: AbstractPenalty, params: Params, target: Params) -> Updates:
    """The updates after which the parameters are at the target, up to rounding.

    After them, the parameters are between the bounds of a box, in every dtype.
    """
    if not isinstance(penalty, AbstractBox):
        return jax.tree.map(_toward, params, target)
    leaves, treedef = checks.flatten(params)
    targets: Leaves = treedef.flatten_up_to(target)
    bounds = zip(*penalty.bounds(params), strict=True)
    changes = [
        None if x is None else by_parts(_into, x, y, low, high)
        for x, y, (low, high) in zip(leaves, targets, bounds, strict=True)
    ]
    return treedef.unflatten(changes)
