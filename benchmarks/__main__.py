"""Compares eqopt with its peers, side by side in one process: less is better in each ratio.

Ratios come first, with their range over the repetitions; then times; then what the sides reached.
Counts of traces and bytes must be right, or the exit status is not 0. Times have targets, and are
only reported: they depend on the machine.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax

from . import _report, compile, eager, imports, memory, minimize, overhead, throughput
from ._timing import machine, Row, wrong

SUITES: dict[str, Callable[[bool], list[Row]]] = {
    "overhead": overhead.run,
    "throughput": throughput.run,
    "compile": compile.run,
    "eager": eager.run,
    "imports": imports.run,
    "memory": memory.run,
    "minimize": minimize.run,
}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)}; by default all"
    )
    parser.add_argument("--smoke", action="store_true", help="only see that everything runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the results go")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="where the picture goes")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.suites if name not in SUITES]
    if unknown:
        parser.error(f"no such suite: {' '.join(unknown)}; there are {', '.join(SUITES)}")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    # Compiling is a part of what is measured.
    jax.config.update("jax_enable_compilation_cache", False)
    header = machine()
    print(", ".join(f"{name} {value}" for name, value in header.items()))
    results: dict[str, list[Row]] = {}
    print(f"\n{_report.HEAD}")
    for name in options.suites or SUITES:
        results[name] = SUITES[name](options.smoke)
        if options.smoke:
            without_targets(results[name])
        print(f"\n{name}", *_report.verdicts(results[name]), sep="\n", flush=True)
        save(options, header, results)  # what has been measured, should the rest be cut off
    rows = [row for rows in results.values() for row in rows]
    print(*_report.details(rows), sep="\n")
    return int(bool(wrong(rows)))


def save(options: argparse.Namespace, header: dict[str, str], results: _report.Results) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        # A part, or a run that measures nothing, is not to be taken for a result.
        whole = not (options.smoke or options.suites)
        for option, suffix, write in (
            (options.json, ".json", _report.write),
            (options.picture, ".png", _report.draw),
        ):
            default = _report.device_file(suffix) if whole else Path(scratch, f"result{suffix}")
            write(option or default, header, results)


def without_targets(rows: list[Row]) -> None:
    """Leaves the counts alone."""
    for row in rows:
        if not row.counted:
            row.at_most, row.target, row.ok = None, "", None


if __name__ == "__main__":
    sys.exit(main())
