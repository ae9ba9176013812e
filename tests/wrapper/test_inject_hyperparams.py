"""Hyper-parameters in the state: optax's trajectories, and edits that stay."""

import io
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import eqopt
from tests.support.parity import trajectory
from tests.support.toolbox import FLOAT, same, Tally, Traced, tree, types, X64
from tests.support.trees import assert_near, is_matrix, random_like, random_tree

RATE = FLOAT(0.1)


def _falling(count: Any) -> Any:
    return RATE / (1 + jnp.asarray(count, FLOAT) / 8)


def _adamw() -> Any:
    return eqopt.InjectHyperparams(eqopt.AdamW)(
        _falling, b1=0.8, weight_decay=0.02, mask=is_matrix, mu_dtype=FLOAT, nesterov=True
    )


def test_the_trajectory_is_that_of_optax():
    # optax takes a flag, a dtype and a function for hyper-parameters, unless it is told.
    theirs = optax.inject_hyperparams(
        optax.adamw, static_args=("mask", "mu_dtype", "nesterov"), hyperparam_dtype=np.dtype(FLOAT)
    )(_falling, b1=0.8, weight_decay=0.02, mask=is_matrix, mu_dtype=FLOAT, nesterov=True)
    ours = _adamw()
    rng = np.random.default_rng(0)
    shapes = random_tree(rng, FLOAT)
    params, gradients = random_like(rng, shapes), random_like(rng, shapes, leading=(30,))
    left = jax.jit(lambda *x: trajectory(ours, eqopt.apply_updates, *x))(params, gradients)
    with jax.numpy_dtype_promotion("standard"):
        right = jax.jit(lambda *x: trajectory(theirs, optax.apply_updates, *x))(params, gradients)
    assert_near(left[1], right[1], 1e-12 if X64 else 2e-5)

    state: Any = ours.init(params)
    other: Any = theirs.init(params)
    gradient = jax.tree.map(lambda x: x[0], gradients)
    for _ in range(2):
        _, state = ours.update(gradient, state, params)
        with jax.numpy_dtype_promotion("standard"):
            _, other = theirs.update(gradient, other, params)
        assert state.hyperparams.keys() == other.hyperparams.keys()
        for name, x in state.hyperparams.items():
            np.testing.assert_allclose(x, other.hyperparams[name], rtol=1e-6)
        assert int(state.count) == int(other.count)


def test_what_is_no_number_stays_as_it_is():
    opt = _adamw()
    assert set(opt.hyperparams) == {"learning_rate", "b1", "b2", "eps", "eps_root", "weight_decay"}
    inner = opt.at(opt.init(tree()))
    assert isinstance(inner, eqopt.AdamW)
    assert inner.nesterov is True and inner.mu_dtype == np.dtype(FLOAT)
    assert isinstance(inner.mask, eqopt.selectors.FunctionSelector)


def _rates(opt: Any, state: Any, num: int) -> tuple[list[float], Any]:
    """The rates by which a gradient of ones was scaled."""
    rates = []
    for _ in range(num):
        updates, state = opt.update(jnp.ones((), FLOAT), state)
        rates.append(-float(updates))
        np.testing.assert_allclose(state.hyperparams["learning_rate"], rates[-1], rtol=1e-6)
    return rates, state


def _sgd(schedule: Any) -> tuple[Any, Any]:
    opt = eqopt.InjectHyperparams(eqopt.SGD)(schedule)
    return opt, opt.init(jnp.ones((), FLOAT))


def test_an_edit_stays_in_force_and_may_be_taken_back():
    line = eqopt.Linear(1.0, 0.0, 8)
    opt, state = _sgd(line)
    rates, state = _rates(opt, state, 2)
    assert rates == [1.0, 0.875]
    state.hyperparams["learning_rate"] = 0.625
    assert eqopt.hyperparameters(opt, state)["learning_rate"] == 0.625
    # The schedule passes by 0.625 on its way, and does not take it for its own.
    rates, state = _rates(opt, state, 4)
    assert rates == [0.625] * 4
    state.hyperparams["learning_rate"] = state.scheduled["learning_rate"]
    assert eqopt.hyperparameters(opt, state)["learning_rate"] == 0.25
    rates, state = _rates(opt, state, 2)
    assert rates == [0.25, 0.125]


def test_an_edit_before_the_first_step():
    opt, state = _sgd(eqopt.Linear(1.0, 0.0, 8))
    state = eqx.tree_at(lambda s: s.hyperparams["learning_rate"], state, jnp.asarray(3.0, FLOAT))
    assert _rates(opt, state, 3)[0] == [3.0] * 3


def test_a_nan_is_an_edit_and_a_schedule_of_nan_is_none():
    opt, state = _sgd(eqopt.Linear(1.0, 0.0, 8))
    state.hyperparams["learning_rate"] = jnp.nan
    for _ in range(2):
        updates, state = opt.update(jnp.ones((), FLOAT), state)
        assert jnp.isnan(updates)
    assert jnp.isnan(eqopt.hyperparameters(opt, state)["learning_rate"])
    opt, state = _sgd(lambda count: jnp.where(count < 1, jnp.nan, 0.5))
    _, state = opt.update(jnp.ones((), FLOAT), state)
    assert _rates(opt, state, 1)[0] == [0.5]


