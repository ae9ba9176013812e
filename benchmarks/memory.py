"""Bytes: of states, of what a compiled step needs beside them, and of `fit` at its peak.

They are counted, not measured: states leaf by leaf, the rest by XLA. Parameters and states are
overwritten ("donated") in every step that is counted.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array

import eqopt

from ._models import loss_fn
from ._sides import EQOPT, OPTAX, RATE, Side, SIDES, Update
from ._timing import no_more, Row, shown

# What rates, step counts and losses may need more, however large the model. [bytes]
SCALARS = 1024


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is done: for numbers, or only to see that it runs."""

    blocks: int
    blocks_of_kernels: int
    width: int


FULL = Size(blocks=4, blocks_of_kernels=50, width=1024)
SMOKE = Size(blocks=1, blocks_of_kernels=2, width=256)


@dataclasses.dataclass(frozen=True)
class Pair:
    """An optimizer as both libraries have it, and what else it is called with."""

    eqopt: Callable[[], Any]
    optax: Callable[[], Any]
    extra: Callable[[Any, Any], dict[str, Any]] | None = None
    # Copies of the parameters that eqopt's state, and its temporaries, have beyond optax's, for a
    # reason.
    beyond: int = 0
    beyond_temporaries: int = 0


def _value(params: Any, grads: Any) -> dict[str, Any]:
    return {"value": jnp.float32(1.0)}


def _squares(params: Any) -> Array:
    return sum((jnp.sum(jnp.square(x)) for x in jax.tree.leaves(params)), jnp.float32(0))


def _search(params: Any, grads: Any) -> dict[str, Any]:
    return {"value": _squares(params), "grad": grads, "value_fn": _squares}


def _lbfgs() -> Any:
    """optax's: `eqopt.LBFGS` also learns a diagonal."""
    estimate = eqopt.ScaleByLBFGS(
        first_step_rtol=0,
        init_matrix=eqopt.quasi_newton.ScalarMatrix(),
        secant=eqopt.quasi_newton.PlainSecant(),
    )
    return eqopt.Chain(estimate, eqopt.Scale(-1.0), eqopt.ScaleByZoomLinesearch(20))


PAIRS = {
    "SGD": Pair(lambda: eqopt.SGD(RATE), lambda: optax.sgd(RATE)),
    "SGD, momentum": Pair(lambda: eqopt.SGD(RATE, 0.9), lambda: optax.sgd(RATE, 0.9)),
    "SGD, Nesterov": Pair(
        lambda: eqopt.SGD(RATE, 0.9, nesterov=True), lambda: optax.sgd(RATE, 0.9, nesterov=True)
    ),
    "Adam": Pair(lambda: eqopt.Adam(RATE), lambda: optax.adam(RATE)),
    "AdamW": Pair(lambda: EQOPT.make(RATE), lambda: OPTAX.make(RATE)),
    "AdamW, clipping": Pair(lambda: EQOPT.clipping(RATE), lambda: OPTAX.clipping(RATE)),
    "NAdam": Pair(lambda: eqopt.NAdam(RATE), lambda: optax.nadam(RATE)),
    "NAdamW": Pair(lambda: eqopt.NAdamW(RATE), lambda: optax.nadamw(RATE)),
    "AdaBelief": Pair(lambda: eqopt.AdaBelief(RATE), lambda: optax.adabelief(RATE)),
    "Adadelta": Pair(lambda: eqopt.Adadelta(RATE), lambda: optax.adadelta(RATE)),
    "Adafactor": Pair(lambda: eqopt.Adafactor(RATE), lambda: optax.adafactor(RATE)),
    "Adafactor, momentum": Pair(
        lambda: eqopt.Adafactor(RATE, momentum=0.9), lambda: optax.adafactor(RATE, momentum=0.9)
    ),
    "Adagrad": Pair(lambda: eqopt.Adagrad(RATE), lambda: optax.adagrad(RATE)),
    "LAMB": Pair(lambda: eqopt.LAMB(RATE), lambda: optax.lamb(RATE)),
    "LARS": Pair(lambda: eqopt.LARS(RATE), lambda: optax.lars(RATE)),
    "Lion": Pair(lambda: eqopt.Lion(RATE), lambda: optax.lion(RATE)),
    "RMSProp": Pair(lambda: eqopt.RMSProp(RATE), lambda: optax.rmsprop(RATE)),
    "RMSProp, centered, momentum": Pair(
        lambda: eqopt.RMSProp(RATE, centered=True, momentum=0.9),
        lambda: optax.rmsprop(RATE, centered=True, momentum=0.9),
    ),
    "PolyakSGD": Pair(eqopt.PolyakSGD, optax.polyak_sgd, _value),
    "ScheduleFreeSGD": Pair(eqopt.ScheduleFreeSGD, optax.contrib.schedule_free_sgd),
    # eqopt keeps the difference of two points and not one of them, so that `b1` may be 0. Weight
    # decay makes each of difference and parameters depend on what the other was.
    "ScheduleFreeAdamW": Pair(
        eqopt.ScheduleFreeAdamW, optax.contrib.schedule_free_adamw, beyond_temporaries=1
    ),
    # A search of eqopt's knows the point at which it has evaluated, and where another is asked for
    # evaluates again.
    "L-BFGS": Pair(_lbfgs, optax.lbfgs, _search, beyond=1),
}


