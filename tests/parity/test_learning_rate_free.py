"""Optimizers that find their own rates, and dual averaging, equal optax's."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import eqopt
from tests.support.parity import (
    between,
    DECAY,
    Draw,
    falling,
    fields,
    Hyper,
    power,
    RATE,
    Row,
    row,
    towards_one,
    trajectories,
)
from tests.support.toolbox import FLOAT

BETAS = {"b1": towards_one(-2, -0.3), "b2": towards_one(-3, -1)}
EPS = {"eps": power(-8, -2)}
COCOB = {"alpha": power(0, 2), "eps": power(-8, -1)}
# No tiny steps: optax finds each as the difference of two points, and has not their digits.
MADGRAD = {
    "learning_rate": power(-1.5, 0),
    "momentum": between(0, 0.9),
    "eps": power(-8, -3),
}
DOWG = {"eps": power(-4, -1), "init_estim_sq_dist": power(-3, 0)}
DADAPT = {**RATE, **BETAS, **EPS, **DECAY, "estim_lr0": power(-4, -1)}
PRODIGY = {**DADAPT, "beta3": towards_one(-2, -0.5), "estim_lr_coef": between(0.5, 2)}
# Around the step sizes that the model asks for, so that either is the smaller one at times.
BOUNDED = {"learning_rate": power(-3, 0), "lower_bound": between(-2, 2)}


def paired(cls: Any, other: Any, draws: dict[str, Draw], scheduled: bool, **flags: Any) -> Row:
    """The row of a class with a pair of betas."""

    def build(make: Any, h: Hyper) -> Any:
        rest = {name: x for name, x in h.items() if name not in BETAS}
        if scheduled:
            rest["learning_rate"] = falling(rest["learning_rate"])
        return make(betas=(h["b1"], h["b2"]), **rest, **flags)

    return Row(
        cls,
        "-".join(["schedule"] * scheduled + list(flags)),
        functools.partial(build, cls),
        functools.partial(build, other),
        draws,
        {"betas", *draws, *flags} - BETAS.keys(),
        # Of complex gradients, optax takes complex products and squares, which measure nothing.
        real=True,
    )


def rooted(make: Any) -> Any:
    """optax takes the root of the count in float32; a rate that makes up for it."""

    def build(learning_rate: Any, eps: Any, **hyper: Any) -> optax.GradientTransformation:
        def rate(count: Any) -> Any:
            given = learning_rate(count) if callable(learning_rate) else learning_rate
            root = jnp.sqrt((count + 1).astype(FLOAT))
            return (given + eps) * root / jnp.sqrt(count + 1) - eps

        return make(learning_rate=rate, eps=eps, **hyper)

    return build


def layerwise(**hyper: Any) -> optax.GradientTransformation:
    """optax's rule has a factor of shape `(1,)` for each leaf: it makes an array of a scalar."""
    tx = optax.scale_by_distance_over_gradients(**hyper)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        with jax.numpy_rank_promotion("allow"):
            new, state = tx.update(updates, state, params)
        return jax.tree.map(lambda x, u: x.reshape(u.shape), new, updates), state

    return optax.GradientTransformation(tx.init, update)


ROWS = [
    row(eqopt.ScaleByCOCOB, optax.contrib.scale_by_cocob, COCOB, real=True),
    row(
        eqopt.COCOB,
        optax.contrib.cocob,
        {**RATE, **COCOB, **DECAY},
        scheduled="learning_rate",
        masks=("mask",),
        real=True,
    ),
    row(
        eqopt.ScaleByMADGRAD,
        rooted(optax.contrib.scale_by_madgrad),
        MADGRAD,
        scheduled="learning_rate",
        real=True,
    ),
    row(eqopt.MADGRAD, rooted(optax.contrib.madgrad), {**MADGRAD, **DECAY}, real=True),
    row(eqopt.DoG, optax.contrib.dog, EPS),
    row(
        eqopt.DoG,
        optax.contrib.dog,
        {**RATE, **EPS, **DECAY},
        scheduled="learning_rate",
        masks=("mask",),
        init_step=("learning_rate", 0.05),
    ),
    row(eqopt.DoWG, optax.contrib.dowg, EPS),
    row(
        eqopt.DoWG,
        optax.contrib.dowg,
        {**RATE, **DOWG, **DECAY},
        scheduled="learning_rate",
        masks=("mask",),
    ),
    row(
        eqopt.ScaleByDistanceOverGradients,
        layerwise,
        {**EPS, "reps_rel": power(-6, -1), "global_scale": between(-2, 2)},
        # In float32, optax's default, a long run in float64 has not the digits to compare.
        param_dtype=np.dtype(FLOAT),
        # Of complex numbers, optax sums complex squares.
        real=True,
    ),
    paired(eqopt.DAdaptAdamW, optax.contrib.dadapt_adamw, DADAPT, False),
    paired(eqopt.Prodigy, optax.contrib.prodigy, {**RATE, **BETAS}, False),
    paired(eqopt.Prodigy, optax.contrib.prodigy, PRODIGY, True, safeguard_warmup=True),
    # With weight decay optax goes beyond the model's least value; see below.
    row(
        eqopt.MoMo,
        optax.contrib.momo,
        {**BOUNDED, "beta": towards_one(-2, 0)},
        real=True,
        values=True,
        elsewhere=("weight_decay",),
    ),
    row(
        eqopt.MoMo,
        optax.contrib.momo,
        BOUNDED,
        scheduled="learning_rate",
        real=True,
        values=True,
        adapt_lower_bound=True,
    ),
    row(
        eqopt.MoMoAdam,
        optax.contrib.momo_adam,
        {**BOUNDED, **BETAS, **EPS},
        real=True,
        values=True,
        elsewhere=("weight_decay",),
    ),
    row(
        eqopt.MoMoAdam,
        optax.contrib.momo_adam,
        {**BOUNDED, **BETAS},
        scheduled="learning_rate",
        real=True,
        values=True,
        adapt_lower_bound=True,
    ),
]


test_trajectories_equal_those_of_optax = trajectories(ROWS)
test_every_field_is_varied = fields(ROWS)
