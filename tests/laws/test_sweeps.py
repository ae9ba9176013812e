"""Optimizers as data: derivatives of whole runs, and many runs at once."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import eqopt
from tests.support.toolbox import assert_close, FLOAT, lane, same, values, X64

RATES = (0.1, 0.2, 0.05)


def _regression(seed: int) -> tuple[Array, Array]:
    x = values((8, 3), seed)
    return x, x @ jnp.asarray([0.5, -1.0, 2.0], FLOAT) + 0.1 * values((8,), seed + 1)


def _squares(w: Array, data: tuple[Array, Array]) -> Array:
    x, y = data
    return jnp.mean(jnp.square(x @ w - y))


def _validation_loss(opt: Any) -> Array:
    """The loss on other data after ten steps of training."""
    w, train = jnp.zeros(3, FLOAT), _regression(0)
    state = opt.init(w)

    for _ in range(10):
        updates, state = opt.update(jax.grad(_squares)(w, train), state, w)
        w = eqopt.apply_updates(w, updates)
    return _squares(w, _regression(50))


@pytest.mark.parametrize(
    "build",
    [
        eqopt.SGD,
        lambda rate: eqopt.SGD(rate, 0.9, nesterov=True),
        eqopt.Adam,
        eqopt.NAdamW,
        lambda rate: eqopt.RMSProp(rate, momentum=0.5),
        lambda rate: eqopt.Adam(eqopt.Linear(rate, 0.01, 10)),
        lambda rate: eqopt.SGD(0.1, momentum=10 * rate),
    ],
    ids=["SGD", "SGD-nesterov", "Adam", "NAdamW", "RMSProp", "Adam-schedule", "momentum"],
)
def test_the_derivative_of_a_validation_loss(build: Callable[[Any], Any]):
    @jax.jit
    @jax.value_and_grad
    def run(rate: Array) -> Array:
        return _validation_loss(build(rate))

    rate = jnp.asarray(0.05, FLOAT)
    _, derivative = run(rate)
    # A central difference of float32 numbers has an error of 1e-7 / h, so h is large, and so is the
    # error of the difference itself, h**2.
    h = 1e-5 if X64 else 1e-3
    difference = (run(rate + h)[0] - run(rate - h)[0]) / (2 * h)
    assert abs(difference) > 1e-3
    np.testing.assert_allclose(derivative, difference, rtol=1e-6 if X64 else 1e-2)


def test_three_rates_train_three_models_at_once():
    x, y = values((8, 3), 0), values((8, 2), 1)
    model = eqx.nn.MLP(3, 2, 4, 1, dtype=FLOAT, key=jax.random.key(0))

    def loss(model: eqx.nn.MLP) -> Array:
        return jnp.mean(jnp.square(jax.vmap(model)(x) - y))

    @eqx.filter_jit
    def train_step(opt: Any, model: Any, state: Any) -> Any:
        value, gradients = eqx.filter_value_and_grad(loss)(model)
        updates, state = opt.update(gradients, state, model)
        return eqopt.apply_updates(model, updates), state, value

    rates = jnp.asarray(RATES, FLOAT)
    opts = eqx.filter_vmap(eqopt.Adam)(rates)
    assert opts.learning_rate.shape == (3,)
    models = eqx.filter_vmap(lambda _: model)(rates)
    states = eqx.filter_vmap(lambda o, m: o.init(m))(opts, models)
    losses = value = jnp.zeros(())
    for _ in range(3):
        models, states, losses = eqx.filter_vmap(train_step)(opts, models, states)
    assert losses.shape == (3,) and len(set(losses.tolist())) == 3

    for i, rate in enumerate(RATES):
        opt = eqopt.Adam(rate)
        alone, state = model, opt.init(model)
        for _ in range(3):
            alone, state, value = train_step(opt, alone, state)
        of_sweep = lane(models, i)
        arrays, others = eqx.partition((of_sweep, alone), eqx.is_array)
        assert_close(arrays[0], arrays[1], 1e-12 if X64 else 1e-5)
        assert same(others[0], others[1])
        np.testing.assert_allclose(losses[i], value, rtol=1e-5)
