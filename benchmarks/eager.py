"""Calls that nothing compiles around, as in a notebook: `update`, and L-BFGS's loop of steps."""

import argparse
import dataclasses
import functools
import gc
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import eqopt
from eqopt._jit.function import key_function

from . import _timing
from ._models import loss_fn, model_and_data, rosenbrock
from ._sides import RATE, Side, SIDES
from ._timing import Row, timed_against


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is done: for numbers, or only to see that it runs."""

    repetitions: int
    num_calls: int
    slow_repetitions: int
    num_steps: int


FULL = Size(repetitions=11, num_calls=100, slow_repetitions=7, num_steps=8)
SMOKE = Size(repetitions=1, num_calls=3, slow_repetitions=1, num_steps=2)


def run(smoke: bool) -> list[Row]:
    size = SMOKE if smoke else FULL
    return [*update(size), *loop(size), *key(size)]


def update(size: Size) -> list[Row]:
    """`update` alone: gradients and application are not in the time."""
    model, x, y = model_and_data()
    value, gradient = eqx.filter_jit(loss_fn), eqx.filter_jit(eqx.filter_grad(loss_fn))
    values = {"before": [float(value(model, x, y))]}

    def one(side: Side) -> float:
        optimizer, current, seconds = side.make(RATE), model, 0.0
        state = optimizer.init(side.trained(model))
        gc.collect()
        gc.disable()
        for _ in range(size.num_calls):
            grads = jax.block_until_ready(gradient(current, x, y))
            params = side.trained(current)
            start = time.perf_counter()
            updates, state = jax.block_until_ready(optimizer.update(grads, state, params))
            seconds += time.perf_counter() - start
            current = eqx.apply_updates(current, updates)
        gc.enable()
        values[side.name] = [float(value(current, x, y))]
        return seconds / size.num_calls

    sides = {side.name: functools.partial(one, side) for side in SIDES}
    times = _timing.alternate(sides, size.repetitions)
    return timed_against("AdamW, 8 leaves [us]", times, "optax", 1e-6, {"eqopt": 1 / 5}, values)


def loop(size: Size) -> list[Row]:
    """Steps of L-BFGS on a vector of four."""
    start = jnp.full(4, -1.0)
    ours, theirs = eqopt.LBFGS(), optax.lbfgs()
    reached: dict[str, list[float]] = {"before": [float(rosenbrock(start))]}

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
    times = _timing.alternate(sides, size.slow_repetitions)
    return timed_against("L-BFGS, step [ms]", times, "optax", 1e-3, {"eqopt": 1 / 50}, reached)


def key(size: Size) -> list[Row]:
    """The key of an objective, which is built at each call of `step`, over the whole call."""
    model, x, y = model_and_data()
    opt = eqopt.AdamW(RATE)
    scale, settings = 1.0, argparse.Namespace(scale=1.0)
    objectives: dict[str, Callable[..., Any]] = {
        "plain": loss_fn,
        "closure": lambda *args: scale * loss_fn(*args),
        "object": lambda *args: settings.scale * loss_fn(*args),
    }

    def step(objective: Callable[..., Any]) -> float:
        current, state = model, opt.init(model)
        seconds = 0.0
        for _ in range(size.num_calls):
            start = time.perf_counter()
            current, state, _ = jax.block_until_ready(opt.step(objective, current, state, x, y))
            seconds += time.perf_counter() - start
        return seconds / size.num_calls

    def build(objective: Callable[..., Any]) -> float:
        seconds, _ = _timing.clock(
            lambda: [key_function(objective) for _ in range(size.num_calls)] and None
        )
        return seconds / size.num_calls

    rows = []
    for name, objective in objectives.items():
        sides = {
            "key": functools.partial(build, objective),
            "step": functools.partial(step, objective),
        }
        times = _timing.alternate(sides, size.repetitions)
        rows.append(
            _timing.timed(f"key of an objective, {name} [us]", times, ("key", "step"), 1e-6)
        )
    return rows
