"""Newton's method with conjugate gradients: against dense linear algebra."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import eqopt
from eqopt import MinimizeResult
from eqopt.quasi_newton import ScaleByNewtonCG
from tests.support.toolbox import assert_close, FLOAT, X64

RNG = np.random.default_rng(0)
ROOT = RNG.normal(size=(12, 6))
MATRIX = np.asarray(ROOT.T @ ROOT + np.eye(6), FLOAT)
RIGHT = np.asarray(RNG.normal(size=6), FLOAT)


def quadratic(x: Array) -> Array:
    return x @ MATRIX @ x / 2 - RIGHT @ x


def rosenbrock(x: Array) -> Array:
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def saddle(x: Array) -> Array:
    """Its Hessian matrix is indefinite at the start, where the gradient leads to the saddle."""
    return (x[0] ** 2 - 1) ** 2 + x[1] ** 2


def direction(opt: ScaleByNewtonCG, fn: Any, x: Array) -> tuple[np.ndarray, Any]:
    value, grad = jax.value_and_grad(fn)(x)
    state = opt.init(x, value_fn=fn)
    updates, state = opt.update(grad, state, x, value=value, grad=grad, value_fn=fn)
    return np.asarray(updates), state


def test_the_direction_solves_newtons_equation():
    opt = ScaleByNewtonCG(rtol=1e-6, first_radius_rtol=1e6)
    x = jnp.ones(6, FLOAT)
    updates, state = direction(opt, quadratic, x)
    expected = np.linalg.solve(MATRIX.astype(np.float64), MATRIX @ np.ones(6) - RIGHT)
    np.testing.assert_allclose(updates, expected, rtol=1e-8 if X64 else 1e-4)
    assert state.num_products <= 8  # 6 in exact arithmetic


def test_the_step_ends_at_the_border():
    # The minimum of the model in the ball is where (H + t I) p = -g and |p| = 1.
    opt = ScaleByNewtonCG(rtol=1e-6, first_radius_rtol=0.0)
    x = jnp.full(6, 10.0, FLOAT)
    updates, _ = direction(opt, quadratic, x)
    np.testing.assert_allclose(np.linalg.norm(updates), 1.0, rtol=1e-5)
    grad = MATRIX @ np.full(6, 10.0) - RIGHT
    cauchy = grad / np.linalg.norm(grad)

    def model(p: np.ndarray) -> float:
        return float(p @ MATRIX @ p / 2 - grad @ p)

    assert model(updates) <= model(cauchy) + 1e-6 * abs(model(cauchy))


def test_negative_curvature_is_followed_to_the_border():
    x = jnp.array([1e-3, 0.0], FLOAT)
    updates, _ = direction(ScaleByNewtonCG(), saddle, x)
    np.testing.assert_allclose(updates, [-1.0, 0.0], rtol=1e-5)


@pytest.mark.parametrize("memory_size", [None, 5])
def test_it_minimizes_with_few_steps(memory_size: int | None):
    x = jnp.full(20, -1.0, FLOAT)
    newton = eqopt.NewtonCG(ScaleByNewtonCG(memory_size=memory_size))
    solution = eqopt.minimize(rosenbrock, newton, x)
    plain = eqopt.minimize(rosenbrock, eqopt.LBFGS(), x)
    assert solution.result == MinimizeResult.successful
    np.testing.assert_allclose(solution.params, np.ones(20), rtol=1e-10 if X64 else 1e-3)
    assert 2 * int(solution.num_steps) < int(plain.num_steps)


def test_products_count_as_evaluations():
    # A step has at least one product and one trial.
    x = jnp.full(6, 3.0, FLOAT)
    solution = eqopt.minimize(quadratic, eqopt.NewtonCG(), x)
    assert int(solution.num_evals) > 2 * int(solution.num_steps)
    few = eqopt.minimize(quadratic, eqopt.NewtonCG(), x, max_evals=4, throw=False)
    assert few.result == MinimizeResult.max_evals


def test_a_saddle_is_left():
    solution = eqopt.minimize(saddle, eqopt.NewtonCG(), jnp.array([1e-3, 1.0], FLOAT))
    np.testing.assert_allclose(np.abs(solution.params[0]), 1.0, rtol=1e-4)


def test_complex_parameters_and_trees():
    def fn(p: Any) -> Array:
        z = p["z"] - jnp.asarray([1 + 2j, -1j])
        return jnp.sum(jnp.abs(z) ** 2) + jnp.sum(jnp.abs(z) ** 4) + jnp.sum(jnp.cosh(p["x"] - 1))

    start = {"z": jnp.zeros(2, np.result_type(FLOAT, np.complex64)), "x": jnp.zeros((), FLOAT)}
    solution = eqopt.minimize(fn, eqopt.NewtonCG(), start)
    np.testing.assert_allclose(solution.params["z"], [1 + 2j, -1j], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(solution.params["x"], 1.0, rtol=1e-4)


def test_lanes_are_independent():
    starts = jnp.asarray(RNG.uniform(-1, 1, size=(4, 6)), FLOAT)

    def run(x: Array) -> Array:
        return eqopt.minimize(rosenbrock, eqopt.NewtonCG(), x, throw=False).params

    together = jax.vmap(run)(starts)
    assert_close(together, jnp.stack([run(x) for x in starts]), rtol=1e-6 if X64 else 1e-2)


def test_it_needs_the_objective():
    x = jnp.ones(6, FLOAT)
    opt = ScaleByNewtonCG()
    with pytest.raises(ValueError, match="`ScaleByNewtonCG` needs `value_fn`"):
        opt.update(x, opt.init(x), x, value=jnp.ones((), FLOAT), grad=x)
