"""Proximal gradient and FISTA: the minima that others find, and their costs."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jaxtyping import Array
from sklearn import linear_model

import eqopt
from eqopt import MinimizeResult, projections
from tests.support.evaluations import Calls
from tests.support.regression import misfit, problem
from tests.support.toolbox import FLOAT, X64

CALLS = Calls()
METHODS: dict[str, Any] = {"ProximalGradient": eqopt.ProximalGradient, "FISTA": eqopt.FISTA}
both = pytest.mark.parametrize("name", METHODS)
# Relative to the objective's minimum.
RTOL = 1e-8 if X64 else 2e-6


def solve(opt: Any, data: Any, x: Any = None, **options: Any) -> Any:
    x = jnp.zeros(data[0].shape[1], FLOAT) if x is None else x
    return eqopt.minimize(
        misfit, opt, x, tuple(map(jnp.asarray, data)), max_steps=20_000, **options
    )


PROBLEMS = [(50, 20, 1.0, 0.1), (60, 100, 1.0, 0.1), (100, 40, 1e3, 0.01)]


@both
@pytest.mark.parametrize(("num", "size", "condition", "strength"), PROBLEMS)
def test_lasso(name: str, num: int, size: int, condition: float, strength: float):
    data = problem(num, size, condition)
    wide = [np.asarray(x, np.float64) for x in data]
    reference = linear_model.Lasso(strength, fit_intercept=False, tol=1e-14, max_iter=10**6)
    found = reference.fit(wide[0], wide[1]).coef_
    lowest = np.mean((wide[0] @ found - wide[1]) ** 2) / 2 + strength * np.sum(np.abs(found))
    solution = solve(METHODS[name](projections.L1(strength)), data)
    assert solution.result == MinimizeResult.successful
    np.testing.assert_allclose(solution.value, lowest, rtol=RTOL)
    np.testing.assert_allclose(solution.params, found, atol=1e-5 if X64 else 2e-2)
    # Zeros are zeros.
    assert np.sum(np.asarray(solution.params) == 0) == np.sum(found == 0) > 0
    x = np.asarray(solution.params, np.float64)
    value = np.mean((wide[0] @ x - wide[1]) ** 2) / 2 + strength * np.sum(np.abs(x))
    np.testing.assert_allclose(value, lowest, rtol=RTOL)


@both
def test_elastic_net(name: str):
    data = problem(60, 100, 10.0, 1)
    wide = [np.asarray(x, np.float64) for x in data]
    reference = linear_model.ElasticNet(
        0.2, l1_ratio=0.3, fit_intercept=False, tol=1e-14, max_iter=10**6
    )
    x = reference.fit(wide[0], wide[1]).coef_
    lowest = np.mean((wide[0] @ x - wide[1]) ** 2) / 2
    lowest += 0.2 * (0.3 * np.sum(np.abs(x)) + 0.35 * np.sum(x**2))
    solution = solve(METHODS[name](projections.ElasticNet(0.2, 0.3)), data)
    np.testing.assert_allclose(solution.value, lowest, rtol=RTOL)


@both
@pytest.mark.parametrize(("num", "size", "condition"), [(50, 20, 1.0), (100, 30, 1e2)])
def test_nonnegative_least_squares(name: str, num: int, size: int, condition: float):
    data = problem(num, size, condition, 2)
    _, norm = scipy.optimize.nnls(*(np.asarray(x, np.float64) for x in data))
    start = jnp.full(size, -1.0, FLOAT)  # outside
    solution = solve(METHODS[name](projections.NonNegative()), data, start)
    assert solution.result == MinimizeResult.successful
    np.testing.assert_allclose(solution.value, norm**2 / (2 * num), rtol=RTOL)
    assert np.all(np.asarray(solution.params) >= 0)


def test_group_lasso_is_optimal():
    inputs, targets = problem(60, 24, 10.0, 3)
    groups = {"a": jnp.zeros((6, 2), FLOAT), "b": jnp.zeros((4, 3), FLOAT)}
    strength = 0.3

    def fn(x: Any) -> Array:
        whole = jnp.concatenate([x["a"].ravel(), x["b"].ravel()])
        return jnp.mean((inputs @ whole - targets) ** 2) / 2

    solution = eqopt.minimize(fn, eqopt.FISTA(projections.GroupL2(strength, axis=1)), groups)
    num_zero = 0
    for x, g in zip(jax.tree.leaves(solution.params), jax.tree.leaves(solution.grad), strict=True):
        for row, slope in zip(np.asarray(x), np.asarray(g), strict=True):
            if not np.any(row):
                num_zero += 1
                assert np.linalg.norm(slope) <= strength
            else:
                expected = -strength * row / np.linalg.norm(row)
                np.testing.assert_allclose(slope, expected, atol=1e-6 if X64 else 1e-3)
    assert 0 < num_zero < 10


def test_nuclear_norm_is_optimal():
    rng = np.random.default_rng(4)
    truth = rng.normal(size=(8, 2)) @ rng.normal(size=(2, 6))
    seen = jnp.asarray(rng.random((8, 6)) < 0.7, FLOAT)
    data, strength = jnp.asarray(truth, FLOAT), 0.5

    def fn(x: Array) -> Array:
        return jnp.sum(seen * (x - data) ** 2) / 2

    opt = eqopt.FISTA(projections.NuclearNorm(strength))
    solution = eqopt.minimize(fn, opt, jnp.zeros((8, 6), FLOAT))
    x, slope = (np.asarray(y, np.float64) for y in (solution.params, solution.grad))
    values = np.linalg.svd(x, compute_uv=False)
    assert np.sum(values > 1e-4) < 6
    # The negative gradient is a subgradient: in the dual ball, and along `x` on its border.
    tol = 1e-6 if X64 else 1e-3
    assert np.linalg.norm(slope, 2) <= strength * (1 + tol)
    np.testing.assert_allclose(-np.sum(slope * x), strength * np.sum(values), rtol=tol)


def test_complex_lasso_is_optimal():
    rng = np.random.default_rng(5)
    dtype = np.complex128 if X64 else np.complex64
    inputs = (rng.normal(size=(40, 10)) + 1j * rng.normal(size=(40, 10))).astype(dtype)
    targets = (inputs[:, 0] * (1 + 2j) + 0.1 * rng.normal(size=40)).astype(dtype)

    def fn(x: Array) -> Array:
        return jnp.sum(jnp.abs(inputs @ x - targets) ** 2) / 2

    solution = eqopt.minimize(fn, eqopt.FISTA(projections.L1(4.0)), jnp.zeros(10, dtype))
    x = np.asarray(solution.params)
    slope = inputs.conj().T @ (inputs @ x - targets)
    assert x[0] != 0 and np.any(x == 0)
    tol = 1e-6 if X64 else 2e-3
    zero = x == 0
    np.testing.assert_allclose(slope[~zero], -4 * x[~zero] / np.abs(x[~zero]), atol=4 * tol)
    assert np.all(np.abs(slope[zero]) <= 4)


@both
def test_scale_and_units_do_not_matter(name: str):
    data = problem(50, 20, 10.0)
    runs = []
    for scale in (1e-8, 1.0, 1e8):
        args = (*map(jnp.asarray, data), jnp.asarray(scale, FLOAT))
        opt = METHODS[name](projections.L1(0.1 * scale))
        solution = eqopt.minimize(misfit, opt, jnp.zeros(20, FLOAT), args)
        assert solution.result == MinimizeResult.successful
        runs.append((float(solution.value) / scale, np.asarray(solution.params)))
    for value, params in runs:
        np.testing.assert_allclose(value, runs[1][0], rtol=1e-12 if X64 else 1e-5)
        np.testing.assert_allclose(params, runs[1][1], atol=1e-6 if X64 else 1e-2)


def test_acceleration_pays():
    data = problem(100, 40, 1e4)
    counts = {
        name: int(solve(make(projections.L1(1e-3)), data, throw=False).num_evals)
        for name, make in METHODS.items()
    }
    assert counts["FISTA"] < counts["ProximalGradient"] / 3


# What a step costs


def counted(x: Array, *args: Any) -> Array:
    return misfit(CALLS.counted(x), *args)


@both
def test_evaluations(name: str):
    """All that is evaluated is counted, and nothing is evaluated twice."""
    data = tuple(map(jnp.asarray, problem(50, 20, 10.0)))
    points: list[bytes] = []

    @jax.custom_jvp
    def noted(x: Array) -> Array:
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(note, shape, x, vmap_method="sequential")

    @noted.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        return noted(primals[0]), tangents[0]

    def note(x: Any) -> Any:
        points.append(np.asarray(x).tobytes())
        return np.asarray(x)

    opt = METHODS[name](projections.L1(0.1))
    x = jnp.zeros(20, FLOAT)
    solution = eqopt.minimize(lambda x: misfit(noted(x), *data), opt, x)
    jax.effects_barrier()
    assert len(points) == int(solution.num_evals)
    # Rounding may lead to a point once more, at the very end.
    assert len(points) - len(set(points)) <= 2
    # Two in a step with acceleration, else one; and those that find the length of the step.
    per_step = 2 if name == "FISTA" else 1
    assert len(points) <= (per_step + 0.3) * int(solution.num_steps) + 5


@both
def test_steps_are_those_of_minimize(name: str):
    data = tuple(map(jnp.asarray, problem(50, 20, 10.0)))
    penalty = projections.L1(0.1)
    opt = METHODS[name](penalty)
    x = jnp.zeros(20, FLOAT)
    state, values = opt.init(x), []
    CALLS.reset()
    for _ in range(6):
        x, state, evaluation = opt.step(counted, x, state, *data)
        values.append(float(evaluation.value + penalty.value(x)))
    jax.effects_barrier()
    solution = solve(opt, data, history=True, throw=False)
    short = eqopt.minimize(misfit, opt, jnp.zeros(20, FLOAT), data, max_steps=6, throw=False)
    np.testing.assert_allclose(x, short.params, rtol=1e-10 if X64 else 1e-3, atol=1e-6)
    # The objective at the last point has been evaluated in the last step.
    assert CALLS.evaluations == int(short.num_evals)
    later = solution.stats["values"]
    expected = float(misfit(x, *data) + penalty.value(x))
    np.testing.assert_allclose(later[6], expected, rtol=1e-10 if X64 else 1e-4)
    assert CALLS.traces <= 2


def test_momentum_belongs_to_the_point_reached():
    """At other parameters the next step is a plain one, as that of `ProximalGradient`."""
    data = tuple(map(jnp.asarray, problem(50, 20, 10.0)))
    opt, x = eqopt.FISTA(projections.L1(0.1)), jnp.zeros(20, FLOAT)
    state = opt.init(x)
    for _ in range(5):
        x, state, _ = opt.step(misfit, x, state, *data)
    assert state.momentum > 1
    other = x + 0.5
    moved, after, _ = opt.step(misfit, other, state, *data)
    grad = jax.grad(misfit)(other, *data)
    t = after.search.learning_rate
    expected = projections.L1(0.1).prox(other - t * grad, t)
    np.testing.assert_allclose(moved, expected, rtol=1e-10 if X64 else 1e-4, atol=1e-6)


def test_many_strengths_at_once():
    data = problem(50, 20, 10.0)
    strengths = jnp.asarray([0.01, 0.1, 0.5], FLOAT)

    def fit(strength: Array) -> Any:
        return solve(eqopt.FISTA(projections.L1(strength)), data)

    many = jax.vmap(fit)(strengths)
    for i, strength in enumerate(strengths):
        alone = fit(strength)
        np.testing.assert_allclose(many.params[i], alone.params, atol=1e-6 if X64 else 1e-3)
        np.testing.assert_allclose(many.value[i], alone.value, rtol=1e-10 if X64 else 1e-5)


def test_a_loop_of_ones_own():
    data = tuple(map(jnp.asarray, problem(50, 20, 10.0)))
    opt = eqopt.FISTA(projections.L1(0.1))

    @eqx.filter_jit
    def run(opt: Any, x: Array) -> Array:
        def body(_: Any, carry: Any) -> Any:
            x, state = carry
            value, grad = jax.value_and_grad(misfit)(x, *data)
            updates, state = opt.update(
                grad, state, x, value=value, grad=grad, value_fn=lambda x: misfit(x, *data)
            )
            return eqopt.apply_updates(x, updates), state

        return jax.lax.fori_loop(0, 60, body, (x, opt.init(x)))[0]

    x = run(opt, jnp.zeros(20, FLOAT))
    expected = solve(opt, data).params
    np.testing.assert_allclose(x, expected, atol=1e-6 if X64 else 1e-3)


# How it ends


@both
def test_a_wrong_gradient_is_no_success(name: str):
    @jax.custom_jvp
    def wrong(x: Array) -> Array:
        return jnp.sum((x - 1) ** 2)

    @wrong.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        return wrong(primals[0]), -2 * jnp.sum((primals[0] - 1) * tangents[0])

    opt = METHODS[name](projections.L1(0.1))
    solution = eqopt.minimize(wrong, opt, jnp.zeros(3, FLOAT), throw=False)
    assert solution.result == MinimizeResult.no_decrease
    np.testing.assert_array_equal(solution.params, 0)


@both
def test_other_ends(name: str):
    opt = METHODS[name](projections.L1(0.1))
    start = jnp.zeros(3, FLOAT)
    nan = eqopt.minimize(lambda x: jnp.sum(jnp.log(x - 1)), opt, start, throw=False)
    assert nan.result == MinimizeResult.nonfinite
    # The start is the minimum.
    zero = eqopt.minimize(lambda x: jnp.sum((x - 0.01) ** 2), opt, start)
    assert zero.result == MinimizeResult.successful and not np.any(zero.params)
    data = problem(50, 20, 10.0)
    loose = solve(opt, data, gtol=1e-2)
    assert loose.result == MinimizeResult.successful
    assert loose.num_evals < solve(opt, data).num_evals
    few = solve(opt, data, max_evals=5, throw=False)
    assert few.result == MinimizeResult.max_evals and few.num_evals <= 8
    expected = misfit(few.params, *map(jnp.asarray, data)) + opt.penalty.value(few.params)
    np.testing.assert_allclose(few.value, expected, rtol=1e-14 if X64 else 1e-6)


def test_the_best_point_is_in_the_set():
    """The value outside may be lower than any inside; it does not count."""
    opt = eqopt.FISTA(projections.Box(-1.0, 0.3))
    solution = eqopt.minimize(lambda x: jnp.sum((x - 2) ** 2), opt, jnp.full(3, 2.0, FLOAT))
    np.testing.assert_array_equal(solution.params, np.full(3, 0.3, FLOAT))


def test_mistakes():
    with pytest.raises(TypeError, match="`penalty` must be an `eqopt"):
        penalty: Any = 0.1
        eqopt.FISTA(penalty)
    inside = eqopt.Masked(eqopt.FISTA(projections.L1(0.1)), eqopt.ByPath("**"))
    with pytest.raises(ValueError, match="`minimize` cannot tell the penalty"):
        eqopt.minimize(lambda x: jnp.sum(x**2), inside, jnp.ones(2, FLOAT))
    opt = eqopt.ProximalGradient(projections.L1(0.1))
    x = jnp.ones(2, FLOAT)
    with pytest.raises(ValueError, match="`ScaleByProximalLinesearch` needs `value`"):
        opt.update(x, opt.init(x), x)


def test_no_number_on_the_way_is_nan():
    data = problem(50, 20, 10.0)
    with jax.debug_nans(True):
        for penalty in (projections.L1(0.1), projections.GroupL2(0.1), projections.Simplex(1.0)):
            solution = solve(eqopt.FISTA(penalty), data)
            assert solution.result == MinimizeResult.successful
