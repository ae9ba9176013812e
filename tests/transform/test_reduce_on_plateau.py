"""Smaller steps on a plateau: as in optax for positive values, and right for negative ones."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import eqopt
from tests.support.toolbox import FLOAT, tree, X64
from tests.support.trees import assert_near, random_like, random_tree

NUM_STEPS = 60

CHOICES = [
    {},
    {"factor": 0.5, "patience": 1, "rtol": 0.1},
    {"factor": 0.5, "patience": 3, "rtol": 0.0, "atol": 0.2, "cooldown": 2},
    {"factor": 0.3, "patience": 2, "rtol": 0.05, "accumulation_size": 3, "min_scale": 0.2},
    {"factor": 0.7, "patience": 2, "atol": 0.1, "cooldown": 3, "accumulation_size": 2},
]


def _run(tx: Any, params: Any, grads: Any, losses: Any) -> Any:
    def step(state: Any, x: Any) -> Any:
        grad, value = x
        updates, state = tx.update(grad, state, params, value=value)
        return state, (updates, state.scale, state.best_value)

    return lax.scan(step, tx.init(params), (grads, losses))[1]


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_trajectories_equal_those_of_optax(choice: dict[str, Any]):
    rng = np.random.default_rng(len(choice))
    params = random_tree(rng, FLOAT)
    ours = jax.jit(lambda *args: _run(eqopt.ReduceOnPlateau(**choice), *args))
    theirs = jax.jit(lambda *args: _run(optax.contrib.reduce_on_plateau(**choice), *args))
    seen = set()
    for _ in range(5):
        grads = random_like(rng, params, leading=(NUM_STEPS,))
        # Falling, and then noise.
        losses = 10 * np.exp(-np.arange(NUM_STEPS) / 8) + rng.uniform(0.5, 2, NUM_STEPS)
        losses[rng.choice(NUM_STEPS, 3, replace=False)] = (np.nan, np.inf, 0.1)
        args = params, grads, losses.astype(FLOAT)
        found = ours(*args)
        with jax.numpy_dtype_promotion("standard"):
            expected = theirs(*args)
        assert_near(found[:2], expected[:2], 1e-12 if X64 else 5e-6)
        np.testing.assert_allclose(found[2], expected[2], rtol=1e-12 if X64 else 1e-6)
        seen |= set(np.asarray(found[1]).tolist())
    assert len(seen) > 1  # it was reduced


def _scales(opt: eqopt.ReduceOnPlateau, losses: Any) -> list[float]:
    ones = jnp.ones(2, FLOAT)

    def step(state: Any, value: Any) -> Any:
        updates, state = opt.update(ones, state, value=value)
        return state, updates[0]

    return np.asarray(lax.scan(step, opt.init(ones), jnp.asarray(losses, FLOAT))[1]).tolist()


def test_a_slightly_worse_negative_value_is_no_progress():
    """To optax it is: `(1 - rtol) * best` is above a negative `best`."""
    opt = eqopt.ReduceOnPlateau(0.5, 2, rtol=0.25)
    losses = [-8.0, -7.5, -7.0, -7.0, -6.5, -6.0]
    assert _scales(opt, losses) == [1, 1, 0.5, 0.5, 0.25, 0.25]


def test_a_slightly_better_negative_value_is_not_enough():
    opt = eqopt.ReduceOnPlateau(0.5, 2, rtol=0.25)
    assert _scales(opt, [-8.0, -9.0, -9.5, -9.9]) == [1, 1, 0.5, 0.5]
    assert _scales(opt, [-8.0, -9.0, -10.5, -9.0]) == [1, 1, 1, 1]


def test_the_sign_does_not_matter_to_an_absolute_tolerance():
    # A shift of all values changes nothing; in eighths, which floats hold exactly.
    rng = np.random.default_rng(0)
    losses = rng.integers(0, 40, NUM_STEPS) / 8
    opt = eqopt.ReduceOnPlateau(0.5, 3, rtol=0.0, atol=0.25, cooldown=1)
    above, below = _scales(opt, losses + 100), _scales(opt, losses - 100)
    assert above == below and above[-1] < 0.1


def test_through_zero():
    opt = eqopt.ReduceOnPlateau(0.5, 1, rtol=0.5)
    # From 1 to 0.25, below 0, to -1; then not far enough below -1.
    assert _scales(opt, [1.0, 0.25, -0.5, -1.0, -1.25]) == [1, 1, 1, 1, 0.5]


def test_no_number_is_no_improvement():
    opt = eqopt.ReduceOnPlateau(0.5, 2)
    assert _scales(opt, [1.0, np.nan, np.nan, 0.5]) == [1, 1, 0.5, 0.5]
    assert _scales(opt, [np.nan, np.nan, 1.0, 0.5]) == [1, 0.5, 0.5, 0.5]


def test_the_cooldown_and_the_least_scale():
    opt = eqopt.ReduceOnPlateau(0.5, 1, cooldown=2, min_scale=0.2)
    # One that counts, two that do not: 1, 1/2, 1/4, and no less than 0.2.
    expected = [1.0, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.2, 0.2, 0.2, 0.2]
    np.testing.assert_allclose(_scales(opt, [1.0] * 11), expected, rtol=1e-6)


def test_a_step_gives_it_the_value():
    opt = eqopt.Chain(eqopt.SGD(0.0), eqopt.ReduceOnPlateau(0.5, 1))
    params = tree()
    state = opt.init(params)
    for scale in (1.0, 0.5, 0.25):
        params, state, _ = opt.step(lambda p: jnp.sum(p["a"]), params, state)
        assert float(state.states[1].scale) == scale


_WRONG: list[tuple[str, Any]] = [
    ("factor", 0.0),
    ("factor", 1.0),
    ("patience", 0),
    ("rtol", -0.1),
    ("rtol", 1.1),
    ("atol", -1.0),
    ("min_scale", 2.0),
    ("accumulation_size", 0),
]


def test_mistakes():
    for name, wrong in _WRONG:
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            eqopt.ReduceOnPlateau(**{name: wrong})
    with pytest.raises(ValueError, match="both are 0"):
        eqopt.ReduceOnPlateau(rtol=0.0)
    opt = eqopt.ReduceOnPlateau()
    with pytest.raises(ValueError, match="`ReduceOnPlateau` needs `value`"):
        opt.update(jnp.ones(2, FLOAT), opt.init(jnp.ones(2, FLOAT)))
