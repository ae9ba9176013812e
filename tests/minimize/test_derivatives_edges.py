"""Derivatives through `minimize` of parameters and objectives of every kind, and what they cost."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
from jaxtyping import Array

import eqopt
from eqopt._jit import compiled_call
from tests.support.evaluations import Calls
from tests.support.toolbox import assert_close, FLOAT, X64

TIGHT = 1e-10 if X64 else 1e-5
RTOL = 1e-7 if X64 else 1e-3
Y = np.array([1.5, 2.0, 0.7], FLOAT)
COMPLEX = np.complex128 if X64 else np.complex64


def bowl(x: Array, y: Array) -> Array:
    """Its minimizer is the logarithm of `y`."""
    return jnp.sum(jnp.exp(x) - x * y)


def close(actual: Any, expected: Any, rtol: float = RTOL) -> None:
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rtol)


def minimizer(fn: Any, start: Any, *args: Any, **kwargs: Any) -> Any:
    arrays, rest = eqx.partition(start, eqx.is_array_like)
    start = eqx.combine(jax.tree.map(jnp.asarray, arrays), rest)
    options = {"optimizer": eqopt.LBFGS(), "gtol": TIGHT, "throw": False, **kwargs}
    return eqopt.minimize(fn, params=start, args=args, **options).params


# Parts of the parameters that do not depend on the value, or on which nothing depends.


def test_a_leaf_whose_gradient_does_not_depend_on_the_argument():
    def chain(params: Any, y: Array) -> Array:
        return (params["a"] - y**3) ** 2 + (params["b"] - params["a"]) ** 2

    def outer(y: Array) -> Array:
        return minimizer(chain, {"a": FLOAT(0), "b": FLOAT(0)}, y)["b"]

    y = jnp.asarray(0.5, FLOAT)
    close(jax.grad(outer)(y), 0.75)
    close(jax.grad(jax.grad(outer))(y), 3.0, 10 * RTOL)


def test_ridge_regression_whose_bias_has_no_penalty():
    inputs = np.array([[1, 2], [3, -1], [0, 1], [1, 1]], FLOAT)
    targets = np.array([1, -2, 0.5, 0], FLOAT)
    linear = eqx.nn.Linear(2, 1, dtype=FLOAT, key=jax.random.key(0))

    def ridge(model: eqx.nn.Linear, penalty: Array) -> Array:
        misfit = jax.vmap(model)(jnp.asarray(inputs))[:, 0] - jnp.asarray(targets)
        return jnp.mean(jnp.square(misfit)) + penalty * jnp.sum(jnp.square(model.weight))

    def outer(penalty: Array) -> Array:
        return jnp.sum(jnp.square(minimizer(ridge, linear, penalty).weight))

    def exact(penalty: Array) -> Array:  # by the normal equations
        design = jnp.concatenate([jnp.asarray(inputs), jnp.ones((4, 1), FLOAT)], 1)
        penalties = penalty * jnp.diag(jnp.asarray([1, 1, 0], FLOAT))
        both = jnp.linalg.solve(design.T @ design / 4 + penalties, design.T @ targets / 4)
        return jnp.sum(jnp.square(both[:2]))

    penalty = jnp.asarray(0.3, FLOAT)
    close(jax.grad(outer)(penalty), jax.grad(exact)(penalty), 10 * RTOL)
    close(jax.grad(jax.grad(outer))(penalty), jax.grad(jax.grad(exact))(penalty), 100 * RTOL)


@pytest.mark.parametrize("size", [3, 300], ids=["dense", "conjugate-gradients"])
def test_leaves_that_nothing_depends_on_do_not_move(size: int):
    y = np.linspace(0.5, 2, size, dtype=FLOAT)
    start = {
        "x": np.zeros(size, FLOAT),
        "buffer": np.ones(size, FLOAT),
        "unused": np.ones(2, FLOAT),
    }

    def objective(params: Any, y: Array) -> Array:
        return bowl(params["x"], y * jax.lax.stop_gradient(params["buffer"]))

    def outer(y: Array) -> Array:
        leaves = jax.tree.leaves(minimizer(objective, start, y))
        return jnp.sum(jnp.concatenate([jnp.square(x) for x in leaves]))

    close(jax.grad(outer)(y), 2 * np.log(y) / y, 10 * RTOL)
    close(jax.jvp(jax.grad(outer), (y,), (y,))[1], (2 - 2 * np.log(y)) / y, 10 * RTOL)


def test_biases_of_which_only_the_differences_matter():
    # Softmax regression; how its probabilities depend on the penalty, against SciPy's solutions.
    rng = np.random.default_rng(0)
    inputs, classes = rng.normal(size=(30, 2)), rng.integers(0, 3, 30)
    linear = eqx.nn.Linear(2, 3, dtype=FLOAT, key=jax.random.key(0))

    def objective(model: eqx.nn.Linear, penalty: Array) -> Array:
        scores = jax.nn.log_softmax(jax.vmap(model)(jnp.asarray(inputs, FLOAT)))
        chosen = scores[jnp.arange(30), jnp.asarray(classes)]
        return penalty * jnp.sum(jnp.square(model.weight)) - jnp.mean(chosen)

    def outer(penalty: Array) -> Array:
        scores = jax.vmap(minimizer(objective, linear, penalty))(jnp.asarray(inputs, FLOAT))
        return jnp.sum(jnp.square(jax.nn.softmax(scores)[:, 0]))

    def exact(penalty: float) -> Any:
        # The root of the gradient, where the third bias is 0.
        def scores(free: Any) -> Any:
            return inputs @ free[:6].reshape(3, 2).T + np.append(free[6:], 0)

        def grad(free: Any) -> Any:
            excess = (scipy.special.softmax(scores(free), 1) - np.eye(3)[classes]) / 30
            weights = 2 * penalty * free[:6] + (excess.T @ inputs).ravel()
            return np.append(weights, np.sum(excess, 0)[:2])

        free = scipy.optimize.root(grad, np.zeros(8), tol=1e-13).x
        return np.sum(scipy.special.softmax(scores(free), 1)[:, 0] ** 2)

    h = 1e-4
    difference = (exact(0.1 + h) - exact(0.1 - h)) / (2 * h)
    for derivative in (jax.grad(outer), jax.jacfwd(outer)):
        close(derivative(jnp.asarray(0.1, FLOAT)), difference, 1e-6 if X64 else 1e-2)


def test_the_units_of_the_parameters_do_not_matter():
    big, small = FLOAT(1e6), FLOAT(1e-6)

    def objective(params: Any, y: Array) -> Array:
        return jnp.sum(jnp.square(big * params["a"] - y)) + (small * params["b"] - y**2) ** 2

    def outer(y: Array) -> Any:
        start = {"a": np.full(2, 0.5e-6, FLOAT), "b": FLOAT(0.25e6)}  # the minimizer
        return minimizer(objective, start, y)

    slopes = jax.jacfwd(outer)(jnp.asarray(0.5, FLOAT))
    close(big * slopes["a"], np.ones(2))
    close(small * slopes["b"], 1.0)


# Many parameters, and parameters of other dtypes.


def _quartic(x: Array, scale: Array, center: Array) -> Array:
    return jnp.sum(scale * jnp.square(x - center)) / 2 + jnp.sum(x) ** 4 / 40


@pytest.mark.parametrize("size", [3, 300], ids=["dense", "conjugate-gradients"])
def test_derivatives_against_finite_differences(size: int):
    rng = np.random.default_rng(0)
    scale = jnp.asarray(rng.uniform(1, 3, size), FLOAT)
    center = jnp.asarray(rng.normal(size=size) / size, FLOAT)
    weights = jnp.asarray(rng.normal(size=size), FLOAT)

    def outer(t: Array) -> Array:
        args, x = (scale * jnp.exp(t), center + t / 10), jnp.zeros(size, FLOAT)
        gtol = 1e-9 if X64 else 1e-4
        solution = eqopt.minimize(_quartic, eqopt.LBFGS(), x, args, gtol=gtol, throw=False)
        return jnp.sum(weights * solution.params) + solution.value

    t, h = jnp.asarray(0.1, FLOAT), 1e-4 if X64 else 3e-2
    difference = (outer(t + h) - outer(t - h)) / (2 * h)
    for derivative in (jax.grad(outer), jax.jacfwd(outer), jax.jit(jax.grad(outer))):
        np.testing.assert_allclose(derivative(t), difference, rtol=1e-5 if X64 else 3e-2)


def test_complex_parameters():
    def objective(z: Array, a: Array) -> Array:
        # The real part is log a; the imaginary part is the square of a log a.
        x, y = z.real, z.imag
        return bowl(x, a) + jnp.sum(jnp.square(x - y / (a**2 * x)) * jnp.asarray([1.0, 3.0], FLOAT))

    def outer(a: Array) -> Array:
        z = minimizer(objective, np.full(2, 1 + 1j, COMPLEX), a)
        return jnp.stack([z.real, z.imag])

    def exact(a: Array) -> Array:
        x = jnp.log(jnp.full(2, a))
        return jnp.stack([x, jnp.square(a * x)])

    a = jnp.asarray(2.0, FLOAT)
    first, second = jax.jacfwd(exact), jax.jacfwd(jax.jacfwd(exact))
    for derivative in (jax.jacfwd(outer), jax.jacrev(outer)):
        close(derivative(a), first(a), 10 * RTOL)
    close(jax.jacfwd(jax.jacrev(outer))(a), second(a), 100 * RTOL)


def test_a_complex_argument():
    def objective(z: Array, b: Array) -> Array:
        return jnp.sum(jnp.square((z - b**2).real) + jnp.square((z - b**2).imag))

    def sums(z: Array) -> Array:
        return jnp.sum(z.real) + 2 * jnp.sum(z.imag)

    b = jnp.asarray([1 + 2j, 0.5 - 1j], COMPLEX)
    slope = jax.grad(lambda b: sums(minimizer(objective, np.zeros(2, COMPLEX), b)))(b)
    close(slope, jax.grad(lambda b: sums(b**2))(b), 10 * RTOL)


def test_parameters_in_half_precision_and_of_several_dtypes():
    start = {"a": jnp.zeros(2, jnp.bfloat16), "b": jnp.zeros(2), "c": jnp.zeros((), jnp.float16)}

    def wide(params: Any) -> Array:
        return jnp.concatenate([x.astype(FLOAT).reshape(-1) for x in jax.tree.leaves(params)])

    def outer(y: Array) -> Any:
        def objective(params: Any) -> Array:
            return jnp.sum(jnp.square(wide(params) - y))

        return minimizer(objective, start, gtol=0.1)

    y = jnp.asarray(0.5, FLOAT)
    slopes = jax.jacfwd(outer)(y)
    assert_close(slopes, jax.tree.map(jnp.ones_like, start), 1e-2)
    close(jax.grad(lambda y: jnp.sum(wide(outer(y))))(y), 5.0, 1e-2)


# Objectives and optimizers.


OPTIMIZERS = {
    "first order": lambda: eqopt.Adam(0.05),
    "BFGS": lambda: eqopt.BFGS(),
    "backtracking": lambda: eqopt.Chain(
        eqopt.SGD(1.0), eqopt.ScaleByBacktrackingLinesearch(30, store_grad=True)
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer(name: str):
    def outer(y: Array) -> Array:
        return jnp.sum(minimizer(bowl, np.zeros(3, FLOAT), y, optimizer=OPTIMIZERS[name]()))

    close(jax.hessian(outer)(jnp.asarray(Y)), -np.diag(1 / Y**2), 100 * RTOL)


def test_an_objective_that_minimizes():
    def objective(x: Array, y: Array) -> Array:
        inner = minimizer(bowl, np.zeros(3, FLOAT), y * jnp.exp(x))  # x + log y
        return jnp.sum(jnp.square(inner) + jnp.square(x))

    def outer(y: Array) -> Array:
        return jnp.sum(minimizer(objective, np.zeros(3, FLOAT), y, gtol=100 * TIGHT))  # -log(y) / 2

    close(jax.grad(outer)(jnp.asarray(Y)), -1 / (2 * Y), 1e-5 if X64 else 1e-2)
    close(jax.hessian(outer)(jnp.asarray(Y)), np.diag(1 / (2 * Y**2)), 1e-4 if X64 else 1e-2)


class Bowl(eqx.Module):
    y: Array
    counts: Array
    scale: Any
    power: int = 2

    def __call__(self, x: Array) -> Array:
        return bowl(x, self.scale(self.y) ** self.power)


def test_a_module_that_holds_data():
    module = Bowl(jnp.asarray(Y), jnp.arange(2), lambda y: 3 * y)

    def of_the_objective(module: Bowl) -> Array:
        return jnp.sum(minimizer(module, np.zeros(3, FLOAT)))

    def of_an_argument(module: Bowl) -> Array:
        return jnp.sum(minimizer(lambda x, module: module(x), np.zeros(3, FLOAT), module))

    for outer in (of_the_objective, of_an_argument):
        for derivative in (eqx.filter_grad(outer), eqx.filter_jit(eqx.filter_grad(outer))):
            close(derivative(module).y, 2 / Y)


def test_a_function_among_the_parameters():
    def outer(y: Array) -> Array:
        start = {"x": np.zeros(3, FLOAT), "scale": lambda x: x * y, "count": np.arange(2)}
        found = minimizer(lambda p: jnp.sum(jnp.exp(p["x"]) - p["scale"](p["x"])), start)
        return jnp.sum(found["x"])

    close(jax.grad(outer)(jnp.asarray(Y)), 1 / Y)
    close(jax.hessian(outer)(jnp.asarray(Y)), -np.diag(1 / Y**2), 10 * RTOL)


def test_the_start_and_the_optimizer_have_no_derivative():
    def outer(start: Array, rate: Array) -> Array:
        return jnp.sum(minimizer(bowl, start, Y, optimizer=eqopt.LBFGS(rate)))

    slopes = jax.grad(outer, (0, 1))(jnp.ones(3, FLOAT), jnp.asarray(1.0, FLOAT))
    assert_close(slopes, (jnp.zeros(3, FLOAT), jnp.zeros((), FLOAT)), 0)


# What it costs, and errors.


def test_the_objective_is_traced_once_for_all_derivatives():
    calls = Calls()

    def outer(y: Array) -> Array:
        return jnp.sum(minimizer(lambda x, y: bowl(calls.counted(x), y), np.zeros(3, FLOAT), y))

    outer(jnp.asarray(Y))
    for y in (Y, Y + 1):
        close(jax.grad(outer)(jnp.asarray(y)), 1 / y)
    close(jax.hessian(outer)(jnp.asarray(Y)), -np.diag(1 / Y**2), 10 * RTOL)
    assert calls.traces == 1


def test_a_program_that_reads_a_tracer_from_a_dictionary_is_not_kept(
    monkeypatch: pytest.MonkeyPatch,
):
    kept: list[bool] = []
    call = compiled_call.call_objective

    def noting(*args: Any, reuse: bool) -> Any:
        kept.append(reuse)
        return call(*args, reuse=reuse)

    monkeypatch.setattr(compiled_call, "call_objective", noting)

    y, start = jnp.asarray(Y), jnp.zeros(3, FLOAT)

    def outer(y: Array) -> Array:
        data = {"y": y}
        return jnp.sum(eqopt.minimize(lambda x: bowl(x, data["y"]), eqopt.LBFGS(), start).params)

    outer(y)
    assert kept == [True]
    for transformed in (jax.grad(outer), jax.jit(outer)):
        kept.clear()
        transformed(y)
        assert kept == [False]


def test_a_failure_in_one_lane_is_told_with_keys_in_aux_too():
    def objective(x: Array, y: Array) -> Any:
        return bowl(x, y), jax.random.key(0)

    def run(y: Array) -> Any:
        x = jnp.zeros(3, FLOAT)
        solution = eqopt.minimize(objective, eqopt.LBFGS(), x, (y,), has_aux=True, max_steps=2)
        return solution.params, solution.aux

    with pytest.raises(Exception, match="max_steps"):
        jax.block_until_ready(jax.vmap(run)(jnp.stack([jnp.ones(3, FLOAT), jnp.asarray(Y)])))
