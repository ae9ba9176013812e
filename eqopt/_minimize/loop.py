"""The loop of `minimize`, which evaluates the objective once in each round.

In: objective, optimizer, first parameters, tolerances. Out: the best point, and how it ended. Each
trial of a line search is a round: under `vmap`, nested loops would wait for the longest search.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._base import checks
from .._base.converters import float_dtype
from .._base.ravel import Ravel
from .._base.trees import add_updates, conj, select, zeros_exactly_like
from .._base.types import Params, Updates
from .._base.xla import going_on
from .._objective.bounds import Bounds
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
    LinesearchResult,
    outcome,
    scaled,
    TRY,
)
from ..projections._base import AbstractPenalty
from .composite import penalty_of, proximal_move, started_in, with_penalty
from .convergence import ended, largest, MinimizeResult, Move, Progress, Tolerances
from .search_chain import (
    commutes_with_ravel,
    last_search,
    num_products,
    num_products_anywhere,
    own_state,
    raveled,
    transform_until_search,
)
from .stationarity import residual


class MinimizeCarry(eqx.Module):
    """The state of the loop.

    **Arguments:**

    - `params`, `evaluation`: the latest point, and the objective there.
    - `best`: the lowest point and its evaluation; `None` with a search, whose points go down.
    - `state`: the optimizer's state.
    - `search`: the search under way from there, or `None`.
    - `num_steps`, `num_evals`: the numbers of steps and of evaluations.
    - `progress`: what the tests of convergence know.
    - `result`, `done`: how the loop ended, if it has.
    - `values`: the value after each step, or `None`.
    """

    params: Params
    evaluation: AnyEvaluation
    best: tuple[Params, AnyEvaluation] | None
    state: PyTree
    search: "_Search | None"
    num_steps: Int[Array, ""]
    num_evals: Int[Array, ""]
    progress: Progress
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
    bounds: Bounds | None = None,
) -> MinimizeCarry:
    """Runs the optimizer until it has converged, has failed or has reached a limit."""
    if not commutes_with_ravel(optimizer):
        return _descend(objective, optimizer, params, tolerances, show, history, bounds)
    ravel = Ravel(params)
    packed, bundle = raveled(objective, ravel), ravel.pack(params)
    if bounds is not None:
        bounds = Bounds(ravel.pack(bounds.lower), ravel.pack(bounds.upper))
    return ravel.unpack_all(_descend(packed, optimizer, bundle, tolerances, show, history, bounds))


def _descend(
    objective: Objective,
    optimizer: AnyTransformation,
    params: Params,
    tolerances: Tolerances,
    show: object,
    history: int | None,
    bounds: Bounds | None,
) -> MinimizeCarry:
    dtype, zero = float_dtype(), jnp.zeros((), np.int32)
    linesearch = last_search(optimizer)
    penalty = penalty_of(optimizer) if linesearch is None else None
    params = started_in(penalty, params)
    traced, shapes = objective.traced(params)
    context = Context(whole=FullProblem(params, traced, bounds=bounds))
    state = optimizer.init_state(params, context)
    blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes.value, shapes.aux))
    evaluation = Evaluation(blank[0].astype(dtype), zeros_exactly_like(params), blank[1])
    task = Problem(
        objective=traced,
        optimizer=optimizer,
        penalty=penalty,
        tolerances=tolerances,
        show=show,
        bounds=bounds,
        dtype=shapes.value.dtype,
    )
    d = MinimizeCarry(
        params=params,
        evaluation=evaluation,
        best=None,
        state=state,
        search=None,
        num_steps=zero,
        num_evals=zero,
        progress=Progress.start(params, searched=linesearch is not None),
        result=jax.tree.map(jnp.asarray, MinimizeResult.successful),
        done=jnp.asarray(False),
        values=None if history is None else jnp.full(history + 1, np.inf, dtype),
    )
    if linesearch is None:
        highest = dataclasses.replace(evaluation, value=jnp.full((), np.inf, dtype))
        d = dataclasses.replace(d, best=(params, highest))
        d = lax.while_loop(_going, lambda d: _step(task, d), d)
        best: Any = d.best
        last = d.params, with_penalty(penalty, d.params, d.evaluation)
        # If the two values differ by rounding alone, the last point is nearer to the minimum.
        noise = 100 * float(jnp.finfo(shapes.value.dtype).eps) * jnp.abs(best[1].value)
        best = select(last[1].value - best[1].value <= noise, last, best)
        d = dataclasses.replace(d, params=best[0], evaluation=best[1], best=None)
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
    penalty: AbstractPenalty | None
    tolerances: Tolerances
    show: Any
    bounds: Bounds | None
    dtype: Any = eqx.field(static=True)

    def between(self, params: Params, grad: PyTree) -> PyTree:
        """The part of the gradient that bounds do not hold."""
        return grad if self.bounds is None else self.bounds.residual(params, grad)

    def context(self, params: Params, evaluation: AnyEvaluation) -> Context:
        whole = FullProblem(params, self.objective, evaluation, self.bounds)
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
    """One step of an optimizer that runs its own searches, if it has any."""
    first = d.num_evals == 0

    def go(d: MinimizeCarry) -> tuple[Updates, PyTree, Int[Array, ""]]:
        context = task.context(d.params, d.evaluation)
        updates, state = task.optimizer.transform(context.grad, d.state, d.params, context)
        trials = sum([x.info.num_linesearch_steps for x in searches(state)])
        trials += num_products_anywhere(state)
        return scaled(updates, jnp.ones(()), d.params), state, jnp.asarray(trials, np.int32)

    def stay(d: MinimizeCarry) -> tuple[Updates, PyTree, Int[Array, ""]]:
        updates = jax.eval_shape(lambda d: go(d)[0], d)
        none = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), updates)
        return none, d.state, jnp.zeros((), np.int32)

    updates, state, trials = lax.cond(first, stay, go, d)
    params = add_updates(d.params, updates)
    found, _, num_evals = evaluate(task.objective, params, state)
    found = Evaluation(found.value.astype(float_dtype()), found.grad, found.aux)
    no = jnp.asarray(False)
    # The optimizer and the cache see the objective; convergence, and the user, its sum with a
    # penalty.
    whole = with_penalty(task.penalty, params, found)
    move = Move(
        before=d.params,
        params=params,
        at_before=with_penalty(task.penalty, d.params, d.evaluation),
        found=whole,
        residual=residual(task.optimizer, params, found.grad),
        updates=updates,
        first=first,
        failed=no,
        endless=no,
    )
    if task.penalty is not None:
        move = proximal_move(task.penalty, move, state)
    d = dataclasses.replace(d, state=state, num_evals=d.num_evals + trials + num_evals)
    d = dataclasses.replace(_accept_and_check(task, d, move), evaluation=found)
    best: Any = d.best
    lower = first | (whole.value < best[1].value)
    return dataclasses.replace(d, best=select(lower, (params, whole), best))


def _descend_by_search(
    task: Problem, linesearch: AbstractLinesearch[Any], d: MinimizeCarry
) -> MinimizeCarry:
    """Descends by an optimizer that ends in a line search.

    Each round evaluates the next trial of the search, and computes the next direction if the search
    has ended. The first trial is the first point itself.
    """
    own, gtol = own_state(d.state), task.tolerances.gtol
    gtol = 0.0 if gtol is None else gtol
    state = LinesearchState(own.learning_rate, own.scale, None, own.info)

    def direct(params: Params, found: AnyEvaluation, state: object) -> tuple[Updates, PyTree]:
        context = task.context(params, found)
        return transform_until_search(task.optimizer, context.grad, state, params, context)

    like = jax.eval_shape(lambda *x: direct(*x)[0], d.params, d.evaluation, d.state)
    direction = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    whole = FullProblem(d.params, task.objective, bounds=task.bounds)
    line = begin_line(linesearch, state, whole, _typed(d.evaluation, task), direction)
    d = eqx.tree_at(lambda d: d.search, d, _Search(line, direction, state), is_leaf=checks.is_none)

    def round(d: MinimizeCarry) -> MinimizeCarry:
        search: Any = d.search
        line, whole = search.line, FullProblem(d.params, task.objective, bounds=task.bounds)
        point = whole.moved(line.updates)
        trial = evaluate_trial(linesearch, task.objective, point)
        first = d.num_evals == 0
        small = largest(task.between(point, trial.grad)) <= gtol
        line = advance(linesearch, line, whole, search.direction, trial, small)
        num_evals = d.num_evals + 1
        d = eqx.tree_at(lambda d: (d.num_evals, d.search.line), d, (num_evals, line))
        late = num_evals >= task.tolerances.max_evals
        return lax.cond(
            first | late | (line.verdict != TRY),
            lambda d: end(d, whole, trial, first),
            lambda d: d,
            d,
        )

    def end(
        d: MinimizeCarry, whole: FullProblem, trial: AnyEvaluation, first: Bool[Array, ""]
    ) -> MinimizeCarry:
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
        d = _accept_and_check(task, d, move)
        direction, inner_state = direct(d.params, found, d.state)
        num_evals = d.num_evals + num_products(inner_state)
        whole = FullProblem(d.params, task.objective, bounds=task.bounds)
        line = begin_line(linesearch, state, whole, _typed(found, task), direction)
        return eqx.tree_at(
            lambda d: (d.state, d.search, d.num_evals),
            d,
            (
                select(d.done, d.state, inner_state),
                _Search(line, direction, state),
                jnp.where(d.done, d.num_evals, num_evals),
            ),
        )

    d = lax.while_loop(_going, round, d)
    own = own_state(d.state)
    cache = own.cache
    if cache is not None:
        cache = filled(cache, task.objective, d.params, d.evaluation, jnp.asarray(True))
    search: Any = d.search
    after = search.state
    after = LinesearchState(after.learning_rate, after.scale, cache, after.info)
    return eqx.tree_at(lambda d: (own_state(d.state), d.search), d, (after, None))


def _accept_and_check(task: Problem, d: MinimizeCarry, move: Move) -> MinimizeCarry:
    """Counts a step, and decides whether it was the last."""
    moved_on = ~move.first & ~move.failed
    num_steps = d.num_steps + moved_on.astype(np.int32)
    result, done, progress = ended(
        task.tolerances, task.dtype, d.progress, move, num_steps, d.num_evals
    )
    value, values = move.found.value, d.values
    if values is not None:
        values = lax.dynamic_update_index_in_dim(values, value.astype(float_dtype()), num_steps, 0)
    if task.show is not None:
        grad_norm = largest(move.residual)
        jax.debug.callback(task.show, moved_on | move.first, num_steps, value, grad_norm)
    return dataclasses.replace(
        d,
        params=move.params,
        evaluation=move.found,
        num_steps=num_steps,
        progress=progress,
        result=result,
        done=done,
        values=values,
    )


def _typed(found: AnyEvaluation, task: Problem) -> AnyEvaluation:
    """The evaluation with the value in the objective's dtype, whose precision counts."""
    return Evaluation(found.value.astype(task.dtype), found.grad, found.aux)
