"""`minimize` by a solver of optimistix.

In: objective, solver, first parameters, limits. Out: what eqopt's own loop returns. It exists
because such a solver has its own test of convergence, and keeps its own trial points. optimistix is
imported by whoever has a solver, never here.
"""

import sys
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, PyTree

from .._base.trees import all_finite, conj, inner
from .._base.types import Params
from .._objective.objective import AnyEvaluation, Objective
from .convergence import MinimizeResult, Tolerances


class SolverEnd(NamedTuple):
    """The part of a `MinimizeCarry` that `minimize` reads at the end."""

    params: Params
    evaluation: AnyEvaluation
    state: PyTree
    num_steps: Array
    num_evals: Array
    result: Any
    values: None = None


def is_solver(x: object) -> bool:
    """Whether it is a minimiser of optimistix."""
    optimistix = sys.modules.get("optimistix")
    return optimistix is not None and isinstance(x, optimistix.AbstractMinimiser)


def check_settings(**given: object) -> None:
    """Refuses the settings of `minimize` that a solver would not look at."""
    for name, x in given.items():
        if x:
            raise ValueError(
                f"`{name}` has no effect on a solver of optimistix, which ends by its own `rtol` "
                "and `atol`, and tells no values on the way"
            )


def solve(objective: Objective, solver: Any, params: Params, tolerances: Tolerances) -> SolverEnd:
    """Runs the solver until it ends by itself, or a limit is reached."""
    results = sys.modules["optimistix"].RESULTS
    traced, shapes = objective.traced(params)
    evaluate: Any = traced.replay
    # Nobody tells how many evaluations a step makes. It is one, but for Nelder and Mead's method.
    limit = jnp.minimum(tolerances.max_steps, tolerances.max_evals - 1)

    def value_fn(params: Params, args: None) -> tuple[Array, None]:
        return _value(params, evaluate), None

    def ended(params: Params, state: PyTree) -> tuple[Bool[Array, ""], Any]:
        return solver.terminate(value_fn, params, None, {}, state, frozenset())

    def going(carry: tuple[Any, ...]) -> Bool[Array, ""]:
        params, _, num_steps, done, result = carry
        going = ~done & (result == results.successful) & (num_steps < limit)
        return going & all_finite(params)

    def step(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        params, arrays, num_steps, *_ = carry
        state = eqx.combine(arrays, rest)
        params, state, _ = solver.step(value_fn, params, None, {}, state, frozenset())
        return params, eqx.filter(state, eqx.is_array), num_steps + 1, *ended(params, state)

    # The solvers promote dtypes. The objective, traced already, does not see it.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        state = solver.init(value_fn, params, None, {}, shapes.value, None, frozenset())
        arrays, rest = eqx.partition(state, eqx.is_array)
        start = params, arrays, jnp.zeros((), np.int32), *ended(params, state)
        params, arrays, num_steps, done, told = lax.while_loop(going, step, start)
        state = eqx.combine(arrays, rest)
        params, _, _ = solver.postprocess(
            value_fn, params, None, None, {}, state, frozenset(), told
        )
    found = traced.evaluate(params)
    finite = all_finite(params) & jnp.isfinite(found.value) & all_finite(found.grad)
    result = MinimizeResult.where(
        num_steps < tolerances.max_steps, MinimizeResult.max_evals, MinimizeResult.max_steps
    )
    result = MinimizeResult.where(done, MinimizeResult.successful, result)
    failed = ~(told == results.successful)
    result = MinimizeResult.where(failed, MinimizeResult.solver_failed, result)
    result = MinimizeResult.where(finite, result, MinimizeResult.nonfinite)
    return SolverEnd(
        params=params,
        evaluation=found,
        state=state,
        num_steps=num_steps,
        num_evals=num_steps + 1,
        result=result,
    )


@eqx.filter_custom_jvp
def _value(params: Params, evaluate: Any) -> Array:
    """The value, whose derivative is the gradient that has been traced already."""
    return evaluate(params).value


@_value.def_jvp
def _value_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    params, evaluate = primals
    change, _ = tangents
    found = evaluate(params)
    return found.value, inner(conj(found.grad), change).astype(found.value.dtype)
