"""Sharpness-aware minimization, against optax."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import eqopt
from tests.support.evaluations import Calls
from tests.support.toolbox import assert_close, FLOAT, tree, X64
from tests.support.trees import assert_near, random_like, random_tree

TOLERANCE = 1e-12 if X64 else 5e-6
NUM_STEPS = 60


def _radius(rho: float) -> Any:
    return eqopt.Chain(eqopt.Normalize(), eqopt.SGD(rho))


def _their_radius(rho: float) -> Any:
    return optax.chain(optax.contrib.normalize(), optax.sgd(rho))


def test_the_example_of_optax():
    # x^2 from 1, with a radius of 2: the parameters are seen at the adversary's place.
    opt = eqopt.SAM(eqopt.SGD(0.1), _radius(2.0))
    x = jnp.ones((), FLOAT)
    state = opt.init(x)
    seen, real = [], []
    for _ in range(4):
        x, state, _ = opt.step(jnp.square, x, state)
        seen.append(float(x))
        real.append(float(eqopt.eval_params(x, state)))
    np.testing.assert_allclose(seen, [3.0, 0.4, 2.4, -0.08], rtol=1e-6)
    np.testing.assert_allclose(real, [1.0, 0.4, 0.4, -0.08], rtol=1e-6)


@pytest.mark.parametrize("sync_period,reset_state", [(2, True), (3, True), (3, False)])
def test_transparent_steps_are_optax_s(sync_period: int, reset_state: bool):
    rng = np.random.default_rng(0)
    params = their_params = jax.tree.map(jnp.asarray, random_tree(rng, FLOAT))
    # Momentum, so that a reset shows.
    ours = eqopt.SAM(eqopt.Adam(0.1), eqopt.SGD(0.05, 0.9), sync_period, reset_state)
    theirs = optax.contrib.sam(
        optax.adam(0.1), optax.sgd(0.05, momentum=0.9), sync_period, reset_state
    )
    state, their_state = ours.init(params), theirs.init(their_params)
    their_update = jax.jit(theirs.update)
    for _ in range(NUM_STEPS):
        grad = random_like(rng, params)
        updates, state = ours.update(grad, state, params)
        params = eqopt.apply_updates(params, updates)
        with jax.numpy_dtype_promotion("standard"):
            their_updates, their_state = their_update(grad, their_state, their_params)
            their_params = optax.apply_updates(their_params, their_updates)
    # The parameters are the sums of 60 steps there and back, each of which is rounded.
    assert_near(params, their_params, 20 * TOLERANCE)


def test_without_an_adversary_it_is_the_optimizer():
    # optax goes back to the parameters of the step before.
    rng = np.random.default_rng(1)
    params = alone = jax.tree.map(jnp.asarray, random_tree(rng, FLOAT))
    sam, adam = eqopt.SAM(eqopt.Adam(0.1), eqopt.SGD(0.05), 1), eqopt.Adam(0.1)
    state, adam_state = sam.init(params), adam.init(params)
    for _ in range(10):
        grad = random_like(rng, params)
        updates, state = sam.update(grad, state, params)
        params = eqopt.apply_updates(params, updates)
        updates, adam_state = adam.update(grad, adam_state, alone)
        alone = eqopt.apply_updates(alone, updates)
    assert_near(params, alone, TOLERANCE)


@pytest.mark.parametrize("sync_period", [1, 2, 4])
def test_opaque_steps_are_optax_s(sync_period: int):
    def loss(p: Any, scale: Any) -> Any:
        return scale * sum(jnp.sum(jnp.cos(x) + x**2) for x in jax.tree.leaves(p))

    params = their_params = tree()
    ours = eqopt.SAM(eqopt.SGD(0.05, 0.9), _radius(0.3), sync_period, opaque_mode=True)
    theirs = optax.contrib.sam(
        optax.sgd(0.05, momentum=0.9), _their_radius(0.3), sync_period, opaque_mode=True
    )
    state, their_state = ours.init(params), theirs.init(their_params)

    @jax.jit
    def their_step(p: Any, state: Any) -> Any:
        gradient = jax.grad(lambda p, _: loss(p, 0.5))
        updates, state = theirs.update(gradient(p, 0), state, p, grad_fn=gradient)
        return optax.apply_updates(p, updates), state

    for _ in range(20):
        params, state, _ = ours.step(loss, params, state, 0.5)
        with jax.numpy_dtype_promotion("standard"):
            their_params, their_state = their_step(their_params, their_state)
    assert_close(params, their_params, 1e-11 if X64 else 1e-5)


def test_opaque_steps_evaluate_once_for_each_of_the_period_and_trace_at_most_twice():
    calls = Calls()

    def loss(p: Any) -> Any:
        return jnp.sum(calls.counted(p) ** 2)

    opt = eqopt.SAM(eqopt.SGD(0.1), _radius(0.1), 5, opaque_mode=True)
    params = jnp.ones(2, FLOAT)
    state = opt.init(params)
    assert calls.of(lambda: opt.step(loss, params, state)) == 5
    assert calls.traces <= 2


def test_two_opaque_steps_are_four_transparent_ones():
    def loss(p: Any) -> Any:
        return sum(jnp.sum(x**4 - x**2) for x in jax.tree.leaves(p))

    def run(opaque: bool, num_steps: int) -> Any:
        opt = eqopt.SAM(eqopt.Adam(0.1), _radius(0.2), opaque_mode=opaque)
        params: Any = tree()
        state = opt.init(params)
        for _ in range(num_steps):
            params, state, _ = opt.step(loss, params, state)
        return params

    assert_close(run(True, 2), run(False, 4), 1e-12 if X64 else 1e-5)


def _down(updates: Any, params: Any) -> Any:
    return -0.1 * updates


def _nan_above_two(updates: Any, params: Any) -> Any:
    return -0.1 * jnp.where(updates > 2, jnp.nan, updates)


def _nan_below_two(updates: Any, params: Any) -> Any:
    return -0.1 * jnp.where(updates < 2, jnp.nan, updates)


@pytest.mark.parametrize(
    ("real", "adversarial"), [(_down, _nan_above_two), (_nan_below_two, _down)]
)
def test_a_nan_of_the_one_that_does_not_step_is_not_carried_over(real: Any, adversarial: Any):
    # In optax both are computed and blended by arithmetic, and NaN times 0 stays.
    opt = eqopt.SAM(eqopt.Stateless(real), eqopt.Stateless(adversarial))
    params = jnp.ones(2, FLOAT)
    state = opt.init(params)
    for grad, expected in ((1.0, 1.1), (3.0, 0.7)):
        updates, state = opt.update(jnp.full(2, grad, FLOAT), state, params)
        params = eqopt.apply_updates(params, updates)
        np.testing.assert_allclose(params, expected, rtol=1e-6)


def test_gradients_are_averaged_over_a_batch():
    def loss(p: Any, x: Any) -> Any:
        return jnp.sum((p * x) ** 2)

    xs = jnp.asarray([[1.0, 2.0], [3.0, 0.5]], FLOAT)
    params = jnp.ones(2, FLOAT)
    opt = eqopt.SAM(eqopt.SGD(0.1), eqopt.SGD(0.1), 3, opaque_mode=True, batch_axis_name="batch")

    def one(x: Any) -> Any:
        grad = lax.pmean(jax.grad(loss)(params, x), "batch")
        return opt.update(grad, opt.init(params), params, value_fn=loss, x=x)[0]

    mapped = jax.vmap(one, axis_name="batch")(xs)

    def mean(p: Any, xs: Any) -> Any:
        return jnp.mean(jax.vmap(loss, (None, 0))(p, xs))

    alone = eqopt.SAM(eqopt.SGD(0.1), eqopt.SGD(0.1), 3, opaque_mode=True)
    expected, _ = alone.update(
        jax.grad(mean)(params, xs), alone.init(params), params, value_fn=mean, xs=xs
    )
    assert_close(mapped, jnp.stack([expected, expected]), 1e-12 if X64 else 1e-5)


def test_normalize():
    # optax's is NaN at a zero gradient.
    opt = eqopt.Normalize()
    for grad, expected in (
        ([3.0, 4.0], [0.6, 0.8]),
        ([0.0, 0.0], [0.0, 0.0]),
        ([np.inf, 1.0], [0.0, 0.0]),
        ([np.nan, 1.0], [0.0, 0.0]),
    ):
        updates, _ = opt.update(jnp.asarray(grad, FLOAT), opt.init(jnp.zeros(2, FLOAT)))
        np.testing.assert_allclose(updates, expected, rtol=1e-6)


def test_mistakes_are_named():
    untyped: Any = eqopt
    with pytest.raises(ValueError, match="`sync_period` must be from 1"):
        eqopt.SAM(eqopt.SGD(0.1), eqopt.SGD(0.1), 0)
    with pytest.raises(TypeError, match="`adv_optimizer` must be"):
        untyped.SAM(eqopt.SGD(0.1), None)
    opt = eqopt.SAM(eqopt.SGD(0.1), eqopt.SGD(0.1), opaque_mode=True)
    params = jnp.ones(2, FLOAT)
    with pytest.raises(ValueError, match="`SAM` needs `value_fn`"):
        opt.update(params, opt.init(params), params)


def test_a_whole_model():
    model = eqx.nn.MLP(2, 1, 4, 1, key=jax.random.key(0))
    x = jnp.ones((3, 2), FLOAT)

    def loss(model: Any, x: Any) -> Any:
        return jnp.mean(jnp.square(jax.vmap(model)(x) - 1))

    for opaque in (False, True):
        opt = eqopt.SAM(eqopt.Adam(0.05), _radius(0.05), opaque_mode=opaque)
        trained, state = model, opt.init(model)
        for _ in range(10):
            trained, state, _ = opt.step(loss, trained, state, x)
        trained = eqopt.eval_params(trained, state)
        assert isinstance(trained, eqx.nn.MLP)
        assert loss(trained, x) < loss(model, x)
