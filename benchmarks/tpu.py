"""What an optimizer's step holds on TPUs: compiled for a topology, with no TPU at hand.

`pip install libtpu`, then `python -m benchmarks.tpu`, which prints a table and writes its numbers
to `docs/benchmarks/`. The parameters are eight layers of a transformer, 134 million in all, in
float32; matrices are divided by rows between all chips.
"""

import argparse
import dataclasses
import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import eqopt
from eqopt import ByNdim, ByPath, matrix

from ._report import RESULTS

FILE = RESULTS / "tpu.json"
TOPOLOGIES = ("v5e:2x4", "v5e:4x4")
COLLECTIVES = (
    "all-to-all",
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "collective-permute",
)
MATRICES = ByPath("layers.**") & ByNdim(2)

OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "AdamW": lambda: eqopt.AdamW(1e-3),
    "Muon": lambda: eqopt.Muon(0.02, muon_weight_dimension_numbers=MATRICES),
    "NorMuon": lambda: matrix.NorMuon(0.02, weight_dimension_numbers=MATRICES),
    "MuonHyperball": lambda: matrix.MuonHyperball(0.02, weight_dimension_numbers=MATRICES),
}


@dataclasses.dataclass(frozen=True)
class Program:
    """What a compiled step holds: collectives, those within loops, bytes a chip, seconds."""

    all_to_alls: int
    others: int
    in_loops: int
    temporaries: int
    seconds: float


def parameters(mesh: Mesh, width: int = 1024, num_layers: int = 8) -> Any:
    """Shapes and shardings."""
    d = width
    layer = {
        "qkv": (3 * d, d),
        "out": (d, d),
        "up": (4 * d, d),
        "down": (d, 4 * d),
        "norms": [(d,), (d,)],
    }

    def like(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
        spec = PartitionSpec("d", None) if len(shape) == 2 else PartitionSpec()
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))

    shapes = {"layers": [layer] * num_layers, "embedding": (32 * d, d)}
    return jax.tree.map(like, shapes, is_leaf=lambda x: isinstance(x, tuple))


def compiled(opt: Any, params: Any) -> Program:
    """The program of a whole step: update and application."""

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = opt.update(grads, state, params)
        return eqopt.apply_updates(params, updates), state

    init = jax.jit(lambda p: opt.init(p)).lower(params).compile()
    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        jax.eval_shape(lambda p: opt.init(p), params),
        init.output_shardings,
    )
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params)
    start = time.perf_counter()
    program: Any = lowered.compile()
    seconds = time.perf_counter() - start
    text = program.as_text()
    found = count(text)
    return Program(
        found["all-to-all"],
        sum(found.values()) - found["all-to-all"],
        sum(sum(count(body).values()) for body in loop_bodies(text)),
        program.memory_analysis().temp_size_in_bytes,
        round(seconds, 1),
    )


def count(text: str) -> dict[str, int]:
    return {x: len(re.findall(rf"= [^=]*\b{x}(?:-start)?\(", text)) for x in COLLECTIVES}


def loop_bodies(text: str) -> list[str]:
    """The computations that are bodies of loops, in the text of a program."""
    names = set(re.findall(r"\bbody=%?([\w.-]+)", text))
    blocks = re.split(r"\n(?=(?:ENTRY )?%?[\w.-]+ \()", text)
    return [x for x in blocks if (m := re.match(r"%?([\w.-]+) \(", x)) and m[1] in names]


def table(found: dict[str, dict[str, dict[str, Any]]]) -> str:
    lines = [
        "| chips | optimizer | all-to-alls | others | in loops | temporaries | compiled |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for topology, programs in found.items():
        for name, x in programs.items():
            lines.append(
                f"| {topology} | {name} | {x['all_to_alls']} | {x['others']} | {x['in_loops']} | "
                f"{x['temporaries'] / 1e6:.0f} MB | {x['seconds']:.0f} s |"
            )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tpu", description=__doc__)
    parser.add_argument("--json", type=Path, default=FILE, metavar="FILE")
    options = parser.parse_args(arguments)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name in TOPOLOGIES:
        chips = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
        params = parameters(Mesh(np.array(chips).reshape(-1), ("d",)))
        found[name] = {
            x: dataclasses.asdict(compiled(make(), params)) for x, make in OPTIMIZERS.items()
        }
    print(table(found))
    report = {"jax": jax.__version__, "programs": found}
    options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
