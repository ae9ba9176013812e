"""The laws of whole models, and of optimizers that are PyTrees, over every transformation."""

import dataclasses
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqopt
from tests.laws import table
from tests.laws.table import every, every_differentiable, every_optimizer, ROUNDED, Row, WRAPPERS
from tests.support.toolbox import (
    assert_close,
    finite,
    flatten,
    FLOAT,
    in_one_width,
    lane,
    same,
    subtrees,
    Tally,
    Traced,
    tree,
    trees_in,
    values,
    X64,
    Zoo,
    zoo_loss,
)

every_tunable = table.each(
    r for r in table.ROWS if jax.tree.leaves(eqx.filter(r.make(), eqx.is_inexact_array))
)
every_with_fields = table.each(r for r in table.ROWS if table.numbers(r.make()))


def _two_updates(opt: Any, row: Row, gradients: Any, params: Any) -> Any:
    """The updates of the second of two steps, so that they depend on all that is remembered."""
    state = opt.init(params)
    _, state = opt.update(gradients, state, params, **row.needs(params))
    return opt.update(gradients, state, params, **row.needs(params))[0]


def test_the_table_is_complete():
    rows = {row.cls for row in table.ROWS}
    assert table.concrete_classes() == rows


def test_the_table_of_wrappers_is_complete():
    wrappers = {type(w.wrap(eqopt.Identity())) for w in WRAPPERS}
    holders = [x for row in table.ROWS if table.holds_transformations(x := row.make())]
    # An optimizer may be made of a line search, and a link of a momentum; that is a part of it, and
    # not just any inner.
    made = eqopt.writing.AbstractOptimizer, eqopt.matrix.ScaleByNAMO
    assert wrappers == {type(x) for x in holders if not isinstance(x, made)}


# 1. Whole models in, whole models out.


@in_one_width
@every
def test_whole_models(row: Row):
    model, opt, x = Zoo(), row.make(), values((2,), 5)
    state = opt.init(model)
    gradients = eqx.filter_grad(zoo_loss)(model, x)
    updates, new_state = opt.update(gradients, state, model, **row.needs(model))

    trained = [eqx.is_inexact_array(leaf) for leaf in flatten(model)]
    assert jax.tree.structure(updates) == jax.tree.structure(gradients)
    assert [u is not None for u in flatten(updates)] == trained
    for held in (state, new_state):
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(held))
        for memory in subtrees(held, Zoo):
            assert not any(
                is_memory and not is_trained
                for is_memory, is_trained in zip(
                    [m is not None for m in flatten(memory)], trained, strict=True
                )
            )

    new = eqopt.apply_updates(model, updates)
    assert type(new) is Zoo and new.shape is model.shape
    for old, now, is_trained in zip(flatten(model), flatten(new), trained, strict=True):
        if is_trained:
            assert (now.shape, now.dtype) == (old.shape, old.dtype)
        else:
            assert now is old or same(now, old)


def _without_caches(state: Any) -> Any:
    return jax.tree.map(lambda x: None if _is_cache(x) else x, state, is_leaf=_is_cache)


def _is_cache(x: Any) -> bool:
    return isinstance(x, eqopt.states.Cache)


@in_one_width
@every
def test_step_does_what_update_and_apply_do(row: Row):
    model, opt, x = Zoo(), row.make(), values((2,), 5)
    state = opt.init(model)
    value, gradients = eqx.filter_value_and_grad(zoo_loss)(model, x)
    given: dict[str, Any] = {"value": value, "grad": gradients, "value_fn": zoo_loss, "x": x}
    updates, new_state = opt.update(gradients, state, model, **given)
    new = eqopt.apply_updates(model, updates)

    by_step, state_by_step, evaluation = opt.step(zoo_loss, model, state, x)
    assert type(by_step) is Zoo
    # Two programs: their gradients differ by some roundings, which a sign or a root can magnify.
    rtol = 1e-10 if X64 else 1e-4
    assert_close(
        eqx.filter(by_step, eqx.is_inexact_array), eqx.filter(new, eqx.is_inexact_array), rtol
    )
    rest, expected = (eqx.filter(m, eqx.is_inexact_array, inverse=True) for m in (by_step, model))
    assert same(rest, expected)
    # `step` knows for certain what it has evaluated itself; `update` has it from the user.
    assert_close(_without_caches(state_by_step), _without_caches(new_state), rtol)
    assert_close(evaluation.value, value, rtol)
    assert_close(evaluation.grad, gradients, rtol)


