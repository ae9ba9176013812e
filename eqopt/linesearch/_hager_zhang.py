"""Hager and Zhang's search for the approximate Wolfe conditions."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._base.converters import flag, non_negative, optional, positive, real, steps
from .._base.trees import select
from .._base.types import Scalar, Steps
from ._base import AbstractLinesearch, ACCEPT, Answer, capped, FAIL, Origin, RETURN, Trial, TRY
from ._first_step import double_step, Guess, guess
from ._interpolation import secant

# The origin of a trial: a secant through both ends, a second secant through the end that the first
# has moved, or the middle.
_SECANT, _SECOND, _MIDDLE = (np.int32(i) for i in range(3))

# If the secants leave more than this fraction of the interval, it is bisected: the paper's gamma.
_SHRINK = 0.66


class _HagerZhang(eqx.Module):
    origin: Origin
    low: Trial  # falling, and no higher than the start
    high: Trial  # rising; or too high, while bisecting; infinity before the first
    bisecting: Bool[Array, ""]  # until the upper end is rising
    phase: Int[Array, ""]
    width: Float[Array, ""]  # the interval's width before the secants
    best: Trial  # the trial to return to
    num_trials: Int[Array, ""]


class ScaleByHagerZhangLinesearch(AbstractLinesearch[_HagerZhang]):
    r"""Scales the updates by a step that satisfies the Wolfe conditions, or approximately so.

    With $\phi(\alpha)$ the objective at `params + alpha * updates`, the step $\alpha$ is accepted
    if it satisfies the Wolfe conditions

    $$\phi(\alpha) \le \phi(0) + \delta \alpha \phi'(0), \qquad
    \phi'(\alpha) \ge \sigma \phi'(0)$$

    where the first may be replaced by

    $$\phi(\alpha) \le \phi(0) + \epsilon\, |\phi(0)|, \qquad
    \phi'(\alpha) \le (2\delta - 1)\, \phi'(0)$$

    which is the same for a parabola, and can be tested by slopes when values differ only by
    rounding. This is the search of CG_DESCENT: steps grow by `increase_factor` until the objective
    rises; then the interval is narrowed from both sides by two secants of the slopes, and bisected
    if that leaves more than 0.66 of it. Near a minimum an interval shrinks with order $1 + \sqrt
    2$.

    If no step is accepted, the lowest one is taken. If none is lower than the start, the updates
    are zero. `state.info.result` says which.

    **Arguments:**

    - `max_linesearch_steps`: the largest number of evaluations in one search; at least 1.
    - `max_learning_rate`: the longest step, positive, or `None`. It is taken if the objective is
        low enough there, and still falls.
    - `increase_factor`: the factor of the step while it is too short, the paper's $\rho$; greater
        than 1.
    - `slope_rtol`: the required fraction $\delta$ of the decrease predicted by the slope; in $(0,
        0.5)$.
    - `curv_rtol`: the allowed fraction $\sigma$ of the first slope; in $(0, 1)$, at least
        `slope_rtol`.
    - `approx_dec_rtol`: the relative increase $\epsilon$ that counts as rounding; at least 0.
    - `initial_guess_strategy`: a function from the last step taken to the first one tried:
        [`eqopt.linesearch.double_step`][], as in the paper, [`eqopt.linesearch.keep_step`][],
        [`eqopt.linesearch.unit_step`][] or another. `"keep"` and `"one"` stand for the last two.
        Static.
    - `verbose`: whether each search is printed.

    Its `update` needs `params`, `value`, `grad` and `value_fn`; pass the other arguments of
    `value_fn` to `update` by keyword. `step` passes all of these.

    ??? cite "Reference"

        Hager and Zhang, *A new conjugate gradient method with guaranteed descent and an efficient
        line search*, SIAM Journal on Optimization 16, 2005; *Algorithm 851: CG_DESCENT, a conjugate
        gradient method with guaranteed descent*, ACM Transactions on Mathematical Software 32,
        2006: L0 to L3, U0 to U3, S1 to S4, B0 to B3, with $\theta = 0.5$, $\gamma = 0.66$ and
        $\psi_2 = 2$.
    """

    max_linesearch_steps: Steps = eqx.field(
        converter=steps("max_linesearch_steps", at_least=1), default=30
    )
    max_learning_rate: Scalar | None = eqx.field(
        converter=optional(positive("max_learning_rate")), default=None
    )
    increase_factor: Scalar = eqx.field(converter=real("increase_factor", above=1), default=5.0)
    slope_rtol: Scalar = eqx.field(converter=real("slope_rtol", above=0, below=0.5), default=0.1)
    curv_rtol: Scalar = eqx.field(converter=real("curv_rtol", above=0, below=1), default=0.9)
    approx_dec_rtol: Scalar = eqx.field(converter=non_negative("approx_dec_rtol"), default=1e-6)
    initial_guess_strategy: Guess = eqx.field(converter=guess, static=True, default=double_step)
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
        return capped(self.initial_guess_strategy(learning_rate), self.max_learning_rate)

    def start(self, origin: Origin) -> _HagerZhang:
        zero, infinity = jnp.zeros_like(origin.value), jnp.full_like(origin.value, np.inf)
        low = Trial(zero, origin.value, origin.slope)
        high = Trial(infinity, infinity, infinity)
        phase, none = jnp.asarray(_MIDDLE), jnp.zeros((), np.int32)
        return _HagerZhang(
            origin=origin,
            low=low,
            high=high,
            bisecting=jnp.asarray(False),
            phase=phase,
            width=infinity,
            best=low,
            num_trials=none,
        )

    def tell(self, search: _HagerZhang, trial: Trial) -> tuple[_HagerZhang, Answer]:
        origin, step = search.origin, trial.step
        finite = jnp.isfinite(trial.value) & jnp.isfinite(trial.slope)
        fine = finite & (trial.value <= origin.value + self._floor(origin))
        decrease, curvature = self._errors(origin, trial)
        decrease = jnp.where(finite, decrease, jnp.inf)
        curvature = jnp.where(finite, curvature, jnp.inf)
        accepted = jnp.maximum(decrease, curvature) <= 0
        num_trials = search.num_trials + 1

        # The interval (U1 to U3). A trial that is too high, or not finite, becomes its upper end
        # too, and is bisected towards the lower one until a trial is rising.
        rising = finite & (trial.slope >= 0)
        falling = fine & ~rising
        low, high = select(falling, trial, search.low), select(falling, search.high, trial)
        bisecting = ~rising & (~fine | search.bisecting)
        expanding = ~jnp.isfinite(high.step)
        at_limit = jnp.asarray(False)
        if self.max_learning_rate is not None:
            at_limit = expanding & (step >= jnp.asarray(self.max_learning_rate))
        following, phase, width = _next(search, trial, low, high, bisecting)
        longer = capped(jnp.asarray(self.increase_factor) * step, self.max_learning_rate)
        following = jnp.where(expanding, longer, following)
        phase, width = jnp.where(expanding, _MIDDLE, phase), jnp.where(expanding, jnp.inf, width)

        keep = finite & (trial.value < search.best.value)
        best = select(keep, trial, search.best)
        collapsed = high.step - low.step <= origin.eps * high.step
        spent = num_trials >= jnp.asarray(self.max_linesearch_steps)
        ended = spent | (~expanding & collapsed) | at_limit | ~jnp.isfinite(following)
        otherwise = jnp.where(ended, jnp.where(best.step > 0, RETURN, FAIL), TRY)
        verdict = jnp.where(accepted | (at_limit & (decrease <= 0)), ACCEPT, otherwise)
        # A step so small that it could hardly be increased again is not remembered.
        failed = jnp.where((step > origin.eps) & jnp.isfinite(step), step, 1)
        taken = jnp.where(verdict == RETURN, best.step, following)
        taken = jnp.where(verdict == FAIL, failed, jnp.where(verdict == ACCEPT, step, taken))
        answer = Answer(
            verdict,
            taken,
            keep=keep,
            not_worse=fine,
            decrease_error=decrease,
            curvature_error=curvature,
        )
        search = _HagerZhang(
            origin=origin,
            low=low,
            high=high,
            bisecting=bisecting,
            phase=phase,
            width=width,
            best=best,
            num_trials=num_trials,
        )
        return search, answer

    def _floor(self, origin: Origin) -> Float[Array, ""]:
        return jnp.asarray(self.approx_dec_rtol) * jnp.abs(origin.value)

    def _errors(self, origin: Origin, trial: Trial) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """By how much a trial violates either condition."""
        slope_rtol, curv_rtol = jnp.asarray(self.slope_rtol), jnp.asarray(self.curv_rtol)
        excess = trial.value - origin.value
        by_value = excess - slope_rtol * trial.step * origin.slope
        by_slope = trial.slope - (2 * slope_rtol - 1) * origin.slope
        by_slope = jnp.maximum(by_slope, excess - self._floor(origin))
        curvature = curv_rtol * origin.slope - trial.slope
        return jnp.maximum(jnp.minimum(by_value, by_slope), 0), jnp.maximum(curvature, 0)


def _next(
    search: _HagerZhang, trial: Trial, low: Trial, high: Trial, bisecting: Bool[Array, ""]
) -> tuple[Float[Array, ""], Int[Array, ""], Float[Array, ""]]:
    """The next trial within the interval from `low` to `high`, and its origin."""

    def inside(step: Float[Array, ""]) -> Bool[Array, ""]:
        return (step > low.step) & (step < high.step)  # U0: another trial would tell nothing

    # S2 and S3: the secant through the moved end, before and after the move.
    moved = select(trial.slope < 0, search.low, search.high)
    second = secant(moved.step, moved.slope, trial.step, trial.slope)
    again = (search.phase == _SECANT) & ~search.bisecting & inside(second)
    # L2: the secants must shrink the interval enough.
    width = high.step - low.step
    by_secants = (search.phase != _MIDDLE) & (width > _SHRINK * search.width)
    # L1: two more secants.
    first = secant(low.step, low.slope, high.step, high.slope)
    halve = bisecting | (~again & (by_secants | ~inside(first)))
    middle = low.step + width / 2
    step = jnp.where(halve, middle, jnp.where(again, second, first))
    phase = jnp.where(halve, _MIDDLE, jnp.where(again, _SECOND, _SECANT))
    # Bisection towards a rising end belongs to the step that it interrupts.
    phase = jnp.where(bisecting, search.phase, phase)
    ongoing = bisecting | again
    return step, phase, jnp.where(ongoing, search.width, width)
