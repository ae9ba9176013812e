"""Objectives with a penalty: what `minimize` needs to know of proximal steps.

In: an optimizer, and its state after a step. Out: its penalty, the decrease that the step promised,
and what is zero at a solution.
It exists because the gradient of the smooth part is not zero at a kink, and because the value that
goes down is the sum of objective and penalty.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._base.arithmetic import cast, minus, real_dtype, times
from .._base.trees import conj, narrowed
from .._base.types import Params
from .._objective.objective import AnyEvaluation
from .._transformation.base import AbstractSequence, AnyTransformation, children, composed
from ..linesearch._base import LinesearchResult
from ..linesearch._proximal import ScaleByProximalLinesearch, ScaleByProximalLinesearchState
from ..projections._base import AbstractPenalty
from .convergence import Move
from .search_chain import states_of_links


def penalty_of(optimizer: AnyTransformation) -> AbstractPenalty | None:
    """The penalty that an optimizer adds to the objective, or `None`."""
    optimizer = composed(optimizer)
    if isinstance(optimizer, ScaleByProximalLinesearch):
        return optimizer.penalty
    sequence = isinstance(optimizer, AbstractSequence)
    inner = optimizer.in_order() if sequence else children(optimizer).values()
    found = [x for x in map(penalty_of, inner) if x is not None]
    if not found:
        return None
    if len(found) > 1 or not sequence:
        raise ValueError(
            f"`minimize` cannot tell the penalty of the whole objective: it is within "
            f"`{type(optimizer).__name__}`, or there are two. Pass the proximal method itself; a "
            "strength of `None` leaves a parameter out"
        )
    return found[0]


def proximal_move(penalty: AbstractPenalty, move: Move, state: PyTree) -> Move:
    """The step, with all that the state after it tells of it."""
    own: Any = own_state(state)
    step, ended = own.search.learning_rate, own.search.info.result
    failed = ~move.first & ~(ended == LinesearchResult.successful)
    return move._replace(
        residual=residual(penalty, move.params, move.found.grad, step),
        updates=None,
        promised=own.decrease,
        failed=failed,
    )


def residual(
    penalty: AbstractPenalty, params: Params, grad: PyTree, step: Float[Array, ""]
) -> PyTree:
    r"""The part of the gradient that a proximal step can use, $(x - \operatorname{prox}_{th}(x - t
    g)) / t$. With the step $t$ of the search it scales like the objective."""

    def forward(x: Array, g: Array) -> Array:
        return minus(x, times(g, cast(step, real_dtype(x.dtype))))

    def part(x: Array, z: Array) -> Array:
        return times(minus(x, narrowed(z, x.dtype)), cast(1 / step, real_dtype(x.dtype)))

    target = penalty.prox(jax.tree.map(forward, params, conj(grad)), step)
    return conj(jax.tree.map(part, params, target))


def with_penalty(
    penalty: AbstractPenalty | None, params: Params, found: AnyEvaluation
) -> AnyEvaluation:
    """The evaluation with the sum of objective and penalty as its value."""
    if penalty is None:
        return found
    value = found.value + penalty.value(params).astype(found.value.dtype)
    return dataclasses.replace(found, value=value)


def started_in(penalty: AbstractPenalty | None, params: Params) -> Params:
    """The nearest parameters at which the penalty is finite."""
    if penalty is None:
        return params
    target = penalty.prox(params, jnp.zeros(()))
    return jax.tree.map(lambda x, z: narrowed(z, x.dtype), params, target)


def own_state(state: PyTree) -> ScaleByProximalLinesearchState | None:
    """The state of the proximal search in that of a chain, or `None`."""
    for x in states_of_links(state):
        if isinstance(x, ScaleByProximalLinesearchState):
            return x
    return None
