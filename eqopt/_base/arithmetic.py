"""Arithmetic on one leaf, for kernels.

A kernel is traced once for each shape of parameter, while the user waits. The operators of JAX
arrays take three times as long to trace as the `lax` operations that they call, and they refuse to
mix real and complex under strict promotion. These functions are fast to trace, take a scalar with
any shape (as in `lax`, without a broadcast), and take a real number with a complex array.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Inexact


def wider(*dtypes: Any) -> np.dtype:
    """The dtype to compute in: at least float32 and as wide as the widest; complex if any is
    complex.

    Not `jnp.promote_types`, which raises under strict promotion, and keeps bfloat16 as bfloat16.
    """
    bits, is_complex = 32, False
    for dtype in dtypes:
        bits = max(bits, jnp.finfo(dtype).bits)
        is_complex = is_complex or np.dtype(dtype).kind == "c"
    if is_complex:
        return np.dtype(np.complex64 if bits == 32 else np.complex128)
    return np.dtype(np.float32 if bits == 32 else np.float64)


def real_dtype(dtype: object) -> np.dtype:
    """The dtype of the real part."""
    return np.dtype(jnp.finfo(dtype).dtype)


def is_complex(x: Array) -> bool:
    # Called for every leaf at every trace: `jnp.iscomplexobj` takes ten times as long.
    return x.dtype.kind == "c"


def is_half(x: Array) -> bool:
    """Whether the array has fewer bits than the dtype that it is computed in."""
    return wider(x.dtype) != x.dtype


def cast(x: Array, dtype: np.dtype) -> Array:
    """Casts to `dtype`. (Called for every leaf: `astype` is slow even if it does nothing.)"""
    return x if x.dtype == dtype else x.astype(dtype)


# In a kernel, dtypes differ only where one is complex.
def plus(x: Array, y: Array) -> Array:
    """`x + y`."""
    if x.dtype == y.dtype:
        return lax.add(x, y)
    return lax.add(_complex(x), _complex(y))


def minus(x: Array, y: Array) -> Array:
    """`x - y`."""
    return plus(x, lax.neg(y))


def times(x: Array, y: Array) -> Array:
    """`x * y`."""
    if x.dtype == y.dtype:
        return lax.mul(x, y)
    # By parts: a real number cast to complex gives NaN when multiplied by infinity.
    z, real = (x, y) if is_complex(x) else (y, x)
    return lax.complex(lax.mul(lax.real(z), real), lax.mul(lax.imag(z), real))


def divide(x: Array, y: Array) -> Array:
    """`x / y`."""
    if x.dtype == y.dtype:
        return lax.div(x, y)
    if is_complex(x):
        return lax.complex(lax.div(lax.real(x), y), lax.div(lax.imag(x), y))
    return lax.div(_complex(x), y)


def ema(rest: Float[Array, ""], old: Array, new: Array) -> Array:
    """`(1 - rest) * old + rest * new`, one step of an exponential moving average."""
    decay = lax.sub(np.ones((), rest.dtype), rest)
    return plus(times(decay, old), times(rest, new))


def debiased(
    average: Array,
    new: Array,
    rest: Float[Array, ""],
    weight: Float[Array, ""],
    next_weight: Float[Array, ""] | None = None,
) -> Array:
    """An exponential moving average divided by its weight; with the next weight, one step ahead."""
    if next_weight is None:
        return divide(average, weight)
    return ema(rest, divide(average, next_weight), divide(new, weight))


def abs_sq(x: Inexact[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The squared modulus, with a derivative of 0 at 0."""
    if is_complex(x):
        return lax.add(lax.square(lax.real(x)), lax.square(lax.imag(x)))
    return lax.square(x)


