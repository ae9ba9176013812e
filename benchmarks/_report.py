"""What a run of the benchmarks leaves: a table, a JSON, and a picture."""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from ._timing import Row, Spread

RESULTS = Path(__file__).parents[1] / "docs" / "benchmarks"

Results = Mapping[str, list[Row]]


def device_file(suffix: str) -> Path:
    """Where the results on this kind of device are kept."""
    kind = jax.devices()[0].device_kind.lower()
    return RESULTS / (re.sub(r"[^a-z0-9]+", "-", kind).strip("-") + suffix)


# The table


HEAD = f"{'median (lowest..highest)':36}{'target':20}{'':8}what"


def verdicts(rows: list[Row]) -> Iterator[str]:
    """The ratios and the counts."""
    for row in rows:
        verdict = {None: "", True: "ok", False: "WRONG" if row.counted else "MISSED"}[row.ok]
        yield f"{row.result!s:35} {row.target:19} {verdict:7} {row.name}"


def details(rows: list[Row]) -> Iterator[str]:
    """The times that the ratios were made of, and what was reached in them."""
    for title, column in (("times", "sides"), ("values", "values")):
        lines = {
            f"{row.name.partition(':')[0]}: {side}": _digits(x)
            for row in rows
            for side, x in vars(row)[column].items()
        }
        if lines:
            width = max(map(len, lines.values()))
            yield f"\n{title:{width}}  of what"
            yield from (f"{digits:{width}}  {name}" for name, digits in lines.items())


def _digits(x: Any) -> str:
    return str(x) if isinstance(x, Spread) else ", ".join(f"{value:.8g}" for value in x)


# The files


def write(path: Path, header: dict[str, str], results: Results) -> None:
    found = {suite: [dataclasses.asdict(row) for row in rows] for suite, rows in results.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": header, "suites": found}, indent=2) + "\n")


def draw(path: Path, header: dict[str, str], results: Results) -> None:
    """Draws every ratio with its spread, and what it may be at most."""
    import matplotlib.pyplot as plt

    rows = [
        (suite, row, row.result)
        for suite, rows in results.items()
        for row in rows
        if isinstance(row.result, Spread)
    ]
    figure, axis = plt.subplots(figsize=(10, 1.5 + 0.24 * len(rows)), layout="constrained")
    colors = {suite: f"C{i}" for i, suite in enumerate(results)}
    drawn: set[str] = set()
    for y, (suite, row, spread) in enumerate(rows):
        bars = [[spread.median - spread.low], [spread.high - spread.median]]
        # A circle that is not filled is a target that was missed.
        filled = "none" if row.ok is False else colors[suite]
        label = None if suite in drawn else suite
        axis.errorbar(
            [spread.median], [y], xerr=bars, fmt="o", color=colors[suite], mfc=filled, label=label
        )
        drawn.add(suite)
        if row.at_most is not None:
            axis.plot([row.at_most], [y], "|", color="black", markersize=12, markeredgewidth=2)
    axis.axvline(1, color="gray", linewidth=1)
    axis.set(
        xscale="log",
        xlabel="median and range of ratios; | at most; left of 1: the first is ahead",
        yticks=range(len(rows)),
        ylim=(len(rows), -1),
        title=f"{header['device']}, {header['cores']} cores, jax {header['jax']}",
    )
    axis.set_yticklabels([row.name for _, row, _ in rows], fontsize=8)
    axis.grid(axis="x", alpha=0.3)
    if rows:
        figure.legend(loc="outside lower center", ncols=len(results))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
