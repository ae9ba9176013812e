"""The loop of `minimize`, which evaluates the objective once in each round.

In: objective, optimizer, first parameters, tolerances. Out: the best point, and how it ended. Each
trial of a line search is a round: under `vmap`, nested loops would wait for the longest search.
"""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._base import checks
from .._base.converters import float_dtype
from .._base.ravel import Ravel
from .._base.trees import add_updates, all_finite, conj, inner, select, zeros_exactly_like
from .._base.types import Params, Updates
from .._base.xla import going_on
from .._objective.cache import evaluate, filled, LinesearchState, searches
from .._objective.objective import AnyEvaluation, Context, Evaluation, FullProblem, Objective
from .._transformation.base import AnyTransformation
from ..linesearch._base import (
    AbstractLinesearch,
    advance,
    begin_line,
    evaluate as evaluate_trial,
    FAIL,
    Line,
    LinesearchInfo,
    outcome,
    scaled,
    TRY,
)
from .search_chain import (
    commutes_with_ravel,
    last_search,
    own_state,
    raveled,
    transform_until_search,
)


class MinimizeResult(eqx.Enumeration):
    """How [`eqopt.minimize`][] ended."""

    successful = "Converged: no entry of the gradient is larger than `gtol`."
    small_decrease = "The objective hardly decreases any more (`ftol`)."
    small_step = "The parameters hardly change any more (`xtol`)."
    precision = (
        "The objective cannot be decreased further in its floating-point precision; the gradient "
        "is still larger than `gtol`."
    )
    max_steps = "`max_steps` steps were taken. Allow more, or scale the parameters alike."
    max_evals = "The objective was evaluated `max_evals` times. Allow more."
    no_decrease = (
        "No step was found that decreases the objective. Is its gradient right (`jax.test_util."
        "check_grads`), and is it smooth and deterministic?"
    )
    nonfinite = (
        "The objective or its gradient is not finite at the first parameters, or it has no lower "
        "bound. Start elsewhere, or look for the NaN by `jax.config.update('jax_debug_nans', True)`"
    )


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


class MinimizeCarry(eqx.Module):
    """The state of the loop.

    **Arguments:**

    - `params`, `evaluation`: the best point, and the objective there.
    - `state`: the optimizer's state.
    - `search`: the line search that runs from there, or `None`.
    - `num_steps`, `num_evals`, `num_failures`: steps, evaluations, and failed searches in a row.
    - `lowest`, `best_grad_norm`, `num_idle`: the lowest value and gradient, and steps since either.
    - `result`, `done`: how the loop ended, if it has.
    - `values`: the value after each step, or `None`.
    """

    params: Params
    evaluation: AnyEvaluation
    state: PyTree
    search: "_Search | None"
    num_steps: Int[Array, ""]
    num_evals: Int[Array, ""]
    num_failures: Int[Array, ""]
    lowest: Float[Array, ""]
    best_grad_norm: Float[Array, ""]
    num_idle: Int[Array, ""]
    result: Any
    done: Bool[Array, ""]
    values: Float[Array, " steps+1"] | None


class _Search(eqx.Module):
    line: Line[Any]
    direction: Updates
    # Without its cache, which is filled once, at the end.
    state: LinesearchState[LinesearchInfo]


def descend(
    objective: Objective,
    optimizer: AnyTransformation,
    params: Params,
    tolerances: Tolerances,
    show: object,
    history: int | None,
) -> MinimizeCarry:
    """Runs the optimizer until it has converged, has failed or has reached a limit."""
    if not commutes_with_ravel(optimizer):
        return _descend(objective, optimizer, params, tolerances, show, history)
    ravel = Ravel(params)
    packed, bundle = raveled(objective, ravel), ravel.pack(params)
    return ravel.unpack_all(_descend(packed, optimizer, bundle, tolerances, show, history))


def _descend(
    objective: Objective,
    optimizer: AnyTransformation,
    params: Params,
    tolerances: Tolerances,
    show: object,
    history: int | None,
) -> MinimizeCarry:
    dtype, zero = float_dtype(), jnp.zeros((), np.int32)
    traced, shapes = objective.traced(params)
    state = optimizer.init_state(params, Context(whole=FullProblem(params, traced)))
    blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes.value, shapes.aux))
    evaluation = Evaluation(blank[0].astype(dtype), zeros_exactly_like(params), blank[1])
    task = Problem(
        objective=traced,
        optimizer=optimizer,
        tolerances=tolerances,
        show=show,
        dtype=shapes.value.dtype,
    )
    d = MinimizeCarry(
        params=params,
        evaluation=evaluation,
        state=state,
        search=None,
        num_steps=zero,
        num_evals=zero,
        num_failures=zero,
        lowest=jnp.full((), np.inf, dtype),
        best_grad_norm=jnp.full((), np.inf, dtype),
        num_idle=zero,
        result=jax.tree.map(jnp.asarray, MinimizeResult.successful),
        done=jnp.asarray(False),
        values=None if history is None else jnp.full(history + 1, np.inf, dtype),
    )
    linesearch = last_search(optimizer)
    if linesearch is None:
        d = lax.while_loop(_going, lambda d: _step(task, d), d)
    else:
        d = _descend_by_search(task, linesearch, d)
    found = d.evaluation
    value = found.value.astype(shapes.value.dtype)
    return eqx.tree_at(lambda d: d.evaluation, d, Evaluation(value, found.grad, found.aux))


