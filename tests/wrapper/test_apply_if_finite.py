"""`ApplyIfFinite`: what is skipped leaves no trace, and what is accepted no lasting one."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqopt
from eqopt._base.trees import all_finite
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
    to_bfloat16,
    to_float32,
    TOLERANCE,
)
from tests.support.toolbox import FLOAT, same
from tests.support.trees import assert_near

MAX_ERRORS = 2


def _bad_steps(seed: int, *, longest: int) -> np.ndarray:
    """Random steps but the first, about a third, of which at most `longest` follow each other."""
    bad = np.random.default_rng(seed).random(NUM_STEPS) < 0.4
    bad[0] = False
    for i in range(longest, NUM_STEPS):
        bad[i] &= not bad[i - longest : i].all()
    return bad


def _good(gradients: Any, bad: np.ndarray) -> Any:
    return jax.tree.map(lambda x: x[~bad], gradients)


def _alone(tx: Any, params: Any, gradients: Any, bad: np.ndarray) -> Any:
    """By optax, without the bad steps; and what there was before each of them, in their places."""
    # Filled up at the end, that the number of steps be the same for every draw.
    order = np.concatenate([np.flatnonzero(~bad), np.zeros(bad.sum(), int)])
    found = theirs(tx, params, jax.tree.map(lambda x: x[order], gradients))
    last = np.cumsum(~bad) - 1
    assert last[0] == 0
    return jax.tree.map(lambda x: x[last], found)


# Not a longer average: `1 - b2**count` cancels in float32, by optax.
ADAM = optax.adam(0.1, 0.8, 0.9)
ADAM_IF_FINITE = optax.apply_if_finite(ADAM, MAX_ERRORS)


@pytest.mark.parametrize("seed", range(3))
def test_a_few_errors_are_skipped_as_by_optax(seed: int):
    params, gradients = problem(seed)
    bad = _bad_steps(seed, longest=MAX_ERRORS)
    assert bad.sum() > 10
    gradients = spoiled(gradients, seed, bad, [np.nan, np.inf, -np.inf])
    updates, state, final = ours(
        eqopt.ApplyIfFinite(eqopt.Adam(0.1, 0.8, 0.9), MAX_ERRORS), params, gradients
    )
    _, expected, expected_final = theirs(ADAM_IF_FINITE, params, gradients)
    assert_near(final, expected_final, TOLERANCE)
    np.testing.assert_array_equal(state.notfinite_count, expected.notfinite_count)
    np.testing.assert_array_equal(state.last_finite, expected.last_finite)
    np.testing.assert_array_equal(state.last_finite, ~bad)
    np.testing.assert_array_equal(state.total_notfinite, expected.total_notfinite)
    assert all(np.all(u[bad] == 0) for u in jax.tree.leaves(updates))


@pytest.mark.parametrize("seed", range(3))
def test_what_is_skipped_has_not_been(seed: int):
    """optax is no oracle: the square of a huge gradient makes its `nu` infinite, for ever.

    The oracle is its Adam on the good steps alone.
    """
    params, gradients = problem(seed)
    bad = _bad_steps(seed, longest=NUM_STEPS)
    gradients = spoiled(gradients, seed, bad, [np.nan, np.inf, -np.inf, HUGE])
    opt = eqopt.ApplyIfFinite(eqopt.Adam(0.1, 0.8, 0.9), MAX_ERRORS, eqopt.options.skip_update)
    updates, state, final = ours(opt, params, gradients)
    _, _, expected = _alone(ADAM, params, gradients, bad)
    assert_near(final, expected, TOLERANCE)
    assert all(np.all(u[bad] == 0) for u in jax.tree.leaves(updates))
    assert int(state.total_notfinite[-1]) == bad.sum()
    assert int(state.inner_state.states[0].count[-1]) == NUM_STEPS - bad.sum()


def test_optax_is_poisoned_by_a_huge_gradient():
    huge, one = jnp.full(2, HUGE, FLOAT), jnp.ones(2, FLOAT)
    gradients = jnp.stack([one, huge, one, one])
    updates, state, _ = theirs(ADAM_IF_FINITE, one, gradients)
    assert np.all(np.isinf(state.inner_state[0].nu[-1])) and np.all(updates[-1] == 0)
    updates, state, _ = ours(
        eqopt.ApplyIfFinite(eqopt.Adam(0.1, 0.8, 0.9), MAX_ERRORS), one, gradients
    )
    np.testing.assert_allclose(updates[-1], -0.1, rtol=1e-5)
    np.testing.assert_array_equal(state.total_notfinite, [0, 1, 1, 1])


def test_after_giving_up_the_inner_state_recovers():
    """By optax the update is accepted, and the state is NaN ever after; here only the former."""
    params, gradients = problem(5)
    bad = np.zeros(NUM_STEPS, bool)
    bad[[3, 10, 11, 12, 13, 14, 20, 21]] = True
    accepted = np.zeros(NUM_STEPS, bool)
    accepted[[12, 13, 14]] = True
    gradients = spoiled(gradients, 5, bad, [np.nan, np.inf])
    opt, tx = eqopt.Trace(0.7), optax.trace(0.7)
    updates, state, _ = ours(eqopt.ApplyIfFinite(opt, MAX_ERRORS), params, gradients)

    def bad_leaves(updates: Any, step: int) -> int:
        return sum(not np.all(np.isfinite(u[step])) for u in jax.tree.leaves(updates))

    poisoned, _, _ = theirs(optax.apply_if_finite(tx, MAX_ERRORS), params, gradients)
    assert bad_leaves(poisoned, 13) and bad_leaves(poisoned, NUM_STEPS - 1)
    expected, memory, _ = _alone(tx, params, gradients, bad)
    assert_near(_good(updates, bad), _good(expected, bad), TOLERANCE)
    assert_near(state.inner_state.trace, memory.trace, TOLERANCE)
    for step in np.flatnonzero(bad):
        assert bad_leaves(updates, int(step)) == int(accepted[step])


def test_what_the_inner_makes_finite_is_accepted_with_its_state():
    opt = eqopt.ApplyIfFinite(eqopt.Chain(eqopt.Clip(1.0), eqopt.Trace(0.5)), 1)
    x = jnp.ones(2, FLOAT)
    updates, state, _ = ours(opt, x, jnp.stack([x, x * np.inf, x * np.inf, x]))
    # Skipped at first; then clipped to 1, and remembered.
    np.testing.assert_array_equal(updates[:, 0], [1, 0, 1.5, 1.75])
    np.testing.assert_array_equal(state.total_notfinite, [0, 1, 2, 2])


def test_giving_up_by_an_error():
    opt = eqopt.ApplyIfFinite(eqopt.SGD(0.1), MAX_ERRORS, eqopt.options.raise_error)
    good, bad = jnp.ones(2, FLOAT), jnp.full(2, np.nan, FLOAT)
    state = opt.init(good)
    for gradient in (bad, bad, good, bad, bad):
        updates, state = opt.update(gradient, state, good)
        assert bool(jnp.all(jnp.isfinite(updates)))
    with pytest.raises(eqx.EquinoxRuntimeError, match="more than `max_consecutive_errors`"):
        jax.block_until_ready(eqx.filter_jit(opt.update)(bad, state, good))
    # Not within `eqx.filter_jit`, it is whatever JAX makes of it; but it says the same.
    with pytest.raises(Exception, match="more than `max_consecutive_errors`"):
        jax.block_until_ready(opt.update(bad, state, good))


def _reciprocal(updates: Any, params: Any) -> Any:
    return jax.tree.map(lambda u: 1 / u, updates)


def test_what_the_inner_produces_is_checked():
    inner = eqopt.Chain(eqopt.Stateless(_reciprocal), eqopt.Trace(0.5))
    good, zero = jnp.full(2, 2.0, FLOAT), jnp.zeros(2, FLOAT)
    gradients = jnp.stack([good, zero, good, zero, zero, good])
    updates, state, _ = ours(eqopt.ApplyIfFinite(inner, 1), good, gradients)
    np.testing.assert_array_equal(state.notfinite_count, [0, 1, 0, 1, 2, 0])
    np.testing.assert_array_equal(updates[:, 0], [0.5, 0, 0.75, 0, np.inf, 0.875])
    # optax lets it pass at once.
    by_optax, _, _ = theirs(optax.apply_if_finite(optax.stateless(_reciprocal), 1), good, gradients)
    assert np.isinf(by_optax[1, 0])
    raising = eqopt.ApplyIfFinite(inner, 0, eqopt.options.raise_error)
    with pytest.raises(eqx.EquinoxRuntimeError):
        jax.block_until_ready(eqx.filter_jit(raising.update)(zero, raising.init(good), good))


def test_what_is_not_known_yet_may_be_infinite():
    class Least(eqopt.writing.AbstractTransformation[eqopt.states.EMAState]):
        """Keeps the least update so far, infinity at first."""

        def init_state(self, params: Any, context: Any) -> eqopt.states.EMAState:
            return eqopt.states.EMAState(jnp.zeros((), jnp.int32), jnp.full_like(params, np.inf))

        def transform(self, updates: Any, state: Any, params: Any, context: Any) -> Any:
            return updates, eqopt.states.EMAState(state.count, jnp.minimum(state.ema, updates))

    x = jnp.asarray([1.0, 2.0], FLOAT)
    opt = eqopt.ApplyIfFinite(Least(), 0, eqopt.options.raise_error)
    updates, state = opt.update(x, opt.init(x), x)
    assert same(updates, x) and same(state.inner_state.ema, x)


def test_the_inner_may_change_the_dtype():
    """optax's refuses both (optax#1746)."""
    x = jnp.ones(2, jnp.float32)
    bad = x * np.nan
    widening, narrowing = eqopt.Stateless(to_float32), eqopt.Stateless(to_bfloat16)
    for inner in (widening, narrowing):
        opt = eqopt.Chain(eqopt.Stateless(to_bfloat16), eqopt.ApplyIfFinite(inner, 2))
        state = opt.init(x)
        updates, state = opt.update(x, state, x)
        assert same(updates, x)
        updates, state = opt.update(bad, state, x)
        assert same(updates, jnp.zeros_like(x))
    half = x.astype(jnp.bfloat16)
    tx = optax.apply_if_finite(optax.stateless(to_float32), 2)
    with pytest.raises(TypeError):
        tx.update(half, tx.init(half), half)


