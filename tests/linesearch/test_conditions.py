"""Line searches against optax, and against the conditions that they promise."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st
from jax import lax
from jaxtyping import Array

import eqopt
from eqopt.linesearch import AbstractLinesearch, LinesearchResult
from tests.support.linesearches import ended, rosenbrock, search_along, SEARCHES
from tests.support.toolbox import FLOAT, X64

EPS = float(np.finfo(FLOAT).eps)


# The same trials as optax.


def _bowl(x: Array) -> Array:
    return jnp.sum(jnp.square(x) * jnp.arange(1, x.size + 1, dtype=x.dtype))


def _steep(x: Array) -> Array:
    return jnp.sum(x**4) + jnp.sum(jnp.square(x))


def _waves(x: Array) -> Array:
    return jnp.sum(jnp.sin(3 * x)) + 0.1 * jnp.sum(jnp.square(x))


def _logistic(x: Array) -> Array:
    margins = jnp.outer(jnp.arange(5, dtype=x.dtype), x) - 1
    return jnp.sum(jax.nn.softplus(margins)) + 0.05 * jnp.sum(jnp.square(x))


def _beale(x: Array) -> Array:
    a, b = x
    terms = jnp.stack([1.5 - a + a * b, 2.25 - a + a * b**2, 2.625 - a + a * b**3])
    return jnp.sum(jnp.square(terms))


FUNCTIONS = (rosenbrock, _bowl, _steep, _waves, _logistic, _beale)
STARTS = ([-1.2, 1.0], [0.3, -0.7], [2.0, 1.3])


def _objective(x: Array, which: Array) -> Array:
    return lax.switch(which, FUNCTIONS, x)


ZOOM = {
    "max_learning_rate": None,
    "tol": 0.0,
    "slope_rtol": 1e-4,
    "curv_rtol": 0.9,
    "increase_factor": 2.0,
    "approx_dec_rtol": 1e-6,
    "stepsize_precision": 1e-5,
    "initial_guess_strategy": "keep",
}
BACKTRACKING = {
    "slope_rtol": 1e-4,
    "decrease_factor": 0.8,
    "increase_factor": 1.5,
    "max_learning_rate": 1.0,
    "atol": 0.0,
    "rtol": 0.0,
    "store_grad": False,
}


@eqx.filter_jit
def _optax_step(
    build: Callable[..., Any], hyper: dict[str, Any], x: Array, state: Any, which: Array
) -> tuple[Array, Any]:
    """Compiled once for all numbers."""
    theirs = optax.chain(optax.sgd(1.0), build(20, **hyper))
    fn = functools.partial(_objective, which=which)
    value, grad = jax.value_and_grad(fn)(x)
    args: Any = {"value": value, "grad": grad, "value_fn": fn}
    updates, state = theirs.update(grad, state, x, **args)
    return x + jnp.asarray(updates), state


def _runs_alike(
    ours: Any, build: Callable[..., Any], hyper: dict[str, Any], tolerance: float
) -> int:
    """How many steps were compared, over all functions and starts, each from optax's last point."""
    theirs = optax.chain(optax.sgd(1.0), build(20, **hyper))
    numbers = {k: jnp.asarray(v, FLOAT) for k, v in hyper.items() if type(v) is float}
    ours = eqopt.Chain(eqopt.SGD(1.0), ours)
    num_compared = 0
    for which in range(len(FUNCTIONS)):
        for start in STARTS:
            x = y = jnp.asarray(start, FLOAT)
            state, optax_state = ours.init(x), theirs.init(x)
            for _ in range(8):
                y, optax_state = _optax_step(
                    build, {**hyper, **numbers}, y, optax_state, jnp.asarray(which)
                )
                x, state, _ = ours.step(_objective, x, state, jnp.asarray(which))
                search, info = state.states[1], optax_state[1].info
                if float(info.decrease_error) > tolerance:
                    break  # optax has failed, and takes the step nonetheless
                np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-10)
                assert int(search.info.num_linesearch_steps) == int(info.num_linesearch_steps)
                # Interpolation divides by small differences of values.
                rate = optax_state[1].learning_rate
                np.testing.assert_allclose(search.learning_rate, rate, rtol=1e-7)
                assert ended(search, LinesearchResult.successful) == (
                    float(getattr(info, "curvature_error", 0)) <= tolerance
                )
                num_compared += 1
                x = y
                state = eqx.tree_at(lambda s: s.states[1].learning_rate, state, rate)
    return num_compared


