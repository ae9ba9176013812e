"""The loop of `minimize`, which evaluates the objective once in each round.

In: objective, optimizer, first parameters, tolerances. Out: the best point, and how it ended. The
loop is `begin`, `advance` and `finish`, so that another library's loop can run them too.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int, PyTree

from .._base.converters import float_dtype
from .._base.ravel import Ravel
from .._base.trees import add_updates, select, zeros_exactly_like
from .._base.types import Params, Updates
from .._base.xla import going_on
from .._objective.bounds import Bounds
from .._objective.cache import evaluate, searches
from .._objective.objective import Context, Evaluation, FullProblem, Objective
from .._transformation.base import AnyTransformation
from ..linesearch._base import scaled
from .composite import penalty_of, proximal_move, started_in, with_penalty
from .convergence import MinimizeResult, Move, Progress, Tolerances
from .search_chain import commutes_with_ravel, last_search, num_products_anywhere, raveled
from .search_rounds import begin_search, finish_search, try_once
from .stationarity import residual
from .task import accept_and_check, MinimizeCarry, Problem


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
    task = pose(objective, optimizer, params, tolerances, show, bounds)
    d = begin(task, params, history)
    return finish(task, lax.while_loop(_going, lambda d: advance(task, d), d))


def pose(
    objective: Objective,
    optimizer: AnyTransformation,
    params: Params,
    tolerances: Tolerances,
    show: object = None,
    bounds: Bounds | None = None,
) -> Problem:
    """The task of the loop: all that stays the same from round to round."""
    search = last_search(optimizer)
    traced, shapes = objective.traced(params)
    return Problem(
        objective=traced,
        optimizer=optimizer,
        search=search,
        penalty=penalty_of(optimizer) if search is None else None,
        tolerances=tolerances,
        show=show,
        bounds=bounds,
        shapes=(shapes.value, shapes.aux),
    )


def begin(task: Problem, params: Params, history: int | None = None) -> MinimizeCarry:
    """The state before the first round."""
    dtype, zero = float_dtype(), jnp.zeros((), np.int32)
    params = started_in(task.penalty, params)
    whole = FullProblem(params, task.objective, bounds=task.bounds)
    state = task.optimizer.init_state(params, Context(whole=whole))
    value, aux = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), task.shapes)
    evaluation = Evaluation(value.astype(dtype), zeros_exactly_like(params), aux)
    highest = dataclasses.replace(evaluation, value=jnp.full((), np.inf, dtype))
    d = MinimizeCarry(
        params=params,
        evaluation=evaluation,
        best=(params, highest) if task.search is None else None,
        state=state,
        search=None,
        num_steps=zero,
        num_evals=zero,
        progress=Progress.start(params, searched=task.search is not None),
        result=jax.tree.map(jnp.asarray, MinimizeResult.successful),
        done=jnp.asarray(False),
        values=None if history is None else jnp.full(history + 1, np.inf, dtype),
    )
    return d if task.search is None else begin_search(task, task.search, d)


def advance(task: Problem, d: MinimizeCarry) -> MinimizeCarry:
    """One round. With a search at the end of the optimizer it is one trial, the first of which is
    the first point itself; without, one step."""
    return _step(task, d) if task.search is None else try_once(task, task.search, d)


def finish(task: Problem, d: MinimizeCarry) -> MinimizeCarry:
    """The state with the best point, and the search's own state filled in."""
    dtype = task.shapes[0].dtype
    if task.search is None:
        best: Any = d.best
        last = d.params, with_penalty(task.penalty, d.params, d.evaluation)
        # If the two values differ by rounding alone, the last point is nearer to the minimum.
        noise = 100 * float(jnp.finfo(dtype).eps) * jnp.abs(best[1].value)
        best = select(last[1].value - best[1].value <= noise, last, best)
        d = dataclasses.replace(d, params=best[0], evaluation=best[1], best=None)
    else:
        d = finish_search(task, d)
    found = d.evaluation
    value = found.value.astype(dtype)
    return eqx.tree_at(lambda d: d.evaluation, d, Evaluation(value, found.grad, found.aux))


def _going(d: MinimizeCarry) -> Bool[Array, ""]:
    return going_on(~d.done, d.num_evals)


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
    d = dataclasses.replace(accept_and_check(task, d, move), evaluation=found)
    best: Any = d.best
    lower = first | (whole.value < best[1].value)
    return dataclasses.replace(d, best=select(lower, (params, whole), best))
