"""What a line search remembers: nothing is evaluated twice, and nothing is ever out of date."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import eqopt
from tests.support.evaluations import Calls
from tests.support.toolbox import assert_close, FLOAT, same

X0 = np.array([1.0, 2.0, 3.0], FLOAT)
BATCH, OTHER = np.array([4.0, 5.0, 6.0], FLOAT), np.array([-1.0, 0.5, 9.0], FLOAT)
CALLS = Calls()


@pytest.fixture(autouse=True)
def _nothing_counted():
    CALLS.reset()


def distance(x: Array, y: Array) -> Array:
    return jnp.sum(jnp.square(CALLS.counted(x) + y))


def shifted(x: Array, y: Array) -> Array:
    return jnp.sum(jnp.square(CALLS.counted(x) + y)) + 1


def with_aux(x: Array, y: Array) -> tuple[Array, dict[str, Array]]:
    return distance(x, y), {"point": 2 * x}


def searching(**kwargs: Any) -> Any:
    search = eqopt.ScaleByBacktrackingLinesearch(15, store_grad=True, **kwargs)
    return eqopt.Chain(eqopt.SGD(1.0), search)


def settled(opt: Any, fn: Any = distance, x: Any = X0, y: Any = BATCH) -> tuple[Any, Any]:
    """A point and a state after one step."""
    x = jnp.asarray(x)
    x, state, _ = opt.step(fn, x, opt.init(x), y)
    return x, state


OPTIMIZERS = {
    "backtracking": searching,
    "zoom": lambda: eqopt.Chain(eqopt.SGD(1.0), eqopt.ScaleByZoomLinesearch(15)),
    "L-BFGS": eqopt.LBFGS,
    "BFGS": eqopt.BFGS,
    "masked": lambda: eqopt.Masked(searching(), eqopt.ByPath("**")),
    "scheduled": lambda: eqopt.Scheduled(
        searching(), lambda c: c.links[0].learning_rate, eqopt.Constant(1.0)
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_valid_cache_costs_no_evaluation(name: str):
    opt = OPTIMIZERS[name]()
    x, state = settled(opt)
    for _ in range(3):
        before = distance(x, jnp.asarray(BATCH))
        CALLS.reset()
        x, state, evaluation = opt.step(distance, x, state, BATCH)
        jax.effects_barrier()
        (search,) = [s for s in jax.tree.leaves(state, is_leaf=_is_search) if _is_search(s)]
        assert CALLS.evaluations == search.info.num_linesearch_steps
        np.testing.assert_allclose(evaluation.value, before, rtol=1e-6)


def _is_search(x: Any) -> bool:
    return isinstance(x, eqopt.states.LinesearchState)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_traces_the_objective_at_most_twice(name: str):
    opt = OPTIMIZERS[name]()
    x = jnp.asarray(X0)
    state = opt.init(x)
    CALLS.reset()
    for _ in range(4):
        x, state, _ = opt.step(lambda x, y: distance(x, y), x, state, BATCH)
    assert 1 <= CALLS.traces <= 2


# Whatever changes, the value is fresh.


def test_another_batch():
    x, state = settled(searching())
    _, _, evaluation = searching().step(distance, x, state, OTHER)
    np.testing.assert_allclose(evaluation.value, np.sum((np.asarray(x) + OTHER) ** 2), rtol=1e-6)


def test_a_batch_that_differs_in_the_last_bit_of_one_of_many_numbers():
    y = np.linspace(-1, 1, 3000).astype(FLOAT)
    x0 = jnp.ones(3000, FLOAT)
    x, state = settled(searching(), distance, x0, y)
    for place in (0, 1234, 2999):
        other = y.copy()
        other[place] = np.nextafter(other[place], FLOAT(5))
        assert CALLS.of(lambda other=other: _recalled(distance, x, other, state)) == 1
    swapped = y[::-1].copy()
    assert CALLS.of(lambda: _recalled(distance, x, swapped, state)) == 1
    assert CALLS.of(lambda: _recalled(distance, x, y, state)) == 0


def _recalled(fn: Any, *args: Any) -> Any:
    return eqopt.value_and_grad_from_state(fn)(*args[:-1], state=args[-1])


@pytest.mark.parametrize(
    "change", [lambda x: jnp.clip(x, -0.5, 0.5), lambda x: x * 1.5, jnp.negative]
)
def test_parameters_that_were_changed_since(change: Any):
    x, state = settled(searching())
    x = change(x)
    _, _, evaluation = searching().step(distance, x, state, BATCH)
    np.testing.assert_allclose(evaluation.value, np.sum((np.asarray(x) + BATCH) ** 2), rtol=1e-6)


def test_a_link_after_the_search_that_rescales_the_updates():
    opt = eqopt.Chain(*searching().links, eqopt.Scale(0.3))
    x, state = settled(opt)
    _, _, evaluation = opt.step(distance, x, state, BATCH)
    np.testing.assert_allclose(evaluation.value, np.sum((np.asarray(x) + BATCH) ** 2), rtol=1e-6)


def test_another_function_at_the_same_point_with_the_same_arguments():
    x, state = settled(searching())
    value, _ = _recalled(shifted, x, BATCH, state)
    np.testing.assert_allclose(value, np.sum((np.asarray(x) + BATCH) ** 2) + 1, rtol=1e-6)
    assert CALLS.of(lambda: _recalled(distance, x, BATCH, state)) == 0


def test_an_array_in_a_closure():
    def make(y: Any) -> Any:
        return lambda x: distance(x, y)

    x, y, opt = jnp.asarray(X0), jnp.asarray(BATCH), searching()
    x, state, _ = opt.step(make(y), x, opt.init(x))
    assert CALLS.of(lambda: _recalled(make(y), x, state)) == 0
    value, _ = _recalled(make(jnp.asarray(OTHER)), x, state)
    np.testing.assert_allclose(value, np.sum((np.asarray(x) + OTHER) ** 2), rtol=1e-6)


FACTOR: Any = 1.0


def _by_a_global(x: Array) -> Array:
    return FACTOR * jnp.sum(jnp.square(x))


def test_a_global_that_was_rebound():
    global FACTOR
    FACTOR = 1.0
    opt, x = searching(), jnp.asarray(X0)
    x, state, _ = opt.step(_by_a_global, x, opt.init(x))
    FACTOR = 100.0
    _, _, evaluation = opt.step(_by_a_global, x, state)
    np.testing.assert_allclose(evaluation.value, 100 * np.sum(np.asarray(x) ** 2), rtol=1e-6)


def test_what_of_the_model_is_not_trained():
    class Model(eqx.Module):
        x: Array
        power: Array

    def loss(model: Model) -> Array:
        return jnp.sum(jnp.abs(CALLS.counted(model.x)) ** model.power.astype(FLOAT))

    opt, model = searching(), Model(jnp.asarray(X0), jnp.asarray(2))
    model, state, _ = opt.step(loss, model, opt.init(model))
    assert CALLS.of(lambda: _recalled(loss, model, state)) == 0
    cubed = eqx.tree_at(lambda m: m.power, model, jnp.asarray(3))
    value, _ = _recalled(loss, cubed, state)
    np.testing.assert_allclose(value, np.sum(np.abs(np.asarray(model.x)) ** 3), rtol=1e-5)


def test_a_value_that_is_not_finite_is_never_kept():
    def wall(x: Array, y: Array) -> Array:
        return jnp.sum(x) * y[0]

    opt, x = searching(), jnp.asarray(X0)
    x, state, _ = opt.step(wall, x, opt.init(x), np.full(3, np.nan, FLOAT))
    assert same(x, jnp.asarray(X0))
    assert not state.states[1].cache.valid


def test_a_saved_state_is_not_taken_for_another_process_s():
    x, state = settled(searching())
    foreign = eqx.tree_at(lambda s: s.states[1].cache.key, state, replace_fn=lambda k: k ^ 1)
    assert CALLS.of(lambda: _recalled(distance, x, BATCH, foreign)) == 1


# What does not change is not evaluated.


def test_by_position_or_by_keyword_is_the_same():
    x, state = settled(searching())
    recall = eqopt.value_and_grad_from_state(distance)
    assert CALLS.of(lambda: recall(x, y=BATCH, state=state)) == 0
    assert CALLS.of(lambda: recall(x, BATCH, state=state)) == 0
    assert CALLS.of(lambda: recall(x, y=OTHER, state=state)) == 1


def test_update_and_value_and_grad_from_state():
    opt, x = searching(), jnp.asarray(X0)
    recall = eqopt.value_and_grad_from_state(distance)
    state, values = opt.init(x), []
    for i in range(4):
        CALLS.reset()
        value, grad = recall(x, BATCH, state=state)
        jax.effects_barrier()
        assert CALLS.evaluations == (i == 0)
        updates, state = opt.update(
            grad, state, x, value=value, grad=grad, value_fn=distance, y=BATCH
        )
        x = eqopt.apply_updates(x, updates)
        values.append(float(value))
        np.testing.assert_allclose(grad, 2 * (x - updates + BATCH), rtol=1e-5)
    assert values == sorted(values, reverse=True)


def test_argnums():
    def second(y: Array, x: Array) -> Array:
        return distance(x, y)

    opt, x = searching(), jnp.asarray(X0)
    recall = eqopt.value_and_grad_from_state(second, argnums=1)
    state = opt.init(x)
    for i in range(3):
        CALLS.reset()
        value, grad = recall(BATCH, x, state=state)
        jax.effects_barrier()
        assert CALLS.evaluations == (i == 0)
        np.testing.assert_allclose(grad, 2 * (x + BATCH), rtol=1e-6)
        updates, state = opt.update(
            grad, state, x, value=value, grad=grad, value_fn=recall, y=BATCH
        )
        x = eqopt.apply_updates(x, updates)


def test_several_argnums():
    def both(a: Array, y: Array, b: Array) -> Array:
        return distance(a, y) + jnp.sum(jnp.square(b))

    opt, models = searching(), (jnp.asarray(X0), jnp.asarray(OTHER))
    recall = eqopt.value_and_grad_from_state(both, argnums=(0, 2))
    state = opt.init(models)
    for i in range(3):
        CALLS.reset()
        value, grad = recall(models[0], BATCH, models[1], state=state)
        jax.effects_barrier()
        assert CALLS.evaluations == (i == 0)
        assert_close(grad, (2 * (models[0] + BATCH), 2 * models[1]), 1e-6)
        updates, state = opt.update(
            grad, state, models, value=value, grad=grad, value_fn=recall, y=BATCH
        )
        models = eqopt.apply_updates(models, updates)


def test_aux_belongs_to_the_accepted_point():
    opt, x = searching(), jnp.asarray(X0)
    state = opt.init(x, value_fn=with_aux, args=(BATCH,), has_aux=True)
    recall = eqopt.value_and_grad_from_state(with_aux, has_aux=True)
    for i in range(3):
        CALLS.reset()
        (_, aux), _ = recall(x, BATCH, state=state)
        jax.effects_barrier()
        assert CALLS.evaluations == (i == 0)
        assert_close(aux["point"], 2 * x)
        x, state, evaluation = opt.step(with_aux, x, state, BATCH, has_aux=True)
        assert_close(evaluation.aux["point"], aux["point"])
        assert_close(state.states[1].cache.evaluation.aux["point"], 2 * x)


def test_256_lanes_with_valid_caches_evaluate_nothing_twice():
    opt = eqopt.LBFGS()
    x = jax.random.uniform(jax.random.key(0), (256, 3), FLOAT, -2, 2)
    state = eqx.filter_vmap(opt.init)(x)

    @eqx.filter_jit
    def step(x: Array, state: Any) -> Any:
        return eqx.filter_vmap(lambda x, s: opt.step(distance, x, s, jnp.asarray(BATCH)))(x, state)

    x, state, _ = step(x, state)
    for _ in range(3):
        CALLS.reset()
        x, state, _ = step(x, state)
        jax.block_until_ready(x)
        jax.effects_barrier()
        assert CALLS.evaluations == jnp.max(state.states[2].info.num_linesearch_steps)
