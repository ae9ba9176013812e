"""Wrappers, and what needs a value, take the steps that optax's take, where optax's are right."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import eqopt
from eqopt import ByNdim
from tests.support.parity import (
    ADAM,
    between,
    DECAY,
    Hyper,
    power,
    RATE,
    Row,
    row,
    towards_one,
    trajectories,
)
from tests.support.trees import is_matrix

# It takes more than its annotations say.
OPTAX: Any = optax

POLYAK = {"f_min": between(-1, 0.05), "max_learning_rate": power(-2, 1), "eps": power(-3, 0)}
SCHEDULE_FREE = {"b1": between(0.5, 0.95), "learning_rate": power(-3, 0)}

# `is_matrix` of the trees that are drawn: optax takes no function here.
MATRICES = {
    "kernel": True,
    "layers": [{"weight": True, "bias": False}, {"weight": True, "bias": None}],
    "pair": (False, False),
    "complex": True,
}


def spoiled(count: Any) -> Any:
    """A factor that makes every fifth step one of NaNs."""
    return jnp.where(count % 5 == 3, jnp.nan, 1.0)


def every_third(step: Any) -> Any:
    """A condition."""
    return step % 3 == 1


def _labels(params: Any) -> Any:
    return jax.tree.map(lambda x: "matrix" if x else "rest", is_matrix(params))


def wrapping(
    cls: Any, wrap: Callable[..., Any], theirs: Callable[..., Any], *fields: str, real: bool = False
) -> Row:
    """A wrapper around Adam, and optax's around optax's."""

    def own(h: Hyper) -> Any:
        return wrap(eqopt.Adam(**h))

    def other(h: Hyper) -> Any:
        return theirs(optax.adam(**h))

    return Row(cls, "-".join(fields), own, other, {**RATE, **ADAM}, {"inner", *fields}, real)


def _synced(fast: Any, period: int, size: float, *, reset_state: bool) -> Any:
    """optax's lookahead, whose pair of parameters is kept in the state."""
    inner = OPTAX.lookahead(fast, period, size, reset_state)

    def init(params: Any) -> Any:
        pair = OPTAX.LookaheadParams.init_synced(params)
        return inner.init(pair), pair

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        changes, new = inner.update(updates, state[0], state[1])
        return changes.fast, (new, optax.apply_updates(state[1], changes))

    return optax.GradientTransformation(init, update)


def _ascent(chain: Any, normalize: Any, sgd: Any) -> Any:
    """The adversary of the paper."""
    return chain(normalize(), sgd(0.05))


