"""What only a callback reads, when the program runs, is no input of the program."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import eqopt
from eqopt._jit import compiled_call
from tests.jit.test_functions import Door, P
from tests.support.functions_that_count import answered, calls, COUNTING, Counting, squares


def run(door: Door, fn: Callable[..., Any]) -> float:
    value, _ = compiled_call.call_objective(door._body, fn, P)
    jax.effects_barrier()
    return float(value)


@pytest.fixture(autouse=True)
def _empty() -> None:
    calls.clear()


@pytest.mark.parametrize("make", COUNTING.values(), ids=COUNTING.keys())
def test_counting_evaluations_compiles_once(make: Callable[[], Counting]) -> None:
    door = Door()
    fn, count = make()
    for i in range(4):
        run(door, fn)
        assert count() == i + 1
    assert door.num_traces == 1


def test_each_counts_its_own() -> None:
    for name in ("list in a closure", "number in a closure", "object", "object with a rule"):
        make, door = COUNTING[name], Door()
        for num_runs in (1, 2, 3):
            fn, count = make()
            for _ in range(num_runs):
                run(door, fn)
            assert count() == num_runs


def test_made_anew_at_each_call_with_one_list() -> None:
    def make(mine: list[Array], y: Array) -> Callable[..., Array]:
        def fn(p: Array) -> Array:
            jax.debug.callback(mine.append, jnp.sum(p - y))
            jax.debug.callback(lambda x: mine.append(x), jnp.sum(p - y))
            return jnp.sum((p - y) ** 2)

        return fn

    door, mine, y = Door(), [], jnp.ones(3)
    for _ in range(4):
        run(door, make(mine, y))
    assert door.num_traces == 1
    assert list(map(float, mine)) == 8 * [3.0]


@pytest.mark.filterwarnings("ignore::eqopt.RecompilationWarning")
def test_a_callback_finds_the_arrays_of_its_closure() -> None:
    found: list[Any] = []

    def make(y: Array) -> Callable[..., Array]:
        def fn(p: Array) -> Array:
            jax.debug.callback(lambda: found.append(y))
            return jnp.sum((p - y) ** 2)

        return fn

    door = Door()
    for i in range(3):
        found.clear()
        run(door, make(i * jnp.ones(3)))
        (y,) = found
        assert np.array_equal(y, i * np.ones(3))


def test_a_log_of_objects_of_c() -> None:
    mine: list[object] = []

    def count(x: Any) -> None:
        mine.append(memoryview(x))

    def fn(p: Array) -> Array:
        jax.debug.callback(count, p)
        return squares(p)

    door = Door()
    for i in range(4):
        run(door, fn)
        assert len(mine) == i + 1
    assert door.num_traces == 1


# Line searches remember a function that counts.


def squared(x: Array, y: Array) -> Array:
    jax.debug.callback(lambda: calls.append(1))
    return jnp.sum(jnp.square(x + y))


def search() -> Any:
    return eqopt.Chain(eqopt.SGD(1.0), eqopt.ScaleByBacktrackingLinesearch(15, store_grad=True))


def test_a_step_evaluates_only_what_the_search_tries() -> None:
    traces: list[int] = []

    def fn(x: Array) -> Array:
        traces.append(1)
        jax.debug.callback(lambda: calls.append(1))
        return jnp.sum(x**2)

    opt = search()
    x, state = P, opt.init(P)
    for i in range(4):
        before = len(calls)
        x, state, _ = opt.step(fn, x, state)
        jax.effects_barrier()
        tried = int(state.states[1].info.num_linesearch_steps)
        assert len(calls) - before == tried + (i == 0)
        assert len(traces) == 1


@pytest.mark.filterwarnings("ignore::eqopt.RecompilationWarning")
def test_what_a_callback_answers_is_not_out_of_date() -> None:
    factor = [1.0]

    def fn(p: Array) -> Array:
        return squares(answered(lambda p: np.asarray(p) * p.dtype.type(factor[0]), p))

    opt = search()
    x, state = P, opt.init(P)
    for i in range(4):
        factor[0] = 1.0 + i
        before = float(fn(x))
        x, state, evaluation = opt.step(fn, x, state)
        assert np.isclose(evaluation.value, before, rtol=1e-6)


def test_value_and_gradient_come_from_the_state() -> None:
    opt, y = search(), jnp.ones(3)
    x, state = P, opt.init(P)
    value_and_grad = eqopt.value_and_grad_from_state(squared)
    for i in range(4):
        before = len(calls)
        value, grad = value_and_grad(x, y, state=state)
        jax.effects_barrier()
        assert len(calls) - before == (i == 0)
        assert np.allclose(value, np.sum((np.asarray(x) + 1) ** 2), rtol=1e-6)
        before = len(calls)
        updates, state = opt.update(grad, state, x, value=value, grad=grad, value_fn=squared, y=y)
        jax.effects_barrier()
        assert len(calls) - before == int(state.states[1].info.num_linesearch_steps)
        x = eqx.apply_updates(x, updates)
