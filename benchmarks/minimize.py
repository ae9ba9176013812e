"""Minimizing, next to optax's L-BFGS: compiling the whole loop, and an eager loop of steps.

`python -m benchmarks.minimize` prints ratios with their spread, then the times, and the values
reached. Counts must be right, or the exit status is not 0. Times are only reported.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

import eqopt

from . import _timing
from ._timing import counted, Row, Target, timed


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is done: for numbers, or only to see that it runs."""

    repetitions: int
    num_layers: int
    num_steps: int


FULL = Size(repetitions=7, num_layers=100, num_steps=20)
SMOKE = Size(repetitions=1, num_layers=3, num_steps=3)

Layers = list[dict[str, Array]]


def network(num_layers: int) -> Layers:
    keys = jax.random.split(jax.random.key(0), num_layers)
    return [
        {
            "w": 0.1 * jax.random.normal(key, (16, 16)),
            "b": jnp.zeros(16),
            "scale": jnp.ones(16),
            "shift": jnp.zeros(16),
        }
        for key in keys
    ]


def plain(layer: dict[str, Array], x: Array) -> Array:
    return jnp.tanh(x @ layer["w"] + layer["b"])


def normalized(layer: dict[str, Array], x: Array) -> Array:
    normal = layer["scale"] * jax.nn.standardize(x) + layer["shift"]
    return jax.nn.gelu(normal @ layer["w"] + layer["b"])


def normalized_by_equinox(layer: dict[str, Array], x: Array) -> Array:
    norm, linear = eqx.nn.LayerNorm(16), eqx.nn.Linear(16, 16, key=jax.random.key(0))
    norm = eqx.tree_at(lambda m: (m.weight, m.bias), norm, (layer["scale"], layer["shift"]))
    linear = eqx.tree_at(lambda m: (m.weight, m.bias), linear, (layer["w"], layer["b"]))
    return jax.vmap(lambda row: jax.nn.gelu(linear(norm(row))))(x)


def loss_of(layer_fn: Callable[[dict[str, Array], Array], Array]) -> Callable[..., Array]:
    """Of a residual network of such layers."""

    def loss(layers: Layers, x: Array, y: Array) -> Array:
        for layer in layers:
            x = x + layer_fn(layer, x)
        return jnp.mean(jnp.square(x - y))

    return loss


def optax_loop(fn: Callable[..., Array], params: Any, *args: Any, num_steps: int) -> Any:
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


def compiling(
    layer_fn: Callable[..., Array], num_layers: int, repetitions: int, target: Target | None
) -> list[Row]:
    """From a function to an executable: the whole loop, and value and gradient alone.

    Without a target, optax's loop too: where there is one, it would take longer than all the rest.
    """
    loss, layers = loss_of(layer_fn), network(num_layers)
    x, y = jnp.ones((32, 16)), jnp.zeros((32, 16))

    def whole(layers: Any, x: Array, y: Array) -> Any:
        return eqopt.minimize(loss, eqopt.LBFGS(), layers, (x, y), throw=False).params

    def build(fn: Callable[..., Any]) -> Callable[[], float]:
        def run() -> float:
            jax.clear_caches()
            # A new function: JAX would remember one that it has seen.
            return _timing.clock(lambda: _compiled(lambda *a: fn(*a), layers, x, y))[0]

        return run

    sides = {"eqopt": build(whole), "value_and_grad": build(jax.value_and_grad(loss))}
    if target is None:
        sides["optax"] = build(functools.partial(optax_loop, loss, num_steps=100))
    times = _timing.alternate(sides, repetitions)
    name = f"compile, {num_layers} layers {layer_fn.__name__} [s]"
    rows = [timed(name, times, ("eqopt", "value_and_grad"), 1.0, target)]
    if target is None:
        rows.append(timed(name, times, ("optax", "value_and_grad"), 1.0, None))
        rows.append(timed(name, times, ("eqopt", "optax"), 1.0, None))
    return rows


def _compiled(fn: Callable[..., Any], *args: Any) -> None:
    jax.jit(fn).lower(*args).compile()


def rosenbrock(x: Array) -> Array:
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def eager(size: Size) -> list[Row]:
    """A notebook's loop of uncompiled steps on a vector of four."""
    start = jnp.full(4, -1.0)
    ours, theirs = eqopt.LBFGS(), optax.lbfgs()
    reached: dict[str, list[float]] = {}

    def by_eqopt() -> Any:
        x, state = start, ours.init(start)
        for _ in range(size.num_steps):
            x, state, _ = ours.step(rosenbrock, x, state)
        return x

    def by_optax() -> Any:
        x, state = start, theirs.init(start)
        value_and_grad = optax.value_and_grad_from_state(rosenbrock)
        for _ in range(size.num_steps):
            value, grad = value_and_grad(x, state=state)
            updates, state = theirs.update(
                grad, state, x, value=value, grad=grad, value_fn=rosenbrock
            )
            x = optax.apply_updates(x, updates)
        return x

    def side(name: str, run: Callable[[], Any]) -> Callable[[], float]:
        def timed_run() -> float:
            seconds, x = _timing.clock(run)
            reached[name] = [float(rosenbrock(x))]
            return seconds / size.num_steps

        return timed_run

    sides = {"eqopt": side("eqopt", by_eqopt), "optax": side("optax", by_optax)}
    times = _timing.alternate(sides, max(size.repetitions // 3, 1))
    row = timed("eager step [ms]", times, ("optax", "eqopt"), 1e-3, Target(50, at_least=True))
    row.losses = reached
    return [row]


def counts() -> list[Row]:
    """How often the objective is traced, and evaluated."""
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


def run(smoke: bool) -> list[Row]:
    size = SMOKE if smoke else FULL
    # Compiling is what is measured.
    jax.config.update("jax_enable_compilation_cache", False)
    return [
        *counts(),
        # What an objective takes to compile by itself goes from half a second to a minute.
        *compiling(plain, size.num_layers, max(size.repetitions // 2, 1), None),
        *compiling(normalized, size.num_layers, max(size.repetitions // 3, 1), None),
        *compiling(normalized_by_equinox, size.num_layers, 1, Target(1.5, at_least=False)),
        *eager(size),
    ]


if __name__ == "__main__":
    sys.exit(_timing.main("benchmarks.minimize", __doc__, run))
