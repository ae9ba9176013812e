"""What is masked out, and what is frozen: extra arguments, nesting, searches inside."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqopt
from eqopt import ByPath, Partition
from tests.toolbox import assert_close, FLOAT, same, Tally, Traced, tree, X64


class _Weighted(eqopt.AbstractTransformation[eqopt.EmptyState]):
    """Multiplies by an extra argument that is a tree like its updates."""

    def init_state(self, params: Any, context: Any) -> eqopt.EmptyState:
        return eqopt.EmptyState()

    def transform(self, updates: Any, state: Any, params: Any, context: Any) -> Any:
        return jax.tree.map(jnp.multiply, updates, context.need("weights", self)), state


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
        with pytest.raises(ValueError, match="different types at key path"):
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
