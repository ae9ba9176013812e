"""The laws of states: their types, buffers, devices and counts, over every transformation."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import eqopt
from eqopt.writing import AbstractTransformation, Context
from tests.laws.table import each, every, Row, ROWS
from tests.support.toolbox import (
    assert_close,
    DTYPES,
    FLOAT,
    in_one_width,
    same,
    Tally,
    tree,
    types,
    values,
    X64,
)

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: jnp.dtype(dtype).name)


def _arrays(x: Any) -> list[jax.Array]:
    return jax.tree.leaves(eqx.filter(x, eqx.is_array))


# 4. State types are a fixed point.


@every
@every_dtype
def test_types_are_a_fixed_point(row: Row, dtype: Any):
    params, gradients, opt = tree(0, dtype), tree(7, dtype), row.make()
    needs = row.needs(params)

    def update(gradients: Any, state: Any) -> Any:
        return opt.update(gradients, state, params, **needs)

    # Abstractly, so that nothing is compiled; with the dtypes and weak types of the real thing.
    state = jax.eval_shape(opt.init, params)
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(state))
    assert not any(x.weak_type for x in jax.tree.leaves(state))
    updates, new_state = jax.eval_shape(update, gradients, state)
    assert types(new_state) == types(state)
    assert types(updates) == types(params)

    def scanned(state: Any, gradients: Any) -> Any:
        return jax.lax.scan(lambda s, g: update(g, s)[::-1], state, gradients)

    several = jax.tree.map(lambda x: jnp.stack([x, x]), gradients)
    final, all_updates = jax.eval_shape(scanned, state, several)
    assert types(final) == types(state)
    assert types(all_updates) == types(several)

    both, new_states = jax.eval_shape(jax.vmap(update, (0, None)), several, state)
    assert types(both) == types(several)
    assert types(new_states) == types(jax.eval_shape(_twice, state))


def _twice(state: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros((2, *x.shape), x.dtype), state)


@every
def test_eager_and_compiled_states_are_of_one_type(row: Row):
    params, gradients, opt = tree(), tree(7), row.make()
    needs = row.needs(params)
    state = opt.init(params)
    assert types(state) == types(eqx.filter_jit(opt.init)(params))
    assert types(state) == types(jax.eval_shape(opt.init, params))
    _, new_state = opt.update(gradients, state, params, **needs)
    assert types(new_state) == types(state)


@in_one_width
@every
@pytest.mark.parametrize("donate", ["none", "all"])
def test_a_train_step_is_traced_once_and_may_donate_everything(row: Row, donate: Any):
    opt, tally = row.make(), Tally()

    @eqx.filter_jit(donate=donate)
    def train_step(model: Any, state: Any) -> Any:
        tally.num += 1
        gradients = eqx.filter_grad(lambda m: sum(map(jnp.vdot, *[jax.tree.leaves(m)] * 2)))(model)
        updates, state = opt.update(gradients, state, model, **row.needs(model))
        return eqopt.apply_updates(model, updates), state

    model = tree()
    state = opt.init(model)
    for _ in range(3):
        model, state = train_step(model, state)
    assert tally.num == 1


# 5. Nothing is aliased.


def _aliased(*trees: Any) -> bool:
    found = [x.unsafe_buffer_pointer() for tree in trees for x in _arrays(tree)]
    return len(set(found)) < len(found)


@in_one_width
@every
def test_init_shares_no_buffer(row: Row):
    params, opt = tree(), row.make()
    assert not _aliased(params, opt.init(params))
    assert not _aliased(params, eqx.filter_jit(opt.init)(params))


# 6. State lives where its parameter lives.

_SPECS = {"matrix": PartitionSpec("x", "y"), "vector": PartitionSpec("y"), "all": PartitionSpec()}


def _sharded(kind: AxisType) -> tuple[jax.sharding.Mesh, Any, Any]:
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    shapes = {"matrix": (8, 4), "vector": (6,), "all": (3, 2)}
    params = {name: values(shape, 30 + i) for i, (name, shape) in enumerate(shapes.items())}
    shardings = {name: NamedSharding(mesh, spec) for name, spec in _SPECS.items()}
    return mesh, params, jax.device_put(params, shardings)


def _check_shardings(state: Any, params: Any) -> None:
    by_shape = {p.shape: p.sharding for p in params.values()}
    for x in jax.tree.leaves(state):
        if x.shape in by_shape:
            assert x.sharding.is_equivalent_to(by_shape[x.shape], x.ndim), (x.shape, x.sharding)


# A compilation for eight devices takes its time; flags change nothing here, so once a class.
@in_one_width
@each({row.cls: row for row in ROWS}.values())
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name)
def test_state_lives_where_its_parameter_lives(row: Row, kind: AxisType):
    opt = row.make()
    mesh, plain, params = _sharded(kind)
    gradients = jax.tree.map(lambda x: x / 2, params)
    needs = row.needs(params)
    contexts: list[Callable[[], AbstractContextManager[Any]]] = [
        nullcontext,
        lambda: jax.set_mesh(mesh),
    ]
    for context in contexts:
        with context():
            for init in (opt.init, eqx.filter_jit(opt.init)):
                _check_shardings(init(params), params)

    state = opt.init(params)
    updates, new_state = opt.update(gradients, state, params, **needs)
    _check_shardings(new_state, params)
    _check_shardings(updates, params)
    _check_shardings(eqopt.apply_updates(params, updates), params)
    halves = jax.tree.map(lambda x: x / 2, plain)
    expected = opt.update(halves, opt.init(plain), plain, **row.needs(plain))
    everything = jax.device_get((updates, new_state))
    assert_close(everything, jax.device_get(expected), 1e-12 if X64 else 1e-6)


# 9. Counts.


def _counts(state: Any) -> list[Any]:
    found, _ = jax.tree_util.tree_flatten_with_path(state)
    return [x for path, x in found if jax.tree_util.keystr(path[-1:]) == ".count"]


def _with_counts(state: Any, count: int) -> Any:
    def place(path: Any, x: Any) -> Any:
        is_count = jax.tree_util.keystr(path[-1:]) == ".count"
        return jnp.asarray(count, jnp.int32) if is_count else x

    return jax.tree_util.tree_map_with_path(place, state)


@in_one_width
@each(row for row in ROWS if jax.tree.leaves(jax.eval_shape(row.make().init, {"x": np.ones(2)})))
def test_counts(row: Row):
    params, gradients, opt = tree(), tree(7), row.make()
    needs = row.needs(params)
    state = opt.init(params)
    assert all(types(c)[1] == [((), jnp.int32, False)] for c in _counts(state))
    for expected in range(3):
        assert [int(c) for c in _counts(state)] == [expected] * len(_counts(state))
        _, state = opt.update(gradients, state, params, **needs)

    last = np.iinfo(np.int32).max
    state = _with_counts(state, last - 1)
    for _ in range(2):
        updates, state = opt.update(gradients, state, params, **needs)
        assert all(int(c) == last for c in _counts(state))
        assert all(bool(jnp.all(jnp.isfinite(u))) for u in jax.tree.leaves(updates))


@pytest.mark.parametrize(
    "make",
    [
        lambda seen: eqopt.ScaleBySchedule(seen),
        lambda seen: eqopt.ScaleByLearningRate(seen, flip_sign=False),
        lambda seen: eqopt.Scheduled(eqopt.Scale(1.0), lambda o: o.step_size, seen),
        lambda seen: eqopt.Masked(eqopt.ScaleBySchedule(seen), eqopt.ByPath("**")),
    ],
    ids=["ScaleBySchedule", "ScaleByLearningRate", "Scheduled", "Masked"],
)
def test_a_schedule_sees_the_count_before_the_increment(
    make: Callable[[Any], AbstractTransformation[Any]],
):
    opt = make(lambda count: count)
    ones = jnp.ones(2, FLOAT)
    state = opt.init(ones)
    for expected in range(3):
        updates, state = opt.update(ones, state)
        np.testing.assert_array_equal(updates, np.full(2, expected))


def test_a_schedule_waits_for_what_is_skipped():
    """A count belongs to its state: what is not applied does not advance."""
    opt = eqopt.ScaleBySchedule(lambda count: count)
    state = opt.init(jnp.ones(2, FLOAT))
    assert same(state, opt.init_state(jnp.ones(2, FLOAT), Context()))
