"""Mistakes in building: masks, numbers and parts."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import eqopt
from tests.support.mistakes_arguments import Case, OPT, SGD, TREE
from tests.support.toolbox import FLOAT, tree

# A type checker refuses most of these before they are made; here nothing is said of types.
untyped: Any = eqopt

_ALL_TRUE = {"a": True, "branch": {"b": True, "w": True}}
_DENSE = eqx.nn.Linear(2, 2, dtype=FLOAT, key=jax.random.key(0))


def _masked(mask: Any) -> Any:
    opt = eqopt.Masked(SGD, mask)
    return opt.update(tree(7), opt.init(TREE), TREE)


def _edited(b1: Any) -> Any:
    opt = eqx.tree_at(lambda o: o.b1, OPT, b1)
    return opt.update(TREE, OPT.init(TREE), TREE)


def _under_jit(function: Callable[[Any], Any]) -> Any:
    return eqx.filter_jit(function)(jnp.asarray(True))


def _shrunk(updates: Any, params: Any) -> Any:
    return jax.tree.map(lambda u: u[:1], updates)


MASKS = [
    Case(
        "missing key",
        lambda: _masked({"a": True, "branch": {"b": True}}),
        ValueError,
        ("missing", "`mask['branch']['w']`", "`params['branch']`"),
    ),
    Case(
        "extra key",
        lambda: _masked({**_ALL_TRUE, "more": True}),
        ValueError,
        ("not in `params`", "`mask['more']`"),
    ),
    Case(
        "integer",
        lambda: _masked({**_ALL_TRUE, "a": 1}),
        TypeError,
        ("`mask['a']`", "int", "True"),
    ),
    Case(
        "array",
        lambda: _masked({**_ALL_TRUE, "a": jnp.ones((2, 3), bool)}),
        TypeError,
        ("`mask['a']`", "bool[2,3]", "True or False"),
    ),
    Case(
        "hole where there is a parameter",
        lambda: _masked({**_ALL_TRUE, "a": None}),
        ValueError,
        ("`mask['a']`", "None", "`params['a']`"),
    ),
    Case(
        "list for a dict",
        lambda: _masked([True, True]),
        ValueError,
        ("`mask` is a list", "`params` is a dict"),
    ),
    Case(
        "traced",
        lambda: _under_jit(lambda b: _masked({**_ALL_TRUE, "a": b})),
        TypeError,
        ("`mask['a']`", "traced", "static"),
    ),
    Case(
        "function of the values",
        lambda: _masked(lambda p: jax.tree.map(lambda x: x.sum() > 0, p)),
        TypeError,
        ("mask", "values", "shapes"),
    ),
    Case("function to a number", lambda: _masked(lambda p: 3), TypeError, ("mask", "True", "int")),
    Case(
        "of decay",
        lambda: untyped.AddDecayedWeights(0.1, {"a": True}).init(TREE),
        ValueError,
        ("missing", "`mask['branch']`"),
    ),
    Case("pattern", lambda: untyped.ByPath(3), TypeError, ("`pattern`", "string", "3")),
    Case("type", lambda: untyped.selectors.ByType("Linear"), TypeError, ("types", "Linear")),
    Case("no type", untyped.selectors.ByType, TypeError, ("types", "none")),
    Case("dimensions", lambda: untyped.ByNdim(-1), ValueError, ("`at_least`", "at least 0", "-1")),
    Case("half dimensions", lambda: untyped.ByNdim(1.5), TypeError, ("`at_least`", "int", "1.5")),
    Case(
        "function that makes something up",
        lambda: untyped.selectors.Where(lambda m: 3).select(TREE),
        ValueError,
        ("`where`", "parts of the model", "int"),
    ),
    Case(
        "and",
        lambda: untyped.selectors.And(untyped.ByNdim(2), True),
        TypeError,
        ("selector", "bool"),
    ),
]

NUMBERS = [
    Case(
        "negative rate",
        lambda: untyped.Adam(-0.1),
        ValueError,
        ("`learning_rate`", "at least 0", "-0.1"),
    ),
    Case("NaN", lambda: untyped.Adam(np.nan), ValueError, ("`learning_rate`", "at least 0", "nan")),
    Case("infinity", lambda: untyped.SGD(np.inf), ValueError, ("`learning_rate`", "inf")),
    Case(
        "infinite scale",
        lambda: untyped.Scale(np.inf),
        ValueError,
        ("`step_size`", "finite", "inf"),
    ),
    Case(
        "string", lambda: untyped.Adam("fast"), TypeError, ("`learning_rate`", "number", "'fast'")
    ),
    Case("boolean", lambda: untyped.Adam(True), TypeError, ("`learning_rate`", "number", "True")),
    Case("None", lambda: untyped.Adam(None), TypeError, ("`learning_rate`", "number", "None")),
    Case(
        "complex",
        lambda: untyped.Scale(jnp.ones((), jnp.complex64)),
        TypeError,
        ("`step_size`", "real", "complex64"),
    ),
    Case("Python complex", lambda: untyped.Scale(1j), TypeError, ("`step_size`", "number", "1j")),
    Case(
        "vector",
        lambda: untyped.Adam(jnp.ones(3)),
        ValueError,
        ("`learning_rate`", "one number", "(3,)", "eqx.filter_vmap"),
    ),
    Case(
        "vector of one", lambda: untyped.Adam(np.ones(1)), ValueError, ("`learning_rate`", "(1,)")
    ),
    Case("b1 of 1", lambda: untyped.Adam(0.1, b1=1), ValueError, ("`b1`", "below 1", "got 1")),
    Case(
        "negative b2",
        lambda: untyped.Adam(0.1, b2=-0.5),
        ValueError,
        ("`b2`", "at least 0", "-0.5"),
    ),
    Case(
        "negative eps",
        lambda: untyped.RMSProp(0.1, eps=-1e-8),
        ValueError,
        ("`eps`", "at least 0", "-1e-08"),
    ),
    Case(
        "negative decay",
        lambda: untyped.AdamW(0.1, weight_decay=-1),
        ValueError,
        ("`weight_decay`", "at least 0", "-1"),
    ),
    Case(
        "momentum above 1",
        lambda: untyped.SGD(0.1, 1.5),
        ValueError,
        ("`momentum`", "at most 1", "1.5"),
    ),
    Case(
        "negative norm",
        lambda: untyped.ClipByGlobalNorm(-1.0),
        ValueError,
        ("`max_norm`", "at least 0", "-1"),
    ),
    Case(
        "negative limit",
        lambda: untyped.Clip(-1.0),
        ValueError,
        ("`max_delta`", "at least 0", "-1"),
    ),
    Case(
        "beta of 0",
        lambda: untyped.ScaleByLion(smooth_beta=0),
        ValueError,
        ("`smooth_beta`", "above 0", "got 0"),
    ),
    Case(
        "number for a flag",
        lambda: untyped.Adam(0.1, nesterov=1),
        TypeError,
        ("`nesterov`", "True", "1"),
    ),
    Case(
        "integer dtype",
        lambda: untyped.Adam(0.1, mu_dtype=int),
        TypeError,
        ("`mu_dtype`", "floating", "int"),
    ),
    Case(
        "no dtype",
        lambda: untyped.Adam(0.1, mu_dtype="wide"),
        TypeError,
        ("`mu_dtype`", "floating", "'wide'"),
    ),
    Case(
        "mode",
        lambda: untyped.ScaleByLion(mode="soft"),
        ValueError,
        ("`mode`", "function", "'soft'"),
    ),
    Case(
        "replaced by a bad one",
        lambda: OPT.replace(eps=-1.0),
        ValueError,
        ("`eps`", "at least 0", "-1"),
    ),
    Case(
        "replaced where there is none",
        lambda: OPT.replace(lr=0.1),
        TypeError,
        ("`AdamW`", "`lr`", "`learning_rate`"),
    ),
    Case(
        "out of range by tree_at",
        lambda: _edited(-3.0),
        ValueError,
        ("`b1`", "at least 0 and below 1", "-3"),
    ),
    Case(
        "vector by tree_at",
        lambda: _edited(jnp.ones(3)),
        ValueError,
        ("`b1`", "one number", "(3,)"),
    ),
    Case("string by tree_at", lambda: _edited("x"), TypeError, ("`b1`", "number", "'x'")),
    Case(
        "negative steps", lambda: untyped.Linear(1, 0, -5), ValueError, ("`transition_steps`", "-5")
    ),
    Case(
        "half a step",
        lambda: untyped.Linear(1, 0, 2.5),
        ValueError,
        ("`transition_steps`", "whole", "2.5"),
    ),
]

PARTS = [
    Case(
        "model for a rate",
        lambda: untyped.Adam(_DENSE),
        TypeError,
        ("`learning_rate`", "schedule", "a Linear"),
    ),
    Case(
        "class for a rate",
        lambda: untyped.Adam(untyped.Linear),
        TypeError,
        ("`learning_rate`", "schedule"),
    ),
    Case(
        "number for a schedule",
        lambda: untyped.ScaleBySchedule(0.1),
        TypeError,
        ("`step_size_fn`", "schedule", "a float"),
    ),
    Case(
        "class for a link",
        lambda: untyped.Chain(untyped.Identity),
        TypeError,
        ("`links[0]`", "transformation"),
    ),
    Case(
        "optax's for a link",
        lambda: untyped.Chain(untyped.Identity(), optax.adam(0.1)),
        TypeError,
        ("`links[1]`", "transformation", "GradientTransformation", "from_optax"),
    ),
    Case(
        "function for a link",
        lambda: untyped.Chain(abs),
        TypeError,
        ("`links[0]`", "transformation"),
    ),
    Case(
        "None for a wrapped one",
        lambda: untyped.Masked(None, True),
        TypeError,
        ("`inner`", "transformation", "None"),
    ),
    Case(
        "optax's for a wrapped one",
        lambda: untyped.Masked(optax.sgd(0.1), True),
        TypeError,
        ("`inner`", "transformation"),
    ),
    Case(
        "number for a scheduled one",
        lambda: untyped.Scheduled(3, lambda o: o, untyped.Linear(1, 0, 5)),
        TypeError,
        ("`inner`", "transformation"),
    ),
    Case(
        "where there is nothing",
        lambda: untyped.Scheduled(OPT, lambda o: o.lr, untyped.Linear(1, 0, 5)),
        ValueError,
        ("`where`", "hyper-parameter", "lr"),
    ),
    Case(
        "where there is None",
        lambda: untyped.Scheduled(SGD, lambda o: o.momentum, untyped.Linear(1, 0, 5)),
        ValueError,
        ("`where`", "one number", "`SGD`", "None"),
    ),
    Case(
        "where there is a flag",
        lambda: untyped.Scheduled(OPT, lambda o: o.nesterov, untyped.Linear(1, 0, 5)),
        ValueError,
        ("`where`", "one number", "`AdamW`", "bool"),
    ),
    Case(
        "number for a function", lambda: untyped.Stateless(3), TypeError, ("`f`", "function", "3")
    ),
    Case(
        "function that changes a shape",
        lambda: untyped.Stateless(_shrunk).update(TREE, untyped.states.EmptyState()),
        ValueError,
        ("f(updates, params)['a']", "(1, 3)", "(2, 3)"),
    ),
]
