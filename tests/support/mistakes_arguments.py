"""Mistakes in what the front door is given: gradients, states, objectives."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

import eqopt
from tests.support.toolbox import FLOAT, tree, values


@dataclasses.dataclass(frozen=True)
class Case:
    """A mistake.

    **Arguments:**

    - `name`: what is wrong.
    - `run`: makes the mistake.
    - `error`: the type of exception.
    - `words`: what the message contains: the place, the expected, the given.
    """

    name: str
    run: Callable[[], Any]
    error: type[Exception]
    words: tuple[str, ...]


def _mlp(width: int = 4, depth: int = 2) -> eqx.nn.MLP:
    return eqx.nn.MLP(3, 2, width, depth, dtype=FLOAT, key=jax.random.key(0))


MODEL = _mlp()
GRADS = jax.tree.map(jnp.ones_like, eqx.filter(MODEL, eqx.is_inexact_array))
OPT = eqopt.AdamW(0.1)
STATE = OPT.init(MODEL)
TREE = tree()
SGD = eqopt.SGD(0.1)
SGD_WITH_MEMORY = eqopt.SGD(0.1, 0.9)
LOOSE = {"x": jnp.ones(2, FLOAT), "counts": jnp.arange(3)}

WIDTH = jnp.dtype(FLOAT).name


def with_weight(weight: Any) -> Any:
    return eqx.tree_at(lambda m: m.layers[0].weight, GRADS, weight)


def update(gradients: Any, state: Any = STATE, **kwargs: Any) -> Any:
    return OPT.update(gradients, state, MODEL, **kwargs)


def _update_tree(gradients: Any) -> Any:
    return SGD.update(gradients, SGD.init(TREE), TREE)


def _in_dtypes(gradient: Any, parameter: Any) -> Any:
    params = {"x": jnp.ones(2, parameter)}
    return SGD.update({"x": jnp.ones(2, gradient)}, SGD.init(params), params)


def _step(loss: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return OPT.step(loss, MODEL, STATE, *args, **kwargs)


def _with_state_of(opt: Any, other: Any, model: Any = MODEL) -> Any:
    return opt.update(GRADS, other.init(model), MODEL)


def _apply(weight: Any) -> Any:
    return eqopt.apply_updates(MODEL, with_weight(weight))


_WEIGHT = "`updates.layers[0].weight`"
_B_TO_C = {"a": values((2, 3), 0), "branch": {"b": values((3,), 1), "c": values((2, 3), 2)}}
_WIDER = {**TREE, "a": values((5, 3), 0)}
_ADAM = eqopt.Adam(0.1)
_REPEATED = eqx.tree_at(lambda g: g.layers, GRADS, (*GRADS.layers, GRADS.layers[0]))
_SHORTER = eqx.tree_at(lambda g: g.layers, GRADS, GRADS.layers[:2])


UPDATES = [
    Case(
        "shape",
        lambda: update(with_weight(jnp.ones((3, 4), FLOAT))),
        ValueError,
        (_WEIGHT, "(3, 4)", "(4, 3)"),
    ),
    Case(
        "shape that would broadcast",
        lambda: update(with_weight(jnp.ones((5, 4, 3), FLOAT))),
        ValueError,
        (_WEIGHT, "(5, 4, 3)", "(4, 3)"),
    ),
    Case(
        "another half dtype, neither narrower nor wider",
        lambda: _in_dtypes(jnp.bfloat16, jnp.float16),
        ValueError,
        ("`updates['x']`", "bfloat16", "float16"),
    ),
    Case(
        "complex",
        lambda: update(with_weight(jnp.ones((4, 3), jnp.complex64))),
        ValueError,
        (_WEIGHT, "complex64", WIDTH),
    ),
    Case(
        "integers",
        lambda: update(with_weight(jnp.ones((4, 3), jnp.int32))),
        TypeError,
        (_WEIGHT, "int32[4,3]", f"{WIDTH}[4,3]"),
    ),
    Case(
        "booleans",
        lambda: update(with_weight(jnp.ones((4, 3), bool))),
        TypeError,
        (_WEIGHT, "bool[4,3]", f"{WIDTH}[4,3]"),
    ),
    Case(
        "PRNG key",
        lambda: update(with_weight(jax.random.key(0))),
        TypeError,
        (_WEIGHT, "key", f"{WIDTH}[4,3]"),
    ),
    Case("Python float", lambda: update(with_weight(1.0)), TypeError, (_WEIGHT, "a float", WIDTH)),
    Case(
        "Python float, no parameters",
        lambda: SGD.update({"a": 1.0, "b": jnp.ones(2, FLOAT)}, SGD.init(TREE)),
        TypeError,
        ("`updates['a']`", "a float", "array"),
    ),
    Case(
        "integers, no parameters",
        lambda: SGD.update({"a": jnp.arange(3)}, SGD.init(TREE)),
        TypeError,
        ("`updates['a']`", "int", "inexact array"),
    ),
    Case(
        "missing key",
        lambda: _update_tree({"a": TREE["a"], "branch": {"b": TREE["branch"]["b"]}}),
        ValueError,
        ("missing", "`updates['branch']['w']`", "`params['branch']`"),
    ),
    Case(
        "extra key",
        lambda: _update_tree({**TREE, "more": jnp.ones(2, FLOAT)}),
        ValueError,
        ("not in `params`", "`updates['more']`"),
    ),
    Case(
        "another key",
        lambda: _update_tree(_B_TO_C),
        ValueError,
        ("`updates['branch']['w']`", "`updates['branch']['c']`", "`params['branch']`"),
    ),
    Case(
        "missing element",
        lambda: update(_SHORTER),
        ValueError,
        ("missing", "`updates.layers[2]`", "`params.layers`"),
    ),
    Case(
        "extra element",
        lambda: update(_REPEATED),
        ValueError,
        ("not in `params.layers`", "`updates.layers[3]`"),
    ),
    Case(
        "list for a tuple",
        lambda: update(eqx.tree_at(lambda g: g.layers, GRADS, list(GRADS.layers))),
        ValueError,
        ("`updates.layers` is a list", "`params.layers` is a tuple"),
    ),
    Case(
        "list of numbers for an array",
        lambda: _update_tree({**TREE, "a": [1.0, 2.0]}),
        ValueError,
        ("`updates['a']` is a list", f"`params['a']` is {WIDTH}[2,3]"),
    ),
    Case(
        "array for a branch",
        lambda: _update_tree({**TREE, "branch": jnp.ones(3, FLOAT)}),
        ValueError,
        (f"`updates['branch']` is {WIDTH}[3]", "`params['branch']` is a dict"),
    ),
    Case(
        "dict for a model", lambda: update({"a": 1}), ValueError, ("`updates` is a dict", "a MLP")
    ),
    Case(
        "another model's, wider",
        lambda: update(jax.tree.map(jnp.ones_like, eqx.filter(_mlp(5), eqx.is_array))),
        ValueError,
        ("`updates`", "`params`", "`width_size` is 5, not 4"),
    ),
    Case(
        "another model's, deeper",
        lambda: update(jax.tree.map(jnp.ones_like, eqx.filter(_mlp(4, 3), eqx.is_array))),
        ValueError,
        ("`updates`", "`params`", "`depth` is 3, not 2"),
    ),
    Case(
        "of what is not trained",
        lambda: SGD.update(
            {"x": jnp.ones(2, FLOAT), "counts": jnp.ones(3, FLOAT)}, SGD.init(LOOSE), LOOSE
        ),
        ValueError,
        ("`updates['counts']`", f"{WIDTH}[3]", "not trained"),
    ),
    Case(
        "`grad` of another shape",
        lambda: update(GRADS, grad=with_weight(jnp.ones((3, 4), FLOAT))),
        ValueError,
        ("`grad.layers[0].weight`", "(3, 4)", "(4, 3)"),
    ),
    Case(
        "`value` of shape (1,)",
        lambda: update(GRADS, value=jnp.ones(1, FLOAT)),
        ValueError,
        ("`value`", "one number", "(1,)"),
    ),
    Case(
        "no parameters",
        lambda: OPT.update(GRADS, STATE),
        ValueError,
        ("`AddDecayedWeights`", "needs the parameters", "update(updates, state, params)"),
    ),
]

STATES = [
    Case(
        "another optimizer's",
        lambda: _with_state_of(eqopt.ScaleByLion(), eqopt.ScaleByAdam()),
        TypeError,
        ("`state`", "`ScaleByAdamState`", "`ScaleByLionState`"),
    ),
    Case(
        "another chain's, longer",
        lambda: _with_state_of(OPT, _ADAM),
        ValueError,
        ("`state.states`", "2 entries", "3 links"),
    ),
    Case(
        "another chain's, in another order",
        lambda: _with_state_of(
            eqopt.Chain(eqopt.Trace(0.9), eqopt.EMA(0.9)),
            eqopt.Chain(eqopt.EMA(0.9), eqopt.Trace(0.9)),
        ),
        TypeError,
        ("`state.states[0]`", "`EMAState`", "`TraceState`"),
    ),
    Case(
        "a wider model's",
        lambda: _with_state_of(_ADAM, _ADAM, _mlp(5)),
        ValueError,
        ("`state.mu`", "`updates`", "`width_size` is 5, not 4"),
    ),
    Case(
        "another tree's, wider",
        lambda: SGD_WITH_MEMORY.update(TREE, SGD_WITH_MEMORY.init(_WIDER), TREE),
        ValueError,
        ("trace['a']", "[5,3]", "(2, 3)"),
    ),
    Case(
        "another tree's, deeper",
        lambda: SGD_WITH_MEMORY.update(TREE, SGD_WITH_MEMORY.init({**TREE, "more": TREE}), TREE),
        ValueError,
        ("trace['more']`", "not in `updates`"),
    ),
    Case(
        "a deeper model's",
        lambda: _with_state_of(_ADAM, _ADAM, _mlp(4, 3)),
        ValueError,
        ("`state.mu`", "`updates`", "`depth` is 3, not 2"),
    ),
    Case(
        "a part of the model's",
        lambda: _with_state_of(_ADAM, _ADAM, {"x": jnp.ones(2, FLOAT)}),
        ValueError,
        ("a dict", "a MLP"),
    ),
    Case("None", lambda: update(GRADS, None), TypeError, ("`state`", "NoneType", "ChainState")),
    Case(
        "the gradients",
        lambda: update(STATE, GRADS),
        TypeError,
        ("`state`", "`MLP`", "`ChainState`"),
    ),
    Case(
        "within Masked",
        lambda: _with_state_of(
            eqopt.Masked(eqopt.Trace(0.9), eqopt.ByNdim(2)),
            eqopt.Masked(eqopt.EMA(0.9), eqopt.ByNdim(2)),
        ),
        TypeError,
        ("`state.inner_state`", "`EMAState`", "`TraceState`"),
    ),
    Case(
        "of Masked, another model's",
        lambda: _with_state_of(
            eqopt.Masked(eqopt.Trace(0.9), eqopt.ByNdim(2)),
            eqopt.Masked(eqopt.Trace(0.9), eqopt.ByNdim(2)),
            _mlp(4, 3),
        ),
        ValueError,
        ("`state`", "10 leaves", "`updates` has 8"),
    ),
]

OBJECTIVES = [
    Case(
        "vector", lambda: _step(lambda m: jnp.ones(3)), TypeError, ("objective", "shape ()", "[3]")
    ),
    Case("integer", lambda: _step(lambda m: jnp.asarray(1)), TypeError, ("floating", "int")),
    Case("None", lambda: _step(lambda m: None), TypeError, ("objective", "None")),
    Case(
        "complex",
        lambda: _step(lambda m: jnp.asarray(1j, jnp.complex64)),
        TypeError,
        ("real", "complex64"),
    ),
    Case("pair", lambda: _step(lambda m: (1.0, 2.0)), TypeError, ("tuple", "`has_aux=True`")),
    Case(
        "no pair",
        lambda: _step(lambda m: jnp.ones(()), has_aux=True),
        TypeError,
        ("`has_aux=True`", "pair `(value, aux)`", "returned"),
    ),
    Case(
        "triple",
        lambda: _step(lambda m: (1.0, 2.0, 3.0), has_aux=True),
        TypeError,
        ("`has_aux=True`", "pair `(value, aux)`", "tuple"),
    ),
    Case(
        "neither data nor hashable",
        lambda: _step(lambda m, x: jnp.sum(m.layers[0].weight), {"names": {"a", "b"}}),
        TypeError,
        ("['names']", "a set", "array", "hashable"),
    ),
]

APPLIES = [
    Case(
        "shape", lambda: _apply(jnp.ones((3, 4), FLOAT)), ValueError, (_WEIGHT, "(3, 4)", "(4, 3)")
    ),
    Case("integers", lambda: _apply(jnp.ones((4, 3), int)), TypeError, (_WEIGHT, "int", WIDTH)),
    Case(
        "complex",
        lambda: _apply(jnp.ones((4, 3), jnp.complex64)),
        ValueError,
        (_WEIGHT, "complex64", WIDTH),
    ),
    Case(
        "missing element", lambda: eqopt.apply_updates(MODEL, _SHORTER), ValueError, ("layers[2]",)
    ),
    Case(
        "missing key",
        lambda: eqopt.apply_updates(TREE, {"a": TREE["a"]}),
        ValueError,
        ("missing", "`updates['branch']`"),
    ),
    Case(
        "of what is not trained",
        lambda: eqopt.apply_updates(LOOSE, {"x": None, "counts": jnp.ones(3, FLOAT)}),
        ValueError,
        ("`updates['counts']`", "not trained"),
    ),
]
