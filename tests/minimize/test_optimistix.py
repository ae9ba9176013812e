"""optimistix both ways: eqopt's optimizers in its loop, and its solvers in `minimize`."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import pytest
from jaxtyping import Array

import eqopt
from eqopt.interop import EqoptMinimiser
from eqopt.projections import L1, NonNegative
from tests.support.evaluations import Calls
from tests.support.toolbox import FLOAT, X64

RNG = np.random.default_rng(0)
DATA = np.asarray(RNG.normal(size=(12, 3)), FLOAT)
TARGET = np.asarray(RNG.normal(size=12), FLOAT)
TOL = 1e-8 if X64 else 1e-5
# Near the best one for gradient descent on `ridge`, from the eigenvalues of its Hessian matrix.
RATE = 2 / np.sum(2 * np.linalg.eigvalsh(DATA.T @ DATA)[[0, -1]] + 4).item()
SOLVERS = {
    "BFGS": optimistix.BFGS(TOL, TOL),
    "LBFGS": optimistix.LBFGS(TOL, TOL),
    "NelderMead": optimistix.NelderMead(TOL, TOL),
    "GradientDescent": optimistix.GradientDescent(RATE, TOL, TOL),
}
OPTIMIZERS = {
    "LBFGS": eqopt.LBFGS(),
    "BFGS": eqopt.BFGS(),
    "NewtonCG": eqopt.NewtonCG(),
    "SGD": eqopt.SGD(RATE),
}


def ridge(x: Array, strength: Array) -> Array:
    return jnp.sum((DATA @ x - TARGET) ** 2) + strength * x @ x


def ridge_minimum(strength: float) -> np.ndarray:
    data = DATA.astype(np.float64)
    return np.linalg.solve(data.T @ data + strength * np.eye(3), data.T @ TARGET)


def ridge_derivative(strength: float) -> np.ndarray:
    data = DATA.astype(np.float64)
    matrix = data.T @ data + strength * np.eye(3)
    return -np.linalg.solve(matrix, ridge_minimum(strength))


def assert_near(found: Any, expected: Any) -> None:
    """Relative to the largest entry; a method of first order ends some steps of size TOL away."""
    atol = (1e-5 if X64 else 2e-3) * np.max(np.abs(expected)).item()
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def rosenbrock(x: Array, a: Array) -> Array:
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (a - x[:-1]) ** 2)


# eqopt's optimizers in optimistix


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimistix_finds_the_minimum_and_its_derivative(name: str):
    solver = EqoptMinimiser(OPTIMIZERS[name], TOL, TOL)

    def minimizer(strength: Array) -> Array:
        found = optimistix.minimise(ridge, solver, jnp.zeros(3, FLOAT), strength, max_steps=4000)
        return found.value

    strengths = jnp.asarray([0.5, 2.0], FLOAT)
    found = jax.vmap(minimizer)(strengths)
    derivative = jax.jacfwd(minimizer)(strengths[0])
    assert_near(found[0], ridge_minimum(0.5))
    assert_near(found[1], ridge_minimum(2.0))
    assert_near(derivative, ridge_derivative(0.5))


def num_steps_of_gradient_descent(rtol: float, atol: float) -> int:
    """On x^2 / 2 with a rate of 1/4, from 1, by optimistix's test."""
    x, count = 1.0, 0
    while True:
        count += 1
        step, x = -x / 4, 0.75 * x
        change = abs(x**2 - (x - step) ** 2) / 2
        if abs(step) < atol + rtol * x and change < atol + rtol * x**2 / 2:
            return count


@pytest.mark.parametrize("rtol, atol", [(0.0, 1e-2), (0.0, 1e-4), (0.3, 1e-2), (0.34, 0.05)])
def test_it_ends_by_the_test_of_optimistix(rtol: float, atol: float):
    expected = num_steps_of_gradient_descent(rtol, atol)
    solver = EqoptMinimiser(eqopt.SGD(0.25), rtol, atol)
    found = optimistix.minimise(lambda x, _: x**2 / 2, solver, jnp.ones((), FLOAT))
    assert found.stats["num_steps"] == expected + 1  # the first evaluates the first point
    np.testing.assert_allclose(found.value, 0.75**expected, rtol=1e-4)
    np.testing.assert_allclose(found.stats["grad_norm"], 0.75**expected, rtol=1e-4)


