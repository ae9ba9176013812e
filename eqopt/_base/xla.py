"""Programs in the form in which the compiler does them well.

Each function hides something from the compiler, or makes one value depend on another. None of
them changes a number. What they gain was measured on a CPU and is written beside each.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from .checks import is_inexact


def hidden_from_compiler(numbers: Sequence[int], near: Array) -> list[Array]:
    """The numbers, such as places in `near`, as values that the compiler does not know.

    A slice from a place that it knows is a kernel of its own, and takes longer to compile than a
    layer of a network (measured: 200 slices 5 seconds, these 0.2); slices of one size from places
    that it does not know are one.
    """
    known = [np.int32(x) for x in numbers]
    first = lax.slice(near, (0,) * near.ndim, (1,) * near.ndim) if near.size else near
    unknown = jnp.any(jnp.isnan(first))
    return lax.cond(unknown, lambda: known, lambda: known)


def going_on(condition: Bool[Array, ""], count: Int[Array, ""]) -> Bool[Array, ""]:
    """The condition, for a `while_loop` that holds this count, which is never negative.

    A loop that ends by one variable is taken for one that counts: the compiler looks through the
    whole body, an objective say, for how often it goes round, more than twenty times. This one
    depends on two variables.
    """
    return condition & (count >= 0)


def changing(point: PyTree, value: Float[Array, ""]) -> PyTree:
    """The point after a trip of a loop, which seems to depend on the value computed in it.

    An evaluation at a point that does not change would be taken out of the loop, and be computed
    where the loop makes no trip.
    """
    return _unless(value > np.inf, point)


def written_after(norm: Float[Array, ""], model: PyTree) -> PyTree:
    """The model, to be written when the norm of all gradients is known.

    The new model is written over the old one, and that must not happen while a gradient still
    reads it. The compiler is not certain of that by itself, and copies the model.
    """
    return _unless(norm < 0, model)


def _unless(never: Bool[Array, ""], tree: PyTree) -> PyTree:
    # Selected, so that no bit changes.
    return jax.tree.map(
        lambda x: jnp.where(never, jnp.zeros_like(x), x) if is_inexact(x) else x, tree
    )
