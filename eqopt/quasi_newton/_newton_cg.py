"""Newton's method by conjugate gradients, within a trust region.

In: a gradient, parameters, the objective. Out: the direction, and how far it may be trusted.
It needs products with the Hessian matrix, and never the matrix itself.
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._base.arithmetic import cast, safe_divide
from .._base.checks import typed
from .._base.converters import float_dtype, non_negative, optional, real, size, steps
from .._base.trees import (
    conj,
    fill_missing,
    increment,
    inner,
    mask_like,
    round_like,
    select,
    widened,
    zero_count,
    zeros_like,
)
from .._base.types import Count, Params, Scalar, Steps, Updates
from .._objective.objective import Context, Objective, require_params
from .._transformation.base import AbstractTransformation
from ._base import scaled
from ._lbfgs import ScaleByLBFGS, ScaleByLBFGSState


@typed
class ScaleByNewtonCGState(eqx.Module):
    """The state of [`eqopt.quasi_newton.ScaleByNewtonCG`][].

    **Arguments:**

    - `count`: the number of steps taken, int32 of shape `()`.
    - `radius`: the radius of the trust region.
    - `params`, `direction`, `value`: the parameters, the direction and the objective's value at the
        last step.
    - `slope`, `curvature`: the first and the second derivative along the last direction.
    - `steepest`: the norm of the longest gradient so far.
    - `num_products`: the number of products with the Hessian matrix in the last step.
    - `precond_state`: the state of the preconditioner, or `None`.
    """

    count: Count
    radius: Float[Array, ""]
    params: PyTree
    direction: PyTree
    value: Float[Array, ""]
    slope: Float[Array, ""]
    curvature: Float[Array, ""]
    steepest: Float[Array, ""]
    num_products: Int[Array, ""]
    precond_state: ScaleByLBFGSState | None


class ScaleByNewtonCG(AbstractTransformation[ScaleByNewtonCGState]):
    r"""Multiplies the gradient by the inverse Hessian matrix, approximately, within a trust region.

    The updates are $-p$, where $p$ approximately minimizes the model

    $$m(p) = g^T p + \tfrac12 p^T H p, \qquad \|p\| \le \Delta$$

    by preconditioned conjugate gradients, which need one product with $H$ in each iteration. They
    stop where the residual is at most $\sqrt{\|g\| / \max_k \|g_k\|}\, \|g\|$, with the root held
    between $\eta / 5$ and $\eta$; at the border of the region; or along a direction of negative
    curvature, which they follow to the border. (With smaller residuals, a step goes far along
    directions that hardly matter, and leaves a curved valley whose floor it had reached.)

    A line search must follow, and the sign must be flipped before it, as [`eqopt.NewtonCG`][] does.
    The radius follows from the step that it took: after a short step, or one with less than a
    quarter of the decrease that the model predicts, the region shrinks; after a good step to the
    border it grows.

    **Arguments:**

    - `max_products`: the largest number of products in a step; at least 1.
    - `rtol`: the largest relative residual $\eta$; in $(0, 1)$.
    - `first_radius_rtol`: the first radius is $\max(1, r \|\theta\|)$ with this $r$; at least 0.
    - `memory_size`: the number of steps remembered by [`eqopt.ScaleByLBFGS`][], whose estimate of
        $H^{-1}$ is the preconditioner; `None` for none.

    Its `update` needs `params`, `value`, `grad` and `value_fn`. The objective must be
    differentiable twice, also in forward mode.

    ??? cite "Reference"

        Steihaug, *The conjugate gradient method and trust regions in large scale optimization*,
        SIAM Journal on Numerical Analysis 20, 1983; Nocedal and Yuan, *Combining trust region and
        line search techniques*, Advances in Nonlinear Programming, 1998; Morales and Nocedal,
        *Automatic preconditioning by limited memory quasi-Newton updating*, SIAM Journal on
        Optimization 10, 2000.
    """

    max_products: Steps = eqx.field(converter=steps("max_products", at_least=1), default=200)
    rtol: Scalar = eqx.field(converter=real("rtol", above=0, below=1), default=0.5, kw_only=True)
    first_radius_rtol: Scalar = eqx.field(
        converter=non_negative("first_radius_rtol"), default=0.01, kw_only=True
    )
    memory_size: int | None = eqx.field(
        converter=optional(size("memory_size")), static=True, default=10, kw_only=True
    )

    def init_state(self, params: Params, context: Context) -> ScaleByNewtonCGState:
        dtype = float_dtype()
        zero, memory = jnp.zeros((), dtype), self._memory()
        return ScaleByNewtonCGState(
            count=zero_count(),
            radius=zero,
            params=zeros_like(params),
            direction=zeros_like(params),
            value=jnp.full((), np.inf, dtype),
            slope=zero,
            curvature=zero,
            steepest=zero,
            num_products=zero_count(),
            precond_state=None if memory is None else memory.init_state(params, context),
        )

    def transform(
        self, updates: Updates, state: ScaleByNewtonCGState, params: Params | None, context: Context
    ) -> tuple[Updates, ScaleByNewtonCGState]:
        params = require_params(params, self, context)
        value = jnp.asarray(context.require("value", self)).astype(float_dtype())
        objective = context.require("value_fn", self)
        grad = fill_missing(updates, zeros_like(params))
        norm = jnp.sqrt(inner(grad, grad))
        steepest = jnp.maximum(state.steepest, norm)
        radius = self._radius(updates, state, params, value)
        memory, precond_state, precondition = self._memory(), state.precond_state, _same
        if memory is not None and precond_state is not None:
            latest = fill_missing(updates, precond_state.updates)
            precond_state = memory.remember(latest, precond_state, params, context)
            precondition = eqx.Partial(memory.multiply, state=precond_state)
        rtol = jnp.asarray(self.rtol)
        progress = jnp.sqrt(norm / jnp.where(steepest > 0, steepest, 1))
        tolerance = norm * jnp.clip(progress, rtol / 5, rtol)
        found = _solve(
            product=_within(updates, hessian(objective, params)),
            precondition=_within(updates, precondition),
            grad=grad,
            radius=radius,
            tolerance=tolerance,
            max_products=jnp.asarray(self.max_products),
        )
        state = ScaleByNewtonCGState(
            count=increment(state.count),
            radius=radius,
            params=round_like(params, state.params),
            # Where there is no gradient, the state stays as it was.
            direction=fill_missing(mask_like(updates, found.step), state.direction),
            value=value,
            slope=inner(grad, found.step),
            curvature=inner(found.step, found.image),
            steepest=steepest,
            num_products=found.num_products,
            precond_state=precond_state,
        )
        return mask_like(updates, jax.tree.map(jnp.negative, found.step)), state

    def _memory(self) -> ScaleByLBFGS | None:
        return None if self.memory_size is None else ScaleByLBFGS(self.memory_size)

    def _radius(
        self,
        updates: Updates,
        state: ScaleByNewtonCGState,
        params: PyTree,
        value: Float[Array, ""],
    ) -> Float[Array, ""]:
        """The radius after the step that a line search took along the last direction."""
        first = jnp.maximum(
            1, jnp.asarray(self.first_radius_rtol) * jnp.sqrt(inner(params, params))
        )
        taken = jax.tree.map(lambda x, old: cast(x, old.dtype) - old, params, state.params)
        length, whole = (
            jnp.sqrt(inner(x, x))
            for x in (mask_like(updates, taken), mask_like(updates, state.direction))
        )
        step = safe_divide(length, whole, zero=whole == 0)
        predicted = -step * (state.slope + step * state.curvature / 2)
        # Close to the minimum rounding hides both decreases.
        noise = 10 * jnp.finfo(value.dtype).eps * jnp.abs(value)
        decrease = state.value - value + noise
        good, bad = decrease > 0.75 * (predicted + noise), decrease < 0.25 * (predicted + noise)
        border = whole >= 0.99 * state.radius
        radius = state.radius
        radius = jnp.where(border & good, 2 * jnp.maximum(length, radius), radius)
        radius = jnp.where((step < 0.5) | bad, jnp.minimum(radius, length / 2), radius)
        radius = jnp.where(length > 0, radius, whole / 16)
        return jnp.where(state.count > 0, radius, first)


def hessian(objective: Objective, params: PyTree) -> Callable[[PyTree], PyTree]:
    """The product with the Hessian matrix at some parameters, of vectors in wide dtypes."""

    def gradient(wide: PyTree) -> PyTree:
        narrow = jax.tree.map(lambda w, x: cast(w, x.dtype), wide, params)
        return widened(conj(objective.evaluate(narrow).grad))

    _, derivative = jax.linearize(gradient, widened(params))
    return derivative


def _within(updates: Updates, product: Callable[[PyTree], PyTree]) -> Callable[[PyTree], PyTree]:
    """A product with a matrix, restricted to the parameters that have a gradient."""

    def restricted(vector: PyTree) -> PyTree:
        image = product(vector)
        return fill_missing(mask_like(updates, image), jax.tree.map(jnp.zeros_like, image))

    return restricted


class _Found(NamedTuple):
    step: PyTree
    image: PyTree  # the Hessian matrix times the step
    num_products: Int[Array, ""]


class _Iterate(NamedTuple):
    step: PyTree
    image: PyTree
    residual: PyTree
    direction: PyTree
    weight: Float[Array, ""]  # r^T M^-1 r
    num_products: Int[Array, ""]
    done: Bool[Array, ""]


def _same(x: PyTree) -> PyTree:
    return x


def _solve(
    *,
    product: Callable[[PyTree], PyTree],
    precondition: Callable[[PyTree], PyTree],
    grad: PyTree,
    radius: Float[Array, ""],
    tolerance: Float[Array, ""],
    max_products: Int[Array, ""],
) -> _Found:
    """Steihaug's conjugate gradients: minimizes the model in a ball."""
    zeros = jax.tree.map(jnp.zeros_like, grad)
    z = precondition(grad)
    start = _Iterate(
        step=zeros,
        image=zeros,
        residual=grad,
        direction=jax.tree.map(jnp.negative, z),
        weight=inner(grad, z),
        num_products=zero_count(),
        done=inner(grad, grad) <= 0,
    )

    def add(x: PyTree, y: PyTree, a: Float[Array, ""]) -> PyTree:
        return jax.tree.map(lambda x, y: x + scaled(y, a, x), x, y)

    def body(i: _Iterate) -> _Iterate:
        d = i.direction
        hd = product(d)
        curvature = inner(d, hd)
        dd, sd, ss = inner(d, d), inner(i.step, d), inner(i.step, i.step)
        root = jnp.sqrt(jnp.maximum(sd**2 + dd * (radius**2 - ss), 0))
        # The stable formula of the two for the positive root.
        to_border = jnp.where(
            sd > 0, (radius**2 - ss) / (sd + root), (root - sd) / jnp.where(dd > 0, dd, 1)
        )
        to_border = jnp.maximum(to_border, 0)
        alpha = i.weight / jnp.where(curvature > 0, curvature, 1)
        leaves = ~(curvature > 0) | ~(alpha < to_border)
        alpha = jnp.where(leaves, to_border, alpha)
        step, image = add(i.step, d, alpha), add(i.image, hd, alpha)
        residual = add(i.residual, hd, alpha)
        z = precondition(residual)
        weight = inner(residual, z)
        beta = weight / jnp.where(i.weight > 0, i.weight, 1)
        direction = jax.tree.map(lambda z, d: scaled(d, beta, d) - z, z, d)
        small = jnp.sqrt(inner(residual, residual)) <= tolerance
        finite = jnp.isfinite(curvature) & jnp.isfinite(weight)
        after = _Iterate(
            step=step,
            image=image,
            residual=residual,
            direction=direction,
            weight=weight,
            num_products=i.num_products + 1,
            done=leaves | small | ~(weight > 0) | (i.num_products + 1 >= max_products),
        )
        stop = i._replace(num_products=i.num_products + 1, done=jnp.asarray(True))
        return select(finite, after, stop)

    end = lax.while_loop(lambda i: ~i.done, body, start)
    return _Found(end.step, end.image, end.num_products)