def _going(d: MinimizeCarry) -> Bool[Array, ""]:
    return going_on(~d.done, d.num_evals)


class Problem(eqx.Module):
    """The task of the loop; see `minimize`."""

    objective: Objective
    optimizer: AnyTransformation
    tolerances: Tolerances
    show: Any
    dtype: Any = eqx.field(static=True)

    def context(self, params: Params, evaluation: AnyEvaluation) -> Context:
        whole = FullProblem(params, self.objective, evaluation)
        value = evaluation.value.astype(self.dtype)
        return Context(
            value=value,
            grad=conj(evaluation.grad),
            value_fn=self.objective,
            key=None,
            extra={},
            whole=whole,
        )


def _step(task: Problem, d: MinimizeCarry) -> MinimizeCarry:
    """One step of an optimizer that does not end in a line search."""
    found, _, num_evals = evaluate(task.objective, d.params, d.state)
    found = Evaluation(found.value.astype(float_dtype()), found.grad, found.aux)
    d = eqx.tree_at(lambda d: d.num_evals, d, d.num_evals + num_evals)
    d = _accept_and_check(
        task, d, d.params, found, first=d.num_evals == num_evals, failed=jnp.asarray(False)
    )

    def go_on(d: MinimizeCarry) -> MinimizeCarry:
        context = task.context(d.params, found)
        updates, state = task.optimizer.transform(context.grad, d.state, d.params, context)
        params = add_updates(d.params, scaled(updates, jnp.ones(()), d.params))
        trials = sum(x.info.num_linesearch_steps for x in searches(state))
        return eqx.tree_at(
            lambda d: (d.params, d.state, d.num_evals), d, (params, state, d.num_evals + trials)
        )

    return lax.cond(d.done, lambda d: d, go_on, d)


def _descend_by_search(
    task: Problem, linesearch: AbstractLinesearch[Any], d: MinimizeCarry
) -> MinimizeCarry:
    """Descends by an optimizer that ends in a line search.

    Each round evaluates the next trial of the search, and computes the next direction if the search
    has ended. The first trial is the first point itself.
    """
    own = own_state(task.optimizer, d.state)
    state = LinesearchState(own.learning_rate, own.scale, None, own.info)

    def direct(params: Params, found: AnyEvaluation, state: object) -> tuple[Updates, PyTree]:
        context = task.context(params, found)
        return transform_until_search(task.optimizer, context.grad, state, params, context)

    like = jax.eval_shape(lambda *x: direct(*x)[0], d.params, d.evaluation, d.state)
    direction = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    whole = FullProblem(d.params, task.objective)
    line = begin_line(linesearch, state, whole, _typed(d.evaluation, task), direction)
    d = eqx.tree_at(lambda d: d.search, d, _Search(line, direction, state), is_leaf=checks.is_none)

    def round(d: MinimizeCarry) -> MinimizeCarry:
        search: Any = d.search
        line, whole = search.line, FullProblem(d.params, task.objective)
        trial = evaluate_trial(linesearch, task.objective, add_updates(d.params, line.updates))
        first = d.num_evals == 0
        small = largest(trial.grad) <= _gtol(task)
        line = advance(linesearch, line, whole, search.direction, trial, small)
        num_evals = d.num_evals + 1
        d = eqx.tree_at(lambda d: (d.num_evals, d.search.line), d, (num_evals, line))
        late = num_evals >= task.tolerances.max_evals
        return lax.cond(
            first | late | (line.verdict != TRY), lambda d: end(d, trial, first), lambda d: d, d
        )

    def end(d: MinimizeCarry, trial: AnyEvaluation, first: Bool[Array, ""]) -> MinimizeCarry:
        search: Any = d.search
        line, state = search.line, search.state
        unfinished = ~first & (line.verdict == TRY)
        line = eqx.tree_at(
            lambda x: (x.verdict, x.updates),
            line,
            (
                jnp.where(unfinished, FAIL, line.verdict),
                select(first | unfinished, zeros_exactly_like(line.updates), line.updates),
            ),
        )
        found = select(first, trial, outcome(line, d.evaluation))
        params = add_updates(d.params, line.updates)
        after = LinesearchState(line.step, line.origin.scale, None, line.info)
        state = select(first, state, after)
        failed = ~first & (line.verdict == FAIL)
        d = _accept_and_check(task, d, params, found, first=first, failed=failed)
        direction, inner_state = direct(d.params, found, d.state)
        whole = FullProblem(d.params, task.objective)
        line = begin_line(linesearch, state, whole, _typed(found, task), direction)
        return eqx.tree_at(
            lambda d: (d.state, d.search),
            d,
            (select(d.done, d.state, inner_state), _Search(line, direction, state)),
        )

    d = lax.while_loop(_going, round, d)
    own = own_state(task.optimizer, d.state)
    cache = own.cache
    if cache is not None:
        cache = filled(cache, task.objective, d.params, d.evaluation, jnp.asarray(True))
    search: Any = d.search
    after = search.state
    after = LinesearchState(after.learning_rate, after.scale, cache, after.info)
    return eqx.tree_at(lambda d: (own_state(task.optimizer, d.state), d.search), d, (after, None))


