"""Models that follow another one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Inexact, PyTree

from .._base import checks
from .._base.arithmetic import cast, ema, is_complex, real_dtype, wider
from .._base.compat import Tracer
from .._base.converters import float_dtype, real, steps as whole
from .._base.models import refuse_numbers
from .._base.trace_sharing import map_leaves
from .._base.trees import narrowed
from .._base.types import Leaves, Model, ScalarLike, StepsLike
from .._jit import compiled_call, partition


def incremental_update(new_tensors: Model, old_tensors: PyTree, step_size: ScalarLike) -> Model:
    r"""Moves a model some of the way towards another:
    $s\, x_{\text{new}} + (1 - s)\, x_{\text{old}}$.

    For averages of a model's parameters, and the target networks of reinforcement learning. To keep
    such an average within an optimizer, see [`eqopt.ParamEMA`][].

    **Arguments:**

    - `new_tensors`: the model that is followed: any PyTree.
    - `old_tensors`: the model that follows, of the same structure and shapes. Its inexact arrays
        are moved, and keep their dtype: an average in float32 may follow parameters in bfloat16.
    - `step_size`: the part $s$ of the way, in $[0, 1]$; it is data, and may be traced. With 0 and
        with 1, the model with weight 0 may hold NaN.

    **Returns:**

    The moved model. Leaves that are not inexact arrays come from `new_tensors`.

    **Raises:** a `ValueError` or `TypeError` that names the leaf that does not fit.
    """
    given = _given(step_size, np.floating, real("step_size", at_least=0, at_most=1))
    return _follow(_increments, checks.is_inexact, new_tensors, old_tensors, given)


def periodic_update(
    new_tensors: Model, old_tensors: PyTree, steps: StepsLike, update_period: StepsLike
) -> Model:
    r"""Replaces a model by another one every `update_period` steps, and otherwise keeps it.

    **Arguments:**

    - `new_tensors`: the model to take if `steps` is a multiple of `update_period`: any PyTree.
    - `old_tensors`: the model to keep otherwise, of the same structure and shapes. Its arrays keep
        their dtypes.
    - `steps`: the number of steps taken; it is data, and may be traced.
    - `update_period`: how many steps there are between replacements, at least 1; data as well.

    **Returns:**

    A model with the arrays of one of the two, integers and PRNG keys included. Leaves that are not
    arrays come from `new_tensors`.

    **Raises:** a `ValueError` or `TypeError` that names the leaf that does not fit.
    """
    count = _given(steps, np.integer, whole("steps"))
    period = _given(update_period, np.integer, whole("update_period", at_least=1))
    return _follow(_replacements, partition.is_array, new_tensors, old_tensors, count, period)


def _given(value: Any, kind: Any, convert: Any) -> Any:
    """A number as data. A number on the device is not checked, because that would wait for it."""
    on_device = isinstance(value, jax.Array) and not isinstance(value, Tracer)
    if on_device and value.shape == () and jnp.issubdtype(value.dtype, kind):
        return value
    return convert(value)


def _follow(function: Any, moves: Any, new: Model, old: PyTree, *numbers: Any) -> Model:
    refuse_numbers(new, "new_tensors")
    leaves, treedef = checks.flatten(new)
    others, own = checks.flatten(old)
    if own != treedef:
        raise checks.structure_error(old, new, "old_tensors", "new_tensors")
    pairs = list(zip(leaves, others, strict=True))
    wrong = [i for i, (x, y) in enumerate(pairs) if not _fit(x, y, moves)]
    if wrong:
        names = checks.paths("", new)
        faults = [
            f"`old_tensors{names[i]}` is {checks.describe(others[i])}; "
            f"`new_tensors{names[i]}` is {checks.describe(leaves[i])}"
            for i in wrong
        ]
        raise ValueError(checks.listed(faults))
    places = [i for i, x in enumerate(leaves) if moves(x)]
    found = compiled_call.call(
        function, [leaves[i] for i in places], [others[i] for i in places], *numbers
    )
    for i, x in zip(places, found, strict=True):
        leaves[i] = x
    return treedef.unflatten(leaves)


def _fit(new: Any, old: Any, moves: Any) -> bool:
    if not (moves(new) or moves(old)):
        return True
    if not (moves(new) and moves(old)) or new.shape != old.shape:
        return False
    if checks.is_inexact(new) and checks.is_inexact(old):
        return is_complex(old) or not is_complex(new)
    return new.dtype == old.dtype


# The bodies of the compiled programs.


def _increments(new: list[Array], old: list[Array], step_size: Array) -> list[Array]:
    size = cast(jnp.asarray(step_size), float_dtype())
    return map_leaves(_increment, new, old, [size] * len(new))


@jax.jit
def _increment(
    new: Inexact[Array, "*shape"], old: Inexact[Array, "*shape"], size: Array
) -> Inexact[Array, "*shape"]:
    dtype = wider(new.dtype, old.dtype)
    rest = cast(size, real_dtype(dtype))
    x, y = cast(new, dtype), cast(old, dtype)
    # Selected where a weight is 0, because `0 * nan` is NaN.
    moved = jnp.where(rest == 0, y, jnp.where(rest == 1, x, ema(rest, y, x)))
    return narrowed(moved, np.dtype(old.dtype))


def _replacements(new: Leaves, old: Leaves, steps: Array, period: Array) -> Leaves:
    now = lax.rem(*(cast(jnp.asarray(x), np.dtype(np.int32)) for x in (steps, period))) == 0
    return [jnp.where(now, _in_dtype(x, y), y) for x, y in zip(new, old, strict=True)]


def _in_dtype(new: Any, old: Any) -> Any:
    if checks.is_inexact(new) and new.dtype != old.dtype:
        wide = cast(new, wider(new.dtype, old.dtype))
        return narrowed(wide, np.dtype(old.dtype))
    return new
