"""A warm step moves nothing to the device; a state shares no array with the optimizer."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqopt
from eqopt._jit import partition
from tests.laws.table import each, Row, ROWS
from tests.laws.table.row import half_square
from tests.support.toolbox import finite, FLOAT, in_one_width, same, tree, values, X64


@in_one_width
@each({row.cls: row for row in ROWS}.values())
def test_a_warm_step_moves_nothing(row: Row):
    params, opt = tree(), row.make()
    # What `step` does not find out by itself.
    more = {x: y for x, y in row.needs(params).items() if x == "max_logits"}
    more["key"] = jax.random.key(0)
    state = opt.init(params)
    params, state, _ = opt.step(half_square, params, state, **more)
    with jax.transfer_guard("disallow"):
        params, state, _ = opt.step(half_square, params, state, **more)
    assert finite(params)


def test_other_warm_calls_move_nothing():
    params, grads = tree(), tree(7)
    opt = eqopt.Chain(eqopt.ClipByGlobalNorm(1.0), eqopt.AdamW(eqopt.Linear(0.1, 0.01, 10)))
    state = opt.init(params)
    bundle = eqopt.Optimizer.create(opt, params)
    batches = [(jnp.asarray(float(i), FLOAT),) for i in range(4)]

    def loss(params: Any, x: Any) -> Any:
        return half_square(params) * x.astype(half_square(params).dtype)

    def calls() -> Any:
        updates, _ = opt.update(grads, state, params)
        moved = eqopt.apply_updates(params, updates)
        after, _ = bundle.step(half_square)
        after = after.apply_gradient(grads)
        return moved, after

    calls()
    eqopt.fit(loss, opt, params, batches)
    with jax.transfer_guard("disallow"):
        calls()
    # What `fit` shows and returns is brought to the host, by asking for it.
    with jax.transfer_guard_host_to_device("disallow"):
        eqopt.fit(loss, opt, params, batches)


def test_what_a_state_holds_may_be_donated():
    """Also where it begins as a hyper-parameter; two of them may be equal."""
    params = {"x": values((2,), 0)}
    opt = eqopt.InjectHyperparams(eqopt.Adam)(0.25, b1=0.5, b2=0.5, eps=0.25)
    first = opt.init(params)
    expected = opt.update(params, first, params)[0]
    give_up = jax.jit(lambda state: jax.tree.map(lambda x: x + x, state), donate_argnums=0)
    give_up(first)
    again = opt.init(params)
    assert same(opt.update(params, again, params)[0], expected)
    updates, _ = eqopt.SGD(0.25).update(params, eqopt.SGD(0.25).init(params))
    assert same(updates["x"], FLOAT(-0.25) * params["x"])


def test_a_scalar_is_on_the_device_once():
    ones = [partition.on_device_once(x) for x in (np.float32(0.3), np.float32(0.3))]
    assert ones[0] is ones[1]
    zeros = [partition.on_device_once(x) for x in (np.float32(0.0), np.float32(-0.0))]
    assert list(np.signbit(zeros)) == [False, True]
    kinds = [partition.on_device_once(x) for x in (np.int32(1), np.float32(1), np.bool_(True))]
    assert [x.dtype.name for x in kinds] == ["int32", "float32", "bool"]
    wide = partition.on_device_once(np.float64(0.1))
    assert wide.dtype == (np.float64 if X64 else np.float32)
    wide.delete()
    assert float(partition.on_device_once(np.float64(0.1))) == pytest.approx(0.1)

    @jax.jit
    def traced(x: Any) -> Any:
        return x + partition.on_device_once(np.float32(0.7))

    traced(jnp.float32(1))
    assert float(partition.on_device_once(np.float32(0.7))) == pytest.approx(0.7)  # no tracer


def test_building_within_a_trace_leaves_no_tracer_behind():
    params = {"x": values((2,), 0)}

    @eqx.filter_jit
    def run(x: Any) -> Any:
        opt = eqopt.SGD(0.375)
        state = opt.init({"x": np.ones(2, FLOAT)})  # no tracer is among the arguments
        return opt.update({"x": x}, state)[0]

    run(params["x"])
    updates, _ = eqopt.SGD(0.375).update(params, eqopt.SGD(0.375).init(params))
    assert same(updates["x"], FLOAT(-0.375) * params["x"])
