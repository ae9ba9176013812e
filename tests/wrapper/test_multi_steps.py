"""`MultiSteps` and `ApplyEvery`: one step for several mini-batches."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqopt
from tests.support.skipping import (
    at,
    Calls,
    Counted,
    HUGE,
    NUM_STEPS,
    ours,
    problem,
    spoiled,
    theirs,
    TOLERANCE,
)
from tests.support.toolbox import FLOAT, same, Tally, Traced
from tests.support.trees import assert_near

K = 4
LIMIT = 1e3
# Not a longer average: `1 - b2**count` cancels in float32, by optax.
OURS, THEIRS = eqopt.Adam(0.1, 0.8, 0.9), optax.adam(0.1, 0.8, 0.9)


def growing(gradient_step: Any) -> Any:
    return 1 + gradient_step // 2


def _bad_steps(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(NUM_STEPS) < 0.3


def _moved(updates: Any) -> np.ndarray:
    return np.any([np.any(u != 0, tuple(range(1, u.ndim))) for u in jax.tree.leaves(updates)], 0)


@pytest.mark.parametrize(
    ("every_k", "options", "kinds"),
    [
        (K, {}, []),
        (growing, {"use_grad_mean": False}, []),
        (K, {"should_skip_update_fn": "skip_not_finite"}, [np.nan, np.inf, -np.inf]),
        (K, {"should_skip_update_fn": "skip_large_updates"}, [np.nan, np.inf, HUGE, 1e3]),
    ],
    ids=["mean", "schedule-sum", "not-finite", "large"],
)
def test_trajectories_equal_those_of_optax(every_k: Any, options: dict[str, Any], kinds: Any):
    """Also the counts; but `has_updated` is held against the updates, for optax's is wrong."""

    def build(package: Any, bind: Any) -> Any:
        name = options.get("should_skip_update_fn")
        if name is None:
            return options
        fn = getattr(package, name)
        fn = bind(fn, max_squared_norm=LIMIT) if name == "skip_large_updates" else fn
        return {"should_skip_update_fn": fn}

    opt = eqopt.MultiSteps(OURS, every_k, **build(eqopt, eqx.Partial))
    # By optax, the accumulator of float64 is float32.
    tx = optax.MultiSteps(
        THEIRS, every_k, accumulator_dtype=FLOAT, **build(optax, functools.partial)
    )
    for seed in range(2):
        params, gradients = problem(seed)
        bad = _bad_steps(seed) & bool(kinds)
        gradients = spoiled(gradients, seed, bad, kinds or [0.0])
        updates, state, final = ours(opt, params, gradients)
        _, expected, expected_final = theirs(tx, params, gradients)
        assert_near(final, expected_final, TOLERANCE)
        np.testing.assert_array_equal(state.mini_step, expected.mini_step)
        np.testing.assert_array_equal(state.gradient_step, expected.gradient_step)
        assert state.gradient_step[-1] >= 9
        np.testing.assert_array_equal(opt.has_updated(state), _moved(updates))
        by_optax = np.asarray(tx.has_updated(expected))
        if kinds:
            assert np.any(by_optax & ~_moved(updates)) and not np.any(~by_optax & _moved(updates))
            for name, kept in expected.skip_state.items():
                ours_kept = np.asarray(state.skip_state[name], np.float64)
                np.testing.assert_allclose(ours_kept, np.asarray(kept, np.float64), rtol=1e-5)
        else:
            np.testing.assert_array_equal(by_optax, _moved(updates))


def test_a_window_with_a_bad_gradient_is_skipped():
    """By optax every later update is NaN (optax#828); the oracle is its Adam on the good means."""
    params, gradients = problem(3)
    bad = np.zeros(NUM_STEPS, bool)
    bad[[1, 9, 10, 36]] = True
    gradients = spoiled(gradients, 3, bad, [np.nan, np.inf])
    updates, state, _ = ours(eqopt.MultiSteps(OURS, K), params, gradients)
    tx = optax.MultiSteps(THEIRS, K, accumulator_dtype=FLOAT)
    poisoned, _, _ = theirs(tx, params, gradients)
    flat = [np.isnan(u).reshape(NUM_STEPS, -1) for u in jax.tree.leaves(poisoned)]
    assert np.all(np.any(np.concatenate(flat, 1), 1)[K:])

    good = ~bad.reshape(-1, K).any(1)
    assert good.sum() == NUM_STEPS // K - 3
    means = jax.tree.map(lambda x: x.reshape(-1, K, *x.shape[1:]).mean(1)[good], gradients)
    expected, _, _ = theirs(THEIRS, params, means)
    last = np.zeros(NUM_STEPS, bool)
    last[K - 1 :: K] = good
    # Another order of summation, and Adam's updates near a mean of zero magnify it.
    assert_near(jax.tree.map(lambda u: u[last], updates), expected, 20 * TOLERANCE)
    np.testing.assert_array_equal(_moved(updates), last)
    np.testing.assert_array_equal(state.updated, last)
    assert int(state.gradient_step[-1]) == good.sum()


