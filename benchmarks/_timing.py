"""Timing things in alternation, and writing down how they compare.

On a shared machine two times taken minutes apart compare nothing. Here every side runs once in each
repetition, and what is looked at is the ratio within a repetition: its median, and its spread.
"""

import argparse
import dataclasses
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax

_T = TypeVar("_T")

PACKAGES = ("eqopt", "optax", "jax", "jaxlib", "equinox", "jaxtyping", "beartype", "numpy")


@dataclasses.dataclass(frozen=True)
class Spread:
    """The median of some numbers, and the range that they are in."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, numbers: list[float]) -> "Spread":
        return cls(statistics.median(numbers), min(numbers), max(numbers))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}..{self.high:.2f})"


@dataclasses.dataclass(frozen=True)
class Target:
    """A bound for the median of a ratio."""

    bound: float
    at_least: bool

    def met(self, ratio: Spread) -> bool:
        return ratio.median >= self.bound if self.at_least else ratio.median <= self.bound

    def __str__(self) -> str:
        return f"at {'least' if self.at_least else 'most'} {self.bound:g}"


Times = Mapping[str, list[float]]


def alternate(sides: Mapping[str, Callable[[], float]], repetitions: int) -> Times:
    """Runs each side once in each repetition, after one that does not count.

    A side gives its time in seconds. Every other repetition goes through the sides backwards, so
    that none always comes after the same other.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for repetition in range(repetitions + 1):
        names = list(sides) if repetition % 2 else list(sides)[::-1]
        for name in names:
            seconds = sides[name]()
            if repetition:
                times[name].append(seconds)
    return times


def ratio(times: Times, over: str, under: str) -> Spread:
    """How many times as long the first takes as the second, repetition by repetition."""
    return Spread.of([a / b for a, b in zip(times[over], times[under], strict=True)])


def clock(function: Callable[[], _T]) -> tuple[float, _T]:
    """The seconds that a call takes, without a collection of garbage in it, and its result."""
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        result = jax.block_until_ready(function())
        return time.perf_counter() - start, result
    finally:
        gc.enable()


@dataclasses.dataclass
class Row:
    """One comparison: a ratio or a count, whether it is as it should be, and what it is made of."""

    name: str
    result: Spread | str
    target: str = ""
    ok: bool | None = None
    counted: bool = False
    sides: dict[str, Spread] = dataclasses.field(default_factory=dict)
    losses: dict[str, list[float]] = dataclasses.field(default_factory=dict)


def timed(
    name: str, times: Times, pair: tuple[str, str], unit: float, target: Target | None
) -> Row:
    """A row of the ratio of two sides, with the times of those two in `unit` seconds."""
    result = ratio(times, *pair)
    sides = {side: Spread.of([t / unit for t in times[side]]) for side in pair}
    row = Row(f"{name}: {pair[0]} / {pair[1]}", result, sides=sides)
    if target is not None:
        row.target, row.ok = str(target), target.met(result)
    return row


def counted(name: str, found: dict[str, Any], expected: dict[str, Any]) -> Row:
    words = ", ".join(f"{side} {number}" for side, number in found.items())
    target = ", ".join(f"{side} {number}" for side, number in expected.items())
    return Row(name, words, target, found == expected, counted=True)


def report(rows: list[Row]) -> Iterator[str]:
    """The table: ratios and counts first, then the times they were made of, then the losses."""
    yield f"{'median (lowest..highest)':36}{'target':36}{'':8}what"
    for row in rows:
        verdict = {None: "", True: "ok", False: "WRONG" if row.counted else "MISSED"}[row.ok]
        yield f"{row.result!s:36}{row.target:36}{verdict:8}{row.name}"
    for title, column in (("times", "sides"), ("losses", "losses")):
        yield ""
        lines = {
            f"{row.name.partition(':')[0]}: {side}": _digits(x)
            for row in rows
            for side, x in vars(row)[column].items()
        }
        width = max(map(len, lines.values()))
        yield f"{title:{width}}  of what"
        yield from (f"{digits:{width}}  {name}" for name, digits in lines.items())


def _digits(x: Any) -> str:
    if isinstance(x, Spread):
        return f"{x.median:.1f} ({x.low:.1f}..{x.high:.1f})"
    return ", ".join(f"{loss:.8f}" for loss in x)


def main(name: str, about: str | None, run: Callable[[bool], list[Row]]) -> int:
    """The command of a benchmark, whose rows `run` makes; it is told whether only to see it run.

    The exit status is not 0 if a count is wrong.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {name}", description=about)
    parser.add_argument("--smoke", action="store_true", help="only see that everything runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to a file")
    options = parser.parse_args()
    header = machine()
    print(", ".join(f"{name} {value}" for name, value in header.items()), end="\n\n")
    rows = run(options.smoke)
    print("\n".join(report(rows)))
    if options.json is not None:
        result = {"machine": header, "rows": [dataclasses.asdict(row) for row in rows]}
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return int(any(row.counted and not row.ok for row in rows))


def machine() -> dict[str, str]:
    """What the numbers depend on: versions, and what they were measured with."""
    found = {"python": platform.python_version()}
    found |= {name: _version(name) for name in PACKAGES}
    found["cores"] = str(os.cpu_count())
    found["platform"] = f"{platform.system()} {platform.machine()}"
    found["device"] = jax.devices()[0].device_kind
    return found


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
