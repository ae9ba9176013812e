"""A learning rate that is learned, against optax."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import eqopt
from tests.support.toolbox import assert_close, FLOAT, X64
from tests.support.trees import random_tree

NUM_STEPS = 60


def _loss(params: Any) -> Any:
    # Not a bowl: the gain of a quadratic would never change its sign.
    return sum(jnp.sum(jnp.cos(3 * x) + x**2) for x in jax.tree.leaves(params))


@pytest.mark.parametrize(
    "base,theirs",
    [
        (lambda: eqopt.SGD(1.0), lambda: optax.sgd(1.0)),
        (lambda: eqopt.Adam(1.0), lambda: optax.adam(1.0)),
    ],
    ids=["SGD", "Adam"],
)
def test_steps_are_optax_s(base: Any, theirs: Any):
    params = jax.tree.map(jnp.asarray, random_tree(np.random.default_rng(0), FLOAT))
    hyper = {"weight_decay": 0.03, "eps": 1e-6, "s_init": 1e-4, "num_betas": 4}
    ours, their = eqopt.Mechanize(base(), **hyper), optax.contrib.mechanize(theirs(), **hyper)

    def run(init: Any, update: Any, apply: Any) -> Any:
        def step(carry: Any, _: Any) -> Any:
            params, state = carry
            updates, state = update(jax.grad(_loss)(params), state, params)
            params = apply(params, updates)
            return (params, state), (params, state.s)

        return lax.scan(step, (params, init(params)), length=NUM_STEPS)[1]

    found, scales = jax.jit(lambda: run(ours.init, ours.update, eqopt.apply_updates))()
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected, their_scales = jax.jit(
            lambda: run(their.init, their.update, optax.apply_updates)
        )()
    # The scale is learned from a difference of parameters over a scale that is small at first: what
    # is lost there is lost for good, in either library.
    steps = slice(None) if X64 else slice(5)
    rtol = 1e-8 if X64 else 1e-3
    assert_close(scales[steps], their_scales[steps], rtol)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert_close(x[steps], y[steps], rtol)
    assert _loss(jax.tree.map(lambda x: x[-1], found)) < _loss(params)


def test_training_may_begin_elsewhere():
    opt, start = eqopt.Mechanize(eqopt.SGD(1.0), s_init=1e-3), jnp.ones(2, FLOAT)
    state = opt.init(jnp.zeros(2, FLOAT))
    elsewhere, anew = start, start
    fresh = opt.init(start)
    for _ in range(5):
        elsewhere, state, _ = opt.step(_loss, elsewhere, state)
        anew, fresh, _ = opt.step(_loss, anew, fresh)
    assert jnp.array_equal(elsewhere, anew)


def test_mistakes_are_named():
    untyped: Any = eqopt
    with pytest.raises(TypeError, match="`base_optimizer` must be"):
        untyped.Mechanize(None)
    with pytest.raises(ValueError, match="`num_betas` must be"):
        eqopt.Mechanize(eqopt.SGD(1.0), num_betas=0)
