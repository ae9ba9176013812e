"""What an import costs in a process that has Equinox already, and with a first optimizer."""

import functools
import subprocess
import sys

from . import _timing
from ._timing import Row, timed_against

IMPORTS = {"eqopt": "import eqopt", "optax": "import optax"}
OPTIMIZERS = {
    "eqopt": "import eqopt; eqopt.AdamW(1e-3)",
    "optax": "import optax; optax.adamw(1e-3)",
}


def run(smoke: bool) -> list[Row]:
    repetitions = 1 if smoke else 7
    return [
        *compared("import, after equinox [ms]", IMPORTS, repetitions, 1.0),
        *compared("import and AdamW, after equinox [ms]", OPTIMIZERS, repetitions),
    ]


def compared(
    name: str, programs: dict[str, str], repetitions: int, at_most: float | None = None
) -> list[Row]:
    sides = {side: functools.partial(seconds, program) for side, program in programs.items()}
    # The run that does not count leaves compiled files.
    times = _timing.alternate(sides, repetitions)
    return timed_against(name, times, "optax", 1e-3, {"eqopt": at_most}, {})


def seconds(program: str) -> float:
    """How long a program takes in a fresh process, Equinox not counted."""
    program = (
        "import equinox, time; start = time.perf_counter(); "
        f"{program}; print(time.perf_counter() - start)"
    )
    command = [sys.executable, "-c", program]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
