"""`minimize` between bounds: SciPy's solutions, and points that never leave the bounds."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jaxtyping import Array

import eqopt
from eqopt import MinimizeResult
from eqopt.quasi_newton import ScaleByLBFGSB
from tests.support.bounded import coupled, found, INF, rosenbrock, squares, TIGHT
from tests.support.evaluations import Calls
from tests.support.toolbox import FLOAT, X64

CALLS = Calls()


def counted(x: Array) -> Array:
    return rosenbrock(CALLS.counted(x))


# Solutions


class Case:
    def __init__(
        self, fn: Callable[[Array], Array], start: list[float], low: list[float], high: list[float]
    ) -> None:
        self.fn, self.start = fn, np.array(start)
        self.low, self.high = np.array(low), np.array(high)


CASES = {
    "inside": Case(rosenbrock, [-1.2, 1.0], [-2, -2], [2, 2]),
    "on-a-bound": Case(rosenbrock, [-1.2, 1.0], [-2, -2], [0.5, 2]),
    "in-a-corner": Case(rosenbrock, [0.0, 0.0], [-1, -1], [0.5, 0.1]),
    "one-sided": Case(rosenbrock, [0.0, 3.0, -1.0], [-INF, 1.5, -INF], [INF, INF, 1.2]),
    "fixed": Case(coupled, [1.0, 0.3, -1.0, 2.0], [-1, 0.3, -2, 0], [2, 0.3, 2, 2]),
    "all-fixed": Case(coupled, [0.5, 0.3], [0.5, 0.3], [0.5, 0.3]),
    "free": Case(coupled, [1.0, 0.0, -1.0, 2.0], [-INF] * 4, [INF] * 4),
    "outside": Case(coupled, [9.0, -9.0, 4.0, -3.0], [0, 0, -1, 0.25], [1, 1, 0.1, 1]),
    "many": Case(rosenbrock, [-1.2, 1.0] * 10, [-2, 1.5] * 10, [0.7, INF] * 10),
}


@pytest.mark.parametrize("name", CASES)
def test_the_solution_is_scipy_s(name: str):
    case = CASES[name]
    both = jax.jit(jax.value_and_grad(case.fn))
    reference = scipy.optimize.minimize(
        lambda x: [np.asarray(y, np.float64) for y in both(jnp.asarray(x, FLOAT))],
        case.start,
        jac=True,
        method="L-BFGS-B",
        bounds=[*zip(case.low, case.high, strict=True)],
        options={"ftol": 0, "gtol": 1e-10, "maxls": 50},
    )
    solution = found(case.fn, case.start, (case.low, case.high))
    assert solution.result == MinimizeResult.successful
    np.testing.assert_allclose(solution.params, reference.x, atol=1e-6 if X64 else 5e-3)
    active = (reference.x == case.low) | (reference.x == case.high)
    wanted = np.asarray(reference.x, FLOAT)[active]
    np.testing.assert_array_equal(np.asarray(solution.params)[active], wanted)
    x, grad = np.asarray(solution.params, np.float64), np.asarray(solution.grad, np.float64)
    projected = np.abs(x - np.clip(x - grad, case.low, case.high)).max()
    assert projected <= TIGHT
    assert float(solution.stats["grad_norm"]) == pytest.approx(projected, rel=0.1, abs=TIGHT / 10)


def test_a_quadratic_has_its_closed_form():
    center = np.array([-3.0, 0.2, 0.4, 5.0], FLOAT)
    solution = found(squares, np.zeros(4), (-1, np.array([1, 1, 0.3, 2])), center)
    np.testing.assert_allclose(solution.params, [-1, 0.2, 0.3, 2], atol=TIGHT, rtol=1e-6)
    np.testing.assert_allclose(solution.value, 4 + 0.01 + 9, rtol=1e-6)


def test_non_negative_least_squares_as_scipy_solves_it():
    rng = np.random.default_rng(0)
    matrix, right = rng.normal(size=(30, 12)), rng.normal(size=30)
    expected, norm = scipy.optimize.nnls(matrix, right)

    def fn(x: Array, matrix: Array, right: Array) -> Array:
        return jnp.sum(jnp.square(matrix @ x - right))

    data = jnp.asarray(matrix, FLOAT), jnp.asarray(right, FLOAT)
    solution = found(fn, np.ones(12), (0, None), *data, gtol=1e-9 if X64 else 1e-3)
    np.testing.assert_allclose(solution.value, norm**2, rtol=1e-8 if X64 else 1e-5)
    np.testing.assert_allclose(solution.params, expected, atol=1e-8 if X64 else 1e-3)
    assert 0 < np.sum(expected == 0) == np.sum(np.asarray(solution.params) == 0)


@pytest.mark.parametrize("name", ["on-a-bound", "fixed", "outside", "many"])
def test_the_units_of_the_objective_do_not_matter(name: str):
    """A factor of two to any power rounds nothing."""
    case = CASES[name]

    def end(factor: float) -> Any:
        def fn(x: Array, factor: Any) -> Array:
            return case.fn(x) * factor

        bounds = case.low, case.high
        return found(fn, case.start, bounds, np.asarray(factor, FLOAT), gtol=None)

    plain = end(1.0)
    assert plain.result == MinimizeResult.successful
    for factor in (2.0**-20, 2.0**20):
        other = end(factor)
        assert other.result == plain.result and other.num_evals == plain.num_evals
        np.testing.assert_array_equal(other.params, plain.params)


# Every point


@pytest.mark.parametrize("dtype", [FLOAT, np.float32, jnp.bfloat16], ids=str)
def test_every_point_is_between_the_bounds_to_the_last_bit(dtype: Any):
    low, high = np.full(6, -1.2), np.array([0.1, 0.3, 0.7, 2.0, 1 / 3, 0.1])
    seen: list[np.ndarray] = []

    def fn(x: Array) -> Array:
        jax.debug.callback(lambda x: seen.append(np.asarray(x, np.float64)), x)
        return rosenbrock(x.astype(FLOAT))

    x = jnp.asarray([-1.2, 9, 0.1, -9, 0.2, 0.1], dtype)
    solution = eqopt.minimize(fn, eqopt.LBFGSB(), x, bounds=(low, high), throw=False)
    jax.effects_barrier()
    assert len(seen) == solution.num_evals >= 5
    low, high = np.asarray(low, FLOAT), np.asarray(high, FLOAT)
    assert all(np.all((low <= x) & (x <= high)) for x in seen)
    assert np.any(seen[-1] > 0.09)
    np.testing.assert_array_equal(seen[0][[1, 3]], [seen[0].max(), seen[0].min()])


def test_steps_beyond_the_model_s_minimizer_stay_inside_too():
    """The objective falls so fast that the search goes farther than its first trial."""
    seen: list[np.ndarray] = []

    def fn(x: Array) -> Array:
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), x)
        return -jnp.sum(jnp.array([1.0, 3.0, 0.1], FLOAT) * x)

    solution = found(fn, np.zeros(3), (None, np.array([100, 0.3, 1e4], FLOAT)))
    jax.effects_barrier()
    np.testing.assert_array_equal(solution.params, np.array([100, 0.3, 1e4], FLOAT))
    assert all(np.all(x <= np.array([100, 0.3, 1e4], FLOAT)) for x in seen)


def test_without_bounds_it_is_lbfgs_up_to_rounding():
    x = jnp.full(6, -1.2, FLOAT)
    ours = eqopt.minimize(coupled, eqopt.LBFGSB(), x, gtol=1e-2)
    other = eqopt.minimize(coupled, eqopt.LBFGS(), x, gtol=1e-2)
    assert ours.num_evals == other.num_evals
    np.testing.assert_allclose(ours.params, other.params, rtol=1e-6 if X64 else 1e-3)
    wide = eqopt.minimize(coupled, eqopt.LBFGSB(), x, gtol=1e-2, bounds=(-1e6, 1e6))
    np.testing.assert_allclose(wide.params, other.params, rtol=1e-6 if X64 else 1e-3)


def test_the_direction_ends_at_the_model_s_minimizer():
    """With the exact Hessian matrix in its memory, one step solves a bounded quadratic."""
    rng = np.random.default_rng(1)
    root = rng.normal(size=(5, 5))
    hessian, center = root @ root.T + np.eye(5), rng.normal(size=5)
    opt = ScaleByLBFGSB(20, secant=eqopt.quasi_newton.PlainSecant())
    x = jnp.zeros(5, FLOAT)
    state = opt.init(x)
    for i in range(12):
        grad = jnp.asarray(hessian @ (np.asarray(x, np.float64) - center), FLOAT)
        updates, state = opt.update(grad, state, x)
        x = x - updates if i % 2 else x - 0.5 * updates
    np.testing.assert_allclose(x, center, atol=1e-6 if X64 else 1e-2)


# Forms


MODEL = {
    "a": jnp.asarray([3.0, -3.0], FLOAT),
    "b": {"c": jnp.asarray(4.0, FLOAT)},
    "f": jax.nn.relu,
}
FORMS = {
    "numbers": ((-1, 2.0), [2, -1], 2),
    "prefix": (({"a": -1, "b": None, "f": None}, {"a": None, "b": 2, "f": None}), [3, -1], 2),
    "tree": (
        (None, {"a": np.array([0.5, INF]), "b": {"c": jnp.asarray(1.0)}, "f": jax.nn.relu}),
        [0.5, -3],
        1,
    ),
    "a-selector": ({eqopt.ByPath("b.**"): (None, 1)}, [3, -3], 1),
    "the-first-selector": (
        {eqopt.ByPath("a"): (np.array([0, -1]), None), ...: (-2, 2), eqopt.ByNdim(0): (None, 3)},
        [3, -1],
        3,
    ),
    "none": ((None, None), [3, -3], 4),
}


@pytest.mark.parametrize("form", FORMS)
def test_bounds_in_every_form(form: str):
    bounds, a, c = FORMS[form]
    start = eqx.tree_at(lambda m: (m["a"], m["b"]["c"]), MODEL, (jnp.zeros(2, FLOAT),) * 2)
    start["b"]["c"] = jnp.zeros((), FLOAT)

    def fn(model: Any) -> Array:
        return squares(model["a"], MODEL["a"]) + squares(model["b"]["c"], MODEL["b"]["c"])

    solution = eqopt.minimize(fn, eqopt.LBFGSB(), start, bounds=bounds)
    np.testing.assert_allclose(solution.params["a"], a, rtol=1e-5)
    np.testing.assert_allclose(solution.params["b"]["c"], c, rtol=1e-5)
    assert solution.params["f"] is jax.nn.relu


def test_some_leaves_of_a_model_have_bounds():
    x = jnp.linspace(-1, 1, 20, dtype=FLOAT)[:, None]
    model = eqx.nn.MLP(1, 1, 6, 1, dtype=FLOAT, key=jax.random.key(0))

    def loss(model: eqx.nn.MLP, x: Array, y: Array) -> Array:
        return jnp.mean(jnp.square(jax.vmap(model)(x) - y))

    # Zero for negative numbers, as the first layer is then.
    y = jnp.square(jnp.maximum(x, 0))
    bounds = {eqopt.ByPath("layers.0.weight"): (0, 0.5), eqopt.ByPath("**.bias"): (None, 0)}
    solution = eqopt.minimize(
        loss, eqopt.LBFGSB(), model, (x, y), max_steps=100, throw=False, bounds=bounds
    )
    first, last = solution.params.layers
    assert jnp.all((first.weight >= 0) & (first.weight <= 0.5)) and jnp.any(first.weight == 0)
    assert all(jnp.all(x <= 0) for x in (first.bias, last.bias) if x is not None)
    assert jnp.max(last.weight) > 0.5
    assert solution.value < 0.02 * loss(model, x, y)


# Compiled, and mapped


def test_other_bounds_compile_nothing():
    CALLS.reset()
    for low in (0.1, 0.2):
        solution = found(lambda x: squares(CALLS.counted(x), 0), np.ones(3), (low, None))
        np.testing.assert_allclose(solution.params, low)
    assert CALLS.traces == 1


def test_bounds_may_be_traced():
    run = jax.jit(lambda low: found(squares, np.ones(3), (low, None), 0.0))
    np.testing.assert_allclose(run(0.25).params, 0.25)


def test_256_bounds_wait_for_nobody():
    rng = np.random.default_rng(0)
    low = jnp.asarray(rng.uniform(-2, 0, (256, 8)), FLOAT)
    high = low + jnp.asarray(rng.uniform(0, 2, (256, 8)), FLOAT)

    def run(low: Array, high: Array) -> Any:
        gtol = 1e-3 if X64 else 1e-2
        return found(counted, np.full(8, -1.0), (low, high), gtol=gtol, throw=False)

    CALLS.reset()
    together = jax.jit(jax.vmap(run))(low, high)
    jax.block_until_ready(together.params)
    jax.effects_barrier()
    assert CALLS.evaluations == jnp.max(together.num_evals)
    assert jnp.all((together.params >= low) & (together.params <= high))
    solved = together.result == MinimizeResult.successful
    assert jnp.mean(solved.astype(FLOAT)) > 0.95
    alone = jax.jit(run)
    for i in range(0, 256, 64):
        one = alone(low[i], high[i])
        np.testing.assert_allclose(one.value, together.value[i], rtol=1e-4 if X64 else 1e-2)


def test_bounds_that_cross_are_a_result_where_they_are_traced():
    low = jnp.asarray([0.0, 2.0, np.nan], FLOAT)
    solutions = jax.vmap(lambda low: found(squares, np.ones(2), (low, 1), 3.0, throw=False))(low)
    np.testing.assert_array_equal(solutions.result == MinimizeResult.successful, [1, 0, 0])
    np.testing.assert_array_equal(solutions.result == MinimizeResult.no_room, [0, 1, 1])
    np.testing.assert_array_equal(solutions.params[0], [1, 1])
    with pytest.raises(Exception, match="above an upper bound"):
        jax.block_until_ready(jax.jit(lambda low: found(squares, [1.0], (low, 1), 3.0).params)(2.0))


# Mistakes


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ((1, 0), "lower bound of `params` is above"),
        ((np.array([0, 5]), np.array([1, 4.0])), "lower bound of `params` is above"),
        ((np.nan, 1), "no NaN"),
        ((np.array([0, np.nan]), 1), "a bound of `params` is NaN"),
        ((np.zeros(3), None), r"`params` has shape \(3,\); the parameter has \(2,\)"),
        (({"a": 0}, None), "bounds"),
        (3.0, "`bounds` must be a pair"),
        ((1, 2, 3), "3 entries"),
        (("zero", None), "must be a number, or a tree"),
        ({eqopt.ByPath("no"): (0, 1)}, "no"),
        ({"a": (0, 1)}, "keys of `bounds` are selectors"),
        ({eqopt.ByNdim(1): 0}, "must be a pair"),
    ],
    ids=str,
)
def test_mistakes_are_named(bounds: Any, message: str):
    with pytest.raises((TypeError, ValueError), match=message):
        found(squares, np.zeros(2), bounds, 1.0)


def test_the_leaf_is_named():
    model = {"a": jnp.zeros(2, FLOAT), "b": [jnp.zeros(2, FLOAT)]}

    def fn(m: Any) -> Array:
        return squares(m["a"], 1) + squares(m["b"][0], 1)

    with pytest.raises(ValueError, match=r"the lower bound of `params\['b'\]\[0\]` is above"):
        eqopt.minimize(fn, eqopt.LBFGSB(), model, bounds=({"a": 0, "b": 2}, 1))
    model["a"] = jax.lax.complex(model["a"], model["a"])
    with pytest.raises(TypeError, match=r"`params\['a'\]` is complex"):
        eqopt.minimize(fn, eqopt.LBFGSB(), model, bounds=({"a": None, "b": 0}, 1))


@pytest.mark.parametrize(
    "optimizer",
    [
        eqopt.LBFGS(),
        eqopt.Adam(0.1),
        eqopt.Masked(eqopt.LBFGSB(), eqopt.ByPath("**")),
        eqopt.Chain(ScaleByLBFGSB(), eqopt.Scale(-1.0)),
        eqopt.LBFGSB(linesearch=eqopt.ScaleByBacktrackingLinesearch(10)),
    ],
    ids=lambda opt: type(opt).__name__,
)
def test_optimizers_that_would_leave_the_bounds_are_refused(optimizer: Any):
    with pytest.raises(TypeError, match=r"`eqopt.LBFGSB\(\)`.*Project"):
        eqopt.minimize(squares, optimizer, jnp.ones(2), (1.0,), bounds=(0, 1))
