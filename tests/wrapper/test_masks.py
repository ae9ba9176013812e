"""What is masked out, and what is frozen: extra arguments, nesting, searches inside."""

import functools
import operator
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqopt
from eqopt import ByPath, Partition
from tests.laws.table.row import half_square
from tests.support.toolbox import assert_close, FLOAT, same, Tally, Traced, tree, values, X64


class _Weighted(eqopt.writing.AbstractTransformation[eqopt.states.EmptyState]):
    """Multiplies by an extra argument that is a tree like its updates."""

    def init_state(self, params: Any, context: Any) -> eqopt.states.EmptyState:
        return eqopt.states.EmptyState()

    def transform(self, updates: Any, state: Any, params: Any, context: Any) -> Any:
        return jax.tree.map(jnp.multiply, updates, context.require("weights", self)), state


def test_extra_arguments_are_masked_where_that_is_asked():
    params, weights = tree(), tree(5)
    masked: Any = eqopt.Masked(_Weighted(), ByPath("a"), mask_compatible_extra_args=True)
    several: Any = Partition(
        {"x": _Weighted(), "y": eqopt.Scale(1.0)}, {"a": "x", "branch": "y"}, True
    )
    expected = {**params, "a": params["a"] * weights["a"]}
    for opt in (masked, several):
        updates, _ = opt.update(params, opt.init(params), params, weights=weights)
        assert same(updates, expected)
        whole = opt.replace(mask_compatible_extra_args=False)
        # The weights of all parameters, the updates of some.
        with pytest.raises(ValueError, match=r"different types at key path|Expected None, got"):
            whole.update(params, whole.init(params), params, weights=weights)


def test_a_number_is_never_masked():
    """optax hides `value` where there is one parameter only."""
    tally, x = Tally(), jnp.ones((), FLOAT)
    opt = Partition({"a": Traced(tally)}, "a", mask_compatible_extra_args=True)
    opt = eqopt.Masked(opt, False, mask_compatible_extra_args=True)
    opt.update(x, opt.init(x), x, value=x, probe=x)
    (context,) = tally.seen
    assert context.value is not None and context.extra["probe"] is not None


def test_masks_nest():
    """What both masks choose: in whatever form, and to any depth."""
    params = tree()
    masks = [
        {"a": True, "branch": {"b": True, "w": False}},
        {"a": False, "branch": True},
        lambda p: jax.tree.map(lambda x: x.ndim < 2, p),
        ByPath("branch.**"),
    ]
    for outer in masks[:2]:
        for inner in masks[1:]:
            opt = eqopt.Masked(eqopt.Masked(eqopt.Masked(eqopt.Trace(0.5), inner), outer), True)
            state = opt.init(params)
            _, state = opt.update(params, state, params)
            updates, state = opt.update(params, state, params)
            both = {"b"} if outer is masks[0] or inner is masks[2] else {"b", "w"}
            for name in ("b", "w"):
                own = params["branch"][name]
                assert_close(updates["branch"][name], 1.5 * own if name in both else own)
            assert same(updates["a"], params["a"])
            # Holes are `None`, and there is no memory of what is masked out.
            assert len(jax.tree.leaves(state)) == len(both)


def _half_square(p: Any) -> Any:
    return sum(
        jnp.sum(s * (x - 1) ** 2) for s, x in zip((1.0, 5.0, 20.0), jax.tree.leaves(p), strict=True)
    )


