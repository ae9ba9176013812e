"""Other libraries' optimizers as ours: those that adapt, correct and bound a step as Adam's."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax

import eqopt
from eqopt import control
from eqopt.writing import AbstractTransformation, bias_correction, increment

Hyper = dict[str, Any]
Transformation = AbstractTransformation[Any]


def transformation(case: str, meta: dict[str, Any]) -> Transformation | None:
    """Our transformation for a case: its source's class, with that class's own arguments.

    `None` for classes that are not known here.
    """
    package, _, name = meta["source"].split(" ")
    make = _KNOWN.get((package, name))
    if make is None:
        return None
    hyper = {**_DEFAULTS[package, name], **meta["hyper"]}
    unknown = hyper.keys() - _DEFAULTS[package, name].keys()
    if unknown:
        raise ValueError(f"{case}: {name} has arguments that are not known here: {sorted(unknown)}")
    return make(hyper)


def _eps_before_correction(
    links: Callable[[float, float], Transformation],
    where: Callable[[Any], Any],
    b2: float,
    eps: float,
    eps_root: float,
) -> Transformation:
    """A transformation whose `eps` is added before the second moment is debiased.

    So is that under the root, in pytorch-optimizer. Debiasing divides both with the moment.
    """

    def weight(count: Any) -> Any:
        return bias_correction(jnp.asarray(b2, float), increment(count))

    # `where` leads to the link that has both numbers.
    return eqopt.Scheduled(
        eqopt.Scheduled(
            links(eps, eps_root),
            lambda x: where(x).eps,
            lambda count: eps / lax.sqrt(weight(count)),
        ),
        lambda x: where(x.inner).eps_root,
        lambda count: eps_root / weight(count),
    )


# What pytorch-optimizer adds under every root.
_ROOT = 1e-15


def _adam_c(hyper: Hyper) -> Transformation:
    (b1, b2), rate = hyper["betas"], hyper["lr"]

    def make(eps: float, eps_root: float) -> Transformation:
        return control.AdamC(
            learning_rate=rate,
            max_learning_rate=rate,
            b1=b1,
            b2=b2,
            eps=eps,
            eps_root=eps_root,
            weight_decay=hyper["weight_decay"],
        )

    return _eps_before_correction(make, lambda x: x, b2, hyper["eps"], _ROOT)


def _stable_adam_w(hyper: Hyper) -> Transformation:
    b1, b2 = hyper["betas"]
    return control.StableAdamW(
        hyper["lr"],
        b1=b1,
        b2=b2,
        eps=hyper["eps"],
        weight_decay=hyper["weight_decay"],
        block_ndim=None,
    )


def _laprop(hyper: Hyper) -> Transformation:
    (b1, b2), rate = hyper["betas"], hyper["lr"]

    def make(eps: float, eps_root: float) -> Transformation:
        return control.LaProp(rate, b1=b1, b2=b2, eps=eps, eps_root=eps_root)

    steps = _eps_before_correction(make, lambda x: x, b2, hyper["eps"], _ROOT)
    decay = control.DecayByRate(hyper["weight_decay"], rate)
    return eqopt.Chain(steps, control.DecayWeights(decay, after_step=True))


def _mars(hyper: Hyper) -> Transformation:
    (b1, b2), rate = hyper["betas"], hyper["lr"]
    vectors = None if hyper["optimize_1d"] else eqopt.ByNdim(2)
    reduce = control.ReduceVariance(hyper["gamma"], b1, mask=vectors, block_ndim=None)

    def make(eps: float, eps_root: float) -> Transformation:
        adam = eqopt.Chain(reduce, eqopt.ScaleByAdam(b1, b2, eps, eps_root))
        return _cautious(adam, hyper["cautious"], control.over_next_count)

    if hyper["mars_type"] == "lion":
        direction = eqopt.Chain(reduce, eqopt.ScaleByLion(b1, b1))
        direction = _cautious(direction, hyper["cautious"], control.over_next_count)
    else:

        def adam(x: Any) -> Any:
            return (x.inner if hyper["cautious"] else x).links[1]

        direction = _eps_before_correction(make, adam, b2, hyper["eps"], _ROOT)
    return eqopt.Chain(
        direction,
        eqopt.AddDecayedWeights(hyper["weight_decay"]),
        eqopt.ScaleByLearningRate(rate),
    )


def _cautious(inner: Transformation, cautious: bool, rescale: Any) -> Transformation:
    return control.CautiousUpdates(inner, rescale, block_ndim=None) if cautious else inner


def _came(hyper: Hyper) -> Transformation:
    b1, b2, b3 = hyper["betas"]
    return control.CAME(
        hyper["lr"],
        b1=b1,
        b2=b2,
        b3=b3,
        clipping_threshold=hyper["clip_threshold"],
        eps=hyper["eps1"],
        eps_confidence=hyper["eps2"],
        weight_decay=hyper["weight_decay"],
    )


def _adam_w(hyper: Hyper) -> Transformation:
    b1, b2 = hyper["betas"]
    adam = eqopt.ScaleByAdam(b1, b2, hyper["eps"])
    decay = (
        control.AddCautiousDecayedWeights
        if hyper["cautious_weight_decay"]
        else eqopt.AddDecayedWeights
    )
    return eqopt.Chain(
        _cautious(adam, hyper["caution"], control.over_count),
        decay(hyper["weight_decay"]),
        eqopt.ScaleByLearningRate(hyper["lr"]),
    )


def _hyperball_adam_w(hyper: Hyper) -> Transformation:
    _, b2 = hyper["betas"]
    matrices = eqopt.Chain(
        (
            control.AddCautiousDecayedWeights
            if hyper["cautious_weight_decay"]
            else eqopt.AddDecayedWeights
        )(hyper["weight_decay"]),
        control.Hyperball(hyper["lr"], block_ndim=None),
    )
    return eqopt.Chain(
        # It has no average of the gradients.
        eqopt.ScaleByRMS(b2, hyper["eps"], eps_in_sqrt=False, bias_correction=True),
        eqopt.Partition({eqopt.ByNdim(2): matrices, ...: eqopt.ScaleByLearningRate(hyper["lr"])}),
    )


_TORCH, _HEAVY = "pytorch-optimizer", "heavyball"
_KNOWN: dict[tuple[str, str], Callable[[Hyper], Transformation]] = {
    (_TORCH, "AdamC"): _adam_c,
    (_TORCH, "StableAdamW"): _stable_adam_w,
    (_TORCH, "LaProp"): _laprop,
    (_TORCH, "MARS"): _mars,
    (_TORCH, "CAME"): _came,
    (_HEAVY, "AdamW"): _adam_w,
    (_HEAVY, "HyperBallAdamW"): _hyperball_adam_w,
}
# The arguments that are known here, with the classes' own defaults.
_DEFAULTS: dict[tuple[str, str], Hyper] = {
    (_TORCH, "AdamC"): {"lr": 1e-3, "betas": (0.9, 0.999), "weight_decay": 0.0, "eps": 1e-8},
    # `kahan_sum` acts on half precision alone.
    (_TORCH, "StableAdamW"): {
        "lr": 1e-3,
        "betas": (0.9, 0.99),
        "weight_decay": 1e-2,
        "eps": 1e-8,
        "kahan_sum": True,
    },
    (_TORCH, "LaProp"): {"lr": 4e-4, "betas": (0.9, 0.999), "weight_decay": 0.0, "eps": 1e-15},
    (_TORCH, "MARS"): {
        "lr": 3e-3,
        "betas": (0.95, 0.99),
        "gamma": 0.025,
        "mars_type": "adamw",
        "optimize_1d": False,
        "weight_decay": 0.0,
        "cautious": False,
        "eps": 1e-8,
    },
    (_TORCH, "CAME"): {
        "lr": 2e-4,
        "betas": (0.9, 0.999, 0.9999),
        "weight_decay": 0.0,
        "clip_threshold": 1.0,
        "eps1": 1e-30,
        "eps2": 1e-16,
    },
    (_HEAVY, "AdamW"): {
        "lr": 0.0025,
        "betas": (0.9, 0.99),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "cautious_weight_decay": False,
        "caution": False,
    },
    (_HEAVY, "HyperBallAdamW"): {
        "lr": 0.0025,
        "betas": (0.9, 0.99),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "cautious_weight_decay": False,
        "caution": False,
    },
}
