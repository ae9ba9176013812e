"""Optimizers that find their own rates, and dual averaging: what optax cannot judge."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import eqopt
from tests.parity.test_learning_rate_free import ROWS
from tests.support.parity import problem
from tests.support.toolbox import FLOAT, X64
from tests.support.trees import assert_near

# Trajectories of more than the harness has: states too, and any gradients.


def run(
    opt: Any, params: Any, gradients: Any, values: Any = None, apply: Any = eqopt.apply_updates
) -> tuple[Any, Any, Any]:
    """The updates and the parameters after each step, and the last state."""

    def step(carry: Any, x: Any) -> tuple[Any, Any]:
        params, state = carry
        gradient, given = x
        updates, state = opt.update(gradient, state, params, **given)
        params = apply(params, updates)
        return (params, state), (updates, params)

    @eqx.filter_jit
    def steps() -> Any:
        given = {} if values is None else {"value": values}
        return lax.scan(step, (params, opt.init(params)), (gradients, given))

    (_, state), (updates, after) = steps()
    return updates, after, state


@pytest.mark.parametrize("cls", [eqopt.DAdaptAdamW, eqopt.Prodigy])
def test_estimates_that_grow_equal_those_of_optax(cls: Any):
    """Of gradients without a trend there is little to be learned; these have one."""
    (row, *_) = [x for x in ROWS if x.cls is cls]
    h, params, gradients = problem(row, 0, 20)
    # What decays in proportion to the rate explodes together with it.
    h |= {"learning_rate": np.ones((), FLOAT)} | dict.fromkeys(
        h.keys() & {"weight_decay"}, np.zeros((), FLOAT)
    )
    gradients = jax.tree.map(lambda g: g / 4 + g[:1], gradients)
    _, left, state = run(row.ours(h), params, gradients)
    with jax.numpy_dtype_promotion("standard"):
        _, right, theirs = run(row.theirs(h), params, gradients, apply=optax.apply_updates)
    assert_near(left, right, 1e-11 if X64 else 2e-4)
    found = state.states[0].estim_lr
    assert found > 5 * h.get("estim_lr0", 1e-6)
    np.testing.assert_allclose(found, theirs.estim_lr, rtol=1e-11 if X64 else 2e-4)


# A complex plane that is turned: nothing changes but the direction of everything.

_TURNED = {
    "COCOB": lambda: eqopt.COCOB(0.3, 5.0, 1e-3, 0.01),
    "DAdaptAdamW": lambda: eqopt.DAdaptAdamW(0.7, (0.8, 0.95), 1e-3, 0.02, 0.01),
    "DoG": lambda: eqopt.DoG(0.7, ("heuristic", 0.01), 1e-3, 0.01),
    "DoWG": lambda: eqopt.DoWG(0.7, 0.02, 1e-3, 0.01),
    "MADGRAD": lambda: eqopt.MADGRAD(0.3, 0.7, 0.01, 1e-3),
    "MoMo": lambda: eqopt.MoMo(0.3, 0.7, -0.5, 0.01, True),
    "MoMoAdam": lambda: eqopt.MoMoAdam(0.3, 0.7, 0.95, 1e-3, -0.5, 0.01, True),
    "Prodigy": lambda: eqopt.Prodigy(0.7, (0.8, 0.95), None, 1e-3, 0.02, 1.5, 0.01),
    "ScaleByDistanceOverGradients": lambda: eqopt.ScaleByDistanceOverGradients(
        0.01, 1e-3, None, -0.7
    ),
}


@pytest.mark.parametrize("name", _TURNED)
def test_complex_parameters_are_measured_by_their_moduli(name: str):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 2)).astype(FLOAT)
    gradients = (rng.standard_normal((8, 3, 2)) + 0.5).astype(FLOAT)
    values = rng.uniform(1, 3, 8).astype(FLOAT)
    dtype = np.result_type(FLOAT, np.complex64)
    turn = np.asarray(np.exp(0.7j), dtype)
    opt = _TURNED[name]()
    updates, params, _ = run(opt, x, gradients, values)
    # What `jax.grad` gives is the conjugate of the direction of ascent.
    turned, after, _ = run(opt, turn * x, np.conj(turn * gradients), values)
    tolerance = 1e-11 if X64 else 1e-4
    assert_near(turned, turn * np.asarray(updates), tolerance)
    assert_near(after, turn * np.asarray(params), tolerance)


# What is relative to the first parameters has all its digits.


def test_cocob_keeps_the_digits_of_small_steps():
    rng = np.random.default_rng(0)
    x = (1e4 + rng.standard_normal(5)).astype(FLOAT)
    g = rng.standard_normal(5).astype(FLOAT)
    opt = eqopt.COCOB(alpha=50)
    updates, _ = opt.update(g, opt.init(x), x)
    np.testing.assert_allclose(updates, -np.sign(g) / 50, rtol=1e-14 if X64 else 1e-6)


def test_madgrad_keeps_the_digits_of_small_steps():
    rng = np.random.default_rng(0)
    x = (1e4 + rng.standard_normal(5)).astype(FLOAT)
    g = rng.standard_normal(5).astype(FLOAT)
    opt = eqopt.MADGRAD(0.125, momentum=0.5, eps=0.0)
    updates, _ = opt.update(g, opt.init(x), x)
    # With the sums of one step: half of (g / 8) / (g^2 / 8)^(1/3).
    expected = -np.sign(g) * np.abs(np.float64(g)) ** (1 / 3) / 8
    np.testing.assert_allclose(updates, expected, rtol=1e-14 if X64 else 1e-6)


# Where there is nothing to estimate from.


@pytest.mark.parametrize("make", [eqopt.DAdaptAdamW, eqopt.Prodigy])
def test_a_warm_up_may_begin_at_zero(make: Any):
    x = np.asarray([1.0, -2.0, 3.0], FLOAT)
    opt = make(eqopt.Linear(0.0, 1.0, 4), estim_lr0=1e-2)
    updates, params, state = run(opt, x, np.ones((30, 3), FLOAT))
    np.testing.assert_array_equal(updates[0], 0)
    assert np.all(np.isfinite(params))
    assert state.states[0].estim_lr > 1e-2
    assert np.all(np.diff(params, axis=0) <= 0)


@pytest.mark.parametrize("name", _TURNED)
def test_a_gradient_of_zero_does_no_harm(name: str):
    x, g = np.asarray([1.0, -2.0, 0.0], FLOAT), np.asarray([0.5, -1.0, 0.25], FLOAT)
    decayless = {"weight_decay": 0.0} if name != "ScaleByDistanceOverGradients" else {}
    opt = _TURNED[name]().replace(**decayless)
    gradients, values = np.stack([0 * g, g, g]), np.asarray([2, 2, 1.5], FLOAT)
    updates, _, _ = run(opt, x, gradients, values)
    np.testing.assert_array_equal(updates[0], 0)
    assert np.all(np.isfinite(updates)) and np.all(updates[2] * g < 0)


# MoMo with weight decay, by the papers' own formulas in NumPy and float64.


def _data(num_steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    x = rng.standard_normal(4).astype(FLOAT)
    gradients = (rng.standard_normal((num_steps, 4)) + 0.3).astype(FLOAT)
    return x, gradients, rng.uniform(0.5, 4, num_steps).astype(FLOAT)


def _momo(
    x: Any, gradients: Any, values: Any, *, rate: float, decay: float, adapt: bool, adam: bool
) -> list[np.ndarray]:
    """The recursions of MoMo and of MoMo-Adam, with and without an estimate of the bound."""
    b1, b2, eps, least = 0.8, 0.95, 1e-3, 0.3
    x, f, d, v, gamma, bound = x.astype(np.float64), 0.0, np.zeros(4), np.zeros(4), 0.0, least
    found = []
    for t, (g, value) in enumerate(zip(gradients.astype(np.float64), values, strict=True), 1):
        b = b1 if adam or t > 1 else 0.0
        f, d, gamma = b * f + (1 - b) * value, b * d + (1 - b) * g, b * gamma + (1 - b) * (g @ x)
        v = b2 * v + (1 - b2) * g**2
        rho = 1 - b1**t if adam else 1.0
        size = np.sqrt(v / (1 - b2**t)) + eps if adam else np.ones(4)
        grown, norm = 1 + rate * decay, d @ (d / size)
        if adapt and grown * (f - gamma) + d @ x < grown * rho * bound:
            bound = max((grown * (f - gamma) + d @ x) / (2 * grown * rho), least)
        tau = min(rate / rho, max(grown * (f - gamma - rho * bound) + d @ x, 0) / norm)
        if adapt:
            bound = max((f + d @ x - gamma - tau * norm / 2) / rho, least)
        x = (x - tau * d / size) / grown
        found.append(x)
    return found


@pytest.mark.parametrize("adapt", [False, True])
@pytest.mark.parametrize("adam", [False, True])
def test_momo_with_weight_decay_is_that_of_the_paper(adam: bool, adapt: bool):
    x, gradients, values = _data(20)
    opt: Any = (
        eqopt.MoMoAdam(0.4, 0.8, 0.95, 1e-3, 0.3, 0.2, adapt)
        if adam
        else eqopt.MoMo(0.4, 0.8, 0.3, 0.2, adapt)
    )
    _, found, _ = run(opt, x, gradients, values)
    expected = _momo(x, gradients, values, rate=0.4, decay=0.2, adapt=adapt, adam=adam)
    tolerance = 1e-12 if X64 else 2e-5
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("rate", [0.05, 5.0])
def test_a_step_of_momo_is_the_least_of_its_model(rate: float):
    """Whether the step ends at the rate or at the bound, no point near by is better."""
    decay, bound = 0.3, 0.2
    x, (g, *_), (value, *_) = _data(1)
    opt = eqopt.MoMo(rate, lower_bound=bound, weight_decay=decay)
    updates, _ = opt.update(g, opt.init(x), x, value=value)
    best = np.asarray(x + updates, np.float64)

    def model(y: Any) -> Any:
        linear = np.maximum(value + (y - x) @ np.float64(g), bound)
        near, small = np.sum((y - x) ** 2, -1) / (2 * rate), np.sum(y**2, -1) * decay / 2
        return linear + near + small

    others = best + 1e-2 * np.random.default_rng(0).standard_normal((200, 4))
    assert np.all(model(others) > model(best))
    # The rate was the smaller one in one case, and not in the other.
    step = float(np.linalg.norm(x - best * (1 + rate * decay)) / np.linalg.norm(g))
    assert (step < 0.99 * rate) == (rate == 5.0)


# Arguments.

_ONE: Any = (0.9,)


def test_the_pairs_of_optax_are_understood():
    kinds = {
        "distance": eqopt.options.InitialDistance,
        "heuristic": eqopt.options.InitialDistanceHeuristic,
        "learning_rate": eqopt.options.InitialLearningRate,
    }
    for name, kind in kinds.items():
        assert repr(eqopt.DoG(init_step=(name, 0.25))) == repr(eqopt.DoG(init_step=kind(0.25)))


@pytest.mark.parametrize("value", [("nearby", 0.1), "heuristic", 0.1, ("distance", 0.1, 0.2)])
def test_another_initial_step_is_refused(value: Any):
    with pytest.raises(ValueError, match="`init_step` must be"):
        eqopt.DoG(init_step=value)


def test_betas_are_a_pair():
    with pytest.raises(ValueError, match="`betas` must be a pair"):
        eqopt.Prodigy(betas=_ONE)
    with pytest.raises(ValueError, match=r"`betas\[1\]` must be"):
        eqopt.DAdaptAdamW(betas=(0.9, 1.0))


def test_scalar_parameters_stay_scalars():
    opt = eqopt.ScaleByDistanceOverGradients(0.5, 0.0)
    x = jnp.asarray(3.0, FLOAT)
    updates, _ = opt.update(jnp.asarray(2.0, FLOAT), opt.init(x), x)
    assert updates.shape == ()
    # The gradient over its own modulus, times the part of `1 + |x|`.
    np.testing.assert_allclose(updates, 2.0, rtol=1e-6)


def test_dog_begins_with_the_first_gradient_that_is_not_zero():
    """By optax, with a first learning rate, it stays where it is for ever then."""
    opt = eqopt.DoG(1.0, init_step=eqopt.options.InitialLearningRate(0.1), eps=1e-8)
    x, slope = jnp.ones(2, FLOAT), jnp.asarray([3.0, -4.0], FLOAT)
    state = opt.init(x)
    updates, state = opt.update(jnp.zeros_like(x), state, x)
    assert jnp.all(updates == 0)
    updates, state = opt.update(slope, state, x)
    np.testing.assert_allclose(updates, -0.1 * slope, rtol=1e-6)
    # Then by the rule: the distance gone, over the root of the sum of squares.
    x = eqopt.apply_updates(x, updates)
    updates, _ = opt.update(slope, state, x)
    np.testing.assert_allclose(updates, -0.5 / np.sqrt(50.0) * slope, rtol=1e-6)