def test_numbers_may_be_edited_too():
    opt, state = _sgd(0.5)
    assert _rates(opt, state, 1)[0] == [0.5]
    state.hyperparams.update(learning_rate=0.25)
    assert _rates(opt, state, 2)[0] == [0.25] * 2


def test_an_edit_does_not_retrace_and_keeps_the_type():
    tally = Tally()
    opt = eqopt.InjectHyperparams(lambda rate: eqopt.Chain(Traced(tally), eqopt.SGD(rate)))(0.5)
    params = jnp.ones((), FLOAT)
    state = opt.init(params)
    kinds = types(state)
    _, state = opt.update(params, state)
    traces = tally.num
    for rate in (0.25, 2, np.float32(0.75), jnp.asarray(1.5)):
        state.hyperparams["rate"] = rate
        assert types(state) == kinds
        updates, state = opt.update(params, state)
        assert float(updates) == -float(rate)
        assert types(state) == kinds
    assert tally.num == traces


def test_through_jax():
    opt, state = _sgd(eqopt.Linear(1.0, 0.0, 8))
    states = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    states.hyperparams["learning_rate"] = jnp.asarray([1.0, 0.5], FLOAT)

    def run(state: Any) -> Any:
        ones = jnp.ones((), FLOAT)
        return lax.scan(lambda s, _: opt.update(ones, s)[::-1], state, None, 3)[1]

    expected = [[-1.0, -0.875, -0.75], [-0.5] * 3]
    np.testing.assert_array_equal(jax.vmap(run)(states), expected)

    file = io.BytesIO()
    state.hyperparams["learning_rate"] = 0.5
    eqx.tree_serialise_leaves(file, state)
    file.seek(0)
    loaded = eqx.tree_deserialise_leaves(file, _sgd(eqopt.Linear(1.0, 0.0, 8))[1])
    assert same(loaded, state)
    assert _rates(opt, loaded, 2)[0] == [0.5] * 2


def test_the_dtype_of_the_numbers():
    opt = eqopt.InjectHyperparams(eqopt.SGD, hyperparam_dtype=jnp.bfloat16)(0.1)
    state = opt.init(jnp.ones((), FLOAT))
    assert state.hyperparams["learning_rate"].dtype == jnp.bfloat16
    updates, state = opt.update(jnp.ones((), FLOAT), state)
    assert float(updates) == -float(jnp.asarray(0.1, jnp.bfloat16))


def _both(rate: float, memory_size: int, decay: Any) -> Any:
    memory = eqopt.ScaleByLBFGS(memory_size)
    return eqopt.Chain(memory, eqopt.ScaleByLearningRate(rate), eqopt.AddDecayedWeights(decay))


def test_a_factory_that_is_a_function():
    factory = eqopt.InjectHyperparams(_both, static_args="memory_size")
    opt = factory(0.1, 3, decay=eqopt.Linear(0.0, 0.5, 2))
    params = tree()
    state = opt.init(params)
    assert set(state.hyperparams) == {"rate", "decay"}
    _, state = opt.update(tree(7), state, params)
    found = eqopt.hyperparameters(opt, state)
    assert found["links[2].weight_decay"] == 0.25
    np.testing.assert_allclose(found["links[1].learning_rate"], 0.1, rtol=1e-6)


def test_transformations_and_several_links_are_handed_on():
    inner = eqopt.InjectHyperparams(eqopt.Lookahead)(eqopt.SGD(0.5), 2, 0.6)
    params = tree()
    assert set(inner.init(params).hyperparams) == {"slow_step_size", "sync_period"}
    links = eqopt.InjectHyperparams(eqopt.Chain)(eqopt.Clip(0.1), eqopt.SGD(0.5))
    expected, _ = eqopt.Chain(eqopt.Clip(0.1), eqopt.SGD(0.5)).update(
        tree(7), eqopt.Chain(eqopt.Clip(0.1), eqopt.SGD(0.5)).init(params), params
    )
    assert same(links.update(tree(7), links.init(params), params)[0], expected)


def test_what_makes_no_sense_is_refused_through_it():
    averaged = eqopt.InjectHyperparams(lambda decay: eqopt.ParamEMA(eqopt.SGD(0.1), decay))(0.9)
    with pytest.raises(ValueError, match="makes no sense"):
        eqopt.Chain(averaged, eqopt.Scale(0.5))


def test_mistakes():
    inject: Any = eqopt.InjectHyperparams
    with pytest.raises(ValueError, match=r"`static_args` names `b3`; .*`b2`"):
        inject(eqopt.AdamW, static_args=("b3",))
    with pytest.raises(ValueError, match="`b1` must be"):
        inject(eqopt.AdamW)(0.1, b1=1.5)
    with pytest.raises(TypeError, match="`inner_factory"):
        inject(lambda rate: rate)(0.1)
    with pytest.raises(TypeError, match="`inner_factory`"):
        inject(3)
    opt, state = _sgd(0.5)
    with pytest.raises(KeyError, match="no hyper-parameter `rate`"):
        state.hyperparams["rate"] = 0.1
    with pytest.raises(ValueError, match=r"`learning_rate` has shape \(\)"):
        state.hyperparams["learning_rate"] = jnp.ones(2)
    other = eqopt.InjectHyperparams(lambda rate: eqopt.SGD(rate))(0.5)
    with pytest.raises(ValueError, match=r"`learning_rate`; the optimizer has `rate`"):
        other.update(jnp.ones(()), state)
    assert opt.update(jnp.ones((), FLOAT), state)[0] == -0.5
