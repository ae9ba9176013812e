"""optimistix's solvers, stopped by the gradient: what the CUTEst benchmark runs of them."""

from collections.abc import Callable
from typing import Any

import optimistix
from jaxtyping import Array


class StopAtGradient(optimistix.AbstractMinimiser):
    """Stops another solver as soon as the infinity norm of its gradient is small enough.

    Optimistix stops by changes of the value and the point, which is another question.
    """

    inner: Any
    gtol: float
    max_steps: int
    rtol: float = 0.0
    atol: float = 0.0
    norm: Any = optimistix.max_norm

    def init(
        self, fn: Any, y: Any, args: Any, options: Any, f_struct: Any, aux_struct: Any, tags: Any
    ) -> Any:
        return self.inner.init(fn, y, args, options, f_struct, aux_struct, tags)

    def step(self, fn: Any, y: Any, args: Any, options: Any, state: Any, tags: Any) -> Any:
        return self.inner.step(fn, y, args, options, state, tags)

    def terminate(
        self, fn: Any, y: Any, args: Any, options: Any, state: Any, tags: Any
    ) -> tuple[Array, Any]:
        _, result = self.inner.terminate(fn, y, args, options, state, tags)
        small = optimistix.max_norm(state.f_info.grad) <= self.gtol
        return ~state.first_step & (small | (_num_steps(state) >= self.max_steps)), result

    def postprocess(
        self, fn: Any, y: Any, aux: Any, args: Any, options: Any, state: Any, tags: Any, result: Any
    ) -> Any:
        return self.inner.postprocess(fn, y, aux, args, options, state, tags, result)


def _num_steps(state: Any) -> Array:
    # The first point to be accepted is the one where it begins.
    return state.num_accepted_steps - 1


def lbfgs(
    fn: Callable[[Any, Any], Array],
    y0: Any,
    args: Any,
    memory: int,
    gtol: float,
    max_evals: int,
    max_steps: int,
) -> tuple[Any, ...]:
    inner = optimistix.LBFGS(rtol=0.0, atol=0.0, history_length=memory)
    return _solve(
        StopAtGradient(inner=inner, gtol=gtol, max_steps=max_steps), fn, y0, args, max_evals
    )


def bfgs(
    fn: Callable[[Any, Any], Array],
    y0: Any,
    args: Any,
    gtol: float,
    max_evals: int,
    max_steps: int,
) -> tuple[Any, ...]:
    inner = optimistix.BFGS(rtol=0.0, atol=0.0)
    return _solve(
        StopAtGradient(inner=inner, gtol=gtol, max_steps=max_steps), fn, y0, args, max_evals
    )


def _solve(
    solver: StopAtGradient, fn: Callable[[Any, Any], Array], y0: Any, args: Any, max_evals: int
) -> tuple[Any, ...]:
    """The point, value, gradient, number of steps and of evaluations: one in each of its steps."""
    solution = optimistix.minimise(fn, solver, y0, args, max_steps=max_evals, throw=False)
    state = solution.state
    num_evals = solution.stats["num_steps"]
    return solution.value, state.f_info.f, state.f_info.grad, _num_steps(state), num_evals
