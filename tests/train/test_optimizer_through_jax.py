"""The optimizer that holds its target goes through JAX's transformations, and to disk and back."""

from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

import eqopt
from eqopt import ByPath, Optimizer
from tests.support.toolbox import (
    assert_close,
    FLOAT,
    lane,
    same,
    Tally,
    Traced,
    tree,
    types,
    values,
)

MODEL = eqx.nn.MLP(3, 1, 4, 1, dtype=FLOAT, key=jax.random.key(0))
X, Y = values((5, 3), 0), values((5, 1), 1)
SCHEDULE = eqopt.Linear(init_value=0.1, end_value=0.01, transition_steps=5)
SEARCH = eqopt.Chain(eqopt.SGD(1.0), eqopt.ScaleByBacktrackingLinesearch(15, store_grad=True))


def loss(model: eqx.nn.MLP, x: Array, y: Array) -> Array:
    return jnp.mean(jnp.square(jax.vmap(model)(x) - y))


def quadratic(params: Any) -> Array:
    return sum((jnp.sum(x**2 + x) for x in jax.tree.leaves(params)), start=jnp.zeros((), FLOAT))


@eqx.filter_jit
def train(optimizer: Any, x: Array, y: Array, rate: Array) -> Any:
    _, grads = optimizer.compute_gradient(loss, x, y)
    return optimizer.apply_gradient(grads, learning_rate=rate)


@pytest.mark.parametrize("focus", [None, ByPath("**.bias")])
def test_a_fixed_point_under_jit(focus: Any):
    optimizer = Optimizer.create(eqopt.AdamW(0.1), MODEL, focus)
    first = train(optimizer, X, Y, jnp.asarray(0.5))
    second = train(first, X, Y, jnp.asarray(0.25))
    assert types(eqx.filter(first, eqx.is_array)) == types(eqx.filter(second, eqx.is_array))
    _, grads = optimizer.compute_gradient(loss, X, Y)
    assert_close(
        eqx.filter(first.target, eqx.is_array),
        eqx.filter(optimizer.apply_gradient(grads, learning_rate=0.5).target, eqx.is_array),
    )
    # An override within a compiled function is for one step as well.
    assert_close(first.transformation, eqopt.AdamW(0.1))


def test_one_trace_under_jit():
    tally = Tally()
    optimizer = Optimizer.create(eqopt.Chain(Traced(tally), eqopt.AdamW(0.1)), MODEL)
    for i in range(4):
        optimizer = train(optimizer, X, Y, jnp.asarray(0.1 * i))
    assert tally.num == 1


def test_an_ensemble():
    keys = jax.random.split(jax.random.key(1), 3)
    models = eqx.filter_vmap(lambda key: eqx.nn.MLP(3, 1, 4, 1, dtype=FLOAT, key=key))(keys)
    opt = eqopt.AdamW(0.1)
    ensemble = eqx.filter_vmap(lambda model: Optimizer.create(opt, model))(models)
    step = eqx.filter_vmap(lambda optimizer: optimizer.step(loss, X, Y))
    for _ in range(2):
        ensemble, evaluations = step(ensemble)
        assert evaluations.value.shape == (3,)
    for i in range(3):
        alone = Optimizer.create(opt, lane(models, i))
        for _ in range(2):
            alone, _ = alone.step(loss, X, Y)
        found, expected = (
            eqx.filter(x, eqx.is_array) for x in (lane(ensemble.target, i), alone.target)
        )
        assert_close(found, expected, rtol=1e-10 if FLOAT is np.float64 else 1e-4)


def test_a_sweep():
    rates = jnp.asarray([0.1, 0.2], FLOAT)
    sweep = eqx.filter_vmap(lambda rate: Optimizer.create(eqopt.SGD(rate), tree()))(rates)
    after, _ = eqx.filter_vmap(lambda optimizer: optimizer.step(quadratic))(sweep)
    for i, rate in enumerate(rates):
        alone, _ = Optimizer.create(eqopt.SGD(float(rate)), tree()).step(quadratic)
        assert_close(lane(after.target, i), alone.target)


