"""The laws of states: their types, buffers, devices and counts, over every transformation."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import eqopt
from eqopt.writing import AbstractTransformation
from tests.laws.table import concrete_classes, each, every, Row, ROWS
from tests.support.toolbox import (
    assert_close,
    DTYPES,
    finite,
    FLOAT,
    in_one_width,
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


def _counters(state: Any) -> list[Any]:
    """All that is counted, by whatever name: steps, mini-batches, failures."""
    return [x for x in jax.tree.leaves(state) if x.dtype == jnp.int32]


_LAST = np.iinfo(np.int32).max
# The states of each row for a tree of one leaf, without computing anything.
_STATES = {row.name: jax.eval_shape(row.make().init, {"x": np.ones(2)}) for row in ROWS}


@in_one_width
@each(row for row in ROWS if _counts(_STATES[row.name]))
def test_counts(row: Row):
    params, gradients, opt = tree(), tree(7), row.make()
    needs = row.needs(params)
    state = opt.init(params)
    counts = _counts(state)
    assert counts and all(types(c)[1] == [((), jnp.int32, False)] for c in counts)
    for expected in range(3):
        assert [int(c) for c in _counts(state)] == [expected] * len(counts)
        _, state = opt.update(gradients, state, params, **needs)

    state = _with_counts(state, _LAST - 1)
    for _ in range(2):
        updates, state = opt.update(gradients, state, params, **needs)
        assert all(int(c) == _LAST for c in _counts(state))
        assert finite(updates)


@in_one_width
@each(row for row in ROWS if _counters(_STATES[row.name]))
@pytest.mark.parametrize("bad", [False, True], ids=["finite", "not-finite"])
def test_no_counter_overflows(row: Row, bad: bool):
    """It stays at the largest number, or begins anew; one more would be a negative number."""
    params, gradients, opt = tree(), tree(7), row.make()
    needs = row.needs(params)
    if bad:
        gradients = jax.tree.map(lambda x: x * jnp.nan, gradients)

    def full(x: Any) -> Any:
        return jnp.full_like(x, _LAST) if x.dtype == jnp.int32 else x

    state = jax.tree.map(full, opt.init(params))
    for _ in range(2):
        updates, state = opt.update(gradients, state, params, **needs)
        assert all(bool(jnp.all(x >= 0)) for x in _counters(state))
        assert bad or finite(updates)


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


_HALVES = [True, False, False, True, True, False, True]


def _taken(step: Any) -> Any:
    return jnp.asarray(_HALVES)[step]


def _drops_not_finite(inner: Any) -> Any:
    return eqopt.MultiSteps(inner, 1, should_skip_update_fn=eqopt.skip_not_finite)


# Wrappers that skip some steps, and how often each takes a gradient for each step of those inside.
_SKIPPING = {
    "ApplyIfFinite": (lambda inner: eqopt.ApplyIfFinite(inner, 9), 1),
    "ApplyIfFinite-skip": (
        lambda inner: eqopt.ApplyIfFinite(inner, 0, eqopt.options.skip_update),
        1,
    ),
    "ConditionallyTransform": (lambda inner: eqopt.ConditionallyTransform(inner, _taken), 1),
    "ConditionallyMask": (lambda inner: eqopt.ConditionallyMask(inner, _taken), 1),
    "MultiSteps": (lambda inner: eqopt.MultiSteps(inner, 1), 1),
    "SkipSpikes": (lambda inner: eqopt.control.SkipSpikes(inner, 9, loss=False), 1),
    "MultiSteps-of-3": (lambda inner: eqopt.MultiSteps(inner, 3), 3),
    "MultiSteps-skip_not_finite": (_drops_not_finite, 1),
}
# Its values tell the counts from each other, and none of them is zero.
_RATE = eqopt.Linear(1.0, 9.0, 8)
_SCHEDULED = {
    "ScaleBySchedule": eqopt.ScaleBySchedule(_RATE),
    "ScaleByLearningRate": eqopt.ScaleByLearningRate(_RATE, flip_sign=False),
    "Scheduled": eqopt.Scheduled(eqopt.Scale(1.0), lambda opt: opt.step_size, _RATE),
    "InjectHyperparams": eqopt.InjectHyperparams(eqopt.Scale)(_RATE),
    "FromOptax": eqopt.from_optax(optax.scale_by_schedule(lambda count: count + 1)),
    "within another": eqopt.Chain(eqopt.Masked(eqopt.ScaleBySchedule(_RATE), eqopt.ByPath("**"))),
}


@pytest.mark.parametrize("skipping", _SKIPPING)
@pytest.mark.parametrize("scheduled", _SCHEDULED)
def test_a_schedule_waits_for_what_is_skipped(skipping: str, scheduled: str):
    """A count belongs to its state: what is not applied does not advance."""
    wrap, num_gradients = _SKIPPING[skipping]
    opt, ones = wrap(_SCHEDULED[scheduled]), jnp.ones(2, FLOAT)
    state, num_taken = opt.init(ones), 0
    for taken in _HALVES:
        # Some wrappers skip for the number of the step, the others for the gradient.
        bad = ones if skipping.startswith("Conditionally") else ones * jnp.nan
        for _ in range(num_gradients - 1):
            _, state = opt.update(ones, state)
        updates, state = opt.update(ones if taken else bad, state)
        num_taken += taken
        passed_on = skipping == "ConditionallyTransform"
        expected = num_taken if taken else float(passed_on)
        np.testing.assert_array_equal(updates, np.full(2, expected))
    assert 0 < num_taken < len(_HALVES)


@pytest.mark.parametrize("scheduled", _SCHEDULED)
def test_a_schedule_waits_for_gradients_that_do_not_overflow(scheduled: str):
    scale, opt = eqopt.precision.DynamicScale(), _SCHEDULED[scheduled]
    params = jnp.zeros(2, FLOAT)
    state, num_taken = opt.init(params), 0
    for taken in _HALVES:
        slope = jnp.asarray(1.0 if taken else jnp.inf, FLOAT)
        scale, finite, new, state, _ = scale.scaled_step(
            opt, lambda x, slope: jnp.sum(x * slope), params, state, slope
        )
        num_taken += taken
        assert bool(finite) == taken
        np.testing.assert_array_equal(new, np.full(2, num_taken if taken else 0))


def test_every_wrapper_that_skips_is_here():
    """Those that apply what is inside them under a condition do it by one function."""
    found = {
        x.__name__ for x in concrete_classes() if "apply_when" in vars(sys.modules[x.__module__])
    }
    assert found == {x.partition("-")[0] for x in _SKIPPING}
