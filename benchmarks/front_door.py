"""The front door, next to optax's: calling it, tracing it, and what it compiles.

`python -m benchmarks.front_door` prints ratios with their spread, then the times. Counts of traces
and compilations must be right, or the exit status is not 0. Times have targets, and are only
reported: they depend on the machine.
"""

import contextlib
import dataclasses
import functools
import gc
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
from jaxtyping import Array, Float

import eqopt

from . import _timing
from ._timing import counted, Row, Target, timed

RATE = 1e-3
RATES = (1e-4, 1e-3, 1e-2)


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is done: for numbers, or only to see that it runs."""

    repetitions: int
    num_calls: int
    num_steps: int
    num_leaves: int
    steps_per_call: int


FULL = Size(repetitions=11, num_calls=100, num_steps=256, num_leaves=500, steps_per_call=32)
SMOKE = Size(repetitions=2, num_calls=3, num_steps=8, num_leaves=20, steps_per_call=4)


# The two sides


def eqopt_apply(optimizer: Any, model: Any, grads: Any, state: Any) -> tuple[Any, Any]:
    updates, state = optimizer.update(grads, state, model)
    return eqopt.apply_updates(model, updates), state


def optax_apply(optimizer: Any, model: Any, grads: Any, state: Any) -> tuple[Any, Any]:
    params = eqx.filter(model, eqx.is_inexact_array)
    updates, state = optimizer.update(grads, state, params)
    return eqx.apply_updates(model, updates), state


@dataclasses.dataclass(frozen=True)
class Side:
    """A library: how its AdamW is made, begins, and changes a model."""

    name: str
    make: Callable[[float], Any]
    trained: Callable[[Any], Any]
    apply: Callable[[Any, Any, Any, Any], tuple[Any, Any]]


# The same weight decay on both sides. eqopt takes the model as it is; optax takes its arrays.
EQOPT = Side("eqopt", lambda rate: eqopt.AdamW(rate), lambda model: model, eqopt_apply)
OPTAX = Side(
    "optax",
    lambda rate: optax.adamw(rate),
    lambda model: eqx.filter(model, eqx.is_inexact_array),
    optax_apply,
)
SIDES = (EQOPT, OPTAX)


# The model: eight leaves


def model_and_data() -> tuple[eqx.nn.MLP, Float[Array, "32 8"], Float[Array, "32 4"]]:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(32, 8)), jnp.float32)
    y = jnp.asarray(rng.normal(size=(32, 4)), jnp.float32)
    model = eqx.nn.MLP(8, 4, width_size=32, depth=3, dtype=jnp.float32, key=jax.random.key(0))
    return model, x, y


def loss_fn(
    model: eqx.nn.MLP, x: Float[Array, "batch 8"], y: Float[Array, "batch 4"]
) -> Float[Array, ""]:
    return jnp.mean(jnp.square(jax.vmap(model)(x) - y))


_value = eqx.filter_jit(loss_fn)
_grads = eqx.filter_jit(eqx.filter_grad(loss_fn))


def written_out(side: Side, loss: Callable[..., Any]) -> Callable[..., Any]:
    """A train step as a user writes it, not compiled yet."""

    def step(optimizer: Any, model: Any, state: Any, x: Array, y: Array) -> tuple[Any, Any]:
        grads = eqx.filter_grad(loss)(model, x, y)
        return side.apply(optimizer, model, grads, state)

    return step


def by_hand(side: Side, loss: Callable[..., Any]) -> Callable[..., Any]:
    """The same, compiled; the optimizer is an argument."""
    return eqx.filter_jit(written_out(side, loss))


def by_step(side: Side, loss: Callable[..., Any]) -> Callable[..., Any]:
    """The same, as eqopt's optimizers have it."""

    def step(optimizer: Any, model: Any, state: Any, x: Array, y: Array) -> tuple[Any, Any]:
        model, state, _ = optimizer.step(loss, model, state, x, y)
        return model, state

    return step


WAYS = {"eqopt": (EQOPT, by_hand), "eqopt's step": (EQOPT, by_step), "optax": (OPTAX, by_hand)}


# Counting


