"""Which optimizer: each one trains the same networks, over a range of learning rates and seeds.

`python -m benchmarks.which` prints a table, and writes its numbers to `docs/benchmarks/`. An
optimizer's runs, of all rates and seeds, are one compiled program: the optimizers of all rates are
one Module whose numbers are arrays, and the training step is mapped over it.

What is told: the best rate; the held-out loss with it, the median over the seeds; and over how
many of the rates, a factor of the square root of 10 apart, that loss is within a fifth of its best.
The rates are shared by all, whatever an optimizer is usually given, and so is everything else: no
schedule, no weight decay but an optimizer's own, defaults for all other hyper-parameters.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray
from sklearn.datasets import load_diabetes, load_digits

import eqopt

from ._report import RESULTS

FILE = RESULTS / "which.json"

OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "SGD": eqopt.SGD,
    "SGD, momentum 0.9": lambda rate: eqopt.SGD(rate, momentum=0.9, nesterov=True),
    "Adam": eqopt.Adam,
    "AdamW": eqopt.AdamW,
    "NAdam": eqopt.NAdam,
    "AMSGrad": eqopt.AMSGrad,
    "Adamax": eqopt.Adamax,
    "RAdam": eqopt.RAdam,
    "AdaBelief": eqopt.AdaBelief,
    "Adan": eqopt.Adan,
    "ADOPT": eqopt.ADOPT,
    "AdEMAMix": eqopt.AdEMAMix,
    "Yogi": eqopt.Yogi,
    "NovoGrad": eqopt.NovoGrad,
    "RMSProp": eqopt.RMSProp,
    "Adagrad": eqopt.Adagrad,
    "Adadelta": eqopt.Adadelta,
    "Adafactor": eqopt.Adafactor,
    "SM3": eqopt.SM3,
    "Lion": eqopt.Lion,
    "Signum": eqopt.Signum,
    "LAMB": eqopt.LAMB,
    "LARS": eqopt.LARS,
    "Muon": eqopt.Muon,
    "Sophia": eqopt.Sophia,
    "MADGRAD": eqopt.MADGRAD,
    "ScheduleFreeSGD": eqopt.ScheduleFreeSGD,
    "ScheduleFreeAdamW": eqopt.ScheduleFreeAdamW,
    "COCOB": eqopt.COCOB,
    "DoG": eqopt.DoG,
    "DoWG": eqopt.DoWG,
    "DAdaptAdamW": eqopt.DAdaptAdamW,
    "Prodigy": eqopt.Prodigy,
    "MoMo": eqopt.MoMo,
    "MoMoAdam": eqopt.MoMoAdam,
    "Mechanize of Adam": lambda rate: eqopt.Mechanize(eqopt.Adam(rate)),
}


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is done: for numbers, or only to see that it runs."""

    num_steps: int
    num_seeds: int
    rates: tuple[float, ...]


FULL = Size(500, 3, tuple(10.0 ** (i / 2) for i in range(-8, 2)))
SMOKE = Size(2, 1, (1e-2, 1e-1))


@dataclasses.dataclass(frozen=True)
class Task:
    """A network, its objective, and data: inputs and targets, to train and to hold out."""

    model: Callable[[PRNGKeyArray], Any]
    loss_fn: Callable[..., Array]
    train: tuple[np.ndarray, np.ndarray]
    held_out: tuple[np.ndarray, np.ndarray]
    batch_size: int


def tasks() -> dict[str, Task]:
    return {
        "digits, 2 hidden layers": _task(
            load_digits, cross_entropy, lambda key: eqx.nn.MLP(64, 10, 64, 2, key=key), 64
        ),
        "digits, 8 hidden layers": _task(
            load_digits, cross_entropy, lambda key: eqx.nn.MLP(64, 10, 32, 8, key=key), 64
        ),
        "diabetes, 2 hidden layers": _task(
            load_diabetes, squared_error, lambda key: eqx.nn.MLP(10, 1, 32, 2, key=key), 16
        ),
    }


