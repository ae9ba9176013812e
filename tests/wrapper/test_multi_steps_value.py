"""`MultiSteps` hands on the value of the whole window, as it does the gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqopt
from tests.support.toolbox import FLOAT, same, X64


class Shown(eqopt.writing.AbstractTransformation):
    """Gives the value that it is told of as the update."""

    def init_state(self, params: Any, context: Any) -> eqopt.states.EmptyState:
        return eqopt.states.EmptyState()

    def transform(self, updates: Any, state: Any, params: Any, context: Any) -> Any:
        return jax.tree.map(lambda u: jnp.full_like(u, context.value), updates), state


@pytest.mark.parametrize("make", [eqopt.PolyakSGD, eqopt.MoMo, eqopt.MoMoAdam])
def test_mini_batches_make_the_step_of_the_whole_batch(make: Any):
    """The mean of the values belongs to the mean of the gradients."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(12, 3)), FLOAT)
    y, w = jnp.sin(jnp.sum(x, 1)), jnp.asarray([0.1, -0.2, 0.3], FLOAT)

    def loss(w: Any, x: Any, y: Any) -> Any:
        return jnp.mean(jnp.square(jnp.sum(x * w[None], 1) - y))

    opt = make(1e6)
    opt_of_windows = eqopt.MultiSteps(opt, 3)
    whole, state = w, opt.init(w)
    parts, part_state = w, opt_of_windows.init(w)
    for _ in range(2):
        whole, state, _ = opt.step(loss, whole, state, x, y)
        for i in range(0, 12, 4):
            parts, part_state, _ = opt_of_windows.step(
                loss, parts, part_state, x[i : i + 4], y[i : i + 4]
            )
    np.testing.assert_allclose(
        parts, whole, rtol=1e-12 if X64 else 1e-5, atol=1e-12 if X64 else 1e-6
    )
    if make is eqopt.PolyakSGD:  # by hand, its first step: `w - f / |g|^2 * g`
        f, g = jax.value_and_grad(loss)(w, x, y)
        first, _, _ = opt.step(loss, w, opt.init(w), x, y)
        np.testing.assert_allclose(first, w - f / jnp.sum(g * g) * g, rtol=1e-5)


@pytest.mark.parametrize(("mean", "expected"), [(True, 2.0), (False, 6.0)])
def test_the_value_of_a_window(mean: bool, expected: float):
    opt = eqopt.MultiSteps(
        Shown(), 3, use_grad_mean=mean, should_skip_update_fn=eqopt.skip_not_finite
    )
    w = jnp.ones(2, FLOAT)
    bad = jnp.full(2, np.nan, FLOAT)
    state = opt.init(w)
    # A mini-batch that is dropped has no part in it; the next window begins anew.
    for _ in range(2):
        for gradient, value in ((w, 1.0), (bad, 99.0), (w, 2.0), (w, jnp.asarray(3.0, FLOAT))):
            updates, state = opt.update(gradient, state, w, value=value)
        assert same(updates, jnp.full(2, expected, FLOAT))


def test_a_flush_knows_the_value():
    opt = eqopt.MultiSteps(Shown(), 3)
    w = jnp.ones(2, FLOAT)
    state = opt.init(w)
    for value in (1.0, 4.0):
        _, state = opt.update(w, state, w, value=value)
    updates, flushed = opt.flush(state, w, value=99.0)
    assert same(updates, jnp.full(2, 2.5, FLOAT))
    assert float(flushed.acc_value) == 0


def test_a_plateau_is_one_of_windows():
    """The same rate as by the means of the windows themselves."""
    values = [[5.0, 1.0], [4.0, 2.0], [1.0, 5.0], [6.0, 0.0], [3.0, 2.5]]
    plateau = eqopt.ReduceOnPlateau(patience=1, factor=0.5)
    windows = eqopt.MultiSteps(plateau, 2)
    w = jnp.ones(2, FLOAT)
    state, expected = windows.init(w), plateau.init(w)
    for pair in values:
        for value in pair:
            _, state = windows.update(w, state, w, value=value)
        _, expected = plateau.update(w, expected, w, value=np.mean(pair))
        assert float(state.inner_opt_state.scale) == float(expected.scale)
    assert float(expected.scale) < 1
