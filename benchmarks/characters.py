"""A transformer on characters: loss against steps, with AdamW, Muon, NorMuon and MuonHyperball.

`python -m benchmarks.characters` prints a table, and writes numbers and picture to
`docs/benchmarks/`. It takes an hour on two cores.

The text is Python's own reference, as `help()` prints it (`pydoc_data.topics`, a part of Python);
its last tenth is held out. The model has four blocks, stacked, and about a million parameters.

Every optimizer is tuned alike: 16 runs with a seed of their own, at the points of one sequence in a
square that spans two decades of the rate of the blocks' matrices and two of the rate of all else.
The best point is then run with three more seeds. Rates rise over 20 steps, and stay.
"""

import argparse
import dataclasses
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

import eqopt

from ._report import RESULTS
from ._timing import machine

FILE = RESULTS / "characters.json"
PICTURE = FILE.with_suffix(".png")


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is done: for numbers, or only to see that it runs."""

    width: int
    num_steps: int
    num_trials: int
    seeds: tuple[int, ...]


FULL = Size(width=144, num_steps=300, num_trials=16, seeds=(0, 1, 2))
SMOKE = Size(width=8, num_steps=20, num_trials=1, seeds=(0,))
NUM_BLOCKS, NUM_HEADS, LENGTH, BATCH, WARMUP, EVERY, TUNING_SEED = 4, 4, 64, 8, 20, 10, 100

# Text


def text() -> Int[np.ndarray, " n"]:
    """The characters, each as its place in the alphabet of ASCII; others as `?`."""
    joined = "\n".join(topics[name] for name in sorted(topics))
    codes = np.frombuffer(joined.encode("ascii", "replace"), np.uint8)
    return np.unique(codes, return_inverse=True)[1].astype(np.int32)


# Model


class Block(eqx.Module):
    """Attention to the characters before, and a layer on each character alone."""

    norms: tuple[eqx.nn.RMSNorm, eqx.nn.RMSNorm]
    query: eqx.nn.Linear
    key: eqx.nn.Linear
    value: eqx.nn.Linear
    out: eqx.nn.Linear
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, width: int, key: PRNGKeyArray) -> None:
        def linear(i: int, o: int, key: PRNGKeyArray) -> eqx.nn.Linear:
            return eqx.nn.Linear(i, o, use_bias=False, key=key)

        keys = jax.random.split(key, 6)
        self.norms = eqx.nn.RMSNorm(width, use_bias=False), eqx.nn.RMSNorm(width, use_bias=False)
        self.query, self.key, self.value, self.out = (linear(width, width, k) for k in keys[:4])
        self.up, self.down = linear(width, 4 * width, keys[4]), linear(4 * width, width, keys[5])

    def __call__(self, x: Float[Array, "length width"]) -> Float[Array, "length width"]:
        y = jax.vmap(self.norms[0])(x)
        heads = [
            jax.vmap(layer)(y).reshape(len(x), NUM_HEADS, -1)
            for layer in (self.query, self.key, self.value)
        ]
        mixed = jax.nn.dot_product_attention(*heads, is_causal=True)
        x = x + jax.vmap(self.out)(mixed.reshape(x.shape))
        y = jax.vmap(self.up)(jax.vmap(self.norms[1])(x))
        return x + jax.vmap(self.down)(jax.nn.gelu(y))


class Transformer(eqx.Module):
    """A model of the next character."""

    characters: eqx.nn.Embedding
    positions: eqx.nn.Embedding
    blocks: Block
    norm: eqx.nn.RMSNorm
    head: eqx.nn.Linear

    def __init__(self, size: int, width: int, key: PRNGKeyArray) -> None:
        keys = jax.random.split(key, 4)
        self.characters = eqx.nn.Embedding(size, width, key=keys[0])
        self.positions = eqx.nn.Embedding(LENGTH, width, key=keys[1])
        self.blocks = eqx.filter_vmap(lambda key: Block(width, key))(
            jax.random.split(keys[2], NUM_BLOCKS)
        )
        self.norm = eqx.nn.RMSNorm(width, use_bias=False)
        self.head = eqx.nn.Linear(width, size, use_bias=False, key=keys[3])

    def __call__(self, text: Int[Array, " length"]) -> Float[Array, "length size"]:
        arrays, rest = eqx.partition(self.blocks, eqx.is_array)

        def through(x: Array, arrays: Any) -> tuple[Array, None]:
            return eqx.combine(arrays, rest)(x), None

        x = jax.vmap(self.characters)(text) + self.positions.weight
        x, _ = lax.scan(through, x, arrays)
        return jax.vmap(self.head)(jax.vmap(self.norm)(x))


def loss_fn(model: Transformer, texts: Int[Array, "batch next"]) -> Float[Array, ""]:
    """The mean cross-entropy of the next character, in nats."""
    log_probabilities = jax.nn.log_softmax(jax.vmap(model)(texts[:, :-1]))
    return -jnp.mean(jnp.take_along_axis(log_probabilities, texts[:, 1:, None], axis=-1))


# Optimizers

# Neither the embeddings nor the head: these, and the norms, go to AdamW everywhere.
MATRICES = eqopt.ByPath("blocks.**") & eqopt.ByNdim(3)


def _adamw(rate: Any) -> eqopt.AdamW:
    return eqopt.AdamW(rate, b1=0.9, b2=0.95, weight_decay=0.1)


@dataclasses.dataclass(frozen=True)
class Contestant:
    """An optimizer by the rates of the blocks' matrices and of all else, and the usual rates."""

    make: Callable[[Any, Any], Any]
    usual: tuple[float, float]


