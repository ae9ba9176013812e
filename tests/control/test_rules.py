"""Each rule is its plain NumPy form, for a matrix and for every matrix of a stack."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import eqopt
from eqopt import control
from tests.support import numpy_rules as rules
from tests.support.toolbox import FLOAT, X64

RTOL = 1e-12 if X64 else 2e-5
NUM_STEPS = 12
RATES = [0.02 * (i + 1) / 4 if i < 4 else 0.02 * (12 - i) / 12 for i in range(NUM_STEPS)]


def _rate(count: Any) -> Any:
    return jnp.asarray(RATES, FLOAT)[count]


def _numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=shape)


CASES: dict[str, tuple[Callable[[], Any], Callable[[], rules.Rule]]] = {
    "Hyperball": (
        lambda: control.Hyperball(0.1),
        lambda: rules.hyperball(0.1),
    ),
    "Hyperball-current": (
        lambda: control.Hyperball(0.1, fixed=False),
        lambda: rules.hyperball(0.1),
    ),
    "Hyperball-given": (
        lambda: control.Hyperball(0.1, 2.5),
        lambda: rules.hyperball(0.1, 2.5),
    ),
    "AdamH": (
        lambda: control.AdamH(0.1, 0.8, 0.9, 1e-6),
        lambda: rules.hyperball(0.1, direction=rules.adam(0.8, 0.9, 1e-6)),
    ),
    "by-parts": (
        lambda: eqopt.Chain(control.RelativeUpdate(), control.Hyperball(0.1)),
        lambda: rules.hyperball(0.1),
    ),
    "KeepRadius": (
        lambda: eqopt.Chain(eqopt.ScaleByLearningRate(0.005), control.KeepRadius()),
        lambda: rules.keep_radius(0.005),
    ),
    "RelativeUpdate": (
        lambda: eqopt.Chain(control.RelativeUpdate(), eqopt.Scale(-0.1)),
        lambda: lambda g, w: w - 0.1 * g * rules.norm(w) / rules.norm(g),
    ),
    "UpdateFloor": (
        lambda: eqopt.Chain(control.UpdateFloor(1.1), eqopt.Scale(-0.1)),
        lambda: lambda g, w: w - 0.1 * g * max(1.0, 1.1 * rules.norm(w) / rules.norm(g)),
    ),
    "UpdateFloor-rows": (
        lambda: eqopt.Chain(control.UpdateFloor(1.1, block_ndim=1), eqopt.Scale(-0.1)),
        lambda: _floor_by_row(1.0),
    ),
    "UpdateFloor-exponent": (
        lambda: eqopt.Chain(control.UpdateFloor(1.1, 1, 0.6), eqopt.Scale(-0.1)),
        lambda: _floor_by_row(0.6),
    ),
    "RadialBrake": (
        lambda: eqopt.Chain(control.RadialBrake(0.3, 0.8), eqopt.Scale(-0.1)),
        lambda: _brake,
    ),
    "ClipUpdateRMS": (
        lambda: eqopt.Chain(control.ClipUpdateRMS(0.9), eqopt.Scale(-0.1)),
        lambda: lambda g, w: w - 0.1 * g * min(1.0, 0.9 / np.sqrt(np.mean(g * g))),
    ),
    "Graft": (
        lambda: control.Graft(eqopt.SGD(0.1), eqopt.Adam(0.3, 0.8, 0.9, 1e-6)),
        lambda: _graft(rules.adam(0.8, 0.9, 1e-6)),
    ),
    "CautiousUpdates": (
        lambda: _cautious(control.over_mean),
        lambda: _masked(lambda kept, n: n / max(kept, n * 1e-3)),
    ),
    "CautiousUpdates-count": (
        lambda: _cautious(control.over_count),
        lambda: _masked(lambda kept, n: n / max(kept, 1)),
    ),
    "CautiousUpdates-next": (
        lambda: _cautious(control.over_next_count),
        lambda: _masked(lambda kept, n: n / (kept + 1)),
    ),
    "CautiousUpdates-plain": (
        lambda: _cautious(None),
        lambda: _masked(lambda kept, n: 1.0),
    ),
    "AddCautiousDecayedWeights": (
        lambda: eqopt.Chain(
            control.AddCautiousDecayedWeights(0.3), eqopt.ScaleByLearningRate(_rate)
        ),
        lambda: _by_rate(lambda g, w, rate: w - rate * (g + 0.3 * w * (g * w >= 0))),
    ),
    "AddCautiousDecayedWeights-scheduled": (
        lambda: eqopt.Chain(
            control.AddCautiousDecayedWeights(control.DecayByRate(0.3, _rate)),
            eqopt.ScaleByLearningRate(_rate),
        ),
        lambda: _by_rate(lambda g, w, rate: w - rate * (g + 0.3 * rate * w * (g * w >= 0))),
    ),
    "decoupled": (
        lambda: _decaying(control.DecayByRate(0.3, _rate)),
        lambda: _by_rate(lambda g, w, rate: w * (1 - 0.3 * rate) - rate * g),
    ),
    "independent": (
        lambda: _decaying(0.03),
        lambda: _by_rate(lambda g, w, rate: w * (1 - 0.03) - rate * g),
    ),
    "palm": (
        lambda: _decaying(control.DecayByRate(0.3, _rate, 1.0)),
        lambda: _by_rate(lambda g, w, rate: w * (1 - 0.3 * rate**2) - rate * g),
    ),
    "corrected": (
        lambda: _decaying(control.DecayByRate(0.3, _rate, 0.02)),
        lambda: _by_rate(lambda g, w, rate: w * (1 - 0.3 * rate**2 / 0.02) - rate * g),
    ),
    "after-step": (
        lambda: _decaying(control.DecayByRate(0.3, _rate), after_step=True),
        lambda: _by_rate(lambda g, w, rate: (w - rate * g) * (1 - 0.3 * rate)),
    ),
    "LaProp": (
        lambda: control.LaProp(0.02, 0.8, 0.9, 1e-6, weight_decay=0.3),
        lambda: rules.laprop(0.02, 0.8, 0.9, 1e-6, 0.3),
    ),
    "StableAdamW": (
        lambda: control.StableAdamW(0.02, 0.8, 0.9, 1e-6, weight_decay=0.3),
        lambda: rules.stable_adam_w(0.02, 0.8, 0.9, 1e-6, 0.3),
    ),
    "MARS": (
        lambda: control.MARS(0.02, 0.8, 0.9, 0.1, eps=1e-6, weight_decay=0.3),
        lambda: rules.mars(0.02, 0.8, 0.9, 0.1, 1e-6, 0.3),
    ),
    "CAME": (
        lambda: control.CAME(0.02, 0.8, 0.9, 0.95, eps=1e-4, eps_confidence=1e-6),
        lambda: rules.came(0.02, 0.8, 0.9, 0.95, (1e-4, 1e-6)),
    ),
    "AdamC": (
        lambda: control.AdamC(_rate, 0.02, 0.8, 0.9, 1e-6, weight_decay=0.3),
        lambda: rules.adam_c(RATES, 0.02, 0.8, 0.9, 1e-6, 0.3),
    ),
}


def _floor_by_row(exponent: float) -> rules.Rule:
    def step(g: rules.Array, w: rules.Array) -> rules.Array:
        ratio = np.sqrt(np.sum(w * w, 1) / np.sum(g * g, 1))
        return w - 0.1 * g * np.maximum(1.0, 1.1 * ratio)[:, None] ** exponent

    return step


def _brake(g: rules.Array, w: rules.Array) -> rules.Array:
    c = np.sum(g * w) / np.sum(w * w)
    return w - 0.1 * (g - c * w + (0.3 if c < 0 else 0.8) * c * w)


def _graft(direction: Any) -> rules.Rule:
    def step(g: rules.Array, w: rules.Array) -> rules.Array:
        d = direction(g)
        return w - 0.1 * rules.norm(g) * d / rules.norm(d)

    return step


def _cautious(rescale: Any) -> Any:
    adam = control.CautiousUpdates(eqopt.ScaleByAdam(0.8, 0.9, 1e-6), rescale)
    return eqopt.Chain(adam, eqopt.Scale(-0.1))


def _masked(factor: Any) -> rules.Rule:
    direction = rules.adam(0.8, 0.9, 1e-6)

    def step(g: rules.Array, w: rules.Array) -> rules.Array:
        u = direction(g)
        agrees = u * g > 0
        return w - 0.1 * u * agrees * factor(np.sum(agrees), agrees.size)

    return step


def _decaying(decay: Any, **options: Any) -> Any:
    return eqopt.Chain(eqopt.ScaleByLearningRate(_rate), control.DecayWeights(decay, **options))


def _by_rate(rule: Any) -> rules.Rule:
    rates = list(RATES)
    return lambda g, w: rule(g, w, rates.pop(0))


@pytest.mark.parametrize("name", CASES)
def test_the_rule_is_its_numpy_form(name: str):
    make, by_numpy = CASES[name]
    opt = make()
    params = {"matrix": _numbers(4, 5), "stack": _numbers(3, 2, 6)}
    wanted = [params["matrix"], *params["stack"]]
    steps = [by_numpy() for _ in wanted]
    params = {x: jnp.asarray(y, FLOAT) for x, y in params.items()}
    state = opt.init(params)
    rng = np.random.default_rng(5)
    for i in range(NUM_STEPS):
        # Gradients grow and shrink, so that every limit and floor acts at some steps.
        size = 4.0 ** ((i % 5) - 2)
        grads = {x: size * rng.normal(size=y.shape) for x, y in params.items()}
        own = [grads["matrix"], *grads["stack"]]
        wanted = [step(g, w) for step, g, w in zip(steps, own, wanted, strict=True)]
        given = {x: jnp.asarray(y, FLOAT) for x, y in grads.items()}
        updates, state = opt.update(given, state, params)
        params = eqopt.apply_updates(params, updates)
    found = [params["matrix"], *params["stack"]]
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_allclose(np.asarray(x), y, rtol=0, atol=RTOL * np.max(np.abs(y)))
