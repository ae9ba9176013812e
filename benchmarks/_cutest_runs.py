"""The problems of the CUTEst benchmark, runs of solvers on them, and the processes they are in."""

import dataclasses
import functools
import logging
import math
import multiprocessing
import os
import queue
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from ._cutest_solvers import BOUNDED, Limits, Problem, residual, SOLVERS

_T = TypeVar("_T")

# They look unbounded below: nothing can be solved there, and it is chance who says what.
LEFT_OUT = ("INDEF", "FLETCBV3", "TENFOLDTRLS")

# Importing and compiling are not in the time of a run, and may take this long beside it. [s]
COMPILING = 300.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """What has to be equal for two results to be comparable."""

    float32: bool = False
    bounded: bool = False
    perturb: int | None = None
    max_evals: int = 5_000
    max_steps: int = 3_000
    # The infinity norm of the gradient at a solution, with bounds of the projected gradient: in
    # float64 as it is, in float32 relative to the one at the start.
    gtol: float = 1e-5
    seconds: float = 60.0


@dataclasses.dataclass
class Result:
    """One run, judged."""

    solved: bool
    evaluations: int | None = None
    reported: int | None = None
    steps: int | None = None
    value: float | None = None
    grad_norm: float | None = None
    # At the point returned, evaluated once more: a solver's own gradient may be of another point.
    grad_norm_there: float | None = None
    seconds: float | None = None
    message: str = ""


# Problems


def problem_sizes(max_variables: int, bounded: bool) -> dict[str, int]:
    """The numbers of variables of the problems, each once, in sif2jax's order."""
    sizes: dict[str, int] = {}
    for problem in _all_problems(bounded).values():
        size = sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(problem.y0))
        name = type(problem).__name__
        if size <= max_variables and name not in LEFT_OUT:
            sizes[name] = size
    return sizes


@functools.cache
def _all_problems(bounded: bool) -> Mapping[str, Any]:
    import sif2jax

    free, between = (
        sif2jax.unconstrained_minimisation_problems,
        sif2jax.bounded_minimisation_problems,
    )
    return {type(p).__name__: p for p in (between if bounded else free)}


def load(name: str, settings: Settings) -> Problem:
    problem = _all_problems(settings.bounded)[name]
    y0, bounds = problem.y0, None
    if settings.bounded:
        bounds = tuple(
            jax.tree.map(lambda y, b: jnp.broadcast_to(b, y.shape).astype(y.dtype), y0, side)
            for side in problem.bounds
        )
    if settings.perturb is not None:
        flat, unravel = ravel_pytree(y0)
        rng = np.random.default_rng([settings.perturb, zlib.crc32(name.encode())])
        noise = rng.normal(size=flat.shape).astype(flat.dtype)
        # Relative: zeros stay, for some problems begin at a stationary point and would be others.
        y0 = unravel(flat * (1 + 1e-6 * noise))
    return Problem(name, problem.objective, y0, problem.args, bounds)


# One run


class OutOfTimeError(Exception):
    """Raised where an evaluation begins, so that a solver that is too slow ends there."""


@functools.lru_cache(maxsize=1)
def loaded(name: str, settings: Settings) -> tuple[Problem, Callable[[Any], tuple[Any, Any]]]:
    """A problem, and its value and gradient that nobody counts, for all solvers in turn."""
    jax.clear_caches()
    problem = load(name, settings)

    def value_fn(y: Any) -> Array:
        return problem.objective(y, problem.args)

    return problem, jax.jit(jax.value_and_grad(value_fn)).lower(problem.y0).compile()