@pytest.mark.skipif(not X64, reason="float32 rounds ties either way")
@pytest.mark.parametrize(
    "hyper",
    [
        {},
        {"curv_rtol": 0.1},
        {"curv_rtol": 0.01, "slope_rtol": 1e-3, "stepsize_precision": 1e-2},
        {"max_learning_rate": 0.1},
        {"initial_guess_strategy": "one"},
        {"approx_dec_rtol": None, "increase_factor": 5.0},
        {"curv_rtol": float("inf")},
        {"tol": 1e-3, "curv_rtol": 0.1},
    ],
    ids=str,
)
def test_zoom_equals_optax(hyper: dict[str, Any]):
    ours = eqopt.ScaleByZoomLinesearch(20, **hyper)
    build, tolerance = optax.scale_by_zoom_linesearch, hyper.get("tol", 0)
    assert _runs_alike(ours, build, {**ZOOM, **hyper}, tolerance) > 80


@pytest.mark.skipif(not X64, reason="float32 rounds ties either way")
@pytest.mark.parametrize(
    "hyper",
    [
        {},
        {"store_grad": True, "increase_factor": float("inf"), "max_learning_rate": 3.0},
        {"decrease_factor": 0.3, "increase_factor": 1.0, "slope_rtol": 0.3},
        {"atol": 0.1, "rtol": 0.01},
    ],
    ids=str,
)
def test_backtracking_equals_optax(hyper: dict[str, Any]):
    ours = eqopt.ScaleByBacktrackingLinesearch(20, **hyper)
    build, tolerance = optax.scale_by_backtracking_linesearch, hyper.get("atol", 0)
    assert _runs_alike(ours, build, {**BACKTRACKING, **hyper}, tolerance) > 80


# What is promised of an accepted step.


def _line(x: Array, coefficients: Array) -> Array:
    """Waves in a bowl, of one variable."""
    a, w, p = coefficients[:3]
    curvature = coefficients[3, 0]
    return jnp.sum(a * jnp.sin(w * x + p)) + curvature * jnp.sum(jnp.square(x))


class _Line:
    """The same in NumPy and float64, with bounds for what JAX may have rounded."""

    def __init__(self, coefficients: np.ndarray) -> None:
        self.a, self.w, self.p, (self.curvature, *_) = np.asarray(coefficients, np.float64)

    def value(self, x: float) -> float:
        return float(np.sum(self.a * np.sin(self.w * x + self.p)) + self.curvature * x**2)

    def slope(self, x: float) -> float:
        waves = np.sum(self.a * self.w * np.cos(self.w * x + self.p))
        return float(waves + 2 * self.curvature * x)

    def value_noise(self, x: float) -> float:
        size = np.sum(np.abs(self.a) * (1 + np.abs(self.w * x))) + self.curvature * x**2
        # What is too small to be a normal number is 0.
        return float(16 * EPS * size + 4 * np.finfo(FLOAT).tiny)

    def slope_noise(self, x: float) -> float:
        size = np.sum(np.abs(self.a * self.w) * (1 + np.abs(self.w * x)))
        return float(16 * EPS * (size + self.curvature * abs(x)))


def _decreases(c: float, r: float, slack: float) -> Callable[..., bool]:
    """Armijo's condition, or Hager and Zhang's in its place."""

    def holds(step: float, f0: float, g0: float, f: float, g: float, df: float, dg: float) -> bool:
        armijo = f <= f0 + c * step * g0 + df
        return armijo or (f <= f0 + r * abs(f0) + df and g <= -slack * g0 + dg)

    return holds


CONDITIONS: dict[str, Callable[..., bool]] = {
    "backtracking": _decreases(1e-4, -np.inf, 0),
    "backtracking-grad": _decreases(1e-4, -np.inf, 0),
    "zoom": lambda step, f0, g0, f, g, df, dg: (
        _decreases(1e-4, 1e-6, 1 - 2e-4)(step, f0, g0, f, g, df, dg)
        and abs(g) <= 0.9 * abs(g0) + dg
    ),
    "hager-zhang": lambda step, f0, g0, f, g, df, dg: (
        _decreases(0.1, 1e-6, 0.8)(step, f0, g0, f, g, df, dg) and g >= 0.9 * g0 - dg
    ),
    "wolfe": lambda step, f0, g0, f, g, df, dg: (
        # Its noise floor is relative to the largest value so far, here that at the start.
        _decreases(1e-4, max(1e-6, 9 * EPS), 0.8)(step, f0, g0, f, g, df, dg) and g >= 0.9 * g0 - dg
    ),
}


@functools.cache
def _built(name: str) -> tuple[AbstractLinesearch[Any], Any]:
    search = SEARCHES[name]()
    return search, search.init(jnp.zeros(1, FLOAT))


