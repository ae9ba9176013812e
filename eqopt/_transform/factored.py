"""Adafactor's rescaling by second moments that are kept as sums of rows and columns."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Inexact, PyTree

from .._base import checks
from .._base.arithmetic import abs_sq, divide, ema, is_complex, plus, safe_sqrt
from .._base.converters import flag, non_negative, positive, size, steps
from .._base.trees import increment, one_minus, zero_count, zeros_like
from .._base.types import Count, Params, Scalar, Steps
from .._objective.objective import Context
from .._transformation.base import AbstractLeafwise
from .._transformation.leafwise import Rule

_Shape = tuple[int, ...]


@checks.typed
def decay_rate_pow(step: Count, decay_rate: Float[Array, ""]) -> Float[Array, ""]:
    r"""The decay of the second moment in the Adafactor paper, $1 - (t + 1)^{-d}$.

    It begins at 0, so no bias correction is needed.

    **Arguments:**

    - `step`: the number of steps $t$ taken before this one.
    - `decay_rate`: the exponent $d$.
    """
    t = lax.add(step.astype(decay_rate.dtype), jnp.ones((), decay_rate.dtype))
    return 1 - lax.pow(t, -decay_rate)


def _decay_rate_fn(value: object) -> Callable[..., Array]:
    if not callable(value):
        raise TypeError(
            "`decay_rate_fn` must be a function, such as `eqopt.options.decay_rate_pow`; got "
            f"{checks.describe(value)}"
        )
    function: Any = value
    return function


def _axes(factored: bool, min_size: int, shape: _Shape) -> tuple[int, int] | None:
    """The axes with the second largest and the largest size; the last ones among equal sizes."""
    if not factored or len(shape) < 2:
        return None
    d1, d0 = sorted(range(len(shape)), key=lambda axis: shape[axis])[-2:]
    return None if shape[d1] < min_size else (d1, d0)


def _shapes(factored: bool, min_size: int, shape: _Shape) -> tuple[_Shape | None, ...]:
    """The shapes of `v_row`, `v_col` and `v`."""
    axes = _axes(factored, min_size, shape)
    if axes is None:
        return None, None, shape
    d1, d0 = axes
    return shape[:d0] + shape[d0 + 1 :], shape[:d1] + shape[d1 + 1 :], None


def _over(x: Array, y: Float[Array, "..."], axis: int) -> Array:
    """Divides by an array that lacks one axis of `x`."""
    y = jnp.expand_dims(y, axis)
    return lax.complex(x.real / y, x.imag / y) if is_complex(x) else x / y


@checks.typed
def _factored_rms(
    factored: bool,
    min_size: int,
    update: Inexact[Array, "*shape"],
    v_row: Float[Array, "..."] | None,
    v_col: Float[Array, "..."] | None,
    v: Float[Array, "*shape"] | None,
    rest: Float[Array, ""],
    epsilon: Float[Array, ""],
) -> tuple[
    Inexact[Array, "*shape"],
    Float[Array, "..."] | None,
    Float[Array, "..."] | None,
    Float[Array, "*shape"] | None,
]:
    square = plus(abs_sq(update), epsilon)
    axes = _axes(factored, min_size, update.shape)
    if axes is None or v_row is None or v_col is None:
        assert v is not None  # the shapes have been checked
        v = ema(rest, v, square)
        return divide(update, safe_sqrt(v)), None, None, v
    d1, d0 = axes
    v_row = ema(rest, v_row, jnp.mean(square, axis=d0))
    v_col = ema(rest, v_col, jnp.mean(square, axis=d1))
    mean = jnp.mean(v_row, axis=d1 - (d1 > d0), keepdims=True)
    # The roots are divided, and not the squares: the derivative of a quotient contains the
    # denominator's square, and the square of 1e-30 underflows in float32.
    row = safe_sqrt(v_row) / safe_sqrt(mean)
    return _over(_over(update, row, d0), safe_sqrt(v_col), d1), v_row, v_col, None


@checks.typed
class ScaleByFactoredRMSState(eqx.Module):
    """The state of [`eqopt.ScaleByFactoredRMS`][].

    **Arguments:**

    - `count`: the number of steps taken, int32 of shape `()`.
    - `v_row`: the average of the squares' means over the largest axis, without that axis; `None`
        for parameters that are not factored.
    - `v_col`: the same for the second largest axis.
    - `v`: the average of the squares for parameters that are not factored; `None` for the others.

    All are real, and at least float32.
    """

    count: Count
    v_row: PyTree
    v_col: PyTree
    v: PyTree


class ScaleByFactoredRMS(AbstractLeafwise[ScaleByFactoredRMSState]):
    r"""Divides the updates by the root of an average of their squares, stored as means of rows and
    columns.

    For a matrix, with means over the axes that the bars leave out,

    $$\begin{aligned}
    r_t &= \beta_t r_{t-1} + (1 - \beta_t)\, \overline{(|g_t|^2 + \epsilon)}_{i\cdot}, \qquad
    c_t = \beta_t c_{t-1} + (1 - \beta_t)\, \overline{(|g_t|^2 + \epsilon)}_{\cdot j}, \\
    u_t &= g_t \big/ \sqrt{r_t c_t^T / \bar r_t}, \qquad \beta_t = 1 - (t + 1 - t_0)^{-d},
    \end{aligned}$$

    where $t$ counts from 0. With more axes, the two largest axes form the matrix. A parameter
    without two axes of size `min_dim_size_to_factor` keeps its whole average: $v_t = \beta_t
    v_{t-1} + (1 - \beta_t)(|g_t|^2 + \epsilon)$ and $u_t = g_t / \sqrt{v_t}$.

    A gradient of zero gives an update of zero.

    **Arguments:**

    - `factored`: whether to factor at all.
    - `decay_rate`: the exponent of the average's decay, $d \ge 0$.
    - `step_offset`: the number $t_0$ of steps after which the decay starts again, for fine-tuning
        with a state that has counted these steps. Until then, $\beta_t = 0$. If it is negative, the
        decay starts as if $-t_0$ steps had been taken.
    - `min_dim_size_to_factor`: a parameter is factored if its second largest axis has at least this
        size; at least 1.
    - `epsilon`: $\epsilon > 0$, added to the squares.
    - `decay_rate_fn`: gives $\beta_t$, in $[0, 1)$: a function
        `decay_rate_fn(step, decay_rate)` of $t - t_0$ and $d$; by default
        [`eqopt.options.decay_rate_pow`][]. It is static.

    !!! note
        While the count is less than `step_offset`, optax's updates are NaN, and so is its memory
        from then on.

    ??? cite "Reference"
        Shazeer and Stern, *Adafactor: Adaptive Learning Rates with Sublinear Memory Cost*, ICML
        2018, algorithm 4 (arXiv 1804.04235); Zhai, Kolesnikov, Houlsby and Beyer, *Scaling Vision
        Transformers*, CVPR 2022, section 3.4, for a bounded decay (arXiv 2106.04560).
    """

    factored: bool = eqx.field(converter=flag("factored"), static=True, default=True)
    decay_rate: Scalar = eqx.field(converter=non_negative("decay_rate"), default=0.8)
    step_offset: Steps = eqx.field(converter=steps("step_offset", at_least=None), default=0)
    min_dim_size_to_factor: int = eqx.field(
        converter=size("min_dim_size_to_factor"), static=True, default=128
    )
    epsilon: Scalar = eqx.field(converter=positive("epsilon"), default=1e-30)
    decay_rate_fn: Callable[[Array, Array], Array] = eqx.field(
        converter=_decay_rate_fn, static=True, default=decay_rate_pow
    )

    def init_state(self, params: Params, context: Context) -> ScaleByFactoredRMSState:
        def without(which: int) -> PyTree:
            def zeros(x: Array) -> Array | None:
                axes = _axes(self.factored, self.min_dim_size_to_factor, x.shape)
                # Computed like a sum, so that it is placed like the parameter's remaining axes.
                return None if axes is None else zeros_like(jnp.sum(x, axes[which]), real=True)

            return jax.tree.map(zeros, params)

        def whole(x: Array) -> Array | None:
            axes = _axes(self.factored, self.min_dim_size_to_factor, x.shape)
            return zeros_like(x, real=True) if axes is None else None

        return ScaleByFactoredRMSState(
            zero_count(), without(1), without(0), jax.tree.map(whole, params)
        )

    def rule(self, state: ScaleByFactoredRMSState, params: Params | None, context: Context) -> Rule:
        offset = jnp.asarray(self.step_offset)
        # The count is limited first, so that the difference saturates and does not overflow.
        most = np.iinfo(np.int32).max + jnp.minimum(offset, 0)
        step = jnp.minimum(state.count, most) - jnp.minimum(offset, state.count)
        decay = self.decay_rate_fn(step, jnp.asarray(self.decay_rate))
        options = (self.factored, self.min_dim_size_to_factor)
        return Rule(
            _factored_rms,
            ScaleByFactoredRMSState(increment(state.count), state.v_row, state.v_col, state.v),
            trees=("v_row", "v_col", "v"),
            scalars=(one_minus(decay), self.epsilon),
            options=options,
            shapes=functools.partial(_shapes, *options),
        )