ROWS = [
    row(eqopt.ApplyEvery, optax.apply_every, {}, k=3),
    Row(
        eqopt.ApplyIfFinite,
        "spoiled",
        lambda h: eqopt.Chain(
            eqopt.ScaleBySchedule(spoiled), eqopt.ApplyIfFinite(eqopt.Adam(**h), 2)
        ),
        lambda h: optax.chain(
            optax.scale_by_schedule(spoiled), optax.apply_if_finite(optax.adam(**h), 2)
        ),
        {**RATE, **ADAM},
        {"inner", "max_consecutive_errors"},
    ),
    *(
        wrapping(
            cls,
            functools.partial(cls, should_transform_fn=every_third),
            functools.partial(other, should_transform_fn=every_third),
            "should_transform_fn",
        )
        for cls, other in (
            (eqopt.ConditionallyMask, OPTAX.conditionally_mask),
            (eqopt.ConditionallyTransform, OPTAX.conditionally_transform),
        )
    ),
    # Of complex and real leaves, optax makes one complex vector.
    wrapping(eqopt.Flatten, eqopt.Flatten, optax.flatten, real=True),
    Row(
        eqopt.Freeze,
        "mask",
        lambda h: eqopt.Chain(eqopt.Adam(**h), eqopt.Freeze(ByNdim(2))),
        lambda h: optax.chain(optax.adam(**h), OPTAX.freeze(is_matrix)),
        {**RATE, **ADAM},
        {"mask"},
    ),
    wrapping(
        eqopt.SelectiveTransform,
        lambda x: eqopt.SelectiveTransform(x, freeze_mask=ByNdim(2)),
        lambda x: optax.selective_transform(x, freeze_mask=MATRICES),
        "freeze_mask",
    ),
    Row(
        eqopt.Partition,
        "labels",
        lambda h: eqopt.Partition({"matrix": eqopt.Adam(**h), "rest": eqopt.SGD(0.1)}, _labels),
        lambda h: optax.partition({"matrix": optax.adam(**h), "rest": optax.sgd(0.1)}, _labels),
        {**RATE, **ADAM},
        {"transforms", "param_labels"},
    ),
    Row(
        eqopt.NamedChain,
        "",
        lambda h: eqopt.NamedChain(("a", eqopt.ScaleByAdam(**h)), ("b", eqopt.Scale(-0.1))),
        lambda h: optax.named_chain(("a", optax.scale_by_adam(**h)), ("b", optax.scale(-0.1))),
        ADAM,
        {"links"},
    ),
    *(
        wrapping(
            eqopt.Lookahead,
            functools.partial(
                eqopt.Lookahead, sync_period=4, slow_step_size=0.3, reset_state=reset
            ),
            functools.partial(_synced, period=4, size=0.3, reset_state=reset),
            f"reset={reset}",
        )
        for reset in (False, True)
    ),
    *(
        wrapping(
            eqopt.MultiSteps,
            functools.partial(eqopt.MultiSteps, every_k_schedule=3, use_grad_mean=mean),
            functools.partial(
                OPTAX.MultiSteps,
                every_k_schedule=3,
                use_grad_mean=mean,
                accumulator_dtype=None,
            ),
            f"mean={mean}",
            # optax's accumulator is real.
            real=True,
        )
        for mean in (True, False)
    ),
    wrapping(
        eqopt.SAM,
        lambda x: eqopt.SAM(x, _ascent(eqopt.Chain, eqopt.Normalize, eqopt.SGD)),
        lambda x: optax.contrib.sam(x, _ascent(optax.chain, optax.contrib.normalize, optax.sgd)),
        "transparent",
    ),
    wrapping(
        eqopt.SplitRealAndImaginary,
        eqopt.SplitRealAndImaginary,
        optax.contrib.split_real_and_imaginary,
    ),
    row(eqopt.Normalize, optax.contrib.normalize, {}),
    row(
        eqopt.ReduceOnPlateau,
        optax.contrib.reduce_on_plateau,
        {},
        values=True,
        # Not drawn: optax looks at these numbers when it is built.
        factor=0.7,
        rtol=0.05,
        min_scale=0.01,
        patience=2,
        cooldown=1,
        accumulation_size=2,
    ),
    *(
        row(eqopt.ScaleByPolyak, optax.scale_by_polyak, POLYAK, values=True, variant=variant)
        for variant in ("sps", "sps+")
    ),
    # Without `scaling`, by which optax divides where it says that it multiplies.
    row(
        eqopt.PolyakSGD,
        optax.polyak_sgd,
        {**POLYAK, "max_learning_rate": power(-2, 0)},
        values=True,
        variant="sps+",
    ),
    Row(
        eqopt.ScheduleFree,
        "of-sgd",
        lambda h: eqopt.ScheduleFree(eqopt.SGD(h["learning_rate"]), **h),
        lambda h: optax.contrib.schedule_free(optax.sgd(h["learning_rate"]), **h),
        SCHEDULE_FREE,
        {"base_optimizer", "learning_rate", "b1"},
        # optax's state is real or complex, as the first of the leaves is.
        real=True,
    ),
    row(
        eqopt.ScheduleFreeSGD,
        optax.contrib.schedule_free_sgd,
        {**SCHEDULE_FREE, **DECAY},
        real=True,
    ),
    row(
        eqopt.ScheduleFreeAdamW,
        optax.contrib.schedule_free_adamw,
        {**SCHEDULE_FREE, **DECAY, "b2": towards_one(-3, -1), "eps": power(-6, -2)},
        real=True,
    ),
]


test_trajectories_equal_those_of_optax = trajectories(ROWS)
