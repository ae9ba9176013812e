"""Values scaled at given counts, at once or gradually."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import wadler_lindig as wl
from jaxtyping import Array, Float, Int

from .._base.checks import is_plain_function
from .._base.compat import Tracer
from .._base.converters import float_dtype, real, steps
from .._base.types import Function, Scalar, ScalarLike
from .base import (
    AbstractSchedule,
    as_real,
    as_steps,
    cosine_interpolation,
    interpolate,
    linear_interpolation,
    num_passed,
)


class Pieces(eqx.Module):
    """Boundaries in increasing order, and the scales that apply from each of them on."""

    boundaries: Int[Array | np.ndarray, " n"]
    scales: Float[Array | np.ndarray, " n"]

    def levels(self, init_value: Scalar) -> Float[Array, " n+1"]:
        """The values between the boundaries: `init_value` under one scale after another."""
        factors = jnp.concatenate([as_real(init_value)[None], as_real(self.scales)])
        return jnp.cumprod(factors)

    def __pdoc__(self, **kwargs: Any) -> wl.AbstractDoc:
        # As the user wrote it: `{100: 0.1, 200: 0.1}`. Not if it is traced or mapped.
        traced = any(isinstance(x, Tracer) for x in (self.boundaries, self.scales))
        if traced or self.boundaries.ndim != 1:
            return wl.TextDoc("{...}")
        pairs = zip(np.asarray(self.boundaries), np.asarray(self.scales), strict=True)
        return wl.bracketed(
            begin=wl.TextDoc("{"),
            docs=[wl.TextDoc(f"{boundary}: {scale!s}") for boundary, scale in pairs],
            sep=wl.comma,
            end=wl.TextDoc("}"),
            indent=kwargs["indent"],
        )


PiecesLike: TypeAlias = Mapping[int, ScalarLike] | Pieces | None


def _pieces(value: PiecesLike) -> Pieces:
    name = "boundaries_and_scales"
    if isinstance(value, Pieces):
        return value
    if not isinstance(value, Mapping | None):
        raise TypeError(f"`{name}` must be a dict of {{boundary: scale}}; got {value!r}")
    pairs = sorted((value or {}).items())
    boundaries = [steps(f"{name}: {boundary}")(boundary) for boundary, _ in pairs]
    scales = [real(f"{name}[{boundary}]", at_least=0)(scale) for boundary, scale in pairs]
    traced = any(isinstance(scale, Tracer) for scale in scales)
    return Pieces(
        np.array(boundaries, np.int32),
        jnp.stack([as_real(x) for x in scales]) if traced else np.array(scales, float_dtype()),
    )


def _curve(value: Function | str) -> Function:
    # The two words are optax's.
    known = {"linear": linear_interpolation, "cosine": cosine_interpolation}
    if isinstance(value, str) and value in known:
        return known[value]
    if is_plain_function(value):
        return value
    raise ValueError(
        "`interpolate_type` must be `eqopt.options.linear_interpolation`, "
        "`eqopt.options.cosine_interpolation` or another function from a fraction to a fraction; "
        f"got {value!r}"
    )


class PiecewiseConstant(AbstractSchedule):
    r"""Scales the value at given counts, and holds it in between.

    $$\eta_t = I \prod_{i:\; t \geq b_i} s_i$$

    The scales accumulate, and each takes effect at its boundary, not after it.

    **Arguments:**

    - `init_value`: the value $I$ before the first boundary.
    - `boundaries_and_scales`: a dict `{boundary: scale}` of the counts $b_i$ and the factors $s_i$,
        all at least 0. It is stored as two arrays of shape `(n,)`, which are leaves: only the
        number of boundaries is static. Without boundaries the value is constant.

    **Raises:** a `ValueError` where a boundary or a scale is negative.
    """

    init_value: Scalar = eqx.field(converter=real("init_value"))
    boundaries_and_scales: Pieces = eqx.field(converter=_pieces, default=None)

    def at(self, count: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
        pieces = self.boundaries_and_scales
        index = num_passed(count, as_steps(pieces.boundaries))
        return pieces.levels(self.init_value)[index]


class PiecewiseInterpolate(AbstractSchedule):
    r"""Goes gradually from value to value, each reached at a given count.

    With $v_i = I s_1 \cdots s_i$, which is reached at $b_i$, $b_0 = 0$ and $v_0 = I$,

    $$\eta_t = v_i + (v_{i+1} - v_i) \, f\!\left(\frac{t - b_i}{b_{i+1} - b_i}\right),
    \qquad b_i \leq t < b_{i+1}$$

    and the last $v_n$ from $b_n$ on. The scales accumulate; values are interpolated, not scales.

    **Arguments:**

    - `interpolate_type`: the function $f$, elementwise, from fractions of the way in $[0, 1]$ to
        fractions, with $f(0) = 0$ and $f(1) = 1$: `eqopt.options.linear_interpolation`,
        `eqopt.options.cosine_interpolation`, or your own. optax's words `"linear"` and `"cosine"`
        are accepted for these two. It is static: a new function object is compiled again.
    - `init_value`: the value $I$ at the first step.
    - `boundaries_and_scales`: a dict `{boundary: scale}` of the counts $b_i$ and the factors $s_i$,
        all at least 0. It is stored as two arrays of shape `(n,)`, which are leaves: only the
        number of boundaries is static. Without boundaries the value is constant.

    **Raises:** a `ValueError` where a boundary or a scale is negative, or the interpolation is
    unknown.
    """

    interpolate_type: Function = eqx.field(static=True, converter=_curve)
    init_value: Scalar = eqx.field(converter=real("init_value"))
    boundaries_and_scales: Pieces = eqx.field(converter=_pieces, default=None)

    def at(self, count: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
        pieces = self.boundaries_and_scales
        boundaries, levels = as_steps(pieces.boundaries), pieces.levels(self.init_value)
        return interpolate(count, boundaries, levels, self.interpolate_type)