def _task(load: Any, loss_fn: Any, model: Any, batch_size: int) -> Task:
    x, y = load(return_X_y=True)
    x = (x - x.mean()) / x.std()
    y = (y - y.mean()) / y.std() if loss_fn is squared_error else y
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order].astype(np.float32), y[order].astype(np.float32)
    split = len(x) * 3 // 4
    return Task(model, loss_fn, (x[:split], y[:split]), (x[split:], y[split:]), batch_size)


def cross_entropy(model: Any, x: Float[Array, "b d"], y: Float[Array, " b"]) -> Array:
    log_probabilities = jax.nn.log_softmax(jax.vmap(model)(x))
    picked = jnp.take_along_axis(log_probabilities, y.astype(jnp.int32)[:, None], axis=1)
    return -jnp.mean(picked)


def squared_error(model: Any, x: Float[Array, "b d"], y: Float[Array, " b"]) -> Array:
    return jnp.mean(jnp.square(jax.vmap(model)(x)[:, 0] - y))


def held_out_losses(task: Task, make: Callable[[Any], Any], size: Size) -> np.ndarray:
    """For each rate and each seed."""
    x, y = (jnp.asarray(a) for a in task.train)
    held_out = tuple(jnp.asarray(a) for a in task.held_out)

    def train(opt: Any, seed: Array) -> Array:
        keys = jax.random.split(jax.random.key(seed), 2)
        model = task.model(keys[0])
        arrays, rest = eqx.partition((model, opt.init(model)), eqx.is_array)

        def step(carry: Any, key: PRNGKeyArray) -> tuple[Any, None]:
            model, state = eqx.combine(carry, rest)
            batch = jax.random.choice(key, len(x), (task.batch_size,), replace=False)
            model, state, _ = opt.step(task.loss_fn, model, state, x[batch], y[batch])
            return eqx.filter((model, state), eqx.is_array), None

        carry, _ = lax.scan(step, arrays, jax.random.split(keys[1], size.num_steps))
        model, state = eqx.combine(carry, rest)
        return task.loss_fn(eqopt.eval_params(model, state), *held_out)

    optimizers = eqx.filter_vmap(make)(jnp.asarray(size.rates, jnp.float32))
    over_seeds = eqx.filter_vmap(train, in_axes=(None, 0))
    over_rates = eqx.filter_jit(eqx.filter_vmap(over_seeds, in_axes=(eqx.if_array(0), None)))
    return np.asarray(over_rates(optimizers, jnp.arange(size.num_seeds)))


def summary(losses: np.ndarray, rates: tuple[float, ...]) -> dict[str, float]:
    """The best rate, its loss, and how many rates do nearly as well."""
    medians = np.median(np.nan_to_num(losses, nan=np.inf), axis=1)
    best = int(np.argmin(medians))
    near = int(np.sum(medians <= 1.2 * medians[best]))
    # A rate of 1 is in every optimizer's range; of those that learn their rate it is the default.
    at_one = float(medians[rates.index(1.0)]) if 1.0 in rates else float("nan")
    return {"loss": float(medians[best]), "rate": rates[best], "near": near, "at_one": at_one}


def table(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """All tasks in one table, those first that come first on average."""
    ranks = {
        name: sum(x["loss"] < own[name]["loss"] for own in found.values() for x in own.values())
        for name in next(iter(found.values()))
    }
    columns = ["optimizer", *(y for title in found for y in (title, "rate", "good"))]
    lines = [_line(columns), _line(["---", *["---:"] * (len(columns) - 1)])]
    for name in sorted(ranks, key=lambda name: ranks[name]):
        cells = [name]
        for own in found.values():
            x = own[name]
            cells += [f"{x['loss']:.2g}", f"{x['rate']:.2g}", f"{x['near']:g}"]
        lines.append(_line(cells))
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.which", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="only see that everything runs")
    parser.add_argument("--json", type=Path, default=FILE, metavar="FILE")
    options = parser.parse_args(arguments)
    size = SMOKE if options.smoke else FULL
    found: dict[str, Any] = {}
    for title, task in tasks().items():
        found[title] = {
            name: summary(held_out_losses(task, make, size), size.rates)
            for name, make in OPTIMIZERS.items()
        }
    print(table(found))
    if not options.smoke:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
