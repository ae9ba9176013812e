"""L-BFGS and BFGS: optax's where it is right, and the formulas in NumPy."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array

import eqopt
from tests.support.toolbox import assert_close, FLOAT, tree, X64

RTOL = 1e-10 if X64 else 1e-3


def convex(params: Any) -> Array:
    """Convex, and no quadratic; curvature differs from number to number."""
    leaves = [jnp.ravel(x) for x in jax.tree.leaves(params)]
    x = jnp.concatenate(leaves)
    scales = jnp.linspace(0.5, 3, x.size, dtype=x.dtype)
    return jnp.sum(scales * jnp.square(x)) + jnp.sum(jnp.square(jnp.square(x - 0.3)))


@pytest.mark.parametrize("memory_size", [1, 3, 10])
@pytest.mark.parametrize("scaled", [True, False])
def test_the_plain_transformation_is_optax_s(memory_size: int, scaled: bool):
    ours = eqopt.ScaleByLBFGS(
        memory_size,
        scaled,
        first_step_rtol=0.0,
        init_matrix=eqopt.quasi_newton.ScalarMatrix(),
        secant=eqopt.quasi_newton.PlainSecant(),
    )
    theirs = optax.scale_by_lbfgs(memory_size, scaled)
    params = tree()
    state, other = ours.init(params), theirs.init(params)
    for _ in range(12):
        grad = jax.grad(convex)(params)
        direction, state = ours.update(grad, state, params)
        with jax.numpy_dtype_promotion("standard"):
            expected, other = jax.jit(theirs.update)(grad, other, params)
        assert_close(direction, expected, RTOL)
        params = jax.tree.map(lambda x, d: x - 0.2 * d, params, direction)


def _run(opt: Any, start: np.ndarray, num_steps: int) -> list[tuple[Any, ...]]:
    """Points, values, gradients and directions of a run with fixed steps."""
    x = jnp.asarray(start, FLOAT)
    state, found = opt.init(x), []
    for _ in range(num_steps):
        value, grad = jax.value_and_grad(convex)(x)
        direction, state = opt.update(grad, state, x, value=value)
        found.append(tuple(np.asarray(a, np.float64) for a in (x, value, grad, direction)))
        x = x - 0.3 * direction
    return found


def _pairs(found: list[tuple[Any, ...]], *, modified: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    pairs = []
    for (x, f, g, _), (x1, f1, g1, _) in itertools.pairwise(found):
        s, y = x1 - x, g1 - g
        if modified:
            theta = 6 * (f - f1) + 3 * (g + g1) @ s
            if abs(f - f1) > np.sqrt(np.finfo(FLOAT).eps) * abs(f) and theta > -s @ y / 2:
                y = y + min(theta, 2 * abs(s @ y)) * s / (s @ s)
        pairs.append((s, y))
    return pairs


def _bfgs(matrix: np.ndarray, s: np.ndarray, y: np.ndarray) -> np.ndarray:
    """One update of the inverse, by its formula."""
    rho, one = 1 / (s @ y), np.eye(len(s))
    left = one - rho * np.outer(s, y)
    return left @ matrix @ left.T + rho * np.outer(s, s)


def _diagonal(pairs: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    s, y = pairs[0]
    d = np.full(len(s), s @ y / (y @ y))
    for s, y in pairs:
        t = y @ (d * y) / (s @ y)
        new = 1 / (t / d + y**2 / (s @ y) - t * (s / d) ** 2 / (s @ (s / d)))
        d = new if np.all(np.isfinite(new) & (new > 0)) else d
    return d * (s @ y) / (y @ (d * y))


START = np.array([1.0, -2.0, 0.7, 1.5, -0.4])
STEPS = 6


@pytest.mark.parametrize("modified", [True, False])
@pytest.mark.parametrize("diagonal", [True, False])
def test_the_direction_is_the_matrix_times_the_gradient(modified: bool, diagonal: bool):
    opt = eqopt.ScaleByLBFGS(
        10,
        init_matrix=eqopt.quasi_newton.DiagonalMatrix()
        if diagonal
        else eqopt.quasi_newton.ScalarMatrix(),
        secant=eqopt.quasi_newton.ModifiedSecant()
        if modified
        else eqopt.quasi_newton.PlainSecant(),
    )
    found = _run(opt, START, STEPS)
    for k in range(1, STEPS):
        pairs = _pairs(found[: k + 1], modified=modified)
        s, y = pairs[-1]
        first = np.diag(_diagonal(pairs)) if diagonal else s @ y / (y @ y) * np.eye(len(s))
        matrix = first
        for s, y in pairs:
            matrix = _bfgs(matrix, s, y)
        np.testing.assert_allclose(found[k][3], matrix @ found[k][2], rtol=1e-8 if X64 else 2e-2)


def test_the_memory_forgets_the_oldest():
    opt = eqopt.ScaleByLBFGS(
        2, init_matrix=eqopt.quasi_newton.ScalarMatrix(), secant=eqopt.quasi_newton.PlainSecant()
    )
    found = _run(opt, START, STEPS)
    pairs = _pairs(found, modified=False)[-2:]
    s, y = pairs[-1]
    matrix = s @ y / (y @ y) * np.eye(len(s))
    for s, y in pairs:
        matrix = _bfgs(matrix, s, y)
    expected = matrix @ found[-1][2]
    np.testing.assert_allclose(found[-1][3], expected, rtol=1e-8 if X64 else 2e-2)


@pytest.mark.parametrize("modified", [True, False])
def test_the_dense_matrix(modified: bool):
    secant = eqopt.quasi_newton.ModifiedSecant() if modified else eqopt.quasi_newton.PlainSecant()
    found = _run(eqopt.quasi_newton.ScaleByBFGS(secant=secant), START, STEPS)
    pairs = _pairs(found, modified=modified)
    s, y = pairs[0]
    matrix = s @ y / (y @ y) * np.eye(len(s))
    for k, (s, y) in enumerate(pairs, 1):
        matrix = _bfgs(matrix, s, y)
        np.testing.assert_allclose(found[k][3], matrix @ found[k][2], rtol=1e-8 if X64 else 2e-2)


def _self_scaled(matrix: np.ndarray, s: np.ndarray, y: np.ndarray, *, broyden: bool) -> np.ndarray:
    """The paper's equations 9 to 23, with the inverse of the matrix itself."""
    sy, hy = s @ y, matrix @ y
    h, b = y @ hy / sy, s @ np.linalg.solve(matrix, s) / sy
    theta, power = 0.0, 1 / (1 - len(s))
    if broyden:
        a = h * b - 1
        low = min(1.0, h * (1 - np.sqrt(a / (a + 1))))
        theta = max((low - 1) / a, min(1 / low, (1 - b) / b))
        sigma, least = 1 + a * theta, min(1.0, 1 / b)
        phi = (1 - theta) / sigma
        if theta > 0:
            tau = least * min(sigma**power, 1 / theta)
        else:
            tau = min(least * sigma**power, sigma)
    else:
        phi, tau = 1.0, min(1.0, 1 / b)
    v = np.sqrt(y @ hy) * (s / sy - hy / (y @ hy))
    inside = matrix - np.outer(hy, hy) / (y @ hy) + phi * np.outer(v, v)
    return inside / tau + np.outer(s, s) / sy


