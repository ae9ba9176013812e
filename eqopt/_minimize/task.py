"""The task of `minimize`, the state of its loop, and the count of a step."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._base.converters import float_dtype
from .._base.trees import conj
from .._base.types import Params, Updates
from .._objective.bounds import Bounds
from .._objective.cache import LinesearchState
from .._objective.objective import AnyEvaluation, Context, FullProblem, Objective
from .._transformation.base import AnyTransformation
from ..linesearch._base import AbstractLinesearch, Line, LinesearchInfo
from ..projections._base import AbstractPenalty
from .convergence import ended, largest, Move, Progress, Tolerances


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
    search: "SearchUnderWay | None"
    num_steps: Int[Array, ""]
    num_evals: Int[Array, ""]
    progress: Progress
    result: Any
    done: Bool[Array, ""]
    values: Float[Array, " steps+1"] | None


class SearchUnderWay(eqx.Module):
    line: Line[Any]
    direction: Updates
    # Without its cache, which is filled once, at the end.
    state: LinesearchState[LinesearchInfo]


class Problem(eqx.Module):
    """The task of the loop; see `minimize`.

    `search` is the one at the end of the optimizer, and `shapes` are those of the objective's value
    and aux.
    """

    objective: Objective
    optimizer: AnyTransformation
    search: AbstractLinesearch[Any] | None
    penalty: AbstractPenalty | None
    tolerances: Tolerances
    show: Any
    bounds: Bounds | None
    shapes: Any = eqx.field(static=True)

    def between(self, params: Params, grad: PyTree) -> PyTree:
        """The part of the gradient that bounds do not hold."""
        return grad if self.bounds is None else self.bounds.residual(params, grad)

    def context(self, params: Params, evaluation: AnyEvaluation) -> Context:
        whole = FullProblem(params, self.objective, evaluation, self.bounds)
        value = evaluation.value.astype(self.shapes[0].dtype)
        return Context(
            value=value,
            grad=conj(evaluation.grad),
            value_fn=self.objective,
            key=None,
            extra={},
            whole=whole,
        )


def accept_and_check(task: Problem, d: MinimizeCarry, move: Move) -> MinimizeCarry:
    """Counts a step, and decides whether it was the last."""
    moved_on = ~move.first & ~move.failed
    num_steps = d.num_steps + moved_on.astype(np.int32)
    result, done, progress = ended(
        task.tolerances, task.shapes[0].dtype, d.progress, move, num_steps, d.num_evals
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
