"""Blocks of a leaf: the matrices of a stack, its rows, or the whole leaf.

In: a leaf and the number of trailing axes of one block. Out: norms and products by block. They
exist because a stack of layers is one leaf with more axes, and each layer has a norm of its own.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Inexact

from .arithmetic import divide, is_complex, norm, times
from .converters import Converter, optional, size


def block_size(name: str) -> Converter:
    """Makes the converter of the number of a block's axes, at least 1, or `None` for all."""
    return optional(size(name))


def axes(num: int | None, ndim: int) -> tuple[int, ...]:
    """The axes of one block: the last `num`, or all of them."""
    return tuple(range(ndim)) if num is None else tuple(range(max(ndim - num, 0), ndim))


def lead(num: int | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of an array with one number for each block."""
    return shape[: len(shape) - len(axes(num, len(shape)))]


def per_block(x: Float[Array, "..."], like: Array) -> Float[Array, "..."]:
    """One number for each block, with the axes of a block at the end, each of size 1."""
    return jnp.reshape(x, x.shape + (1,) * (like.ndim - x.ndim))


def num_entries(num: int | None, x: Array) -> int:
    """The number of entries of one block, at least 1."""
    found = 1
    for axis in axes(num, x.ndim):
        found *= x.shape[axis]
    return max(found, 1)


def norms(num: int | None, x: Inexact[Array, "*shape"]) -> Float[Array, "..."]:
    """The norm of each block; its axes stay, with size 1."""
    return norm(x, axes(num, x.ndim), keepdims=True)


def sums(num: int | None, x: Float[Array, "*shape"]) -> Float[Array, "..."]:
    """The sum over each block; its axes stay, with size 1."""
    return jnp.sum(x, axes(num, x.ndim), keepdims=True)


def spread(number: Array, like: Array) -> Array:
    """The number of each block at each of its entries."""
    full = jnp.broadcast_to(number, like.shape)
    # In explicit sharding mode, it must be divided between devices as the leaf is.
    sharding = jax.typeof(like).sharding
    return jax.sharding.reshard(full, sharding) if any(sharding.spec) else full


def multiplied(factor: Float[Array, "..."], x: Inexact[Array, "*shape"]) -> Array:
    """Multiplies each block by its number."""
    return times(spread(factor, x), x)


def selected(condition: Bool[Array, "..."], x: Array, y: Array) -> Array:
    """`x` in the blocks where the condition holds, else `y`."""
    return lax.select(spread(condition, x), x, y)


def has_direction(size: Float[Array, "..."]) -> Bool[Array, "..."]:
    """Whether a block with this norm has a direction."""
    return (size > 0) & jnp.isfinite(size)


def units(num: int | None, x: Inexact[Array, "*shape"]) -> tuple[Array, Float[Array, "..."]]:
    """Each block divided by its norm, zero where it has no direction; and the norms."""
    size = norms(num, x)
    some = has_direction(size)
    # Not times the inverse, which overflows for the smallest norms.
    unit = divide(x, spread(jnp.where(some, size, 1), x))
    return selected(some, unit, jnp.zeros_like(unit)), size


def products(num: int | None, x: Array, y: Array) -> Float[Array, "..."]:
    """The real inner product of each block of `x` and `y`."""
    if is_complex(x) or is_complex(y):
        return sums(num, jnp.real(times(jnp.conj(x), y)))
    return sums(num, times(x, y))
