"""Sets with bounds on each number."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._base import checks
from .._base.compat import Tracer
from .._base.converters import non_negative
from .._base.types import Params, Scalar
from ._base import AbstractBox, inward, matched, spreadable


def _bounds(
    params: Params, value: Scalar | PyTree, *, up: bool, name: str
) -> list[Float[Array, "..."] | None]:
    leaves, _ = checks.flatten(params)
    bounds = matched(value, params, name)
    paths = checks.paths(name, params)
    return [
        None if x is None or bound is None else inward(x, bound, up=up, name=path)
        for x, bound, path in zip(leaves, bounds, paths, strict=True)
    ]


def _between(
    params: Params, lower: Scalar | PyTree, upper: Scalar | PyTree, names: tuple[str, str]
) -> tuple[list[Float[Array, "..."] | None], list[Float[Array, "..."] | None]]:
    low = _bounds(params, lower, up=True, name=names[0])
    high = _bounds(params, upper, up=False, name=names[1])
    # If a dtype has no number between the bounds, the rounded bounds have crossed.
    low = [
        x if x is None or y is None else jnp.where(x > y, y, x)
        for x, y in zip(low, high, strict=True)
    ]
    return low, high


class NonNegative(AbstractBox):
    r"""Replaces negative numbers by zero: $x \leftarrow \max(x, 0)$.

    The real and the imaginary part of complex numbers are each made non-negative.
    """

    def bounds(self, params: Params) -> tuple[list[Array | None], list[Array | None]]:
        leaves, _ = checks.flatten(params)
        return _bounds(params, np.float32(0), up=True, name="lower"), [None] * len(leaves)


class Box(AbstractBox):
    r"""Moves each number to the nearest between two bounds: $x \leftarrow \min(\max(x, a), b)$.

    Bounds that a parameter's dtype cannot represent are rounded inward, so the result lies between
    the bounds in bfloat16 too. If the dtype has no number between them, the result is the largest
    number below $b$. For complex numbers the bounds apply to the real and to the imaginary part.

    **Arguments:**

    - `lower`: the lower bound $a$: one number for all, or a tree like the parameters, of arrays of
        their shapes or of numbers. It may be infinite; a `None` in a tree is no bound.
    - `upper`: the upper bound $b$, in the same forms, and not below $a$.

    Raises a `ValueError` if a lower bound is above an upper one, and for a tree that does not fit
    the parameters.
    """

    lower: Scalar | PyTree = eqx.field(converter=spreadable("lower", finite=False))
    upper: Scalar | PyTree = eqx.field(converter=spreadable("upper", finite=False))

    def __check_init__(self) -> None:
        pairs: list[tuple[object, object]] = [(self.lower, self.upper)]
        if not checks.is_array(self.lower) and not checks.is_array(self.upper):
            low, structure = checks.flatten(self.lower)
            high, other = checks.flatten(self.upper)
            if structure != other:
                raise checks.structure_error(self.upper, self.lower, "upper", "lower")
            pairs = list(zip(low, high, strict=True))
        elif not checks.is_array(self.lower):
            pairs = [(x, self.upper) for x in jax.tree.leaves(self.lower)]
        elif not checks.is_array(self.upper):
            pairs = [(self.lower, x) for x in jax.tree.leaves(self.upper)]
        for low, high in pairs:
            if low is None or high is None or isinstance(low, Tracer) or isinstance(high, Tracer):
                continue
            if np.any(np.asarray(low) > np.asarray(high)):
                raise ValueError("`lower` must not be above `upper`")

    def bounds(self, params: Params) -> tuple[list[Array | None], list[Array | None]]:
        return _between(params, self.lower, self.upper, ("lower", "upper"))


class Hypercube(AbstractBox):
    r"""Moves each number to the nearest from 0 to a limit: $x \leftarrow \min(\max(x, 0), s)$.

    It is a [`eqopt.projections.Box`][] with a lower bound of 0.

    **Arguments:**

    - `scale`: the limit $s \ge 0$, one number or a tree like the parameters.

    Raises a `ValueError` if a number is negative.
    """

    scale: Scalar | PyTree = eqx.field(converter=spreadable("scale"), default=1.0)

    def __check_init__(self) -> None:
        for x in jax.tree.leaves(self.scale):
            if not isinstance(x, Tracer) and np.any(np.asarray(x) < 0):
                raise ValueError("`scale` must not be negative")

    def bounds(self, params: Params) -> tuple[list[Array | None], list[Array | None]]:
        return _between(params, np.float32(0), self.scale, ("lower", "scale"))


class LInfBall(AbstractBox):
    r"""Moves each number to the nearest number of limited modulus: $x \leftarrow \min(\max(x, -r),
    r)$.

    That is the ball of the norm $\|x\|_\infty = \max_i |x_i|$, over the real and the imaginary
    parts of complex numbers.

    **Arguments:**

    - `scale`: the radius $r \ge 0$.
    """

    scale: Scalar = eqx.field(converter=non_negative("scale"), default=1.0)

    def bounds(self, params: Params) -> tuple[list[Array | None], list[Array | None]]:
        return _between(params, -self.scale, self.scale, ("scale", "scale"))
