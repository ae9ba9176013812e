"""Optimizers of signs, of changes and of SM3's sums equal optax's, torch's and the papers'."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqopt
from tests.support.parity import (
    between,
    falling,
    fields,
    HALF,
    links,
    NUM_DRAWS,
    NUM_STEPS,
    params_after,
    power,
    RATE,
    row,
    towards_one,
    trajectories,
    trajectory,
)
from tests.support.toolbox import FLOAT, same, X64
from tests.support.trees import random_array, random_like

# Axes of equal size, and more of them than two.
SHAPES = {"even": (3, 4, 4, 3)}

OPTIMISTIC = {"alpha": between(0.5, 2), "beta": between(0.1, 2)}
SIGNUM = {"beta": towards_one(-2, 0)}
SM3 = {"b1": towards_one(-2, 0), "eps": power(-8, -2)}
RPROP = {
    "learning_rate": power(-3, 0),
    "eta_minus": between(0.2, 0.9),
    "eta_plus": between(1.1, 2),
    "min_step_size": power(-6, -4),
    "max_step_size": between(1.5, 3),
}


def on_vectors(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """With each number made a vector of one: optax's SM3 fails on parameters of shape `()`."""

    def as_vectors(tree: Any) -> Any:
        return jax.tree.map(jnp.atleast_1d, tree)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        out, state = tx.update(as_vectors(updates), state, None)
        return jax.tree.map(lambda x, u: jnp.reshape(x, u.shape), out, updates), state

    return optax.GradientTransformation(lambda params: tx.init(as_vectors(params)), update)


def _sm3(**h: Any) -> optax.GradientTransformation:
    return on_vectors(optax.scale_by_sm3(**h))


def _sm3_with_schedule(learning_rate: Any, momentum: Any) -> optax.GradientTransformation:
    # optax's own takes no schedule.
    return optax.chain(_sm3(b1=momentum), optax.scale_by_learning_rate(learning_rate))


ROWS = [
    row(eqopt.ScaleByOptimisticGradient, optax.scale_by_optimistic_gradient, OPTIMISTIC),
    row(
        eqopt.OptimisticGradientDescent,
        optax.optimistic_gradient_descent,
        {**RATE, **OPTIMISTIC},
    ),
    row(
        eqopt.OptimisticGradientDescent,
        optax.optimistic_gradient_descent,
        {**RATE, **OPTIMISTIC},
        scheduled="learning_rate",
    ),
    row(eqopt.ScaleBySign, optax.scale_by_sign, {}),
    row(eqopt.SignSGD, optax.sign_sgd, RATE),
    row(eqopt.SignSGD, optax.sign_sgd, RATE, scheduled="learning_rate"),
    row(eqopt.Signum, optax.signum, {**RATE, **SIGNUM}),
    row(
        eqopt.Signum,
        optax.signum,
        {**RATE, **SIGNUM},
        scheduled="learning_rate",
        accumulator_dtype=HALF,
    ),
    # optax refuses complex parameters, and a `b2` that is traced.
    row(eqopt.ScaleBySM3, _sm3, SM3, b2=0.95, real=True),
    row(eqopt.ScaleBySM3, _sm3, {"b1": SM3["b1"]}, real=True),
    row(
        eqopt.SM3,
        lambda **h: on_vectors(optax.sm3(**h)),
        {**RATE, "momentum": SM3["b1"]},
        real=True,
    ),
    row(
        eqopt.SM3,
        _sm3_with_schedule,
        {**RATE, "momentum": SM3["b1"]},
        scheduled="learning_rate",
        real=True,
    ),
]


test_trajectories_equal_those_of_optax = trajectories(ROWS, SHAPES)
test_every_field_is_varied = fields(ROWS)
test_an_optimizer_is_its_links_one_by_one = links(ROWS, 16, SHAPES)


# Rprop: optax's updates are those of the step before.


def rprop(x: Any, gradients: Any, h: dict[str, float]) -> np.ndarray:
    """iRprop-, entry by entry, in float64: the parameters after each step."""
    x = np.array(x, np.float64)
    steps, previous = np.full(x.shape, h["learning_rate"]), np.zeros(x.shape)
    found = []
    for g in np.array(gradients, np.float64):
        for i in np.ndindex(x.shape):
            if previous[i] * g[i] > 0:
                steps[i] = min(steps[i] * h["eta_plus"], h["max_step_size"])
            elif previous[i] * g[i] < 0:
                steps[i] = max(steps[i] * h["eta_minus"], h["min_step_size"])
                g[i] = 0
            x[i] -= steps[i] * np.sign(g[i])
        previous = g
        found.append(x.copy())
    return np.stack(found)


