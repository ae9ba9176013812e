"""The BFGS method with a dense matrix, for small problems."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PyTree

from .._base.arithmetic import is_complex
from .._base.checks import typed
from .._base.converters import flag, float_dtype, real
from .._base.trees import (
    fill_missing,
    increment,
    mask_like,
    placed_like,
    replicated,
    round_like,
    zero_count,
    zeros_like,
)
from .._base.types import Count, Params, Scalar, Updates
from .._objective.objective import Context, require_params
from .._transformation.base import AbstractTransformation
from ._base import (
    AbstractSecant,
    first_scale,
    ModifiedSecant,
    Pair,
    safeguarded,
    secant_pair,
    value_of,
)


@typed
class ScaleByBFGSState(eqx.Module):
    """The state of [`eqopt.quasi_newton.ScaleByBFGS`][].

    **Arguments:**

    - `count`: how many steps there were.
    - `num_pairs`: how many of them the matrix has learned from since it was last forgotten.
    - `params`, `updates`, `value`: the parameters, the gradient and the objective's value at the
        last step.
    - `inverse_hessian`: the estimate, over all real numbers in the parameters in order.
    """

    count: Count
    num_pairs: Count
    params: PyTree
    updates: PyTree
    value: Float[Array, ""]
    inverse_hessian: Float[Array, "n n"]


class ScaleByBFGS(AbstractTransformation[ScaleByBFGSState]):
    r"""Multiplies the gradient by an estimate of the inverse Hessian matrix from all steps.

    With $s$ and $y$ the differences of the parameters and gradients, the updates are $H g$, where

    $$H_+ = (I - \rho s y^T) H (I - \rho y s^T) + \rho s s^T, \qquad \rho = \frac{1}{y^T s}$$

    The first matrix is $\frac{s^T y}{y^T y} I$. Steps without curvature are skipped, and the matrix
    is forgotten where its direction would not descend, and where the parameters have not moved, as
    in [`eqopt.ScaleByLBFGS`][]. The matrix has $n^2$ entries for $n$ real parameters: this is for
    small problems.

    **Arguments:**

    - `scale_init_precond`: whether the first updates are no longer than $\max(1, r |\theta|)$, and
        the first matrix is scaled as said; if not, it is the identity.
    - `first_step_rtol`: their length $r$ relative to that of the parameters; at least 0.
    - `secant`: what the change of the gradient is taken to be:
        [`eqopt.quasi_newton.ModifiedSecant`][], which uses the objective's `value` if `update` is
        given it, or [`eqopt.quasi_newton.PlainSecant`][].

    ??? cite "Reference"

        Nocedal and Wright, *Numerical Optimization*, 2nd edition, 2006, algorithm 6.1 and equation
        6.20.
    """

    scale_init_precond: bool = eqx.field(
        converter=flag("scale_init_precond"), static=True, default=True
    )
    first_step_rtol: Scalar = eqx.field(
        converter=real("first_step_rtol", at_least=0), default=0.01, kw_only=True
    )
    secant: AbstractSecant = eqx.field(default_factory=ModifiedSecant, kw_only=True)

    def init_state(self, params: Params, context: Context) -> ScaleByBFGSState:
        vector = _flat(zeros_like(params))
        return ScaleByBFGSState(
            zero_count(),
            zero_count(),
            zeros_like(params),
            zeros_like(params),
            jnp.full((), np.inf, float_dtype()),
            jnp.eye(vector.size, dtype=vector.dtype),
        )

    def transform(
        self, updates: Updates, state: ScaleByBFGSState, params: Params | None, context: Context
    ) -> tuple[Updates, ScaleByBFGSState]:
        params = require_params(params, self, context)
        grad = fill_missing(updates, zeros_like(params))
        latest = fill_missing(updates, state.updates)
        value, eps = value_of(context)
        pair, good = secant_pair(
            self.secant, (state.params, params), (state.updates, latest), (state.value, value), eps
        )
        learned = (state.count > 0) & good
        first = (state.num_pairs == 0) & self.scale_init_precond
        stuck = (state.count > 0) & (pair.ss == 0)
        new = _update(state.inverse_hessian, pair, first)
        matrix = jnp.where(learned, new, state.inverse_hessian)
        num_pairs = jnp.where(learned, increment(state.num_pairs), state.num_pairs)
        num_pairs = jnp.where(stuck, 0, num_pairs)
        direction, used = safeguarded(
            grad,
            _unflat(matrix @ _flat(grad), grad),
            first_scale(grad, params, self.first_step_rtol, self.scale_init_precond),
            num_pairs > 0,
        )
        num_pairs = jnp.where(used, num_pairs, 0)
        past = round_like(params, state.params)
        state = ScaleByBFGSState(increment(state.count), num_pairs, past, latest, value, matrix)
        return mask_like(updates, direction), state


def _update(matrix: Float[Array, "n n"], pair: Pair, first: Array) -> Float[Array, "n n"]:
    s, y = _flat(pair.s), _flat(pair.y)
    sy, yy = pair.sy.astype(s.dtype), pair.yy.astype(s.dtype)
    matrix = jnp.where(first, sy / yy * jnp.eye(s.size, dtype=s.dtype), matrix)
    hy = matrix @ y
    outer = s[:, None] * hy[None, :]
    return matrix - (outer + outer.T) / sy + (1 + y @ hy / sy) / sy * (s[:, None] * s[None, :])


def _flat(tree: PyTree) -> Float[Array, " n"]:
    """All real numbers in a tree, in its widest dtype."""
    parts: list[Any] = []
    for x in jax.tree.leaves(tree):
        parts += [x.real, x.imag] if is_complex(x) else [x]
    dtype = np.result_type(*(x.dtype for x in parts))
    return jnp.concatenate([replicated(x.astype(dtype)).reshape(-1) for x in parts])


def _unflat(vector: Float[Array, " n"], like: PyTree) -> PyTree:
    """The tree whose numbers they are."""
    leaves, treedef = jax.tree.flatten(like)
    out, at = [], 0
    for x in leaves:
        real, at = vector[at : at + x.size].reshape(x.shape), at + x.size
        if is_complex(x):
            imag, at = vector[at : at + x.size].reshape(x.shape), at + x.size
            real = lax.complex(real, imag)
        out.append(placed_like(real.astype(x.dtype), x))
    return treedef.unflatten(out)