OPTIMIZERS = {
    "AdamW": Contestant(
        lambda rate, other: eqopt.Partition(
            {"matrices": _adamw(rate), "rest": _adamw(other)}, {MATRICES: "matrices", ...: "rest"}
        ),
        (3e-3, 3e-3),
    ),
    "Muon": Contestant(
        lambda rate, other: eqopt.Muon(
            rate,
            weight_decay=0.1,
            adam_learning_rate=other,
            adam_b2=0.95,
            adam_weight_decay=0.1,
            muon_weight_dimension_numbers=MATRICES,
        ),
        (2e-2, 3e-3),
    ),
    "NorMuon": Contestant(
        lambda rate, other: eqopt.matrix.NorMuon(
            rate, weight_decay=0.1, rest=_adamw(other), weight_dimension_numbers=MATRICES
        ),
        (3e-3, 3e-3),
    ),
    "MuonHyperball": Contestant(
        lambda rate, other: eqopt.matrix.MuonHyperball(
            rate, rest=_adamw(other), weight_dimension_numbers=MATRICES
        ),
        (2e-2, 3e-3),
    ),
}


def rates(usual: tuple[float, float], num: int) -> list[tuple[float, float]]:
    """Points of Roberts' sequence, which fills a square evenly; the usual rates are its middle."""
    ratio = 1.32471795724  # the root of x^3 = x + 1
    steps = np.array([1 / ratio, 1 / ratio**2])
    points = (0.5 + np.arange(num)[:, None] * steps) % 1
    return [(float(a), float(b)) for a, b in np.array(usual) * 10 ** (2 * points - 1)]


# Runs


