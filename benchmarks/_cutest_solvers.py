"""The solvers of the CUTEst benchmark, each with one set of settings for all problems.

Every evaluation of an objective, of the value alone or of the value and its gradient together,
calls a function on the host that counts it. So all solvers are counted in the same way, whatever
they say about themselves, and an evaluation that a solver repeats counts twice. In particular:

- scipy, optax and jaxopt take the value and the gradient at every trial of their searches;
- optax's loop takes them once more after a search that ends at a value that is not finite;
- optimistix takes the value alone at a trial that it does not accept, and that counts as one;
- eqopt takes the value and the gradient at every trial;
- a product with the Hessian matrix calls no function, and counts as an evaluation all the same, as
  eqopt counts it itself.

What a solver says itself is kept beside it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

import eqopt

MEMORY = 10

# A dense matrix, and a handful of temporary ones: more variables take too long, or do not fit.
MAX_DENSE = 1_000


class Problem(NamedTuple):
    """An objective of a tree and some arguments, where to begin, and a pair of trees of bounds."""

    name: str
    objective: Callable[[Any, Any], Array]
    y0: Any
    args: Any
    bounds: Any = None


class Limits(NamedTuple):
    gtol: float
    max_evals: int
    max_steps: int


class Run(NamedTuple):
    """Where a solver ended, as it says itself."""

    y: Any
    value: Any
    grad: Any
    num_steps: Any
    num_evals: Any


# Each is given a counted objective; all but scipy are compiled whole.

Objective = Callable[[Any, Any], Array]


def max_norm(tree: Any) -> Array:
    return jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(tree)]))


def residual(problem: Problem, y: Any, grad: Any) -> Array:
    """The infinity norm of the gradient; with bounds of the projected gradient y - P(y - grad)."""
    if problem.bounds is None:
        return max_norm(grad)
    return max_norm(
        jax.tree.map(lambda y, g, *b: y - jnp.clip(y - g, *b), y, grad, *problem.bounds)
    )


def run_eqopt(
    fn: Objective,
    y0: Any,
    args: Any,
    limits: Limits,
    method: Callable[[], Any] = eqopt.LBFGS,
) -> Run:
    solution = eqopt.minimize(fn, method(), y0, (args,), throw=False, **limits._asdict())
    return Run(
        solution.params, solution.value, solution.grad, solution.num_steps, solution.num_evals
    )


def run_optax(fn: Objective, y0: Any, args: Any, limits: Limits) -> Run:
    """The loop of optax's documentation. Its search evaluates value and gradient at each trial."""
    import optax

    def value_fn(y: Any) -> Array:
        return fn(y, args)

    optimizer = optax.lbfgs(memory_size=MEMORY)
    value_and_grad = optax.value_and_grad_from_state(value_fn)

    def unfinished(run_and_state: tuple[Run, Any]) -> Array:
        run, _ = run_and_state
        within = (run.num_steps < limits.max_steps) & (run.num_evals < limits.max_evals)
        return within & ~(max_norm(run.grad) <= limits.gtol)

    def step(run_and_state: tuple[Run, Any]) -> tuple[Run, Any]:
        run, old = run_and_state
        state: Any
        updates, state = optimizer.update(
            run.grad, old, run.y, value=run.value, grad=run.grad, value_fn=value_fn
        )
        y = optax.apply_updates(run.y, updates)
        num_evals = run.num_evals + state[-1].info.num_linesearch_steps
        value, grad = value_and_grad(y, state=state)
        return Run(y, value, grad, run.num_steps + 1, num_evals), state

    state = optimizer.init(y0)
    value, grad = value_and_grad(y0, state=state)
    start = Run(y0, value, grad, jnp.asarray(0), jnp.asarray(1))
    run, _ = jax.lax.while_loop(unfinished, step, (start, state))
    return run


def run_jaxopt(fn: Objective, y0: Any, args: Any, limits: Limits) -> Run:
    """jaxopt's own steps, in a loop that stops by the infinity norm: its own is by the 2-norm.

    Its searches begin at 1, as those of the others do. By default they begin at 1.5 times the last
    step, which solves fewer problems.
    """
    import jaxopt

    solver = jaxopt.LBFGS(fn, history_size=MEMORY, linesearch_init="max")

    def unfinished(y_and_state: tuple[Any, Any]) -> Array:
        _, state = y_and_state
        within = state.iter_num < limits.max_steps
        within &= state.num_fun_eval < limits.max_evals
        return within & ~(max_norm(state.grad) <= limits.gtol)

    def step(y_and_state: tuple[Any, Any]) -> tuple[Any, Any]:
        y, state = solver.update(*y_and_state, args)
        return y, state

    start = (y0, solver.init_state(y0, args))
    y, state = jax.lax.while_loop(unfinished, step, start)
    return Run(y, state.value, state.grad, state.iter_num, state.num_fun_eval)


def run_eqopt_bounded(fn: Objective, y0: Any, args: Any, limits: Limits, bounds: Any) -> Run:
    solution = eqopt.minimize(
        fn, eqopt.LBFGSB(), y0, (args,), throw=False, bounds=bounds, **limits._asdict()
    )
    return Run(
        solution.params, solution.value, solution.grad, solution.num_steps, solution.num_evals
    )


