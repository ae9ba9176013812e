"""CAME: factored second moments, and less of an average update where it is uncertain."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, PyTree

from .._base import blocks, checks
from .._base.arithmetic import abs_sq, divide, ema, minus, plus, safe_sqrt, within
from .._base.converters import decay_factor, positive, to_dtype
from .._base.trees import one_minus, zeros_like
from .._base.types import Params, Scalar
from .._objective.objective import Context
from .._transformation.base import (
    AbstractLeafwise,
)
from .._transformation.leafwise import Rule

_Shape = tuple[int, ...]


def _shapes(shape: _Shape) -> tuple[_Shape | None, ...]:
    """The shapes of `mu`, `v_row`, `v_col`, `v`, `r_row` and `r_col`."""
    if len(shape) < 2:
        return shape, None, None, shape, None, None
    row, col = shape[:-1], (*shape[:-2], shape[-1])
    return shape, row, col, None, row, col


def _mean(x: Array, axis: int) -> Array:
    # Not `jnp.mean`, which is NaN without entries.
    return jnp.sum(x, axis) / max(x.shape[axis], 1)


def _factored(
    x: Array, square: Array, row: Array, col: Array, rest: Float[Array, ""]
) -> tuple[Array, Array, Array]:
    """Divides by the root of an average of squares that is kept as means of rows and columns."""
    row = ema(rest, row, _mean(square, -1))
    col = ema(rest, col, _mean(square, -2))
    # The roots are divided, and not the squares, whose own square underflows in the derivative.
    across = safe_sqrt(row) / safe_sqrt(_mean(row, -1)[..., None])
    out = divide(x, blocks.spread(across[..., None], x))
    return divide(out, blocks.spread(safe_sqrt(col)[..., None, :], x)), row, col


@checks.typed
def _came(
    update: Inexact[Array, "*shape"],
    mu: Inexact[Array, "*shape"],
    v_row: Float[Array, "..."] | None,
    v_col: Float[Array, "..."] | None,
    v: Float[Array, "*shape"] | None,
    r_row: Float[Array, "..."] | None,
    r_col: Float[Array, "..."] | None,
    rest1: Float[Array, ""],
    rest2: Float[Array, ""],
    rest3: Float[Array, ""],
    threshold: Float[Array, ""],
    eps: Float[Array, ""],
    eps_confidence: Float[Array, ""],
) -> tuple[
    Inexact[Array, "*shape"],
    Inexact[Array, "*shape"],
    Float[Array, "..."] | None,
    Float[Array, "..."] | None,
    Float[Array, "*shape"] | None,
    Float[Array, "..."] | None,
    Float[Array, "..."] | None,
]:
    square = plus(abs_sq(update), eps)
    if v_row is not None and v_col is not None:
        direction, v_row, v_col = _factored(update, square, v_row, v_col, rest2)
    else:
        assert v is not None  # the shapes have been checked
        v = ema(rest2, v, square)
        direction = divide(update, safe_sqrt(v))
    root = float(blocks.num_entries(2, update)) ** 0.5
    factor = within(blocks.norms(2, direction) / root, threshold)
    limited = blocks.multiplied(factor, direction)
    direction = blocks.selected(factor > 0, limited, jnp.zeros_like(limited))
    mu = ema(rest1, mu, direction)
    if r_row is None or r_col is None:
        return mu, mu, v_row, v_col, v, None, None
    residual = plus(abs_sq(minus(direction, mu)), eps_confidence)
    confident, r_row, r_col = _factored(mu, residual, r_row, r_col, rest3)
    return confident, mu, v_row, v_col, v, r_row, r_col


@checks.typed
class ScaleByCAMEState(eqx.Module):
    """The state of [`eqopt.control.ScaleByCAME`][].

    **Arguments:**

    - `mu`: the average of the normalized gradients, like the parameters.
    - `v_row`, `v_col`: the averages of the squares' means over the last axis, and over the one
        before it; `None` for vectors.
    - `v`: the average of the squares for vectors; `None` for the others.
    - `r_row`, `r_col`: the same as `v_row` and `v_col`, of the distance from the average.

    All but `mu` are real, and at least float32.
    """

    mu: PyTree
    v_row: PyTree
    v_col: PyTree
    v: PyTree
    r_row: PyTree
    r_col: PyTree


class ScaleByCAME(AbstractLeafwise[ScaleByCAMEState]):
    r"""Averages gradients that are normalized as by Adafactor, and divides by how far they are from
    their average.

    For each matrix, with $F_\beta(x_t)$ the average of $x_t$ with the decay $\beta$, stored as
    means $r$ of rows and $c$ of columns and read as $r c^T / \bar r$,

    $$\begin{aligned}
    w_t &= g_t \big/ \sqrt{F_{\beta_2}(|g_t|^2 + \epsilon)}, \qquad
    w_t \leftarrow w_t \min\left(1, d \sqrt{n} / \|w_t\|\right), \\
    m_t &= \beta_1 m_{t-1} + (1 - \beta_1) w_t, \\
    u_t &= m_t \big/ \sqrt{F_{\beta_3}(|w_t - m_t|^2 + \bar\epsilon)}.
    \end{aligned}$$

    No average is debiased. For vectors, $w_t = g_t / \sqrt{v_t}$ with the whole average $v_t$, and
    $u_t = m_t$. Leading axes of a leaf are a stack of matrices.

    **Arguments:**

    - `b1`: the decay $\beta_1$ of the average normalized gradient, in $[0, 1)$.
    - `b2`: the decay $\beta_2$ of the average square, in $[0, 1)$.
    - `b3`: the decay $\beta_3$ of the average distance, in $[0, 1)$.
    - `clipping_threshold`: the largest root mean square of a matrix before it is averaged, $d > 0$.
    - `eps`: added to the squares, $\epsilon > 0$.
    - `eps_confidence`: added to the squared distances, $\bar\epsilon > 0$.
    - `mu_dtype`: the dtype of the average $m$; `None` is the parameter's, and float32 for half
        precision.

    !!! note
        [`eqopt.ScaleByFactoredRMS`][] takes the two largest axes; here it is the last two, as in
        the authors' code and in pytorch-optimizer, whose limit on the root mean square is for a
        whole leaf.

    ??? cite "Reference"
        Luo et al., *CAME: Confidence-guided Adaptive Memory Efficient Optimization*, ACL 2023,
        algorithm 2 (arXiv 2307.02047).
    """

    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.999)
    b3: Scalar = eqx.field(converter=decay_factor("b3"), default=0.9999)
    clipping_threshold: Scalar = eqx.field(converter=positive("clipping_threshold"), default=1.0)
    eps: Scalar = eqx.field(converter=positive("eps"), default=1e-30)
    eps_confidence: Scalar = eqx.field(converter=positive("eps_confidence"), default=1e-16)
    mu_dtype: np.dtype | None = eqx.field(converter=to_dtype("mu_dtype"), static=True, default=None)

    def init_state(self, params: Params, context: Context) -> ScaleByCAMEState:
        def without(axis: int) -> PyTree:
            # Computed like a sum, so that it is placed like the parameter's remaining axes.
            return jax.tree.map(
                lambda x: None if x.ndim < 2 else zeros_like(jnp.sum(x, axis), real=True), params
            )

        return ScaleByCAMEState(
            mu=zeros_like(params, self.mu_dtype),
            v_row=without(-1),
            v_col=without(-2),
            v=jax.tree.map(lambda x: zeros_like(x, real=True) if x.ndim < 2 else None, params),
            r_row=without(-1),
            r_col=without(-2),
        )

    def rule(self, state: ScaleByCAMEState, params: Params | None, context: Context) -> Rule:
        return Rule(
            _came,
            state,
            trees=("mu", "v_row", "v_col", "v", "r_row", "r_col"),
            scalars=(
                one_minus(self.b1),
                one_minus(self.b2),
                one_minus(self.b3),
                self.clipping_threshold,
                self.eps,
                self.eps_confidence,
            ),
            shapes=_shapes,
        )
