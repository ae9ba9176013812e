"""The abstract penalty and the abstract projection, and code that penalties and sets share."""

import abc
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import wadler_lindig as wl
from jax import lax
from jaxtyping import Array, Float, Inexact, PyTree

from .._base import checks
from .._base.arithmetic import cast, is_complex, real_dtype, wider
from .._base.converters import canonicalize, Converter, float_dtype, module_pdoc, real
from .._base.trees import narrowed, placed_like
from .._base.types import Leaves, Model, Params
from .._jit import compiled_call


class AbstractPenalty(eqx.Module):
    r"""A function of the parameters that may have kinks, and whose proximal operator is known.

    It is the $h$ in the minimization of $f(x) + h(x)$ by [`eqopt.ProximalGradient`][] or
    [`eqopt.FISTA`][]. It is written as `value` and `prox`. Both see a tree of arrays; of a model,
    that is `eqx.filter(model, eqx.is_inexact_array)`.
    """

    @abc.abstractmethod
    def value(self, params: Params) -> Float[Array, ""]:
        """The penalty $h(x)$, a real number.

        **Arguments:**

        - `params`: inexact arrays, and `None` for other leaves.
        """

    @abc.abstractmethod
    def prox(self, params: Params, step: Float[Array, ""]) -> Params:
        r"""The proximal operator $\operatorname{argmin}_z\, h(z) + \|z - x\|^2 / (2 t)$.

        **Arguments:**

        - `params`: the point $x$: inexact arrays, in their own dtypes, and `None` for other leaves.
        - `step`: the step $t \ge 0$. For $t = 0$ it is the nearest point at which the penalty is
            finite.

        **Returns:**

        A tree like `params`, in the same dtypes or wider ones.
        """

    def __pdoc__(self, **kwargs: object) -> wl.AbstractDoc:
        return module_pdoc(self, **kwargs)


class AbstractProjection(AbstractPenalty):
    """The nearest point of a set of parameters.

    A projection is called with a whole model. All its inexact arrays together are one point; the
    real and the imaginary part of a complex number are two coordinates. Other leaves, `None`
    included, are returned unchanged. [`eqopt.Project`][] keeps an optimizer's parameters in the
    set.

    It is also a penalty: 0 in the set, and infinite outside. Its `value` is always 0, because it is
    only asked for at points in the set; its `prox` is the projection, for any step.

    It is written as `project`.
    """

    @abc.abstractmethod
    def project(self, params: Params) -> Params:
        """The rule: the nearest point of the set.

        **Arguments:**

        - `params`: inexact arrays, in their own dtypes, and `None` for other leaves.

        **Returns:**

        A tree like `params`, in the same dtypes or wider ones.
        """

    def __call__(self, tree: Model) -> Model:
        """Gives the nearest model in the set, each number rounded once, to its dtype."""
        trained, rest = eqx.partition(tree, checks.is_inexact)
        return eqx.combine(compiled_call.call(nearest, canonicalize(self), trained), rest)

    def value(self, params: Params) -> Float[Array, ""]:
        return jnp.zeros((), float_dtype())

    def prox(self, params: Params, step: Float[Array, ""]) -> Params:
        return self.project(params)


class AbstractBox(AbstractProjection):
    """A set with bounds for each number."""

    @abc.abstractmethod
    def bounds(self, params: Params) -> tuple[list[Array | None], list[Array | None]]:
        """The smallest and the largest numbers of each leaf's dtype that are in the set.

        The leaves are those of `checks.flatten`; `None` is no bound.
        """

    def project(self, params: Params) -> Params:
        leaves, treedef = checks.flatten(params)
        lower, upper = self.bounds(params)
        return treedef.unflatten(
            [
                None if x is None else by_parts(clipped, x, low, high)
                for x, low, high in zip(leaves, lower, upper, strict=True)
            ]
        )


def nearest(projection: AbstractProjection, params: Params) -> Params:
    """The projection of a tree of arrays, in their dtypes."""
    return jax.tree.map(lambda x, y: narrowed(y, x.dtype), params, projection.project(params))


# Bounds


def clipped(
    x: Float[Array, "*shape"], low: Array | None, high: Array | None
) -> Float[Array, "*shape"]:
    # Selected, and not by `max` and `min`, whose derivative on the bound itself is one half.
    if low is not None:
        x = jnp.where(x < low, low, x)
    if high is not None:
        x = jnp.where(x > high, high, x)
    return x


def by_parts(kernel: Callable[..., Array], *arrays: Array | None) -> Array:
    """Makes a kernel of real arrays work on complex arrays, part by part."""
    if not any(x is not None and is_complex(x) for x in arrays):
        return kernel(*arrays)
    # A real bound applies to both parts.
    parts = [
        (x, x) if x is None or not is_complex(x) else (lax.real(x), lax.imag(x)) for x in arrays
    ]
    re, im = (kernel(*part) for part in zip(*parts, strict=True))
    return lax.complex(re, im)


