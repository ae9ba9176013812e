"""Lookahead: optax's trajectories, the slow parameters beside the fast ones or in the state."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import eqopt
from eqopt import LookaheadParams
from eqopt.writing import AbstractTransformation, Context
from tests.support.toolbox import assert_close, FLOAT, same, tree, values, X64, Zoo, zoo_loss
from tests.support.trees import assert_near, conj, random_like, random_run

NUM_STEPS = 60
TOLERANCE = 1e-12 if X64 else 5e-6


def _sum_sq(p: Any) -> Any:
    return jnp.sum(p**2)


def test_the_reference_example():
    opt = eqopt.Lookahead(eqopt.SGD(1e-2), sync_period=5, slow_step_size=0.5)
    params = LookaheadParams.init_synced(jnp.ones(2, FLOAT))
    grads = jax.grad(_sum_sq)(params.fast)
    updates, state = opt.update(grads, opt.init(params), params)
    params = eqopt.apply_updates(params, updates)
    assert _sum_sq(params.slow) == 2
    np.testing.assert_allclose(params.fast, 0.98, rtol=1e-6)
    assert same(eqopt.eval_params(params, state), LookaheadParams(params.slow, params.slow))


def test_the_reference_example_with_a_plain_model():
    opt = eqopt.Lookahead(eqopt.SGD(1e-2), sync_period=5, slow_step_size=0.5)
    params = jnp.ones(2, FLOAT)
    updates, state = opt.update(jax.grad(_sum_sq)(params), opt.init(params), params)
    params = eqopt.apply_updates(params, updates)
    assert _sum_sq(eqopt.eval_params(params, state)) == 2
    np.testing.assert_allclose(params, 0.98, rtol=1e-6)


# Parity with optax.

_INNERS = {
    "sgd": (lambda: eqopt.SGD(0.1, 0.9), lambda: optax.sgd(0.1, 0.9)),
    # Not `b2=0.999`: in float32 optax's `1 - b2**count` is 1e-5 off, after each reset again.
    "adam": (lambda: eqopt.Adam(0.05, b2=0.9), lambda: optax.adam(0.05, b2=0.9)),
}


def _run(tx: Any, apply: Any, see: Callable[[Any, Any], Any], params: Any, grads: Any) -> Any:
    def step(carry: Any, grad: Any) -> Any:
        params, state = carry
        updates, state = tx.update(grad, state, params)
        params = apply(params, updates)
        return (params, state), see(params, state)

    return lax.scan(step, (params, tx.init(params)), grads)[1]


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("inner", _INNERS)
def test_trajectories_equal_those_of_optax(inner: str, reset: bool):
    our_inner, their_inner = _INNERS[inner]
    ours = eqopt.Lookahead(our_inner(), 7, 0.3, reset)
    theirs = optax.lookahead(their_inner(), 7, 0.3, reset)

    @jax.jit
    def run_ours(params: Any, grads: Any) -> Any:
        def beside(params: Any, state: Any) -> Any:
            return params.fast, params.slow

        def in_state(params: Any, state: Any) -> Any:
            return params, eqopt.eval_params(params, state)

        pair = LookaheadParams.init_synced(params)
        return (
            _run(ours, eqopt.apply_updates, beside, pair, grads),
            _run(ours, eqopt.apply_updates, in_state, params, grads),
        )

    @jax.jit
    def run_theirs(params: Any, grads: Any) -> Any:
        pair = optax.LookaheadParams.init_synced(params)
        return _run(theirs, optax.apply_updates, lambda p, _: (p.fast, p.slow), pair, conj(grads))

    for seed in range(2):
        params, grads = random_run(0, NUM_STEPS, FLOAT)
        params, grads = random_like(np.random.default_rng(seed), (params, grads))
        with jax.numpy_dtype_promotion("standard"):
            expected = run_theirs(params, grads)
        for found in run_ours(params, grads):
            assert_near(found, expected, TOLERANCE)


def test_a_sync_in_between_is_the_rule_by_hand():
    opt = eqopt.Lookahead(eqopt.SGD(0.5), 3, 0.25)
    fast = slow = np.array([1.0, -2.0])
    params = jnp.asarray(fast, FLOAT)
    state = opt.init(params)
    for t in range(1, 8):
        gradient = np.array([0.5 * t, -1.0])
        updates, state = opt.update(jnp.asarray(gradient, FLOAT), state, params)
        params = eqopt.apply_updates(params, updates)
        fast = fast - 0.5 * gradient
        if t % 3 == 0:
            slow = slow + 0.25 * (fast - slow)
            fast = slow
        assert int(state.steps_since_sync) == t % 3
        np.testing.assert_allclose(params, fast, rtol=1e-6)
        np.testing.assert_allclose(eqopt.eval_params(params, state), slow, rtol=1e-6)


# Resets.


def test_a_reset_selects():
    """optax multiplies by 0: after a reset its momentum would be NaN. Here it is zero."""
    opt = eqopt.Lookahead(eqopt.Chain(eqopt.Trace(0.9), eqopt.Clip(1.0)), 2, 0.5, True)
    params = jnp.ones(2, FLOAT)
    state = opt.init(params)
    for gradient in ([np.inf, 1.0], [1.0, 1.0]):
        assert not np.any(np.isnan(state.fast_state.states[0].trace))
        updates, state = opt.update(jnp.asarray(gradient, FLOAT), state, params)
        params = eqopt.apply_updates(params, updates)
    assert same(state.fast_state.states[0].trace, jnp.zeros(2, FLOAT))
    assert same(params, jnp.full(2, 2.0, FLOAT))  # half of the way from 1 to 3


class _StartState(eqx.Module):
    start: Any


class _Down(AbstractTransformation[_StartState]):
    """Remembers where it began."""

    def init_state(self, params: Any, context: Context) -> _StartState:
        return _StartState(jax.tree.map(jnp.copy, params))

    def transform(
        self, updates: Any, state: _StartState, params: Any, context: Context
    ) -> tuple[Any, _StartState]:
        return jax.tree.map(lambda u: -u / 2, updates), state


def test_a_reset_begins_at_the_slow_parameters():
    opt = eqopt.Lookahead(_Down(), 2, 0.5, True)
    params = jnp.ones(2, FLOAT)
    state = opt.init(params)
    for _ in range(2):
        updates, state = opt.update(jnp.ones(2, FLOAT), state, params)
        params = eqopt.apply_updates(params, updates)
    np.testing.assert_allclose(params, 0.5, rtol=1e-6)
    np.testing.assert_allclose(state.fast_state.start, 0.5, rtol=1e-6)


def _quartic(p: Any, scale: Any) -> Any:
    return scale * sum(jnp.sum(x**4 + x**2) for x in jax.tree.leaves(p))


@pytest.mark.parametrize("beside", [False, True])
def test_a_reset_around_a_line_search(beside: bool):
    search = eqopt.ScaleByBacktrackingLinesearch(15, store_grad=True)
    opt = eqopt.Lookahead(eqopt.Chain(eqopt.SGD(1.0), search), 2, 1.0, True)
    alone = eqopt.Chain(eqopt.SGD(1.0), search)
    params = model = tree()
    if beside:
        params = LookaheadParams.init_synced(model)

    def loss(p: Any, scale: Any) -> Any:
        value = _quartic(p.fast if beside else p, scale)
        return value, {"twice": 2 * value}

    def loss_alone(p: Any, scale: Any) -> Any:
        value = _quartic(p, scale)
        return value, {"twice": 2 * value}

    state = opt.init(params, value_fn=loss, args=(1.0,), has_aux=True)
    state_alone: Any = None
    for t in range(4):
        if t % 2 == 0:
            state_alone = alone.init(model, value_fn=loss_alone, args=(1.0,), has_aux=True)
        params, state, evaluation = opt.step(loss, params, state, 1.0, has_aux=True)
        model, state_alone, _ = alone.step(loss_alone, model, state_alone, 1.0, has_aux=True)
        assert_close(evaluation.aux["twice"], 2 * evaluation.value)
        # With a slow step size of 1, a synchronization is a reset and nothing else.
        fast = params.fast if isinstance(params, LookaheadParams) else params
        assert_close(fast, model, 1e-11 if X64 else 1e-4)


# Extra arguments, line searches, whole models.


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize(
    "inner",
    [
        lambda: eqopt.PolyakSGD(),
        lambda: eqopt.LBFGS(linesearch=eqopt.ScaleByBacktrackingLinesearch(15)),
    ],
    ids=["PolyakSGD", "LBFGS"],
)
def test_between_syncs_the_fast_optimizer_is_alone(inner: Callable[[], Any], beside: bool):
    alone, opt = inner(), eqopt.Lookahead(inner(), 100, 0.5)
    model = tree()
    params = LookaheadParams.init_synced(model) if beside else model

    def loss(p: Any, scale: Any) -> Any:
        return _quartic(p.fast if beside else p, scale)

    state, state_alone = opt.init(params), alone.init(model)
    for _ in range(3):
        params, state, _ = opt.step(loss, params, state, 2.0)
        model, state_alone, _ = alone.step(_quartic, model, state_alone, 2.0)
    fast = params.fast if isinstance(params, LookaheadParams) else params
    assert_close(fast, model, 1e-11 if X64 else 1e-4)
    slow = eqopt.eval_params(params, state)
    assert_close(slow.fast if isinstance(slow, LookaheadParams) else slow, tree())


@pytest.mark.parametrize("beside", [False, True])
def test_whole_models_may_be_donated(beside: bool):
    model, x = Zoo(), values((2,), 5)
    opt = eqopt.Lookahead(eqopt.Adam(0.01), 2, 0.5)
    expected, state_expected = model, opt.init(model)
    for _ in range(3):
        expected, state_expected, _ = opt.step(zoo_loss, expected, state_expected, x)
    slow_expected = eqopt.eval_params(expected, state_expected)

    @eqx.filter_jit(donate="all")
    def step(params: Any, state: Any) -> Any:
        fast = params.fast if isinstance(params, LookaheadParams) else params
        gradients = eqx.filter_grad(zoo_loss)(fast, values((2,), 5))
        updates, state = opt.update(gradients, state, params)
        return eqopt.apply_updates(params, updates), state

    params: Any = LookaheadParams.init_synced(model) if beside else model
    state = opt.init(params)
    for _ in range(3):
        params, state = step(params, state)
    found = eqopt.eval_params(params, state)
    rtol = 1e-11 if X64 else 1e-4
    if beside:
        assert type(params.fast) is type(params.slow) is type(found.fast) is Zoo
        assert params.fast.activation is params.slow.activation is jax.nn.tanh
        assert_close(_arrays(params.slow), _arrays(slow_expected), rtol)
        params, found = params.fast, found.fast
    assert type(found) is Zoo and found.activation is jax.nn.tanh
    assert_close(_arrays(params), _arrays(expected), rtol)
    assert_close(_arrays(found), _arrays(slow_expected), rtol)


def _arrays(model: Any) -> Any:
    return eqx.filter(model, eqx.is_inexact_array)


def test_a_gradient_of_the_pair_is_that_of_the_fast_parameters():
    opt = eqopt.Lookahead(eqopt.SGD(0.1, 0.9), 2, 0.5)
    params = LookaheadParams.init_synced(tree())
    grads = tree(7)
    state = opt.init(params)
    pair = LookaheadParams(grads, jax.tree.map(jnp.ones_like, grads))
    assert same(opt.update(grads, state, params), opt.update(pair, state, params))


def test_the_period_may_become_shorter():
    opt = eqopt.Lookahead(eqopt.SGD(1.0), 100, 0.5)
    params = jnp.zeros((), FLOAT)
    state = opt.init(params)
    for _ in range(5):
        updates, state = opt.update(-jnp.ones((), FLOAT), state, params)
        params = eqopt.apply_updates(params, updates)
    updates, state = opt.replace(sync_period=3).update(-jnp.ones((), FLOAT), state, params)
    assert eqopt.apply_updates(params, updates) == 3 and int(state.steps_since_sync) == 0


def test_mistakes():
    with pytest.raises(ValueError, match="`sync_period` must be from 1"):
        eqopt.Lookahead(eqopt.SGD(0.1), 0, 0.5)
    with pytest.raises(ValueError, match="`slow_step_size` must be at least 0 and at most 1"):
        eqopt.Lookahead(eqopt.SGD(0.1), 1, 1.5)
    opt = eqopt.Lookahead(eqopt.SGD(0.1), 2, 0.5)
    model = {"a": jnp.ones(2, FLOAT)}
    pair = LookaheadParams.init_synced(model)
    with pytest.raises(ValueError, match="`state` was made for `LookaheadParams`; `params` is"):
        opt.update(model, opt.init(pair), model)
    with pytest.raises(ValueError, match=r"`state\.slow` is a dict"):
        opt.update(model, opt.init(model), pair)
