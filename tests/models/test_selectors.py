"""Selectors: by path, by type, by dimensions, by hand."""

import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import eqopt
from eqopt import ByNdim, ByPath
from eqopt.selectors import AbstractSelector, And, ByType, Not, Or, Where
from tests.support.toolbox import FLOAT


class Block(eqx.Module):
    norm: eqx.nn.LayerNorm
    dense: eqx.nn.Linear


class Net(eqx.Module):
    embedding: eqx.nn.Embedding
    layers: list[Block]
    heads: dict[str, Any]
    bias: jax.Array
    activation: Any
    nothing: None


def _net() -> Net:
    keys = jax.random.split(jax.random.key(0), 4)
    blocks = [
        Block(eqx.nn.LayerNorm(2), eqx.nn.Linear(2, 2, key=keys[0])),
        Block(eqx.nn.LayerNorm(2), eqx.nn.Linear(2, 2, key=keys[1])),
    ]
    heads = {
        "image": eqx.nn.Conv2d(2, 3, 1, key=keys[2]),
        "text-2": [eqx.nn.Linear(2, 2, use_bias=False, key=keys[3])],
    }
    return Net(eqx.nn.Embedding(5, 2, key=keys[0]), blocks, heads, jnp.zeros(2), jax.nn.relu, None)


NET = _net()
PARAMS = eqx.filter(NET, eqx.is_inexact_array)
PATHS = [
    "embedding.weight",
    "layers.0.norm.weight",
    "layers.0.norm.bias",
    "layers.0.dense.weight",
    "layers.0.dense.bias",
    "layers.1.norm.weight",
    "layers.1.norm.bias",
    "layers.1.dense.weight",
    "layers.1.dense.bias",
    "heads.image.weight",
    "heads.image.bias",
    "heads.text-2.0.weight",
    "bias",
]
DENSE = {p for p in PATHS if "dense" in p}
NORMS = {p for p in PATHS if "norm" in p}
BIASES = {p for p in PATHS if p.endswith("bias")}


def chosen(selector: AbstractSelector, params: Any = PARAMS) -> set[str]:
    """The paths of the parameters that are chosen."""
    mask = selector.select(params)
    assert all(type(x) is bool for x in jax.tree.leaves(mask))
    # A tree like the parameters, with a boolean also where there is none.
    found, structure = jax.tree_util.tree_flatten_with_path(params, is_leaf=lambda x: x is None)
    assert jax.tree.structure(mask) == structure
    return {
        jax.tree_util.keystr(path, simple=True, separator=".")
        for (path, x), on in zip(found, jax.tree.leaves(mask), strict=True)
        if on and x is not None
    }


def test_the_paths_of_this_test():
    assert chosen(ByPath("**")) == set(PATHS)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("bias", {"bias"}),
        ("**.bias", BIASES),
        ("*.bias", set()),
        ("*", {"bias"}),
        ("layers.*.dense.weight", {"layers.0.dense.weight", "layers.1.dense.weight"}),
        ("layers.?.dense.bias", {"layers.0.dense.bias", "layers.1.dense.bias"}),
        ("layers.1.*", set()),
        ("layers.1.**", {p for p in PATHS if p.startswith("layers.1")}),
        ("layers.**.weight", {p for p in PATHS if re.match(r"layers.*weight", p)}),
        ("layers[0].dense.weight", {"layers.0.dense.weight"}),
        (".layers[0].dense.weight", {"layers.0.dense.weight"}),
        ("heads['image'].weight", {"heads.image.weight"}),
        ('heads["image"].**', {"heads.image.weight", "heads.image.bias"}),
        ("heads['text-2'][0].weight", {"heads.text-2.0.weight"}),
        ("heads.text-2.0.weight", {"heads.text-2.0.weight"}),
        ("**.dense.**", DENSE),
        ("**.dense", set()),
        ("embedding.weight.**", {"embedding.weight"}),
        ("embed", set()),
        ("embed*.weight", {"embedding.weight"}),
        ("**.w*t", {p for p in PATHS if p.endswith("weight")}),
        ("**.[bw]ias", set()),
        ("layers.(0|1).norm.bias", set()),
        ("", set()),
        (re.compile("norm"), NORMS),
        (re.compile(r"^layers\.\d\.(norm|dense)\.bias$"), BIASES & (DENSE | NORMS)),
        (re.compile("nothing like it"), set()),
    ],
)
def test_by_path(pattern: Any, expected: set[str]):
    assert chosen(ByPath(pattern, must_match=False)) == expected
    if expected:
        assert chosen(ByPath(pattern)) == expected
        return
    with pytest.raises(ValueError, match="matches the path of no parameter"):
        ByPath(pattern).select(PARAMS)


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("layers[0]", "layers[0].**"),
        ("dense", "**.dense.**"),
        ("weight", "**.weight"),
        ("norm.bias", "**.norm.bias"),
        ("layer[0].norm.bias", "layers.0.norm.bias"),
        (re.compile("embeding"), "embedding.weight"),
    ],
)
def test_a_pattern_without_a_match_is_told_what_was_meant(pattern: Any, meant: str):
    with pytest.raises(ValueError, match=re.escape(repr(meant))):
        ByPath(pattern).select(PARAMS)


