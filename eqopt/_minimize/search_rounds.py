"""The rounds of `minimize` for an optimizer that ends in a line search: one trial in each.

Under `vmap`, nested loops would wait for the longest search.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, PyTree

from .._base import checks
from .._base.trees import select, zeros_exactly_like
from .._base.types import Params, Updates
from .._objective.cache import filled, LinesearchState
from .._objective.objective import AnyEvaluation, Evaluation, FullProblem
from ..linesearch._base import (
    AbstractLinesearch,
    advance,
    begin_line,
    evaluate as evaluate_trial,
    FAIL,
    LinesearchResult,
    outcome,
    TRY,
)
from .convergence import largest, Move
from .search_chain import num_products, own_state, transform_until_search
from .task import accept_and_check, MinimizeCarry, Problem, SearchUnderWay


def begin_search(
    task: Problem, linesearch: AbstractLinesearch[Any], d: MinimizeCarry
) -> MinimizeCarry:
    own = own_state(d.state)
    state = LinesearchState(own.learning_rate, own.scale, None, own.info)
    like = jax.eval_shape(lambda d: _direct(task, d.params, d.evaluation, d.state)[0], d)
    direction = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    whole = FullProblem(d.params, task.objective, bounds=task.bounds)
    line = begin_line(linesearch, state, whole, _typed(d.evaluation, task), direction)
    return eqx.tree_at(
        lambda d: d.search, d, SearchUnderWay(line, direction, state), is_leaf=checks.is_none
    )


def _direct(
    task: Problem, params: Params, found: AnyEvaluation, state: PyTree
) -> tuple[Updates, PyTree]:
    """The direction of the next search, from all links before it."""
    context = task.context(params, found)
    return transform_until_search(task.optimizer, context.grad, state, params, context)


def try_once(task: Problem, linesearch: AbstractLinesearch[Any], d: MinimizeCarry) -> MinimizeCarry:
    """Evaluates the next trial of the search, and computes the next direction if it has ended."""
    search: Any = d.search
    gtol = task.tolerances.gtol
    line, whole = search.line, FullProblem(d.params, task.objective, bounds=task.bounds)
    point = whole.moved(line.updates)
    trial = evaluate_trial(linesearch, task.objective, point)
    first = d.num_evals == 0
    small = largest(task.between(point, trial.grad)) <= (0.0 if gtol is None else gtol)
    line = advance(linesearch, line, whole, search.direction, trial, small)
    num_evals = d.num_evals + 1
    d = eqx.tree_at(lambda d: (d.num_evals, d.search.line), d, (num_evals, line))
    late = num_evals >= task.tolerances.max_evals
    return lax.cond(
        first | late | (line.verdict != TRY),
        lambda d: _next_search(task, linesearch, d, whole, trial, first),
        lambda d: d,
        d,
    )


def _next_search(
    task: Problem,
    linesearch: AbstractLinesearch[Any],
    d: MinimizeCarry,
    whole: FullProblem,
    trial: AnyEvaluation,
    first: Bool[Array, ""],
) -> MinimizeCarry:
    """Ends a search, counts its step, and begins another from there."""
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
    params = whole.moved(line.updates)
    after = LinesearchState(line.step, line.origin.scale, None, line.info)
    state = select(first, state, after)
    # It has grown a million times, and the objective still goes down as steeply.
    long = line.step >= 1e6 * linesearch.first_step(search.state.learning_rate)
    endless = (line.info.result == LinesearchResult.max_learning_rate) | (
        long & (line.info.curvature_error > 0)
    )
    move = Move(
        before=d.params,
        params=params,
        at_before=d.evaluation,
        found=found,
        residual=task.between(params, found.grad),
        updates=None,
        first=first,
        failed=~first & (line.verdict == FAIL),
        endless=~first & endless,
    )
    d = accept_and_check(task, d, move)
    direction, inner_state = _direct(task, d.params, found, d.state)
    num_evals = d.num_evals + num_products(inner_state)
    whole = FullProblem(d.params, task.objective, bounds=task.bounds)
    line = begin_line(linesearch, state, whole, _typed(found, task), direction)
    return eqx.tree_at(
        lambda d: (d.state, d.search, d.num_evals),
        d,
        (
            select(d.done, d.state, inner_state),
            SearchUnderWay(line, direction, state),
            jnp.where(d.done, d.num_evals, num_evals),
        ),
    )


def finish_search(task: Problem, d: MinimizeCarry) -> MinimizeCarry:
    cache = own_state(d.state).cache
    if cache is not None:
        cache = filled(cache, task.objective, d.params, d.evaluation, jnp.asarray(True))
    search: Any = d.search
    after = search.state
    after = LinesearchState(after.learning_rate, after.scale, cache, after.info)
    return eqx.tree_at(lambda d: (own_state(d.state), d.search), d, (after, None))


def _typed(found: AnyEvaluation, task: Problem) -> AnyEvaluation:
    """The evaluation with the value in the objective's dtype, whose precision counts."""
    return Evaluation(found.value.astype(task.shapes[0].dtype), found.grad, found.aux)
