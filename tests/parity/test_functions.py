"""The functions give what optax's give."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqopt
from tests.support.toolbox import FLOAT, X64
from tests.support.trees import assert_near, random_like, random_tree

TOLERANCE = 1e-14 if X64 else 1e-6


def _trees(seed: int):
    rng = np.random.default_rng(seed)
    tree = random_tree(rng, FLOAT)
    return jax.tree.map(jnp.asarray, (random_like(rng, tree), random_like(rng, tree)))


@pytest.mark.parametrize("seed", range(3))
def test_apply_updates_and_global_norm(seed: int):
    params, updates = _trees(seed)
    assert_near(
        eqopt.apply_updates(params, updates), optax.apply_updates(params, updates), TOLERANCE
    )
    # `optax.global_norm` is called so now.
    assert_near(eqopt.global_norm(updates), optax.tree.norm(updates), TOLERANCE)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("max_squared_norm", [1.0, 1e3])
def test_what_is_skipped(seed: int, max_squared_norm: float):
    params, updates = _trees(seed)
    bad = eqx.tree_at(lambda x: x["pair"][1], updates, jnp.asarray(np.nan, FLOAT))
    count = jnp.zeros((), np.int32)
    for given in (updates, bad):
        ours, _ = eqopt.skip_not_finite(given, count, params)
        theirs, _ = optax.skip_not_finite(given, count, params)
        assert bool(ours) == bool(theirs) == (given is bad)
        limit = {"max_squared_norm": max_squared_norm}
        ours, _ = eqopt.skip_large_updates(given, count, params, **limit)
        theirs, _ = optax.skip_large_updates(given, count, params, **limit)
        assert bool(ours) == bool(theirs)


def test_value_and_grad_from_state():
    """Where optax's are not out of date: the search is last, and its gradient is kept."""
    scale = jnp.asarray([1.0, 5.0, 20.0], FLOAT)

    def objective(x):
        return jnp.sum(scale * jnp.square(x)) + jnp.sum(jnp.cos(x))

    x = jnp.asarray([1.0, -2.0, 0.5], FLOAT)
    opt = eqopt.Chain(eqopt.SGD(0.1), eqopt.ScaleByBacktrackingLinesearch(10, store_grad=True))
    tx = optax.chain(optax.sgd(0.1), optax.scale_by_backtracking_linesearch(10, store_grad=True))
    ours, theirs = x, x
    state, other_state = opt.init(x), tx.init(x)
    own = eqopt.value_and_grad_from_state(objective)
    other: Any = optax.value_and_grad_from_state(objective)
    for _ in range(8):
        value, grad = own(ours, state=state)
        other_value, other_grad = other(theirs, state=other_state)
        np.testing.assert_allclose(value, other_value, rtol=10 * TOLERANCE)
        np.testing.assert_allclose(grad, other_grad, rtol=1e3 * TOLERANCE, atol=1e3 * TOLERANCE)
        updates, state = opt.update(grad, state, ours, value=value, grad=grad, value_fn=objective)
        ours = eqopt.apply_updates(ours, updates)
        updates, other_state = tx.update(
            other_grad, other_state, theirs, value=other_value, grad=other_grad, value_fn=objective
        )
        theirs = optax.apply_updates(theirs, updates)
