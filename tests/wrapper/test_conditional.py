"""`ConditionallyTransform` and `ConditionallyMask`."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqopt
from tests.support.skipping import (
    Calls,
    Counted,
    ours,
    problem,
    theirs,
    to_bfloat16,
    to_float32,
    TOLERANCE,
)
from tests.support.toolbox import FLOAT, same, X64
from tests.support.trees import assert_near

both = pytest.mark.parametrize("cls", [eqopt.ConditionallyTransform, eqopt.ConditionallyMask])


def third(step: Any) -> Any:
    return step % 3 == 1


PAIRS = [
    (eqopt.ConditionallyTransform, optax.conditionally_transform),
    (eqopt.ConditionallyMask, optax.conditionally_mask),
]


@pytest.mark.parametrize(("cls", "other"), PAIRS)
def test_trajectories_equal_those_of_optax(cls: Any, other: Any):
    tx = other(optax.adam(0.1, 0.8, 0.9), third)
    for seed in range(2):
        params, gradients = problem(seed)
        updates, state, final = ours(cls(eqopt.Adam(0.1, 0.8, 0.9), third), params, gradients)
        expected, expected_state, expected_final = theirs(tx, params, gradients)
        assert_near(final, expected_final, TOLERANCE)
        if X64:  # in float32, optax's own first updates of Adam are off by 1e-5
            assert_near(updates, expected, TOLERANCE)
        np.testing.assert_array_equal(state.step, expected_state.step)
        np.testing.assert_array_equal(
            state.inner_state.states[0].count, expected_state.inner_state[0].count
        )


@pytest.mark.parametrize(("cls", "other"), PAIRS)
def test_extra_arguments_are_forwarded(cls: Any, other: Any):
    def improves(step: Any, *, value: Any, best: Any) -> Any:
        return value < best

    x = jnp.ones(2, FLOAT)
    opt = cls(eqopt.SGD(0.1), improves, forward_extra_args=True)
    tx = other(optax.sgd(0.1), lambda step, value, best: value < best, forward_extra_args=True)
    state, tx_state = opt.init(x), tx.init(x)
    for value in (1.0, 3.0):
        given: dict[str, Any] = {"value": jnp.asarray(value), "best": jnp.asarray(2.0)}
        updates, state = opt.update(x, state, x, unwanted=1.0, **given)
        expected, tx_state = tx.update(x, tx_state, x, **given)
        np.testing.assert_array_equal(updates, expected)
    # optax's function must take whatever there is.
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        tx.update(x, tx_state, x, unwanted=1.0, **given)


@both
def test_everything_is_forwarded_as_the_user_gave_it(cls: Any):
    dtype = np.complex128 if X64 else np.complex64
    x, seen = jnp.asarray([1 + 2j, 3 - 1j], dtype), []

    def look(step: Any, **given: Any) -> Any:
        seen.append(given)
        slope = jnp.imag(given["grad"])[0] > 0
        return slope & (given["value_fn"](x) == given["value"]) & (given["probe"] > 0)

    def fn(z: Any) -> Any:
        return jnp.sum(jnp.abs(z))

    opt = cls(eqopt.Scale(3.0), look, forward_extra_args=True)
    key = jax.random.key(0)
    # Eagerly, so that the function's value is the very same.
    updates, _ = opt.transform(
        x,
        opt.init(x),
        x,
        eqopt.writing.Context(
            fn(x), jnp.conj(x), eqopt.writing.Objective(fn, None), key, {"probe": jnp.asarray(1.0)}
        ),
    )
    np.testing.assert_array_equal(updates, 3 * np.asarray(x))
    assert set(seen[0]) == {"value", "grad", "value_fn", "key", "probe"}
    np.testing.assert_array_equal(seen[0]["grad"], x)

    silent = cls(eqopt.Scale(3.0), lambda step, **given: not given, forward_extra_args=False)
    updates, _ = silent.update(x, silent.init(x), x, value=1.0, probe=1.0)
    np.testing.assert_array_equal(updates, 3 * np.conj(x))


def test_what_is_masked_does_not_leak():
    nan, one = jnp.full(2, np.nan, FLOAT), jnp.ones(2, FLOAT)
    gradients = jnp.stack([nan, one, nan, nan, one])
    opt = eqopt.ConditionallyMask(eqopt.Trace(0.5), third)
    updates, state, _ = ours(opt, one, gradients)
    np.testing.assert_array_equal(updates[:, 0], [0, 1, 0, 0, 1.5])
    np.testing.assert_array_equal(state.inner_state.trace[:, 0], [0, 1, 1, 1, 1.5])


@pytest.mark.parametrize(("cls", "other"), PAIRS)
def test_the_inner_may_change_the_dtype(cls: Any, other: Any):
    x = jnp.full(2, 1 + 2**-12, jnp.float32)  # not a number of bfloat16's
    inner = eqopt.Stateless(to_bfloat16)
    opt = cls(inner, third)
    updates, _, _ = ours(opt, x, jnp.stack([x, x, x]))
    passed = float(x[0]) if cls is eqopt.ConditionallyTransform else 0.0
    # What passes is not rounded on the way.
    np.testing.assert_array_equal(updates[:, 0], [passed, 1.0, passed])
    chain = eqopt.Chain(inner, cls(eqopt.Stateless(to_float32), third))
    updates, _, _ = ours(chain, x, jnp.stack([x, x]))
    np.testing.assert_array_equal(updates[1], 1.0)
    tx = other(optax.stateless(to_bfloat16), third)
    with pytest.raises(TypeError):
        tx.update(x, tx.init(x), x)


@both
def test_at_the_other_steps_nothing_is_computed(cls: Any):
    calls, x = Calls(), jnp.ones(2, FLOAT)
    opt = cls(Counted(calls), third)
    state, executed = opt.init(x), []
    for _ in range(5):
        updates, state = opt.update(x, state, x)
        jax.block_until_ready(updates)
        jax.effects_barrier()
        executed.append(calls.num)
    assert executed == [0, 1, 1, 1, 2]


@both
def test_the_function_may_be_a_module_or_give_a_plain_bool(cls: Any):
    class After(eqx.Module):
        start: jax.Array

        def __call__(self, step: Any) -> Any:
            return step >= self.start

    x = jnp.ones(2, FLOAT)
    updates, _, _ = ours(cls(eqopt.Scale(3.0), After(jnp.asarray(1))), x, jnp.stack([x, x]))
    otherwise = 1.0 if cls is eqopt.ConditionallyTransform else 0.0
    np.testing.assert_array_equal(updates[:, 0], [otherwise, 3])
    always = cls(eqopt.Scale(3.0), lambda step: True)
    assert same(always.update(x, always.init(x), x)[0], 3 * x)


@both
@pytest.mark.parametrize("answer", [jnp.ones(2, bool), 1.0, None], ids=["vector", "float", "None"])
def test_what_is_no_condition_is_named(cls: Any, answer: Any):
    x = jnp.ones(2, FLOAT)
    opt = cls(eqopt.Scale(3.0), lambda step: answer)
    with pytest.raises(TypeError, match="`should_transform_fn` must return one boolean; it ret"):
        opt.update(x, opt.init(x), x)
    with pytest.raises(TypeError, match="`should_transform_fn` must be a function"):
        cls(eqopt.Scale(3.0), answer)
