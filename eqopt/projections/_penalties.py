"""Penalties with kinks, which make parameters exactly zero."""

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Inexact, PyTree

from .._base import checks
from .._base.arithmetic import abs_sq, cast, is_complex, norm, real_dtype, times, wider
from .._base.compat import Tracer
from .._base.converters import float_dtype, real
from .._base.trees import sum_of
from .._base.types import Params, Scalar
from ._base import AbstractPenalty, matched, spread, spreadable


def _check_strength(strength: PyTree) -> None:
    for x in jax.tree.leaves(strength):
        if not isinstance(x, Tracer) and np.any(np.asarray(x) < 0):
            raise ValueError("`strength` must not be negative")


def _penalized(
    params: Params, strength: PyTree, *, scalars: bool = False
) -> Iterator[tuple[int, Array, Any, str]]:
    """Each leaf that has a strength, with its place, the strength and its path."""
    leaves, _ = checks.flatten(params)
    strengths = matched(strength, params, "strength")
    paths = checks.paths("params", params)
    for i, (x, own, path) in enumerate(zip(leaves, strengths, paths, strict=True)):
        if x is None or own is None:
            continue
        if scalars and np.shape(own) != ():
            raise ValueError(
                f"the strength of `{path}` must be one number; it has the shape {np.shape(own)}"
            )
        yield i, x, own, path


def _total(terms: Iterator[Array]) -> Float[Array, ""]:
    found = [cast(x, float_dtype()) for x in terms]
    return sum_of(found) if found else jnp.zeros((), float_dtype())


def _replaced(params: Params, changes: Iterator[tuple[int, Array]]) -> Params:
    leaves, treedef = checks.flatten(params)
    for i, x in changes:
        leaves[i] = x
    return treedef.unflatten(leaves)


def _wide(x: Array) -> Array:
    return cast(x, wider(x.dtype))


def _amount(strength: Any, step: Any, x: Array) -> Array:
    """The strength times the step, in the leaf's real dtype."""
    dtype = real_dtype(x.dtype)
    return cast(jnp.asarray(strength), dtype) * cast(jnp.asarray(step), dtype)


def _shrunk(x: Inexact[Array, "*shape"], amount: Float[Array, "..."]) -> Inexact[Array, "*shape"]:
    """Moves each number toward zero; those that are nearer to it become zero."""
    amount = jnp.broadcast_to(amount, x.shape)
    # Written with `<=`, so that a NaN stays.
    zero = lax.abs(x) <= amount
    if not is_complex(x):
        return jnp.where(zero, 0, x - lax.sign(x) * amount)
    modulus = lax.abs(jnp.where(zero, 1, x))
    return jnp.where(zero, 0, times(x, 1 - amount / modulus))


class L1(AbstractPenalty):
    r"""The sum of the moduli, $h(x) = \lambda \sum_i |x_i|$: many parameters become zero.

    Its proximal operator moves each number toward zero, $x \leftarrow x \max(1 - t \lambda / |x|,
    0)$. A complex number counts by its modulus.

    **Arguments:**

    - `strength`: the factor $\lambda \ge 0$: one number for all, or a tree like the parameters, of
        arrays of their shapes or of numbers. A `None` in it is no penalty, as for biases.

    Raises a `ValueError` if a number is negative, and for a tree that does not fit the parameters.

    ??? cite "Reference"
        Parikh and Boyd, *Proximal algorithms*, Foundations and Trends in Optimization 1, 2014,
        section 6.5.2; Tibshirani, *Regression shrinkage and selection via the lasso*, Journal of
        the Royal Statistical Society B 58, 1996.
    """

    strength: Scalar | PyTree = eqx.field(converter=spreadable("strength"))

    def __check_init__(self) -> None:
        _check_strength(self.strength)

    def value(self, params: Params) -> Float[Array, ""]:
        found = _penalized(params, self.strength)
        return _total(_moduli(x, own, path) for _, x, own, path in found)

    def prox(self, params: Params, step: Float[Array, ""]) -> Params:
        found = _penalized(params, self.strength)
        return _replaced(params, ((i, _soft(x, own, step, path)) for i, x, own, path in found))