def test_a_step_that_waits_for_gradients_is_not_the_end():
    def num_steps(opt: Any) -> int:
        solver = EqoptMinimiser(opt, 0.0, 1e-3)
        found = optimistix.minimise(lambda x, _: x**2 / 2, solver, jnp.ones((), FLOAT))
        return int(found.stats["num_steps"])

    alone = num_steps(eqopt.SGD(0.25))
    assert num_steps(eqopt.MultiSteps(eqopt.SGD(0.25), 3)) == 3 * (alone - 1) + 1


@pytest.mark.parametrize("name", ["LBFGS", "SGD"])
def test_a_step_of_optimistix_is_one_evaluation(name: str):
    calls = Calls()
    solver = EqoptMinimiser(OPTIMIZERS[name], TOL, TOL)
    start = jnp.asarray([-1.2, 1.0], FLOAT) / 4

    def run() -> Any:
        def fn(x: Array, a: Array) -> Array:
            return rosenbrock(calls.counted(x), a) / 400

        return optimistix.minimise(
            fn, solver, start, jnp.ones((), FLOAT), max_steps=60, throw=False
        )

    num_evals = calls.of(run)
    found = run()
    assert found.stats["num_steps"] == found.stats["num_evals"] == num_evals > 10


def test_aux_and_value_belong_together():
    def fn(x: Array, _: object) -> tuple[Array, dict[str, Array]]:
        return jnp.sum((x - 2) ** 4), {"x": x}

    for opt in (eqopt.LBFGS(), eqopt.Adam(0.1)):  # the latter goes up and down
        found = optimistix.minimise(
            fn,
            EqoptMinimiser(opt, TOL, TOL),
            jnp.ones(2, FLOAT),
            has_aux=True,
            max_steps=50,
            throw=False,
        )
        np.testing.assert_array_equal(found.aux["x"], found.value)


def test_the_best_point_is_returned():
    solver = EqoptMinimiser(eqopt.SGD(1.1), 1e-6, 1e-6)  # each step multiplies x by -1.2
    found = optimistix.minimise(
        lambda x, _: x**2, solver, jnp.ones((), FLOAT), max_steps=10, throw=False
    )
    assert found.value == 1


@jax.custom_jvp
def wrong(x: Array) -> Array:
    return jnp.sum(x**2)


@wrong.defjvp
def _wrong_jvp(primals: Any, tangents: Any) -> Any:
    (x,), (t,) = primals, tangents
    return jnp.sum(x**2), -2 * x @ t


def test_a_wrong_gradient_is_no_convergence():
    solver = EqoptMinimiser(eqopt.LBFGS(), TOL, TOL)
    found = optimistix.minimise(lambda x, _: wrong(x), solver, jnp.ones(2, FLOAT), throw=False)
    assert found.result == optimistix.RESULTS.nonlinear_divergence


def test_a_start_without_a_value_is_called_so():
    solver = EqoptMinimiser(eqopt.LBFGS(), TOL, TOL)
    start = -jnp.ones(2, FLOAT)
    found = optimistix.minimise(lambda x, _: jnp.sum(jnp.log(x)), solver, start, throw=False)
    assert found.result == optimistix.RESULTS.nonfinite


def test_what_optimistix_cannot_differentiate_is_refused():
    with pytest.raises(ValueError, match=r"use `eqopt\.minimize`"):
        EqoptMinimiser(eqopt.FISTA(L1(0.1)), TOL, TOL)
    with pytest.raises(ValueError, match=r"use `eqopt\.minimize`"):
        EqoptMinimiser(eqopt.Chain(eqopt.SGD(0.1), eqopt.Project(NonNegative())), TOL, TOL)


def test_bad_arguments_are_refused():
    bad: Any = 0.1
    with pytest.raises(TypeError, match="`optimizer`"):
        EqoptMinimiser(bad, TOL, TOL)
    with pytest.raises(ValueError, match="`rtol`"):
        EqoptMinimiser(eqopt.LBFGS(), -1.0, TOL)
    with pytest.raises(ValueError, match="`options` must be empty"):
        solver = EqoptMinimiser(eqopt.LBFGS(), TOL, TOL)
        optimistix.minimise(lambda x, _: x**2, solver, jnp.ones((), FLOAT), options={"lower": 0.0})


# optimistix's solvers in `minimize`


@pytest.mark.parametrize("name", SOLVERS)
def test_minimize_by_a_solver_of_optimistix(name: str):
    start, strength = jnp.zeros(3, FLOAT), jnp.asarray(0.5, FLOAT)
    theirs = optimistix.minimise(ridge, SOLVERS[name], start, strength, max_steps=5000)
    ours = eqopt.minimize(ridge, SOLVERS[name], start, (strength,), max_steps=5000)
    assert_near(ours.params, theirs.value)
    value, grad = jax.value_and_grad(ridge)(ours.params, strength)
    np.testing.assert_allclose(ours.value, value, rtol=1e-6)
    np.testing.assert_allclose(ours.grad, grad, atol=1e-4 * np.abs(TARGET).sum())


