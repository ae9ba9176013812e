"""Chains with names."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqopt
from eqopt import NamedChain
from tests.support.parity import assert_same_steps
from tests.support.toolbox import FLOAT, same, tree, X64
from tests.support.trees import random_like, random_tree

NUM_STEPS = 60
TOLERANCE = 1e-12 if X64 else 5e-6


def test_trajectories_equal_those_of_optax():
    rng = np.random.default_rng(7)
    params = random_tree(rng, FLOAT)
    gradients = random_like(rng, params, leading=(NUM_STEPS,))
    # Their order is not that of the alphabet, in which JAX sorts dictionaries.
    ours = NamedChain(
        ("z", eqopt.ClipByGlobalNorm(1.0)),
        ("m", eqopt.ScaleByAdam(0.8, 0.95)),
        decay=eqopt.AddDecayedWeights(0.1),
        a=eqopt.ScaleByLearningRate(0.05),
    )
    theirs = optax.named_chain(
        ("z", optax.clip_by_global_norm(1.0)),
        ("m", optax.scale_by_adam(0.8, 0.95)),
        ("decay", optax.add_decayed_weights(0.1)),
        ("a", optax.scale_by_learning_rate(0.05)),
    )
    assert_same_steps(ours, theirs, params, gradients, TOLERANCE)


def test_the_order_is_kept_when_the_chain_is_data():
    params = tree()
    ours = NamedChain(z=eqopt.Clip(0.1), a=eqopt.Scale(3.0))
    plain = eqopt.Chain(eqopt.Clip(0.1), eqopt.Scale(3.0))
    expected, _ = plain.update(params, plain.init(params), params)

    @jax.jit
    def update(opt: Any, params: Any) -> Any:
        return opt.update(params, opt.init(params), params)[0]

    assert same(update(ours, params), expected)
    assert float(jnp.max(expected["a"])) == float(jnp.asarray(0.1, FLOAT) * 3)


def test_links_and_states_have_names():
    opt = NamedChain(("clip", eqopt.Clip(0.5)), momentum=eqopt.Trace(0.9))
    state = opt.init(tree())
    assert set(state.states) == {"clip", "momentum"}
    assert isinstance(state.states["momentum"], eqopt.states.TraceState)
    momentum = opt.links["momentum"]
    assert isinstance(momentum, eqopt.Trace) and float(momentum.decay) == float(FLOAT(0.9))
    assert set(eqopt.hyperparameters(opt, state)) == {
        "links['clip'].max_delta",
        "links['momentum'].decay",
    }
    assert NamedChain().init(tree()).states == {}


def test_names_given_twice():
    with pytest.raises(ValueError, match="given more than once: `a`, `b`"):
        NamedChain(
            ("a", eqopt.Scale(1.0)),
            ("b", eqopt.Scale(1.0)),
            ("a", eqopt.Scale(2.0)),
            b=eqopt.Scale(1.0),
        )


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (eqopt.Scale(1.0), r"`pairs\[0\]` must be a pair of a name and a transformation"),
        ((1, eqopt.Scale(1.0)), r"`pairs\[0\]` must be a pair"),
        (("a", optax.scale(1.0)), r"`links\['a'\]` must be a transformation"),
    ],
)
def test_what_is_no_pair(pair: Any, message: str):
    with pytest.raises(TypeError, match=message):
        NamedChain(pair)


def test_the_state_of_another_chain():
    params = tree()
    one, other = NamedChain(a=eqopt.Trace(0.9)), NamedChain(b=eqopt.Trace(0.9))
    with pytest.raises(ValueError, match=r"`state\.states` has `a`; the chain has `b`"):
        other.update(params, one.init(params))
    third = NamedChain(a=eqopt.EMA(0.9))
    with pytest.raises(TypeError, match=r"`state.states\['a'\]` is a `TraceState`"):
        third.update(params, one.init(params))
