"""Derivatives of solutions between bounds, with respect to the bounds too."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import eqopt
from tests.support.bounded import coupled, found, INF, rosenbrock, squares, TIGHT
from tests.support.toolbox import FLOAT, X64


def test_the_derivative_by_the_bounds_and_by_the_data():
    center = jnp.asarray([-3.0, 0.2, 0.4, 5.0], FLOAT)
    low, high = jnp.full(4, -1, FLOAT), jnp.asarray([1, 1, 0.3, 2], FLOAT)
    at_low, inside, at_high = np.diag([1, 0, 0, 0]), np.diag([0, 1, 0, 0]), np.diag([0, 0, 1, 1])

    def params(low: Array, high: Array, center: Array) -> Array:
        return found(squares, np.zeros(4), (low, high), center).params

    for derivative in (jax.jacfwd, jax.jacrev):
        jacobians = derivative(params, (0, 1, 2))(low, high, center)
        for jacobian, expected in zip(jacobians, (at_low, at_high, inside), strict=True):
            np.testing.assert_allclose(jacobian, expected, atol=1e-6)


def test_derivatives_are_those_of_finite_differences():
    low, high = np.array([0.1, -1.0, -2, 0.2]), np.array([2.0, 0.3, 3, 0.2])
    scale = np.array([1.0, 2.0, 0.5, 1.5])

    def fn(x: Array, scale: Array) -> Array:
        return coupled(scale * x) + jnp.prod(x)

    def solve(low: Any, high: Any, scale: Any) -> Any:
        s = found(fn, np.ones(4), (low, high), jnp.asarray(scale, FLOAT), gtol=1e-11, throw=False)
        return jnp.concatenate([s.params, s.value[None]])

    args = tuple(jnp.asarray(a, FLOAT) for a in (low, high, scale))
    x = solve(*args)[:-1]
    assert 0 < int(jnp.sum((x == args[0]) | (x == args[1]))) < 4
    jacobians = jax.jacrev(solve, (0, 1, 2))(*args)
    step = 1e-5 if X64 else 1e-2
    for k, jacobian in enumerate(jacobians):
        for j in range(4):
            if k < 2 and low[j] == high[j]:
                continue  # the bounds would cross
            up, down = list(args), list(args)
            up[k], down[k] = args[k].at[j].add(step), args[k].at[j].add(-step)
            expected = (solve(*up) - solve(*down)) / (2 * step)
            tolerance = 1e-5 if X64 else 3e-2
            np.testing.assert_allclose(
                jacobian[:, j], expected, atol=tolerance, rtol=tolerance, err_msg=f"{k} {j}"
            )


def test_second_derivatives():
    def value(high: Array) -> Array:
        return found(rosenbrock, np.zeros(2), (None, high)).value

    # On the bound x = u the minimum is (1 - u)^2.
    high = jnp.asarray([0.5, INF], FLOAT)
    grad, hessian = jax.grad(value)(high), jax.hessian(value)(high)
    rtol = 1e-6 if X64 else 1e-2
    np.testing.assert_allclose(grad, [-1, 0], atol=rtol)
    np.testing.assert_allclose(hessian, [[2, 0], [0, 0]], atol=10 * rtol)


def test_derivatives_of_a_model_under_vmap():
    def fn(model: Any, y: Array) -> Array:
        return squares(model["a"], y) + squares(model["b"] - model["a"][0], 0)

    def solve(high: Array) -> Array:
        model = {"a": jnp.zeros(2, FLOAT), "b": jnp.zeros((), FLOAT)}
        bounds = {eqopt.ByPath("a"): (None, high)}
        y = jnp.asarray([1.0, 2.0], FLOAT)
        return eqopt.minimize(fn, eqopt.LBFGSB(), model, (y,), bounds=bounds, gtol=TIGHT).params[
            "b"
        ]

    # a = min(y, u), b = a[0]
    highs = jnp.asarray([0.5, 0.75, 3.0], FLOAT)
    np.testing.assert_allclose(jax.vmap(solve)(highs), [0.5, 0.75, 1], rtol=1e-3)
    np.testing.assert_allclose(jax.vmap(jax.grad(solve))(highs), [1, 1, 0], atol=1e-6)