def trainer(codes: Int[np.ndarray, " n"], size: Size) -> Callable[[Any, int], list[float]]:
    """Makes a function from an optimizer and a seed to held-out losses, one every few steps."""
    split, alphabet = len(codes) * 9 // 10, int(codes.max()) + 1
    train = jnp.asarray(codes[:split])
    rows = codes[split:][: (len(codes) - split) // (LENGTH + 1) * (LENGTH + 1)]
    # Every fourth row: 10,000 characters and more, from all of the held-out text.
    held_out = jnp.asarray(rows.reshape(-1, LENGTH + 1)[:: 4 if size is FULL else 200])

    @eqx.filter_jit
    def start(opt: Any, key: PRNGKeyArray) -> Any:
        model = Transformer(alphabet, size.width, key)
        return model, opt.init(model)

    @eqx.filter_jit
    def several(opt: Any, model: Any, state: Any, keys: PRNGKeyArray) -> Any:
        arrays, rest = eqx.partition((model, state), eqx.is_array)

        def step(arrays: Any, key: PRNGKeyArray) -> tuple[Any, None]:
            model, state = eqx.combine(arrays, rest)
            places = jax.random.randint(key, (BATCH, 1), 0, len(train) - LENGTH)
            texts = train[places + jnp.arange(LENGTH + 1)[None]]
            model, state, _ = opt.step(loss_fn, model, state, texts)
            return eqx.filter((model, state), eqx.is_array), None

        arrays, _ = lax.scan(step, arrays, keys)
        model, state = eqx.combine(arrays, rest)
        return model, state, loss_fn(model, held_out)

    def run(opt: Any, seed: int) -> list[float]:
        first, second = jax.random.split(jax.random.key(seed))
        model, state = start(opt, first)
        losses: list[float] = []
        for keys in jax.random.split(second, (size.num_steps // EVERY, EVERY)):
            model, state, loss = several(opt, model, state, keys)
            losses.append(float(loss))
        return losses

    return run


def tuned(run: Callable[[Any, int], list[float]], name: str, size: Size) -> dict[str, Any]:
    """All trials of an optimizer, and its best rates with more seeds."""

    def opt(point: tuple[float, float]) -> Any:
        return OPTIMIZERS[name].make(
            *(eqopt.WarmupConstant(peak_value=jnp.float32(x), warmup_steps=WARMUP) for x in point)
        )

    trials: list[tuple[float, tuple[float, float]]] = []
    for point in rates(OPTIMIZERS[name].usual, size.num_trials):
        trials.append((run(opt(point), TUNING_SEED)[-1], point))
        print(f"{name}, {point[0]:.2g} and {point[1]:.2g}: {trials[-1][0]:.3f}", flush=True)
    _, best = min(x for x in trials if np.isfinite(x[0]))
    curves = [run(opt(best), seed) for seed in size.seeds]
    print(f"{name}, seeds: " + ", ".join(f"{x[-1]:.3f}" for x in curves), flush=True)
    return {
        "trials": [[*point, f"{loss:.4f}"] for loss, point in trials],  # which may be "nan"
        "rates": list(best),
        "curves": [[round(x, 4) for x in curve] for curve in curves],
    }


# Results


def summary(runs: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Rates, last losses, and the steps to the loss that AdamW ends with, by median curves."""
    medians = {name: np.median(x["curves"], axis=0) for name, x in runs.items()}
    aim = medians["AdamW"][-1]
    found: dict[str, dict[str, Any]] = {}
    for name, median in medians.items():
        there = np.flatnonzero(median <= aim)
        last = [curve[-1] for curve in runs[name]["curves"]]
        found[name] = {
            "rates": runs[name]["rates"],
            "loss": float(median[-1]),
            "range": [min(last), max(last)],
            "steps": int(there[0] + 1) * EVERY if len(there) else None,
        }
    return found


def table(found: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| optimizer | rates | held-out loss | of three seeds | steps to AdamW's loss |",
        "| --- | --- | ---: | --- | ---: |",
    ]
    for name, x in found.items():
        steps = "not reached" if x["steps"] is None else str(x["steps"])
        lines.append(
            f"| {name} | {x['rates'][0]:.2g}, {x['rates'][1]:.2g} | {x['loss']:.3f} | "
            f"{x['range'][0]:.3f} to {x['range'][1]:.3f} | {steps} |"
        )
    return "\n".join(lines)


def draw(path: Path, runs: dict[str, Any]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for number, (name, own) in enumerate(runs.items()):
        for i, curve in enumerate(own["curves"]):
            steps = EVERY * np.arange(1, len(curve) + 1)
            axes.plot(steps, curve, color=f"C{number}", label=None if i else name, linewidth=1)
    axes.set(xlabel="steps", ylabel="held-out loss, nats per character")
    figure.legend(frameon=False, loc="outside upper center", ncols=4)
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.characters", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="only see that everything runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    options = parser.parse_args(arguments)
    size = SMOKE if options.smoke else FULL
    run = trainer(text(), size)
    runs = {name: tuned(run, name, size) for name in OPTIMIZERS}
    print(table(summary(runs)))
    if not options.smoke:
        report = {"machine": machine(), "python": platform.python_version(), "runs": runs}
        (options.out / FILE.name).write_text(json.dumps(report) + "\n", encoding="utf-8")
        draw(options.out / PICTURE.name, runs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