def _moduli(x: Array, strength: Any, path: str) -> Float[Array, ""]:
    x = _wide(x)
    return jnp.sum(cast(spread(x, strength, path), real_dtype(x.dtype)) * jnp.abs(x))


def _soft(x: Array, strength: Any, step: Any, path: str) -> Array:
    x = _wide(x)
    return _shrunk(x, _amount(spread(x, strength, path), step, x))


class ElasticNet(AbstractPenalty):
    r"""The sum of the moduli and of their squares,

    $$h(x) = \lambda \sum_i \left( r |x_i| + \frac{1 - r}{2} |x_i|^2 \right).$$

    Parameters that go together become small together, instead of all but one becoming zero. Its
    proximal operator is that of [`eqopt.projections.L1`][] with the strength $r \lambda$, divided
    by $1 + t (1 - r) \lambda$. The arguments are scikit-learn's `alpha` and `l1_ratio`.

    **Arguments:**

    - `strength`: the factor $\lambda \ge 0$, as in [`eqopt.projections.L1`][].
    - `l1_ratio`: the weight $r$ of the moduli, in $[0, 1]$.

    Raises a `ValueError` if a strength is negative, and for a tree that does not fit the
    parameters.

    ??? cite "Reference"
        Zou and Hastie, *Regularization and variable selection via the elastic net*, Journal of the
        Royal Statistical Society B 67, 2005.
    """

    strength: Scalar | PyTree = eqx.field(converter=spreadable("strength"))
    l1_ratio: Scalar = eqx.field(converter=real("l1_ratio", at_least=0, at_most=1), default=0.5)

    def __check_init__(self) -> None:
        _check_strength(self.strength)

    def value(self, params: Params) -> Float[Array, ""]:
        ratio = jnp.asarray(self.l1_ratio)

        def both(x: Array, own: Any, path: str) -> Array:
            x = _wide(x)
            r = cast(ratio, real_dtype(x.dtype))
            terms = r * jnp.abs(x) + (1 - r) / 2 * abs_sq(x)
            return jnp.sum(cast(spread(x, own, path), terms.dtype) * terms)

        return _total(both(x, own, p) for _, x, own, p in _penalized(params, self.strength))

    def prox(self, params: Params, step: Float[Array, ""]) -> Params:
        ratio = jnp.asarray(self.l1_ratio)

        def both(x: Array, own: Any, path: str) -> Array:
            x = _wide(x)
            amount, r = _amount(spread(x, own, path), step, x), cast(ratio, real_dtype(x.dtype))
            return times(_shrunk(x, r * amount), 1 / (1 + (1 - r) * amount))

        found = _penalized(params, self.strength)
        return _replaced(params, ((i, both(x, own, path)) for i, x, own, path in found))


def _axes(value: Any) -> tuple[int, ...] | None:
    axes = (value,) if isinstance(value, int) else value
    if axes is None:
        return None
    if not isinstance(axes, tuple) or not axes or any(type(x) is not int for x in axes):
        raise TypeError(f"`axis` must be an int, a tuple of ints or `None`; got {value!r}")
    return axes


