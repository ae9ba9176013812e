"""Arithmetic on one leaf, for kernels.

A kernel is traced once for each shape of parameter, and waited for. The operators of JAX's arrays
take three times as long to trace as the operations of `lax` that they end in, and refuse to mix
real and complex under strict promotion. These functions do neither: a scalar goes with any shape
(as in `lax`, without a broadcast of its own), and a real number with a complex array.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Inexact


def wider(*dtypes: Any) -> np.dtype:
    """The dtype to compute in: at least float32, and as wide as the widest; complex if one is.

    Not `jnp.promote_types`, which refuses under strict promotion, and makes bfloat16 of bfloat16.
    """
    bits = max(32, *(jnp.finfo(dtype).bits for dtype in dtypes))
    if any(jnp.issubdtype(dtype, jnp.complexfloating) for dtype in dtypes):
        return np.dtype(np.complex64 if bits == 32 else np.complex128)
    return np.dtype(np.float32 if bits == 32 else np.float64)


def real_dtype(dtype: object) -> np.dtype:
    """The dtype of the real part."""
    return np.dtype(jnp.finfo(dtype).dtype)


def is_complex(x: Array) -> bool:
    # Asked of every leaf at every trace: `jnp.iscomplexobj` takes ten times as long.
    return x.dtype.kind == "c"


def is_half(x: Array) -> bool:
    """Whether it is kept in fewer bits than it is computed with."""
    return wider(x.dtype) != x.dtype


def cast(x: Array, dtype: np.dtype) -> Array:
    """Casts to `dtype`. (Asked of every leaf: `astype` takes its time even to do nothing.)"""
    return x if x.dtype == dtype else x.astype(dtype)


def plus(x: Array, y: Array) -> Array:
    """`x + y`."""
    if is_complex(x) is is_complex(y):
        return lax.add(x, y)
    return plus(_complex(x), _complex(y))


def minus(x: Array, y: Array) -> Array:
    """`x - y`."""
    return plus(x, lax.neg(y))


def times(x: Array, y: Array) -> Array:
    """`x * y`."""
    if is_complex(x) is is_complex(y):
        return lax.mul(x, y)
    # By parts: of a real number made complex, the product with an infinity has a NaN.
    z, real = (x, y) if is_complex(x) else (y, x)
    return lax.complex(lax.mul(lax.real(z), real), lax.mul(lax.imag(z), real))


def divide(x: Array, y: Array) -> Array:
    """`x / y`."""
    if is_complex(x) is is_complex(y):
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
    """An exponential moving average over its weight; with the next weight too, a step ahead."""
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
    """All of `x` where the number is positive, else all of `y`; nothing of the other."""
    # Not by `jnp.where`, which is a program in the program of each leaf.
    return lax.select(lax.gt(number, np.zeros((), number.dtype)), x, y)


def over_where(
    divides: Bool[Array, "*shape"], x: Float[Array, "*shape"], y: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """`x / y` where `y` divides, else `x`."""
    # Ends in a division, which the compiler does once. What it takes to be cheap, such as a
    # selection, it does again in the program of each leaf. Guarded, so that its derivative is
    # finite where it is not used.
    return x / lax.select(divides, y, lax.full_like(y, 1))


def within(norm: Float[Array, "*shape"], limit: Float[Array, ""]) -> Float[Array, "*shape"]:
    """What makes norms stay within a limit: at most 1; 0 for a norm that is not finite."""
    finite = jnp.isfinite(norm)
    exceeds = finite & (norm > limit)
    # The limit where it is exceeded; else 1, or 0 if there is no direction.
    limits = jnp.broadcast_to(limit, norm.shape)
    return over_where(exceeds, lax.select(exceeds, limits, finite.astype(norm.dtype)), norm)


def safe_divide(
    x: Array, y: Array, where_zero: float = 0.0, *, zero: Bool[Array, "*shape"] | None = None
) -> Array:
    """`x / y`, or `where_zero` where `y` is 0, with a finite derivative in both cases.

    **Arguments:**

    - `x`, `y`: the numerator and the denominator.
    - `where_zero`: the quotient where nothing is divided.
    - `zero`: where nothing is divided, if not where `y` is 0.
    """
    # Not `y > 0`, which takes a NaN for a zero.
    zero = y == 0 if zero is None else zero
    # Guarded before the division too: the derivative of what is not selected must be finite.
    return jnp.where(zero, where_zero, divide(x, jnp.where(zero, 1, y)))


def clipped(x: Inexact[Array, "*shape"], limit: Float[Array, ""]) -> Inexact[Array, "*shape"]:
    """Each entry limited; of a complex one, the real and the imaginary part."""
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
    # Not by `norm`: to look for the largest modulus of each leaf takes Adafactor more memory.
    return safe_sqrt(jnp.sum(abs_sq(x)) / max(x.size, 1))


def _complex(x: Array) -> Array:
    return x if is_complex(x) else lax.complex(x, lax.full_like(x, 0))
