"""The BFGS method with a dense matrix, for small problems."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._base.checks import typed
from .._base.converters import flag, float_dtype, non_negative
from .._base.ravel import from_real_vector, real_vector
from .._base.trees import (
    fill_missing,
    increment,
    mask_like,
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
from ._broyden import AbstractBroydenUpdate, BFGSUpdate, check_update_rule


@typed
class ScaleByBFGSState(eqx.Module):
    """The state of [`eqopt.quasi_newton.ScaleByBFGS`][].

    **Arguments:**

    - `count`: the number of steps taken.
    - `num_pairs`: the number of steps used for the matrix since the last reset.
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

    With another `update_rule`, which chooses $\tau$ and $\varphi$,

    $$H_+ = \frac{1}{\tau} \left( H - \frac{H y y^T H}{y^T H y} + \varphi\, v v^T \right) + \rho s
    s^T, \qquad v = \sqrt{y^T H y} \left( \rho s - \frac{H y}{y^T H y} \right)$$

    For $\tau = \varphi = 1$ that is the first formula, which is always used for the first step. The
    first matrix is $\frac{s^T y}{y^T y} I$. Steps without positive curvature are skipped. As in
    [`eqopt.ScaleByLBFGS`][], the matrix is reset if its direction would not descend, and if the
    parameters have not moved. The matrix has $n^2$ entries for $n$ real parameters: this is for
    small problems.

    **Arguments:**

    - `scale_init_precond`: whether the first updates have the length $\max(1, r |\theta|)$,
        and the first matrix is scaled as above; otherwise it is the identity.
    - `first_step_rtol`: their length $r$ relative to that of the parameters; at least 0. With 0,
        as in optax, a gradient shorter than 1 keeps its length.
    - `secant`: which change of the gradient is used: [`eqopt.quasi_newton.ModifiedSecant`][], which
        uses the objective's `value` if `update` is given it, or
        [`eqopt.quasi_newton.PlainSecant`][].
    - `update_rule`: which matrix of Broyden's family: [`eqopt.quasi_newton.BFGSUpdate`][],
        [`eqopt.quasi_newton.SelfScaledBFGS`][], [`eqopt.quasi_newton.SelfScaledBroyden`][] or
        another [`eqopt.quasi_newton.AbstractBroydenUpdate`][].

    Raises a `TypeError` if `update_rule` is not such a Module.

    ??? cite "Reference"

        Nocedal and Wright, *Numerical Optimization*, 2nd edition, 2006, algorithm 6.1 and equation
        6.20.
    """

    scale_init_precond: bool = eqx.field(
        converter=flag("scale_init_precond"), static=True, default=True
    )
    first_step_rtol: Scalar = eqx.field(
        converter=non_negative("first_step_rtol"), default=0.01, kw_only=True
    )
    secant: AbstractSecant = eqx.field(default_factory=ModifiedSecant, kw_only=True)
    update_rule: AbstractBroydenUpdate = eqx.field(default_factory=BFGSUpdate, kw_only=True)

    def __check_init__(self) -> None:
        check_update_rule(self.update_rule)

    def init_state(self, params: Params, context: Context) -> ScaleByBFGSState:
        vector = real_vector(zeros_like(params))
        return ScaleByBFGSState(
            count=zero_count(),
            num_pairs=zero_count(),
            params=zeros_like(params),
            updates=zeros_like(params),
            value=jnp.full((), np.inf, float_dtype()),
            inverse_hessian=jnp.eye(vector.size, dtype=vector.dtype),
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
        matrix, rule = state.inverse_hessian, self.update_rule
        new = _updated(matrix, pair, rule, state.updates, first)
        matrix = jnp.where(learned, new, matrix)
        num_pairs = jnp.where(learned, increment(state.num_pairs), state.num_pairs)
        num_pairs = jnp.where(stuck, 0, num_pairs)
        direction, used = safeguarded(
            grad,
            from_real_vector(matrix @ real_vector(grad), grad),
            first_scale(grad, params, self.first_step_rtol, self.scale_init_precond),
            num_pairs > 0,
        )
        num_pairs = jnp.where(used, num_pairs, 0)
        past = round_like(params, state.params)
        state = ScaleByBFGSState(
            count=increment(state.count),
            num_pairs=num_pairs,
            params=past,
            updates=latest,
            value=value,
            inverse_hessian=matrix,
        )
        return mask_like(updates, direction), state


def _updated(
    matrix: Float[Array, "n n"], pair: Pair, rule: AbstractBroydenUpdate, grad: PyTree, first: Array
) -> Float[Array, "n n"]:
    """The matrix after a step, which began at the gradient."""
    s, y = real_vector(pair.s), real_vector(pair.y)
    sy, yy = pair.sy.astype(s.dtype), pair.yy.astype(s.dtype)
    matrix = jnp.where(first, sy / yy * jnp.eye(s.size, dtype=s.dtype), matrix)
    hy = matrix @ y
    yhy = y @ hy

    def predicted() -> Float[Array, ""]:
        # The step went along `-H g`, so that its curvature follows without the inverse of the
        # matrix. For any other step this is a lower bound, by the Cauchy-Schwarz inequality.
        g = real_vector(grad)
        ghg = g @ (matrix @ g)
        return jnp.square(s @ g) / jnp.where(ghg > 0, ghg, 1) / sy

    tau, phi = rule.weights(predicted, yhy / sy, s.size)
    # The first matrix is not along the last step, and is scaled already.
    tau, phi = jnp.where(first, 1, tau), jnp.where(first, 1, phi)
    outer = s[:, None] * hy[None, :]
    change = phi * (outer + outer.T) / sy + (1 - phi) * (hy[:, None] * hy[None, :]) / yhy
    return (matrix - change) / tau + (1 + phi * yhy / sy / tau) / sy * (s[:, None] * s[None, :])
