"""Trees taken apart: what is static of them, and the optimizer that keeps its model so."""

import copy
import gc
import pickle
import weakref
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import eqopt
from eqopt import Optimizer
from eqopt._jit.partition import Flat, pack
from tests.support.toolbox import FLOAT, same, tree, values


class Counting:
    """A node that counts how often it is flattened, and how often it is built."""

    num_flattened = 0
    num_built = 0

    def __init__(self, w: Any) -> None:
        self.w = w


def _flatten(x: Counting) -> Any:
    Counting.num_flattened += 1
    return (x.w,), None


def _build(_: None, children: Any) -> Counting:
    Counting.num_built += 1
    return Counting(*children)


jax.tree_util.register_pytree_node(Counting, _flatten, _build)


class Place(eqx.Module):
    w: Array
    rate: Any


def quadratic(model: Any, x: Array) -> Array:
    return jnp.sum(jnp.square(jax.tree.leaves(model)[0] * x))


def test_from_step_to_step_the_model_is_not_looked_at():
    optimizer = Optimizer.create(eqopt.Adam(0.1), Counting(values((3,), 0)))
    x = jnp.ones(3, FLOAT)
    for _ in range(2):
        optimizer, _ = optimizer.step(quadratic, x)
    flattened, built = Counting.num_flattened, Counting.num_built
    num_steps = 5
    for _ in range(num_steps):
        optimizer, evaluation = optimizer.step(quadratic, x)
        assert isinstance(evaluation.grad, Counting)
    assert Counting.num_flattened == flattened
    assert Counting.num_built == built + num_steps  # the gradients
    assert isinstance(optimizer.target, Counting)
    assert Counting.num_built > built + num_steps
    # The transformation's numbers are on the device already.
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(optimizer.transformation))


def test_what_is_changed_in_place_is_not_the_optimizers():
    optimizer = Optimizer.create(eqopt.SGD(0.5), {"w": jnp.ones(2, FLOAT)})
    optimizer.target["w"] = jnp.zeros(2, FLOAT)
    np.testing.assert_array_equal(optimizer.target["w"], np.ones(2))


def test_an_optimizer_is_a_tree_of_the_same_leaves():
    optimizer = Optimizer.create(eqopt.AdamW(0.1), Place(values((3,), 0), 0.25))
    parts = (optimizer.transformation, None, optimizer.target, optimizer.state)
    assert same(jax.tree.leaves(optimizer), jax.tree.leaves(parts))
    found, _ = jax.tree_util.tree_flatten_with_path(optimizer)
    paths = [jax.tree_util.keystr(path) for path, _ in found]
    expected, _ = jax.tree_util.tree_flatten_with_path((optimizer.target, optimizer.state))
    assert [p.removeprefix("._flat") for p in paths if p.startswith("._flat")] == [
        jax.tree_util.keystr(path) for path, _ in expected
    ]
    doubled = jax.tree.map(lambda x: 2 * x, optimizer)
    assert doubled.target.rate == 0.5
    moved = eqx.tree_at(lambda o: (o.target.w, o.target.rate), optimizer, (jnp.ones(3, FLOAT), 1.0))
    np.testing.assert_array_equal(moved.target.w, np.ones(3))
    assert moved.target.rate == 1.0
    assert same(moved.state, optimizer.state)
    # Whatever takes the leaves' place.
    named = jax.tree.map(lambda x: {"kind": type(x)}, optimizer)
    assert named.target.rate == {"kind": float}


def test_copies_and_pickles():
    optimizer = Optimizer.create(eqopt.AdamW(0.1), tree(), eqopt.ByPath("a"))
    x = jnp.ones((), FLOAT)
    expected, _ = optimizer.step(quadratic, x)
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        found, _ = other.step(quadratic, x)
        assert same((found.target, found.state), (expected.target, expected.state))


def test_a_step_of_a_copy_is_no_other_program():
    traces: list[None] = []

    def loss(model: Any, x: Array) -> Array:
        traces.append(None)
        return quadratic(model, x)

    x = jnp.ones((), FLOAT)
    optimizer = Optimizer.create(eqopt.AdamW(0.1), tree())
    for _ in range(3):
        optimizer, _ = optimizer.step(loss, x)
        optimizer = jax.tree.map(lambda x: x, optimizer)
        optimizer = optimizer.replace(learning_rate=0.5)
        optimizer = Optimizer(optimizer.transformation, optimizer.state, optimizer.target)
    assert len(traces) == 1


@pytest.mark.parametrize(("a", "b"), [(1, True), (1, 1.0), (0, False), ("a", b"a"), (0.0, -0.0)])
def test_what_is_static_comes_back_as_it_was(a: Any, b: Any):
    assert pack((a,)).spec is pack((a,)).spec
    assert pack((a,)).spec is not pack((b,)).spec
    assert repr(pack((b,)).unpack()) == repr((b,))


def test_what_is_not_remembered_is_not_kept():
    def make() -> Any:
        return lambda: None

    function = make()
    packed = pack((function, 1), remember=False)
    assert packed.unpack() == (function, 1)
    alive = weakref.ref(function)
    del function, packed
    gc.collect()
    assert alive() is None


def test_unhashable_leaves_are_named():
    class Odd:
        __hash__: Any = None

    with pytest.raises(TypeError, match=r"`\['odd'\]` is a Odd"):
        pack(({"odd": Odd()},))
    with pytest.raises(TypeError, match=r"`\['odd'\]` is a Odd"):
        Optimizer.create(eqopt.SGD(0.1), {"odd": Odd(), "w": jnp.ones(2, FLOAT)}).step(
            quadratic, jnp.ones((), FLOAT)
        )


def test_a_tree_kept_flat_is_built_as_it_was():
    model = {"a": [values((2,), 0), None, "name"], "b": (3, jax.nn.relu)}
    flat = Flat.of(model)
    assert flat.whole()["a"][1:] == [None, "name"]
    assert flat.whole()["b"] == (3, jax.nn.relu)
    assert jax.tree.structure(Flat.from_partitioned(flat.packed)) == jax.tree.structure(flat)
    assert same(Flat.from_partitioned(flat.packed).whole()["a"][0], model["a"][0])
