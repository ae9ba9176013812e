"""Limits on the size of the updates, relative to that of the parameters."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from .._base import checks
from .._base.arithmetic import norm, times, within
from .._base.converters import non_negative
from .._base.types import Params, Scalar
from .._objective.objective import Context, require_params
from .._transformation.base import AbstractLeafwise, EmptyState
from .._transformation.leafwise import Rule

_Axis = int | tuple[int, ...]


def _axis(value: Any) -> _Axis | None:
    axes = value if isinstance(value, tuple | list) else () if value is None else (value,)
    if any(isinstance(x, bool) or not isinstance(x, int) for x in axes):
        raise TypeError(f"`axis` must be an int, several ints, or None; got {value!r}")
    return tuple(value) if isinstance(value, list) else value


def _axes(axis: _Axis | None, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The axes that a unit goes along, or `None` if that cannot be said."""
    ndim = len(shape)
    if axis is not None:
        axes = axis if isinstance(axis, tuple) else (axis,)
        inside = all(-ndim <= x < ndim for x in axes)
        distinct = {x % max(ndim, 1) for x in axes}
        return tuple(sorted(distinct)) if inside and len(distinct) == len(axes) else None
    if sum(n != 1 for n in shape) <= 1:
        return tuple(range(ndim))
    return {2: (0,), 3: (0,), 4: (0, 1, 2), 5: (0, 1, 2, 3)}.get(ndim)


def _check_axes(axis: _Axis | None, params: Params) -> None:
    leaves, _ = checks.flatten(params)
    wrong = [i for i, x in enumerate(leaves) if x is not None and _axes(axis, x.shape) is None]
    if wrong:
        names = checks.paths("params", params)
        asked = "`axis` must say along which axes" if axis is None else f"`axis` is {axis}"
        raise ValueError(
            checks.listed([f"`{names[i]}` has shape {leaves[i].shape}; {asked}" for i in wrong])
        )


def _norms(x: Inexact[Array, "*shape"], axis: _Axis | None) -> Float[Array, "..."]:
    return norm(x, _axes(axis, x.shape), keepdims=True)


@checks.typed
def _clip_units(
    axis: _Axis | None,
    update: Inexact[Array, "*shape"],
    param: Inexact[Array, "*shape"],
    clipping: Float[Array, ""],
    eps: Float[Array, ""],
) -> Inexact[Array, "*shape"]:
    sizes = _norms(update, axis)
    limits = clipping * jnp.maximum(_norms(param, axis), eps)
    # Selected, because `0 * inf` is NaN.
    factors = jnp.broadcast_to(within(sizes, limits), update.shape)
    return jnp.where(factors > 0, times(factors, update), 0)


class AdaptiveGradClip(AbstractLeafwise[EmptyState]):
    r"""Shrinks the updates of each unit if their norm exceeds a fraction of that of its parameters:
    $u \leftarrow u \min(1, \lambda \max(\|\theta\|, \epsilon) / \|u\|)$.

    A unit is a slice of a leaf along `axis`, often all that feeds one unit of a layer's output. Its
    norms are taken in float32 at least. Updates of a unit whose norm is not finite become zero.

    **Arguments:**

    - `clipping`: the fraction $\lambda \ge 0$.
    - `eps`: $\epsilon \ge 0$, the least norm of parameters that counts, so that those that are zero
        can move.
    - `axis`: the axis or the axes that a unit goes along, the same for every leaf. `None` goes by
        the number of axes: of two or three, along the first; of four or five, along all but the
        last; a leaf that is a vector, but for axes of size 1, is one unit.

    !!! note
        `None` is as in optax, for layers whose last axis is the output. The first axis of Equinox's
        layers is: `axis=1` is right for `eqx.nn.Linear`, and `axis=(1, 2, 3)` for `eqx.nn.Conv2d`,
        each in an [`eqopt.Masked`][].

    Raises a `ValueError` if `update` is given no parameters, and one that names the leaf if it
    lacks an axis, or has more than five and `axis` is `None`.

    ??? cite "Reference"
        Brock, De, Smith and Simonyan, *High-Performance Large-Scale Image Recognition Without
        Normalization*, ICML 2021, equation 3 (arXiv 2102.06171).
    """

    clipping: Scalar = eqx.field(converter=non_negative("clipping"))
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-3)
    axis: _Axis | None = eqx.field(converter=_axis, static=True, default=None)

    def init_state(self, params: Params, context: Context) -> EmptyState:
        _check_axes(self.axis, params)
        return EmptyState()

    def rule(self, state: EmptyState, params: Params | None, context: Context) -> Rule:
        _check_axes(self.axis, require_params(params, self, context))
        scalars, options = (self.clipping, self.eps), (self.axis,)
        return Rule(_clip_units, state, scalars=scalars, needs_params=True, options=options)
