"""Forms of programs that the compiler handles well.

Each function hides something from the compiler, or makes one value depend on another. None of them
changes a number. The gain, measured on a CPU, is stated in each function.
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

    A slice at a known place is a separate kernel, and takes longer to compile than a layer of a
    network (measured: 200 slices take 5 seconds, these 0.2). Slices of one size at unknown places
    share one kernel.
    """
    known = [np.int32(x) for x in numbers]
    first = lax.slice(near, (0,) * near.ndim, (1,) * near.ndim) if near.size else near
    unknown = jnp.any(jnp.isnan(first))
    return lax.cond(unknown, lambda: known, lambda: known)


def going_on(condition: Bool[Array, ""], count: Int[Array, ""]) -> Bool[Array, ""]:
    """The condition, for a `while_loop` that holds this count, which is never negative.

    If a loop's condition has one variable, the compiler assumes a counter and searches the whole
    body, such as an objective, for the number of trips, more than twenty times. This condition
    depends on two variables.
    """
    return condition & (count >= 0)


def changing(point: PyTree, value: Float[Array, ""]) -> PyTree:
    """The point after a trip of a loop, made to depend on the value computed in the trip.

    If the point did not change, the compiler would move the evaluation out of the loop, and compute
    it even if the loop makes no trip.
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
