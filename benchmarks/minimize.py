"""Minimizing by L-BFGS: compiling the whole loop, next to optax's loop and optimistix's.

The value and gradient of the objective alone are the least that there is to compile.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

import eqopt

from . import _timing
from ._models import loss_of, network, normalized, normalized_by_equinox, plain, rosenbrock
from ._sides import peer
from ._timing import counted, Row, timed


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is done: for numbers, or only to see that it runs."""

    repetitions: int
    num_layers: int


# Not more layers: the peers' loops take minutes then.
FULL = Size(repetitions=5, num_layers=25)
SMOKE = Size(repetitions=1, num_layers=2)


def run(smoke: bool) -> list[Row]:
    size = SMOKE if smoke else FULL
    return [
        *counts(),
        *compiling(plain, size, None),
        *compiling(normalized, size, None),
        *compiling(normalized_by_equinox, size, 1.5),
    ]


def by_eqopt(fn: Callable[..., Array], params: Any, *args: Any) -> Any:
    return eqopt.minimize(fn, eqopt.LBFGS(), params, args, throw=False).params


def by_optax(fn: Callable[..., Array], params: Any, *args: Any, num_steps: int = 100) -> Any:
    """The loop of optax's documentation: a `while_loop` around `update`."""
    optimizer = optax.lbfgs()
    objective = functools.partial(_swapped, fn, args)
    value_and_grad = optax.value_and_grad_from_state(objective)

    def step(carry: tuple[Any, Any]) -> tuple[Any, Any]:
        params, state = carry
        value, grad = value_and_grad(params, state=state)
        updates, state = optimizer.update(
            grad, state, params, value=value, grad=grad, value_fn=objective
        )
        return optax.apply_updates(params, updates), state

    def going(carry: tuple[Any, Any]) -> Array:
        state = carry[1]
        count = optax.tree.get(state, "count")
        error = optax.tree.norm(optax.tree.get(state, "grad"))
        return (count == 0) | ((count < num_steps) & (error >= 1e-6))

    return jax.lax.while_loop(going, step, (params, optimizer.init(params)))[0]


def _swapped(fn: Callable[..., Array], args: tuple[Any, ...], params: Any) -> Array:
    return fn(params, *args)


def by_optimistix(optimistix: Any, fn: Callable[..., Array], params: Any, *args: Any) -> Any:
    solver = optimistix.LBFGS(rtol=1e-6, atol=1e-6)
    return optimistix.minimise(
        lambda params, args: fn(params, *args), solver, params, args, throw=False
    ).value


def compiling(layer_fn: Callable[..., Array], size: Size, at_most: float | None) -> list[Row]:
    """From a function to an executable. With a bound, eqopt alone is held against it."""
    loss, layers = loss_of(layer_fn), network(size.num_layers)
    x, y = jnp.ones((32, 16)), jnp.zeros((32, 16))

    def build(fn: Callable[..., Any]) -> Callable[[], float]:
        def run() -> float:
            jax.clear_caches()
            # A new function: JAX would remember one that it has seen.
            return _timing.clock(lambda: _compiled(lambda *a: fn(*a), layers, x, y))[0]

        return run

    sides = {
        "value_and_grad": build(jax.value_and_grad(loss)),
        "eqopt": build(functools.partial(by_eqopt, loss)),
    }
    others: list[str] = []
    if at_most is None:
        sides["optax"] = build(functools.partial(by_optax, loss))
        others.append("optax")
        if peer("optimistix") is not None:
            solve = functools.partial(by_optimistix, peer("optimistix"), loss)
            sides["optimistix"] = build(solve)
            others.append("optimistix")
    times = _timing.alternate(sides, size.repetitions)
    name = f"compile, {size.num_layers} layers {layer_fn.__name__} [s]"
    pairs = [("eqopt", other) for other in others]
    pairs += [(other, "value_and_grad") for other in others]
    return [
        timed(name, times, ("eqopt", "value_and_grad"), 1.0, at_most),
        *(timed(name, times, pair, 1.0) for pair in pairs),
    ]


def _compiled(fn: Callable[..., Any], *args: Any) -> None:
    jax.jit(fn).lower(*args).compile()


def counts() -> list[Row]:
    """How often the objective is traced."""
    traces: list[None] = []

    def objective(x: Array, scale: Array) -> Array:
        traces.append(None)
        return scale * rosenbrock(x)

    found = {}
    for scale in (1.0, 2.0, 3.0):
        eqopt.minimize(objective, eqopt.LBFGS(), jnp.zeros(4), (scale,), throw=False)
    found["minimize"] = len(traces)
    traces.clear()
    opt, x = eqopt.LBFGS(), jnp.zeros(4)
    state = opt.init(x)
    for scale in (1.0, 2.0, 3.0):
        x, state, _ = opt.step(objective, x, state, scale)
    found["step"] = len(traces)
    return [counted("traces of the objective", found, {"minimize": 1, "step": 1})]