@pytest.mark.parametrize("focus", [None, ByPath("**.bias")])
def test_scan(focus: Any):
    optimizer = Optimizer.create(eqopt.AdamW(SCHEDULE), MODEL, focus)
    # A model holds functions; what is carried from step to step are its arrays.
    carried, rest = eqx.partition(optimizer, eqx.is_array)

    def body(carried: Any, batch: Any) -> Any:
        after, evaluation = eqx.combine(carried, rest).step(loss, *batch)
        return eqx.filter(after, eqx.is_array), evaluation.value

    batches = jnp.stack([X, -X, X + 1]), jnp.stack([Y, -Y, Y + 1])
    carried, losses = jax.lax.scan(body, carried, batches)
    scanned = eqx.combine(carried, rest)
    for i, (x, y) in enumerate(zip(*batches, strict=True)):
        optimizer, evaluation = optimizer.step(loss, x, y)
        np.testing.assert_allclose(losses[i], evaluation.value, rtol=1e-5)
    found, expected = (eqx.filter(x, eqx.is_array) for x in (scanned, optimizer))
    assert_close(found.target, expected.target, rtol=1e-10 if FLOAT is np.float64 else 1e-4)
    assert isinstance(scanned.target, eqx.nn.MLP)


@pytest.mark.parametrize("opt", [eqopt.AdamW(SCHEDULE), SEARCH, eqopt.ScheduleFreeSGD(0.1)])
@pytest.mark.parametrize("focus", [None, ByPath("**.bias")])
def test_donation(opt: Any, focus: Any):
    model = jax.tree.map(lambda x: x.copy() if eqx.is_array(x) else x, MODEL)
    optimizer = Optimizer.create(opt, model, focus)
    step = eqx.filter_jit(lambda optimizer: optimizer.step(loss, X, Y)[0], donate="all")
    kept = Optimizer.create(opt, MODEL, focus)
    for _ in range(3):
        given = optimizer
        optimizer = step(given)
        assert given.target.layers[0].bias.is_deleted()
        kept, _ = kept.step(loss, X, Y)
    found, expected = (eqx.filter(x.target, eqx.is_array) for x in (optimizer, kept))
    assert_close(found, expected, rtol=1e-8 if FLOAT is np.float64 else 1e-3)


@pytest.mark.parametrize("focus", [None, ByPath("**.bias")])
def test_save_and_restore(focus: Any, tmp_path: Path):
    optimizer = Optimizer.create(eqopt.AdamW(0.1), MODEL, focus)
    optimizer = train(optimizer, X, Y, jnp.asarray(0.5)).replace(learning_rate=0.25)
    eqx.tree_serialise_leaves(tmp_path / "optimizer.eqx", optimizer)
    other = eqx.nn.MLP(3, 1, 4, 1, dtype=FLOAT, key=jax.random.key(9))
    fresh = Optimizer.create(eqopt.AdamW(1.0), other, focus)
    loaded = eqx.tree_deserialise_leaves(tmp_path / "optimizer.eqx", fresh)
    expected, _ = optimizer.step(loss, X, Y)
    found, _ = loaded.step(loss, X, Y)
    assert same((found.target, found.state), (expected.target, expected.state))
    assert float(loaded.hyperparameters()["learning_rate"]) == 0.25


@pytest.mark.parametrize("focus", [None, {"w": True, "b": False}])
def test_sharding_follows_the_target(focus: Any):
    mesh = jax.make_mesh((4,), ("x",))
    specs = {"w": PartitionSpec("x"), "b": PartitionSpec()}
    shardings = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    plain = {"w": values((8, 2), 0), "b": values((2,), 1)}
    optimizer = Optimizer.create(eqopt.Adam(0.1), jax.device_put(plain, shardings), focus)
    local = Optimizer.create(eqopt.Adam(0.1), plain, focus)
    for _ in range(2):
        moments = [x for x in jax.tree.leaves(optimizer.state) if x.shape == (8, 2)]
        assert len(moments) == 2
        for x in (*moments, optimizer.target["w"]):
            assert x.sharding.is_equivalent_to(shardings["w"], 2)
        optimizer, _ = optimizer.step(quadratic)
        local, _ = local.step(quadratic)
    assert_close(optimizer.target, local.target)