@pytest.mark.parametrize("broyden", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_self_scaled_updates(broyden: bool, seed: int):
    rules = eqopt.quasi_newton
    rule = rules.SelfScaledBroyden() if broyden else rules.SelfScaledBFGS()
    opt = rules.ScaleByBFGS(update_rule=rule, secant=rules.PlainSecant())
    start = np.random.default_rng(seed).normal(size=5)
    found = _run(opt, start, STEPS)
    pairs = _pairs(found, modified=False)
    s, y = pairs[0]
    matrix, plain = (_bfgs(s @ y / (y @ y) * np.eye(len(s)), s, y) for _ in range(2))
    for k, (s, y) in enumerate(pairs[1:], 2):
        matrix, plain = _self_scaled(matrix, s, y, broyden=broyden), _bfgs(plain, s, y)
        expected = matrix @ found[k][2]
        np.testing.assert_allclose(found[k][3], expected, rtol=1e-7 if X64 else 5e-2)
    assert not np.allclose(matrix, plain, rtol=0.1)


def test_every_update_rule_converges():
    def rosenbrock(x: Array) -> Array:
        return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)

    for rule in ("BFGSUpdate", "SelfScaledBFGS", "SelfScaledBroyden"):
        opt = eqopt.BFGS(update_rule=getattr(eqopt.quasi_newton, rule)())
        solution = eqopt.minimize(rosenbrock, opt, jnp.full(6, 0.5, FLOAT))
        np.testing.assert_allclose(solution.params, 1, atol=1e-5 if X64 else 2e-2)
    with pytest.raises(TypeError, match="`update_rule` must be"):
        wrong: Any = "SSBroyden"
        eqopt.BFGS(update_rule=wrong)


