"""The simplex, and the sphere and the ball of the sum of moduli."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from .._base.arithmetic import cast
from .._base.converters import positive
from .._base.trees import sum_of
from .._base.types import Params, Scalar
from ._base import AbstractProjection, coordinates, from_coordinates, largest

_Parts = list[Float[Array, "..."]]


def _sums(xs: _Parts, above: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """How many coordinates are above a number, and their sum."""
    chosen = [x > above for x in xs]
    num = sum_of(jnp.sum(c.astype(above.dtype)) for c in chosen)
    zero = np.zeros((), above.dtype)
    return num, sum_of(jnp.sum(jnp.where(c, x, zero)) for c, x in zip(chosen, xs, strict=True))


@jax.custom_jvp
def _threshold(xs: _Parts, total: Float[Array, ""]) -> Float[Array, ""]:
    r"""The number $\tau$ with $\sum_i \max(x_i - \tau, 0)$ equal to the total. The largest is 0.

    Michelot's iteration: coordinates below the threshold of the remaining coordinates are dropped,
    until none is dropped. There is no sorting, so the leaves stay where they are.
    """

    # The threshold is above `-total`, because the largest coordinate alone gives that threshold.
    def going(carry: tuple[Array, Array, Array]) -> Array:
        _, before, num = carry
        return num < before

    def body(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        above, _, before = carry
        num, total_above = _sums(xs, above)
        return (total_above - total) / num, before, num

    # At least two rounds: the first only drops coordinates that were not counted.
    infinity = jnp.asarray(np.inf, total.dtype)
    start = body((-total, infinity, infinity))
    return lax.while_loop(going, body, start)[0]


@_threshold.defjvp
def _(primals: tuple[_Parts, Array], tangents: tuple[_Parts, Array]) -> tuple[Array, Array]:
    (xs, total), (dxs, dtotal) = primals, tangents
    above = _threshold(xs, total)
    num, _ = _sums(xs, above)
    zero = np.zeros((), above.dtype)
    moved = sum_of(jnp.sum(jnp.where(x > above, dx, zero)) for x, dx in zip(xs, dxs, strict=True))
    return above, (moved - dtotal) / num


def _on_the_simplex(xs: _Parts, total: Float[Array, ""]) -> tuple[_Parts, Float[Array, ""]]:
    """The projections, and the amount by which all nonzero coordinates became smaller."""
    # Relative to the largest: a common offset does not change the projection, and near numbers must
    # not lose their digits to it.
    top = lax.stop_gradient(largest(xs))
    shifted = [x - top for x in xs]
    above = _threshold(shifted, total)
    # Written this way, so that a NaN stays.
    rest = [x - above for x in shifted]
    zero = np.zeros((), above.dtype)
    return [jnp.where(x <= zero, zero, x) for x in rest], above + top


def _signed(parts: _Parts, like: _Parts) -> _Parts:
    """Numbers with the signs of others, where the sign of zero is positive."""
    return [jnp.where(x < 0, -y, y) for x, y in zip(like, parts, strict=True)]


def _moduli(xs: _Parts) -> _Parts:
    # The derivative at zero is 1, because zero counts as positive.
    return _signed(xs, xs)


class Simplex(AbstractProjection):
    r"""Moves all numbers by the same amount, and those that become negative to zero, such that
    they sum to $s$: $x \leftarrow \max(x - \tau, 0)$.

    That is the nearest point of the simplex $\{x \ge 0, \sum_i x_i = s\}$, over all leaves
    together. With $s = 1$ the numbers are probabilities.

    The derivative is the identity on the numbers that stay positive, minus their mean.

    **Arguments:**

    - `scale`: the sum $s$, positive.

    ??? cite "Reference"
        Michelot, *A finite algorithm for finding the projection of a point onto the canonical
        simplex of R^n*, Journal of Optimization Theory and Applications 50, 1986.
    """

    scale: Scalar = eqx.field(converter=positive("scale"), default=1.0)

    def project(self, params: Params) -> Params:
        xs = coordinates(params)
        if not xs:
            return params
        projected, _ = _on_the_simplex(xs, cast(jnp.asarray(self.scale), xs[0].dtype))
        return from_coordinates(projected, params)


class L1Sphere(AbstractProjection):
    r"""Moves the parameters to where their moduli sum to $r$:
    $x \leftarrow \operatorname{sign}(x) \max(|x| - \tau, 0)$, with the $\tau$ for which
    $\|x\|_1 = r$.

    The sum is over all leaves together, and over the real and the imaginary parts of complex
    numbers. The moduli are those of [`eqopt.projections.Simplex`][].

    !!! note
        A zero is as near to the positive as to the negative side, and goes to the positive one; the
        result has the norm $r$ also where the parameters are zero.

    **Arguments:**

    - `scale`: the radius $r$, positive.
    """

    scale: Scalar = eqx.field(converter=positive("scale"), default=1.0)

    def project(self, params: Params) -> Params:
        xs = coordinates(params)
        if not xs:
            return params
        moduli, _ = _on_the_simplex(_moduli(xs), cast(jnp.asarray(self.scale), xs[0].dtype))
        return from_coordinates(_signed(moduli, xs), params)


class L1Ball(AbstractProjection):
    r"""Moves the parameters toward zero, by at most $\tau$ each, if their moduli sum to more than
    $r$: $x \leftarrow \operatorname{sign}(x) \max(|x| - \tau, 0)$.

    Where the sum is at most $r$, nothing happens; else it is [`eqopt.projections.L1Sphere`][],
    which makes small numbers zero.

    **Arguments:**

    - `scale`: the radius $r$, positive.

    ??? cite "Reference"
        Duchi, Shalev-Shwartz, Singer and Chandra, *Efficient projections onto the l1-ball for
        learning in high dimensions*, ICML 2008, section 4.
    """

    scale: Scalar = eqx.field(converter=positive("scale"), default=1.0)

    def project(self, params: Params) -> Params:
        xs = coordinates(params)
        if not xs:
            return params
        moduli = _moduli(xs)
        shrunk, amount = _on_the_simplex(moduli, cast(jnp.asarray(self.scale), xs[0].dtype))
        inside = amount <= 0
        projected = [jnp.where(inside, x, y) for x, y in zip(xs, _signed(shrunk, xs), strict=True)]
        return from_coordinates(projected, params)
