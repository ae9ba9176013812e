"""A search for the weak Wolfe conditions, with a floor for rounding errors."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._base.converters import flag, non_negative, real, steps
from .._base.trees import select
from .._base.types import Scalar, Steps
from ._base import AbstractLinesearch, ACCEPT, Answer, FAIL, Origin, RETURN, Trial, TRY
from ._interpolation import cubic_minimizer, secant


class _Wolfe(eqx.Module):
    origin: Origin
    low: Trial  # the longest step known to be too short
    high: Trial  # the shortest step known to be too long, or infinity
    width: Float[Array, ""]
    best: Trial  # the trial to return to
    rank: Int[Array, ""]  # 3: lower and too short; 2: no higher and flatter; 1: lower; 0: none
    num_trials: Int[Array, ""]


# The noise floor is at most this fraction of the value, however large earlier values were.
MAX_NOISE = 1e-3


class ScaleByWolfeLinesearch(AbstractLinesearch[_Wolfe]):
    r"""Scales the updates by a step after which the objective is lower, and falls less steeply.

    With $\phi(\alpha)$ the objective at `params + alpha * updates`, the step $\alpha$ is accepted
    if it satisfies the weak Wolfe conditions

    $$\phi(\alpha) \le \phi(0) + c_1 \alpha \phi'(0), \qquad \phi'(\alpha) \ge c_2 \phi'(0)$$

    where the first may be replaced, once rounding hides the difference of values, by Hager and
    Zhang's

    $$\phi(\alpha) \le \phi(0) + \epsilon, \qquad \phi'(\alpha) \le -0.8\, \phi'(0)$$

    with the noise floor $\epsilon = \max(r\,|\phi(0)|, 9\,u\,\max_k |f_k|)$, over all points
    visited so far, where $u$ is the precision of the objective's dtype. The first step tried is 1,
    which suits quasi-Newton directions. Steps that are too short are extended by the secant of the
    slopes, and an interval is narrowed by cubic interpolation.

    If no step is accepted, the best step is taken: the longest step with enough decrease, else a
    step that is not above the noise floor and is flatter, else any step with a lower value. If no
    step is lower, the updates are zero, and `state.info.result` says why.

    **Arguments:**

    - `max_linesearch_steps`: the largest number of evaluations in one search; at least 1.
    - `slope_rtol`: the required fraction $c_1$ of the decrease predicted by the slope; in $(0, 1)$.
    - `curv_rtol`: the allowed fraction $c_2$ of the first slope; in $(0, 1)$, greater than
        `slope_rtol`.
    - `approx_dec_rtol`: the relative part $r$ of the noise floor; at least 0.
    - `verbose`: whether each search is printed.

    Its `update` needs `params`, `value`, `grad` and `value_fn`; pass the other arguments of
    `value_fn` to `update` by keyword. `step` passes all of these.

    ??? cite "Reference"

        Hager and Zhang, *A new conjugate gradient method with guaranteed descent and an efficient
        line search*, SIAM Journal on Optimization 16, 2005, equation 4.1; Nocedal and Wright,
        *Numerical Optimization*, 2nd edition, 2006, section 3.5.
    """

    max_linesearch_steps: Steps = eqx.field(
        converter=steps("max_linesearch_steps", at_least=1), default=30
    )
    slope_rtol: Scalar = eqx.field(converter=real("slope_rtol", above=0, below=1), default=1e-4)
    curv_rtol: Scalar = eqx.field(converter=real("curv_rtol", above=0, below=1), default=0.9)
    approx_dec_rtol: Scalar = eqx.field(converter=non_negative("approx_dec_rtol"), default=1e-6)
    verbose: bool = eqx.field(converter=flag("verbose"), static=True, default=False)

    @property
    def keeps_grad(self) -> bool:
        return True

    @property
    def may_return_to_best(self) -> bool:
        return True

    @property
    def is_verbose(self) -> bool:
        return self.verbose

    def first_step(self, learning_rate: Float[Array, ""]) -> Float[Array, ""]:
        return jnp.ones_like(learning_rate)

    def start(self, origin: Origin) -> _Wolfe:
        zero, infinity = jnp.zeros_like(origin.value), jnp.full_like(origin.value, np.inf)
        low = Trial(zero, origin.value, origin.slope)
        high = Trial(infinity, infinity, infinity)
        none = jnp.zeros((), np.int32)
        return _Wolfe(
            origin=origin, low=low, high=high, width=infinity, best=low, rank=none, num_trials=none
        )

    def tell(self, search: _Wolfe, trial: Trial) -> tuple[_Wolfe, Answer]:
        origin, step = search.origin, trial.step
        slope_rtol, curv_rtol = jnp.asarray(self.slope_rtol), jnp.asarray(self.curv_rtol)
        relative = jnp.asarray(self.approx_dec_rtol) * jnp.abs(origin.value)
        noise = jnp.minimum(9 * origin.eps * origin.scale, MAX_NOISE * jnp.abs(origin.value))
        floor = jnp.maximum(relative, noise)
        finite = jnp.isfinite(trial.value) & jnp.isfinite(trial.slope)
        fine = finite & (trial.value <= origin.value + floor)
        # Not `value - bound`: if the bound is rounded to the first value, steps that change nothing
        # would pass, and at a minimum each such step moves a little away from it.
        excess = (trial.value - origin.value) - slope_rtol * step * origin.slope
        armijo = finite & (excess <= 0)
        low_enough = armijo | (fine & (trial.slope <= -0.8 * origin.slope))
        flat = trial.slope >= curv_rtol * origin.slope
        accepted = low_enough & flat

        # The interval.
        too_short = low_enough & ~flat
        low = select(too_short, trial, search.low)
        high = select(low_enough, search.high, trial)
        bracketed = jnp.isfinite(high.step)
        width = high.step - low.step
        num_trials = search.num_trials + 1

        # The next trial.
        reach = secant(search.low.step, search.low.slope, step, trial.slope)
        reach = jnp.where(trial.slope > search.low.slope, reach, jnp.inf)
        longer = jnp.clip(reach, 1.5 * step, 10 * step)
        narrower = _between(low, high, origin)
        stuck = (num_trials >= 4) & (width >= 0.66 * search.width)
        narrower = jnp.where(stuck, low.step + width / 2, narrower)
        narrower = jnp.where(finite, narrower, low.step + 0.1 * (step - low.step))
        following = jnp.where(bracketed, narrower, longer)

        # The trial to return to.
        flatter = (search.rank < 2) | (jnp.abs(trial.slope) < jnp.abs(search.best.slope))
        lower = finite & (
            trial.value < jnp.where(search.rank == 1, search.best.value, origin.value)
        )
        flatter = flatter & fine & (jnp.abs(trial.slope) < jnp.abs(origin.slope))
        rank = jnp.where(too_short & armijo, 3, jnp.where(flatter, 2, jnp.where(lower, 1, 0)))
        keep = (rank > 0) & (rank >= search.rank)
        rank = jnp.where(keep, rank, search.rank).astype(np.int32)
        best = select(keep, trial, search.best)

        collapsed = bracketed & (width <= origin.eps * high.step)
        ended = (
            (num_trials >= jnp.asarray(self.max_linesearch_steps))
            | collapsed
            | ~jnp.isfinite(following)
        )
        otherwise = jnp.where(ended, jnp.where(rank > 0, RETURN, FAIL), TRY)
        verdict = jnp.where(accepted, ACCEPT, otherwise)
        taken = jnp.where(ended & (rank > 0), best.step, following)
        answer = Answer(
            verdict,
            jnp.where(accepted | (verdict == FAIL), step, taken),
            keep=keep,
            not_worse=fine,
            decrease_error=jnp.where(finite, jnp.where(low_enough, 0.0, excess), jnp.inf),
            curvature_error=jnp.where(
                finite, jnp.maximum(curv_rtol * origin.slope - trial.slope, 0), jnp.inf
            ),
        )
        return _Wolfe(
            origin=origin,
            low=low,
            high=high,
            width=width,
            best=best,
            rank=rank,
            num_trials=num_trials,
        ), answer


def _between(low: Trial, high: Trial, origin: Origin) -> Float[Array, ""]:
    """A step within the interval, and not too near to its ends."""
    width = high.step - low.step
    cubic = cubic_minimizer(low.step, low.value, low.slope, high.step, high.value, high.slope)
    # Values that hardly differ are dominated by rounding.
    alike = jnp.abs(high.value - low.value) <= origin.eps ** (2 / 3) * jnp.abs(origin.value)
    by_slopes = secant(low.step, low.slope, high.step, high.slope)
    step = jnp.where(alike & (high.slope > 0), by_slopes, cubic)
    step = jnp.where(jnp.isfinite(step), step, low.step + width / 2)
    return jnp.clip(step, low.step + 0.1 * width, low.step + 0.9 * width)