def safe_sqrt(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The square root, with a finite derivative, 1, at 0."""
    positive = lax.gt(x, np.zeros((), x.dtype))
    return lax.select(positive, lax.sqrt(lax.select(positive, x, lax.full_like(x, 1))), x)


def over_root(
    x: Array,
    square: Float[Array, "..."],
    eps: Float[Array, ""],
    eps_root: Float[Array, ""] | None = None,
) -> Array:
    """`x / (sqrt(square + eps_root) + eps)`, with a finite derivative where the root is 0."""
    under = square if eps_root is None else plus(square, eps_root)
    return divide(x, plus(safe_sqrt(under), eps))


def where_positive(number: Float[Array, ""], x: Array, y: Array) -> Array:
    """`x` if the number is positive, else `y`. NaN in the other array does not pass."""
    # Not by `jnp.where`, which adds a nested program for each leaf.
    return lax.select(lax.gt(number, np.zeros((), number.dtype)), x, y)


def over_where(
    divides: Bool[Array, "*shape"], x: Float[Array, "*shape"], y: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """`x / y` where `y` divides, else `x`."""
    # Ends in a division, which the compiler computes once; it repeats cheap operations, such as a
    # selection, for each leaf. Guarded, so that the derivative is finite where the quotient is not
    # used.
    return x / lax.select(divides, y, lax.full_like(y, 1))


def within(norm: Float[Array, "*shape"], limit: Float[Array, ""]) -> Float[Array, "*shape"]:
    """The factor, at most 1, that limits a norm; 0 for a norm that is not finite."""
    finite = jnp.isfinite(norm)
    exceeds = finite & (norm > limit)
    # The limit if the norm exceeds it; else 1, or 0 if the norm is not finite.
    limits = jnp.broadcast_to(limit, norm.shape)
    return over_where(exceeds, lax.select(exceeds, limits, finite.astype(norm.dtype)), norm)


def safe_divide(
    x: Array, y: Array, where_zero: float = 0.0, *, zero: Bool[Array, "*shape"] | None = None
) -> Array:
    """`x / y`, or `where_zero` where `y` is 0, with a finite derivative in both cases.

    **Arguments:**

    - `x`, `y`: the numerator and the denominator.
    - `where_zero`: the value where there is no division.
    - `zero`: where there is no division; by default where `y` is 0.
    """
    # Not `y > 0`, which takes a NaN for a zero.
    zero = y == 0 if zero is None else zero
    # Guarded before the division too: the derivative must be finite where it is not selected.
    return jnp.where(zero, where_zero, divide(x, jnp.where(zero, 1, y)))


def clipped(x: Inexact[Array, "*shape"], limit: Float[Array, ""]) -> Inexact[Array, "*shape"]:
    """Limits each entry; for complex entries, the real and the imaginary part separately."""
    if is_complex(x):
        return lax.complex(clipped(lax.real(x), limit), clipped(lax.imag(x), limit))
    return jnp.clip(x, -limit, limit)


def norm(
    x: Inexact[Array, "*shape"], axis: tuple[int, ...] | None = None, *, keepdims: bool = False
) -> Float[Array, "..."]:
    """The 2-norm of `x`, or along some axes, with a derivative of 0 at 0.

    The largest modulus is divided by first, so that no square overflows or vanishes.
    """
    if x.size == 0:
        return jnp.sum(abs_sq(x), axis, keepdims=keepdims)
    largest = jnp.max(jnp.abs(lax.stop_gradient(x)), axis, keepdims=True)
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, jnp.ones_like(largest))
    root = safe_sqrt(
        jnp.sum(abs_sq(divide(x, jnp.broadcast_to(scale, x.shape))), axis, keepdims=True)
    )
    found = lax.mul(root, scale)
    return found if keepdims else jnp.squeeze(found, axis)


def rms(x: Inexact[Array, "*shape"]) -> Float[Array, ""]:
    """The root of the mean squared modulus, with a derivative of 0 at 0."""
    # Not by `norm`: finding the largest modulus of each leaf costs Adafactor more memory.
    return safe_sqrt(jnp.sum(abs_sq(x)) / max(x.size, 1))


def _complex(x: Array) -> Array:
    return x if is_complex(x) else lax.complex(x, lax.full_like(x, 0))
