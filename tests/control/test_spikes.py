"""Steps that are skipped, what they leave as it was, and what is remembered."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqopt
from eqopt.control import SkipSpikes
from tests.support.toolbox import FLOAT, same, values

untyped: Any = eqopt.control
WINDOW = 16
PARAMS = {"a": values((3, 2), 0), "b": values((4,), 1)}
GRADS = jax.tree.map(lambda x: x / 3, PARAMS)


def _grads(size: float) -> Any:
    """Gradients of that norm."""
    norm = float(eqopt.global_norm(GRADS))
    return jax.tree.map(lambda x: x * FLOAT(size / norm), GRADS)


def _known(state: Any) -> Any:
    """The losses that are remembered."""
    return state.losses


def _inner() -> Any:
    return eqopt.AdamW(eqopt.Linear(0.1, 0.01, 50), weight_decay=0.1)


def _updated(opt: Any, state: Any, loss: Any = None, size: float = 1.0) -> tuple[bool, Any]:
    """One step: whether it was skipped, and the state."""
    updates, new = opt.update(_grads(size), state, PARAMS, value=loss)
    params = eqopt.apply_updates(PARAMS, updates)
    skipped = bool(new.last_skipped)
    if skipped:
        # To the last bit: neither the moments and counts nor the parameters have moved.
        assert same(new.inner_state, state.inner_state)
        assert same(params, PARAMS)
    else:
        assert not same(new.inner_state, state.inner_state)
        assert not same(params["a"], PARAMS["a"])
    assert int(new.total_skipped) == int(state.total_skipped) + skipped
    return skipped, new


def _warm(opt: Any, seed: int = 0) -> tuple[Any, list[float]]:
    """The state after a window of losses around 2, and the losses."""
    losses = [float(x) for x in 2 + 0.1 * np.random.default_rng(seed).normal(size=WINDOW)]
    state = opt.init(PARAMS)
    for x in losses:
        skipped, state = _updated(opt, state, x)
        assert not skipped
    return state, losses


@pytest.mark.parametrize("above", [-0.05, 0.05])
def test_a_loss_is_judged_by_mean_and_deviation(above: float):
    opt = SkipSpikes(_inner(), WINDOW, 5.0)
    state, losses = _warm(opt)
    limit = np.mean(losses) + 5 * np.std(losses)
    skipped, _ = _updated(opt, state, float(limit + above))
    assert skipped is (above > 0)


@pytest.mark.parametrize("above", [-0.05, 0.05])
def test_a_gradient_is_judged_by_its_norm(above: float):
    opt = SkipSpikes(_inner(), WINDOW, 5.0, loss=False)
    state, norms = opt.init(PARAMS), [1 + 0.1 * np.sin(i) for i in range(WINDOW)]
    for x in norms:
        skipped, state = _updated(opt, state, size=x)
        assert not skipped
    limit = float(np.mean(norms) + 5 * np.std(norms))
    skipped, _ = _updated(opt, state, size=limit + above)
    assert skipped is (above > 0)


def test_a_loss_far_below_is_no_spike():
    opt = SkipSpikes(_inner(), WINDOW)
    state, _ = _warm(opt)
    assert not _updated(opt, state, -1000.0)[0]


def test_either_is_enough():
    opt = SkipSpikes(_inner(), WINDOW)
    state, _ = _warm(opt)
    assert _updated(opt, state, 100.0)[0]
    assert _updated(opt, state, 2.0, size=100.0)[0]
    assert not _updated(opt, state, 2.0)[0]


def test_equal_losses_have_the_least_deviation():
    opt = SkipSpikes(_inner(), WINDOW, 6.0, grad_norm=False, min_std=0.01)
    state = opt.init(PARAMS)
    for _ in range(WINDOW):
        _, state = _updated(opt, state, 2.0)
    assert not _updated(opt, state, 2.05)[0]
    assert _updated(opt, state, 2.07)[0]


@pytest.mark.parametrize("min_count", [None, 3, WINDOW + 1])
def test_the_first_steps_are_not_judged(min_count: int | None):
    opt = SkipSpikes(_inner(), WINDOW, grad_norm=False, min_count=min_count)
    first = WINDOW // 2 if min_count is None else min_count
    state = opt.init(PARAMS)
    for num in range(1, WINDOW + 2):
        assert _updated(opt, state, 1e6)[0] is (num >= first)
        _, state = _updated(opt, state, 2.0)


def test_the_window_slides():
    """Only the last numbers count: here those after the first, which are much larger."""
    opt = SkipSpikes(_inner(), WINDOW, grad_norm=False)
    state = opt.init(PARAMS)
    for i in range(3 * WINDOW):
        _, state = _updated(opt, state, 1000.0 + i if i < 5 else 2.0 + 0.1 * (i % 2))
    assert float(jnp.max(_known(state))) < 3
    assert _updated(opt, state, 500.0)[0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_skipped_and_forgotten(bad: float):
    opt = SkipSpikes(_inner(), WINDOW)
    state = opt.init(PARAMS)
    # From the first step on.
    assert _updated(opt, state, bad)[0]
    state, _ = _warm(opt)
    for loss, size in ((bad, 1.0), (2.0, np.nan), (2.0, np.inf)):
        skipped, after = _updated(opt, state, loss, size)
        assert skipped
        for name in ("losses", "norms", "num_known", "place"):
            assert same(vars(after)[name], vars(state)[name])
        # So the next step is judged as if nothing had happened.
        assert not _updated(opt, after, 2.0)[0]
        assert _updated(opt, after, 100.0)[0]


def test_a_lasting_change_of_level_is_accepted_within_a_window():
    opt = SkipSpikes(_inner(), 128)
    state = opt.init(PARAMS)
    rng = np.random.default_rng(1)
    for _ in range(128):
        _, state = _updated(opt, state, 2 + 0.1 * rng.normal())
    num_skipped = 0
    while num_skipped < 128:
        skipped, state = _updated(opt, state, 50 + 0.1 * rng.normal())
        if not skipped:
            break
        num_skipped += 1
    # The number in the docstring: with a share p of new numbers, 1 - p <= 6 sqrt(p (1 - p)).
    assert num_skipped == 4


def test_in_a_compiled_loop_the_inner_step_is_conditional():
    opt = SkipSpikes(_inner(), WINDOW)
    state = opt.init(PARAMS)
    text = str(
        jax.make_jaxpr(lambda g, s, p, v: opt.update(g, s, p, value=v))(
            GRADS, state, PARAMS, jnp.asarray(2.0, FLOAT)
        )
    )
    assert "cond[" in text

    losses = jnp.asarray([2.0 + 0.01 * i for i in range(WINDOW)] + [99.0, np.nan, 2.0], FLOAT)

    def step(carry: Any, loss: Any) -> Any:
        params, state = carry
        updates, state = opt.update(GRADS, state, params, value=loss)
        return (eqopt.apply_updates(params, updates), state), state.last_skipped

    _, skipped = jax.lax.scan(step, (PARAMS, state), losses)
    assert [int(i) for i in np.flatnonzero(skipped)] == [WINDOW, WINDOW + 1]


def test_step_knows_the_loss():
    opt = SkipSpikes(eqopt.SGD(0.1), WINDOW)
    state = opt.init(PARAMS)
    new, state, evaluation = opt.step(
        lambda p: jnp.sum(p["a"] ** 2) + jnp.sum(p["b"] ** 2), PARAMS, state
    )
    assert not same(new["a"], PARAMS["a"])
    np.testing.assert_allclose(_known(state)[0], evaluation.value)


def test_mistakes():
    opt = SkipSpikes(_inner(), WINDOW)
    with pytest.raises(ValueError, match="`SkipSpikes` needs `value`: pass it to `update`"):
        opt.update(GRADS, opt.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match="`loss` and `grad_norm` are both False"):
        SkipSpikes(_inner(), loss=False, grad_norm=False)
    with pytest.raises(ValueError, match=r"`min_count` must be at most `window` \+ 1.*got 18"):
        SkipSpikes(_inner(), WINDOW, min_count=18)
    with pytest.raises(ValueError, match="`window` must be at least 2; got 1"):
        SkipSpikes(_inner(), 1)
    with pytest.raises(ValueError, match="`sigmas` must be at least 0"):
        SkipSpikes(_inner(), WINDOW, -1.0)
    with pytest.raises(TypeError, match="`inner` must be a transformation"):
        untyped.SkipSpikes(jnp.sum)
    with pytest.raises(TypeError, match=r"`state\.inner_state` is a `EmptyState`"):
        bad = eqopt.states.EmptyState()
        good = opt.init(PARAMS)
        opt.update(GRADS, dataclasses.replace(good, inner_state=bad), PARAMS, value=2.0)
