"""Line searches: a search over scalars, and the driver that evaluates its trials on trees.

In: a direction, parameters, the objective. Out: the chosen step's updates and its evaluation.
A search sees only scalars, so that it serves as a link of a chain and in the loop of `minimize`.
"""

import abc
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import wadler_lindig as wl
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._base.arithmetic import cast, times, wider
from .._base.converters import float_dtype, module_pdoc
from .._base.trees import conj, inner, mask_like, select, zeros_exactly_like
from .._base.types import Params, Scalar, Updates
from .._base.xla import going_on
from .._objective.cache import check_aux_fits, empty_cache, filled, LinesearchState
from .._objective.objective import AnyEvaluation, Context, Evaluation, FullProblem, require_params
from .._transformation.nesting import AbstractConstrained, Requirement

# The machine's verdict on a trial.
TRY, ACCEPT, RETURN, FAIL = (np.int32(i) for i in range(4))


class LinesearchResult(eqx.Enumeration):
    """How a line search ended."""

    successful = "The step taken satisfies the conditions of the search."
    max_learning_rate = (
        "The largest step allowed was taken; the objective still falls there as steeply as before."
    )
    returned = "No step met every condition; the best of those tried was taken."
    not_descent = "The updates do not point downhill, and the parameters were kept."
    nonfinite_start = (
        "The updates, the objective or its gradient are not finite where the search begins; the "
        "parameters were kept."
    )
    nonfinite = "No step was found at which the objective is finite; the parameters were kept."
    no_decrease = "No step was found that decreases the objective; the parameters were kept."


class LinesearchInfo(eqx.Module):
    """How a line search went.

    **Arguments:**

    - `num_linesearch_steps`: how many times it evaluated the objective.
    - `decrease_error`: by how much the decrease of the last trial was too small.
    - `curvature_error`: by how much its slope was too steep; 0 without a condition on slopes.
    - `result`: an [`eqopt.linesearch.LinesearchResult`][], with a message.
    """

    num_linesearch_steps: Int[Array, ""]
    decrease_error: Float[Array, ""]
    curvature_error: Float[Array, ""]
    result: Any

    def __pdoc__(self, **kwargs: object) -> wl.AbstractDoc:
        return module_pdoc(self, **kwargs)


class Origin(eqx.Module):
    """Where a search begins.

    **Arguments:**

    - `value`, `slope`: the objective there, and its derivative along the direction.
    - `scale`: the largest magnitude of the objective's values so far.
    - `eps`: the spacing of the objective's floating-point numbers at 1. Static.
    """

    value: Float[Array, ""]
    slope: Float[Array, ""]
    scale: Float[Array, ""]
    eps: float = eqx.field(static=True)


class Trial(eqx.Module):
    """The machine's input: one evaluated step.

    **Arguments:**

    - `step`: the step that was tried.
    - `value`, `slope`: the objective there, and its derivative along the direction, or along its
        projection onto the bounds. The slope is NaN if the machine asks for no gradients.
    """

    step: Float[Array, ""]
    value: Float[Array, ""]
    slope: Float[Array, ""]


class Answer(eqx.Module):
    """The machine's output.

    **Arguments:**

    - `verdict`: `TRY` another step, `ACCEPT` this one, `RETURN` to the one kept, or `FAIL`. A step
        accepted with a positive `curvature_error` is the longest allowed.
    - `step`: the step to try or to take; after a failure, a first step for the next search.
    - `keep`: whether to keep this trial, so that the search can return to it.
    - `not_worse`: whether the value is no higher than at the start, up to rounding.
    - `decrease_error`, `curvature_error`: as in [`eqopt.linesearch.LinesearchInfo`][].
    """

    verdict: Int[Array, ""]
    step: Float[Array, ""]
    keep: Bool[Array, ""]
    not_worse: Bool[Array, ""]
    decrease_error: Float[Array, ""]
    curvature_error: Float[Array, ""]


Search = TypeVar("Search", bound=eqx.Module)