def test_the_inner_is_computed_once_a_window():
    calls, x = Calls(), jnp.ones(2, FLOAT)
    opt = eqopt.MultiSteps(Counted(calls), 8)
    _, state, _ = ours(opt, x, jnp.stack([x] * 25))
    jax.effects_barrier()
    assert calls.num == 3 and int(state.mini_step[-1]) == 1


def _polynomial(updates: Any, params: Any) -> Any:
    """As costly as what orthogonalizes."""

    def one(u: Any) -> Any:
        for _ in range(5):
            u = 1.5 * u - 0.5 * u @ (u.T @ u)
        return u

    return jax.tree.map(one, updates)


def _operations(jaxpr: Any) -> tuple[float, float]:
    """The operations of a program, and those that are run under a condition only."""
    always = sometimes = 0.0
    for eqn in jaxpr.eqns:
        size = sum(v.aval.size for v in eqn.outvars if eqx.is_array_like(v.aval) or v.aval.shape)
        if eqn.primitive.name == "cond":
            sometimes += max(sum(_operations(b.jaxpr)) for b in eqn.params["branches"])
        elif eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            always += 2 * size * eqn.invars[0].aval.shape[contracted[0]]
        elif "jaxpr" in eqn.params:
            inner = _operations(eqn.params["jaxpr"].jaxpr)
            always, sometimes = always + inner[0], sometimes + inner[1]
        else:
            always += size
    return always, sometimes


def test_a_costly_optimizer_costs_an_eighth():
    x, inner = jnp.ones((64, 64), FLOAT), eqopt.Stateless(_polynomial)
    alone, none = _operations(jax.make_jaxpr(inner.update)(x, inner.init(x), x).jaxpr)
    assert none == 0 and alone > 20 * 64**3
    opt = eqopt.MultiSteps(inner, 8)
    state = opt.init(x)
    always, sometimes = _operations(
        jax.make_jaxpr(lambda u, s: opt.update(u, s, x))(x, state).jaxpr
    )
    assert sometimes >= alone
    assert always + sometimes / 8 <= 1.3 / 8 * alone


@pytest.mark.default_flags
def test_a_costly_optimizer_is_computed_under_a_condition():
    """The compiler has made no selection of it, which would compute both sides."""
    x, opt = jnp.ones((64, 64), FLOAT), eqopt.MultiSteps(eqopt.Stateless(_polynomial), 8)
    state = opt.init(x)
    text = jax.jit(lambda u, s: opt.update(u, s, x)).lower(x, state).compile().as_text()
    assert text is not None
    entry = text[text.index("\nENTRY") :]
    assert " conditional(" in entry and " dot(" not in entry and "custom-call" not in entry


