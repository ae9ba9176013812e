"""L-BFGS and Newton's method on the unconstrained problems of CUTEst, next to four other libraries.

`python -m benchmarks.cutest` runs every solver on every problem of sif2jax of at most 10,000
variables, prints who solves what and with how many evaluations, and draws Dolan and More's
profiles. Solved: a finite value, and an infinity norm of the gradient of at most 1e-5, within 5,000
evaluations of the objective and 3,000 steps. With `--float32`, at most 1e-3 of the norm at the
start. With `--bounded`, the problems with bounds on their variables, by L-BFGS-B, next to scipy's
and jaxopt's; then it is the projected gradient that is to be small. Every solver has one set of
settings for all problems, and a memory of 10. How evaluations are counted is in
`_cutest_solvers.py`.

Solvers run in a process beside this one, which is started again if it hangs or crashes: that run
is then not solved, and costs nothing but itself. Results are written as they come, and `--reuse`
takes those of the other libraries from an earlier file.

**Left out:** INDEF, FLETCBV3 and TENFOLDTRLS, which look unbounded below.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import sys
from pathlib import Path

import numpy as np

import eqopt

from . import _timing
from ._cutest_runs import (
    COMPILING,
    LEFT_OUT,
    problem_sizes,
    Result,
    run_all,
    set_environment,
    Settings,
    Worker,
)
from ._cutest_solvers import BOUNDED, BOUNDED_PEERS, PEERS, SOLVERS

PACKAGES = ("scipy", "jaxopt", "optimistix", "sif2jax")
SMOKE = ("ROSENBR", "HILBERTA", "BEALE")
SMOKE_BOUNDED = ("HS1", "HS4", "QUDLIN")

# What eqopt is to reach on all problems, in float64.
NUM_SOLVED = 168
NUM_SOLVED_NEWTON = 180
EVALUATIONS = 38.5
EVALUATIONS_PERTURBED = 43.0

# With bounds; the evaluations are those over scipy's, on the problems that both solve.
NUM_SOLVED_BOUNDED = 94
EVALUATIONS_BOUNDED = 1.0

# How far the profiles go.
MULTIPLES = 100.0

Results = dict[str, dict[str, Result]]


# Files


def write(path: Path, settings: Settings, sizes: dict[str, int], results: Results) -> None:
    found = {
        "settings": dataclasses.asdict(settings),
        "versions": _timing.machine() | {name: _version(name) for name in PACKAGES},
        "variables": sizes,
        "results": {
            solver: {name: dataclasses.asdict(result) for name, result in by_name.items()}
            for solver, by_name in results.items()
        },
    }
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(found, indent=1) + "\n")
    beside.replace(path)


def read(path: Path, settings: Settings) -> Results:
    """Results of an earlier run, which must have had the same settings."""
    found = json.loads(path.read_text())
    if found["settings"] != dataclasses.asdict(settings):
        raise SystemExit(f"{path} has other settings: {found['settings']}")
    return {
        # One that has no count did not run, or broke down: it gets another chance.
        solver: {
            name: Result(**result)
            for name, result in by_name.items()
            if result["evaluations"] is not None
        }
        for solver, by_name in found["results"].items()
    }


# The table


def solved(results: Results, solver: str) -> set[str]:
    return {name for name, result in results.get(solver, {}).items() if result.solved}


def geometric_mean(results: Results, solver: str, names: list[str]) -> float:
    """The mean of the evaluations on some problems; the solver must have solved them all."""
    counts = [results[solver][name].evaluations for name in names]
    return float(np.exp(np.mean(np.log(np.asarray(counts, float)))))


def report(
    results: Results, names: list[str], common: list[str], peers: tuple[str, ...]
) -> list[str]:
    head = f"{'solved':>8}{'of':>6}{'evaluations':>13}{'on common':>11}{'seconds':>9}"
    lines = [f"{'':16}{head}   not solved of the common"]
    for solver, by_name in results.items():
        own = solved(results, solver)
        both = [name for name in common if name in own]
        missed = [name for name in common if name in by_name and name not in own]
        mean = f"{geometric_mean(results, solver, both):.1f}" if both else "-"
        seconds = sum(result.seconds or 0.0 for result in by_name.values())
        line = f"{solver:16}{len(own):8}{len(by_name):6}{mean:>13}{len(both):>11}{seconds:9.0f}"
        lines.append(f"{line}   {' '.join(missed)}".rstrip())
    lines += ["", f"{len(common)} problems are common: {', '.join(peers)} all solve them."]
    absent = [peer for peer in peers if peer not in results]
    if absent:
        lines[-1] = f"No problem is common, for these were not run: {', '.join(absent)}"
    lines.append("evaluations: the geometric mean over those of them that the solver solves.")
    nobody = [name for name in names if not any(name in solved(results, s) for s in results)]
    lines.append(f"Solved by none: {' '.join(nobody) or '-'}")
    for solver, by_name in results.items():
        ended = {name: result for name, result in by_name.items() if result.reported is not None}
        odd = [name for name, result in ended.items() if result.reported != result.evaluations]
        if odd:
            lines.append(f"{solver} says that it made more or fewer evaluations: {' '.join(odd)}")
        for message in sorted({result.message for result in by_name.values()} - {""}):
            which = [name for name, result in by_name.items() if result.message == message]
            lines.append(f"{solver}: {message}: {' '.join(which)}")
    return lines


def verdict(results: Results, common: list[str], settings: Settings) -> list[_timing.Row]:
    """What eqopt is to reach. Only reported: paths depend on rounding, and so on the machine."""
    own = solved(results, "eqopt")
    if settings.bounded:
        both = [name for name in solved(results, "scipy") if name in own]
        ratio = geometric_mean(results, "eqopt", both) / geometric_mean(results, "scipy", both)
        few, enough = ratio <= EVALUATIONS_BOUNDED, len(own) >= NUM_SOLVED_BOUNDED
        return [
            _timing.Row("over scipy's", f"{ratio:.2f}", f"at most {EVALUATIONS_BOUNDED:g}", few),
            _timing.Row("solved", str(len(own)), f"at least {NUM_SOLVED_BOUNDED}", enough),
        ]
    if settings.float32:
        peer = len(solved(results, "optax"))
        return [_timing.Row("solved", str(len(own)), f"at least {peer}", len(own) >= peer)]
    missed = [name for name in common if name not in own]
    solves = [name for name in common if name in own]
    mean = geometric_mean(results, "eqopt", solves) if solves else float("inf")
    bound = EVALUATIONS if settings.perturb is None else EVALUATIONS_PERTURBED
    rows = [_timing.Row("evaluations", f"{mean:.1f}", f"at most {bound:g}", mean <= bound)]
    if settings.perturb is None:
        enough = len(own) >= NUM_SOLVED
        rows.append(_timing.Row("solved", str(len(own)), f"at least {NUM_SOLVED}", enough))
        rows.append(_timing.Row("common, not solved", str(len(missed)), "0", not missed))
    if settings.perturb is None and "eqopt-newton" in results:
        num = len(solved(results, "eqopt-newton"))
        enough, target = num >= NUM_SOLVED_NEWTON, f"at least {NUM_SOLVED_NEWTON}"
        rows.append(_timing.Row("solved by Newton's method", str(num), target, enough))
    return rows


def draw(results: Results, names: list[str], path: Path) -> None:
    """Dolan and More's profiles: the share of problems solved within a multiple of the best."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    for axis, measure in zip(axes, ("evaluations", "seconds"), strict=True):
        costs = {
            solver: np.array(
                [
                    vars(by_name[name])[measure]
                    if name in by_name and by_name[name].solved
                    else np.inf
                    for name in names
                ],
                float,
            )
            for solver, by_name in results.items()
        }
        best = np.min(list(costs.values()), axis=0)
        solvable = np.isfinite(best)
        for solver, cost in costs.items():
            ratios = np.sort(cost[solvable] / best[solvable])
            num = int(np.isfinite(ratios).sum())
            # To the right edge, since a line ends at its last problem.
            x = np.append(ratios[:num], max(MULTIPLES, ratios[num - 1] if num else 1))
            y = np.append(np.arange(1, num + 1), num) / len(names)
            axis.step(x, y, where="post", label=solver, lw=2 if is_own(solver) else 1)
        axis.set(
            xscale="log", xlabel=f"{measure}, over the fewest of any solver", xlim=(1, MULTIPLES)
        )
        axis.grid(alpha=0.3)
    axes[0].set(ylabel=f"share of {len(names)} problems solved", ylim=(0, 1))
    axes[0].legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


