r"""Decides when `minimize` ends, and how.

In: a point, the point before it, the objective at both, and what is known of all points so far.
Out: whether the loop ends, and the reason.
It exists because no test of the gradient alone is free of units. The default test is: three steps
in a row each promised a decrease, $|g^T s| / 2$, below the rounding of the objective,
$\epsilon (|f| + \sum_i |g_i| \max |x_i|)$, and the sum over the gradient is small beside $|f|$, or
$|f|$ is as small as rounding. All of these scale like the objective, and none depends on the scale
of a parameter.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._base.converters import float_dtype
from .._base.trees import all_finite, conj, inner
from .._base.types import Params, Updates
from .._objective.objective import AnyEvaluation

# The most failed searches in a row, steps without progress, steps that move nothing, and searches
# that find no end.
_MAX_FAILURES, _MAX_IDLE, _MAX_HELD, _MAX_ENDLESS = 3, 50, 20, 2

# The least number of steps in a row that promise less than rounding.
_MIN_TINY = 3


class MinimizeResult(eqx.Enumeration):
    """How [`eqopt.minimize`][] ended."""

    successful = "Converged."
    small_decrease = "The objective hardly decreases any more (`ftol`)."
    small_step = "The parameters hardly change any more (`xtol`)."
    precision = (
        "The objective cannot be decreased further in its floating-point precision, though the "
        "gradient is larger than the test of convergence allows."
    )
    max_steps = "`max_steps` steps were taken. Allow more, or scale the parameters alike."
    max_evals = "The objective was evaluated `max_evals` times. Allow more."
    no_decrease = (
        "No step was found that decreases the objective. Is its gradient right (`jax.test_util."
        "check_grads`), and is it smooth and deterministic?"
    )
    unbounded = (
        "The objective has no lower bound: it still falls after the longest steps that the search "
        "tries."
    )
    nonfinite = (
        "The objective or its gradient is not finite. Start elsewhere, or look for the NaN by "
        "`jax.config.update('jax_debug_nans', True)`"
    )
    solver_failed = "The solver of optimistix has failed: `optimistix.minimise` says why."
    no_room = "A lower bound is above an upper bound, or a bound is NaN."


CONVERGED = (
    MinimizeResult.successful,
    MinimizeResult.small_decrease,
    MinimizeResult.small_step,
    MinimizeResult.precision,
)


class Tolerances(NamedTuple):
    """When to stop; see `minimize`."""

    gtol: Any
    ftol: Any
    xtol: Any
    max_steps: Any
    max_evals: Any


class Progress(eqx.Module):
    """What is known of all points so far.

    **Arguments:**

    - `reach`: the largest magnitude that each parameter has had.
    - `lowest`: the lowest value.
    - `steepest`, `flattest`: the largest and the least magnitude in a gradient.
    - `free`: which parameters have ever moved; `None` with a search, which moves all.
    - `num_idle`: the steps since either the lowest value or the least gradient was reached.
    - `num_tiny`: how many steps in a row promised less than rounding.
    - `num_failures`, `num_held`, `num_endless`: how many searches in a row have failed, how many
        steps in a row moved nothing, and how many searches in a row found no end.
    """

    reach: Params
    free: PyTree
    lowest: Float[Array, ""]
    steepest: Float[Array, ""]
    flattest: Float[Array, ""]
    num_tiny: Int[Array, ""]
    num_idle: Int[Array, ""]
    num_failures: Int[Array, ""]
    num_held: Int[Array, ""]
    num_endless: Int[Array, ""]

    @classmethod
    def start(cls, params: Params, *, searched: bool) -> "Progress":
        zero, infinite = jnp.zeros((), np.int32), jnp.full((), np.inf, float_dtype())
        return cls(
            reach=jax.tree.map(jnp.abs, params),
            free=None if searched else jax.tree.map(lambda x: jnp.zeros(x.shape, bool), params),
            lowest=infinite,
            steepest=jnp.zeros_like(infinite),
            flattest=infinite,
            num_tiny=zero,
            num_idle=zero,
            num_failures=zero,
            num_held=zero,
            num_endless=zero,
        )


class Move(NamedTuple):
    """The step to a point.

    **Arguments:**

    - `before`, `params`: the points before and after.
    - `at_before`, `found`: the objective there.
    - `residual`: the part of the gradient that is zero at a solution, see `residual`.
    - `updates`: the optimizer's updates, or `None` if a search went along them.
    - `first`: whether it is the first point, to which there is no step.
    - `failed`, `endless`: whether a search failed, or still went down at its longest step.
    - `promised`: the decrease that a proximal step promised, for an objective with a penalty; else
        `None`.
    """

    before: Params
    params: Params
    at_before: AnyEvaluation
    found: AnyEvaluation
    residual: PyTree
    updates: Updates | None
    first: Bool[Array, ""]
    failed: Bool[Array, ""]
    endless: Bool[Array, ""]
    promised: Float[Array, ""] | None = None


def ended(
    tolerances: Tolerances,
    dtype: np.dtype,
    progress: Progress,
    move: Move,
    num_steps: Int[Array, ""],
    num_evals: Int[Array, ""],
) -> tuple[Any, Bool[Array, ""], Progress]:
    """The result, whether it is final, and the progress with this point."""
    t, value, grad, free = tolerances, move.found.value, move.residual, progress.free
    moved, searched = ~move.first & ~move.failed, move.updates is None
    step = jax.tree.map(lambda a, b: a - b, move.params, move.before)
    held = jnp.asarray(False)
    if move.updates is not None:
        # What is frozen never moves, and its gradient says nothing. A step that moves nothing says
        # nothing either: a wrapper may wait for more gradients.
        held = moved & ~_any_nonzero(move.updates)
        free = jax.tree.map(lambda f, u: f | (u != 0), free, move.updates)
        known = _any_nonzero(free)
        grad = jax.tree.map(lambda g, f: jnp.where(f | ~known, g, 0), grad, free)
    grad_norm = largest(grad)
    reach = jax.tree.map(lambda r, x: jnp.maximum(r, jnp.abs(x)), progress.reach, move.params)
    steepest = jnp.maximum(progress.steepest, grad_norm)
    decrease = move.at_before.value - value
    size = jnp.maximum(jnp.abs(move.at_before.value), jnp.abs(value))
    length, whole_length = jnp.sqrt(inner(step, step)), jnp.sqrt(inner(move.params, move.params))
    finite = jnp.isfinite(value) & all_finite(move.found.grad)

    eps = max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(reach))
    # The change of the objective if each parameter changes by its size, to first order.
    swing = inner(jax.tree.map(jnp.abs, grad), reach)
    by_value, by_params = float(jnp.finfo(dtype).eps) * jnp.abs(value), eps * swing
    noise = by_value + by_params
    # A parameter that has always been 0 has no size, nor has a gradient whose square underflows.
    sized = ~_any_nonzero(jax.tree.map(lambda g, r: jnp.where(r > 0, 0, g), grad, reach))
    # The gradient is small beside the value, or the value is as small as rounding errors.
    low = (swing <= eps**0.5 * jnp.abs(value)) | (jnp.abs(value) <= 10 * by_params)
    low = low & sized & (jnp.square(grad_norm) > 0)
    # Along a narrow valley a step may promise little far from the minimum: one does not suffice.
    # Nor does a failed search, whose direction may be to blame: the next begins without memory.
    promised = jnp.abs(inner(conj(move.at_before.grad), step)) / 2
    if move.promised is not None:
        # A proximal method is of first order: it has about as many steps ahead as it has made, each
        # with nearly the same promise.
        promised = move.promised * jnp.maximum(num_steps, 1).astype(value.dtype)
    tiny = moved & (promised <= noise)
    num_tiny = jnp.where(tiny, progress.num_tiny + 1, 0)
    num_failures = jnp.where(move.failed, progress.num_failures + 1, 0)
    small = low & ((num_tiny >= _MIN_TINY) | (num_failures >= 2))
    if not searched:  # a small rate makes any step promise little
        small = small & (grad_norm <= eps**0.5 * steepest)
    small = (grad_norm <= 0) | small if t.gtol is None else grad_norm <= t.gtol

    acted = moved & ~held
    flat = acted & (decrease >= 0) & (decrease <= t.ftol * jnp.maximum(size, 1)) & (t.ftol > 0)
    still = acted & (length <= t.xtol * jnp.maximum(whole_length, 1)) & (t.xtol > 0)
    improved = (value < progress.lowest) | (grad_norm < progress.flattest) | (not searched)
    after = Progress(
        reach=reach,
        free=free,
        lowest=jnp.minimum(progress.lowest, value),
        steepest=steepest,
        flattest=jnp.minimum(progress.flattest, grad_norm),
        num_tiny=num_tiny,
        num_idle=jnp.where(improved, 0, progress.num_idle + 1),
        num_failures=num_failures,
        num_held=jnp.where(held, progress.num_held + 1, 0),
        num_endless=jnp.where(move.endless, progress.num_endless + 1, 0),
    )
    stuck, idle = after.num_failures >= _MAX_FAILURES, after.num_idle >= _MAX_IDLE
    bottom = 1e-6 * float(jnp.finfo(dtype).max)
    endless = (after.num_endless >= _MAX_ENDLESS) | (value < -bottom)
    # Rounding hides the rest, unless the gradient is large.
    hidden = stuck | (idle & (value - after.lowest <= 100 * noise))
    hidden = hidden & (low | (grad_norm <= 10 * eps**0.5 * steepest))
    hidden = hidden | (low & (after.num_held >= _MAX_HELD))
    ends = (
        (endless, MinimizeResult.unbounded),
        (finite & small, MinimizeResult.successful),
        (~finite, MinimizeResult.nonfinite),
        (flat, MinimizeResult.small_decrease),
        (still, MinimizeResult.small_step),
        (hidden, MinimizeResult.precision),
        (stuck | idle, MinimizeResult.no_decrease),
        (num_steps >= t.max_steps, MinimizeResult.max_steps),
        (num_evals >= t.max_evals, MinimizeResult.max_evals),
    )
    result, done = MinimizeResult.successful, jnp.asarray(False)
    for condition, reason in reversed(ends):
        result = MinimizeResult.where(condition, reason, result)
        done = done | condition
    return result, done, after


def largest(grad: PyTree) -> Float[Array, ""]:
    """The largest magnitude in a tree; 0 if it is empty."""
    dtype = float_dtype()
    moduli = [jnp.max(jnp.abs(x), initial=0).astype(dtype) for x in jax.tree.leaves(grad)]
    return jnp.max(jnp.stack(moduli))


def _any_nonzero(tree: PyTree) -> Bool[Array, ""]:
    return jnp.any(jnp.stack([jnp.any(x) for x in jax.tree.leaves(tree)]))