def test_what_is_skipped_is_not_computed():
    calls = Calls()
    opt = eqopt.ApplyIfFinite(Counted(calls), 1)
    x = jnp.ones(2, FLOAT)
    state = opt.init(x)
    executed = []
    for factor in (1.0, np.nan, np.nan, np.inf, 1.0):
        updates, state = opt.update(x * factor, state, x)
        jax.block_until_ready(updates)
        jax.effects_barrier()
        executed.append(calls.num)
    assert executed == [1, 1, 2, 3, 4]


def test_lanes_do_not_disturb_each_other():
    opt = eqopt.ApplyIfFinite(eqopt.Trace(0.5), 1)
    x = jnp.asarray([1.0, 2.0], FLOAT)
    lanes = jnp.stack([x, x * np.nan, x])
    states = eqx.filter_vmap(opt.init)(lanes)
    _, states = eqx.filter_vmap(opt.update)(lanes, states, lanes)
    updates, states = eqx.filter_vmap(opt.update)(lanes, states, lanes)
    np.testing.assert_array_equal(updates[::2], jnp.stack([1.5 * x, 1.5 * x]))
    np.testing.assert_array_equal(states.notfinite_count, [0, 2, 0])
    np.testing.assert_array_equal(states.inner_state.trace[1], [0, 0])


