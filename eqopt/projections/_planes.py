"""Hyperplanes, halfspaces and lines."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from .._base import checks
from .._base.arithmetic import cast, is_complex, real_dtype, wider
from .._base.converters import real
from .._base.types import Params, Scalar
from ._base import (
    AbstractProjection,
    coordinates,
    from_coordinates,
    inner_product,
    magnitude,
    matched,
    spread,
    spreadable,
)

_Parts = list[Float[Array, "..."]]


def _points(params: Params, normal: Scalar | PyTree, name: str) -> tuple[_Parts, _Parts]:
    """The coordinates of the parameters, and of a vector like the parameters."""
    leaves, treedef = checks.flatten(params)
    vectors = matched(normal, params, name)
    paths = checks.paths(name, params)
    whole = [
        None if x is None else _vector(x, vector, path)
        for x, vector, path in zip(leaves, vectors, paths, strict=True)
    ]
    xs = coordinates(params)
    own = coordinates(treedef.unflatten(whole))
    # A vector in float64 does not widen parameters in float32.
    return xs, [cast(x, like.dtype) for x, like in zip(own, xs, strict=True)]


def _vector(x: Array, value: PyTree, name: str) -> Array:
    array = spread(x, 0.0 if value is None else value, name)
    dtype = wider(x.dtype)
    if is_complex(array) and not is_complex(x):
        raise TypeError(f"`{name}` is complex; the parameter is real")
    if is_complex(x) and not is_complex(array):
        array = cast(array, real_dtype(dtype))
        return lax.complex(array, lax.full_like(array, 0))
    return cast(array, dtype)


def _steps(
    params: Params, normal: Scalar | PyTree, offset: Scalar
) -> tuple[_Parts, _Parts, Float[Array, ""]]:
    """The point, the direction to the plane, and the distance to go along it."""
    xs, ns = _points(params, normal, "normal")
    # Only the direction of the vector matters; its square must not overflow.
    size = magnitude(ns)
    units = [n / size for n in ns]
    gap = cast(jnp.asarray(offset), size.dtype) / size - inner_product(units, xs)
    return xs, units, gap / inner_product(units, units)


def _moved(params: Params, xs: _Parts, ns: _Parts, step: Float[Array, ""]) -> Params:
    return from_coordinates([x + step * n for x, n in zip(xs, ns, strict=True)], params)


class Hyperplane(AbstractProjection):
    r"""Moves the parameters along the normal of a hyperplane, onto it:

    $$x \leftarrow x + \frac{b - \langle a, x \rangle}{\langle a, a \rangle} a,$$

    the nearest point of $\{x : \langle a, x \rangle = b\}$, over all leaves together. The inner
    product is the real one.

    **Arguments:**

    - `normal`: the normal $a$: a tree like the parameters, or one number for all entries. A `None`
        in it stands for zeros.
    - `offset`: the number $b$.

    A normal of zeros gives NaN. Raises a `ValueError` for a tree that does not fit the parameters.
    """

    normal: Scalar | PyTree = eqx.field(converter=spreadable("normal", real_only=False))
    offset: Scalar = eqx.field(converter=real("offset"))

    def project(self, params: Params) -> Params:
        if not jax.tree.leaves(params):
            return params
        return _moved(params, *_steps(params, self.normal, self.offset))


class Halfspace(AbstractProjection):
    r"""Moves the parameters onto a hyperplane if they are beyond it:

    $$x \leftarrow x + \min\left(\frac{b - \langle a, x \rangle}{\langle a, a \rangle},
    0\right) a,$$

    the nearest point of $\{x : \langle a, x \rangle \le b\}$.

    **Arguments:**

    - `normal`: the normal $a$, which points outward, as in [`eqopt.projections.Hyperplane`][].
    - `offset`: the number $b$.

    A normal of zeros gives NaN. Raises a `ValueError` for a tree that does not fit the parameters.
    """

    normal: Scalar | PyTree = eqx.field(converter=spreadable("normal", real_only=False))
    offset: Scalar = eqx.field(converter=real("offset"))

    def project(self, params: Params) -> Params:
        if not jax.tree.leaves(params):
            return params
        xs, ns, step = _steps(params, self.normal, self.offset)
        # Written this way, so that a NaN stays.
        return _moved(params, xs, ns, jnp.where(step > 0, lax.full_like(step, 0), step))


class Line(AbstractProjection):
    r"""Replaces the parameters by their component along a direction:

    $$x \leftarrow \frac{\langle a, x \rangle}{\langle a, a \rangle} a,$$

    the nearest point of the line $\{t a\}$ through zero.

    **Arguments:**

    - `direction`: the direction $a$, given as the normal of an
        [`eqopt.projections.Hyperplane`][] is.

    A direction of zeros gives NaN. Raises a `ValueError` for a tree that does not fit the
    parameters.
    """

    direction: Scalar | PyTree = eqx.field(converter=spreadable("direction", real_only=False))

    def project(self, params: Params) -> Params:
        if not jax.tree.leaves(params):
            return params
        xs, ns = _points(params, self.direction, "direction")
        size = magnitude(ns)
        units = [n / size for n in ns]
        step = inner_product(units, xs) / inner_product(units, units)
        return from_coordinates([step * n for n in units], params)
