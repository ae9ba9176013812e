"""Nonlinear conjugate gradients."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import wadler_lindig as wl
from jaxtyping import Array, Float, Inexact, PyTree

from .._base import checks
from .._base.arithmetic import cast, minus, safe_divide, safe_sqrt, times, wider
from .._base.converters import module_pdoc, non_negative, real
from .._base.trees import increment, inner, mask_like, zero_count, zeros_like
from .._base.types import Count, Params, Scalar, Updates
from .._objective.objective import Context, require_params
from .._transformation import leafwise
from .._transformation.base import AbstractTransformation
from .._transformation.leafwise import Rule


class ConjugacyProducts(eqx.Module):
    r"""Inner products that a factor is computed from, over all leaves together.

    They are products of the gradient $g_k$, the last gradient $g_{k-1}$, the change
    $y = g_k - g_{k-1}$ and the last direction $d$. For complex numbers, the real part is taken.

    **Arguments:**

    - `grad_grad`: $g_k^\top g_k$.
    - `last_last`: $g_{k-1}^\top g_{k-1}$.
    - `change_change`: $y^\top y$.
    - `change_grad`: $y^\top g_k$.
    - `change_direction`: $y^\top d$, positive after a search for the Wolfe conditions.
    - `grad_direction`: $g_k^\top d$, 0 after an exact search.
    - `direction_direction`: $d^\top d$.
    """

    grad_grad: Float[Array, ""]
    last_last: Float[Array, ""]
    change_change: Float[Array, ""]
    change_grad: Float[Array, ""]
    change_direction: Float[Array, ""]
    grad_direction: Float[Array, ""]
    direction_direction: Float[Array, ""]


class AbstractConjugacy(eqx.Module):
    r"""The weight of the last direction in the next one: the $\beta_k$ of
    [`eqopt.quasi_newton.ScaleByNonlinearCG`][].
    """

    @abc.abstractmethod
    def beta(self, products: ConjugacyProducts) -> Float[Array, ""]:
        """Gives the factor. Where it is not finite, the direction is restarted."""

    def __pdoc__(self, **kwargs: object) -> wl.AbstractDoc:
        return module_pdoc(self, **kwargs)


def _ratio(a: Array, b: Array) -> Array:
    """`a / b`, and 0 if `b` is not positive; the derivative is finite."""
    return safe_divide(a, b, zero=~(b > 0))


class HagerZhang(AbstractConjugacy):
    r"""Hager and Zhang's factor: every direction points downhill, with any line search.

    $$\beta_k = \max\left( \frac{1}{y^\top d} \left( y - \theta\, d\, \frac{y^\top y}{y^\top d}
    \right)^{\!\top} g_k,\; \eta\, \frac{d^\top g_{k-1}}{d^\top d} \right)$$

    **Arguments:**

    - `eta`: the bound $\eta$ of a negative factor; at least 0.
    - `theta`: the weight $\theta$ of the second term, greater than 1/4. The paper has 2.

    ??? cite "Reference"

        Hager and Zhang, *A new conjugate gradient method with guaranteed descent and an efficient
        line search*, SIAM Journal on Optimization 16, 2005, equation 1.6; *Algorithm 851:
        CG_DESCENT, a conjugate gradient method with guaranteed descent*, ACM Transactions on
        Mathematical Software 32, 2006. The lower bound, unlike that of these papers, does not
        depend on the units of the objective; it is that of *The limited memory conjugate gradient
        method*, SIAM Journal on Optimization 23, 2013.
    """

    eta: Scalar = eqx.field(converter=non_negative("eta"), default=0.4)
    theta: Scalar = eqx.field(converter=real("theta", above=0.25), default=1.0)

    def beta(self, products: ConjugacyProducts) -> Float[Array, ""]:
        p = products
        eta, theta = jnp.asarray(self.eta), jnp.asarray(self.theta)
        tilt = _ratio(p.grad_direction, p.change_direction)
        beta = _ratio(p.change_grad - theta * p.change_change * tilt, p.change_direction)
        last_slope = p.grad_direction - p.change_direction
        return jnp.maximum(beta, eta * _ratio(last_slope, p.direction_direction))


class PolakRibierePlus(AbstractConjugacy):
    r"""Polak and Ribière's factor, where it is positive.

    $$\beta_k = \max\left(\frac{y^\top g_k}{g_{k-1}^\top g_{k-1}},\; 0\right)$$

    It restarts by itself after a step on which the gradient has hardly changed. Without the
    maximum, the iteration may go in circles.

    ??? cite "Reference"

        Polak and Ribière, *Note sur la convergence de méthodes de directions conjuguées*, Revue
        française d'informatique et de recherche opérationnelle 3, 1969; Gilbert and Nocedal,
        *Global convergence properties of conjugate gradient methods for optimization*, SIAM Journal
        on Optimization 2, 1992.
    """

    def beta(self, products: ConjugacyProducts) -> Float[Array, ""]:
        return jnp.maximum(_ratio(products.change_grad, products.last_last), 0)


class FletcherReeves(AbstractConjugacy):
    r"""Fletcher and Reeves's factor.

    $$\beta_k = \frac{g_k^\top g_k}{g_{k-1}^\top g_{k-1}}$$

    After a short step, many short steps follow, unless
    [`eqopt.quasi_newton.ScaleByNonlinearCG`][] restarts.

    ??? cite "Reference"

        Fletcher and Reeves, *Function minimization by conjugate gradients*, The Computer Journal 7,
        1964.
    """

    def beta(self, products: ConjugacyProducts) -> Float[Array, ""]:
        return _ratio(products.grad_grad, products.last_last)


class DaiYuan(AbstractConjugacy):
    r"""Dai and Yuan's factor: every direction points downhill after a search for the weak Wolfe
    conditions.

    $$\beta_k = \frac{g_k^\top g_k}{y^\top d}$$

    After a short step, many short steps follow, unless
    [`eqopt.quasi_newton.ScaleByNonlinearCG`][] restarts.

    ??? cite "Reference"

        Dai and Yuan, *A nonlinear conjugate gradient method with a strong global convergence
        property*, SIAM Journal on Optimization 10, 1999.
    """

    def beta(self, products: ConjugacyProducts) -> Float[Array, ""]:
        return _ratio(products.grad_grad, products.change_direction)


@checks.typed
class ScaleByNonlinearCGState(eqx.Module):
    """The state of [`eqopt.quasi_newton.ScaleByNonlinearCG`][].

    **Arguments:**

    - `count`: the number of steps taken, int32 of shape `()`.
    - `params`, `updates`: the parameters and the gradient at the last step.
    - `direction`: the direction from there, downhill, before it was scaled.
    """

    count: Count
    params: PyTree
    updates: PyTree
    direction: PyTree


class ScaleByNonlinearCG(AbstractTransformation[ScaleByNonlinearCGState]):
    r"""Replaces the gradient by a direction that is conjugate to the last one.

    $$d_k = -g_k + \beta_k d_{k-1}, \qquad u \leftarrow -\tau_k d_k$$

    For a quadratic function and exact line searches, every `method` gives the same directions, and
    the minimum is reached in as many steps as there are parameters. A line search must follow, and
    the sign must be flipped before it, as [`eqopt.NonlinearCG`][] does.

    The scale $\tau_k$ makes 1 a sensible first step to try: there, the slope promises the same
    decrease as it did for the last step,

    $$\tau_k = \alpha_{k-1} \frac{g_{k-1}^\top d_{k-1}}{g_k^\top d_k}, \qquad
    \alpha_{k-1} = \frac{(\theta_k - \theta_{k-1})^\top d_{k-1}}{d_{k-1}^\top d_{k-1}}$$

    At the first step, and where the parameters have not moved along the last direction, it is
    $\tau_k = \max(1, \|\theta_k\| / 100) / \|g_k\|$. A line search
    that begins at the last step counts it twice here: let it begin at 1, with
    [`eqopt.linesearch.unit_step`][].

    The direction is restarted, $\beta_k = 0$, if two gradients in a row are far from orthogonal,

    $$|g_k^\top g_{k-1}| \ge r\, \|g_k\|^2$$

    and also if the parameters have not moved along the last direction (a line search has failed),
    if $\beta_k$ is not finite, or if $d_k$ does not point downhill.

    **Arguments:**

    - `method`: the weight $\beta_k$ of the last direction in the next one:
        [`eqopt.quasi_newton.HagerZhang`][], [`eqopt.quasi_newton.PolakRibierePlus`][],
        [`eqopt.quasi_newton.FletcherReeves`][], [`eqopt.quasi_newton.DaiYuan`][] or another
        [`eqopt.quasi_newton.AbstractConjugacy`][].
    - `restart_rtol`: the overlap $r$ of two gradients at which to restart, positive; with infinity
        they may overlap.

    Its `update` needs `params`. The state holds three copies of the parameters.

    Raises a `TypeError` if `method` is not such a Module.

    ??? cite "Reference"

        Nocedal and Wright, *Numerical Optimization*, 2nd edition, 2006, section 5.2, equation 5.52,
        and page 59; Powell, *Restart procedures for the conjugate gradient method*, Mathematical
        Programming 12, 1977.
    """

    method: AbstractConjugacy = eqx.field(default_factory=HagerZhang)
    restart_rtol: Scalar = eqx.field(
        converter=real("restart_rtol", above=0, finite=False), default=0.5
    )

    def __check_init__(self) -> None:
        check_conjugacy(self.method)

    def init_state(self, params: Params, context: Context) -> ScaleByNonlinearCGState:
        trees = (zeros_like(params) for _ in range(3))
        return ScaleByNonlinearCGState(zero_count(), *trees)

    def transform(
        self,
        updates: Updates,
        state: ScaleByNonlinearCGState,
        params: Params | None,
        context: Context,
    ) -> tuple[Updates, ScaleByNonlinearCGState]:
        params = require_params(params, self, context)
        p, moved = _measure(updates, state, params)
        length = _ratio(moved, p.direction_direction)
        beta = self.method.beta(p)
        # The slope and the length of the new direction are known before it is computed.
        slope = p.grad_grad - beta * p.grad_direction
        length_sq = p.grad_grad - 2 * beta * p.grad_direction + beta**2 * p.direction_direction
        sizes = jnp.sqrt(p.grad_grad) * jnp.sqrt(jnp.maximum(length_sq, 0))
        downhill = slope > _ROUNDING[slope.dtype] * sizes
        overlap = _ratio(jnp.abs(p.grad_grad - p.change_grad), p.grad_grad)
        orthogonal = overlap < jnp.asarray(self.restart_rtol)
        moved_on = (state.count > 0) & (length > 0)
        kept = moved_on & orthogonal & downhill & jnp.isfinite(beta)
        beta, slope = jnp.where(kept, beta, 0), jnp.where(kept, slope, p.grad_grad)

        scale = _ratio(length * (p.change_direction - p.grad_direction), slope)
        known = moved_on & (scale > 0) & jnp.isfinite(scale)
        scale = jnp.where(known, scale, _first_scale(p.grad_grad, inner(params, params)))
        rule = Rule(
            _turn,
            eqx.tree_at(lambda s: s.count, state, increment(state.count)),
            trees=("params", "updates", "direction"),
            scalars=(beta, scale),
            needs_params=True,
        )
        updates, (state,) = leafwise.run((rule,), updates, params)
        return updates, state


def check_conjugacy(method: object) -> None:
    """Refuses anything but a conjugacy."""
    if not isinstance(method, AbstractConjugacy):
        raise TypeError(
            "`method` must be an `eqopt.quasi_newton.AbstractConjugacy`, such as "
            f"`eqopt.quasi_newton.HagerZhang()`; got {checks.describe(method)}"
        )


# A direction whose cosine with the gradient is no greater may be perpendicular to it.
_ROUNDING = {np.dtype(x): float(np.finfo(x).eps) ** (2 / 3) for x in (np.float32, np.float64)}


def _first_scale(grad_sq: Float[Array, ""], size_sq: Float[Array, ""]) -> Float[Array, ""]:
    norm, longest = safe_sqrt(grad_sq), jnp.maximum(safe_sqrt(size_sq) / 100, 1)
    # If the norm overflowed, a nonzero gradient would be scaled to zero.
    known = (norm > 0) & jnp.isfinite(norm)
    return safe_divide(longest, norm, 1, zero=~known)


def _measure(
    grad: Updates, state: ScaleByNonlinearCGState, params: Params
) -> tuple[ConjugacyProducts, Float[Array, ""]]:
    """The products, and the product of the last direction with the parameters' movement."""
    last, d = mask_like(grad, state.updates), mask_like(grad, state.direction)
    y = jax.tree.map(_change, grad, last)
    step = jax.tree.map(_change, mask_like(grad, params), mask_like(grad, state.params))
    products = ConjugacyProducts(
        grad_grad=inner(grad, grad),
        last_last=inner(last, last),
        change_change=inner(y, y),
        change_grad=inner(y, grad),
        change_direction=inner(y, d),
        grad_direction=inner(grad, d),
        direction_direction=inner(d, d),
    )
    return products, inner(step, d)


@jax.jit
@checks.typed
def _change(
    new: Inexact[Array, "*shape"], old: Inexact[Array, "*shape"]
) -> Inexact[Array, "*shape"]:
    dtype = wider(new.dtype, old.dtype)
    return minus(cast(new, dtype), cast(old, dtype))


@checks.typed
def _turn(
    grad: Inexact[Array, "*shape"],
    param: Inexact[Array, "*shape"],
    last_param: Inexact[Array, "*shape"],
    last_grad: Inexact[Array, "*shape"],
    direction: Inexact[Array, "*shape"],
    beta: Float[Array, ""],
    scale: Float[Array, ""],
) -> tuple[Inexact[Array, "*shape"], ...]:
    # Selected: 0 times a direction that is not finite is not 0.
    direction = jnp.where(beta == 0, -grad, minus(times(beta, direction), grad))
    return times(-scale, direction), param, grad, direction