def solve(solver_name: str, problem_name: str, settings: Settings) -> Result:
    """Runs one solver on one problem."""
    solver = (BOUNDED if settings.bounded else SOLVERS)[solver_name]
    problem, value_and_grad = loaded(problem_name, settings)
    size = sum(leaf.size for leaf in jax.tree.leaves(problem.y0))
    if solver.max_variables is not None and size > solver.max_variables:
        return Result(False, message=f"not run: more than {solver.max_variables:,} variables")
    gtol = settings.gtol
    if settings.float32:
        gtol *= float(residual(problem, problem.y0, value_and_grad(problem.y0)[1]))
    limits = Limits(gtol, settings.max_evals, settings.max_steps)
    count = 0
    deadline = math.inf

    def tick() -> None:
        nonlocal count
        count += 1
        if time.monotonic() > deadline:
            raise OutOfTimeError(f"more than {settings.seconds:g} s")

    try:
        run = solver.prepare(problem, limits, tick)
        start = time.monotonic()
        deadline = start + settings.seconds
        end = jax.block_until_ready(run())
        jax.effects_barrier()
    except Exception as error:
        # JAX hands an exception of the host on as one of its own.
        if isinstance(error, OutOfTimeError) or OutOfTimeError.__name__ in str(error):
            return Result(False, count, seconds=settings.seconds, message="out of time")
        return Result(False, message=f"{type(error).__name__}: {error}"[:200])
    seconds = time.monotonic() - start
    value, norm = float(end.value), float(residual(problem, end.y, end.grad))
    num_steps = int(end.num_steps)
    if solver.multiplies:
        count = max(count, int(end.num_evals))
    within = count <= settings.max_evals and num_steps <= settings.max_steps
    return Result(
        solved=math.isfinite(value) and norm <= gtol and within,
        evaluations=count,
        reported=int(end.num_evals),
        steps=num_steps,
        value=value,
        grad_norm=norm,
        grad_norm_there=float(residual(problem, end.y, value_and_grad(end.y)[1])),
        seconds=seconds,
    )


# Processes


class LostError(Exception):
    """A process crashed, or did not answer in time."""


def serve(connection: Any) -> None:
    """Calls what it is asked to, until nobody asks any more: a process of its own."""
    # JAX writes down where a function on the host raised: here that is a run that is out of time.
    logging.getLogger("jax").setLevel(logging.CRITICAL)
    while True:
        try:
            function, args = connection.recv()
        except EOFError:
            return
        connection.send(function(*args))


class Worker:
    """A process that one can ask, started again if it had to be ended."""

    def __init__(self):
        self._process: Any = None
        self._connection: Any = None

    def ask(self, seconds: float, function: Callable[..., _T], *args: Any) -> _T:
        """Calls a function there. Raises `LostError` if it takes longer than so many seconds."""
        if self._process is None:
            # Not a fork: JAX has threads.
            context = multiprocessing.get_context("spawn")
            self._connection, theirs = context.Pipe()
            self._process = context.Process(target=serve, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()
        try:
            self._connection.send((function, args))
            if self._connection.poll(seconds):
                return self._connection.recv()
            why = "hangs"
        except (EOFError, OSError):
            why = "crashes"
        self.end()
        raise LostError(why)

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None


def set_environment(settings: Settings) -> None:
    """Workers inherit the environment, and JAX reads it when it is imported there."""
    os.environ["JAX_ENABLE_X64"] = str(int(not settings.float32))
    os.environ.setdefault("JAX_PLATFORMS", "cpu")


def run_all(
    todo: Iterable[tuple[str, str]],
    settings: Settings,
    workers: list[Worker],
    done: Callable[[str, str, Result], None],
) -> None:
    """Runs pairs of a problem and a solver, and calls `done` with each result, one at a time.

    The solvers take turns on each problem, which is loaded and compiled once for them all.
    """
    solvers: dict[str, list[str]] = {}
    for problem, solver in todo:
        solvers.setdefault(problem, []).append(solver)
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for problem in solvers:
        waiting.put(problem)
    lock = threading.Lock()

    def run(worker: Worker) -> None:
        while True:
            try:
                problem = waiting.get_nowait()
            except queue.Empty:
                return
            for solver in solvers[problem]:
                limit = settings.seconds + COMPILING
                try:
                    result = worker.ask(limit, solve, solver, problem, settings)
                except LostError as error:
                    result = Result(False, message=str(error))
                with lock:
                    done(solver, problem, result)

    threads = [threading.Thread(target=run, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
