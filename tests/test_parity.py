"""Trajectories equal optax's: every class, random trees, random hyper-parameters, 50 steps."""

import dataclasses
import functools
import inspect
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import eqopt
from eqopt import AbstractOptimizer, AbstractTransformation, ByNdim, Context
from tests.table import OTHER_ORACLES
from tests.toolbox import FLOAT, X64
from tests.trees import assert_near, conj, is_matrix, random_array, random_like, random_tree

Hyper: TypeAlias = dict[str, Any]
Draw: TypeAlias = Callable[[np.random.Generator], float]

NUM_STEPS = 50
NUM_DRAWS = 5
TOLERANCE = 1e-12 if X64 else 5e-6


# Hyper-parameters: how each is drawn, by name.


def between(low: float, high: float) -> Draw:
    return lambda rng: rng.uniform(low, high)


def power(low: float, high: float) -> Draw:
    """As often between 1e-3 and 1e-2 as between 1e-2 and 1e-1."""
    return lambda rng: 10 ** rng.uniform(low, high)


def towards_one(low: float, high: float) -> Draw:
    """A decay: as often between 0.9 and 0.99 as between 0.99 and 0.999."""
    return lambda rng: 1 - 10 ** rng.uniform(low, high)


RATE = {"learning_rate": power(-3, 0)}
AVERAGE = {"decay": towards_one(-2, 0)}
ADAM = {
    "b1": towards_one(-2, 0),
    "b2": towards_one(-3, -1),
    "eps": power(-8, -2),
    "eps_root": power(-8, -2),
}
LION = {"b1": towards_one(-2, 0), "b2": towards_one(-3, -1)}
DECAY = {"weight_decay": power(-4, -1)}
# The initial scale keeps the debiased variance off zero: after one step it would be the rounding
# error of a difference of two equal numbers.
RMS = {**AVERAGE, "eps": power(-8, -2), "initial_scale": between(0.1, 1)}
# The variance of the last two or three gradients is now and then next to nothing, a difference of
# equal numbers too: float32 has no digits there.
STDDEV = {**RMS, "decay": towards_one(-2, -1)}
MOMENTUM = {"momentum": between(0, 1)}

HALF = jnp.dtype(jnp.bfloat16)


def falling(rate: Any) -> Callable[[Any], Any]:
    """A schedule, as a function of the count."""
    return lambda count: rate / (1 + jnp.asarray(count, rate.dtype) / 8)


@dataclasses.dataclass(frozen=True)
class Row:
    """One class with one choice of its flags, and the same of optax.

    **Arguments:**

    - `cls`: the class.
    - `flags`: which choice.
    - `ours`, `theirs`: build the two from hyper-parameters.
    - `draws`: how the hyper-parameters are drawn, by name.
    - `fields`: the fields of the class that are not left at their defaults.
    - `real`: leaves out the complex parameters, with the reason at the row.
    """

    cls: type[AbstractTransformation[Any]]
    flags: str
    ours: Callable[[Hyper], AbstractTransformation[Any]]
    theirs: Callable[[Hyper], optax.GradientTransformation]
    draws: dict[str, Draw]
    fields: set[str]
    real: bool = False

    @property
    def name(self) -> str:
        return "-".join(x for x in (self.cls.__name__, self.flags) if x)


def row(
    cls: Any,
    other: Any,
    draws: dict[str, Draw],
    *,
    scheduled: str | None = None,
    masked: bool = False,
    real: bool = False,
    **flags: Any,
) -> Row:
    """A class and a function of optax that take the same arguments."""

    def build(make: Any, mask: Any, h: Hyper) -> Any:
        h = {name: falling(x) if name == scheduled else x for name, x in h.items()}
        return make(**h, **flags, **({"mask": mask} if masked else {}))

    words = [x for x in ("momentum",) if x in draws]
    words += ["schedule"] * bool(scheduled) + ["mask"] * masked
    return Row(
        cls,
        "-".join([*words, *(f"{name}={x}" for name, x in flags.items())]),
        functools.partial(build, cls, ByNdim(2)),
        functools.partial(build, other, is_matrix),
        draws,
        {*draws, *flags, *(["mask"] if masked else [])},
        # To an average in a real dtype, optax casts a complex one.
        real or HALF in flags.values(),
    )


def _half(updates: Any, params: Any) -> Any:
    return jax.tree.map(lambda u, p: u / 2 + p, updates, params)


def _not_matrix(params: Any) -> Any:
    return jax.tree.map(operator.not_, is_matrix(params))


