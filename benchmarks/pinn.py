"""A physics-informed network: the error against the exact solution, by the number of evaluations.

`python -m benchmarks.pinn` prints a table, and writes table and picture to `docs/benchmarks/`.

The network u solves the Helmholtz equation, u_xx + u_yy + u = q, on the square from -1 to 1, with
u = 0 on the border, which a factor sees to. The exact solution, sin(pi x) sin(4 pi y), gives q. The
objective is the mean squared residual at fixed random points, in float64.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

import eqopt
from eqopt.quasi_newton import SelfScaledBFGS, SelfScaledBroyden
from eqopt.states import LinesearchState

from ._report import RESULTS
from ._timing import machine

FILE = RESULTS / "pinn.json"

OPTIMIZERS: dict[str, Callable[[int], Any]] = {
    "self-scaled Broyden": lambda n: eqopt.BFGS(update_rule=SelfScaledBroyden()),
    "self-scaled BFGS": lambda n: eqopt.BFGS(update_rule=SelfScaledBFGS()),
    "BFGS": lambda n: eqopt.BFGS(),
    "L-BFGS": lambda n: eqopt.LBFGS(),
    "Adam": lambda n: eqopt.Adam(eqopt.CosineDecay(5e-3, n)),
}
WIDTH, NUM_POINTS, NUM_EVALS, SEEDS, CHUNK = 20, 800, 5000, (0, 1, 2), 50


class Solution(eqx.Module):
    """The network, which is zero on the border."""

    mlp: eqx.nn.MLP

    def __call__(self, p: Float[Array, "2"]) -> Float[Array, ""]:
        return jnp.prod(1 - p**2) * self.mlp(p)


def exact(p: Float[Array, "2"]) -> Float[Array, ""]:
    return jnp.sin(jnp.pi * p[0]) * jnp.sin(4 * jnp.pi * p[1])


def helmholtz(u: Callable[[Array], Array], p: Float[Array, "2"]) -> Float[Array, ""]:
    def second(direction: Float[Array, "2"]) -> Float[Array, ""]:
        def slope(p: Array) -> Array:
            return jax.jvp(u, (p,), (direction,))[1]

        return jax.jvp(slope, (p,), (direction,))[1]

    return jnp.sum(jax.vmap(second)(jnp.eye(2, dtype=p.dtype))) + u(p)


def loss_fn(u: Solution, points: Float[Array, "n 2"], sources: Float[Array, " n"]) -> Array:
    return jnp.mean((jax.vmap(lambda p: helmholtz(u, p))(points) - sources) ** 2)


def error(u: Solution) -> Float[Array, ""]:
    """The relative error in the 2-norm, on a grid."""
    line = jnp.linspace(-1, 1, 101)
    grid = jnp.stack(jnp.meshgrid(line, line), axis=-1).reshape(-1, 2)
    found, known = jax.vmap(u)(grid), jax.vmap(exact)(grid)
    return jnp.linalg.norm(found - known) / jnp.linalg.norm(known)


def run(opt: Any, seed: int, num_evals: int, width: int) -> list[tuple[int, float, float]]:
    """Evaluations, objective and error, every few steps."""
    keys = jax.random.split(jax.random.key(seed), 2)
    u = Solution(eqx.nn.MLP(2, "scalar", width, 3, jnp.tanh, dtype=jnp.float64, key=keys[0]))
    points = jax.random.uniform(keys[1], (NUM_POINTS, 2), jnp.float64, -1, 1)
    sources = jax.vmap(lambda p: helmholtz(exact, p))(points)
    arrays, rest = eqx.partition((u, opt.init(u)), eqx.is_array)

    @eqx.filter_jit
    def chunk(opt: Any, arrays: Any) -> Any:
        def step(arrays: Any, _: None) -> Any:
            u, state = eqx.combine(arrays, rest)
            u, state, evaluation = opt.step(loss_fn, u, state, points, sources)
            return eqx.filter((u, state), eqx.is_array), (evals(state), evaluation.value)

        arrays, (counts, values) = lax.scan(step, arrays, length=CHUNK)
        return arrays, jnp.sum(counts), values[-1], error(eqx.combine(arrays, rest)[0])

    found, count = [(0, float("inf"), float(error(u)))], 0
    while count < num_evals:
        arrays, added, value, err = chunk(opt, arrays)
        count += int(added)
        found.append((count, float(value), float(err)))
    return found


def evals(state: Any) -> Array:
    """The evaluations in a step: those of its search, or one."""

    def is_search(x: object) -> bool:
        return isinstance(x, LinesearchState)

    searches: list[Any] = [x for x in jax.tree.leaves(state, is_leaf=is_search) if is_search(x)]
    return searches[0].info.num_linesearch_steps if searches else jnp.ones((), jnp.int32)


def draw(path: Path, runs: dict[str, list[Any]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for number, (name, curves) in enumerate(runs.items()):
        for i, curve in enumerate(curves):
            counts, _, errors = zip(*curve, strict=True)
            label = name if i == 0 else None
            axes.semilogy(counts, errors, color=f"C{number}", label=label, linewidth=1)
    axes.set(xlabel="evaluations of objective and gradient", ylabel="relative error")
    figure.legend(frameon=False, loc="outside upper center", ncols=3)
    figure.savefig(path, dpi=120)


def summary(curves: list[Any]) -> dict[str, float]:
    """Medians over the seeds: the error half way and at the end, and the objective there."""

    def at(curve: Any, count: int) -> tuple[int, float, float]:
        return [x for x in curve if x[0] <= count or x is curve[0]][-1]

    half, end = [at(curve, NUM_EVALS // 2) for curve in curves], [curve[-1] for curve in curves]
    return {
        "error half way": float(np.median([x[2] for x in half])),
        "error": float(np.median([x[2] for x in end])),
        "objective": float(np.median([x[1] for x in end])),
    }


def table(found: dict[str, dict[str, float]]) -> str:
    lines = ["| optimizer | error half way | error | objective |", "| --- | ---: | ---: | ---: |"]
    for name, row in found.items():
        lines.append(f"| {name} | " + " | ".join(f"{x:.1e}" for x in row.values()) + " |")
    return "\n".join(lines)


def rounded(curve: list[tuple[int, float, float]]) -> list[list[float]]:
    return [[count, float(f"{value:.3g}"), float(f"{err:.3g}")] for count, value, err in curve]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pinn", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="only see that everything runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    options = parser.parse_args(arguments)
    jax.config.update("jax_enable_x64", True)
    num_evals, width, seeds = (60, 4, (0,)) if options.smoke else (NUM_EVALS, WIDTH, SEEDS)
    runs: dict[str, list[Any]] = {}
    for name, make in OPTIMIZERS.items():
        runs[name] = []
        for seed in seeds:
            runs[name].append(run(make(num_evals), seed, num_evals, width))
            print(f"{name}, seed {seed}: {runs[name][-1][-1]}", flush=True)
    found = {name: summary(curves) for name, curves in runs.items()}
    print(table(found))
    if not options.smoke:
        curves = {name: [rounded(x) for x in several] for name, several in runs.items()}
        report = {"machine": machine(), "table": found, "runs": curves}
        (options.out / FILE.name).write_text(json.dumps(report) + "\n", encoding="utf-8")
        draw(options.out / "pinn.png", runs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