def test_a_window_is_a_step_on_the_full_batch():
    key = jax.random.key(0)
    model = eqx.nn.MLP(3, 2, 8, 1, dtype=FLOAT, key=key)
    x = jax.random.normal(key, (64, 3), FLOAT)

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(model: Any, x: Any) -> Any:
        return jnp.mean(jax.vmap(model)(x) ** 2)

    alone, opt = eqopt.AdamW(0.1), eqopt.MultiSteps(eqopt.AdamW(0.1), 8)
    expected, _ = alone.update(gradient(model, x), alone.init(model), model)
    state = opt.init(model)
    updates = None
    for part in jnp.split(x, 8):
        updates, state = opt.update(gradient(model, part), state, model)
    assert bool(opt.has_updated(state))
    for u, e in zip(jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(u, e, rtol=0, atol=1e-6)


def test_the_mean_is_handed_on_as_it_is():
    """By optax it is rounded to bfloat16 first (optax#377)."""
    seen: list[Any] = []

    def spread(updates: Any, params: Any) -> Any:
        seen.append(updates.dtype)
        return (updates - 1) * 256

    half = jnp.ones(2, jnp.bfloat16)
    gradients = jnp.stack([half, half * (1 + 2**-7)])
    opt = eqopt.MultiSteps(eqopt.Stateless(spread), 2)
    updates, state, _ = ours(opt, half, gradients)
    assert seen == [jnp.float32] and state.acc_grads.dtype == jnp.float32
    np.testing.assert_array_equal(np.float32(updates[1]), 1.0)
    by_optax, _, _ = theirs(optax.MultiSteps(optax.stateless(spread), 2), half, gradients)
    assert not np.any(np.float32(by_optax[1]) == 1.0)
    asked = eqopt.MultiSteps(eqopt.Identity(), 2, accumulator_dtype=jnp.bfloat16)
    assert asked.init(jnp.ones(2)).acc_grads.dtype == jnp.bfloat16


def test_a_mean_does_not_overflow():
    large = jnp.full(2, 0.75 * np.finfo(FLOAT).max, FLOAT)
    updates, _, _ = ours(eqopt.MultiSteps(eqopt.Identity(), 4), large, jnp.stack([large] * 4))
    np.testing.assert_array_equal(updates[-1], large)


@pytest.mark.parametrize("use_grad_mean", [True, False])
def test_flushing_the_last_short_window(use_grad_mean: bool):
    params, gradients = problem(4)
    tally = Tally()
    inner = eqopt.Chain(eqopt.Trace(0.5), Traced(tally))
    opt = eqopt.MultiSteps(inner, 3, use_grad_mean)
    state = opt.init(params)
    for step in range(5):
        _, state = opt.update(at(gradients, step), state, params)
    assert not opt.has_updated(state)
    updates, state = opt.flush(state, params)
    assert bool(opt.has_updated(state)) and tally.num == 1
    assert (int(state.mini_step), int(state.gradient_step)) == (0, 2)
    assert all(np.all(acc == 0) for acc in jax.tree.leaves(state.acc_grads))

    def window(x: Any, start: int, stop: int) -> Any:
        return x[start:stop].mean(0) if use_grad_mean else x[start:stop].sum(0)

    expected = jax.tree.map(lambda x: 0.5 * window(x, 0, 3) + window(x, 3, 5), gradients)
    # Ten times: the mean is taken as a recurrence, five times rounded, and not as NumPy's.
    assert_near(jax.tree.map(np.asarray, updates), expected, 10 * TOLERANCE)

    again, after = opt.flush(state, params)
    assert all(np.all(u == 0) for u in jax.tree.leaves(again)) and not opt.has_updated(after)
    assert same(eqx.tree_at(lambda s: s.updated, after, jnp.asarray(True)), state)


def test_flushing_hands_everything_on_and_drops_what_is_bad():
    x, nan = jnp.full(2, 2.0, FLOAT), jnp.full(2, np.nan, FLOAT)

    class Times(eqopt.writing.AbstractTransformation[eqopt.states.EmptyState]):
        def init_state(self, params: Any, context: Any) -> eqopt.states.EmptyState:
            return eqopt.states.EmptyState()

        def transform(self, updates: Any, state: Any, params: Any, context: Any) -> Any:
            factor = context.require("value", self) * context.require("probe", self)
            return updates * factor * params, state

    opt = eqopt.MultiSteps(Times(), 9)
    given: dict[str, Any] = {"value": 3.0, "probe": 5.0}
    _, state = opt.update(x, opt.init(x), x, **given)
    updates, state = opt.flush(state, x, **given)
    np.testing.assert_array_equal(updates, 60.0)
    _, state = opt.update(nan, state, x, **given)
    updates, state = opt.flush(state, x, **given)
    assert same(updates, jnp.zeros_like(x)) and not opt.has_updated(state)
    np.testing.assert_array_equal(state.acc_grads, 0.0)
    with pytest.raises(TypeError, match="`state` is a `EmptyState`; `MultiSteps` has"):
        wrong: Any = eqopt.states.EmptyState()
        opt.flush(wrong, x)


@pytest.mark.parametrize(("limit", "skips"), [(24.0, True), (25.0, True), (26.0, False)])
def test_large_updates_are_skipped_at_the_limit(limit: float, skips: bool):
    x = jnp.asarray([3.0, 4.0], FLOAT)
    found, kept = eqopt.skip_large_updates(x, jnp.zeros((), jnp.int32), x, max_squared_norm=limit)
    assert bool(found) is skips and bool(kept["should_skip"]) is skips
    assert float(kept["norm_squared"]) == 25.0


def _answering(answer: Any) -> eqopt.MultiSteps[eqopt.states.EmptyState]:
    def answers(updates: Any, gradient_step: Any, params: Any) -> Any:
        return answer

    return eqopt.MultiSteps(eqopt.Identity(), 1, should_skip_update_fn=answers)


@pytest.mark.parametrize("answer", [(True, ()), True, (np.bool_(True), ())])
def test_a_plain_bool_is_understood(answer: Any):
    """optax has an AttributeError for the first."""
    x = jnp.ones(2, FLOAT)
    opt = _answering(answer)
    updates, _ = opt.update(x, opt.init(x), x)
    assert same(updates, jnp.zeros_like(x))


@pytest.mark.parametrize("answer", [(1.0, ()), (np.ones(2, bool), ()), None])
def test_what_is_no_answer_is_named(answer: Any):
    with pytest.raises(TypeError, match="`should_skip_update_fn` must return one boolean"):
        _answering(answer).init(jnp.ones(2, FLOAT))
    with pytest.raises(TypeError, match="`should_skip_update_fn` must be a function or None"):
        fn: Any = answer or 3
        eqopt.MultiSteps(eqopt.Identity(), 1, should_skip_update_fn=fn)


def test_what_is_kept_has_one_structure():
    def changing(updates: Any, gradient_step: Any, params: Any) -> Any:
        return False, {"a": 1.0} if params is None else {"b": 1.0}

    x = jnp.ones(2, FLOAT)
    opt = eqopt.MultiSteps(eqopt.Identity(), 2, should_skip_update_fn=changing)
    state = opt.init(x)
    _, state = opt.update(x, state, x)
    assert same(state.skip_state, {"b": jnp.asarray(1.0)})
    with pytest.raises(ValueError, match=r"skip_state\['"):
        opt.update(x, state)


def test_k_may_change_within_a_window_without_compiling():
    tally, x = Tally(), jnp.ones(2, FLOAT)
    opt = eqopt.MultiSteps(Traced(tally), np.int64(5))
    state = opt.init(x)
    for _ in range(3):
        _, state = opt.update(x, state, x)
    # More have been collected already than are wanted now.
    updates, state = opt.replace(every_k_schedule=2).update(x, state, x)
    assert bool(opt.has_updated(state)) and tally.num == 1
    np.testing.assert_array_equal(updates, 1.0)


@pytest.mark.parametrize("k", [0, -1, 1.5])
def test_a_mistaken_k_is_named(k: Any):
    with pytest.raises(ValueError, match="`every_k_schedule` must be"):
        eqopt.MultiSteps(eqopt.SGD(0.1), k)
    with pytest.raises(ValueError, match="`k` must be"):
        eqopt.ApplyEvery(k)


def test_a_missing_gradient_stays_out_of_the_mean():
    a, b = jnp.ones(2, FLOAT), jnp.full(3, 2.0, FLOAT)
    params = {"a": a, "b": b}
    opt = eqopt.MultiSteps(eqopt.Identity(), 2)
    state = opt.init(params)
    _, state = opt.update({"a": a, "b": b * np.nan}, state, params)
    updates, state = opt.update({"a": 3 * a, "b": None}, state, params)
    np.testing.assert_array_equal(updates["a"], 2.0)
    assert updates["b"] is None
    for _ in range(2):  # and what it had collected, bad as it was, is no part of the next one
        updates, state = opt.update(params, state, params)
    assert same(updates, params)


def test_sums_equal_those_of_optax():
    params, gradients = problem(6)
    opt = eqopt.Chain(OURS, eqopt.ApplyEvery(K))
    _, _, final = ours(opt, params, gradients)
    _, _, expected = theirs(optax.chain(THEIRS, optax.apply_every(K)), params, gradients)
    assert_near(final, expected, TOLERANCE)


def test_a_bad_number_does_not_outlast_its_sum():
    """optax multiplies by zero, and keeps it."""
    x = jnp.ones(2, FLOAT)
    gradients = jnp.stack([x, x * np.nan, x, x])
    updates, state, _ = ours(eqopt.ApplyEvery(2), x, gradients)
    np.testing.assert_array_equal(updates[:, 0], [0, np.nan, 0, 2])
    np.testing.assert_array_equal(state.mini_step, [1, 0, 1, 0])
    by_optax, _, _ = theirs(optax.apply_every(2), x, gradients)
    assert np.all(np.isnan(by_optax[-1]))