@pytest.mark.parametrize(
    "wrap",
    [
        lambda opt: eqopt.SelectiveTransform(opt, ByPath("branch.b")),
        lambda opt: Partition({ByPath("branch.b"): eqopt.Freeze(True), ...: opt}),
        lambda opt: Partition(
            {"x": Partition({"y": opt}, "y"), "z": eqopt.Freeze(True)},
            {"a": "x", "branch": {"b": "z", "w": "x"}},
        ),
    ],
    ids=["SelectiveTransform", "Partition", "nested"],
)
def test_a_line_search_inside_moves_its_group(wrap: Any):
    """optax cannot: its objective would see the holes."""
    params = tree()
    opt = wrap(eqopt.LBFGS())

    @eqx.filter_jit
    def step(params: Any, state: Any) -> Any:
        return opt.step(_half_square, params, state)

    state, moved = opt.init(params), params
    for _ in range(12):
        moved, state, _ = step(moved, state)
    assert same(moved["branch"]["b"], params["branch"]["b"])
    for x in (moved["a"], moved["branch"]["w"]):
        np.testing.assert_allclose(x, 1.0, rtol=1e-5 if X64 else 1e-3)


def test_frozen_is_zero_and_not_a_number_does_not_leak():
    params = tree()
    bad = {**params, "a": jnp.full((2, 3), np.nan, FLOAT)}
    freeze = eqopt.Freeze(ByPath("a"))
    updates, _ = freeze.update(bad, freeze.init(params), params)
    assert same(updates, {**params, "a": jnp.zeros((2, 3), FLOAT)})
    opt = eqopt.SelectiveTransform(eqopt.ClipByGlobalNorm(0.5), ByPath("a"))
    updates, _ = opt.update(bad, opt.init(params), params)
    assert same(updates["a"], jnp.zeros((2, 3), FLOAT))
    np.testing.assert_allclose(eqopt.global_norm(updates), 0.5, rtol=1e-6)


def test_a_model_that_is_one_array_may_be_hidden():
    """What sees none of it is not told that the parameters are missing."""
    x = jnp.ones(3, FLOAT)
    opt = eqopt.Masked(eqopt.AddDecayedWeights(0.5), eqopt.ByNdim(2))
    updates, _ = opt.update(x, opt.init(x), x)
    assert jnp.all(updates == x)
    matrix = jnp.ones((3, 1), FLOAT)
    with pytest.raises(ValueError, match="needs the parameters"):
        opt.update(matrix, opt.init(matrix))


# Masks that change from step to step.


def test_frozen_layers_thaw():
    """Each step freezes what its own mask says, and what moves goes on with its memory."""
    params, gradients = tree(), tree(7)
    frozen = ("**", "branch.**", "branch.b")
    rate, decay = FLOAT(0.1), FLOAT(0.9)
    stages = [eqopt.Chain(eqopt.SGD(rate, decay), eqopt.Freeze(ByPath(x))) for x in frozen]
    stages.append(eqopt.Chain(eqopt.SGD(rate, decay), eqopt.Freeze(~ByPath("**"))))
    state = stages[0].init(params)
    optimizer = eqopt.Optimizer.create(stages[0], params)
    moves = [set(), {"a"}, {"a", "branch.w"}, {"a", "branch.w", "branch.b"}]
    for i, (opt, moved) in enumerate(zip(stages, moves, strict=True)):
        updates, state = opt.update(gradients, state, params)
        optimizer = optimizer.replace(transformation=opt)
        before = optimizer.target
        optimizer = optimizer.apply_gradient(gradients)
        momentum = sum(0.9**j for j in range(i + 1))
        for name in ("a", "branch.b", "branch.w"):
            own = [_at(x, name) for x in (updates, gradients, before, optimizer.target)]
            if name in moved:
                np.testing.assert_allclose(own[0], -0.1 * momentum * own[1], rtol=1e-5)
                np.testing.assert_allclose(own[3], own[2] + own[0], rtol=1e-5)
            else:
                assert same(own[0], jnp.zeros_like(own[1])) and same(own[3], own[2])


def _at(x: Any, name: str) -> Any:
    return functools.reduce(operator.getitem, name.split("."), x)