# The command


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def is_own(solver: str) -> bool:
    return solver.startswith("eqopt")


def available(solver: str) -> bool:
    package = (SOLVERS | BOUNDED)[solver].package
    if package == "eqopt":
        why = "" if "minimize" in dir(eqopt) else "it has no `minimize`"
    else:
        why = "" if _version(package) else f"{package} is not installed"
    if why:
        print(f"{solver} is left out: {why}.")
    return not why


def parse(arguments: list[str] | None) -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="benchmarks.cutest", description=__doc__.split("\n")[0])
    parser.add_argument("--solvers", nargs="+", choices=list(SOLVERS), help="by default all")
    parser.add_argument("--problems", nargs="+", metavar="NAME", help="by default all")
    parser.add_argument("--max-variables", type=int, default=10_000)
    parser.add_argument(
        "--perturb", type=int, metavar="SEED", help="move the starts by 1e-6 of themselves"
    )
    parser.add_argument("--float32", action="store_true")
    parser.add_argument("--bounded", action="store_true", help="the problems with bounds")
    parser.add_argument("--seconds", type=float, default=60.0, help="for a run, once compiled")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("cutest.json"))
    parser.add_argument("--plot", type=Path, help="by default beside the results, as PNG")
    parser.add_argument("--reuse", type=Path, help="results of the other libraries")
    parser.add_argument("--smoke", action="store_true", help="three problems; all must be solved")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    settings = Settings(
        float32=options.float32,
        bounded=options.bounded,
        perturb=options.perturb,
        gtol=1e-3 if options.float32 else 1e-5,
        seconds=options.seconds,
    )
    set_environment(settings)
    workers = [Worker() for _ in range(options.jobs)]
    sizes = workers[0].ask(COMPILING, problem_sizes, options.max_variables, options.bounded)
    known, peers = (BOUNDED, BOUNDED_PEERS) if options.bounded else (SOLVERS, PEERS)
    smoke = SMOKE_BOUNDED if options.bounded else SMOKE
    wanted = smoke if options.smoke else options.problems
    unknown = [name for name in wanted or () if name not in sizes]
    if unknown:
        raise SystemExit(f"no such problems within the limit: {' '.join(unknown)}")
    if wanted:
        sizes = {name: sizes[name] for name in wanted}
    elif options.bounded:
        print(f"{len(sizes)} problems.")
    else:
        print(f"{len(sizes)} problems. Left out, they look unbounded below: {', '.join(LEFT_OUT)}")

    earlier = read(options.reuse, settings) if options.reuse else {}
    solvers = [x for x in known if x in (options.solvers or known) and available(x)]
    results: Results = {
        solver: {
            name: result
            for name, result in earlier.get(solver, {}).items()
            if name in sizes and not is_own(solver)
        }
        for solver in dict.fromkeys([*solvers, *(s for s in earlier if not is_own(s))])
    }
    todo = [(name, solver) for name in sizes for solver in solvers if name not in results[solver]]

    def done(solver: str, name: str, result: Result) -> None:
        results[solver][name] = result
        seconds = "" if result.seconds is None else f"{result.seconds:8.2f} s"
        word = "solved" if result.solved else result.message or "not solved"
        count = "-" if result.evaluations is None else result.evaluations
        print(f"{name:12}{solver:16}{count:>6}{seconds:>11}  {word}", flush=True)
        write(options.out, settings, sizes, results)

    run_all(todo, settings, workers, done)
    write(options.out, settings, sizes, results)
    names = list(sizes)
    by_peer = [solved(results, peer) for peer in peers]
    common = [name for name in names if all(name in own for own in by_peer)]
    print("", *report(results, names, common, peers), sep="\n")
    draw(results, names, options.plot or options.out.with_suffix(".png"))
    if options.smoke:
        return int(any(len(solved(results, solver)) < len(names) for solver in solvers))
    if {"eqopt", *peers} <= set(results) and not options.problems:
        for row in verdict(results, common, settings):
            word = "ok" if row.ok else "MISSED"
            print(f"eqopt: {row.name}: {row.result}, {row.target}: {word}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