class AbstractLinesearch(AbstractConstrained[LinesearchState[LinesearchInfo]], Generic[Search]):
    """A link that decides how far to go along the updates that reach it.

    A search is written as a machine over scalars: `start` and `tell`. It never sees a tree. The
    same machine serves as a link of a chain, and in the one loop of [`eqopt.minimize`][].
    """

    @property
    @abc.abstractmethod
    def keeps_grad(self) -> bool:
        """Whether trials are evaluated with their gradients, and the accepted one is kept."""

    @property
    @abc.abstractmethod
    def may_return_to_best(self) -> bool:
        """Whether the machine ever returns to a trial before the last."""

    @property
    @abc.abstractmethod
    def is_verbose(self) -> bool:
        """Whether each search is printed."""

    @abc.abstractmethod
    def first_step(self, learning_rate: Float[Array, ""]) -> Float[Array, ""]:
        """The first step to try, from the one that was taken last."""

    @abc.abstractmethod
    def start(self, origin: Origin) -> Search:
        """The machine at the start of a search."""

    @abc.abstractmethod
    def tell(self, search: Search, trial: Trial) -> tuple[Search, Answer]:
        """The machine after a trial, and its answer."""

    def requirements(self) -> frozenset[Requirement]:
        return frozenset({Requirement.OBJECTIVE, Requirement.STEP})

    def init_state(self, params: Params, context: Context) -> LinesearchState[LinesearchInfo]:
        whole = context.whole or FullProblem(params, context.value_fn)
        dtype = float_dtype()
        info = LinesearchInfo(
            jnp.zeros((), np.int32),
            jnp.full((), np.inf, dtype),
            jnp.full((), np.inf, dtype),
            jax.tree.map(jnp.asarray, LinesearchResult.successful),
        )
        cache = empty_cache(whole) if self.keeps_grad else None
        return LinesearchState(jnp.ones((), dtype), jnp.zeros((), dtype), cache, info)

    def transform(
        self,
        updates: Updates,
        state: LinesearchState[LinesearchInfo],
        params: Params | None,
        context: Context,
    ) -> tuple[Updates, LinesearchState[LinesearchInfo]]:
        require_params(params, self, context)
        value, grad = context.require("value", self), context.require("grad", self)
        whole = context.whole or FullProblem(params, context.value_fn)
        objective = whole.objective or context.require("value_fn", self)
        start = begin(self, state, whole, value, grad)
        line = begin_line(self, state, whole, start, updates)

        def body(line: "Line[Search]") -> "Line[Search]":
            trial = evaluate(self, objective, whole.moved(line.updates))
            if state.cache is not None:
                check_aux_fits(trial.aux, state.cache)
            return advance(self, line, whole, updates, trial)

        line = lax.while_loop(_searching, body, line)
        known = whole.evaluation is not None
        return line.updates, finish(self, state, whole, start, line, known=known)


class Line(eqx.Module, Generic[Search]):
    """A search under way.

    **Arguments:**

    - `search`: the machine.
    - `verdict`, `step`, `result`: its last answer.
    - `updates`: the trial step's updates, rounded to the parameters' dtypes. The search returns
        them, so the user reaches, bit for bit, the point that was evaluated.
    - `trial`: the objective at the last trial.
    - `kept`: the objective at the trial kept, or `None`.
    """

    search: Search
    verdict: Int[Array, ""]
    step: Float[Array, ""]
    updates: Updates
    trial: AnyEvaluation
    kept: AnyEvaluation | None
    origin: Origin
    info: LinesearchInfo


def _searching(line: Line[Any]) -> Bool[Array, ""]:
    return going_on(line.verdict == TRY, line.info.num_linesearch_steps)


def begin(
    linesearch: AbstractLinesearch[Any],
    state: LinesearchState[LinesearchInfo],
    whole: FullProblem,
    value: object,
    grad: PyTree,
) -> AnyEvaluation:
    """The evaluation where the search begins, in the same form as trials."""
    if whole.evaluation is not None:
        aux = whole.evaluation.aux
    else:  # unknown here; the aux of the last point has the right shapes
        aux = None if state.cache is None else state.cache.evaluation.aux
    value = jnp.asarray(value)
    if not linesearch.keeps_grad:
        return Evaluation(value, conj(grad), None)
    return Evaluation(value, eqx.combine(conj(grad), zeros_exactly_like(whole.params)), aux)


def begin_line(
    linesearch: AbstractLinesearch[Search],
    state: LinesearchState[LinesearchInfo],
    whole: FullProblem,
    start: AnyEvaluation,
    direction: Updates,
) -> Line[Search]:
    """A search before its first trial."""
    dtype = float_dtype()
    value, slope = start.value.astype(dtype), slope_of(start.grad, whole.unblocked(direction))
    scale = jnp.maximum(state.scale, jnp.where(jnp.isfinite(value), jnp.abs(value), 0))
    origin = Origin(value, slope, scale, float(jnp.finfo(start.value.dtype).eps))
    step = linesearch.first_step(state.learning_rate).astype(dtype)
    finite = jnp.isfinite(slope) & jnp.isfinite(value)
    downhill = slope <= 0
    result = LinesearchResult.where(
        finite,
        LinesearchResult.where(downhill, LinesearchResult.successful, LinesearchResult.not_descent),
        LinesearchResult.nonfinite_start,
    )
    going = finite & downhill
    updates = scaled(direction, step, whole.params)
    grad = start.grad if linesearch.keeps_grad else None
    trial = Evaluation(value, grad, start.aux)
    unknown = jnp.full((), np.inf, dtype)
    return Line(
        search=linesearch.start(origin),
        verdict=jnp.where(going, TRY, FAIL),
        step=jnp.where(going, step, state.learning_rate),
        updates=select(going, updates, zeros_exactly_like(updates)),
        trial=trial,
        kept=trial if linesearch.may_return_to_best else None,
        origin=origin,
        info=LinesearchInfo(jnp.zeros((), np.int32), unknown, unknown, result),
    )


