"""Groups of parameters: each its own transformation, some masked, some frozen."""

import functools
import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqopt
from eqopt import ByNdim, ByPath, Partition
from eqopt.selectors import ByType, Where
from tests.support.parity import assert_same_steps
from tests.support.toolbox import assert_close, FLOAT, same, tree, types, values, X64
from tests.support.trees import random_like, random_tree

NUM_STEPS = 60
TOLERANCE = 1e-12 if X64 else 5e-6


def label(x: Any) -> str:
    return "matrix" if x.ndim >= 2 else "rest"


def _by_ndim(params: Any) -> Any:
    return jax.tree.map(label, params)


def _is_vector(params: Any) -> Any:
    return jax.tree.map(lambda x: x.ndim < 2, params)


def _theirs(masked: Any) -> Any:
    groups: dict[Any, Any] = {"matrix": optax.adamw(0.05, 0.8, 0.95), "rest": optax.sgd(0.1, 0.7)}
    return optax.partition(groups, masked)


def _groups() -> dict[Any, Any]:
    return {"matrix": eqopt.AdamW(0.05, 0.8, 0.95), "rest": eqopt.SGD(0.1, 0.7)}


PAIRS = {
    "function": (lambda p: Partition(_groups(), _by_ndim), lambda p: _theirs(_by_ndim)),
    "tree": (lambda p: Partition(_groups(), _by_ndim(p)), lambda p: _theirs(_by_ndim(p))),
    "labels-by-selector": (
        lambda p: Partition(_groups(), {ByNdim(2): "matrix", ...: "rest"}),
        lambda p: _theirs(_by_ndim),
    ),
    "transforms-by-selector": (
        lambda p: Partition({ByNdim(2): _groups()["matrix"], ...: _groups()["rest"]}),
        lambda p: _theirs(_by_ndim),
    ),
    "selector": (
        lambda p: Partition({True: _groups()["matrix"], False: _groups()["rest"]}, ByNdim(2)),
        lambda p: _theirs(_by_ndim),
    ),
    "prefix": (
        lambda p: Partition(_groups(), {"kernel": "matrix", "layers": "rest", "pair": "matrix"}),
        lambda p: _theirs({"kernel": "matrix", "layers": "rest", "pair": "matrix"}),
    ),
    "Freeze": (
        lambda p: eqopt.Chain(eqopt.Adam(0.05, 0.8, 0.95), eqopt.Freeze(_is_vector)),
        lambda p: optax.chain(optax.adam(0.05, 0.8, 0.95), optax.transforms.freeze(_is_vector(p))),
    ),
    "SelectiveTransform": (
        lambda p: eqopt.SelectiveTransform(
            eqopt.Chain(eqopt.ClipByGlobalNorm(0.5), eqopt.Adam(0.05, 0.8, 0.95)), ~ByNdim(2)
        ),
        lambda p: optax.transforms.selective_transform(
            optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.05, 0.8, 0.95)),
            freeze_mask=_is_vector(p),
        ),
    ),
}


@functools.cache
def _problem() -> tuple[Any, Any]:
    rng = np.random.default_rng(3)
    params = random_tree(rng, FLOAT)
    params["layers"][1].pop("bias")  # optax's labels know no holes
    return params, random_like(rng, params, leading=(NUM_STEPS,))


@pytest.mark.parametrize("name", PAIRS)
def test_trajectories_equal_those_of_optax(name: str):
    params, gradients = _problem()
    ours, theirs = (make(params) for make in PAIRS[name])
    assert_same_steps(ours, theirs, params, gradients, TOLERANCE)


# Labels. The transformations multiply by different numbers, so that updates tell the groups.


def _tell(opt: Any, params: Any) -> Any:
    ones = jax.tree.map(jnp.ones_like, eqx.filter(params, eqx.is_inexact_array))
    updates, _ = opt.update(ones, opt.init(params), params)
    found, _ = jax.tree_util.tree_flatten_with_path(updates)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): float(x.max()) for path, x in found
    }


SCALES = {"a": eqopt.Scale(2.0), "b": eqopt.Scale(3.0)}


class Net(eqx.Module):
    norm: eqx.nn.LayerNorm
    dense: eqx.nn.Linear
    activation: Any

    def __call__(self, x: Any) -> Any:
        raise AssertionError("labels in a Module are a tree, which is not called")


def _net() -> Net:
    dense = eqx.nn.Linear(2, 2, dtype=FLOAT, key=jax.random.key(0))
    return Net(eqx.nn.LayerNorm(2, dtype=FLOAT), dense, jax.nn.relu)


