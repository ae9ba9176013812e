"""PRNG keys that an optimizer, a state or a `Fit` keeps."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqopt
from eqopt._base.converters import float_dtype
from tests.support.copying import through_a_file
from tests.support.toolbox import same, X64

FLOAT = float_dtype()
IMPLS = ["threefry2x32", "rbg", "unsafe_rbg"]
every_impl = pytest.mark.parametrize("impl", IMPLS)

MAKERS: dict[str, Callable[[Any], Any]] = {
    "NoisySGD": lambda key: eqopt.NoisySGD(0.1, key=key),
    "AddNoise": lambda key: eqopt.AddNoise(0.1, 0.5, key),
    "DifferentiallyPrivateAggregate": lambda key: eqopt.DifferentiallyPrivateAggregate(
        1.0, 0.5, key
    ),
    "DPSGD": lambda key: eqopt.DPSGD(0.1, 1.0, 0.5, key),
    "HutchinsonEstimatorDiagHessian": eqopt.HutchinsonEstimatorDiagHessian,
    "Chain": lambda key: eqopt.Chain(eqopt.Scale(2.0), eqopt.AddNoise(0.1, 0.5, key)),
    "InjectHyperparams": lambda key: eqopt.InjectHyperparams(eqopt.NoisySGD)(0.1, key=key),
}
every_maker = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


def _quartic(params: Any) -> Any:
    return jnp.sum(params) ** 4


def _updates(opt: Any, num: int = 2, state: Any = None) -> Any:
    """The last of some updates, and the state then."""
    params = jnp.linspace(1, 2, 16, dtype=FLOAT)
    state = opt.init(params) if state is None else state
    # Of two examples, for those who want the gradients of examples.
    wants = isinstance(opt, eqopt.DPSGD | eqopt.DifferentiallyPrivateAggregate)
    gradients = jnp.stack([params, params / 2]) if wants else params
    updates = None
    for _ in range(num):
        updates, state = opt.update(gradients, state, params, value_fn=_quartic)
    return updates, state


@every_impl
@every_maker
def test_an_optimizer_goes_through_a_file(make: Callable[[Any], Any], impl: str):
    opt = make(jax.random.key(3, impl=impl))
    updates, state = _updates(opt)
    expected, _ = _updates(opt, 1, state)

    fresh = make(jax.random.key(0, impl=impl))
    other, _ = _updates(fresh)
    assert not same(other, updates)
    loaded, loaded_state = through_a_file((opt, state), (fresh, fresh.init(jnp.ones(3, FLOAT))))
    assert same((loaded, loaded_state), (opt, state))
    assert jax.tree.structure(loaded) == jax.tree.structure(opt)
    assert same(_updates(loaded)[0], updates)
    assert same(_updates(loaded, 1, loaded_state)[0], expected)

    if not isinstance(opt, eqopt.DPSGD | eqopt.DifferentiallyPrivateAggregate):
        params = jnp.ones(3, FLOAT)
        bundle = eqopt.Optimizer.create(opt, params).step(_quartic)[0]
        again = through_a_file(bundle, eqopt.Optimizer.create(fresh, params))
        assert same(again.step(_quartic)[0].target, bundle.step(_quartic)[0].target)


@every_maker
def test_a_typed_key_draws_what_its_words_draw(make: Callable[[Any], Any]):
    updates, _ = _updates(make(jax.random.key(3)))
    for words in (jax.random.PRNGKey(3), np.asarray([0, 3], np.uint32)):
        assert same(_updates(make(words))[0], updates)


@every_impl
def test_noise_is_that_of_the_key(impl: str):
    key = jax.random.key(3, impl=impl)
    updates, state = _updates(eqopt.AddNoise(1.0, 0.0, key), 1)
    after, own = jax.random.split(key)
    noise = jax.random.normal(jax.random.split(own, 1)[0], (16,), FLOAT)
    expected = np.linspace(1, 2, 16) + np.asarray(noise)
    tolerance = 1e-12 if X64 else 1e-6
    np.testing.assert_allclose(updates, expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(state.key, jax.random.key_data(after))


@every_impl
def test_the_key_of_an_optimizer(impl: str):
    key = jax.random.key(3, impl=impl)
    opt = eqopt.NoisySGD(0.1, key=key)
    assert isinstance(opt.key, eqopt.states.KeyData) and same(opt.key.wrap(), key)
    assert repr(opt).startswith("NoisySGD(learning_rate=0.1") and f"KeyData({impl})" in repr(opt)

    other = jax.random.key(4, impl=impl)
    expected, _ = _updates(eqopt.NoisySGD(0.1, key=other))
    assert same(_updates(opt.replace(key=other))[0], expected)
    assert same(_updates(eqopt.NoisySGD(0.1, key=opt.replace(key=other).key))[0], expected)
    for placed in (other, eqopt.states.KeyData(other)):
        assert same(_updates(eqx.tree_at(lambda o: o.key, opt, placed))[0], expected)
    assert same(opt.replace(learning_rate=0.2).key.wrap(), key)
    # The key is no hyper-parameter.
    params = jnp.ones(3, FLOAT)
    assert "key" not in eqopt.hyperparameters(opt, opt.init(params))
    assert same(eqx.filter_jit(lambda o: o)(opt).key.wrap(), key)


@every_impl
def test_an_optimizer_for_each_of_several_keys(impl: str):
    keys = jax.random.split(jax.random.key(3, impl=impl), 3)
    sweep = eqx.filter_vmap(lambda key: eqopt.NoisySGD(0.1, key=key))(keys)
    assert same(sweep.key.wrap(), keys)
    found = eqx.filter_vmap(lambda opt: _updates(opt)[0])(sweep)
    if impl == "threefry2x32":  # the draws of the others are not the same under `vmap`
        for x, key in zip(found, keys, strict=True):
            expected = _updates(eqopt.NoisySGD(0.1, key=key))[0]
            np.testing.assert_allclose(x, expected, rtol=1e-12 if X64 else 1e-6)
    fresh = eqx.filter_vmap(lambda key: eqopt.NoisySGD(0.5, key=key))(keys[::-1])
    assert same(through_a_file(sweep, fresh), sweep)
    with pytest.raises(ValueError, match=r"`key` must be one PRNG key; got an array of shape \(3,"):
        eqopt.NoisySGD(0.1, key=sweep.key)


def test_mistakes_are_named():
    for wrong in (3, "key", jnp.zeros(2), None, [jax.random.key(0)]):
        with pytest.raises(TypeError, match="`key` must be a PRNG key, such as"):
            eqopt.NoisySGD(0.1, key=wrong)
    with pytest.raises(ValueError, match=r"one PRNG key; got an array of shape \(2,\)"):
        eqopt.NoisySGD(0.1, key=jax.random.split(jax.random.key(0)))
    unfit: Any = np.zeros(2, np.uint32)
    with pytest.raises(TypeError, match=r"`jax.random.key` makes; got uint32\[2\]"):
        eqopt.states.KeyData(unfit)


# Loops.


def _noisy(params: Any, batch: Any, key: Any) -> Any:
    noise = jax.random.normal(key, params.shape, params.dtype)
    return jnp.sum((params - batch - noise) ** 2)


BATCHES = [np.full(3, i, FLOAT) for i in range(6)]
KEYS = [jax.random.key(3, impl=x) for x in IMPLS] + [jax.random.PRNGKey(3)]
every_key = pytest.mark.parametrize("key", KEYS, ids=[*IMPLS, "old"])


@every_key
@pytest.mark.parametrize("steps_per_call", [1, 2])
def test_fit_goes_on_from_a_file(key: Any, steps_per_call: int):
    opt = eqopt.NoisySGD(0.1, key=key)

    def fit(model: Any, batches: Any, **more: Any) -> Any:
        return eqopt.fit(_noisy, opt, model, batches, steps_per_call=steps_per_call, **more)

    zeros = jnp.zeros(3, FLOAT)
    whole, half = fit(zeros, BATCHES, key=key), fit(zeros, BATCHES[:4], key=key)
    # What is to be loaded is made afresh, of another key.
    other = jax.random.split(key)[0]
    like = fit(zeros, BATCHES[:4], key=other)
    loaded = through_a_file(half, like)
    assert same(loaded, half) and not same(like.key, half.key)
    rest = fit(loaded.model, BATCHES[4:], state=loaded.state, key=loaded.key)
    assert same((rest.model, rest.state, rest.key), (whole.model, whole.state, whole.key))

    # Or of a key that is made for it.
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    place = eqopt.states.KeyData(other) if typed else other
    assert same(through_a_file(half.key, place), half.key)


@every_key
def test_the_loss_is_given_keys_of_its_kind(key: Any):
    def loss(params: Any, batch: Any, key: Any) -> Any:
        return jnp.sum(params * batch), key

    fit = eqopt.fit(loss, eqopt.SGD(0.1), jnp.zeros(3), BATCHES, key=key, has_aux=True)
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    assert isinstance(fit.key, eqopt.states.KeyData) == typed
    expected = []
    for _ in BATCHES:
        key, own = jax.random.split(key)
        expected.append(own)
    found = fit.history.aux.wrap() if typed else fit.history.aux
    assert same(found, jnp.stack(expected))
    assert same(fit.key.wrap() if typed else fit.key, key)


def test_a_key_of_fit_is_one():
    for wrong, message in ((3, "must be a PRNG key"), (jax.random.split(KEYS[0]), "must be one")):
        with pytest.raises((TypeError, ValueError), match=f"`key` {message}"):
            eqopt.fit(_noisy, eqopt.SGD(0.1), jnp.zeros(3, FLOAT), BATCHES, key=wrong)


# The states of optax's transformations.


@pytest.mark.parametrize("key", [*KEYS[:2], 3])
def test_a_state_of_optax_goes_through_a_file(key: Any):
    opt = eqopt.from_optax(optax.noisy_sgd(0.1, 0.1, 0.5, key))
    params = jnp.arange(1, 4, dtype=FLOAT)
    _, state = opt.update(params, opt.init(params), params)
    loaded = through_a_file(state, opt.init(params))
    assert same(loaded, state)
    assert same(opt.update(params, loaded, params), opt.update(params, state, params))


def test_a_key_that_was_kept_is_taken_where_a_key_is():
    key = jax.random.key(3)
    data, params = eqopt.states.KeyData(key), jnp.ones(64, jnp.bfloat16)
    updates = jnp.full(64, 1e-3, np.float32)
    opt = eqopt.precision.StochasticRounding(eqopt.SGD(1.0))
    state = opt.init(params)
    expected = opt.update(updates, state, params, key=key)
    assert same(opt.update(updates, state, params, key=data), expected)
    landed = eqopt.precision.apply_updates_stochastically(params, updates, key)
    assert same(eqopt.precision.apply_updates_stochastically(params, updates, data), landed)
