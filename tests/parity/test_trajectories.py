"""Trajectories equal optax's: every class, random trees, random hyper-parameters, 50 steps."""

import inspect
import operator
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import eqopt
from eqopt import ByNdim
from eqopt.writing import AbstractOptimizer, AbstractTransformation
from tests.laws.table import OTHER_ORACLES, parts, ROWS as LAW_ROWS
from tests.support import house_rules
from tests.support.parity import (
    ADAM,
    between,
    BOOLS,
    DECAY,
    falling,
    fields,
    HALF,
    one_by_one,
    power,
    RATE,
    Row,
    row,
    towards_one,
    trajectories,
)
from tests.support.toolbox import FLOAT
from tests.support.trees import assert_near, is_matrix
from tests.support.used_names import used_names

AVERAGE = {"decay": towards_one(-2, 0)}
LION = {"b1": towards_one(-2, 0), "b2": towards_one(-3, -1)}
# The initial scale keeps the debiased variance off zero: after one step it would be the rounding
# error of a difference of two equal numbers.
RMS = {**AVERAGE, "eps": power(-8, -2), "initial_scale": between(0.1, 1)}
# The variance of the last two or three gradients is now and then next to nothing, a difference of
# equal numbers too: float32 has no digits there.
STDDEV = {**RMS, "decay": towards_one(-2, -1)}
MOMENTUM = {"momentum": between(0, 1)}


def _half(updates: Any, params: Any) -> Any:
    return jax.tree.map(lambda u, p: u / 2 + p, updates, params)


def _not_matrix(params: Any) -> Any:
    return jax.tree.map(operator.not_, is_matrix(params))


ROWS = [
    row(eqopt.Identity, optax.identity, {}),
    row(eqopt.Scale, optax.scale, {"step_size": between(-2, 2)}),
    row(eqopt.ScaleByLearningRate, optax.scale_by_learning_rate, RATE),
    row(eqopt.ScaleByLearningRate, optax.scale_by_learning_rate, RATE, flip_sign=False),
    row(eqopt.ScaleByLearningRate, optax.scale_by_learning_rate, RATE, scheduled="learning_rate"),
    row(
        eqopt.ScaleBySchedule,
        optax.scale_by_schedule,
        {"step_size_fn": between(-2, 2)},
        scheduled="step_size_fn",
    ),
    row(eqopt.SetToZero, optax.set_to_zero, {}),
    Row(
        eqopt.Stateless,
        "",
        lambda h: eqopt.Stateless(_half),
        lambda h: optax.stateless(_half),
        {},
        {"f"},
    ),
    *(row(eqopt.Trace, optax.trace, AVERAGE, nesterov=x) for x in BOOLS),
    row(eqopt.Trace, optax.trace, AVERAGE, accumulator_dtype=HALF),
    *(row(eqopt.EMA, optax.ema, AVERAGE, debias=x) for x in BOOLS),
    row(eqopt.EMA, optax.ema, AVERAGE, accumulator_dtype=HALF),
    *(row(eqopt.ScaleByAdam, optax.scale_by_adam, ADAM, nesterov=x) for x in BOOLS),
    row(eqopt.ScaleByAdam, optax.scale_by_adam, ADAM, mu_dtype=HALF),
    *(
        row(
            eqopt.ScaleByLion,
            optax.scale_by_lion,
            {**LION, "smooth_beta": between(0.5, 2)},
            mode=mode,
            # The hyperbolic tangent has poles in the complex plane, and no digits near them.
            real=mode == "smooth",
        )
        for mode in ("hard", "smooth", "refined")
    ),
    row(eqopt.ScaleByLion, optax.scale_by_lion, LION, mu_dtype=HALF),
    *(
        row(cls, other, draws, eps_in_sqrt=x, bias_correction=y)
        for cls, other, draws in (
            (eqopt.ScaleByRMS, optax.scale_by_rms, RMS),
            (eqopt.ScaleByStddev, optax.scale_by_stddev, STDDEV),
        )
        for x in BOOLS
        for y in BOOLS
    ),
    row(eqopt.AddDecayedWeights, optax.add_decayed_weights, DECAY),
    row(eqopt.AddDecayedWeights, optax.add_decayed_weights, DECAY, masks=("mask",)),
    # Complex numbers have no order, and optax does not clip them.
    row(eqopt.Clip, optax.clip, {"max_delta": between(0.1, 2)}, real=True),
    row(eqopt.ClipByGlobalNorm, optax.clip_by_global_norm, {"max_norm": power(-1, 2)}),
    Row(
        eqopt.Masked,
        "",
        lambda h: eqopt.Masked(eqopt.ScaleByAdam(**h), ByNdim(2)),
        lambda h: optax.masked(optax.scale_by_adam(**h), is_matrix),
        ADAM,
        {"inner", "mask"},
    ),
    Row(
        eqopt.Masked,
        "of-chain",
        lambda h: eqopt.Masked(eqopt.Chain(eqopt.Trace(**h), eqopt.Scale(2.0)), ~ByNdim(2)),
        lambda h: optax.masked(optax.chain(optax.trace(**h), optax.scale(2.0)), _not_matrix),
        AVERAGE,
        {"inner", "mask"},
    ),
    Row(
        eqopt.Chain,
        "",
        lambda h: eqopt.Chain(
            eqopt.ClipByGlobalNorm(h["max_norm"]),
            eqopt.Trace(h["decay"]),
            eqopt.ScaleByLearningRate(falling(h["learning_rate"])),
        ),
        lambda h: optax.chain(
            optax.clip_by_global_norm(h["max_norm"]),
            optax.trace(h["decay"]),
            optax.scale_by_learning_rate(falling(h["learning_rate"])),
        ),
        {"max_norm": power(-1, 2), **AVERAGE, **RATE},
        {"links"},
    ),
    # With complex parameters about, optax makes the hyper-parameters complex.
    Row(
        eqopt.Scheduled,
        "",
        lambda h: eqopt.Scheduled(eqopt.ScaleByAdam(**h), lambda x: x.b1, falling(h["b1"])),
        lambda h: optax.inject_hyperparams(optax.scale_by_adam)(**{**h, "b1": falling(h["b1"])}),
        ADAM,
        {"inner", "where", "schedule"},
        real=True,
    ),
    row(eqopt.SGD, optax.sgd, RATE),
    row(eqopt.SGD, optax.sgd, RATE, scheduled="learning_rate"),
    row(eqopt.SGD, optax.sgd, {**RATE, **MOMENTUM}),
    row(eqopt.SGD, optax.sgd, {**RATE, **MOMENTUM}, nesterov=True, accumulator_dtype=HALF),
    row(eqopt.Adam, optax.adam, {**RATE, **ADAM}),
    row(eqopt.Adam, optax.adam, {**RATE, **ADAM}, scheduled="learning_rate", nesterov=True),
    row(eqopt.Adam, optax.adam, {**RATE, **ADAM}, mu_dtype=HALF),
    row(eqopt.AdamW, optax.adamw, {**RATE, **ADAM, **DECAY}),
    row(
        eqopt.AdamW,
        optax.adamw,
        {**RATE, **ADAM, **DECAY},
        masks=("mask",),
        scheduled="learning_rate",
        nesterov=True,
        mu_dtype=HALF,
    ),
    row(eqopt.NAdam, optax.nadam, {**RATE, **ADAM}),
    row(
        eqopt.NAdam,
        optax.nadam,
        {**RATE, **ADAM},
        scheduled="learning_rate",
        nesterov=False,
        mu_dtype=HALF,
    ),
    row(eqopt.NAdamW, optax.nadamw, {**RATE, **ADAM, **DECAY}, masks=("mask",)),
    row(
        eqopt.NAdamW,
        optax.nadamw,
        {**RATE, **ADAM, **DECAY},
        scheduled="learning_rate",
        nesterov=False,
        mu_dtype=HALF,
    ),
    row(eqopt.Lion, optax.lion, {**RATE, **LION, **DECAY}),
    row(
        eqopt.Lion,
        optax.lion,
        {**RATE, **LION, **DECAY},
        masks=("mask",),
        scheduled="learning_rate",
        mu_dtype=HALF,
    ),
    row(eqopt.RMSProp, optax.rmsprop, {**RATE, **RMS}),
    row(eqopt.RMSProp, optax.rmsprop, {**RATE, **STDDEV}, scheduled="learning_rate", centered=True),
    row(eqopt.RMSProp, optax.rmsprop, {**RATE, **RMS, **MOMENTUM}, eps_in_sqrt=False),
    row(
        eqopt.RMSProp,
        optax.rmsprop,
        {**RATE, **RMS, **MOMENTUM},
        nesterov=True,
        bias_correction=True,
    ),
]