def run(smoke: bool) -> list[Row]:
    size = SMOKE if smoke else FULL
    rows: list[Row] = []
    for name, pair in PAIRS.items():
        rows += compared(name, pair, size)
    return [*rows, *kernels(size), *peak_of_fit(size)]


def parameters(blocks: int, width: int) -> list[Array]:
    """Matrices, vectors, and small convolutions."""
    shapes = [(width, 256), (width,), (3, 3, 8, 16)] * blocks
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.random.normal(k, shape, jnp.float32) for k, shape in zip(keys, shapes, strict=True)]


def num_bytes(tree: Any) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(tree))


# The same optimizer twice


def compared(name: str, pair: Pair, size: Size) -> list[Row]:
    """Bytes of the state, and of the temporaries of a step."""
    params = parameters(size.blocks, size.width)
    states: dict[str, int] = {}
    temporaries: dict[str, int] = {}
    for side, make in ((EQOPT, pair.eqopt), (OPTAX, pair.optax)):
        optimizer = make()
        state = optimizer.init(params)
        states[side.name] = num_bytes(state)
        compiled = Update(side, optimizer, pair.extra).lower(params, state, params).compile()
        temporaries[side.name] = compiled.memory_analysis().temp_size_in_bytes
    one = num_bytes(params)
    return [
        no_more(f"{name}: bytes of the state", states, SCALARS + pair.beyond * one),
        no_more(
            f"{name}: bytes of temporaries", temporaries, SCALARS + pair.beyond_temporaries * one
        ),
    ]


# Kernels


def kernels(size: Size) -> list[Row]:
    """How many kernels a step starts, as the compiled program has them."""
    params = parameters(size.blocks_of_kernels, width=32)

    def number(side: Side, optimizer: Any) -> int:
        update = Update(side, optimizer)
        return num_kernels(update.lower(params, optimizer.init(params), params).compile().as_text())

    rows: list[Row] = []
    for name, clipped in (("AdamW", False), ("AdamW, clipping", True)):
        found = {x.name: number(x, (x.clipping if clipped else x.make)(RATE)) for x in SIDES}
        rows.append(shown(f"{name}, {len(params)} leaves: kernels in a step", found))
    return rows


# What starts no kernel, or has its kernels in a computation of its own.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("call", "while", "conditional", "partition-id", "replica-id"),
}


def num_kernels(program: str) -> int:
    """The instructions of a compiled program that are not part of another."""
    within: set[str] = set()
    computations: dict[str, list[str]] = {"": []}
    current = ""
    for line in program.splitlines():
        if line.endswith("{"):
            current = line.removeprefix("ENTRY ").split()[0].lstrip("%")
            computations[current] = []
        instruction = re.match(r"\s+(?:ROOT )?%?[\w.-]+ = .*? ([a-z][a-z0-9-]*)\(", line)
        if instruction:
            computations[current].append(instruction[1])
            if instruction[1] != "call":
                within.update(re.findall(r"(?:calls|to_apply)=%?([\w.-]+)", line))
    return sum(
        instruction not in _FREE
        for name, instructions in computations.items()
        if name not in within
        for instruction in instructions
    )


# fit


def peak_of_fit(size: Size) -> list[Row]:
    """What `fit`'s step needs, next to its parts: a gradient, a batch, one model, one state."""
    model = eqx.nn.MLP(64, 64, size.width, 2, dtype=jnp.float32, key=jax.random.key(0))
    x, y = jnp.ones((16, 64)), jnp.zeros((16, 64))
    params, rest = eqx.partition(model, eqx.is_inexact_array)

    def gradient(params: Any, x: Array, y: Array) -> tuple[Array, Any]:
        return jax.value_and_grad(lambda p: loss_fn(eqx.combine(p, rest), x, y))(params)

    def by_optax(params: Any, state: Any, x: Array, y: Array) -> Any:
        value, grads = gradient(params, x, y)
        return OPTAX.apply(theirs, params, grads, state), value, optax.tree.norm(grads)

    ours, theirs = EQOPT.make(RATE), OPTAX.make(RATE)
    state = ours.init(model)
    parts = jax.jit(gradient).lower(params, x, y).compile().memory_analysis()
    step = jax.jit(by_optax, donate_argnums=(0, 1)).lower(params, theirs.init(params), x, y)
    fit = peak(donating(lambda: eqopt.fit(loss_fn, ours, model, [(x, y)])))
    name = f"fit, {num_bytes(params)} bytes of parameters: bytes at the peak"
    return [
        no_more(name, {"fit": fit, "gradient and state": peak(parts) + num_bytes(state)}, SCALARS),
        no_more(name, {"fit": fit, "optax": peak(step.compile().memory_analysis())}, SCALARS),
    ]


def peak(stats: Any) -> int:
    """Arguments, results that are not written over them, and temporaries."""
    kept = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    return kept + stats.temp_size_in_bytes


def donating(function: Callable[[], Any]) -> Any:
    """What XLA says of the one program compiled meanwhile that overwrites what it is given."""
    client = jax.devices()[0].client
    jax.clear_caches()
    before = client.live_executables()
    function()
    new = [x for x in client.live_executables() if all(x is not other for other in before)]
    (found,) = [x for x in map(_stats, new) if x.alias_size_in_bytes]
    return found


def _stats(executable: Any) -> Any:
    return executable.get_compiled_memory_stats()