def _accept_and_check(
    task: Problem,
    d: MinimizeCarry,
    params: Params,
    found: AnyEvaluation,
    *,
    first: Bool[Array, ""],
    failed: Bool[Array, ""],
) -> MinimizeCarry:
    """Counts a step, and decides whether it was the last."""
    t = task.tolerances
    dtype = float_dtype()
    eps = float(jnp.finfo(task.dtype).eps)
    grad_norm, decrease = largest(found.grad), d.evaluation.value - found.value
    size = jnp.maximum(jnp.abs(d.evaluation.value), jnp.abs(found.value))
    step = jax.tree.map(lambda a, b: a - b, params, d.params)
    length, whole_length = jnp.sqrt(inner(step, step)), jnp.sqrt(inner(params, params))
    grad_length = jnp.sqrt(inner(found.grad, found.grad))
    moved_on = ~first & ~failed
    num_failures = jnp.where(failed, d.num_failures + 1, 0)
    num_steps = d.num_steps + moved_on.astype(np.int32)
    flat = moved_on & (decrease <= t.ftol * jnp.maximum(size, 1)) & (t.ftol > 0)
    still = moved_on & (length <= t.xtol * jnp.maximum(whole_length, 1)) & (t.xtol > 0)
    finite = jnp.isfinite(found.value) & all_finite(found.grad)
    stuck = num_failures >= MAX_FAILURES
    # A line search goes downhill, up to rounding. An optimizer without one may climb for a while.
    improved = (found.value < d.lowest) | (grad_norm < d.best_grad_norm)
    lowest = jnp.minimum(d.lowest, found.value)
    num_idle = jnp.where(improved | (d.search is None), 0, d.num_idle + 1)
    idle = num_idle >= MAX_IDLE
    # The change of the value that rounding of the value and of the parameters can cause.
    noise = 100 * jnp.maximum(eps * size, _precision(params) * grad_length * whole_length)
    hopeless = (stuck & (jnp.abs(_predicted(d)) <= noise)) | (
        idle & (found.value - lowest <= noise)
    )
    ends = (
        (finite & (grad_norm <= _gtol(task)), MinimizeResult.successful),
        (~finite, MinimizeResult.nonfinite),
        (flat, MinimizeResult.small_decrease),
        (still, MinimizeResult.small_step),
        (hopeless, MinimizeResult.precision),
        (stuck | idle, MinimizeResult.no_decrease),
        (num_steps >= t.max_steps, MinimizeResult.max_steps),
        (d.num_evals >= t.max_evals, MinimizeResult.max_evals),
    )
    result, done = MinimizeResult.successful, jnp.asarray(False)
    for condition, reason in reversed(ends):
        result = MinimizeResult.where(condition, reason, result)
        done = done | condition
    values = d.values
    if values is not None:
        values = lax.dynamic_update_index_in_dim(values, found.value.astype(dtype), num_steps, 0)
    if task.show is not None:
        jax.debug.callback(task.show, moved_on | first, num_steps, found.value, grad_norm)
    return dataclasses.replace(
        d,
        params=params,
        evaluation=found,
        num_steps=num_steps,
        num_failures=num_failures,
        lowest=lowest,
        best_grad_norm=jnp.minimum(d.best_grad_norm, grad_norm),
        num_idle=num_idle,
        result=result,
        done=done,
        values=values,
    )


# The loop stops after this many failed searches in a row, or steps without progress.
MAX_FAILURES, MAX_IDLE = 3, 50


def _predicted(d: MinimizeCarry) -> Float[Array, ""]:
    """The decrease that the slope predicts for the first step tried."""
    return jnp.zeros(()) if d.search is None else d.search.line.origin.slope


def _precision(params: Params) -> float:
    return max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(params))


def _gtol(task: Problem) -> Any:
    gtol = task.tolerances.gtol
    return float(jnp.finfo(task.dtype).eps) ** (1 / 3) if gtol is None else gtol


def _typed(found: AnyEvaluation, task: Problem) -> AnyEvaluation:
    """The evaluation, with the value in the objective's own dtype, which sets the precision."""
    return Evaluation(found.value.astype(task.dtype), found.grad, found.aux)


def largest(grad: PyTree) -> Float[Array, ""]:
    """The largest magnitude in a tree; 0 if it is empty."""
    dtype = float_dtype()
    moduli = [jnp.max(jnp.abs(x), initial=0).astype(dtype) for x in jax.tree.leaves(grad)]
    return jnp.max(jnp.stack(moduli))
