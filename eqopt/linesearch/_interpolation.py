"""The minimum of a polynomial through two points of a line."""

import jax.numpy as jnp
from jaxtyping import Array, Float

_Scalar = Float[Array, ""]


def cubic_minimizer(
    a: _Scalar, fa: _Scalar, ga: _Scalar, b: _Scalar, fb: _Scalar, gb: _Scalar
) -> _Scalar:
    """The minimizer of the cubic with values `fa`, `fb` and slopes `ga`, `gb` at `a`, `b`.

    NaN if it has none. Nocedal and Wright, *Numerical Optimization*, 2nd edition, equation 3.59.
    """
    d1 = ga + gb - 3 * (fa - fb) / (a - b)
    # Scaled, because squares of very steep slopes overflow.
    size = jnp.maximum(jnp.abs(d1), jnp.maximum(jnp.abs(ga), jnp.abs(gb)))
    root = jnp.square(d1 / size) - (ga / size) * (gb / size)
    d2 = jnp.sign(b - a) * size * jnp.sqrt(root)
    return b - (b - a) * (gb + d2 - d1) / (gb - ga + 2 * d2)


def quadratic_minimizer(a: _Scalar, fa: _Scalar, ga: _Scalar, b: _Scalar, fb: _Scalar) -> _Scalar:
    """The minimizer of the parabola with values `fa`, `fb` at `a`, `b` and slope `ga` at `a`."""
    width = b - a
    return a - ga * jnp.square(width) / (2 * (fb - fa - ga * width))


def secant(a: _Scalar, ga: _Scalar, b: _Scalar, gb: _Scalar) -> _Scalar:
    """Where the line through the slopes `ga` at `a` and `gb` at `b` is zero."""
    return a - ga * (b - a) / (gb - ga)
