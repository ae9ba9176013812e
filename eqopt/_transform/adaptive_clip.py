"""Limits on the size of the updates, relative to the size of the parameters."""

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
    """The axes along which a unit extends, or `None` if they are unknown."""
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

    A unit is a slice of a leaf along `axis`, often all weights of one unit of a layer's output.
    Norms are taken in float32 at least. If the norm of a unit's updates is not finite, they become
    zero.

    **Arguments:**

    - `clipping`: the fraction $\lambda \ge 0$.
    - `eps`: $\epsilon \ge 0$, the smallest norm of parameters that is used, so that zero parameters
        can move.
    - `axis`: the axis or the axes along which a unit extends, the same for every leaf. `None`
        decides by the number of axes: with two or three, the first axis; with four or five, all
        except the last; a vector, also with more axes of size 1, is one unit.

    !!! note
        `None` is optax's rule, for layers whose last axis is the output. In Equinox's layers the
        output is the first axis: use `axis=1` for `eqx.nn.Linear`, and `axis=(1, 2, 3)` for
        `eqx.nn.Conv2d`, each in an [`eqopt.Masked`][].

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