test_trajectories_equal_those_of_optax = trajectories(ROWS)


def test_the_table_is_complete():
    public = {
        x
        for name, x in house_rules.public(eqopt).items()
        if isinstance(x, type)
        and not name.startswith("eqopt.flax_optim.")  # these have a test file of their own
        and issubclass(x, AbstractTransformation)
        and not inspect.isabstract(x)
    }
    assert {x.__name__ for x in public} == {row.cls.__name__ for row in ROWS} | OTHER_ORACLES.keys()


# Classes whose objects are made by another name.
_MAKERS = {"FromOptax": "from_optax", "InjectedHyperparams": "InjectHyperparams"}


def test_the_other_oracles_are_there():
    """Each class is used in its file: by itself, or as a part of an optimizer."""
    links = {row.cls.__name__: {x.__name__ for x in parts(row.make())} for row in LAW_ROWS}

    def judged(file: str) -> set[str]:
        used = used_names(file)
        return used.union(*(links[x] for x in used & links.keys()))

    files = {file: judged(file) for file in set(OTHER_ORACLES.values())}
    without = [x for x, file in OTHER_ORACLES.items() if _MAKERS.get(x, x) not in files[file]]
    assert without == []


test_every_field_is_varied = fields(ROWS)


@pytest.mark.parametrize(
    "row", [x for x in ROWS if issubclass(x.cls, AbstractOptimizer)], ids=lambda row: row.name
)
def test_an_optimizer_is_its_links_one_by_one(row: Row):
    # To the last bit that matters: whether a product and a sum are rounded once or twice, is for
    # the compiler to choose, and it does so by shape.
    for fused, alone in one_by_one(row, 5):
        assert_near(fused, alone, 4 * float(jnp.finfo(FLOAT).eps))