@functools.cache
def _compilations() -> list[str]:
    """Every compilation from the first call of this function on. (JAX has no way to stop it.)"""
    seen: list[str] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return seen


@dataclasses.dataclass
class Counts:
    """How often things were traced and compiled, and what came out of each learning rate."""

    traces_of_first: int
    compilations: int
    losses: list[float]


def count(way: str, rates: tuple[float, ...], num_steps: int) -> Counts:
    """Takes a few train steps with each learning rate, and counts."""
    traces: list[None] = []

    def loss(model: eqx.nn.MLP, x: Array, y: Array) -> Array:
        traces.append(None)
        return loss_fn(model, x, y)

    side, make_step = WAYS[way]
    step = make_step(side, loss)
    model, x, y = model_and_data()
    optimizers = [side.make(rate) for rate in rates]
    states = [optimizer.init(side.trained(model)) for optimizer in optimizers]
    jax.block_until_ready((states, x, y))
    before = len(_compilations())
    ends: list[Any] = []
    traces_so_far: list[int] = []
    for optimizer, state in zip(optimizers, states, strict=True):
        current = model
        for _ in range(num_steps):
            current, state = step(optimizer, current, state, x, y)
        ends.append(current)
        traces_so_far.append(len(traces))
    compilations = len(_compilations()) - before
    return Counts(traces_so_far[0], compilations, [float(_value(end, x, y)) for end in ends])


# Checks


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Turns the checks off, as `JAXTYPING_DISABLE=1` does."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def many_leaves(num: int) -> dict[str, Array]:
    """Matrices of seven shapes in turn."""
    return {f"leaf{i:03}": jnp.full((4, 4 + i % 7), 0.5, jnp.float32) for i in range(num)}


def lower(update: Callable[..., Any], *args: Any) -> Any:
    """Traces and lowers."""
    return jax.jit(lambda *args: update(*args)).lower(*args)


def program(num_leaves: int) -> list[str]:
    """The program that `update` becomes, built from nothing: its lines."""
    params = many_leaves(num_leaves)
    optimizer = eqopt.AdamW(RATE)
    state = optimizer.init(params)
    jax.clear_caches()
    return lower(optimizer.update, params, state, params).as_text().splitlines()


# The rows


def eager_update(size: Size) -> list[Row]:
    """`update`, called as in a notebook: gradients and application are not in the time."""
    model, x, y = model_and_data()
    losses = {"before": [float(_value(model, x, y))]}

    def run(side: Side) -> float:
        optimizer, current, seconds = side.make(RATE), model, 0.0
        state = optimizer.init(side.trained(model))
        gc.collect()
        gc.disable()
        for _ in range(size.num_calls):
            grads = jax.block_until_ready(_grads(current, x, y))
            params = side.trained(current)
            start = time.perf_counter()
            updates, state = jax.block_until_ready(optimizer.update(grads, state, params))
            seconds += time.perf_counter() - start
            current = eqx.apply_updates(current, updates)
        gc.enable()
        losses[side.name] = [float(_value(current, x, y))]
        return seconds / size.num_calls

    times = _timing.alternate({s.name: functools.partial(run, s) for s in SIDES}, size.repetitions)
    name = "eager update, 8 leaves [us]"
    row = timed(name, times, ("optax", "eqopt"), 1e-6, Target(5, at_least=True))
    row.losses = losses
    return [row]


def trace_and_lower(size: Size) -> list[Row]:
    """AdamW's `update`, traced and lowered with nothing cached."""
    params = many_leaves(size.num_leaves)
    optimizers = {side.name: side.make(RATE) for side in SIDES}
    states = {name: optimizer.init(params) for name, optimizer in optimizers.items()}

    def run(update: Callable[..., Any], state: Any) -> float:
        jax.clear_caches()
        seconds, _ = _timing.clock(lambda: lower(update, params, state, params))
        return seconds

    def checked(name: str) -> float:
        return run(optimizers[name].update, states[name])

    def bare() -> float:
        with unchecked():
            return checked("eqopt")

    sides: dict[str, Callable[[], float]] = {
        **{name: functools.partial(checked, name) for name in optimizers},
        "eqopt unchecked": bare,
        "no-op": lambda: run(lambda grads, state, params: (grads, state), states["eqopt"]),
    }
    times = _timing.alternate(sides, size.repetitions)
    name = f"trace and lower, {size.num_leaves} leaves [ms]"
    return [
        timed(name, times, ("eqopt", "optax"), 1e-3, Target(0.25, at_least=False)),
        timed(name, times, ("eqopt", "eqopt unchecked"), 1e-3, Target(1.3, at_least=False)),
        timed(name, times, ("no-op", "optax"), 1e-3, None),
    ]