def _search_a_line(name: str, coefficients: np.ndarray, start: float, along: float) -> bool:
    """Checks what one search promises; whether it was successful."""
    search, state = _built(name)
    line = _Line(coefficients.astype(FLOAT))
    x, d = (np.full(1, v, FLOAT) for v in (start, along))
    given = jnp.asarray(coefficients, FLOAT)
    end, state = search_along(
        search, _line, jnp.asarray(x), jnp.asarray(d), state, coefficients=given
    )
    x0, x1, d0 = float(x[0]), float(end[0]), float(d[0])
    f0, g0, f1, g1 = line.value(x0), d0 * line.slope(x0), line.value(x1), d0 * line.slope(x1)
    df = line.value_noise(x0) + line.value_noise(x1)
    dg = abs(d0) * (line.slope_noise(x0) + line.slope_noise(x1))
    step = float(state.learning_rate)
    assert np.isfinite(step) and step > 0
    assert f1 <= f0 + 1e-6 * abs(f0) + df
    if ended(state, LinesearchResult.successful):
        assert CONDITIONS[name](step, f0, g0, f1, g1, df, dg)
        return True
    if ended(state, LinesearchResult.not_descent):
        assert g0 >= -dg
    if not ended(state, LinesearchResult.returned):
        assert x1 == x0
    else:
        assert x1 != x0 and f1 <= f0 + df
    return False


def _numbers(low: float, high: float) -> st.SearchStrategy[float]:
    # The processor takes subnormal numbers for 0; a search is not tested with them.
    # Also those that are so small in float32 only.
    found = st.floats(low, high, allow_nan=False, allow_subnormal=False)
    return found.map(lambda x: 0.0 if abs(x) < 1e-37 else x)


@pytest.mark.parametrize("name", list(SEARCHES))
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    waves=st.lists(
        st.tuples(_numbers(-1, 1), _numbers(0.5, 3), _numbers(0, 6)), min_size=3, max_size=3
    ),
    curvature=_numbers(0.1, 2),
    start=_numbers(-3, 3),
    along=st.builds(
        lambda sign, size: sign * 10.0**size, st.sampled_from([-1, 1]), _numbers(-2, 2)
    ),
)
def test_an_accepted_step_satisfies_the_conditions(
    name: str, waves: Any, curvature: float, start: float, along: float
):
    coefficients = np.array([*zip(*waves, strict=True), [curvature] * 3])
    _search_a_line(name, coefficients, start, along)


@pytest.mark.parametrize("name", list(SEARCHES))
def test_smooth_lines_downhill_are_searched_with_success(name: str):
    rng = np.random.default_rng(0)
    num_successes = 0
    for _ in range(100):
        low, high = [[-1] * 3, [0.5] * 3, [0] * 3], [[1] * 3, [3] * 3, [6] * 3]
        coefficients = np.concatenate([rng.uniform(low, high), rng.uniform(0.1, 2, (1, 3))])
        start, size = rng.uniform(-3, 3), 10 ** rng.uniform(-1, 1)
        along = -np.sign(_Line(coefficients).slope(start)) * size
        num_successes += _search_a_line(name, coefficients, start, along)
    assert num_successes >= 99


# The examples of the documentation of optax, in this library's words.

FALLING = ["1.40E+01", "5.04E+00", "1.81E+00", "6.53E-01", "2.35E-01", "8.47E-02"]


def test_backtracking_with_an_objective_of_the_parameters_alone():
    def fn(x: Array) -> Array:
        return jnp.sum(x**2)

    search = eqopt.ScaleByBacktrackingLinesearch(max_backtracking_steps=15, store_grad=True)
    solver = eqopt.Chain(eqopt.SGD(1.0), search)
    value_and_grad = eqopt.value_and_grad_from_state(fn)
    params = jnp.asarray([1.0, 2.0, 3.0], FLOAT)
    state = solver.init(params)
    seen = [f"{fn(params):.2E}"]
    for _ in range(5):
        value, grad = value_and_grad(params, state=state)
        updates, state = solver.update(grad, state, params, value=value, grad=grad, value_fn=fn)
        params = eqopt.apply_updates(params, updates)
        seen.append(f"{fn(params):.2E}")
    assert seen == FALLING


def test_backtracking_with_an_objective_that_has_another_argument():
    def fn(x: Array, y: Array) -> Array:
        return jnp.sum((x + y) ** 2)

    search = eqopt.ScaleByBacktrackingLinesearch(max_backtracking_steps=15, store_grad=True)
    solver = eqopt.Chain(eqopt.SGD(1.0), search)
    value_and_grad = eqopt.value_and_grad_from_state(fn)
    params = jnp.asarray([1.0, 2.0, 3.0], FLOAT)
    y = jnp.asarray([4.0, 5.0, 6.0], FLOAT)
    state = solver.init(params)
    seen = [float(fn(params, y))]
    for _ in range(5):
        value, grad = value_and_grad(params, y, state=state)
        updates, state = solver.update(
            grad, state, params, value=value, grad=grad, value_fn=fn, y=y
        )
        params = eqopt.apply_updates(params, updates)
        seen.append(float(fn(params, y)))
    # Squares about another point: each step leaves the same share as above, 0.36 of the value.
    np.testing.assert_allclose(seen, 155 * 0.36 ** np.arange(6), rtol=1e-5)
