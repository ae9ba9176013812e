"""Mistakes in what stands where: numbers for arrays, trees in each other's place, schedules."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import eqopt
from tests.support.mistakes_arguments import Case, GRADS, MODEL, OPT, SGD, STATE
from tests.support.toolbox import FLOAT

# A type checker refuses most of these before they are made; here nothing is said of types.
untyped: Any = eqopt

_WRONG_STATE: Any = MODEL
_NO_STATE: Any = None
_PARAMS = {"w": jnp.ones(2, FLOAT)}
_HALF = {"w": jnp.ones(2, jnp.bfloat16)}
_NUMBER = {"layers": [{"w": 1.0}], "b": jnp.ones(2, FLOAT)}
_FLOAT = ("`params['layers'][0]['w']`", "float", "jnp.asarray")
_LINEAR = eqx.nn.Linear(2, 2, dtype=FLOAT, key=jax.random.key(0))


def _loss(params: Any) -> Any:
    return sum(jnp.sum(jnp.asarray(x, FLOAT) ** 2) for x in jax.tree.leaves(params))


def _as_optax(params: Any) -> Any:
    tx: Any = eqopt.as_optax(SGD)
    return tx.update(params, tx.init(_PARAMS), params)


PYTHON_NUMBERS = [
    Case("init", lambda: SGD.init(_NUMBER), TypeError, _FLOAT),
    Case(
        "update",
        lambda: SGD.update(_NUMBER, SGD.init(_PARAMS), _NUMBER),
        TypeError,
        _FLOAT,
    ),
    Case("step", lambda: SGD.step(_loss, _NUMBER, SGD.init(_PARAMS)), TypeError, _FLOAT),
    Case("fit", lambda: eqopt.fit(_loss, SGD, _NUMBER, [()]), TypeError, _FLOAT),
    Case("fit with a state", lambda: _fit_on(_NUMBER), TypeError, _FLOAT),
    Case("Optimizer", lambda: eqopt.Optimizer.create(SGD, _NUMBER), TypeError, _FLOAT),
    Case("as_optax", lambda: _as_optax({"w": 1.0}), TypeError, ("`params['w']`", "float")),
    Case(
        "as_optax, no parameters",
        lambda: untyped.as_optax(SGD).update({"w": 1.0}, SGD.init(_PARAMS)),
        TypeError,
        ("`updates['w']`", "float"),
    ),
    Case("alone", lambda: SGD.init(1.0), TypeError, ("`params`", "float", "jnp.asarray")),
    Case("complex", lambda: SGD.init([1j]), TypeError, ("`params[0]`", "complex")),
    Case("integers alone", lambda: SGD.init({"w": 1}), TypeError, ("`params['w']`", "int")),
    Case(
        "minimize",
        lambda: eqopt.minimize(_loss, eqopt.LBFGS(), _NUMBER),
        TypeError,
        _FLOAT,
    ),
    Case(
        "incremental_update",
        lambda: eqopt.incremental_update({"w": 1.0}, {"w": 2.0}, 0.1),
        TypeError,
        ("`new_tensors['w']`", "float"),
    ),
    Case(
        "periodic_update",
        lambda: eqopt.periodic_update({"w": 1.0}, {"w": 2.0}, 0, 1),
        TypeError,
        ("`new_tensors['w']`", "float"),
    ),
]


def _fit_on(model: Any) -> Any:
    return eqopt.fit(_loss, SGD, model, [()], state=SGD.init(_PARAMS))


def _stochastically(model: Any, updates: Any) -> Any:
    return eqopt.precision.apply_updates_stochastically(model, updates, jax.random.key(0))


PLACES = [
    Case(
        "apply_updates(None, array)",
        lambda: eqopt.apply_updates(None, jnp.ones(2, FLOAT)),
        ValueError,
        ("`params`", "None"),
    ),
    Case(
        "apply_updates(None, tree)",
        lambda: eqopt.apply_updates(None, GRADS),
        ValueError,
        ("`params`", "None"),
    ),
    Case(
        "apply_updates(function, updates)",
        lambda: eqopt.apply_updates(_loss, GRADS),
        ValueError,
        ("`params`", "a function"),
    ),
    Case(
        "apply_updates, swapped",
        lambda: eqopt.apply_updates(GRADS, MODEL),
        ValueError,
        ("`updates`", "`params`", "in each other's place"),
    ),
    Case(
        "apply_updates, a number",
        lambda: eqopt.apply_updates(_PARAMS, 3.0),
        ValueError,
        ("`updates` is a float", "`params` is a dict"),
    ),
    Case(
        "apply_updates_stochastically(None, tree)",
        lambda: _stochastically(None, _HALF),
        ValueError,
        ("`params`", "None"),
    ),
    Case(
        "apply_updates_stochastically, swapped",
        lambda: _stochastically(GRADS, MODEL),
        ValueError,
        ("`updates`", "`params`", "in each other's place"),
    ),
    Case(
        "update, model and gradients swapped",
        lambda: OPT.update(MODEL, STATE, GRADS),
        ValueError,
        ("`updates`", "`params`", "in each other's place"),
    ),
    Case(
        "update, state and model swapped",
        lambda: OPT.update(GRADS, _WRONG_STATE, STATE),
        TypeError,
        ("`state` is a `MLP`", "`ChainState`"),
    ),
    Case(
        "step, state and model swapped",
        lambda: OPT.step(_loss, STATE, _WRONG_STATE),
        TypeError,
        ("`state` is a `MLP`", "`ChainState`"),
    ),
    Case(
        "step without a state",
        lambda: OPT.step(_loss, MODEL, _NO_STATE),
        TypeError,
        ("`state` is a `NoneType`", "`ChainState`"),
    ),
    Case(
        "Optimizer, not created",
        lambda: untyped.Optimizer(OPT, MODEL),
        TypeError,
        ("`Optimizer.create(transformation, target)`",),
    ),
    Case(
        "Optimizer, of a transformation alone",
        lambda: untyped.Optimizer(OPT),
        TypeError,
        ("`Optimizer.create(transformation, target)`",),
    ),
    Case(
        "Optimizer, another's state",
        lambda: eqopt.Optimizer(OPT, eqopt.states.EmptyState(), MODEL),
        TypeError,
        ("`state` is a `EmptyState`", "`ChainState`"),
    ),
    Case(
        "Optimizer, swapped",
        lambda: untyped.Optimizer.create(MODEL, OPT),
        TypeError,
        ("`transformation`", "a MLP"),
    ),
    Case(
        "a list in a chain",
        lambda: untyped.Chain([SGD, SGD]),
        TypeError,
        ("`links[0]`", "a list", "`eqopt.Chain(*links)`"),
    ),
    Case(
        "a class in a chain",
        lambda: untyped.Chain(SGD, eqopt.Adam),
        TypeError,
        ("`links[1]`", "the class `Adam`", "`Adam(...)`"),
    ),
    Case(
        "a class in a wrapper",
        lambda: untyped.Masked(eqopt.Adam, eqopt.ByNdim(2)),
        TypeError,
        ("`inner`", "the class `Adam`", "`Adam(...)`"),
    ),
    Case(
        "a function in a chain",
        lambda: untyped.Chain(lambda updates: updates),
        TypeError,
        ("`links[0]`", "a function", "`eqopt.Stateless`"),
    ),
    Case(
        "optax's in a chain",
        lambda: untyped.Chain(optax.sgd(0.1)),
        TypeError,
        ("`links[0]`", "`eqopt.from_optax`"),
    ),
]


def _scheduled(schedule: Callable[[Any], Any]) -> Any:
    opt = eqopt.SGD(schedule)
    return opt.update(_PARAMS, opt.init(_PARAMS), _PARAMS)


def warmup_by_if(count: Any) -> Any:
    return 0.1 if count < 10 else 0.2


class Wide(eqopt.writing.AbstractSchedule):
    def at(self, count: Any) -> Any:
        return jnp.ones((*jnp.shape(count), 2), FLOAT)


def _rounded(step: Callable[..., Any]) -> Any:
    opt = eqopt.precision.StochasticRounding(SGD)
    return step(opt, opt.init(_HALF))


_TRACED = ("traced", "jnp.where")
_NO_SCHEDULE = "`eqopt.Scheduled(optimizer, lambda o: o.{}, schedule)`"
SCHEDULES = [
    Case("Python's if", lambda: _scheduled(warmup_by_if), TypeError, ("`warmup_by_if`", *_TRACED)),
    Case(
        "NumPy in a schedule",
        lambda: _scheduled(lambda count: np.cos(count)),
        TypeError,
        ("schedule", *_TRACED),
    ),
    Case(
        "Python's if in a condition",
        lambda: _update(eqopt.ConditionallyTransform(SGD, lambda step: bool(step > 3))),
        TypeError,
        ("`should_transform_fn`", *_TRACED),
    ),
    Case(
        "Python's if in what skips",
        lambda: _update(untyped.MultiSteps(SGD, 2, should_skip_update_fn=_skip)),
        TypeError,
        ("`should_skip_update_fn`", *_TRACED),
    ),
    Case(
        "Python's if in the length of a window",
        lambda: _update(eqopt.MultiSteps(SGD, lambda step: 2 if step > 3 else 1)),
        TypeError,
        ("schedule", *_TRACED),
    ),
    Case(
        "a vector", lambda: _scheduled(lambda t: jnp.ones(2)), TypeError, ("one real number", "[2]")
    ),
    Case(
        "a vector by a class",
        lambda: _scheduled(Wide()),
        ValueError,
        ("`Wide.at`", "(2,)", "()"),
    ),
    Case("a string", lambda: _scheduled(lambda t: "x"), TypeError, ("one real number", "a str")),
    Case("nothing", lambda: _scheduled(lambda t: None), TypeError, ("one real number", "None")),
    Case("complex", lambda: _scheduled(lambda t: 1j), TypeError, ("one real number", "complex")),
    Case(
        "of the weight decay",
        lambda: untyped.AdamW(0.1, weight_decay=lambda t: 0.1),
        TypeError,
        ("`weight_decay`", "a function", _NO_SCHEDULE.format("weight_decay")),
    ),
    Case(
        "of a decay, by a class",
        lambda: untyped.Adam(0.1, b1=eqopt.Linear(0.8, 0.9, 10)),
        TypeError,
        ("`b1`", _NO_SCHEDULE.format("b1")),
    ),
]
INFINITIES = [
    Case(
        f"{value}, {name}",
        lambda make=make, value=value: make(value),
        ValueError,
        (f"`{name}`", "finite", str(value)),
    )
    for value in (float("inf"), float("nan"))
    for name, make in {
        "learning_rate": eqopt.SGD,
        "max_norm": eqopt.ClipByGlobalNorm,
        "value": eqopt.Constant,
    }.items()
]
KEYS = [
    Case("at the start", lambda: untyped.NoisySGD(0.1, key=0), TypeError, ("`key`", "got 0")),
    Case(
        "in update",
        lambda: _rounded(lambda opt, state: opt.update(_HALF, state, _HALF, key=0)),
        TypeError,
        ("`key`", "jax.random.key(0)"),
    ),
    Case(
        "in step",
        lambda: _rounded(lambda opt, state: opt.step(_loss, _HALF, state, key=0)),
        TypeError,
        ("`key`", "jax.random.key(0)"),
    ),
    Case(
        "in fit",
        lambda: eqopt.fit(_loss, SGD, _PARAMS, [()], key=0),
        TypeError,
        ("`key`", "jax.random.key(0)"),
    ),
    Case(
        "in apply_updates_stochastically",
        lambda: eqopt.precision.apply_updates_stochastically(_HALF, _HALF, 0),
        TypeError,
        ("`key`", "jax.random.key(0)"),
    ),
]


def _update(opt: Any) -> Any:
    return opt.update(_PARAMS, opt.init(_PARAMS), _PARAMS)


def _skip(updates: Any, step: Any, params: Any) -> Any:
    return (bool(updates["w"][0] > 3), {})


VALUES = [
    Case(
        "a string",
        lambda: SGD.update(_PARAMS, SGD.init(_PARAMS), _PARAMS, value="x"),
        ValueError,
        ("`value`", "a str"),
    ),
]