def test_labels_in_a_callable_module_are_a_tree():
    """optax takes them for a function: a TypeError."""
    model = _net()
    whole = jax.tree.map(lambda x: ("a" if x.ndim == 2 else "b") if eqx.is_array(x) else x, model)
    filtered = jax.tree.map(
        lambda x: "a" if x.ndim == 2 else "b", eqx.filter(model, eqx.is_inexact_array)
    )
    expected = {"norm.weight": 3.0, "norm.bias": 3.0, "dense.weight": 2.0, "dense.bias": 3.0}
    for labels in (whole, filtered):
        assert callable(labels)
        assert _tell(Partition(SCALES, labels), model) == expected


def test_the_first_selector_that_matches_decides():
    model = _net()
    biases, norms, rest = eqopt.Scale(2.0), eqopt.Scale(3.0), eqopt.Scale(4.0)
    first = Partition({ByPath("**.bias"): biases, ByType(eqx.nn.LayerNorm): norms, ...: rest})
    other = Partition({...: rest, ByType(eqx.nn.LayerNorm): norms, ByPath("**.bias"): biases})
    expected = {"norm.weight": 3.0, "norm.bias": 2.0, "dense.weight": 4.0, "dense.bias": 2.0}
    assert _tell(first, model) == expected
    assert _tell(other, model) == {**expected, "norm.bias": 3.0}
    # Its order survives what forgets the order of dictionaries.
    assert _tell(eqx.filter_jit(lambda o: o)(first), model) == expected


def test_labels_are_resolved_when_tracing():
    seen = []

    def labels(params: Any) -> Any:
        seen.append(1)
        return "a"

    opt, params = Partition(SCALES, labels), tree()
    state = opt.init(params)
    for _ in range(3):
        _, state = opt.update(params, state, params)
    assert len(seen) == 2  # when `init` is traced, and when `update` is
    assert state.labels == ("a", "a", "a")
    assert jax.tree.leaves(state) == []


UNKNOWN = "there are transformations for 'a', 'b'"


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (
            {"a": "a", "branch": "c"},
            [
                "`params['branch']['b']` has the label 'c'",
                "`params['branch']['w']` has the label 'c'",
                UNKNOWN,
            ],
        ),
        ({"a": "a", "branch": None}, ["`params['branch']['b']` has no label", UNKNOWN]),
        ({ByPath("a"): "a"}, ["`params['branch']['w']` has no label", UNKNOWN, "`...` stands"]),
        ({ByPath("a"): "c", ...: "b"}, ["`params['a']` has the label 'c'", UNKNOWN]),
        (lambda params: jax.tree.map(jnp.sum, params), ["`params['a']` has no label"]),
        ({"a": "a"}, ["missing", "`param_labels['branch']`"]),
        ({"a": "a", "branch": {"b": "a", "w": {"x": "b"}}}, ["`param_labels['branch']['w']`"]),
    ],
)
def test_labels_without_a_transformation_are_listed(labels: Any, words: list[str]):
    with pytest.raises(ValueError, match=re.escape(words[0])) as caught:
        Partition(SCALES, labels).init(tree())
    for word in words:
        assert word in str(caught.value)


def test_a_parameter_that_no_selector_chooses_is_listed():
    with pytest.raises(ValueError, match=r"`params\['a'\]` has no label"):
        Partition({ByPath("branch.**"): eqopt.Scale(2.0)}).init(tree())


@pytest.mark.parametrize(
    ("transforms", "labels", "message"),
    [
        ({"a": eqopt.Scale(2.0)}, None, r"the keys of `transforms` without `param_labels`"),
        ({ByNdim(2): eqopt.Scale(2.0)}, "a", "`transforms` has labels, not ByNdim"),
        ({"a": eqopt.Scale(2.0), 1: eqopt.Scale(3.0)}, "a", "all strings, or all numbers"),
        ({"a": optax.sgd(0.1)}, "a", r"`transforms\['a'\]` must be a transformation"),
        ({None: eqopt.Scale(2.0)}, "a", "`None` cannot be a label"),
        ([eqopt.Scale(2.0)], "a", "`transforms` must be a dictionary"),
        (SCALES, {ByNdim(2): "a", "x": "b"}, "the keys of `param_labels` are selectors"),
    ],
)
def test_what_cannot_be_built(transforms: Any, labels: Any, message: str):
    with pytest.raises(TypeError, match=message):
        Partition(transforms, labels)


def test_a_state_that_does_not_fit_is_refused():
    """optax checks in `init` only."""
    params = tree()
    state = Partition(SCALES, "a").init(params)
    with pytest.raises(ValueError, match=r"is of the groups 'a', 'b'; .* for 'a', 'c'"):
        Partition({"a": eqopt.Scale(2.0), "c": eqopt.Scale(3.0)}, "a").update(params, state, params)
    other = Partition({"a": eqopt.Scale(2.0), "b": eqopt.Trace(0.9)}, "a")
    with pytest.raises(TypeError, match=r"`state.inner_states\['b'\]` is a `EmptyState`"):
        other.update(params, state, params)
    with pytest.raises(ValueError, match="made for 3 leaves; `updates` has 1"):
        Partition(SCALES, "a").update({"a": params["a"]}, state)


