"""`minimize` ends at the same point whatever the units of the objective and of the parameters."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jaxtyping import Array

import eqopt
from eqopt import MinimizeResult
from tests.support.toolbox import FLOAT, X64

# All on one process, which compiles them once.
pytestmark = pytest.mark.xdist_group("units")

EPS = float(np.finfo(FLOAT).eps)
RNG = np.random.default_rng(0)
ROWS = jnp.asarray(RNG.normal(size=(30, 4)), FLOAT)
TARGETS = jnp.asarray(RNG.normal(size=30), FLOAT)
LABELS = jnp.sign(ROWS @ jnp.ones(4) + 2 * TARGETS)
CENTER = jnp.array([0.5, -1.0, 2.0, 1.0], FLOAT)


class Problem(NamedTuple):
    fn: Callable[[Array], Array]
    start: Array
    solution: Array
    # The power of the value's precision with which the solution is determined.
    power: float = 0.5


def tilted(fn: Callable[[Array], Array], offset: float = 0.0) -> Problem:
    """A convex function plus a linear one, such that the minimum is at a known point."""
    slope = jax.grad(fn)(CENTER)
    return Problem(lambda x: fn(x) - slope @ x + offset, jnp.ones(4, FLOAT), CENTER)


def shifted(fn: Callable[[Array], Array], offset: float = 0.0, power: float = 0.5) -> Problem:
    """A function whose minimum is at 0, moved elsewhere."""
    return Problem(lambda x: fn(x - CENTER) + offset, jnp.ones(4, FLOAT), CENTER, power)


def from_start(fn: Callable[[Array], Array], start: list[float], solution: list[float]) -> Problem:
    return Problem(fn, jnp.array(start, FLOAT), jnp.array(solution, FLOAT))


def rosenbrock(x: Array) -> Array:
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def beale(x: Array) -> Array:
    def half(a: Array, b: Array) -> Array:
        return (1.5 - a + a * b) ** 2 + (2.25 - a + a * b**2) ** 2 + (2.625 - a + a * b**3) ** 2

    return half(x[0], x[1]) + half(x[2], x[3])


def wood(x: Array) -> Array:
    return (
        100 * (x[1] - x[0] ** 2) ** 2
        + (1 - x[0]) ** 2
        + 90 * (x[3] - x[2] ** 2) ** 2
        + (1 - x[2]) ** 2
        + 10 * (x[1] + x[3] - 2) ** 2
        + 0.1 * (x[1] - x[3]) ** 2
    )


def powell(x: Array) -> Array:
    """Its Hessian matrix is singular at the minimum."""
    return (
        (x[0] + 10 * x[1]) ** 2
        + 5 * (x[2] - x[3]) ** 2
        + (x[1] - 2 * x[2]) ** 4
        + 10 * (x[0] - x[3]) ** 4
    )


def quadratic(condition: float) -> Callable[[Array], Array]:
    sizes = jnp.asarray(np.geomspace(1, condition, 4), FLOAT)
    return lambda x: jnp.sum(sizes * x**2) / 2


def correlated(x: Array) -> Array:
    return jnp.sum((ROWS @ x) ** 2)


def huber(x: Array) -> Array:
    return jnp.sum(jnp.sqrt(1 + (ROWS @ x - TARGETS) ** 2))


def logistic(x: Array) -> Array:
    return jnp.sum(jnp.logaddexp(0.0, -LABELS * (ROWS @ x)))


def poisson(x: Array) -> Array:
    return jnp.sum(jnp.exp(ROWS @ x / 4)) + jnp.sum(x**2)


def softmax(x: Array) -> Array:
    return jax.nn.logsumexp(x) + 0.1 * jnp.sum(x**2)


def decay(x: Array) -> Array:
    """Two exponentials, fitted to their own sum."""
    t = jnp.linspace(0, 2, 12, dtype=FLOAT)
    model = x[0] * jnp.exp(-x[1] * t) + x[2] * jnp.exp(-x[3] * t)
    truth = 2 * jnp.exp(-0.5 * t) + jnp.exp(-3 * t)
    return jnp.sum((model - truth) ** 2)


def cosh(x: Array) -> Array:
    return jnp.sum(jnp.cosh(x))


def sines(x: Array) -> Array:
    return jnp.sum(x**2) + jnp.sum(1 - jnp.cos(2 * x))


def robust(x: Array) -> Array:
    return jnp.sum(jnp.log1p((ROWS @ x) ** 2))


PROBLEMS = {
    "Rosenbrock": from_start(rosenbrock, [-1.2, 1.0, -1.2, 1.0], [1.0] * 4),
    "two of Rosenbrock, far": from_start(
        lambda x: rosenbrock(x[:2]) + rosenbrock(x[2:]), [50.0, -5.0, -20.0, 40.0], [1.0] * 4
    ),
    "Rosenbrock + 100": from_start(lambda x: rosenbrock(x) + 100, [0.0] * 4, [1.0] * 4),
    "Beale": from_start(beale, [1.0] * 4, [3.0, 0.5, 3.0, 0.5]),
    "Wood": from_start(wood, [-3.0, -1.0, -3.0, -1.0], [1.0] * 4),
    "two exponentials": from_start(decay, [1.5, 0.7, 1.2, 2.5], [2.0, 0.5, 1.0, 3.0]),
    "Powell": shifted(powell, power=0.25),
    "fourth power": shifted(lambda x: jnp.sum(x**4), power=0.25),
    "sphere": shifted(quadratic(1.0)),
    "sphere + 1": shifted(quadratic(1.0), 1.0),
    "sphere - 1000": shifted(quadratic(1.0), -1000.0),
    "quadratic, 100": shifted(quadratic(100.0)),
    "quadratic, 10000": shifted(quadratic(1e4)),
    "quadratic, 100, + 10": shifted(quadratic(100.0), 10.0),
    "correlated": shifted(correlated),
    "correlated + 5": shifted(correlated, 5.0),
    "cosh": shifted(cosh),
    "cosh - 4": shifted(lambda x: cosh(x) - 4),
    "sines": shifted(sines),
    "sines + 2": shifted(sines, 2.0),
    "robust": shifted(robust),
    "logistic": tilted(logistic),
    "logistic + ridge": tilted(lambda x: logistic(x) + jnp.sum(x**2)),
    "Huber": tilted(huber),
    "Huber + 50": tilted(huber, 50.0),
    "Poisson": tilted(poisson),
    "softmax": tilted(softmax),
    "tilted cosh": tilted(cosh),
    "tilted fourth power": tilted(lambda x: jnp.sum(x**4)),
    "tilted quadratic": tilted(quadratic(100.0)),
}
OPTIMIZERS = {"L-BFGS": eqopt.LBFGS, "BFGS": eqopt.BFGS, "CG": eqopt.NonlinearCG}

# The units of the objective, and those of the four parameters.
SAME = (1.0, 1.0, 1.0, 1.0)
UNITS = (
    *((unit, SAME) for unit in (1.0, 1e-8, 1e-4, 1e4, 1e8, 2.0**-24, 2.0**24)),
    *((1.0, units) for units in ((1e-4,) * 4, (1e4,) * 4, (0.1, 1.0, 10.0, 1.0))),
)


class Ends(NamedTuple):
    result: np.ndarray
    params: np.ndarray
    num_evals: np.ndarray


# Conjugate gradients take thousands of steps in narrow valleys: where the Hessian matrix is
# singular, and with parameters of different sizes.
def problems_of(name: str) -> dict[str, Problem]:
    return {x: p for x, p in PROBLEMS.items() if name != "CG" or p.power == 0.5}


def units_of(name: str) -> tuple[tuple[float, tuple[float, ...]], ...]:
    return UNITS[:-1] if name == "CG" else UNITS


@functools.cache
def ends(name: str) -> Ends:
    """How an optimizer ends on its problems in its units, which are one program."""
    problems, all_units = [*problems_of(name).values()], units_of(name)
    branches = [problem.fn for problem in problems]
    starts = jnp.stack([problem.start for problem in problems])

    def fn(x: Array, index: Array, unit: Array, units: Array) -> Array:
        return unit * lax.switch(index, branches, x / units)

    @jax.jit
    @jax.vmap
    def run(index: Array, unit: Array, units: Array) -> tuple[Array, Array, Array]:
        args = (index, unit, units)
        found = eqopt.minimize(fn, OPTIMIZERS[name](), starts[index] * units, args, throw=False)
        return found.result._value, found.params / units, found.num_evals

    index, which = np.indices((len(branches), len(all_units))).reshape(2, -1)
    unit, units = (np.array(x, FLOAT) for x in zip(*all_units, strict=True))
    found = run(index, unit[which], units[which])
    return Ends(
        *(np.asarray(x).reshape(len(branches), len(all_units), *x.shape[1:]) for x in found)
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_result_does_not_depend_on_units(name: str):
    for problem, results in zip(problems_of(name).values(), ends(name).result, strict=True):
        successful = results == MinimizeResult.successful._value
        # Rounding decides between the two: for conjugate gradients, and with a singular matrix.
        either = successful | (results == MinimizeResult.precision._value)
        assert np.all(successful if name != "CG" and problem.power == 0.5 else either)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_error_is_what_the_precision_allows(name: str):
    wrong = {}
    for (title, problem), found in zip(problems_of(name).items(), ends(name).params, strict=True):
        solution = np.asarray(problem.solution)
        size = max(1.0, abs(float(problem.fn(problem.solution))))
        errors = np.max(np.abs(found - solution), axis=-1) / np.max(np.abs(solution))
        # A change of the value below its rounding cannot be seen. The least curvature is 0.4, in
        # Rosenbrock's function.
        if np.max(errors) > 5 * (EPS * size) ** problem.power:
            wrong[title] = errors
    assert not wrong


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_powers_of_two_change_no_iterate(name: str):
    plain, *others = (UNITS.index((unit, SAME)) for unit in (1.0, 2.0**-24, 2.0**24))
    _, all_params, all_num_evals = ends(name)
    problems = problems_of(name).values()
    for problem, params, num_evals in zip(problems, all_params, all_num_evals, strict=True):
        # Fourth powers of small errors are below float32's normal numbers.
        for other in others if X64 or problem.power == 0.5 else ():
            assert np.array_equal(params[other], params[plain])
            assert num_evals[other] == num_evals[plain]