def train_step(size: Size) -> list[Row]:
    """A whole compiled train step, and the loops that eqopt has for it."""
    model, x, y = model_and_data()
    losses = {"before": [float(_value(model, x, y))]}
    optimizers = {side.name: side.make(RATE) for side in SIDES}
    states = {side.name: optimizers[side.name].init(side.trained(model)) for side in SIDES}

    def steps(side: Side, step: Callable[..., Any]) -> Any:
        current, state = model, states[side.name]
        for _ in range(size.num_steps):
            current, state = step(current, state, x, y)
        return current

    def argument(side: Side, make_step: Callable[..., Any]) -> Callable[[], Any]:
        step = make_step(side, loss_fn)
        return lambda: steps(side, functools.partial(step, optimizers[side.name]))

    def constant(side: Side) -> Callable[[], Any]:
        step = written_out(side, loss_fn)
        compiled = eqx.filter_jit(lambda *args: step(optimizers[side.name], *args))
        return lambda: steps(side, compiled)

    def fit(steps_per_call: int) -> Any:
        return eqopt.fit(
            loss_fn,
            optimizers["eqopt"],
            model,
            [(x, y)] * size.num_steps,
            state=states["eqopt"],
            steps_per_call=steps_per_call,
        ).model

    ways: dict[str, Callable[[], Any]] = {
        **{way: argument(side, make_step) for way, (side, make_step) in WAYS.items()},
        "eqopt as a constant": constant(EQOPT),
        "eqopt's fit": functools.partial(fit, 1),
        f"eqopt's fit, {size.steps_per_call} steps a call": lambda: fit(size.steps_per_call),
    }

    def run(way: str) -> float:
        seconds, end = _timing.clock(ways[way])
        losses[way] = [float(_value(end, x, y))]
        return seconds / size.num_steps

    times = _timing.alternate({w: functools.partial(run, w) for w in ways}, size.repetitions)
    rows = [
        timed("train step, 8 leaves [us]", times, ("optax", way), 1e-6, None)
        for way in ways
        if way != "optax"
    ]
    rows[0].losses = losses
    return rows


def counts(num_steps: int = 3) -> list[Row]:
    """What is traced and compiled."""
    found = {way: count(way, RATES, num_steps) for way in WAYS}
    compilations = counted(
        "train step, three learning rates, compilations",
        {way: x.compilations for way, x in found.items()},
        {"eqopt": 1, "eqopt's step": 1, "optax": 3},
    )
    compilations.losses = {way: x.losses for way, x in found.items()}
    traces = counted(
        "train step, one learning rate, traces",
        {way: x.traces_of_first for way, x in found.items()},
        dict.fromkeys(WAYS, 1),
    )
    return [compilations, traces]


def cost_of_checks(num_leaves: int) -> list[Row]:
    """Checks are gone once the program is built."""
    checked = program(num_leaves)
    with unchecked():
        bare = program(num_leaves)
    different = sum(a != b for a, b in itertools.zip_longest(checked, bare))
    name = f"checks on or off, different lines in the program's {len(bare)}"
    return [counted(name, {"eqopt": different}, {"eqopt": 0})]


# The program


def run(smoke: bool) -> list[Row]:
    size = SMOKE if smoke else FULL
    return [
        *eager_update(size),
        *trace_and_lower(size),
        *counts(),
        *train_step(size),
        *cost_of_checks(size.num_leaves),
    ]


if __name__ == "__main__":
    sys.exit(_timing.main("benchmarks.front_door", __doc__, run))