# What torch 2.13 (`torch.optim.Rprop(lr=0.1, etas=(0.4, 1.5), step_sizes=(0.03, 0.2))`, float64)
# makes of a parameter of 1 under these gradients. Each bound is reached.
GRADIENTS = [1.0, 2.0, 1.0, -1.0, -3.0, -0.5, 1.0, 0.0, 1.0, -1.0, 1.0, -2.0, -1.0]
TORCH = [0.9, 0.75, 0.55, 0.55, 0.63, 0.75, 0.75, 0.75, 0.702, 0.702, 0.672, 0.672, 0.702]
SMALL = {
    "learning_rate": 0.1,
    "eta_minus": 0.4,
    "eta_plus": 1.5,
    "min_step_size": 0.03,
    "max_step_size": 0.2,
}
_TIGHT = 1e-12 if X64 else 2e-6


@pytest.mark.parametrize("cls", [eqopt.Rprop, eqopt.ScaleByRprop])
def test_rprop_is_torchs(cls: Any):
    opt = cls(**SMALL) if cls is eqopt.Rprop else eqopt.Chain(cls(**SMALL), eqopt.Scale(-1.0))
    found = params_after(opt, np.ones(1, FLOAT), np.asarray(GRADIENTS, FLOAT)[:, None])
    np.testing.assert_allclose(found[:, 0], TORCH, rtol=_TIGHT)
    ours = rprop(np.ones(1), np.asarray(GRADIENTS)[:, None], SMALL)
    np.testing.assert_allclose(ours[:, 0], TORCH, rtol=1e-14)


@pytest.mark.parametrize("draw", range(NUM_DRAWS))
def test_rprop_is_that_of_the_paper(draw: int):
    rng = np.random.default_rng(draw)
    h = {name: float(FLOAT(sample(rng))) for name, sample in RPROP.items()}
    x = rng.standard_normal((4, 3)).astype(FLOAT)
    gradients = rng.standard_normal((NUM_STEPS, 4, 3)).astype(FLOAT)
    gradients[rng.uniform(size=gradients.shape) < 0.1] = 0
    found = params_after(eqopt.Rprop(**h), x, gradients)
    expected = rprop(x, gradients, h)
    np.testing.assert_allclose(found, expected, rtol=_TIGHT, atol=10 * _TIGHT)

    # Both parts of a complex parameter are parameters. (The gradient is as `jax.grad` has it.)
    z, halves = x[:2] + 1j * x[2:], gradients[:, :2] - 1j * gradients[:, 2:]
    found = params_after(eqopt.Rprop(**h), z, halves)
    parts = np.concatenate([np.real(found), np.imag(found)], axis=1)
    np.testing.assert_allclose(parts, expected, rtol=_TIGHT, atol=10 * _TIGHT)


def test_optaxs_rprop_is_a_step_late():
    ones = np.ones(3, FLOAT)
    h = {"learning_rate": 0.1, "min_step_size": 1e-6, "max_step_size": 50.0}
    tx: Any = optax.rprop(**h)
    state, late = tx.init(ones), []
    for _ in range(3):
        updates, state = tx.update(ones, state)
        late.append(np.asarray(updates))
    ours = np.diff(
        params_after(eqopt.Rprop(**h), ones, np.ones((2, 3), FLOAT)), axis=0, prepend=[ones]
    )
    np.testing.assert_allclose(late[0], 0)
    np.testing.assert_allclose(late[1:], ours, rtol=1e-5)


def test_rprop_knows_the_signs_of_tiny_gradients():
    # Of their product, which is zero, there is none to see.
    tiny = np.full(2, 1e-30, np.float32)
    found = params_after(eqopt.Rprop(0.25), np.zeros(2, np.float32), np.stack([tiny, tiny, -tiny]))
    np.testing.assert_allclose(found[:, 0], [-0.25, -0.55, -0.55], rtol=1e-6)


