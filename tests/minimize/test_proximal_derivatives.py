"""Derivatives of the minima of objectives with a penalty."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import eqopt
from eqopt import projections
from tests.support.regression import misfit, problem
from tests.support.toolbox import FLOAT, X64


def test_derivatives_of_the_lasso():
    """By the closed form on the columns that are used."""
    inputs, targets = (jnp.asarray(x) for x in problem(50, 20, 1.0))

    def fit(strength: Any, targets: Any) -> Any:
        opt = eqopt.FISTA(projections.L1(strength))
        return eqopt.minimize(misfit, opt, jnp.zeros(20, FLOAT), (inputs, targets))

    start = jnp.asarray(0.1, FLOAT)
    solution = fit(start, targets)
    used = np.flatnonzero(solution.params)
    signs, part = jnp.sign(solution.params[used]), inputs[:, used]
    assert 0 < len(used) < 20

    def closed(strength: Any, targets: Any) -> Array:
        right = part.T @ targets / 50 - strength * signs
        return jnp.zeros(20, FLOAT).at[used].set(jnp.linalg.solve(part.T @ part / 50, right))

    def closed_value(strength: Any, targets: Any) -> Array:
        x = closed(strength, targets)
        return misfit(x, inputs, targets) + strength * jnp.sum(jnp.abs(x))

    def close(found: Any, expected: Any) -> None:
        rtol, atol = (1e-6, 1e-8) if X64 else (2e-2, 2e-3)
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol)

    for mode in (jax.jacfwd, jax.jacrev):
        found = mode(lambda *a: fit(*a).params, argnums=(0, 1))(start, targets)
        expected = jax.jacobian(closed, argnums=(0, 1))(start, targets)
        jax.tree.map(close, found, expected)
    found = jax.grad(lambda s: fit(s, targets).value)(start)
    close(found, jax.grad(closed_value)(start, targets))
    found = jax.grad(jax.grad(lambda s: jnp.sum(fit(s, targets).params ** 3)))(start)
    second = jax.grad(jax.grad(lambda s: jnp.sum(closed(s, targets) ** 3)))
    close(found, second(start))


@pytest.mark.parametrize(
    "penalty",
    [
        projections.NonNegative(),
        projections.Box(-0.1, 0.2),
        projections.Simplex(1.0),
        projections.L2Ball(0.5),
        projections.GroupL2(0.2),
        projections.ElasticNet(0.1, 0.3),
    ],
    ids=lambda x: type(x).__name__,
)
def test_derivatives_by_differences(penalty: Any):
    inputs, targets = (jnp.asarray(x) for x in problem(50, 12, 1.0, 6))
    direction = jnp.asarray(np.random.default_rng(1).normal(size=50), FLOAT)

    def fit(t: Any) -> Array:
        # The differences need more digits than the minimum shows.
        args, gtol = (inputs, targets + t * direction), 1e-11 if X64 else 1e-6
        return eqopt.minimize(
            misfit, eqopt.FISTA(penalty), jnp.zeros(12, FLOAT), args, gtol=gtol, throw=False
        ).params

    _, found = jax.jvp(fit, (jnp.zeros((), FLOAT),), (jnp.ones((), FLOAT),))
    step = 1e-5 if X64 else 1e-2
    expected = (fit(step) - fit(-step)) / (2 * step)
    assert np.any(expected)
    np.testing.assert_allclose(found, expected, atol=1e-5 if X64 else 1e-2)


def test_derivative_with_many_parameters():
    """Above 200 the system is solved without a matrix."""
    rng = np.random.default_rng(2)
    center, weight = (jnp.asarray(rng.uniform(0.5, 2, 300), FLOAT) for _ in range(2))

    def fit(strength: Any) -> Array:
        def fn(x: Array) -> Array:
            return jnp.sum(weight * (x - center) ** 2) / 2

        opt = eqopt.FISTA(projections.L1(strength))
        return eqopt.minimize(fn, opt, jnp.zeros(300, FLOAT)).params

    found = jax.jacfwd(fit)(jnp.asarray(1.0, FLOAT))
    expected = jnp.where(weight * center > 1, -1 / weight, 0)
    np.testing.assert_allclose(found, expected, atol=1e-6 if X64 else 1e-4)


def test_derivative_of_a_matrix_of_low_rank():
    rng = np.random.default_rng(3)
    data, change = (jnp.asarray(rng.normal(size=(5, 4)), FLOAT) for _ in range(2))
    weights = jnp.asarray(rng.uniform(0.5, 1, (5, 4)), FLOAT)

    def fit(t: Any) -> Array:
        def fn(x: Array) -> Array:
            return jnp.sum(weights * (x - data - t * change) ** 2) / 2

        opt, gtol = eqopt.FISTA(projections.NuclearNorm(1.0)), 1e-11 if X64 else 1e-6
        return eqopt.minimize(fn, opt, jnp.zeros((5, 4), FLOAT), gtol=gtol, throw=False).params

    zero, one = jnp.zeros((), FLOAT), jnp.ones((), FLOAT)
    assert jnp.linalg.matrix_rank(fit(zero), 1e-4) < 4
    _, found = jax.jvp(fit, (zero,), (one,))
    step = 1e-5 if X64 else 1e-2
    expected = (fit(step) - fit(-step)) / (2 * step)
    np.testing.assert_allclose(found, expected, atol=1e-5 if X64 else 2e-2)