def advance(
    linesearch: AbstractLinesearch[Search],
    line: Line[Search],
    whole: FullProblem,
    direction: Updates,
    evaluation: AnyEvaluation,
    stop: Bool[Array, ""] | None = None,
) -> Line[Search]:
    """Gives one trial to the machine; with `stop`, accepts the trial if it is not worse."""
    value = evaluation.value
    slope = jnp.full_like(value, np.nan)
    if linesearch.keeps_grad:
        slope = slope_of(evaluation.grad, whole.unblocked(direction, line.updates))
    search, answer = linesearch.tell(line.search, Trial(line.step, value, slope))
    # A search that could not begin has failed, even if the machine accepts.
    verdict = jnp.where(line.verdict == FAIL, FAIL, answer.verdict)
    step = answer.step
    if stop is not None:
        stop = stop & answer.not_worse
        verdict = jnp.where(stop, ACCEPT, verdict)
        step = jnp.where(stop, line.step, step)
    failed = verdict == FAIL
    trial = scaled(direction, step, whole.params)
    updates = select(failed, zeros_exactly_like(trial), trial)
    kept = None
    if line.kept is not None:
        kept = select(answer.keep, evaluation, line.kept)
    result = LinesearchResult.where(
        verdict == RETURN, LinesearchResult.returned, LinesearchResult.successful
    )
    failure = LinesearchResult.where(
        jnp.isfinite(value), LinesearchResult.no_decrease, LinesearchResult.nonfinite
    )
    at_limit = (answer.verdict == ACCEPT) & (answer.curvature_error > 0)
    result = LinesearchResult.where(at_limit, LinesearchResult.max_learning_rate, result)
    info = LinesearchInfo(
        line.info.num_linesearch_steps + 1,
        answer.decrease_error,
        answer.curvature_error,
        LinesearchResult.where(failed, failure, result),
    )
    return Line(
        search=search,
        verdict=verdict,
        step=step,
        updates=updates,
        trial=evaluation,
        kept=kept,
        origin=line.origin,
        info=info,
    )


def outcome(line: Line[Any], start: AnyEvaluation) -> AnyEvaluation:
    """The objective at the point that an ended search has chosen."""
    chosen = line.trial
    if line.kept is not None:
        chosen = select(line.verdict == RETURN, line.kept, chosen)
    start = Evaluation(start.value.astype(chosen.value.dtype), start.grad, start.aux)
    return select(line.verdict == FAIL, start, chosen)


def finish(
    linesearch: AbstractLinesearch[Any],
    state: LinesearchState[LinesearchInfo],
    whole: FullProblem,
    start: AnyEvaluation,
    line: Line[Any],
    *,
    known: bool,
) -> LinesearchState[LinesearchInfo]:
    """The state after a search; `known` tells whether `start` is certain."""
    cache = state.cache
    if cache is not None and whole.objective is not None:
        point = whole.moved(line.updates)
        sure = known | (line.verdict != FAIL)
        cache = filled(cache, whole.objective, point, outcome(line, start), sure)
    if linesearch.is_verbose:
        _print(type(linesearch).__name__, line)
    return LinesearchState(line.step, line.origin.scale, cache, line.info)


def evaluate(linesearch: AbstractLinesearch[Any], objective: Any, at: PyTree) -> AnyEvaluation:
    """The evaluation of a trial, with the gradient if the search keeps it."""
    if linesearch.keeps_grad:
        found = objective.evaluate(at)
        return Evaluation(found.value.astype(float_dtype()), found.grad, found.aux)
    value, _ = objective(at)
    return Evaluation(value.astype(float_dtype()), None, None)


def capped(step: Float[Array, ""], limit: Scalar | None) -> Float[Array, ""]:
    """The step, or the longest step allowed."""
    return step if limit is None else jnp.minimum(step, jnp.asarray(limit))


def scaled(direction: Updates, step: Float[Array, ""], like: PyTree) -> Updates:
    """The updates of a step, rounded to the dtypes of `like`."""

    def scale(d: Array | None, x: Array | None) -> Array | None:
        if d is None or x is None:
            return None
        dtype = wider(d.dtype)
        real = jnp.finfo(dtype).dtype
        return cast(times(cast(d, dtype), cast(step, real)), x.dtype)

    return jax.tree.map(scale, direction, like, is_leaf=lambda x: x is None)


def slope_of(grad: PyTree, direction: Updates) -> Float[Array, ""]:
    """The derivative along a direction, from a gradient as `jax.grad` gives it."""
    return inner(conj(mask_like(direction, grad)), direction)


def _print(name: str, line: Line[Any]) -> None:
    jax.debug.print(
        name + ": {num} evaluations, step {step:.3e}, value {before:.6e} -> {after:.6e}",
        num=line.info.num_linesearch_steps,
        step=jnp.where(line.verdict == FAIL, 0.0, line.step),
        before=line.origin.value,
        after=line.trial.value,
    )
