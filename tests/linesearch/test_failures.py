"""Line searches where they must fail."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jaxtyping import Array

import eqopt
from eqopt.linesearch import LinesearchResult
from tests.support.linesearches import ended, rosenbrock, search_along, SEARCHES, value_and_grad
from tests.support.toolbox import FLOAT

NAMES = list(SEARCHES)
EPS = float(np.finfo(FLOAT).eps)


# Bad places to begin. All in one objective, so that each search compiles once.


def _nan_beyond_the_wall(x: Array) -> Array:
    return jnp.where(x > 1, jnp.nan, jnp.square(x - 2))


def _infinite_on_the_left(x: Array) -> Array:
    return jnp.where(x < 0, jnp.inf, jnp.square(x))


def _nan_but_at_zero(x: Array) -> Array:
    return jnp.where(x == 0, -x, jnp.nan)


def _saddle(x: Array) -> Array:
    return x**4 - jnp.square(x)


PLACES = (jnp.square, _nan_beyond_the_wall, _infinite_on_the_left, _nan_but_at_zero, _saddle)
BOWL, WALL, INFINITE, ISLAND, SADDLE = range(len(PLACES))


def _place(x: Array, which: Array) -> Array:
    return lax.switch(which, PLACES, x[0])


class _Walker:
    """Searches in one place after another, with one state."""

    def __init__(self, name: str) -> None:
        self.search = SEARCHES[name]()
        self.state: Any = self.search.init(jnp.zeros(1, FLOAT))

    def value(self, which: int, x: float) -> float:
        return self.value_and_slope(which, x)[0]

    def value_and_slope(self, which: int, x: float) -> tuple[float, float]:
        value, grad = value_and_grad(_place)(jnp.asarray([x], FLOAT), which=jnp.asarray(which))
        return float(value), float(grad[0])

    def search_from(self, which: int, x: float, along: float, grad: float | None = None) -> float:
        at, d = jnp.asarray([x], FLOAT), jnp.asarray([along], FLOAT)
        told = None if grad is None else jnp.asarray([grad], FLOAT)
        index = jnp.asarray(which)
        end, self.state = search_along(self.search, _place, at, d, self.state, told, which=index)
        step = float(self.state.learning_rate)
        assert np.isfinite(step) and step > 0
        return float(end[0])

    def descend(self, which: int, x: float, num_searches: int) -> float:
        """Steepest descent; no step goes up."""
        for _ in range(num_searches):
            before, slope = self.value_and_slope(which, x)
            x = self.search_from(which, x, -slope)
            assert self.value(which, x) <= before + 1e-6 * abs(before)
        return x

    def recovers(self) -> bool:
        """Whether good steps are found again. (Backtracking increases its step by half.)"""
        return self.value(BOWL, self.descend(BOWL, 3.0, 120)) < 1e-3

    def num_evaluations(self) -> int:
        return int(self.state.info.num_linesearch_steps)


@pytest.mark.parametrize("name", NAMES)
def test_uphill(name: str):
    walker = _Walker(name)
    assert walker.search_from(BOWL, 3.0, 6.0) == 3.0
    assert ended(walker.state, LinesearchResult.not_descent)
    assert walker.num_evaluations() == 0
    assert walker.recovers()


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_that_lies(name: str):
    walker = _Walker(name)
    for _ in range(3):
        assert walker.search_from(BOWL, 3.0, 6.0, grad=-6.0) == 3.0
        assert ended(walker.state, LinesearchResult.no_decrease)
        assert walker.num_evaluations() > 1
    assert walker.recovers()


@pytest.mark.parametrize("name", NAMES)
def test_a_wall_of_nan(name: str):
    walker = _Walker(name)
    x = walker.search_from(WALL, 0.0, 4.0)
    assert ended(walker.state, LinesearchResult.successful)
    assert 0 < x <= 1
    # On it goes towards the wall, where it can only fail.
    x = walker.descend(WALL, x, 60)
    assert 0.9 < x <= 1
    assert walker.recovers()


@pytest.mark.parametrize("name", NAMES)
def test_nan_wherever_one_goes(name: str):
    walker = _Walker(name)
    for _ in range(3):
        assert walker.search_from(ISLAND, 0.0, 1.0) == 0
        assert ended(walker.state, LinesearchResult.nonfinite)
        assert walker.num_evaluations() >= 20
    assert walker.recovers()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("which,x", [(BOWL, 0.0), (SADDLE, 0.0), (SADDLE, float(np.sqrt(0.5)))])
def test_at_a_stationary_point(name: str, which: int, x: float):
    walker = _Walker(name)
    end = walker.descend(which, x, 3)
    np.testing.assert_allclose(end, x, rtol=4 * EPS)
    if x == 0:
        assert end == 0
        assert ended(walker.state, LinesearchResult.successful)
        assert walker.num_evaluations() == 1
    assert walker.recovers()


@pytest.mark.parametrize("name", NAMES)
def test_beside_a_saddle(name: str):
    walker = _Walker(name)
    end = walker.descend(SADDLE, 1e-3, 40)
    np.testing.assert_allclose(abs(end), np.sqrt(0.5), rtol=1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_a_direction_of_zeros(name: str):
    walker = _Walker(name)
    assert walker.search_from(BOWL, 3.0, 0.0) == 3
    assert ended(walker.state, LinesearchResult.successful)
    assert walker.recovers()


@pytest.mark.parametrize("name", NAMES)
def test_an_infinite_value_to_begin_with(name: str):
    walker = _Walker(name)
    assert walker.search_from(INFINITE, -1.0, 1.0, grad=-1.0) == -1
    assert ended(walker.state, LinesearchResult.nonfinite_start)
    assert walker.recovers()


@pytest.mark.parametrize("name", NAMES)
def test_infinite_values_beyond_an_edge(name: str):
    walker = _Walker(name)
    x = walker.search_from(INFINITE, 1.0, -2.0)
    assert ended(walker.state, LinesearchResult.successful)
    assert 0 <= x < 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_direction_that_is_not_finite(name: str, bad: float):
    walker = _Walker(name)
    assert walker.search_from(BOWL, 3.0, bad) == 3
    assert ended(walker.state, LinesearchResult.nonfinite_start)
    assert walker.recovers()


# Searches that end for want of trials, or at the longest step.


@pytest.mark.parametrize(
    "search",
    [
        lambda n: eqopt.ScaleByBacktrackingLinesearch(n - 1),
        lambda n: eqopt.ScaleByBacktrackingLinesearch(n - 1, store_grad=True),
        eqopt.ScaleByZoomLinesearch,
        eqopt.linesearch.ScaleByHagerZhangLinesearch,
        eqopt.linesearch.ScaleByWolfeLinesearch,
    ],
    ids=NAMES,
)
def test_too_few_trials(search: Callable[[int], Any]):
    # A full step of steepest descent takes Rosenbrock's function from 24 to 2e11.
    solver = eqopt.Chain(eqopt.SGD(1.0), search(1))
    start = jnp.asarray([-1.2, 1.0], FLOAT)
    x, state, _ = solver.step(rosenbrock, start, solver.init(start))
    assert jnp.array_equal(x, start)
    assert ended(state.states[1], LinesearchResult.no_decrease)
    assert int(state.states[1].info.num_linesearch_steps) == 1
    for num_trials in (1, 2, 3):
        few = eqx.tree_at(lambda s: s.links[1], solver, search(num_trials))
        for _ in range(10):
            before = x
            x, state, _ = few.step(rosenbrock, x, state)
            assert rosenbrock(x) <= rosenbrock(before) * (1 + 1e-6)
            assert int(state.states[1].info.num_linesearch_steps) <= num_trials


def _far(x: Array) -> Array:
    return jnp.sum(jnp.sqrt(1 + jnp.square(x - 100)))


@pytest.mark.parametrize(
    "search",
    [
        eqopt.ScaleByZoomLinesearch(20, max_learning_rate=0.5),
        eqopt.linesearch.ScaleByHagerZhangLinesearch(max_learning_rate=0.5),
    ],
    ids=["zoom", "hager-zhang"],
)
def test_the_longest_step(search: Any):
    start = jnp.zeros(1, FLOAT)
    x, state = search_along(search, _far, start, jnp.ones(1, FLOAT))
    assert float(x[0]) == float(state.learning_rate) == 0.5
    assert ended(state, LinesearchResult.max_learning_rate)
    assert float(state.info.curvature_error) > 0


def _into_a_higher_valley(x: Array) -> Array:
    """1 and steeply downhill at 0; 102 and flat at 1."""
    return jnp.sum(1 - x + jnp.square(x) / 2 + 101.5 * (3 * jnp.square(x) - 2 * x**3))


def test_values_that_were_large_once_do_not_hide_a_rise():
    search, start = eqopt.linesearch.ScaleByWolfeLinesearch(), jnp.zeros(1, FLOAT)
    state = eqx.tree_at(lambda s: s.scale, search.init(start), jnp.asarray(1e3 / EPS, FLOAT))
    x, state = search_along(search, _into_a_higher_valley, start, jnp.ones(1, FLOAT), state)
    assert _into_a_higher_valley(x) < 1
    assert ended(state, LinesearchResult.successful)


def _leveling_off(x: Array) -> Array:
    """Soon so flat that little of the first slope's promise is kept."""
    return jnp.sum(jnp.exp(-4 * x) + 0.04 * x)


