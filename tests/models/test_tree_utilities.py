"""Looking into states, changing them, and mapping over what in them is like the parameters."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqopt
from tests.support.toolbox import FLOAT, same, tree, types, Zoo

PARAMS = tree()
ADAM = eqopt.states.ScaleByAdamState


def _nested() -> Any:
    opt = eqopt.Chain(
        eqopt.Clip(1.0), eqopt.ApplyIfFinite(eqopt.Masked(eqopt.Adam(0.1), eqopt.ByNdim(2)), 3)
    )
    return opt, opt.init(PARAMS)


def test_get_by_class_by_name_and_by_path():
    _, state = _nested()
    adam = state.states[1].inner_state.inner_state.states[0]
    assert type(adam) is ADAM
    assert eqopt.tree.get(state, ADAM) is adam
    assert eqopt.tree.get(state, "mu") is adam.mu
    path = "states[1].inner_state.inner_state.states[0].count"
    assert eqopt.tree.get(state, path) is adam.count
    assert list(eqopt.tree.get_all(state, "mu")) == [path.replace("count", "mu")]
    assert eqopt.tree.get_all(state, "nobody") == {}
    assert len(eqopt.tree.get_all(state, eqopt.states.ChainState)) == 2
    assert "" in eqopt.tree.get_all(state, eqopt.states.ChainState)


def test_several_and_none_are_told():
    _, state = _nested()
    with pytest.raises(ValueError, match=r"`state` has 2 `count`: .*states\[0\]\.count.*, .*"):
        eqopt.tree.get(state, "count")
    with pytest.raises(ValueError, match=r"no `nobody`; it has .*`states`.*`mu`, `a`"):
        eqopt.tree.get(state, "nobody")
    with pytest.raises(ValueError, match=r"no `TraceState`; it has `ChainState`, .*`ScaleByAdam"):
        eqopt.tree.get(state, eqopt.states.TraceState)
    with pytest.raises(ValueError, match="has 2 `ChainState`: `state`, "):
        eqopt.tree.get(state, eqopt.states.ChainState)
    which: Any = 3
    with pytest.raises(TypeError, match="`which` must be a class or a name"):
        eqopt.tree.get(state, which)


def test_set():
    _, state = _nested()
    new = eqopt.tree.set(state, "nu", jax.tree.map(jnp.ones_like, eqopt.tree.get(state, "nu")))
    assert types(new) == types(state)
    assert same(eqopt.tree.get(new, "nu")["a"], jnp.ones((2, 3), FLOAT))
    assert same(eqopt.tree.get(new, "mu"), eqopt.tree.get(state, "mu"))
    path = "states[1].inner_state.inner_state.states[0].count"
    new = eqopt.tree.set(state, path, 7)
    assert types(new) == types(state)
    assert eqopt.tree.get(new, ADAM).count == 7
    assert eqopt.tree.get(state, ADAM).count == 0
    adam = eqopt.tree.get(new, ADAM)
    assert eqopt.tree.get(eqopt.tree.set(state, ADAM, adam), ADAM).count == 7


@pytest.mark.parametrize(
    ("which", "value", "words"),
    [
        ("mu", {"a": jnp.ones((2, 3), FLOAT)}, "missing.*`value"),
        ("total_notfinite", 1.5, r"`value` is a float; `states\[1\]\.total_notfinite` is int32"),
        ("total_notfinite", jnp.ones((), FLOAT), "`value` is float.*is int32"),
        ("last_finite", 1, "`value` is an int"),
        (ADAM, 3, "`value` is an int"),
        ("nobody", 3, "has no `nobody`"),
    ],
)
def test_what_does_not_fit_is_not_set(which: Any, value: Any, words: str):
    _, state = _nested()
    with pytest.raises((TypeError, ValueError), match=words):
        eqopt.tree.set(state, which, value)


def test_shapes_are_not_changed():
    state = eqopt.Adam(0.1).init(PARAMS)
    wrong = {"a": jnp.ones((2, 3), FLOAT), "branch": {"b": jnp.ones(2, FLOAT), "w": None}}
    with pytest.raises((TypeError, ValueError), match=r"`value\['branch'\]\['b'\]` is float"):
        eqopt.tree.set(state, "mu", wrong)


def test_an_optimizer_with_its_state():
    optimizer = eqopt.Optimizer.create(eqopt.Adam(0.1), PARAMS)
    assert same(eqopt.tree.get(optimizer, "mu"), eqopt.tree.get(optimizer.state, "mu"))
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    new = eqopt.tree.set(optimizer, "mu", ones)
    assert isinstance(new, eqopt.Optimizer)
    assert same(eqopt.tree.get(new, "mu"), ones) and same(new.target, PARAMS)
    doubled = eqopt.tree.map_params(lambda x, p: x + p, new, PARAMS)
    assert same(eqopt.tree.get(doubled, "nu"), PARAMS)
    stepped = doubled.apply_gradient(PARAMS)
    assert eqopt.tree.get(stepped, ADAM).count == 1


def test_in_compiled_programs():
    opt, state = _nested()

    @eqx.filter_jit
    def restarted(state: Any) -> Any:
        adam = eqopt.tree.get(state, ADAM)
        zero = jax.tree.map(jnp.zeros_like, adam)
        return eqopt.tree.set(state, ADAM, eqopt.tree.set(zero, "count", adam.count + 0))

    _, state = opt.update(tree(7), state, PARAMS)
    again = restarted(state)
    assert types(again) == types(state)
    assert eqopt.tree.get(again, ADAM).count == 1
    assert not np.any(eqopt.tree.get(again, "mu")["a"])


def test_states_of_optax():
    opt = eqopt.from_optax(optax.adam(0.1))
    state = opt.init(PARAMS)
    assert same(eqopt.tree.get(state, "mu"), jax.tree.map(jnp.zeros_like, PARAMS))
    assert eqopt.tree.get(state, optax.ScaleByAdamState).count == 0


# Parts that are like the parameters.


@pytest.mark.parametrize(
    "opt",
    [
        eqopt.AdamW(0.1),
        eqopt.Chain(eqopt.Trace(0.9), eqopt.ParamEMA(eqopt.Adam(0.1), 0.9)),
        eqopt.Lookahead(eqopt.SGD(0.1, 0.9), 2, 0.5),
    ],
    ids=lambda x: type(x).__name__,
)
def test_map_params_finds_what_optax_would(opt: Any):
    """By its definition: what is made of other parameters, when these are others."""
    model = Zoo()
    state = opt.init(model)
    marked = eqopt.tree.map_params(lambda x, p: "part", state, model, others=lambda x: "other")
    leaves = jax.tree.leaves(marked)
    # Scalars are counts and the like; every other array is a moment or a copy.
    shapes = [np.shape(x) for x in jax.tree.leaves(state)]
    assert leaves == ["other" if shape == () else "part" for shape in shapes]
    assert "part" in leaves and "other" in leaves


def test_map_params_gives_the_parameter_and_the_rest():
    model = Zoo()
    names = jax.tree_util.tree_map_with_path(lambda path, x: jax.tree_util.keystr(path), model)
    state = eqopt.Masked(eqopt.Adam(0.1), eqopt.ByPath("layer.*")).init(model)
    seen: list[str] = []

    def look(x: Any, p: Any, name: str) -> Any:
        assert x.shape == p.shape
        seen.append(name)
        return p

    new = eqopt.tree.map_params(look, state, model, names)
    assert seen == [".layer.weight", ".layer.bias"] * 2
    mu = eqopt.tree.get(new, "mu")
    assert same(mu.layer.weight, model.layer.weight)
    assert mu.weight is None and mu.activation is None
    assert types(eqopt.tree.get(new, ADAM).count) == types(eqopt.tree.get(state, ADAM).count)


def test_map_params_of_a_single_array():
    x = jnp.ones((3,), FLOAT)
    state = eqopt.Adam(0.1).init(x)
    new = eqopt.tree.map_params(lambda m, p: m + p, state, x)
    adam = eqopt.tree.get(new, ADAM)
    assert same((adam.mu, adam.nu), (x, x)) and adam.count == 0


def test_map_params_casts_and_refuses_other_trees():
    state = eqopt.Adam(0.1).init(PARAMS)
    half = eqopt.tree.map_params(lambda x, p: x.astype(jnp.bfloat16), state, PARAMS)
    assert {x.dtype for x in jax.tree.leaves(eqopt.tree.get(half, "mu"))} == {jnp.dtype("bfloat16")}
    with pytest.raises(ValueError, match=r"`rest\[0\]` is not like `params`"):
        eqopt.tree.map_params(lambda x, p, y: x, state, PARAMS, {"a": 1})
