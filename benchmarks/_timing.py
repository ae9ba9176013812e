"""Timing things in alternation, and the rows of a table that come of it.

On a shared machine two times taken minutes apart compare nothing. Here every side runs once in each
repetition, and what is looked at is the ratio within a repetition: its median, and its spread.
Every ratio is eqopt's time, or number of bytes, over a peer's: less is better.
"""

import dataclasses
import gc
import importlib.metadata
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax

_T = TypeVar("_T")

PACKAGES = (
    *("eqopt", "optax", "jax", "jaxlib", "equinox", "jaxtyping", "beartype", "numpy"),
    *("optimistix", "torch"),
)


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
        return f"{self.median:.3g} ({self.low:.3g}..{self.high:.3g})"


Times = Mapping[str, list[float]]


def alternate(sides: Mapping[str, Callable[[], float]], repetitions: int) -> Times:
    """Runs each side once in each repetition, after one that does not count.

    A side gives its time in seconds. Every other repetition goes through the sides backwards, so
    that none always comes after the same other. A single repetition, of what takes long or only has
    to run, has none before it.
    """
    phases = {name: _one_phase(side) for name, side in sides.items()}
    return alternate_phases(phases, repetitions)[""]


def _one_phase(side: Callable[[], float]) -> Callable[[], Mapping[str, float]]:
    return lambda: {"": side()}


def alternate_phases(
    sides: Mapping[str, Callable[[], Mapping[str, float]]], repetitions: int
) -> Mapping[str, Times]:
    """The same for sides that take several times in one run, each with a name."""
    times: dict[str, dict[str, list[float]]] = {}
    for repetition in range(repetitions + 1 if repetitions > 1 else 1):
        names = list(sides) if repetition % 2 else list(sides)[::-1]
        for name in names:
            for phase, seconds in sides[name]().items():
                if repetition or repetitions == 1:
                    times.setdefault(phase, {}).setdefault(name, []).append(seconds)
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
    """One comparison: a ratio or a count, whether it is as it should be, and what it is made of.

    `values` are what the sides reached: equal, or nearly, where they have done the same work.
    """

    name: str
    result: Spread | str
    target: str = ""
    ok: bool | None = None
    counted: bool = False
    sides: dict[str, Spread] = dataclasses.field(default_factory=dict)
    values: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    # The target as a number.
    at_most: float | None = None


def timed(
    name: str, times: Times, pair: tuple[str, str], unit: float, at_most: float | None = None
) -> Row:
    """A row of the ratio of two sides, with the times of those two in `unit` seconds."""
    result = ratio(times, *pair)
    sides = {side: Spread.of([t / unit for t in times[side]]) for side in pair}
    row = Row(f"{name}: {pair[0]} / {pair[1]}", result, sides=sides, at_most=at_most)
    if at_most is not None:
        row.target, row.ok = f"at most {at_most:g}", result.median <= at_most
    return row


def timed_against(
    name: str,
    times: Times,
    under: str,
    unit: float,
    at_most: Mapping[str, float | None],
    values: dict[str, list[float]],
) -> list[Row]:
    """Rows of the ratios of some sides to one and the same other; the first has the values."""
    rows = [timed(name, times, (over, under), unit, bound) for over, bound in at_most.items()]
    rows[0].values = values
    return rows


def counted(name: str, found: dict[str, Any], expected: dict[str, Any]) -> Row:
    return Row(name, _listed(found), _listed(expected), found == expected, counted=True)


def no_more(name: str, found: dict[str, int], but_for: int) -> Row:
    """A row of two counts; the first must not be greater than the second, but for so much."""
    (first, count), (second, limit) = found.items()
    target = f"{first} <= {second}"
    return Row(name, _listed(found), target, count <= limit + but_for, counted=True)


def shown(name: str, found: Mapping[str, Any]) -> Row:
    """A row of numbers that may be what they are."""
    return Row(name, _listed(found))


def _listed(numbers: Mapping[str, Any]) -> str:
    return ", ".join(f"{side} {number}" for side, number in numbers.items())


def wrong(rows: Iterable[Row]) -> list[str]:
    """The counts that are not as they should be."""
    return [row.name for row in rows if row.counted and not row.ok]


# The machine


def machine() -> dict[str, str]:
    """What the numbers depend on: versions, and what they were measured with."""
    found = {"python": platform.python_version()}
    found |= {name: _version(name) for name in PACKAGES}
    found["platform"] = f"{platform.system()} {platform.machine()}"
    found["cores"] = str(os.cpu_count())
    found["cpu"] = _cpu()
    device = jax.devices()[0]
    found["device"] = f"{device.platform} {device.device_kind}"
    return found


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or "unknown"
    models = re.findall(r"^model name\s*: (.+)$", lines, re.MULTILINE)
    return models[0] if models else "unknown"
