"""The limited-memory BFGS method."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PyTree

from .._base.arithmetic import cast
from .._base.checks import typed
from .._base.converters import flag, float_dtype, non_negative, size, to_dtype
from .._base.trees import (
    fill_missing,
    increment,
    inner,
    mask_like,
    round_like,
    select,
    stack_like,
    zero_count,
    zeros_like,
)
from .._base.types import Count, Params, Scalar, Updates
from .._objective.objective import Context, require_params
from .._transformation.base import AbstractTransformation
from ._base import (
    AbstractInitialMatrix,
    AbstractSecant,
    DiagonalMatrix,
    first_scale,
    IdentityMatrix,
    ModifiedSecant,
    safeguarded,
    scaled,
    secant_pair,
    value_of,
)


@typed
class ScaleByLBFGSState(eqx.Module):
    """The state of [`eqopt.ScaleByLBFGS`][] and of [`eqopt.quasi_newton.ScaleByLBFGSB`][].

    **Arguments:**

    - `count`: the number of steps since the last reset.
    - `num_pairs`: the number of pairs stored since then.
    - `params`, `updates`, `value`: the parameters, the gradient and the objective's value at the
        last step.
    - `diff_params_memory`, `diff_updates_memory`: the last differences of the parameters and of the
        gradients, with one more leading axis; ring buffers.
    - `weights_memory`: the reciprocals of their inner products; 0 for missing pairs.
    - `init_matrix`: the state of the initial matrix.
    """

    count: Count
    num_pairs: Count
    params: PyTree
    updates: PyTree
    value: Float[Array, ""]
    diff_params_memory: PyTree
    diff_updates_memory: PyTree
    weights_memory: Float[Array, " memory"]
    init_matrix: Any


class ScaleByLBFGS(AbstractTransformation[ScaleByLBFGSState]):
    r"""Multiplies the gradient by an estimate of the inverse Hessian matrix from the last steps.

    With $s_k$ and $y_k$ the differences of the last parameters and gradients, the updates are
    $H_k g_k$, where

    $$H_{k+1} = (I - \rho_k s_k y_k^T) H_k (I - \rho_k y_k s_k^T) + \rho_k s_k s_k^T, \qquad
        \rho_k = \frac{1}{y_k^T s_k}$$

    is applied without being formed, starting from `init_matrix`, $m$ steps ago.

    A step whose curvature $s^T y$ is not positive, up to rounding, is not remembered, so the
    negative of the updates always points downhill. If it would not, or if the parameters have not
    moved since the last step (a line search failed), the memory is cleared. While the memory is
    empty, the updates are the gradient, scaled to the length $\max(1, r |\theta|)$.

    **Arguments:**

    - `memory_size`: the number $m$ of steps remembered; at least 1.
    - `scale_init_precond`: whether the first updates are scaled as above, and `init_matrix` is
        used; otherwise the estimate starts from the identity.
    - `first_step_rtol`: their length $r$ relative to that of the parameters; at least 0. With 0,
        as in optax, a gradient shorter than 1 keeps its length.
    - `init_matrix`: the matrix that the estimate starts from:
        [`eqopt.quasi_newton.DiagonalMatrix`][] or [`eqopt.quasi_newton.ScalarMatrix`][].
    - `secant`: which change of the gradient is used: [`eqopt.quasi_newton.ModifiedSecant`][], which
        uses the objective's `value` if `update` is given it, or
        [`eqopt.quasi_newton.PlainSecant`][].
    - `memory_dtype`: the dtype of the memory; `None` is the parameter's, and float32 for half
        precision.

    The state holds $2m + 3$ copies of the parameters (one less with a scalar matrix). `optax`'s
    transformation is `ScaleByLBFGS(first_step_rtol=0, init_matrix=ScalarMatrix(),
    secant=PlainSecant())`, except that it remembers steps of negative curvature.

    ??? cite "Reference"

        Nocedal, *Updating quasi-Newton matrices with limited storage*, Mathematics of Computation
        35, 1980; Nocedal and Wright, *Numerical Optimization*, 2nd edition, 2006, algorithm 7.4.
    """

    memory_size: int = eqx.field(converter=size("memory_size"), static=True, default=10)
    scale_init_precond: bool = eqx.field(
        converter=flag("scale_init_precond"), static=True, default=True
    )
    first_step_rtol: Scalar = eqx.field(
        converter=non_negative("first_step_rtol"), default=0.01, kw_only=True
    )
    init_matrix: AbstractInitialMatrix[Any] = eqx.field(
        default_factory=DiagonalMatrix, kw_only=True
    )
    secant: AbstractSecant = eqx.field(default_factory=ModifiedSecant, kw_only=True)
    memory_dtype: np.dtype | None = eqx.field(
        converter=to_dtype("memory_dtype"), static=True, default=None, kw_only=True
    )

    def init_state(self, params: Params, context: Context) -> ScaleByLBFGSState:
        m, dtype = self.memory_size, self.memory_dtype
        return ScaleByLBFGSState(
            count=zero_count(),
            num_pairs=zero_count(),
            params=zeros_like(params),
            updates=zeros_like(params),
            value=jnp.full((), np.inf, float_dtype()),
            diff_params_memory=stack_like(params, m, dtype),
            diff_updates_memory=stack_like(params, m, dtype),
            weights_memory=jnp.zeros(m, float_dtype()),
            init_matrix=self._matrix().init(params),
        )

    def transform(
        self, updates: Updates, state: ScaleByLBFGSState, params: Params | None, context: Context
    ) -> tuple[Updates, ScaleByLBFGSState]:
        params = require_params(params, self, context)
        # Missing gradients are zeros here: the memory has a place for every parameter.
        grad = fill_missing(updates, zeros_like(params))
        state = self.remember(fill_missing(updates, state.updates), state, params, context)
        direction, used = safeguarded(
            grad,
            self.multiply(grad, state),
            first_scale(grad, params, self.first_step_rtol, self.scale_init_precond),
            state.num_pairs > 0,
        )
        return mask_like(updates, direction), forget(state, ~used)

    def _matrix(self) -> AbstractInitialMatrix[Any]:
        return self.init_matrix if self.scale_init_precond else IdentityMatrix()

    def remember(
        self, grad: PyTree, state: ScaleByLBFGSState, params: PyTree, context: Context
    ) -> ScaleByLBFGSState:
        """The state after storing the last step."""
        value, eps = value_of(context)
        pair, good = secant_pair(
            self.secant, (state.params, params), (state.updates, grad), (state.value, value), eps
        )
        stored = (state.count > 0) & good
        place = lax.rem(state.num_pairs, np.int32(self.memory_size))

        def put(memory: Array, x: Array) -> Array:
            old = lax.dynamic_index_in_dim(memory, place, keepdims=False)
            new = jnp.where(stored, cast(x, memory.dtype), old)
            return lax.dynamic_update_index_in_dim(memory, new, place, 0)

        matrix = self._matrix().update(state.init_matrix, pair, state.num_pairs == 0)
        stuck = (state.count > 0) & (pair.ss == 0)
        state = ScaleByLBFGSState(
            count=increment(state.count),
            num_pairs=jnp.where(stored, increment(state.num_pairs), state.num_pairs),
            params=round_like(params, state.params),
            updates=round_like(grad, state.updates),
            value=value,
            diff_params_memory=jax.tree.map(put, state.diff_params_memory, pair.s),
            diff_updates_memory=jax.tree.map(put, state.diff_updates_memory, pair.y),
            weights_memory=put(state.weights_memory, 1 / jnp.where(stored, pair.sy, 1)),
            init_matrix=select(stored, matrix, state.init_matrix),
        )
        return forget(state, stuck)

    def multiply(self, grad: PyTree, state: ScaleByLBFGSState) -> PyTree:
        """The estimate times the gradient, by two loops over the memory."""
        m = self.memory_size
        newest = state.num_pairs - 1

        def pair(j: Array) -> tuple[Array, PyTree, PyTree, Array]:
            i = jnp.mod(newest - jnp.asarray(j, np.int32), m)

            def row(memory: Array) -> Array:
                return lax.dynamic_index_in_dim(memory, i, keepdims=False)

            s = jax.tree.map(row, state.diff_params_memory)
            y = jax.tree.map(row, state.diff_updates_memory)
            return i, s, y, row(state.weights_memory)

        def backward(j: Array, carry: tuple[PyTree, Array]) -> tuple[PyTree, Array]:
            q, alphas = carry
            i, s, y, rho = pair(j)
            alpha = rho * inner(s, q)
            q = jax.tree.map(lambda q, y: q - scaled(y, alpha, q), q, y)
            # Not an update in place, which requires both arrays to have the same mesh.
            return q, jnp.where(jnp.arange(m, dtype=np.int32) == i, alpha, alphas)

        def forward(j: Array, carry: tuple[PyTree, Array]) -> tuple[PyTree, Array]:
            r, alphas = carry
            i, s, y, rho = pair(m - 1 - j)
            weight = alphas[i] - rho * inner(y, r)
            weight = jnp.where(rho == 0, 0, weight)
            return jax.tree.map(lambda r, s: r + scaled(s, weight, r), r, s), alphas

        carry = grad, jnp.zeros_like(state.weights_memory)
        q, alphas = lax.fori_loop(0, m, backward, carry)
        r = self._matrix().apply(state.init_matrix, q)
        r, _ = lax.fori_loop(0, m, forward, (r, alphas))
        return r


def forget(state: ScaleByLBFGSState, condition: Array) -> ScaleByLBFGSState:
    """The state without its memory, if `condition`."""
    zero = zero_count()
    return eqx.tree_at(
        lambda s: (s.num_pairs, s.weights_memory),
        state,
        (
            jnp.where(condition, zero, state.num_pairs),
            jnp.where(condition, 0, state.weights_memory),
        ),
    )
