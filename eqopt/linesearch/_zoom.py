"""A search for the strong Wolfe conditions, by an interval and zooming into it."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._base.converters import decay_factor, flag, non_negative, optional, positive, real, steps
from .._base.trees import select
from .._base.types import Scalar, Steps
from ._base import AbstractLinesearch, ACCEPT, Answer, capped, FAIL, Origin, RETURN, Trial, TRY
from ._first_step import Guess, guess, keep_step
from ._interpolation import quadratic_minimizer

# How good the best trial so far is.
_NONE, _LOWER, _SAFE = (np.int32(i) for i in range(3))


class _Zoom(eqx.Module):
    origin: Origin
    zooming: Bool[Array, ""]
    low: Trial  # the interval's end with enough decrease; before it is found, the last trial
    high: Trial  # the other end, on either side
    third: Trial  # a former end of the interval, also used by the cubic
    best: Trial  # the trial to return to
    rank: Int[Array, ""]
    num_trials: Int[Array, ""]


class ScaleByZoomLinesearch(AbstractLinesearch[_Zoom]):
    r"""Scales the updates by a step at which the objective is lower, and nearly flat.

    With $\phi(\alpha)$ the objective at `params + alpha * updates`, the step $\alpha$ is accepted
    if it satisfies the strong Wolfe conditions

    $$\phi(\alpha) \le \phi(0) + c_1 \alpha \phi'(0), \qquad
    |\phi'(\alpha)| \le c_2\, |\phi'(0)|$$

    where the first may be replaced, once rounding hides the difference of values, by Hager and
    Zhang's

    $$\phi(\alpha) \le \phi(0) + r\, |\phi(0)|, \qquad \phi'(\alpha) \le (2 c_1 - 1)\, \phi'(0)$$

    Steps are multiplied by `increase_factor` until an interval is known to hold such a step. Then
    the interval is narrowed: by cubic interpolation if that gives a step no nearer to its ends than
    0.2 of its width, else by quadratic interpolation if no nearer than 0.1, else by bisection.

    If no step is accepted, the best step is taken: a step with enough decrease, else a step with a
    lower value. If no step is lower, the updates are zero. `state.info.result` says which.

    **Arguments:**

    - `max_linesearch_steps`: the largest number of evaluations in one search; at least 1.
    - `max_learning_rate`: the longest step, positive, or `None`. It is taken if the objective is
        low enough there, and still falls.
    - `tol`: how much each condition may be violated, in the units of $\phi$ and $\phi'$; at
        least 0.
    - `increase_factor`: the factor of the step while it is too short; greater than 1.
    - `slope_rtol`: the required fraction $c_1$ of the decrease predicted by the slope; in $[0, 1)$.
    - `curv_rtol`: the allowed fraction $c_2$ of the first slope; at least 0. With infinity, only
        enough decrease is required.
    - `approx_dec_rtol`: the relative increase $r$ that counts as rounding; at least 0. With `None`,
        the Wolfe conditions themselves are required.
    - `stepsize_precision`: the width of an interval at which the search ends, if a step with enough
        decrease is known; at least 0.
    - `initial_guess_strategy`: a function from the last step taken to the first one tried:
        [`eqopt.linesearch.keep_step`][], [`eqopt.linesearch.double_step`][],
        [`eqopt.linesearch.unit_step`][] or another. `"keep"` and `"one"` stand for the first and
        the last. Static.
    - `verbose`: whether each search is printed.

    Its `update` needs `params`, `value`, `grad` and `value_fn`; pass the other arguments of
    `value_fn` to `update` by keyword. `step` passes all of these.

    ??? cite "Reference"

        Nocedal and Wright, *Numerical Optimization*, 2nd edition, 2006, algorithms 3.5 and 3.6;
        Hager and Zhang, *Algorithm 851: CG_DESCENT, a conjugate gradient method with guaranteed
        descent*, ACM Transactions on Mathematical Software 32, 2006, equations 23 and 27.
    """

    max_linesearch_steps: Steps = eqx.field(converter=steps("max_linesearch_steps", at_least=1))
    max_learning_rate: Scalar | None = eqx.field(
        converter=optional(positive("max_learning_rate")), default=None
    )
    tol: Scalar = eqx.field(converter=non_negative("tol"), default=0.0)
    increase_factor: Scalar = eqx.field(converter=real("increase_factor", above=1), default=2.0)
    slope_rtol: Scalar = eqx.field(converter=decay_factor("slope_rtol"), default=1e-4)
    curv_rtol: Scalar = eqx.field(
        converter=real("curv_rtol", at_least=0, finite=False), default=0.9
    )
    approx_dec_rtol: Scalar | None = eqx.field(
        converter=optional(non_negative("approx_dec_rtol")), default=1e-6
    )
    stepsize_precision: Scalar = eqx.field(
        converter=non_negative("stepsize_precision"), default=1e-5
    )
    initial_guess_strategy: Guess = eqx.field(converter=guess, static=True, default=keep_step)
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

    def start(self, origin: Origin) -> _Zoom:
        zero = jnp.zeros_like(origin.value)
        begin = Trial(zero, origin.value, origin.slope)
        none = jnp.zeros((), np.int32)
        return _Zoom(
            origin=origin,
            zooming=jnp.asarray(False),
            low=begin,
            high=begin,
            third=begin,
            best=begin,
            rank=none,
            num_trials=none,
        )

    def tell(self, search: _Zoom, trial: Trial) -> tuple[_Zoom, Answer]:
        origin, step = search.origin, trial.step
        low, high, tol = search.low, search.high, jnp.asarray(self.tol)
        num_trials = search.num_trials + 1
        decrease, curvature = self._errors(origin, trial)
        accepted = jnp.maximum(decrease, curvature) <= tol

        # The interval, which either phase of the search finds or narrows. (Trials are not compared
        # with the start: rounding may make it seem as high.)
        too_high = (decrease > 0) | ((search.num_trials > 0) & (trial.value >= low.value))
        turned = ~search.zooming | (trial.slope * (high.step - low.step) >= 0)
        lost = select(too_high | turned, high, low)
        high = select(too_high, trial, select(turned, low, high))
        low = select(too_high, low, trial)
        third = select(search.zooming, lost, low)
        zooming = search.zooming | too_high | (trial.slope >= 0)
        following = jnp.where(
            zooming,
            _between(low, high, third),
            capped(jnp.asarray(self.increase_factor) * step, self.max_learning_rate),
        )
        at_limit = jnp.asarray(False)
        if self.max_learning_rate is not None:
            at_limit = ~zooming & (step >= jnp.asarray(self.max_learning_rate))

        # The trial to return to. While steps grow, the last trial is the best.
        known = jnp.where(search.rank == _SAFE, search.best.value, origin.value)
        safe = (decrease <= tol) & (~search.zooming | (trial.value < known))
        known = jnp.where(search.rank == _LOWER, search.best.value, origin.value)
        lower = (search.rank < _SAFE) & jnp.isfinite(decrease) & (trial.value < known)
        rank = jnp.where(safe, _SAFE, jnp.where(lower, _LOWER, search.rank))
        best = select(safe | lower, trial, search.best)

        width = jnp.abs(search.high.step - search.low.step)
        narrow = search.zooming & (width <= jnp.asarray(self.stepsize_precision)) & (rank == _SAFE)
        width, longest = jnp.abs(high.step - low.step), jnp.maximum(high.step, low.step)
        collapsed = zooming & (width <= origin.eps * longest)
        spent = num_trials >= jnp.asarray(self.max_linesearch_steps)
        ended = spent | narrow | collapsed | ~jnp.isfinite(following)
        otherwise = jnp.where(ended, jnp.where(rank > _NONE, RETURN, FAIL), TRY)
        verdict = jnp.where(accepted | at_limit, ACCEPT, otherwise)
        # A step so small that it could hardly be increased again is not remembered.
        failed = jnp.where((step > origin.eps) & jnp.isfinite(step), step, 1)
        taken = jnp.where(verdict == RETURN, best.step, following)
        taken = jnp.where(verdict == FAIL, failed, jnp.where(verdict == ACCEPT, step, taken))
        answer = Answer(
            verdict,
            taken,
            keep=safe | lower,
            not_worse=jnp.isfinite(decrease) & (trial.value <= origin.value + self._floor(origin)),
            decrease_error=jnp.where(decrease <= tol, 0, decrease),
            curvature_error=jnp.where(curvature <= tol, 0, curvature),
        )
        return _Zoom(
            origin=origin,
            zooming=zooming,
            low=low,
            high=high,
            third=third,
            best=best,
            rank=rank,
            num_trials=num_trials,
        ), answer

    def _floor(self, origin: Origin) -> Float[Array, ""]:
        if self.approx_dec_rtol is None:
            return jnp.zeros_like(origin.value)
        return jnp.asarray(self.approx_dec_rtol) * jnp.abs(origin.value)

    def _errors(self, origin: Origin, trial: Trial) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """By how much a trial violates either condition."""
        slope_rtol, curv_rtol = jnp.asarray(self.slope_rtol), jnp.asarray(self.curv_rtol)
        finite = jnp.isfinite(trial.value) & jnp.isfinite(trial.slope)
        excess = trial.value - origin.value
        decrease = excess - slope_rtol * trial.step * origin.slope
        if self.approx_dec_rtol is not None:
            by_slope = trial.slope - (2 * slope_rtol - 1) * origin.slope
            by_slope = jnp.maximum(by_slope, excess - self._floor(origin))
            decrease = jnp.minimum(decrease, by_slope)
        curvature = jnp.abs(trial.slope) - curv_rtol * jnp.abs(origin.slope)
        # Infinity times a slope of 0 is NaN.
        curvature = jnp.where(jnp.isinf(curv_rtol), 0, curvature)
        return (
            jnp.where(finite, jnp.maximum(decrease, 0), jnp.inf),
            jnp.where(finite, jnp.maximum(curvature, 0), jnp.inf),
        )


def _between(low: Trial, high: Trial, third: Trial) -> Float[Array, ""]:
    """A step within the interval, and not too near to its ends."""
    a, fa, ga, b, fb = low.step, low.value, low.slope, high.step, high.value
    left, width = jnp.minimum(a, b), jnp.abs(b - a)

    def inside(step: Float[Array, ""], margin: float) -> Bool[Array, ""]:
        # False for NaN, which interpolation gives if there is no minimum, or no finite value.
        return (step > left + margin * width) & (step < left + (1 - margin) * width)

    cubic = _cubic_minimizer(low, high, third)
    quadratic = quadratic_minimizer(a, fa, ga, b, fb)
    step = jnp.where(inside(quadratic, 0.1), quadratic, left + width / 2)
    return jnp.where(inside(cubic, 0.2), cubic, step)


def _cubic_minimizer(low: Trial, high: Trial, third: Trial) -> Float[Array, ""]:
    """The minimizer of the cubic through three points, with the slope of the first.

    NaN if it has none, or if two points coincide.
    """
    to_high, to_third = high.step - low.step, third.step - low.step

    def beyond(point: Trial, distance: Float[Array, ""]) -> Float[Array, ""]:
        return (point.value - low.value - low.slope * distance) / jnp.square(distance)

    a, b = beyond(high, to_high), beyond(third, to_third)
    cubic = (a - b) / (to_high - to_third)
    square = (b * to_high - a * to_third) / (to_high - to_third)
    root = jnp.sqrt(jnp.square(square) - 3 * cubic * low.slope)
    # Two forms of the same formula; one of them cancels.
    stable = jnp.where(square > 0, -low.slope / (square + root), (root - square) / (3 * cubic))
    return low.step + stable