def test_a_selector_without_a_match_is_an_error_wherever_one_may_stand():
    """Nothing would be frozen, or masked, and nobody would be told."""
    lost = ByPath("layer.*")
    opt = eqopt.SGD(0.1)
    for make in (
        lambda: eqopt.Freeze(lost),
        lambda: eqopt.SelectiveTransform(opt, lost),
        lambda: eqopt.Masked(opt, ~lost),
        lambda: eqopt.Partition({lost: opt, ...: opt}),
        lambda: eqopt.Partition({0: opt, 1: opt}, {lost: 0, ...: 1}),
        lambda: eqopt.AdamW(0.1, mask=lost | ByPath("**.bias")),
        lambda: eqopt.WeightNorm(opt, mask=lost),
        lambda: eqopt.flax_optim.MultiOptimizer((lost, eqopt.flax_optim.Adam(0.1))),
        lambda: eqopt.Chain(opt, eqopt.Freeze(Where(lambda model: ()))),
    ):
        with pytest.raises(ValueError, match="`must_match=False`"):
            make().init(PARAMS)
    with pytest.raises(ValueError, match="`must_match=False`"):
        eqopt.Optimizer.create(opt, NET, lost)
    with pytest.raises(ValueError, match="`must_match=False`"):
        eqopt.precision.cast_floating(NET, jnp.bfloat16, lost)


def test_a_bare_array_has_the_empty_path():
    assert chosen(ByPath("**"), jnp.ones(3)) == {""}
    assert chosen(ByPath(""), jnp.ones(3)) == {""}
    assert chosen(ByPath("*.x", must_match=False), jnp.ones(3)) == set()


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        ((eqx.nn.LayerNorm,), NORMS),
        ((eqx.nn.LayerNorm, eqx.nn.Embedding), NORMS | {"embedding.weight"}),
        (
            (eqx.nn.Conv,),
            {"heads.image.weight", "heads.image.bias"},
        ),  # of which Conv2d is a subclass
        ((Block,), {p for p in PATHS if p.startswith("layers")}),
        ((Net,), set(PATHS)),
        ((eqx.nn.GRUCell,), set()),
        ((dict,), {p for p in PATHS if p.startswith("heads")}),
    ],
)
def test_by_type(types: tuple[type, ...], expected: set[str]):
    assert chosen(ByType(*types)) == expected
    if expected:
        assert chosen(ByType(*types, must_match=True)) == expected
        return
    with pytest.raises(ValueError, match=r"`GRUCell`; it is made of .*`LayerNorm`"):
        ByType(*types, must_match=True).select(PARAMS)


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        (
            ByNdim(2),
            {p for p in PATHS if p.endswith("weight") and "norm" not in p} | {"heads.image.bias"},
        ),
        (
            ByNdim(2, 2),
            {p for p in PATHS if p.endswith("weight") and "norm" not in p and "image" not in p},
        ),
        (
            ByNdim(0, 1),
            {p for p in PATHS if "norm" in p or p.endswith("bias")} - {"heads.image.bias"},
        ),
        (ByNdim(0), set(PATHS)),
        (ByNdim(5), set()),
        (ByNdim(2, 1), set()),
    ],
)
def test_by_ndim(selector: AbstractSelector, expected: set[str]):
    assert chosen(selector) == expected


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (lambda m: m.bias, {"bias"}),
        (lambda m: m.layers[-1], {p for p in PATHS if p.startswith("layers.1")}),
        (
            lambda m: (m.bias, m.layers[0].norm),
            {"bias", "layers.0.norm.weight", "layers.0.norm.bias"},
        ),
        (lambda m: [b.dense.weight for b in m.layers], {p for p in DENSE if p.endswith("weight")}),
        (lambda m: m.heads["text-2"], {"heads.text-2.0.weight"}),
        (lambda m: m, set(PATHS)),
        (lambda m: m.nothing, set()),
        (lambda m: (), set()),
    ],
)
def test_where(where: Any, expected: set[str]):
    assert chosen(Where(where, must_match=False)) == expected


def test_where_tells_apart_arrays_that_are_one_object():
    shared = jnp.ones(2)
    assert chosen(Where(lambda p: p["b"]), {"a": shared, "b": shared}) == {"b"}


def test_where_refuses_functions_of_no_model():
    with pytest.raises(TypeError, match="`where` must be a function of the model"):
        Where(eqx.nn.Lambda(jax.nn.relu))


def test_combinations():
    biases, norms = ByPath("**.bias"), ByType(eqx.nn.LayerNorm)
    assert chosen(biases & norms) == BIASES & NORMS
    assert chosen(biases | norms) == BIASES | NORMS
    assert chosen(~biases) == set(PATHS) - BIASES
    assert chosen(~(biases | norms) & ByNdim(2, 2)) == {
        p for p in PATHS if p.endswith("weight") and "norm" not in p and "image" not in p
    }
    assert chosen(And(biases)) == chosen(Or(biases)) == BIASES
    assert chosen(And()) == set(PATHS) and chosen(Or()) == set()