@pytest.mark.parametrize(
    "search,phi",
    [
        (eqopt.ScaleByZoomLinesearch(4, curv_rtol=1e-9), _leveling_off),
        (eqopt.ScaleByZoomLinesearch(4), _far),
        (
            eqopt.linesearch.ScaleByHagerZhangLinesearch(2, slope_rtol=0.4999, curv_rtol=0.5),
            _leveling_off,
        ),
        (eqopt.linesearch.ScaleByHagerZhangLinesearch(2), _far),
        (eqopt.linesearch.ScaleByWolfeLinesearch(2), _far),
    ],
    ids=["zoom", "zoom-far", "hager-zhang", "hager-zhang-far", "wolfe-far"],
)
def test_the_best_of_those_tried(search: Any, phi: Callable[[Array], Array]):
    seen: list[float] = []

    def watched(x: Array) -> Array:
        jax.debug.callback(lambda x: seen.append(float(x[0])), x)
        return phi(x)

    start = jnp.zeros(1, FLOAT)
    end, state = search_along(search, watched, start, jnp.ones(1, FLOAT))
    jax.effects_barrier()
    del seen[0]  # the start
    assert ended(state, LinesearchResult.returned)
    assert len(seen) == int(state.info.num_linesearch_steps) == int(search.max_linesearch_steps)
    assert float(end[0]) == float(state.learning_rate)
    values = {x: float(phi(jnp.asarray([x], FLOAT))) for x in seen}
    assert values[float(end[0])] == min(values.values()) < float(phi(start))