@pytest.mark.parametrize("cls", [eqopt.Rprop, eqopt.SignSGD, eqopt.OptimisticGradientDescent])
def test_a_nan_is_gone_two_steps_later(cls: Any):
    opt, ones = cls(0.25), jnp.ones(2, FLOAT)
    state = opt.init(ones)
    _, state = opt.update(jnp.asarray([np.nan, 1.0], FLOAT), state)
    _, state = opt.update(ones, state)
    updates, _ = opt.update(ones, state)
    assert bool(jnp.all(updates < 0))


# SM3: what optax does not take.


def test_sm3_takes_numbers_and_complex_parameters():
    rng = np.random.default_rng(0)
    shapes = {"number": (), "vector": (3,), "matrix": (2, 3), "kernel": (2, 3, 4)}
    dtype = np.complex128 if X64 else np.complex64
    b1, b2, eps = 0.8, 0.95, 1e-3

    params = {name: random_array(rng, shape, dtype) for name, shape in shapes.items()}
    gradients = random_like(rng, params, leading=(6,))
    opt = eqopt.ScaleBySM3(b1, b2, eps)
    state = opt.init(params)
    found = trajectory(opt, eqopt.apply_updates, params, gradients)[0]
    assert [x.shape for x in jax.tree.leaves(state.nu[0])] == [(2,), (2,), (), (3,)]
    assert [x.shape for x in jax.tree.leaves(state.nu[1:])] == [(3,), (3,), (4,)]
    for name, shape in shapes.items():
        sums = [np.zeros(n) for n in shape] or [np.zeros(())]
        m = np.zeros(shape, np.complex128)
        for g, ours in zip(
            np.conj(gradients[name].astype(np.complex128)), found[name], strict=True
        ):
            nu = np.empty(shape)
            for i in np.ndindex(shape):
                least = min(s[i[k] if i else ()] for k, s in enumerate(sums))
                nu[i] = b2 * least + (1 - b2) * abs(g[i]) ** 2
            sums = [
                np.max(nu, axis=tuple(j for j in range(nu.ndim) if j != k))
                for k in range(max(nu.ndim, 1))
            ]
            m = b1 * m + (1 - b1) * g / np.sqrt(nu + eps)
            np.testing.assert_allclose(ours, m, rtol=1e-12 if X64 else 1e-5)


def test_sm3_of_zero_gradients_is_zero():
    zeros = jnp.zeros((2, 3), FLOAT)
    opt = eqopt.ScaleBySM3(eps=0.0)
    updates, _ = opt.update(zeros, opt.init(zeros))
    assert same(updates, zeros)


def test_another_models_state_is_refused():
    opt = eqopt.ScaleBySM3()
    state = opt.init({"a": jnp.ones(2, FLOAT)})
    with pytest.raises(ValueError, match=r"`state\.mu` has it: |not in `state\.mu`|`updates"):
        opt.update({"b": jnp.ones(2, FLOAT)}, state)


# Optimistic gradients: the circles of a game.


def test_optimism_ends_the_circles():
    """In the game x * y, gradient descent of one player and ascent of the other goes outward."""

    def final(opt: Any) -> float:
        point = jnp.ones(2, FLOAT)

        def step(carry: Any, _: Any) -> Any:
            point, state = carry
            field = jnp.stack([point[1], -point[0]])
            updates, state = opt.update(field, state, point)
            return (eqopt.apply_updates(point, updates), state), None

        (point, _), _ = jax.lax.scan(step, (point, opt.init(point)), length=300)
        return float(jnp.linalg.norm(point))

    assert final(eqopt.SGD(0.1)) > 4
    assert final(eqopt.OptimisticGradientDescent(0.1)) < 0.5


def test_a_schedule_is_a_function_of_the_count():
    ones = np.ones((3, 2), FLOAT)
    found = params_after(eqopt.SM3(falling(np.asarray(0.5, FLOAT)), 0.0), ones[0], ones)
    # Of ones, the sums are 1, 2 and 3.
    steps = [0.5 / (1 + t / 8) / np.sqrt(t + 1) for t in range(3)]
    np.testing.assert_allclose(found[:, 0], 1 - np.cumsum(steps), rtol=1e-6)


@pytest.mark.parametrize("cls", [eqopt.ScaleByRprop, eqopt.Rprop])
def test_limits_with_nothing_between_are_refused(cls: Any):
    with pytest.raises(ValueError, match="`max_step_size` must be at least `min_step_size`"):
        cls(0.1, min_step_size=1.0, max_step_size=0.5)