_BOOLS = (False, True)

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
    *(row(eqopt.Trace, optax.trace, AVERAGE, nesterov=x) for x in _BOOLS),
    row(eqopt.Trace, optax.trace, AVERAGE, accumulator_dtype=HALF),
    *(row(eqopt.EMA, optax.ema, AVERAGE, debias=x) for x in _BOOLS),
    row(eqopt.EMA, optax.ema, AVERAGE, accumulator_dtype=HALF),
    *(row(eqopt.ScaleByAdam, optax.scale_by_adam, ADAM, nesterov=x) for x in _BOOLS),
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
        for x in _BOOLS
        for y in _BOOLS
    ),
    row(eqopt.AddDecayedWeights, optax.add_decayed_weights, DECAY),
    row(eqopt.AddDecayedWeights, optax.add_decayed_weights, DECAY, masked=True),
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
        masked=True,
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
    row(eqopt.NAdamW, optax.nadamw, {**RATE, **ADAM, **DECAY}, masked=True),
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
        masked=True,
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

# Trajectories: all steps in one compiled program, to which the hyper-parameters are data.


def trajectory(tx: Any, apply: Any, params: Any, gradients: Any) -> tuple[Any, Any]:
    """The updates, and the parameters after them, of each step."""

    def step(carry: Any, gradient: Any) -> tuple[Any, Any]:
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        params = apply(params, updates)
        return (params, state), (updates, params)

    return lax.scan(step, (params, tx.init(params)), gradients)[1]


def problem(row: Row, draw: int) -> tuple[Hyper, Any, Any]:
    """Hyper-parameters, parameters and gradients: of the same shapes in each draw."""
    shapes, rng = np.random.default_rng(len(row.name)), np.random.default_rng(draw)
    tree = random_tree(shapes, FLOAT)
    if not row.real:
        dtype = np.result_type(FLOAT, np.complex64)
        tree["complex"] = random_array(shapes, (3, 2), dtype)
    hyper = {name: np.asarray(sample(rng), FLOAT) for name, sample in row.draws.items()}
    return hyper, random_like(rng, tree), random_like(rng, tree, leading=(NUM_STEPS,))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_trajectories_equal_those_of_optax(row: Row):
    @jax.jit
    def ours(h: Hyper, params: Any, gradients: Any) -> Any:
        return trajectory(row.ours(h), eqopt.apply_updates, params, gradients)

    @jax.jit
    def theirs(h: Hyper, params: Any, gradients: Any) -> Any:
        return trajectory(row.theirs(h), optax.apply_updates, params, conj(gradients))

    for draw in range(NUM_DRAWS):
        h, params, gradients = problem(row, draw)
        left = ours(h, params, gradients)
        with jax.numpy_dtype_promotion("standard"):
            right = theirs(h, params, gradients)
        assert_near(left[1], right[1], TOLERANCE)
        # In float32 only the parameters: in the first steps optax's own updates are off by 1e-5,
        # for its `1 - decay**count` cancels.
        if X64:
            assert_near(left[0], right[0], TOLERANCE)


def test_the_table_is_complete():
    public = {
        x
        for x in vars(eqopt).values()
        if isinstance(x, type)
        and issubclass(x, AbstractTransformation)
        and not inspect.isabstract(x)
    }
    assert {x.__name__ for x in public} == {row.cls.__name__ for row in ROWS} | OTHER_ORACLES.keys()
    assert all((Path(__file__).parent / f"{name}.py").exists() for name in OTHER_ORACLES.values())


# About extra arguments, of which there are none here.
_NOT_VARIED = {"mask_compatible_extra_args"}


@pytest.mark.parametrize("cls", dict.fromkeys(row.cls for row in ROWS), ids=lambda x: x.__name__)
def test_every_field_is_varied(cls: type[AbstractTransformation[Any]]):
    varied = {name for row in ROWS if row.cls is cls for name in row.fields}
    assert {f.name for f in dataclasses.fields(cls)} - _NOT_VARIED == varied


# An optimizer runs its links in one compiled program, fused. Each for itself does the same.


@eqx.filter_jit
def _alone(link: AbstractTransformation[Any], updates: Any, state: Any, params: Any) -> Any:
    return link.transform(updates, state, params, Context())


@pytest.mark.parametrize(
    "row", [x for x in ROWS if issubclass(x.cls, AbstractOptimizer)], ids=lambda row: row.name
)
def test_an_optimizer_is_its_links_one_by_one(row: Row):
    h, params, gradients = problem(row, 0)
    opt = row.ours(h)
    assert isinstance(opt, AbstractOptimizer)
    chain = opt.compose()
    assert isinstance(chain, eqopt.Chain)
    state = opt.init(params)
    states = list(state.states)
    for t in range(5):
        gradient = jax.tree.map(lambda x, t=t: jnp.asarray(x[t]), gradients)
        updates, state = opt.update(gradient, state, params)
        alone = conj(gradient)
        for i, link in enumerate(chain.links):
            alone, states[i] = _alone(link, alone, states[i], params)
        assert_near(state.states, tuple(states), 0)
        # To the last bit; but of complex numbers the compiler sums real and imaginary parts in
        # whichever order it likes, and with Nesterov's momentum there are sums.
        complex_updates, complex_alone = updates.pop("complex", []), alone.pop("complex", [])
        assert_near(updates, alone, 0)
        assert_near(complex_updates, complex_alone, 2 * float(jnp.finfo(FLOAT).eps))
