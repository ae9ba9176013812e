"""How `minimize` ends, and that it says so: closed forms, and optimizers of every kind."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import eqopt
from eqopt import MinimizeResult, projections
from tests.support.toolbox import FLOAT, X64


def bowl(x: Array) -> Array:
    return jnp.sum((x - 3) ** 2)


def masked() -> Any:
    return eqopt.Masked(eqopt.LBFGS(), eqopt.ByPath("**"))


# The step


@pytest.mark.parametrize(
    "make",
    [lambda: eqopt.SGD(0.05), lambda: eqopt.Adam(0.1), masked, eqopt.LBFGS],
    ids=["SGD", "Adam", "Masked", "LBFGS"],
)
def test_a_small_step_is_one_between_two_points(make: Any):
    solution = eqopt.minimize(bowl, make(), jnp.zeros(2, FLOAT), xtol=1e-6, gtol=0.0)
    np.testing.assert_allclose(solution.params, [3, 3], atol=1e-4)


# Parameters that do not move


def both(p: Any) -> Array:
    return (p["a"] - 1) ** 2 + (p["b"] - 2) ** 2 + (p["a"] * p["b"]) ** 2


@pytest.mark.parametrize(
    "make",
    [
        lambda b: eqopt.SelectiveTransform(eqopt.LBFGS(), freeze_mask=b),
        lambda b: eqopt.Chain(eqopt.SGD(0.1), eqopt.Freeze(b)),
        lambda b: eqopt.Partition({b: eqopt.Freeze(lambda _: True), ...: eqopt.SGD(0.1)}),
    ],
    ids=["SelectiveTransform", "Freeze", "Partition"],
)
def test_frozen_parameters_do_not_count(make: Any):
    # With b at 0.5, the minimum is where 2 (a - 1) + a / 2 = 0.
    start = {"a": jnp.asarray(3.0, FLOAT), "b": jnp.asarray(0.5, FLOAT)}
    solution = eqopt.minimize(both, make(eqopt.ByPath("b")), start)
    assert solution.params["b"] == 0.5
    np.testing.assert_allclose(solution.params["a"], 0.8, rtol=1e-6 if X64 else 1e-3)


SETS = {
    "box": (projections.Box(1.0, 2.0), [1.5, 1.2], [1.0, 1.0]),
    "non-negative": (projections.NonNegative(), [1.5, 1.2], [0.0, 0.0]),
    "simplex": (projections.Simplex(), [0.9, 0.1], [0.5, 0.5]),
}


@pytest.mark.parametrize("name", SETS)
def test_what_a_projection_holds_does_not_count(name: str):
    projection, start, expected = SETS[name]
    opt = eqopt.Chain(eqopt.SGD(0.1), eqopt.Project(projection))
    solution = eqopt.minimize(lambda x: jnp.sum(x**2), opt, jnp.asarray(start, FLOAT))
    np.testing.assert_allclose(solution.params, expected, atol=1e-6 if X64 else 1e-3)
    assert solution.num_steps < 1000


def test_steps_that_wait_are_no_convergence():
    opt = eqopt.MultiSteps(eqopt.SGD(0.2), 40)
    waits = eqopt.minimize(bowl, opt, jnp.zeros(2, FLOAT), max_steps=30, throw=False)
    assert waits.result == MinimizeResult.max_steps
    ended = eqopt.minimize(bowl, opt, jnp.zeros(2, FLOAT), ftol=1e-9, xtol=1e-9)
    np.testing.assert_allclose(ended.params, [3, 3], atol=1e-3)


# The best point


def narrow(x: Array) -> Array:
    return jnp.sum((x - 3) ** 2 * jnp.array([1.0, 40.0], FLOAT))


@pytest.mark.parametrize(
    "make", [lambda: eqopt.SGD(0.02, momentum=0.9), lambda: eqopt.Adam(0.5)], ids=["SGD", "Adam"]
)
def test_a_rise_is_no_small_decrease(make: Any):
    solution = eqopt.minimize(
        narrow, make(), jnp.zeros(2, FLOAT), ftol=1e-9, gtol=0.0, history=True
    )
    values = solution.stats["values"][: int(solution.num_steps) + 1]
    assert solution.result == MinimizeResult.small_decrease
    assert solution.value < 1e-6 and solution.value <= jnp.min(values) + 1e-12
    np.testing.assert_allclose(narrow(solution.params), solution.value, rtol=1e-5)


@pytest.mark.parametrize("num", [8, 30])
def test_the_best_point_is_returned(num: int):
    # The rate is too large: the second parameter diverges.
    x = jnp.zeros(2, FLOAT)
    solution = eqopt.minimize(narrow, eqopt.SGD(0.03), x, max_steps=num, throw=False, history=True)
    np.testing.assert_array_equal(solution.value, jnp.min(solution.stats["values"]))
    np.testing.assert_array_equal(narrow(solution.params), solution.value)


# Where there is no minimum, or none is found


FALLING = {
    "a plane": lambda x: -jnp.sum(x),
    "an exponential": lambda x: -jnp.sum(jnp.exp(x)),
    "a cube": lambda x: jnp.sum(x**3) - jnp.sum(x),
}


@pytest.mark.parametrize("name", FALLING)
@pytest.mark.parametrize("optimizer", [eqopt.LBFGS, eqopt.NonlinearCG])
def test_what_has_no_lower_bound_is_said_to_have_none(name: str, optimizer: Any):
    x = jnp.array([-1.0, -2.0], FLOAT)
    solution = eqopt.minimize(FALLING[name], optimizer(), x, throw=False)
    assert solution.result == MinimizeResult.unbounded
    assert solution.num_evals < 200


@jax.custom_vjp
def wrong(x: Array) -> Array:
    return jnp.sum(x**2)


wrong.defvjp(lambda x: (jnp.sum(x**2), x), lambda x, g: (-2 * g * x,))


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_a_wrong_gradient_is_no_lack_of_precision(scale: float):
    # A large parameter that nothing depends on must not make the gradient look small.
    x = jnp.array([1.0, 2.0, 1e6], FLOAT)
    solution = eqopt.minimize(
        lambda x, c: c * wrong(x[:2]), eqopt.LBFGS(), x, (FLOAT(scale),), throw=False
    )
    assert solution.result == MinimizeResult.no_decrease


def test_a_kink_under_a_constant_is_no_lack_of_precision():
    def kink(x: Array) -> Array:
        return 4 * jnp.abs(x[0] - x[1] / 3) + 100 * (x[1] - 1) ** 2 + 1000

    solution = eqopt.minimize(kink, eqopt.LBFGS(), jnp.array([3.0, -2.0], FLOAT), throw=False)
    assert jnp.max(jnp.abs(solution.grad)) > 1
    assert solution.result == MinimizeResult.no_decrease


def test_a_loss_in_small_units_is_minimized():
    solution = eqopt.minimize(
        lambda x: 1e-4 * jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2),
        eqopt.LBFGS(),
        jnp.array([-1.2, 1.0], FLOAT),
    )
    np.testing.assert_allclose(solution.params, [1, 1], atol=1e-6 if X64 else 1e-3)


def test_products_in_a_wrapper_count_too():
    plain = eqopt.minimize(bowl, eqopt.NewtonCG(), jnp.zeros(2, FLOAT), max_steps=1, throw=False)
    opt = eqopt.Masked(eqopt.NewtonCG(), eqopt.ByPath("**"))
    within = eqopt.minimize(bowl, opt, jnp.zeros(2, FLOAT), max_steps=1, throw=False)
    # A chain has computed its next direction already, by as many products as the first.
    assert 3 <= within.num_evals <= plain.num_evals
