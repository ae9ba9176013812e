"""Schedules at their edges: ends, empty parts, far counts, derivatives there, mistakes."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, Int

from eqopt._base.converters import float_dtype
from eqopt._schedule.base import (
    AbstractSchedule,
    Constant,
    cosine_interpolation,
    linear_interpolation,
)
from eqopt._schedule.cosine import CosineDecay
from eqopt._schedule.exponential import ExponentialDecay
from eqopt._schedule.join import Join
from eqopt._schedule.onecycle import CosineOneCycle, LinearOneCycle
from eqopt._schedule.piecewise import PiecewiseConstant, PiecewiseInterpolate
from eqopt._schedule.polynomial import Linear, Polynomial
from eqopt._schedule.warmup import SGDR, WarmupConstant, WarmupCosineDecay, WarmupExponentialDecay

LAST = 2**31 - 1
CYCLE: dict[str, Any] = {"peak_value": 1.0, "warmup_steps": 1, "decay_steps": 9}


def assert_close(actual: Any, expected: Any, tolerance: float | None = None) -> None:
    """Within a part of the largest value."""
    if tolerance is None:
        tolerance = 1e-12 if float_dtype() == np.float64 else 2e-6
    scale = np.max(np.abs(expected))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


class Pole(AbstractSchedule):
    """Infinite at 5, and not a number after it."""

    scale: Float[Array, ""]

    def at(self, count: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
        return self.scale / jnp.sqrt((5 - count).astype(self.scale.dtype))


class InverseRoot(AbstractSchedule):
    """Infinite at -1, and not a number before it."""

    scale: Float[Array, ""]

    def at(self, count: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
        return self.scale / jnp.sqrt((1 + count).astype(self.scale.dtype))


EDGES = [
    Polynomial(1.0, 0.0, 0.25, 10),
    Polynomial(1.0, 0.5, 2.0, 0),
    Linear(1.0, 0.5, 0),
    CosineDecay(1.0, 10, exponent=0.25),
    CosineDecay(0.0, 1, alpha=0.0),
    ExponentialDecay(1.0, 1, 10.0, end_value=3.0),
    ExponentialDecay(1.0, 1, 1e-6),
    ExponentialDecay(1.0, 1, 1.0, end_value=1.0),
    PiecewiseConstant(1.0, {3: 0.0, 6: 0.0}),
    PiecewiseInterpolate(cosine_interpolation, 0.0, {3: 0.0, 6: 2.0}),
    LinearOneCycle(1, 1.0),
    CosineOneCycle(1, 1.0, pct_start=1.0),
    WarmupConstant(peak_value=1.0, warmup_steps=0),
    WarmupCosineDecay(peak_value=0.0, warmup_steps=0, decay_steps=1, end_value=0.1),
    Join([Pole(jnp.asarray(1.0)), Pole(jnp.asarray(2.0)), 0.5], [5, 9]),
    Join([0.5, InverseRoot(jnp.asarray(1.0)), InverseRoot(jnp.asarray(2.0))], [5, 9]),
]


@pytest.mark.parametrize("schedule", EDGES, ids=repr)
def test_finite_at_the_edges(schedule: AbstractSchedule):
    reals, rest = eqx.partition(schedule, lambda x: np.issubdtype(x.dtype, np.floating))
    counts = jnp.asarray([*range(30), 10_000, 2**30, LAST])

    def values(reals: AbstractSchedule) -> Array:
        return eqx.combine(reals, rest)(counts)

    assert np.all(np.isfinite(jax.jit(values)(reals)))
    # In both modes: a product of 0 and infinity may hide in either one.
    for jacobian in (jax.jacrev, jax.jacfwd):
        for leaf in jax.tree.leaves(jax.jit(jacobian(values))(jax.tree.map(jnp.asarray, reals))):
            assert np.all(np.isfinite(leaf))


FAR = 2**30


@pytest.mark.parametrize(
    ("schedule", "count", "expected"),
    [
        (Linear(0.0, 1.0, 1000, transition_begin=FAR), FAR, 0.0),
        (Linear(0.0, 1.0, 1000, transition_begin=FAR), FAR + 1, 1e-3),
        (Polynomial(1.0, 0.0, 2.0, FAR), FAR - 1, 2.0**-60),
        (CosineDecay(1.0, FAR), FAR - 1, np.sin(np.pi / 2**31) ** 2),
        (
            ExponentialDecay(1.0, 2**20, 0.5 ** (1 / 32), staircase=True),
            FAR - 1,
            0.5 ** (1023 / 32),
        ),
        (ExponentialDecay(1.0, 2**20, 0.5 ** (1 / 32), staircase=True), FAR, 0.5**32),
        (ExponentialDecay(1.0, 1, 0.5, transition_begin=FAR), FAR + 1, 0.5),
        (PiecewiseConstant(1.0, {FAR: 0.5}), FAR - 1, 1.0),
        (PiecewiseConstant(1.0, {FAR: 0.5}), FAR, 0.5),
        (PiecewiseInterpolate("linear", 1.0, {FAR: 0.5, FAR + 4: 0.5}), FAR + 1, 0.4375),
        (WarmupConstant(peak_value=2.0, warmup_steps=2 * (FAR - 1)), FAR - 1, 1.0),
        (
            WarmupCosineDecay(peak_value=1.0, warmup_steps=FAR, decay_steps=FAR + 4),
            FAR + 2,
            0.5,
        ),
        (LinearOneCycle(LAST, 1.0, pct_final=1.0, div_factor=2.0), LAST, 0.5e-4),
        (CosineOneCycle(2**24 + 3, 1.0, pct_start=1.0), 2**24 + 2, 1.0),
        (CosineOneCycle(2**24 + 3, 1.0, pct_start=1.0, div_factor=2.0), 2**24 + 3, 0.5e-4),
        (Join([1.0, Linear(2.0, 3.0, 2)], [FAR]), FAR + 1, 2.5),
        (Join([1.0, Linear(2.0, 3.0, 2)], [FAR]), FAR - 1, 1.0),
        (SGDR([{**CYCLE, "decay_steps": FAR}, {**CYCLE, "decay_steps": 4}]), FAR + 1, 1.0),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, AbstractSchedule) else str(x),
)
def test_far_counts(schedule: AbstractSchedule, count: int, expected: float):
    # A rate that is raised to the power of 1024 has 1024 times its own rounding.
    loose = 1e-4 if isinstance(schedule, ExponentialDecay) else 1e-6
    np.testing.assert_allclose(schedule(count), expected, rtol=loose, atol=0)
    assert np.isfinite(schedule(LAST))


def test_no_cancellation_at_the_end():
    # `1 + cos(x)` would have an error of 2e-3 here in float32.
    expected = np.sin(np.pi / 2 * np.arange(1000, -1, -1) / 1000) ** 2
    np.testing.assert_allclose(CosineDecay(1.0, 1000)(np.arange(1001)), expected, rtol=1e-6)


def test_ends_are_exact():
    numbers = np.array([0.3, 0.7, 1e-8, 123.4], np.float32)
    for start in numbers:
        for end in numbers:
            for schedule in (Linear(start, end, 7), Polynomial(start, end, 2.0, 7)):
                assert schedule(np.array([0, 7, 8])).tolist() == [start, end, end]


@pytest.mark.parametrize("cls", [Linear, functools.partial(Polynomial, power=2.0)])
def test_no_transition_keeps_init_value(cls: Callable[..., AbstractSchedule]):
    schedule = cls(init_value=0.5, end_value=0.25, transition_steps=0)
    assert schedule(np.arange(5)).tolist() == [0.5] * 5


def test_no_warmup_starts_at_the_peak():
    assert WarmupConstant(peak_value=0.5, warmup_steps=0)(0) == 0.5
    assert WarmupCosineDecay(peak_value=0.5, warmup_steps=0, decay_steps=3)(0) == 0.5
    schedule = WarmupExponentialDecay(
        peak_value=0.5, warmup_steps=0, transition_steps=1, decay_rate=0.5
    )
    assert schedule(np.arange(3)).tolist() == [0.5, 0.25, 0.125]


def test_one_step_in_a_cycle():
    # The boundaries coincide, at 0: what comes last is in force.
    assert_close(LinearOneCycle(1, 1.0, div_factor=4.0)(np.arange(3)), [0.25, 0.25e-4, 0.25e-4])
    assert_close(CosineOneCycle(1, 1.0, div_factor=4.0)(np.arange(3)), [1.0, 0.25e-4, 0.25e-4])


def test_curves():
    by_name = PiecewiseInterpolate("cosine", 1.0, {8: 0.5})
    assert by_name.interpolate_type is cosine_interpolation
    assert PiecewiseInterpolate("linear", 1.0).interpolate_type is linear_interpolation
    own = PiecewiseInterpolate(jnp.square, 1.0, {8: 0.5})
    assert_close(own(np.arange(9)), 1 - 0.5 * (np.arange(9) / 8) ** 2)
    fractions = np.linspace(0, 1, 11)
    assert_close(cosine_interpolation(jnp.asarray(fractions)), (1 - np.cos(np.pi * fractions)) / 2)


def test_join_takes_numbers_and_functions():
    schedule = Join([0.5, lambda count: count, Constant(7)], np.array([3, 6]))
    assert schedule(np.arange(8)).tolist() == [0.5, 0.5, 0.5, 0, 1, 2, 7, 7]
    assert Join([0.5], [])(np.arange(2)).tolist() == [0.5, 0.5]


def test_sgdr_takes_schedules():
    kwargs = [{**CYCLE, "peak_value": peak} for peak in (1.0, 0.5, 0.25)]
    schedules = [WarmupCosineDecay(**cycle) for cycle in kwargs]
    assert eqx.tree_equal(SGDR(kwargs), SGDR([kwargs[0], *schedules[1:]]))


def test_built_inside_a_map():
    counts, values = jnp.arange(20), jnp.array([1, 4, 9])

    def curves(steps: Int[Array, ""]) -> list[Array]:
        rate = 1 / (steps + 1)
        cosine = WarmupCosineDecay(peak_value=rate, warmup_steps=steps, decay_steps=steps + 5)
        return [
            cosine(counts),
            Join([rate, cosine], [steps])(counts),
            SGDR([cosine, cosine])(counts),
            PiecewiseConstant(1.0, {4: rate})(counts),
            LinearOneCycle(steps, 1.0, pct_start=rate, pct_final=rate)(counts),
            ExponentialDecay(1.0, steps, rate, end_value=rate)(counts),
        ]

    mapped = jax.jit(jax.vmap(curves))(values)
    alone = jax.jit(curves)
    for i, value in enumerate(values):
        for ours, expected in zip(mapped, alone(value), strict=True):
            assert_close(ours[i], expected)
    constants = eqx.filter_vmap(Constant)(values / 8)
    assert eqx.filter_vmap(lambda schedule: schedule(0))(constants).tolist() == [1 / 8, 0.5, 9 / 8]


def test_fields_are_copies():
    value, boundaries = np.array(0.5), np.array([3])
    scales = {3: np.array(0.5)}
    schedules = [
        Constant(value),
        Join([value, 2.0], boundaries),
        PiecewiseConstant(value, scales),
    ]
    before = [schedule(np.arange(9)) for schedule in schedules]
    for array in (value, boundaries, scales[3]):
        array[...] = 9
    for schedule, values in zip(schedules, before, strict=True):
        np.testing.assert_array_equal(schedule(np.arange(9)), values)


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (Constant(3e-4), "Constant(value=0.0003)"),
        (
            Linear(0.1, 0.01, 100),
            "Linear(init_value=0.1, end_value=0.01, transition_steps=100, transition_begin=0)",
        ),
        (
            PiecewiseConstant(0.1, {200: 0.1, 100: 0.5}),
            "PiecewiseConstant(init_value=0.1, boundaries_and_scales={100: 0.5, 200: 0.1})",
        ),
        (
            WarmupConstant(peak_value=0.1, warmup_steps=10),
            "WarmupConstant(init_value=0.0, peak_value=0.1, warmup_steps=10)",
        ),
    ],
)
def test_repr(schedule: AbstractSchedule, text: str):
    assert repr(schedule) == text


def test_repr_when_mapped_or_traced():
    def traced(scale: Array) -> Array:
        schedule = PiecewiseConstant(1.0, {3: scale})
        assert "..." in repr(schedule)
        return schedule(0)

    jax.jit(traced)(0.5)
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), PiecewiseConstant(1.0, {3: 0.5}))
    assert "..." in repr(stacked)


def wrong(value: Any) -> Any:
    """What a type checker would not let through."""
    return value


MISTAKES: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: Constant(float("nan")), ValueError, "`value` must be finite"),
    (lambda: Constant(wrong([0.1, 0.2])), TypeError, "`value` must be a number"),
    (lambda: Linear(1.0, 0.0, -1), ValueError, "`transition_steps` must be from 0"),
    (lambda: Linear(1.0, 0.0, wrong(2.5)), ValueError, "`transition_steps` must be a whole number"),
    (lambda: Linear(1.0, 0.0, 5, -2), ValueError, "`transition_begin` must be from 0"),
    (lambda: Linear(1.0, 0.0, 2**31), ValueError, "`transition_steps` must be from 0"),
    (lambda: Polynomial(1.0, 0.0, 0.0, 5), ValueError, "`power` must be above 0"),
    (lambda: CosineDecay(1.0, 0), ValueError, "`decay_steps` must be from 1"),
    (lambda: CosineDecay(1.0, 5, exponent=-1.0), ValueError, "`exponent` must be above 0"),
    (lambda: CosineOneCycle(0, 1.0), ValueError, "`transition_steps` must be from 1"),
    (lambda: CosineOneCycle(9, 1.0, pct_start=1.5), ValueError, "`pct_start` must be at least 0"),
    (lambda: CosineOneCycle(9, 1.0, div_factor=0.0), ValueError, "`div_factor` must be above 0"),
    (lambda: LinearOneCycle(9, 1.0, pct_final=0.2), ValueError, "`pct_final` must be at least"),
    (
        lambda: LinearOneCycle(9, 1.0, final_div_factor=-1.0),
        ValueError,
        "`final_div_factor` must be above 0",
    ),
    (lambda: ExponentialDecay(1.0, 0, 0.5), ValueError, "`transition_steps` must be from 1"),
    (lambda: ExponentialDecay(1.0, 5, 0.0), ValueError, "`decay_rate` must be above 0"),
    (lambda: PiecewiseConstant(1.0, {-3: 0.5}), ValueError, "`boundaries_and_scales.*-3"),
    (lambda: PiecewiseConstant(1.0, {3: -0.5}), ValueError, r"`boundaries_and_scales\[3\]` must"),
    (lambda: PiecewiseConstant(1.0, wrong({2.5: 0.5})), ValueError, "whole number of steps"),
    (lambda: PiecewiseInterpolate("cubic", 1.0), ValueError, "`interpolate_type` must"),
    (
        lambda: PiecewiseInterpolate(eqx.nn.Lambda(jnp.square), 1.0),
        ValueError,
        "`interpolate_type` must",
    ),
    (lambda: Join([], []), ValueError, "`schedules` must"),
    (lambda: Join([1.0, 2.0], [3, 6]), ValueError, "`boundaries` must be one fewer than the 2"),
    (lambda: Join([1.0, 2.0], []), ValueError, "`boundaries` must be one fewer than the 2"),
    (lambda: Join([1.0, 2.0, 3.0], [6, 3]), ValueError, r"`boundaries` must increase; got \[6, 3"),
    (lambda: Join([1.0, 2.0, 3.0], [3, 3]), ValueError, "`boundaries` must increase"),
    (lambda: Join([1.0, 2.0], [-3]), ValueError, r"`boundaries\[0\]` must be from 0"),
    (lambda: Join([1.0, eqx.nn.Identity()], [3]), TypeError, r"`schedules\[1\]` must be a sched"),
    (lambda: WarmupConstant(peak_value=1.0, warmup_steps=-1), ValueError, "`warmup_steps` must"),
    (lambda: WarmupCosineDecay(**{**CYCLE, "warmup_steps": 9}), ValueError, "`decay_steps` counts"),
    (lambda: WarmupCosineDecay(**{**CYCLE, "end_value": None}), TypeError, "`end_value` must"),
    (lambda: SGDR([]), ValueError, "`cosine_kwargs` must"),
    (lambda: SGDR([CYCLE, wrong(3)]), TypeError, r"`cosine_kwargs\[1\]` must"),
    (lambda: SGDR([{**CYCLE, "decay_steps": 2**30}] * 2), ValueError, r"less than 2\*\*31 steps"),
]


@pytest.mark.parametrize(("mistake", "error", "message"), MISTAKES)
def test_mistakes_are_named(mistake: Callable[[], Any], error: type[Exception], message: str):
    with pytest.raises(error, match=message) as info:
        mistake()
    assert len(str(info.value).splitlines()) <= 10
