"""The sphere and the ball of the Euclidean norm."""

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .._base.arithmetic import cast
from .._base.converters import non_negative, positive
from .._base.types import Params, Scalar
from ._base import AbstractProjection, coordinates, from_coordinates, inner_product, magnitude


def _on_the_sphere(
    xs: list[Float[Array, "..."]], radius: Float[Array, ""]
) -> tuple[list[Float[Array, "..."]], Float[Array, ""]]:
    """The projections, and the norm."""
    # Divided first by the largest modulus: in float32, squares overflow at 1e19.
    size = magnitude(xs)
    units = [x / size for x in xs]
    sq = inner_product(units, units)
    none = sq == 0
    units = [jnp.where(none, lax.full_like(x, 1), x) for x in units]
    norm = jnp.sqrt(inner_product(units, units))
    factor = radius / norm
    return [x * factor for x in units], jnp.where(none, lax.full_like(norm, 0), size * norm)


class L2Sphere(AbstractProjection):
    r"""Scales the parameters to a given norm, over all leaves together:
    $x \leftarrow r x / \|x\|_2$.

    !!! note
        All points of the sphere are equally near to zero. Zero goes to the point whose coordinates
        are equal and positive.

    **Arguments:**

    - `scale`: the radius $r$, positive.
    """

    scale: Scalar = eqx.field(converter=positive("scale"), default=1.0)

    def project(self, params: Params) -> Params:
        xs = coordinates(params)
        if not xs:
            return params
        projected, _ = _on_the_sphere(xs, cast(jnp.asarray(self.scale), xs[0].dtype))
        return from_coordinates(projected, params)


class L2Ball(AbstractProjection):
    r"""Shrinks the parameters if their norm, over all leaves together, exceeds a radius:
    $x \leftarrow x \min(1, r / \|x\|_2)$.

    **Arguments:**

    - `scale`: the radius $r \ge 0$.
    """

    scale: Scalar = eqx.field(converter=non_negative("scale"), default=1.0)

    def project(self, params: Params) -> Params:
        xs = coordinates(params)
        if not xs:
            return params
        radius = cast(jnp.asarray(self.scale), xs[0].dtype)
        projected, norm = _on_the_sphere(xs, radius)
        inside = norm <= radius
        return from_coordinates(
            [jnp.where(inside, x, y) for x, y in zip(xs, projected, strict=True)], params
        )