def test_a_solution_by_a_solver_is_differentiable():
    def minimizer(strength: Array) -> Array:
        start = jnp.zeros(3, FLOAT)
        return eqopt.minimize(lambda x: ridge(x, strength), SOLVERS["BFGS"], start).params

    strengths = jnp.asarray([0.5, 2.0], FLOAT)
    found, derivative = jax.vmap(lambda s: jax.jvp(minimizer, (s,), (jnp.ones_like(s),)))(strengths)
    for i, strength in enumerate((0.5, 2.0)):
        assert_near(found[i], ridge_minimum(strength))
        assert_near(derivative[i], ridge_derivative(strength))


def test_a_model_and_aux_go_through_a_solver():
    model: Any = eqx.nn.Linear(3, "scalar", key=jax.random.key(0))

    def fn(model: Any) -> tuple[Array, Array]:
        predicted = jax.vmap(model)(DATA)
        return jnp.sum((predicted - TARGET) ** 2), predicted

    found: Any = eqopt.minimize(fn, SOLVERS["BFGS"], model, has_aux=True)
    ones = np.concatenate([DATA, np.ones((12, 1))], axis=1)
    expected, *_ = np.linalg.lstsq(ones, TARGET)
    fitted = np.append(np.ravel(found.params.weight), found.params.bias)
    np.testing.assert_allclose(fitted, expected, rtol=1e-5, atol=1e-5 if X64 else 1e-3)
    np.testing.assert_allclose(found.aux, jax.vmap(found.params)(jnp.asarray(DATA)), rtol=1e-5)


def test_a_solver_keeps_to_the_limits():
    start, a = jnp.asarray([-1.2, 1.0], FLOAT), jnp.ones((), FLOAT)

    def run(**limits: Any) -> Any:
        return eqopt.minimize(rosenbrock, SOLVERS["BFGS"], start, (a,), throw=False, **limits)

    short, shorter = run(max_steps=7), run(max_evals=5)
    assert short.result == eqopt.MinimizeResult.max_steps
    assert shorter.result == eqopt.MinimizeResult.max_evals
    assert (short.num_steps, short.num_evals) == (7, 8)
    assert (shorter.num_steps, shorter.num_evals) == (4, 5)
    with pytest.raises(RuntimeError, match="`max_steps` steps were taken"):
        eqopt.minimize(rosenbrock, SOLVERS["BFGS"], start, (a,), max_steps=7)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_evaluations_of_a_solver_are_counted(name: str):
    calls = Calls()

    def run() -> Any:
        def fn(x: Array) -> Array:
            return rosenbrock(calls.counted(x), jnp.ones((), FLOAT))

        start = jnp.asarray([-1.2, 1.0], FLOAT)
        return eqopt.minimize(fn, SOLVERS[name], start, max_steps=12, throw=False)

    num_evals = calls.of(run)
    found = run()
    told = found.num_evals
    assert told == found.num_steps + 1 > 5
    # Nelder and Mead's method looks at several points in a step, and tells nobody how many.
    assert num_evals > told if name == "NelderMead" else num_evals == told


def test_how_a_solver_ended_is_told():
    def run(fn: Any, solver: Any) -> Any:
        return eqopt.minimize(fn, solver, jnp.ones(2, FLOAT), throw=False).result

    diverging = optimistix.GradientDescent(3.0, TOL, TOL)
    assert run(lambda x: jnp.sum(x**2), diverging) == eqopt.MinimizeResult.nonfinite
    assert run(lambda x: jnp.sum(x**2), SOLVERS["BFGS"]) == eqopt.MinimizeResult.successful


@pytest.mark.parametrize(
    "setting", [{"gtol": 1e-3}, {"ftol": 0.1}, {"xtol": 0.1}, {"history": True}, {"progress": True}]
)
def test_settings_that_a_solver_does_not_see_are_refused(setting: dict[str, Any]):
    with pytest.raises(ValueError, match=f"`{next(iter(setting))}` has no effect"):
        eqopt.minimize(jnp.sum, SOLVERS["BFGS"], jnp.ones(2, FLOAT), **setting)


def test_bounds_are_refused_with_a_solver():
    with pytest.raises(TypeError, match="`bounds` need an optimizer that keeps them"):
        eqopt.minimize(jnp.sum, SOLVERS["BFGS"], jnp.ones(2, FLOAT), bounds=(0, 1))