@in_one_width
@every
def test_what_has_no_gradient_gets_no_update(row: Row):
    params, opt = tree(), row.make()
    needs = row.needs(params)
    _, state = opt.update(tree(7), opt.init(params), params, **needs)
    a_leaf = {"a": values((2, 3), 8), "branch": {"b": None, "w": values((2, 3), 9)}}
    updates, new_state = opt.update(a_leaf, state, params, **needs)
    assert updates["branch"]["b"] is None
    assert updates["a"].shape == updates["branch"]["w"].shape == (2, 3)
    for old, now in zip(trees_in(state), trees_in(new_state), strict=True):
        # Some remember the parameters themselves; `half_square`'s gradient is just these.
        its_own = same(now["branch"]["b"], params["branch"]["b"])
        assert its_own or same(old["branch"]["b"], now["branch"]["b"])
    assert jax.tree.structure(new_state) == jax.tree.structure(state)

    a_branch = {"a": values((2, 3), 8), "branch": None}
    updates, new_state = opt.update(a_branch, state, params, **needs)
    assert updates["a"].shape == (2, 3)
    assert jax.tree.leaves(updates["branch"]) == []
    for old, now in zip(trees_in(state), trees_in(new_state), strict=True):
        assert same(old["branch"], now["branch"]) or same(now["branch"], params["branch"])
    applied = eqopt.apply_updates(params, updates)
    assert same(applied["branch"], params["branch"])

    nothing, unchanged = opt.update({"a": None, "branch": None}, state, params, **needs)
    assert jax.tree.leaves(nothing) == []
    for old, now in zip(trees_in(state), trees_in(unchanged), strict=True):
        assert same(old, now) or same(now, params)


@in_one_width
@every
def test_the_parameters_may_be_left_out(row: Row):
    params, opt = tree(), row.make()
    state = opt.init(params)
    if row.needs_params:
        with pytest.raises(ValueError, match="needs the parameters"):
            opt.update(tree(7), state)
    else:
        without, _ = opt.update(tree(7), state, **row.needs(params))
        assert_close(without, opt.update(tree(7), state, params, **row.needs(params))[0])


# 2. An optimizer is a PyTree.


@every_tunable
def test_new_numbers_never_retrace(row: Row):
    tally = Tally()
    params, gradients = tree(), tree(7)
    opt = eqopt.Chain(Traced(tally), row.make())
    state = opt.init(params)
    kinds = [
        opt,
        table.tuned(opt, lambda x: x / 2 if x.dtype.kind == "f" else x + 1),
        table.tuned(opt, lambda x: x.item()),
        table.tuned(opt, jnp.asarray),
        table.tuned(opt, lambda x: jnp.asarray(x) * 1),
        eqx.filter_jit(lambda o: o)(opt),
    ]
    updates = [o.update(gradients, state, params, **row.needs(params))[0] for o in kinds]
    assert tally.num == 1
    for u in updates[2:]:
        assert same(u, updates[0])


@in_one_width
@every_tunable
def test_vmap_over_numbers(row: Row):
    params, gradients, opt = tree(), tree(7), row.make()
    # A key is the same for both.
    opt = jax.tree.map(lambda x: np.stack([x, x]) if table.is_key(x) else x, opt)
    stacked = table.tuned(opt, lambda x: np.stack([x, x / 2 if x.dtype.kind == "f" else x + 1]))

    def run(o: Any) -> Any:
        return _two_updates(o, row, gradients, params)

    at_once = eqx.filter_vmap(run)(stacked)
    for i in range(2):
        alone = run(lane(stacked, i))
        assert_close(lane(at_once, i), alone, 1e-12 if X64 else 1e-5)