@pytest.mark.parametrize("make", [eqopt.ScaleByLBFGS, eqopt.quasi_newton.ScaleByBFGS])
def test_negative_curvature_is_skipped_and_the_direction_descends(make: Any):
    # x**4 / 4 - x**2 / 2 is concave around 0.
    grads = jax.grad(lambda x: jnp.sum(x**4 / 4 - x**2 / 2))
    opt, x = make(), jnp.asarray([0.1, -0.2, 0.3], FLOAT)
    state, num_pairs = opt.init(x), []
    for _ in range(12):
        grad = grads(x)
        direction, state = opt.update(grad, state, x)
        assert jnp.vdot(direction, grad) > 0
        num_pairs.append(int(state.num_pairs))
        x = x - 0.3 * direction
    assert num_pairs[1] == 0 and num_pairs[-1] > 0


@pytest.mark.parametrize("make", [eqopt.ScaleByLBFGS, eqopt.quasi_newton.ScaleByBFGS])
def test_parameters_that_stay_make_it_forget(make: Any):
    opt, x = make(), jnp.asarray(START, FLOAT)
    state = opt.init(x)
    for _ in range(4):
        direction, state = opt.update(jax.grad(convex)(x), state, x)
        x = x - 0.3 * direction
    _, state = opt.update(jax.grad(convex)(x), state, x)
    assert state.num_pairs > 0
    direction, state = opt.update(jax.grad(convex)(x), state, x)
    assert state.num_pairs == 0
    grad = jax.grad(convex)(x)
    assert_close(direction, grad * jnp.minimum(1, 1 / jnp.linalg.norm(grad)), RTOL)


# A diagonal matrix has one entry for a complex number, so that this does not hold of it.
@pytest.mark.parametrize(
    "make",
    [
        lambda: eqopt.ScaleByLBFGS(init_matrix=eqopt.quasi_newton.ScalarMatrix()),
        eqopt.quasi_newton.ScaleByBFGS,
    ],
    ids=["L-BFGS", "BFGS"],
)
def test_complex_and_mixed_trees_are_their_real_parts(make: Any):
    z = np.array([1 + 2j, -0.5 + 0.1j], np.complex128 if X64 else np.complex64)
    params = {"x": jnp.asarray(START, FLOAT), "z": jnp.asarray(z)}
    reals = {"x": params["x"], "zi": params["z"].imag, "zr": params["z"].real}

    def of_reals(p: Any) -> Array:
        return convex({"a": p["x"], "b": p["zr"], "c": 2 * p["zi"]})

    def of_complex(p: Any) -> Array:
        return of_reals({"x": p["x"], "zi": p["z"].imag, "zr": p["z"].real})

    opt = make()
    state, real_state = opt.init(params), opt.init(reals)
    for _ in range(5):
        direction, state = opt.update(jax.grad(of_complex)(params), state, params)
        real, real_state = opt.update(jax.grad(of_reals)(reals), real_state, reals)
        got = {"x": direction["x"], "zi": direction["z"].imag, "zr": direction["z"].real}
        assert_close(got, real, 1e-8 if X64 else 1e-2)
        params = jax.tree.map(lambda x, d: x - 0.2 * d, params, direction)
        reals = jax.tree.map(lambda x, d: x - 0.2 * d, reals, real)


def test_the_dtype_of_the_memory():
    params = {"h": jnp.ones(3, jnp.bfloat16), "f": jnp.ones(2, np.float32)}
    state = eqopt.ScaleByLBFGS(4).init(params)
    assert state.diff_params_memory["h"].dtype == np.float32
    assert state.diff_params_memory["h"].shape == (4, 3)
    state = eqopt.ScaleByLBFGS(4, memory_dtype=jnp.bfloat16).init(params)
    assert state.diff_updates_memory["f"].dtype == jnp.bfloat16
    assert state.params["f"].dtype == np.float32  # differences are taken in full precision


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="`memory_size` must be at least 1"):
        eqopt.LBFGS(memory_size=0)
    x = jnp.asarray(START, FLOAT)
    opts: tuple[Any, ...] = (eqopt.ScaleByLBFGS(), eqopt.quasi_newton.ScaleByBFGS())
    for opt in opts:
        with pytest.raises(ValueError, match="needs the parameters"):
            opt.update(x, opt.init(x))
