"""Measuring what passes, against optax."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import eqopt
from tests.support.toolbox import FLOAT, types, X64
from tests.support.trees import assert_near, random_like, random_tree

TOLERANCE = 1e-12 if X64 else 5e-6


def _is_large(updates: Any) -> Any:
    return optax.tree.norm(updates) > 20


def _large(updates: Any) -> Any:
    return _is_large(updates).astype(FLOAT)


def _ours() -> Any:
    monitor = eqopt.Monitor(
        {
            "norm": eqopt.global_norm,
            "large": eqopt.MeasureWithEMA(_large, 0.9),
            # optax averages no Booleans where promotion is strict.
            "is large": eqopt.MeasureWithEMA(_is_large, 0.9),
            "biased": eqopt.MeasureWithEMA(eqopt.global_norm, 0.9, debias=False),
            "average": eqopt.EMA(0.8),
        }
    )
    return eqopt.Chain(eqopt.Trace(0.7), monitor, eqopt.Snapshot("all", _halved), eqopt.SGD(0.1))


def _theirs() -> Any:
    monitor = _monitor_of_optax(  # whose types forbid what its documentation shows
        {
            "norm": optax.tree.norm,
            "large": optax.measure_with_ema(_large, 0.9),
            "biased": optax.measure_with_ema(optax.tree.norm, 0.9, debias=False),
            "average": optax.ema(0.8),
        }
    )
    return optax.chain(optax.trace(0.7), monitor, optax.snapshot("all", _halved), optax.sgd(0.1))


def _monitor_of_optax(measures: Any) -> Any:
    return optax.monitor(measures)


def _halved(updates: Any) -> Any:
    return jax.tree.map(lambda u: u / 2, updates)


def test_what_is_measured_is_what_optax_measures():
    rng = np.random.default_rng(0)
    params = jax.tree.map(jnp.asarray, random_tree(rng, FLOAT))
    grads = [random_like(rng, params) for _ in range(60)]
    ours, theirs = _ours(), _theirs()
    state, their_state = ours.init(params), theirs.init(params)
    their_update = jax.jit(theirs.update)
    for grad in grads:
        updates, state = ours.update(grad, state, params)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
            their_updates, their_state = their_update(grad, their_state, params)
        assert_near(updates, their_updates, TOLERANCE)
        found = eqopt.measurements(state)
        np.testing.assert_allclose(found["is large"], found["large"], rtol=1e-6)
        for name in ("norm", "large", "biased", "average", "all"):
            expected = optax.tree.get(their_state, name)
            for x, y in zip(jax.tree.leaves(found[name]), jax.tree.leaves(expected), strict=True):
                np.testing.assert_allclose(x, y, rtol=TOLERANCE, atol=TOLERANCE)


def test_the_state_has_its_structure_from_init_on():
    # In optax, `monitor` has no measurements before the first update, and `scan` refuses it.
    params = jnp.ones(3, FLOAT)
    opt = _ours()

    def body(state: Any, grad: Any) -> Any:
        _, state = opt.update(grad, state, params)
        return state, eqopt.measurements(state)["norm"]

    state = opt.init(params)
    final, norms = lax.scan(body, state, jnp.ones((4, 3), FLOAT))
    assert types(final) == types(state)
    trace = np.cumsum(0.7 ** np.arange(4))
    np.testing.assert_allclose(norms, np.sqrt(3) * trace, rtol=1e-6)


def test_half_precision_is_measured_in_float32():
    params = jnp.full(1000, 300, jnp.float16)
    opt = eqopt.Monitor({"norm": lambda u: jnp.sqrt(jnp.sum(jnp.square(u)))})
    _, state = opt.update(params, opt.init(params))
    norm = eqopt.measurements(state)["norm"]
    assert norm.dtype == jnp.float32
    np.testing.assert_allclose(norm, 300 * np.sqrt(1000), rtol=1e-6)


def test_a_measure_that_needs_the_parameters():
    opt = eqopt.Monitor({"decayed": eqopt.AddDecayedWeights(0.5)})
    params = jnp.ones(2, FLOAT)
    updates, state = opt.update(3 * params, opt.init(params), params)
    assert jnp.array_equal(updates, 3 * params)
    np.testing.assert_allclose(eqopt.measurements(state)["decayed"], 3.5 * params)


def test_a_threshold_is_data():
    class Above(eqx.Module):
        threshold: Any

        def __call__(self, updates: Any) -> Any:
            return eqopt.global_norm(updates) > self.threshold

    params = jnp.ones(1, FLOAT)
    for threshold, expected in ((0.5, True), (2.0, False)):
        opt = eqopt.Snapshot("above", Above(jnp.asarray(threshold)))
        _, state = opt.update(params, opt.init(params))
        assert eqopt.measurements(state)["above"] == expected


def test_mistakes_are_named():
    untyped: Any = eqopt
    with pytest.raises(TypeError, match=r"`measures\['x'\]` must be a function"):
        untyped.Monitor({"x": 3})
    with pytest.raises(TypeError, match="`measure` must be a function"):
        untyped.Snapshot("x", None)
    with pytest.raises(TypeError, match="`measure` must be a function"):
        untyped.MeasureWithEMA(1.0, 0.9)
    params = jnp.ones(2, FLOAT)
    with pytest.raises(TypeError, match=r"`measure\(updates\)` is a str"):
        eqopt.Snapshot("x", lambda u: "large").init(params)
    twice = eqopt.Chain(eqopt.Snapshot("x", jnp.sum), eqopt.Snapshot("x", jnp.max))
    with pytest.raises(ValueError, match="two measurements in `state` are called 'x'"):
        eqopt.measurements(twice.init(params))
    leaves = eqopt.Snapshot("leaves", lambda u: jax.tree.leaves(u))
    state = leaves.init({"a": params, "b": params})
    with pytest.raises(ValueError, match="what `leaves` measures has not the shapes"):
        leaves.update({"a": params, "b": None}, state)