# One group begins anew.


def test_reset_of_one_group():
    params, gradients = tree(), tree(7)
    opt = Partition(_groups(), _by_ndim)
    fresh = opt.init(params)
    _, state = opt.update(gradients, fresh, params)
    for reset in (opt.reset, eqx.filter_jit(opt.reset)):
        again = reset(state, params, "matrix")
        assert same(again.inner_states["matrix"], fresh.inner_states["matrix"])
        assert same(again.inner_states["rest"], state.inner_states["rest"])
        assert not same(again.inner_states["rest"], fresh.inner_states["rest"])
        assert types(again) == types(state)
    with pytest.raises(ValueError, match="there is no group 'typo'; there are 'matrix', 'rest'"):
        opt.reset(state, params, "typo")
    with pytest.raises(ValueError, match="made for other parameters"):
        opt.reset(state, {"a": params["a"]}, "matrix")


def test_reset_of_a_search_that_keeps_aux():
    def fn(params: Any, shift: Any) -> Any:
        return jnp.sum((params["a"] - shift) ** 2) + jnp.sum(params["b"] ** 2), shift

    params = {"a": values((2,), 0), "b": values((3,), 1)}
    groups = {"search": eqopt.LBFGS(), "rest": eqopt.SGD(0.1)}
    opt = Partition(groups, {"a": "search", "b": "rest"})
    given: Any = {"value_fn": fn, "args": (1.0,), "has_aux": True}
    state = opt.init(params, **given)
    params, state, _ = opt.step(fn, params, state, 1.0, has_aux=True)
    with pytest.raises(ValueError, match="`value_fn`, `args` or `has_aux`"):
        opt.reset(state, params, "search")
    again = opt.reset(state, params, "search", **given)
    assert types(again) == types(state)
    opt.step(fn, params, again, 1.0, has_aux=True)


class Model(eqx.Module):
    backbone: eqx.nn.Linear
    embedding: eqx.nn.Embedding
    norms: list[eqx.nn.LayerNorm]
    head: eqx.nn.Linear


def test_a_model_in_groups_equals_a_partition_by_hand():
    keys = jax.random.split(jax.random.key(0), 3)
    model = Model(
        eqx.nn.Linear(3, 4, dtype=FLOAT, key=keys[0]),
        eqx.nn.Embedding(5, 4, dtype=FLOAT, key=keys[1]),
        [eqx.nn.LayerNorm(4, dtype=FLOAT), eqx.nn.LayerNorm(4, dtype=FLOAT)],
        eqx.nn.Linear(4, 2, dtype=FLOAT, key=keys[2]),
    )
    opt = Partition(
        {
            Where(lambda m: m.backbone): eqopt.Freeze(True),
            ByType(eqx.nn.LayerNorm) | ByPath("**.bias"): eqopt.AdamW(
                eqopt.Linear(0.1, 0.0, 9), weight_decay=0.0
            ),
            ByType(eqx.nn.Embedding): eqopt.AdamW(eqopt.Constant(0.2), weight_decay=0.01),
            ...: eqopt.AdamW(eqopt.CosineDecay(0.3, 9), weight_decay=0.1),
        }
    )

    def vectors(m: Any) -> Any:
        return [m.norms, m.head.bias]

    parts = [
        (vectors, eqopt.AdamW(eqopt.Linear(0.1, 0.0, 9), weight_decay=0.0)),
        (lambda m: m.embedding, eqopt.AdamW(0.2, weight_decay=0.01)),
        (lambda m: m.head.weight, eqopt.AdamW(eqopt.CosineDecay(0.3, 9), weight_decay=0.1)),
    ]
    state, by_hand = opt.init(model), model
    states = [tx.init(where(model)) for where, tx in parts]
    rng = np.random.default_rng(0)
    for _ in range(4):
        gradients = random_like(rng, eqx.filter(model, eqx.is_inexact_array))
        updates, state = opt.update(gradients, state, model)
        model = eqopt.apply_updates(model, updates)
        for i, (where, tx) in enumerate(parts):
            old = where(by_hand)
            own, states[i] = tx.update(where(gradients), states[i], old)
            by_hand = eqx.tree_at(where, by_hand, eqopt.apply_updates(old, own))
    assert_close(eqx.filter(model, eqx.is_inexact_array), eqx.filter(by_hand, eqx.is_inexact_array))
