"""How long it takes to begin: from a function to a program, and on to an executable.

Nothing is cached, in memory or on disk, and each repetition begins with a new function.
"""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import optax
from jaxtyping import Array

import eqopt

from . import _timing
from ._models import loss_fn, loss_of, many_leaves, matrices, model_and_data, network, normalized
from ._sides import EQOPT, FLATTENED, OPTAX, RATE, Side, SIDES, WAYS, written_out
from ._timing import counted, Row, timed

RATES = (1e-4, 1e-3, 1e-2)
LOWER, EXECUTABLE = "trace and lower", "trace to executable"


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is done: for numbers, or only to see that it runs."""

    repetitions: int
    nums_leaves: tuple[int, ...]
    num_layers: int
    num_matrices: int


FULL = Size(repetitions=7, nums_leaves=(10, 100, 1000), num_layers=100, num_matrices=500)
SMOKE = Size(repetitions=1, nums_leaves=(5,), num_layers=2, num_matrices=5)


def run(smoke: bool) -> list[Row]:
    size = SMOKE if smoke else FULL
    rows = [*counts(), cost_of_checks(num_leaves=20)]
    for num in size.nums_leaves:
        rows += updating(num, size.repetitions)
    return [*rows, *orthogonalizing(size), *large_objective(size)]


# Times


def phases(function: Callable[..., Any], *args: Any) -> dict[str, float]:
    """The seconds that it takes to be traced and lowered, and to be an executable."""
    lowering, lowered = lowered_in(function, *args)
    compiling, _ = _timing.clock(lowered.compile)
    return {LOWER: lowering, EXECUTABLE: lowering + compiling}


def lowered_in(function: Callable[..., Any], *args: Any) -> tuple[float, Any]:
    jax.clear_caches()
    return _timing.clock(functools.partial(lower, function, *args))


def lower(function: Callable[..., Any], *args: Any) -> Any:
    # A new function: JAX would remember one that it has seen.
    return jax.jit(lambda *args: function(*args)).lower(*args)


def updating(num_leaves: int, repetitions: int) -> list[Row]:
    """AdamW with clipping, updating and applying."""
    params = many_leaves(num_leaves)
    optimizers = {side: side.clipping(RATE) for side in (*SIDES, FLATTENED)}
    states = {side: optimizer.init(params) for side, optimizer in optimizers.items()}

    def step(side: Side) -> Callable[..., Any]:
        return functools.partial(side.apply, optimizers[side])

    def one(side: Side) -> dict[str, float]:
        return phases(step(side), params, params, states[side])

    # What follows takes as long to compile.
    def unchecked_one() -> dict[str, float]:
        with unchecked():
            return {LOWER: lowered_in(step(EQOPT), params, params, states[EQOPT])[0]}

    def nothing() -> dict[str, float]:
        return {LOWER: lowered_in(lambda *args: args, params, params, states[EQOPT])[0]}

    sides: dict[str, Callable[[], Mapping[str, float]]] = {
        **{side.name: functools.partial(one, side) for side in optimizers},
        "eqopt unchecked": unchecked_one,
        "nothing": nothing,
    }
    times = _timing.alternate_phases(sides, repetitions)
    name = f"AdamW, clipping, {num_leaves} leaves, {{}} [ms]".format
    pair = ("eqopt", "optax")
    most = num_leaves >= 1000
    return [
        timed(name(LOWER), times[LOWER], pair, 1e-3, 0.25 if most else None),
        timed(name(EXECUTABLE), times[EXECUTABLE], pair, 1e-3, 0.6 if most else None),
        timed(name(EXECUTABLE), times[EXECUTABLE], ("eqopt Flatten", "eqopt"), 1e-3),
        timed(name(LOWER), times[LOWER], ("eqopt", "eqopt unchecked"), 1e-3, 1.3),
        timed(name(LOWER), times[LOWER], ("nothing", "optax"), 1e-3),
    ]


def orthogonalizing(size: Size) -> list[Row]:
    """Muon, updating and applying: matrices of five shapes."""
    params = matrices(size.num_matrices)
    optimizers = {EQOPT: eqopt.Muon(RATE), OPTAX: optax.contrib.muon(RATE)}
    states = {side: optimizer.init(params) for side, optimizer in optimizers.items()}

    def one(side: Side) -> dict[str, float]:
        step = functools.partial(side.apply, optimizers[side])
        return phases(step, params, params, states[side])

    # Half a minute each, for optax.
    sides = {side.name: functools.partial(one, side) for side in optimizers}
    times = _timing.alternate_phases(sides, min(size.repetitions, 3))
    name = f"Muon, {size.num_matrices} leaves, {{}} [ms]".format
    pair = ("eqopt", "optax")
    most = size.num_matrices >= 500
    return [timed(name(x), times[x], pair, 1e-3, 0.25 if most else None) for x in times]


def large_objective(size: Size) -> list[Row]:
    """A train step of a deep network."""
    layers, loss = network(size.num_layers), loss_of(normalized)
    x, y = jnp.ones((32, 16)), jnp.zeros((32, 16))

    def one(side: Side) -> dict[str, float]:
        optimizer, step = side.clipping(RATE), written_out(side, loss)
        state = optimizer.init(layers)
        return phases(functools.partial(step, optimizer), layers, state, x, y)

    def bare() -> dict[str, float]:
        return phases(jax.value_and_grad(loss), layers, x, y)

    sides = {side.name: functools.partial(one, side) for side in SIDES}
    times = _timing.alternate_phases({**sides, "value_and_grad": bare}, size.repetitions)
    name = f"train step, {size.num_layers} layers, {{}} [ms]".format
    pairs = (("eqopt", "optax"), ("eqopt", "value_and_grad"), ("optax", "value_and_grad"))
    return [timed(name(phase), times[phase], pair, 1e-3) for phase in times for pair in pairs]


# Counts


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
    step, value = make_step(side, loss), eqx.filter_jit(loss_fn)
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
    return Counts(traces_so_far[0], compilations, [float(value(end, x, y)) for end in ends])


def counts(num_steps: int = 3) -> list[Row]:
    """What is traced and compiled."""
    found = {way: count(way, RATES, num_steps) for way in WAYS}
    compilations = counted(
        "train step, three learning rates, compilations",
        {way: x.compilations for way, x in found.items()},
        {"eqopt": 1, "eqopt's step": 1, "optax": 3},
    )
    compilations.values = {way: x.losses for way, x in found.items()}
    traces = counted(
        "train step, one learning rate, traces",
        {way: x.traces_of_first for way, x in found.items()},
        dict.fromkeys(WAYS, 1),
    )
    return [compilations, traces]


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Turns the checks off, as `JAXTYPING_DISABLE=1` does."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def cost_of_checks(num_leaves: int) -> Row:
    """Checks are gone once the program is built."""
    params = many_leaves(num_leaves)
    optimizer = EQOPT.make(RATE)
    state = optimizer.init(params)

    def program() -> list[str]:
        jax.clear_caches()
        return lower(optimizer.update, params, state, params).as_text().splitlines()

    checked = program()
    with unchecked():
        bare = program()
    different = sum(a != b for a, b in itertools.zip_longest(checked, bare))
    name = f"checks on or off, different lines in the program's {len(bare)}"
    return counted(name, {"eqopt": different}, {"eqopt": 0})