_LEAVES = [ByPath("**.bias"), ByType(eqx.nn.LayerNorm), ByNdim(2), ByPath("layers.1.**"), Or()]
_SELECTORS = st.recursive(
    st.sampled_from(_LEAVES),
    lambda inner: (
        st.builds(Not, inner) | st.builds(And, inner, inner) | st.builds(Or, inner, inner, inner)
    ),
    max_leaves=6,
)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(a=_SELECTORS, b=_SELECTORS)
def test_selectors_are_sets(a: AbstractSelector, b: AbstractSelector):
    everything = set(PATHS)
    assert chosen(~a) == everything - chosen(a)
    assert chosen(a & b) == chosen(a) & chosen(b)
    assert chosen(a | b) == chosen(a) | chosen(b)
    assert chosen(~(a & b)) == chosen(~a | ~b)
    assert hash(a) == hash(a) and (a == a) is True


# What may stand for a selector.


def _masks(mask: Any, params: Any = PARAMS) -> set[str]:
    """What a mask chooses, seen from outside: what is set to zero."""
    gradients = jax.tree.map(jnp.ones_like, params)
    opt = eqopt.Masked(eqopt.SetToZero(), mask)
    updates, _ = opt.update(gradients, opt.init(params), params)
    found, _ = jax.tree_util.tree_flatten_with_path(updates)
    return {
        jax.tree_util.keystr(path, simple=True, separator=".") for path, u in found if not u.any()
    }


_FULL_MASK = jax.tree.map(lambda x: x.ndim == 1, PARAMS)
_OF_VECTORS = {p for p in PATHS if "norm" in p or p.endswith("bias")} - {"heads.image.bias"}


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (True, set(PATHS)),
        (False, set()),
        (np.bool_(True), set(PATHS)),
        (np.array(True), set(PATHS)),
        (jnp.asarray(True), set(PATHS)),
        (_FULL_MASK, _OF_VECTORS),
        (jax.tree.map(lambda x: eqx.is_array(x) and x.ndim == 1, NET), _OF_VECTORS),
        (jax.tree.map(jnp.asarray, _FULL_MASK), _OF_VECTORS),
        (lambda params: _FULL_MASK, _OF_VECTORS),
        (lambda params: jax.tree.map(lambda x: x.ndim == 1, params), _OF_VECTORS),
        (lambda params: True, set(PATHS)),
        (eqopt.selectors.FunctionSelector(lambda params: False), set()),
        (eqopt.selectors.TreeSelector(True) & ByPath("bias"), {"bias"}),
    ],
)
def test_what_may_stand_for_a_mask(mask: Any, expected: set[str]):
    assert _masks(mask) == expected


def test_a_mask_may_be_a_prefix():
    params = {"a": {"x": jnp.ones(2), "y": jnp.ones(2)}, "b": [jnp.ones(2), jnp.ones(2)]}
    assert _masks({"a": True, "b": [False, True]}, params) == {"a.x", "a.y", "b.1"}
    assert _masks(lambda p: {"a": False, "b": True}, params) == {"b.0", "b.1"}
    assert _masks({"a": {"x": True, "y": False}, "b": False}, params) == {"a.x"}


def test_a_mask_may_be_built_before_the_parameters_are_whole_models():
    """A mask of a filtered model fits the whole model, and the other way round."""
    whole = jax.tree.map(lambda x: eqx.is_array(x) and x.ndim == 1, NET)
    for mask in (whole, _FULL_MASK):
        gradients = jax.tree.map(jnp.ones_like, PARAMS)
        opt = eqopt.Masked(eqopt.SetToZero(), mask)
        updates, _ = opt.update(gradients, opt.init(NET), NET)
        assert not updates.bias.any() and updates.embedding.weight.all()


def test_selectors_are_static_and_print():
    selector = ByPath("**.bias") | ~ByNdim(2)
    assert jax.tree.leaves(selector) == []
    assert repr(ByPath("**.bias")) == "ByPath(pattern='**.bias')"
    assert "ByNdim(at_least=2)" in repr(selector)
    assert ByPath("a") == ByPath("a") and ByPath("a") != ByPath("b")
    assert hash(ByType(dict)) == hash(ByType(dict))


def test_equal_masks_are_one_program():
    params = {"a": jnp.ones(2, FLOAT), "b": jnp.ones(2, FLOAT)}
    num_traces = []

    class Noted(AbstractSelector):
        def select(self, params: Any) -> Any:
            num_traces.append(1)
            return {"a": True, "b": False}

    opt = eqopt.Masked(eqopt.Scale(2.0), Noted())
    state = opt.init(params)
    for _ in range(3):
        opt.update(params, state, params)
    assert len(num_traces) == 2  # when `init` is traced, when `update` is, and never again
    first = eqopt.AdamW(0.1, mask={"a": True, "b": False})
    second = eqopt.AdamW(0.1, mask={"a": True, "b": False})
    assert jax.tree.structure(first) == jax.tree.structure(second)