A, W = ByPath("a"), ByPath("branch.w")
GROUPS_OF_PATHS: dict[str, Callable[[Any], Any]] = {
    "Masked": lambda x: eqopt.Masked(eqopt.Adam(0.1), x),
    "SelectiveTransform": lambda x: eqopt.SelectiveTransform(eqopt.Adam(0.1), x),
    "Partition": lambda x: eqopt.Partition({x: eqopt.SGD(0.1), ...: eqopt.SGD(1.0)}),
    "labels": lambda x: eqopt.Partition({0: eqopt.SGD(0.1), 1: eqopt.SGD(1.0)}, {x: 0, ...: 1}),
    "MultiOptimizer": lambda x: eqopt.flax_optim.MultiOptimizer((x, eqopt.flax_optim.Adam(0.1))),
    "within": lambda x: eqopt.Chain(eqopt.Lookahead(eqopt.Masked(eqopt.Adam(0.1), x), 2, 0.5)),
}


@pytest.mark.parametrize("make", GROUPS_OF_PATHS.values(), ids=GROUPS_OF_PATHS.keys())
def test_a_state_of_another_mask_is_refused(make: Callable[[Any], Any]):
    """Silence would be training other parameters than the mask says."""
    params, gradients = tree(), tree(7)
    state = make(A).init(params)
    make(A).update(gradients, state, params)
    make(A & ~W).update(gradients, state, params)  # another mask that chooses the same
    with pytest.raises(ValueError, match=r"`params\['(a|branch)'\].*`init`"):
        make(W).update(gradients, state, params)
    with pytest.raises(ValueError, match=r"anew by `init`"):
        make(W).step(half_square, params, state)
    bundle = eqopt.Optimizer.create(make(A), params)
    with pytest.raises(ValueError, match=r"anew by `init`"):
        bundle.replace(transformation=make(W)).apply_gradient(gradients)


def test_a_state_of_another_mask_is_refused_without_parameters():
    params, gradients = tree(), tree(7)
    opt, other = (eqopt.Masked(eqopt.Scale(2.0), x) for x in (A, W))
    state = opt.init(params)
    with pytest.raises(ValueError, match=r"`updates\['a'\]`.*`init`"):
        other.update(gradients, state)
    # A parameter without a gradient is in no mask.
    updates, _ = opt.update({**gradients, "a": None}, state)
    assert updates["a"] is None
    frozen, _ = eqopt.Freeze(A).update({**gradients, "a": None}, eqopt.states.EmptyState())
    assert frozen["a"] is None and same(frozen["branch"], gradients["branch"])


def test_directions_of_another_mask_are_refused():
    params, gradients = tree(), tree(7)
    first, second = (eqopt.WeightNorm(eqopt.SGD(0.1), mask=x) for x in (A, W))
    with pytest.raises(ValueError, match=r"`params\['a'\]`.*`init`"):
        second.update(gradients, first.init(params), params)


@pytest.mark.default_flags
def test_gradients_of_what_is_frozen_are_not_computed():
    """In a step the compiler sees that nobody asks for them."""
    layers = [values((4, 4), i) for i in (0, 1)]
    x = values((3, 4), 2)

    def loss(layers: Any, x: Any) -> Any:
        return jnp.sum((jnp.tanh(x @ layers[0]) @ layers[1]) ** 2)

    def num_products(opt: Any) -> int:
        def step(layers: Any, state: Any, x: Any) -> Any:
            grads = eqx.filter_grad(loss)(layers, x)
            updates, state = opt.update(grads, state, layers)
            return eqopt.apply_updates(layers, updates), state

        lowered = jax.jit(step).lower(layers, opt.init(layers), x)
        return (lowered.compile().as_text() or "").count(" dot(")

    everything = num_products(eqopt.SGD(0.1))
    body = ByPath("0")
    for opt in (
        eqopt.Chain(eqopt.SGD(0.1), eqopt.Freeze(body)),
        eqopt.SelectiveTransform(eqopt.Adam(0.1), body),
        eqopt.Partition({body: eqopt.SetToZero(), ...: eqopt.Adam(0.1)}),
    ):
        assert num_products(opt) < everything