def run_jaxopt_bounded(fn: Objective, y0: Any, args: Any, limits: Limits, bounds: Any) -> Run:
    """jaxopt's own steps, from the nearest point between the bounds: it does not project it."""
    import jaxopt

    solver = jaxopt.LBFGSB(fn, history_size=MEMORY, linesearch_init="max")

    def unfinished(y_and_state: tuple[Any, Any]) -> Array:
        _, state = y_and_state
        within = state.iter_num < limits.max_steps
        within &= state.num_fun_eval < limits.max_evals
        return within & ~(state.error <= limits.gtol)

    def step(y_and_state: tuple[Any, Any]) -> tuple[Any, Any]:
        y, state = solver.update(*y_and_state, bounds, args)
        return y, state

    y0 = jax.tree.map(jnp.clip, y0, *bounds)
    start = (y0, solver.init_state(y0, bounds, args))
    y, state = jax.lax.while_loop(unfinished, step, start)
    return Run(y, state.value, state.grad, state.iter_num, state.num_fun_eval)


def run_optimistix(fn: Objective, y0: Any, args: Any, limits: Limits) -> Run:
    from . import _cutest_optimistix

    return Run(*_cutest_optimistix.lbfgs(fn, y0, args, MEMORY, *limits))


def run_optimistix_bfgs(fn: Objective, y0: Any, args: Any, limits: Limits) -> Run:
    from . import _cutest_optimistix

    return Run(*_cutest_optimistix.bfgs(fn, y0, args, *limits))


Prepared = Callable[[], Run]


def compiled(
    method: Callable[..., Run],
    problem: Problem,
    limits: Limits,
    tick: Callable[[], None],
) -> Prepared:
    def fn(y: Any, args: Any) -> Array:
        jax.debug.callback(tick)
        return problem.objective(y, args)

    def run(y0: Any, args: Any, *bounds: Any) -> Run:
        return method(fn, y0, args, limits, *bounds)

    jitted: Any = eqx.filter_jit(run)
    given = problem.y0, problem.args, *(() if problem.bounds is None else (problem.bounds,))
    program = jitted.lower(*given).compile()
    return lambda: program(*given)


def prepare_scipy(problem: Problem, limits: Limits, tick: Callable[[], None]) -> Prepared:
    """scipy itself always works in float64. Its stop by the value is turned off."""
    from scipy import optimize

    y0, unravel = ravel_pytree(problem.y0)

    def value_fn(y: Array) -> Array:
        return problem.objective(unravel(y), problem.args)

    program = jax.jit(jax.value_and_grad(value_fn)).lower(y0).compile()

    def value_and_grad(y: np.ndarray) -> tuple[float, np.ndarray]:
        tick()
        value, grad = program(jnp.asarray(y, y0.dtype))
        return float(value), np.asarray(grad, np.float64)

    def run() -> Run:
        options = {
            "maxcor": MEMORY,
            "gtol": limits.gtol,
            "ftol": 0.0,
            "maxfun": limits.max_evals,
            "maxiter": limits.max_steps,
        }
        bounds = None
        if problem.bounds is not None:
            low, high = (np.asarray(ravel_pytree(b)[0]) for b in problem.bounds)
            bounds = [*zip(low, high, strict=True)]
        found = optimize.minimize(
            value_and_grad,
            np.asarray(y0),
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options=options,
        )
        y = unravel(jnp.asarray(found.x, y0.dtype))
        return Run(y, found.fun, found.jac, found.nit, found.nfev)

    return run


@dataclasses.dataclass(frozen=True)
class Solver:
    """How a solver is made ready to run, and the package that it needs."""

    prepare: Callable[[Problem, Limits, Callable[[], None]], Prepared]
    package: str
    max_variables: int | None = None
    multiplies: bool = False  # makes products with the Hessian matrix


SOLVERS = {
    "eqopt": Solver(functools.partial(compiled, run_eqopt), "eqopt"),
    "eqopt-newton": Solver(
        functools.partial(compiled, functools.partial(run_eqopt, method=eqopt.NewtonCG)),
        "eqopt",
        multiplies=True,
    ),
    "scipy": Solver(prepare_scipy, "scipy"),
    "optax": Solver(functools.partial(compiled, run_optax), "optax"),
    "jaxopt": Solver(functools.partial(compiled, run_jaxopt), "jaxopt"),
    "optimistix": Solver(functools.partial(compiled, run_optimistix), "optimistix"),
    "optimistix-bfgs": Solver(
        functools.partial(compiled, run_optimistix_bfgs), "optimistix", max_variables=MAX_DENSE
    ),
}

BOUNDED = {
    "eqopt": Solver(functools.partial(compiled, run_eqopt_bounded), "eqopt"),
    "scipy": SOLVERS["scipy"],
    "jaxopt": Solver(functools.partial(compiled, run_jaxopt_bounded), "jaxopt"),
}

# A problem is common if all of these solve it.
PEERS = ("scipy", "optax", "jaxopt", "optimistix")
BOUNDED_PEERS = ("scipy", "jaxopt")
