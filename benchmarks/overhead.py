"""A whole train step of a network so small that its arithmetic is hardly a part of the time."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np

import eqopt

from . import _timing
from ._models import loss_fn, model_and_data
from ._sides import by_hand, by_step, EQOPT, FLATTENED, OPTAX, RATE, Side, torch_on_cpu, written_out
from ._timing import Row, timed_against

# A way to train: called, it prepares, and gives what is timed. That returns the model.
Way = Callable[[], Callable[[], Any]]


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is done: for numbers, or only to see that it runs."""

    repetitions: int
    num_steps: int
    steps_per_call: int


FULL = Size(repetitions=11, num_steps=512, steps_per_call=32)
SMOKE = Size(repetitions=1, num_steps=8, steps_per_call=4)


def run(smoke: bool) -> list[Row]:
    size = SMOKE if smoke else FULL
    model, x, y = model_and_data()
    value = eqx.filter_jit(loss_fn)
    values = {"before": [float(value(model, x, y))]}
    many = f"fit, {size.steps_per_call} steps a call"
    ways: dict[str, Way] = {
        "optax": loop(OPTAX, by_hand, size),
        "fit": fit(1, size),
        many: fit(size.steps_per_call, size),
        "Optimizer.step": bundle(EQOPT, bundled_step, size),
        "Optimizer.step, Flatten": bundle(FLATTENED, bundled_step, size),
        "step": loop(EQOPT, by_step, size),
        "own filter_jit": loop(EQOPT, by_hand, size),
        "own filter_jit, optimizer constant": loop(EQOPT, constant, size),
        "own filter_jit, Flatten": loop(FLATTENED, by_hand, size),
        "own filter_jit, Optimizer": bundle(EQOPT, eqx.filter_jit(two_halves), size),
        "plain jit, leaves, donated": leaves(size),
        "scan": scanned(size),
    }
    if torch_on_cpu() is not None:
        ways["torch"] = torch_loop(torch_on_cpu(), size)

    def one(way: str) -> float:
        seconds, end = _timing.clock(ways[way]())
        values[way] = [float(end) if way == "torch" else float(value(end, x, y))]
        return seconds / size.num_steps

    sides = {way: functools.partial(one, way) for way in ways}
    times = _timing.alternate(sides, size.repetitions)
    at_most = {
        "fit": 0.35,
        many: 0.15,
        "Optimizer.step": 0.35,
        "Optimizer.step, Flatten": 0.35,
        "own filter_jit": 1.0,
        "own filter_jit, optimizer constant": 1.0,
        "own filter_jit, Flatten": 1.0,
        "own filter_jit, Optimizer": 1.0,
    }
    bounds = {way: at_most.get(way) for way in ways if way != "optax"}
    return timed_against("train step, 8 leaves [us]", times, "optax", 1e-6, bounds, values)


def constant(side: Side, loss: Callable[..., Any]) -> Callable[..., Any]:
    """A step as users write it where the optimizer is a global."""
    step, optimizer = written_out(side, loss), side.make(RATE)
    compiled = eqx.filter_jit(lambda *args: step(optimizer, *args))
    return lambda optimizer, *args: compiled(*args)


def loop(side: Side, make_step: Callable[..., Any], size: Size) -> Way:
    """A loop of steps that take a model and a state, and give new ones."""
    model, x, y = model_and_data()
    step, optimizer = make_step(side, loss_fn), side.make(RATE)
    state = optimizer.init(side.trained(model))

    def steps() -> Any:
        current, now = model, state
        for _ in range(size.num_steps):
            current, now = step(optimizer, current, now, x, y)
        return current

    return lambda: steps


def fit(steps_per_call: int, size: Size) -> Way:
    model, x, y = model_and_data()
    optimizer, batches = EQOPT.make(RATE), [(x, y)] * size.num_steps

    def steps() -> Any:
        return eqopt.fit(loss_fn, optimizer, model, batches, steps_per_call=steps_per_call).model

    return lambda: steps


def bundled_step(optimizer: Any, x: Any, y: Any) -> Any:
    return optimizer.step(loss_fn, x, y)[0]


def two_halves(optimizer: Any, x: Any, y: Any) -> Any:
    """A step as users write it who want the gradients."""
    _, grads = optimizer.compute_gradient(loss_fn, x, y)
    return optimizer.apply_gradient(grads)


def bundle(side: Side, step: Callable[..., Any], size: Size) -> Way:
    """A loop of steps that take an `Optimizer`, and give a new one."""
    model, x, y = model_and_data()

    def prepare() -> Callable[[], Any]:
        bundled = eqopt.Optimizer.create(side.make(RATE), model)

        def steps() -> Any:
            current = bundled
            for _ in range(size.num_steps):
                current = step(current, x, y)
            return current.target

        return steps

    return prepare


# What is possible


def leaves(size: Size) -> Way:
    """`jax.jit` of a step whose arguments are plain lists of arrays, which it overwrites."""
    flat, step, rebuild, x, y = _flat_step()
    compiled = jax.jit(step, donate_argnums=0)

    def prepare() -> Callable[[], Any]:
        copied = jax.tree.map(lambda leaf: leaf.copy(), flat)

        def steps() -> Any:
            now = copied
            for _ in range(size.num_steps):
                now = compiled(now, x, y)
            return rebuild(now)[0]

        return steps

    return prepare


def scanned(size: Size) -> Way:
    """The arithmetic alone: all steps in one compiled call."""
    flat, step, rebuild, x, y = _flat_step()

    @jax.jit
    def all_steps(flat: list[Any]) -> list[Any]:
        return jax.lax.fori_loop(0, size.num_steps, lambda _, now: step(now, x, y), flat)

    return lambda: lambda: rebuild(all_steps(flat))[0]


def _flat_step() -> tuple[list[Any], Callable[..., Any], Callable[[list[Any]], Any], Any, Any]:
    """The leaves at the start, a step from leaves to leaves, and what they are leaves of."""
    model, x, y = model_and_data()
    optimizer, step = EQOPT.make(RATE), written_out(EQOPT, loss_fn)
    arrays, rest = eqx.partition((model, optimizer.init(model)), eqx.is_array)
    flat, structure = jax.tree.flatten(arrays)

    def rebuild(flat: list[Any]) -> Any:
        return eqx.combine(jax.tree.unflatten(structure, flat), rest)

    def flat_step(flat: list[Any], x: Any, y: Any) -> list[Any]:
        new = step(optimizer, *rebuild(flat), x, y)
        return jax.tree.leaves(eqx.filter(new, eqx.is_array))

    return flat, flat_step, rebuild, x, y


# torch


def torch_loop(torch: Any, size: Size) -> Way:
    """The same network, with torch's fused AdamW; it returns the loss, not the model."""
    start, *data = model_and_data()
    x, y = (torch.from_numpy(np.array(array)) for array in data)

    def prepare() -> Callable[[], Any]:
        parts: list[Any] = []
        for layer in start.layers:
            linear = torch.nn.Linear(layer.in_features, layer.out_features)
            with torch.no_grad():
                linear.weight.copy_(torch.from_numpy(np.array(layer.weight)))
                linear.bias.copy_(torch.from_numpy(np.array(layer.bias)))
            parts += [linear, torch.nn.ReLU()]
        model = torch.nn.Sequential(*parts[:-1])
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=1e-4, fused=True)

        def loss() -> Any:
            return torch.mean(torch.square(model(x) - y))

        def steps() -> Any:
            for _ in range(size.num_steps):
                optimizer.zero_grad()
                loss().backward()
                optimizer.step()
            return loss().item()

        return steps

    return prepare