@every_differentiable
def test_derivatives_are_finite_and_right(row: Row):
    params = tree()
    reals, rest = eqx.partition(row.make(), eqx.is_inexact_array)
    weights = tree(20)

    @eqx.filter_jit
    @jax.value_and_grad
    def run(numbers: Any, params: Any) -> Any:
        o, gradients = eqx.combine(numbers[0], rest), numbers[1]
        updates = _two_updates(o, row, gradients, params)
        products = jax.tree.map(lambda u, w: jnp.sum(u * w), updates, weights)
        return sum(jax.tree.leaves(products))

    # At a zero gradient roots and norms have no derivative by themselves.
    zeros = jax.tree.map(jnp.zeros_like, params)
    assert finite(run((reals, zeros), params))

    numbers = (reals, tree(7))
    _, derivative = run(numbers, params)
    assert finite(derivative)
    if X64 and row.name not in ROUNDED:
        h = 1e-6
        above, _ = run(jax.tree.map(lambda x: x * (1 + h), numbers), params)
        below, _ = run(jax.tree.map(lambda x: x * (1 - h), numbers), params)
        parts = jax.tree.map(lambda d, x: jnp.sum(d * x), derivative, numbers)
        expected = (above - below) / (2 * h)
        np.testing.assert_allclose(sum(jax.tree.leaves(parts)), expected, rtol=1e-6, atol=1e-8)


@every
def test_saved_after_a_jitted_step_and_loaded_afresh(row: Row):
    params, gradients = tree(), tree(7)
    needs = row.needs(params)

    @eqx.filter_jit
    def step(opt: Any, state: Any) -> Any:
        return opt, opt.update(gradients, state, params, **needs)[1]

    opt, state = step(row.make(), row.make().init(params))
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, (opt, state))
    file.seek(0)
    fresh = row.make()
    loaded, loaded_state = eqx.tree_deserialise_leaves(file, (fresh, fresh.init(params)))
    assert same((loaded, loaded_state), (opt, state))
    assert same(loaded, fresh)
    assert same(
        loaded.update(gradients, loaded_state, params, **needs),
        opt.update(gradients, state, params, **needs),
    )


@in_one_width
@every_with_fields
def test_replacing_and_tree_at(row: Row):
    opt = row.make()
    for name in table.numbers(opt):
        new = 0.25 if getattr(opt, name) < 1 else 3  # within the bounds of every field
        replaced = opt.replace(**{name: new})
        placed = eqx.tree_at(lambda o, name=name: getattr(o, name), opt, new)
        assert float(getattr(replaced, name)) == float(getattr(placed, name)) == new
        assert float(getattr(opt, name)) != new or same(opt, replaced)
        others = [f.name for f in dataclasses.fields(opt) if f.name != name]
        assert all(same(getattr(replaced, n), getattr(opt, n)) for n in others)
        params, gradients = tree(), tree(7)
        state, needs = opt.init(params), row.needs(params)
        assert same(
            replaced.update(gradients, state, params, **needs),
            placed.update(gradients, state, params, **needs),
        )


@every_with_fields
def test_numbers_are_exact_and_copied(row: Row):
    opt = row.make()
    for name in table.numbers(opt):
        if getattr(opt, name).dtype.kind != "f":  # numbers of steps are whole
            continue
        least = 0 if getattr(opt, name) < 1 else 3  # within the bounds of every field
        tenth = least + 0.1
        assert float(getattr(opt.replace(**{name: tenth}), name)) == float(FLOAT(tenth))
        quarter = least + 0.25
        array = np.array(quarter, FLOAT)
        changed = opt.replace(**{name: array})
        array[...] = 0.75
        assert float(getattr(changed, name)) == quarter
        for kind in (np.float32, np.float64, np.array, jnp.asarray):
            replaced = opt.replace(**{name: kind(quarter)})
            assert same(getattr(replaced, name), np.array(quarter, FLOAT))


def test_a_tenth_is_a_tenth():
    ones = jnp.ones(3, FLOAT)
    updates, _ = eqopt.Scale(0.1).update(ones, eqopt.states.EmptyState())
    np.testing.assert_array_equal(updates, np.full(3, 0.1, FLOAT))


def test_building_starts_no_backend():
    program = """
import jax
from tests.laws import table
for row in table.ROWS:
    row.make(), repr(row.make())
import jax._src.xla_bridge as bridge
assert not bridge.backends_are_initialized()
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@in_one_width
@every_optimizer
def test_the_repr_shows_the_numbers_on_one_line(row: Row):
    opt = row.make()
    text = repr(opt)
    assert text.startswith(f"{type(opt).__name__}(")
    for name in table.numbers(opt):
        number = getattr(opt, name)
        shown = float(str(number)) if number.dtype.kind == "f" else int(number)
        assert f"{name}={shown!r}" in text