def inward(
    x: Inexact[Array, "*shape"], bound: object, *, up: bool, name: str
) -> Float[Array, "*#shape"]:
    """The bound in the leaf's real dtype: the nearest number that does not exceed it."""
    exact = spread(x, bound, name)
    dtype = real_dtype(x.dtype)
    near = narrowed(cast(exact, wider(exact.dtype, dtype)), dtype)
    back = cast(near, wider(exact.dtype, dtype))
    wide = cast(exact, back.dtype)
    passes = back < wide if up else back > wide
    return jnp.where(passes, neighbor(near, np.inf if up else -np.inf), near)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def neighbor(x: Float[Array, "*shape"], toward: float) -> Float[Array, "*shape"]:
    """The next number up or down, which moves along with `x`. (`nextafter` has no derivative.)"""
    return lax.nextafter(x, lax.full_like(x, toward))


@neighbor.defjvp
def _(toward: float, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return neighbor(primals[0], toward), tangents[0]


# Numbers or trees


def spreadable(name: str, *, finite: bool = True, real_only: bool = True) -> Converter:
    """Makes the converter of a number, or of a tree of numbers and arrays.

    Leaves that are not numbers, such as a model's functions, become `None`.
    """
    one = real(name, finite=finite)

    def convert(value: Any) -> Any:
        if _is_number(value) and np.shape(value) == () and not np.iscomplexobj(value):
            return one(value)
        # Strings and all other leaves have become `None`.
        tree = jax.tree.map(leaf, value)
        if not jax.tree.leaves(tree):
            raise TypeError(
                f"`{name}` must be a number, or a tree of arrays like the parameters; got "
                f"{checks.describe(value)}"
            )
        return tree

    def leaf(x: object) -> Any:
        if isinstance(x, int | float) and not isinstance(x, bool):
            return one(x)
        if isinstance(x, checks.ARRAYS) and jnp.issubdtype(x.dtype, np.integer):
            x = x.astype(float_dtype())
        if not checks.is_inexact(x):
            return None
        if jnp.iscomplexobj(x) and real_only:
            raise TypeError(f"`{name}` must be real; got {checks.describe(x)}")
        if jnp.iscomplexobj(x):
            dtype = wider(np.complex64, float_dtype())
        else:
            dtype = float_dtype()
        # A copy of an array that may be written to; JAX arrays are immutable.
        return cast(x, dtype) if isinstance(x, jax.Array) else np.array(x, dtype)

    return convert


def _is_number(x: object) -> bool:
    return isinstance(x, (*checks.ARRAYS, int, float)) and not isinstance(x, bool)


def matched(value: Any, params: Params, name: str) -> Leaves:
    """The part of a number or a tree for each leaf of the parameters, `None` included."""
    leaves, treedef = checks.flatten(params)
    if checks.is_array(value):
        if len(leaves) != 1 and np.shape(value) != ():
            raise ValueError(
                f"`{name}` is {checks.describe(value)}; it must be one number, or like `params`"
            )
        return [value] * len(leaves)
    found, own = checks.flatten(value)
    if own != treedef:
        raise checks.structure_error(value, params, name, "params")
    shapes = zip(found, leaves, checks.paths(name, params), strict=True)
    for x, p, path in shapes:
        if x is not None and p is not None and x.shape not in ((), p.shape):
            raise ValueError(f"`{path}` has shape {x.shape}; the parameter has {p.shape}")
    return found


def spread(x: Array, value: object, name: str) -> Array:
    """A number for each entry of a leaf, placed where the leaf is."""
    array = jnp.asarray(value)
    if array.shape not in ((), x.shape):
        raise ValueError(f"`{name}` has shape {array.shape}; the parameter has {x.shape}")
    return placed_like(jnp.broadcast_to(array, x.shape), x)


# All coordinates


def coordinates(params: PyTree) -> list[Float[Array, "..."]]:
    """The real arrays of a tree, in the widest dtype among them."""
    leaves = jax.tree.leaves(params)
    parts = [
        part for x in leaves for part in ((lax.real(x), lax.imag(x)) if is_complex(x) else (x,))
    ]
    dtype = real_dtype(wider(np.float32, *{x.dtype for x in leaves}))
    return [cast(x, dtype) for x in parts]


def from_coordinates(parts: list[Float[Array, "..."]], params: PyTree) -> PyTree:
    """Converts real arrays back to a tree like the parameters."""
    rest = iter(parts)

    def back(x: Array) -> Array:
        if is_complex(x):
            dtype = real_dtype(x.dtype)
            return lax.complex(narrowed(next(rest), dtype), narrowed(next(rest), dtype))
        return narrowed(next(rest), x.dtype)

    return jax.tree.map(back, params)


def largest(parts: list[Float[Array, "..."]]) -> Float[Array, ""]:
    """The largest of all coordinates."""
    # For an empty array, minus infinity.
    tops = [jnp.max(x, initial=-np.inf) for x in parts]
    return jnp.max(jnp.stack(tops))


def magnitude(parts: list[Float[Array, "..."]]) -> Float[Array, ""]:
    """The largest modulus, to divide by before squaring; 1 if all numbers are zero."""
    top = lax.stop_gradient(largest([lax.abs(x) for x in parts]))
    # Written this way, so that a NaN is not taken for zero.
    return jnp.where(top < np.finfo(top.dtype).tiny, np.ones((), top.dtype), top)


def inner_product(a: list[Float[Array, "..."]], b: list[Float[Array, "..."]]) -> Float[Array, ""]:
    """The inner product of two points."""
    return jnp.sum(jnp.stack([jnp.sum(x * y) for x, y in zip(a, b, strict=True)]))
