"""Nonlinear conjugate gradients: against the formulas, linear conjugate gradients and scipy."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse.linalg
from jaxtyping import Array, Float

import eqopt
from eqopt import MinimizeResult, quasi_newton
from tests.support.toolbox import assert_close, finite, FLOAT, same, tree, values, X64

COMPLEX = np.result_type(FLOAT, np.complex64)


def hager_zhang(g: Any, last: Any, d: Any, eta: float = 0.4, theta: float = 1.0) -> float:
    y = g - last
    beta = (y - theta * d * (y @ y) / (y @ d)) @ g / (y @ d)
    return max(beta, eta * (d @ last) / (d @ d))


def polak_ribiere_plus(g: Any, last: Any, d: Any) -> float:
    return max((g - last) @ g / (last @ last), 0.0)


def fletcher_reeves(g: Any, last: Any, d: Any) -> float:
    return (g @ g) / (last @ last)


def dai_yuan(g: Any, last: Any, d: Any) -> float:
    return (g @ g) / (d @ (g - last))


METHODS: dict[str, tuple[quasi_newton.AbstractConjugacy, Callable[[Any, Any, Any], float]]] = {
    "HagerZhang": (quasi_newton.HagerZhang(), hager_zhang),
    "HagerZhang-2": (
        quasi_newton.HagerZhang(eta=0.01, theta=2.0),
        lambda g, last, d: hager_zhang(g, last, d, 0.01, 2.0),
    ),
    "PolakRibierePlus": (quasi_newton.PolakRibierePlus(), polak_ribiere_plus),
    "FletcherReeves": (quasi_newton.FletcherReeves(), fletcher_reeves),
    "DaiYuan": (quasi_newton.DaiYuan(), dai_yuan),
}
every_method = pytest.mark.parametrize("name", METHODS)


def flat(x: Any) -> np.ndarray:
    """A tree as a vector of real numbers: of complex ones, both parts."""
    parts = [np.stack([np.real(a).ravel(), np.imag(a).ravel()]) for a in jax.tree.leaves(x)]
    return np.concatenate([p.ravel() for p in parts]).astype(np.float64)


def mixed(seed: int) -> dict[str, Any]:
    """A tree of several dtypes, one leaf complex, one missing."""
    return {
        "real": values((3, 2), seed),
        "complex": values((2,), seed + 1, COMPLEX),
        "hole": None,
        "single": values((4,), seed + 2, np.float32),
    }


def step_along(params: Any, updates: Any, size: float) -> Any:
    return jax.tree.map(lambda x, u: (x - size * u).astype(x.dtype), params, updates)


# The factors


def _second_gradient(last: Any, direction: Any, seed: int) -> Any:
    """A gradient after a step: random, and less steep along the direction than the last one was.

    Its slope is between a half of the last one, below zero, and as much above it.
    """
    g, d = flat(mixed(seed)), flat(direction)
    slope = 0.5 * np.random.default_rng(seed).uniform(-1, 1) * -(flat(last) @ d)
    shift = float((slope - g @ d) / (d @ d))
    return jax.tree.map(lambda x, y: (x + shift * y).astype(x.dtype), mixed(seed), direction)


@every_method
@pytest.mark.parametrize("seed", range(5))
def test_the_direction_is_that_of_the_formula(name: str, seed: int):
    method, formula = METHODS[name]
    opt = quasi_newton.ScaleByNonlinearCG(method, np.inf)
    params, first = mixed(1), mixed(10 + seed)
    # What `jax.grad` gives is the conjugate of the direction of ascent.
    u, state = opt.update(jax.tree.map(jnp.conj, first), opt.init(params), params)
    np.testing.assert_allclose(flat(state.direction), -flat(first), rtol=1e-6)
    moved, promised = step_along(params, u, 0.25), flat(u) @ flat(first)
    second = _second_gradient(first, state.direction, 20 + seed)

    g, last, d = flat(second), flat(first), flat(state.direction)
    beta = formula(g, last, d)
    new = -g + beta * d
    if new @ g >= 0:  # Fletcher and Reeves's directions do not always descend
        assert name == "FletcherReeves"
        new = -g
    u, state = opt.update(jax.tree.map(jnp.conj, second), state, moved)
    # One leaf is in single precision.
    np.testing.assert_allclose(flat(state.direction), new, rtol=2e-5, atol=2e-5)
    cosine = flat(u) @ -new / np.linalg.norm(flat(u)) / np.linalg.norm(new)
    np.testing.assert_allclose(cosine, 1, rtol=1e-6)
    # At a step of 1 the slope promises what it did for the step that was taken.
    np.testing.assert_allclose(flat(u) @ g, 0.25 * promised, rtol=1e-3)


def _products(g: Any, last: Any, d: Any) -> quasi_newton.ConjugacyProducts:
    y = g - last
    pairs = ((g, g), (last, last), (y, y), (y, g), (y, d), (g, d), (d, d))
    return quasi_newton.ConjugacyProducts(*(jnp.asarray(a @ b, FLOAT) for a, b in pairs))


def test_negative_factors_are_bounded():
    g, last, d = np.array([0.5, -0.3]), np.array([1.0, 0.0]), np.array([-1.0, -1.0])
    products = _products(g, last, d)
    unbounded = hager_zhang(g, last, d, eta=1e9)
    assert unbounded < -0.09
    for eta, expected in ((0.0, 0.0), (0.1, -0.05), (0.4, unbounded)):
        beta = quasi_newton.HagerZhang(eta).beta(products)
        np.testing.assert_allclose(beta, expected, rtol=1e-5, atol=1e-7)
    assert (g - last) @ g < 0
    assert float(quasi_newton.PolakRibierePlus().beta(products)) == 0


@every_method
def test_factors_are_finite_without_any_change(name: str):
    zeros = np.zeros(2)
    for g in (zeros, np.ones(2)):
        assert finite(METHODS[name][0].beta(_products(g, g, zeros)))


# Quadratic functions: linear conjugate gradients


@every_method
def test_exact_searches_give_linear_conjugate_gradients(name: str):
    rng = np.random.default_rng(0)
    n = 8
    basis, _ = np.linalg.qr(rng.standard_normal((n, n)))
    matrix = basis @ np.diag(np.geomspace(1, 50, n)) @ basis.T
    b = rng.standard_normal(n)
    expected: list[np.ndarray] = []
    scipy.sparse.linalg.cg(
        matrix, b, rtol=1e-14, maxiter=n, callback=lambda x: expected.append(x.copy())
    )
    assert len(expected) == n

    a, c = jnp.asarray(matrix, FLOAT), jnp.asarray(b, FLOAT)
    opt = quasi_newton.ScaleByNonlinearCG(METHODS[name][0], np.inf)
    x = jnp.zeros(n, FLOAT)
    state = opt.init(x)
    # By the last steps in single precision, conjugacy has been lost to rounding.
    for k in range(n if X64 else 4):
        g = a @ x - c
        u, state = opt.update(g, state, x)
        x = x - u * (g @ u) / (u @ a @ u)
        np.testing.assert_allclose(x, expected[k], rtol=0, atol=1e-9 if X64 else 1e-4)
    if X64:
        np.testing.assert_allclose(x, np.linalg.solve(matrix, b), rtol=0, atol=1e-9)


# Line searches


def rosenbrock(x: Array) -> Array:
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def start(n: int) -> Array:
    return jnp.asarray(np.resize([-1.2, 1.0], n), FLOAT)


@every_method
@pytest.mark.parametrize("n", [2, 10])
def test_rosenbrock(name: str, n: int):
    x = start(n)
    gtol = 1e-5 if X64 else 1e-2
    solution = eqopt.minimize(rosenbrock, eqopt.NonlinearCG(METHODS[name][0]), x, gtol=gtol)
    assert solution.result == MinimizeResult.successful
    # From this start, in ten dimensions, some end in the other minimum, of value 3.99.
    assert float(jnp.max(jnp.abs(jax.grad(rosenbrock)(solution.params)))) <= 1.01 * gtol
    assert n > 2 or bool(jnp.all(jnp.abs(solution.params - 1) < (1e-4 if X64 else 0.05)))


@pytest.mark.skipif(not X64, reason="scipy computes in double precision")
@pytest.mark.parametrize("n", [2, 10, 50])
def test_evaluations_are_no_more_than_those_of_scipy(n: int):
    value_and_grad = jax.jit(jax.value_and_grad(rosenbrock))
    theirs = scipy.optimize.minimize(
        lambda x: tuple(map(np.asarray, value_and_grad(x))),
        np.asarray(start(n)),
        jac=True,
        method="CG",
        options={"gtol": 1e-5, "maxiter": 3000},
    )
    ours = eqopt.minimize(rosenbrock, eqopt.NonlinearCG(), start(n), gtol=1e-5)
    assert theirs.success
    assert int(ours.num_evals) <= theirs.nfev


def test_the_first_step_has_length_one_or_a_hundredth_of_the_parameters():
    opt = quasi_newton.ScaleByNonlinearCG()
    x, g = jnp.zeros(4, FLOAT), jnp.asarray([30.0, -40.0, 0.0, 0.0], FLOAT)
    u, _ = opt.update(g, opt.init(x), x)
    assert_close(u, g / 50)
    u, _ = opt.update(g / 100, opt.init(x), x)
    assert_close(u, g / 50)
    far = jnp.full(4, 1000.0, FLOAT)  # of length 2000
    u, _ = opt.update(g, opt.init(far), far)
    assert_close(u, g * 20 / 50, 1e-6)


# Restarts


class Forced(quasi_newton.AbstractConjugacy):
    """Whatever the gradients, one factor."""

    factor: Float[Array, ""]

    def beta(self, products: quasi_newton.ConjugacyProducts) -> Float[Array, ""]:
        return self.factor


def _two_steps(
    opt: Any, first: Any, second: Any, moved: float = 0.25, x: Any = None
) -> tuple[Any, Any]:
    params = jnp.zeros_like(first) if x is None else x
    u, state = opt.update(first, opt.init(params), params)
    return opt.update(second, state, step_along(params, u, moved))


@pytest.mark.parametrize("factor", [np.nan, np.inf, -np.inf, 1e3])
def test_directions_that_do_not_descend_are_restarted(factor: float):
    # Along the last direction the objective has begun to rise, so much of it is uphill.
    first, second = jnp.asarray([1.0, 0.0], FLOAT), jnp.asarray([-0.5, 1.0], FLOAT)
    opt = quasi_newton.ScaleByNonlinearCG(Forced(jnp.asarray(factor, FLOAT)))
    u, state = _two_steps(opt, first, second)
    assert_close(state.direction, -second)
    # The length still is that of the last step.
    np.testing.assert_allclose(u @ second, 0.25, rtol=1e-5)
    assert_close(u, second * 0.25 / (second @ second), 1e-5)


def test_a_factor_that_descends_is_kept():
    first, second = jnp.asarray([1.0, 0.0], FLOAT), jnp.asarray([-0.5, 1.0], FLOAT)
    opt = quasi_newton.ScaleByNonlinearCG(Forced(jnp.asarray(0.5, FLOAT)))
    _, state = _two_steps(opt, first, second)
    assert_close(state.direction, -second - 0.5 * first)


@pytest.mark.parametrize(("rtol", "kept"), [(0.3, False), (0.5, True), (np.inf, True)])
def test_gradients_that_overlap_restart(rtol: float, kept: bool):
    first, second = jnp.asarray([1.0, 0.0], FLOAT), jnp.asarray([0.5, 1.0], FLOAT)
    opt = quasi_newton.ScaleByNonlinearCG(quasi_newton.FletcherReeves(), rtol)  # the overlap is 0.4
    _, state = _two_steps(opt, first, second)
    beta = 1.25 if kept else 0.0
    assert_close(state.direction, -second - beta * first)


@every_method
@pytest.mark.parametrize("moved", [0.0, -0.25])
def test_parameters_that_have_not_moved_restart(name: str, moved: float):
    first, second = jnp.asarray([30.0, 0.0], FLOAT), jnp.asarray([-15.0, 20.0], FLOAT)
    opt = quasi_newton.ScaleByNonlinearCG(METHODS[name][0])
    x = jnp.full(2, 3.0, FLOAT)
    u, state = _two_steps(opt, first, second, moved, x)
    assert_close(state.direction, -second)
    assert_close(u, second / 25)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_is_forgotten(bad: float):
    opt = quasi_newton.ScaleByNonlinearCG()
    x = jnp.full(2, 3.0, FLOAT)
    good = jnp.asarray([-15.0, 20.0], FLOAT)
    u, state = opt.update(jnp.asarray([1.0, bad], FLOAT), opt.init(x), x)
    assert not finite(u)  # for the line search to see
    u, state = opt.update(good, state, x)
    assert_close(u, good / 25)
    assert finite(state)


@pytest.mark.parametrize("name", ["HagerZhang", "FletcherReeves"])
def test_a_failed_search_is_followed_by_steepest_descent(name: str):
    opt, x = eqopt.NonlinearCG(METHODS[name][0]), start(4)
    state = opt.init(x)
    for _ in range(3):
        x, state, _ = opt.step(rosenbrock, x, state)
    assert not np.allclose(state.states[0].direction, -state.states[0].updates)

    value, grad = jax.value_and_grad(rosenbrock)(x)
    given = {"value": value, "grad": grad}
    updates, state = opt.update(grad, state, x, **given, value_fn=lambda p: jnp.nan * jnp.sum(p))
    assert same(updates, jnp.zeros_like(x))
    updates, state = opt.update(grad, state, x, **given, value_fn=rosenbrock)
    assert_close(state.states[0].direction, -grad)
    lower = rosenbrock(eqopt.apply_updates(x, updates))
    assert float(lower) < float(value)


# Trees


def _loss(p: Any) -> Array:
    """Of every leaf; complex ones are not treated alike in their parts."""
    total = jnp.zeros((), FLOAT)
    for i, x in enumerate(jax.tree.leaves(p)):
        w = x * x - x.dtype.type(0.5)
        terms = jnp.real(w) ** 2 + (2 + i) * jnp.imag(w) ** 2
        total = total + jnp.sum(terms).astype(FLOAT)
    return total


def test_mixed_trees_descend_and_keep_their_dtypes():
    opt = eqopt.NonlinearCG()
    params = mixed(1)
    state = opt.init(params)
    before = float(_loss(params))
    for _ in range(15):
        params, state, _ = opt.step(_loss, params, state)
    assert float(_loss(params)) < 1e-3 * before
    dtypes = [x.dtype for x in jax.tree.leaves(mixed(1))]
    assert [x.dtype for x in jax.tree.leaves(params)] == dtypes
    memory = state.states[0]
    for kept in (memory.params, memory.updates, memory.direction):
        assert [x.dtype for x in jax.tree.leaves(kept)] == dtypes
        assert kept["hole"] is None
    assert same(memory.count, jnp.asarray(15, jnp.int32))


def test_leaves_without_gradient_are_left_out():
    """They count for nothing, and their memory stays."""
    opt = quasi_newton.ScaleByNonlinearCG()
    params, g, h = tree(0), tree(7), tree(9)
    u, state = opt.update(g, opt.init(params), params)
    moved = step_along(params, u, 0.25)
    h["branch"]["b"] = None
    u, after = opt.update(h, state, moved)
    assert u["branch"]["b"] is None
    for kept in ("params", "updates", "direction"):
        assert same(getattr(after, kept)["branch"]["b"], getattr(state, kept)["branch"]["b"])

    def without(t: Any) -> Any:
        return {"a": t["a"], "w": t["branch"]["w"]}

    start = eqx.tree_at(
        lambda s: (s.params, s.updates, s.direction),
        opt.init(without(params)),
        (without(state.params), without(state.updates), without(state.direction)),
    )
    start = eqx.tree_at(lambda s: s.count, start, state.count)
    alone, _ = opt.update(without(h), start, without(moved))
    assert_close(alone, without(u))


def test_the_imaginary_part_is_a_second_real_parameter():
    opt = eqopt.NonlinearCG()
    z = {"x": values((3,), 0, COMPLEX)}
    pair = {"re": jnp.real(z["x"]), "im": jnp.imag(z["x"])}

    def split_loss(p: Any) -> Array:
        return _loss({"x": jax.lax.complex(p["re"], p["im"])})

    state, split_state = opt.init(z), opt.init(pair)
    for _ in range(5):
        z, state, _ = opt.step(_loss, z, state)
        pair, split_state, _ = opt.step(split_loss, pair, split_state)
        assert_close(z["x"], jax.lax.complex(pair["re"], pair["im"]), 1e-9 if X64 else 1e-3)


# What is refused


def test_mistakes_are_named():
    wrong: Any = quasi_newton.HagerZhang
    with pytest.raises(TypeError, match="`method` must be an"):
        quasi_newton.ScaleByNonlinearCG(wrong)
    with pytest.raises(TypeError, match="`method` must be an"):
        eqopt.NonlinearCG(wrong)
    none: Any = None
    with pytest.raises(TypeError, match="`linesearch` must be a transformation"):
        eqopt.NonlinearCG(linesearch=none)
    with pytest.raises(ValueError, match="`restart_rtol` must be above 0"):
        quasi_newton.ScaleByNonlinearCG(restart_rtol=0.0)
    with pytest.raises(ValueError, match="`theta` must be above 0"):
        quasi_newton.HagerZhang(theta=0.2)
    with pytest.raises(ValueError, match="`eta` must be at least 0"):
        quasi_newton.HagerZhang(eta=-1.0)
    x = jnp.ones(2, FLOAT)
    opt = quasi_newton.ScaleByNonlinearCG()
    with pytest.raises(ValueError, match="`ScaleByNonlinearCG` needs the parameters"):
        opt.update(x, opt.init(x))