class GroupL2(AbstractPenalty):
    r"""The sum of the 2-norms of groups, $h(x) = \lambda \sum_g \|x_g\|_2$: whole groups become
    zero.

    Each leaf is a group. With `axis`, the groups are the vectors along this axis of each leaf: for
    a weight of `eqx.nn.Linear`, whose shape is `(outputs, inputs)`, `axis=0` has a group for each
    input. Its proximal operator shortens each group, $x_g \leftarrow x_g \max(1 - t \lambda /
    \|x_g\|_2, 0)$.

    **Arguments:**

    - `strength`: the factor $\lambda \ge 0$: one number for all, or a tree like the parameters, of
        a number for each leaf. A `None` in it is no penalty.
    - `axis`: the axis or the axes along which a group lies; `None` is all of them. Static.

    Raises a `ValueError` if a number is negative, and for a leaf without that axis.

    ??? cite "Reference"
        Yuan and Lin, *Model selection and estimation in regression with grouped variables*, Journal
        of the Royal Statistical Society B 68, 2006; Parikh and Boyd, *Proximal algorithms*,
        Foundations and Trends in Optimization 1, 2014, section 6.5.4.
    """

    strength: Scalar | PyTree = eqx.field(converter=spreadable("strength"))
    axis: tuple[int, ...] | int | None = eqx.field(converter=_axes, static=True, default=None)

    def __check_init__(self) -> None:
        _check_strength(self.strength)

    def value(self, params: Params) -> Float[Array, ""]:
        def lengths(x: Array, own: Any, path: str) -> Array:
            found = norm(_wide(x), self._along(x, path), keepdims=True)
            return jnp.sum(_amount(own, 1.0, found) * found)

        found = _penalized(params, self.strength, scalars=True)
        return _total(lengths(x, own, path) for _, x, own, path in found)

    def prox(self, params: Params, step: Float[Array, ""]) -> Params:
        def shortened(x: Array, own: Any, path: str) -> Array:
            x = _wide(x)
            length = norm(x, self._along(x, path), keepdims=True)
            amount = _amount(own, step, x)
            zero = length <= amount
            factor = jnp.where(zero, 0, 1 - amount / jnp.where(zero, 1, length))
            return jnp.where(zero, 0, times(x, jnp.broadcast_to(factor, x.shape)))

        found = _penalized(params, self.strength, scalars=True)
        return _replaced(params, ((i, shortened(x, own, path)) for i, x, own, path in found))

    def _along(self, x: Array, path: str) -> tuple[int, ...] | None:
        axes = _axes(self.axis)
        if axes is not None and any(not -x.ndim <= a < x.ndim for a in axes):
            raise ValueError(
                f"`axis` is {axes}; `{path}` has the shape {x.shape}. Give it the strength `None` "
                "to leave it out"
            )
        return axes


class NuclearNorm(AbstractPenalty):
    r"""The sum of the singular values of each matrix, $h(X) = \lambda \sum_i \sigma_i(X)$: matrices
    become of low rank.

    Its proximal operator moves the singular values toward zero, $\sigma \leftarrow \max(\sigma - t
    \lambda, 0)$. A leaf with more than two axes is a stack of matrices, in its last two axes.

    **Arguments:**

    - `strength`: the factor $\lambda \ge 0$: one number for all, or a tree like the parameters, of
        a number for each leaf. A `None` in it is no penalty, as for biases.

    Raises a `ValueError` if a number is negative, and for a leaf with a strength and fewer than two
    axes. Where two singular values are equal, the proximal operator's derivative is NaN.

    ??? cite "Reference"
        Cai, Candès and Shen, *A singular value thresholding algorithm for matrix completion*, SIAM
        Journal on Optimization 20, 2010, theorem 2.1.
    """

    strength: Scalar | PyTree = eqx.field(converter=spreadable("strength"))

    def __check_init__(self) -> None:
        _check_strength(self.strength)

    def value(self, params: Params) -> Float[Array, ""]:
        def values(x: Array, own: Any) -> Array:
            found = jnp.linalg.svd(x, compute_uv=False)
            return jnp.sum(_amount(own, 1.0, found) * found)

        return _total(values(x, own) for _, x, own in self._matrices(params))

    def prox(self, params: Params, step: Float[Array, ""]) -> Params:
        def thresholded(x: Array, own: Any) -> Array:
            left, values, right = jnp.linalg.svd(x, full_matrices=False)
            kept = _shrunk(values, _amount(own, step, values))
            kept = kept if not is_complex(x) else lax.complex(kept, lax.full_like(kept, 0))
            return jnp.matmul(left * kept[..., None, :], right, precision="highest")

        return _replaced(params, ((i, thresholded(x, own)) for i, x, own in self._matrices(params)))

    def _matrices(self, params: Params) -> Iterator[tuple[int, Array, Any]]:
        for i, x, own, path in _penalized(params, self.strength, scalars=True):
            if x.ndim < 2:
                raise ValueError(
                    f"`{path}` has the shape {x.shape}, and is no matrix. Give it the strength "
                    "`None` to leave it out"
                )
            yield i, _wide(x), own
