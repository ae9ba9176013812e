"""Every line search, with room enough to succeed, and a way to call one by itself."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

import eqopt
from eqopt.linesearch import AbstractLinesearch, LinesearchResult

SEARCHES: dict[str, Callable[[], AbstractLinesearch[Any]]] = {
    "backtracking": lambda: eqopt.ScaleByBacktrackingLinesearch(40),
    "backtracking-grad": lambda: eqopt.ScaleByBacktrackingLinesearch(40, store_grad=True),
    "zoom": lambda: eqopt.ScaleByZoomLinesearch(30),
    "hager-zhang": lambda: eqopt.linesearch.ScaleByHagerZhangLinesearch(),
    "wolfe": lambda: eqopt.linesearch.ScaleByWolfeLinesearch(),
}

RESULTS = (
    LinesearchResult.successful,
    LinesearchResult.max_learning_rate,
    LinesearchResult.returned,
    LinesearchResult.not_descent,
    LinesearchResult.nonfinite_start,
    LinesearchResult.nonfinite,
    LinesearchResult.no_decrease,
)


@functools.cache
def value_and_grad(fn: Callable[..., Array]) -> Callable[..., tuple[Array, Array]]:
    """Compiled once a function: JAX compiles an eager `lax.switch` at every call."""
    return jax.jit(jax.value_and_grad(fn))


def search_along(
    search: AbstractLinesearch[Any],
    fn: Callable[..., Array],
    x: Array,
    direction: Array,
    state: Any = None,
    grad: Array | None = None,
    **extra: Any,
) -> tuple[Array, Any]:
    """One search from `x`: where it ends, and its state. `grad` is that which it is told."""
    state = search.init(x) if state is None else state
    value, true_grad = value_and_grad(fn)(x, **extra)
    updates, state = search.update(
        direction,
        state,
        x,
        value=value,
        grad=true_grad if grad is None else grad,
        value_fn=fn,
        **extra,
    )
    return eqopt.apply_updates(x, updates), state


def ended(state: Any, result: Any) -> bool:
    """Whether the search ended with this result, and no other."""
    found = [x for x in RESULTS if bool(state.info.result == x)]
    return found == [result]


def rosenbrock(x: Array) -> Array:
    a, b = x[1:], x[:-1]
    return jnp.sum(100 * jnp.square(a - jnp.square(b)) + jnp.square(1 - b))