def test_nothing_is_finite():
    opt = eqopt.ApplyIfFinite(eqopt.SGD(0.1), 0)
    updates, state = opt.update({}, opt.init({}), {})
    assert updates == {} and bool(state.last_finite) and int(state.total_notfinite) == 0


def test_a_line_search_inside():
    search = eqopt.ScaleByBacktrackingLinesearch(max_backtracking_steps=15, store_grad=True)
    opt = eqopt.ApplyIfFinite(eqopt.Chain(eqopt.SGD(1.0), search), 5)

    def fn(x: Any, scale: Any) -> Any:
        return scale * jnp.sum(jnp.square(x - 1) * jnp.asarray([1.0, 8.0], FLOAT))

    x = jnp.asarray([3.0, -2.0], FLOAT)
    state = opt.init(x)
    for scale in (1.0, np.nan, 1.0, 1.0, np.inf, 1.0):
        before = x
        x, state, _ = opt.step(fn, x, state, scale)
        if scale != 1:
            assert same(x, before)
        else:
            assert fn(x, 1.0) < fn(before, 1.0)
    assert int(state.total_notfinite) == 2


@pytest.mark.parametrize("choice", ["accept", None, eqopt.Identity])
def test_a_mistaken_choice_is_named(choice: Any):
    with pytest.raises(TypeError, match="`on_give_up` must be"):
        eqopt.ApplyIfFinite(eqopt.SGD(0.1), 1, choice)


def test_steps_one_at_a_time_are_those_of_a_scan():
    """Outside any other program the steps are the front door's own."""
    params, gradients = problem(9)
    gradients = spoiled(gradients, 9, np.arange(NUM_STEPS) % 3 == 1, [np.nan])
    opt = eqopt.ApplyIfFinite(eqopt.Trace(0.5), 1)
    state, (updates, _, _) = opt.init(params), ours(opt, params, gradients)
    for step in range(5):
        update, state = opt.update(at(gradients, step), state, params)
        assert_near(update, jax.tree.map(lambda u, i=step: u[i], updates), TOLERANCE)


_SHAPE = (512, 2048)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.complex64])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_numbers_are_found(dtype: Any, bad: float) -> None:
    good = np.full(_SHAPE, np.finfo(dtype).max, dtype)
    assert all_finite([good, None, np.zeros(0, dtype)])
    for place in [(0, 0), (100, 1000), (511, 2047)]:
        worse = good.copy()
        worse[place] = bad
        assert not all_finite([good, worse])
