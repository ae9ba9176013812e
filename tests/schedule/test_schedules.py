"""Schedules: equal to optax's, elementwise, differentiable, and cheap to change."""

import contextlib
import dataclasses
import io
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from eqopt._base.converters import float_dtype
from eqopt._schedule.base import (
    AbstractSchedule,
    Constant,
)
from eqopt._schedule.cosine import CosineDecay
from eqopt._schedule.exponential import ExponentialDecay
from eqopt._schedule.join import Join
from eqopt._schedule.onecycle import CosineOneCycle, LinearOneCycle
from eqopt._schedule.piecewise import PiecewiseConstant, PiecewiseInterpolate
from eqopt._schedule.polynomial import Linear, Polynomial
from eqopt._schedule.warmup import SGDR, WarmupConstant, WarmupCosineDecay, WarmupExponentialDecay

COUNTS = np.arange(100)


class Draw:
    """Random hyper-parameters, all of them exact in float32."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)

    def real(self, low: float, high: float) -> float:
        return float(np.float32(self.rng.uniform(low, high)))

    def steps(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high))

    def pieces(self) -> dict[int, float]:
        boundaries = self.rng.choice(np.arange(1, 80), 4, replace=False)
        return {int(boundary): self.real(0.1, 1.5) for boundary in boundaries}

    def decay(self) -> dict[str, Any]:
        return {
            "transition_steps": self.steps(3, 40),
            "decay_rate": self.real(0.3, 1.2),
            "transition_begin": self.steps(0, 10),
        }

    def cycle(self) -> dict[str, Any]:
        return {
            "init_value": self.real(0, 0.1),
            "peak_value": self.real(0.5, 2),
            "warmup_steps": self.steps(0, 10),
            "decay_steps": self.steps(11, 40),
            "end_value": self.real(0, 0.4),
            "exponent": self.real(0.5, 3),
        }


def _polynomial(draw: Draw) -> dict[str, Any]:
    kwargs = {"init_value": draw.real(-1, 1), "end_value": draw.real(-1, 1)}
    return {
        **kwargs,
        "transition_steps": draw.steps(1, 70),
        "transition_begin": draw.steps(0, 20),
    }


def _onecycle(draw: Draw) -> dict[str, Any]:
    return {
        "transition_steps": draw.steps(20, 90),
        "peak_value": draw.real(0.1, 3),
        "pct_start": draw.real(0.1, 0.5),
        "div_factor": draw.real(2, 40),
        "final_div_factor": draw.real(2, 1e4),
    }


def _piecewise(draw: Draw) -> dict[str, Any]:
    return {"init_value": draw.real(0.1, 2), "boundaries_and_scales": draw.pieces()}


def _warmup(draw: Draw) -> dict[str, Any]:
    return {
        "init_value": draw.real(0, 0.5),
        "peak_value": draw.real(0.5, 2),
        "warmup_steps": draw.steps(1, 40),
    }


def _join(draw: Draw) -> dict[str, Any]:
    first, second = sorted(draw.rng.choice(np.arange(1, 80), 2, replace=False))
    kwargs = [_polynomial(draw), draw.cycle(), draw.cycle()]
    return {"kwargs": kwargs, "boundaries": [int(first), int(second)]}


def _ours_joined(kwargs: list[Any], boundaries: list[int]) -> Join:
    # Nested, so that the counts are subtracted twice.
    line, cycle, cycles = Linear(**kwargs[0]), WarmupCosineDecay(**kwargs[1]), SGDR(kwargs[1:])
    return Join([line, Join([cycle, cycles], [7])], boundaries[:1])


def _optax_joined(kwargs: list[Any], boundaries: list[int]) -> optax.Schedule:
    parts = [
        optax.linear_schedule(**kwargs[0]),
        optax.warmup_cosine_decay_schedule(**kwargs[1]),
        optax.sgdr_schedule(kwargs[1:]),
    ]
    return optax.join_schedules(parts, [boundaries[0], boundaries[0] + 7])


# Ours, optax's, and how to draw what both are called with.
CASES: dict[str, tuple[Callable[..., AbstractSchedule], Callable[..., Any], Any]] = {
    "Constant": (
        lambda value: Constant(value),
        optax.constant_schedule,
        lambda draw: {"value": draw.real(-1, 1)},
    ),
    "CosineDecay": (
        CosineDecay,
        optax.cosine_decay_schedule,
        lambda draw: {
            "init_value": draw.real(0.1, 2),
            "decay_steps": draw.steps(1, 80),
            "alpha": draw.real(0, 0.5),
            "exponent": draw.real(0.5, 3),
        },
    ),
    "CosineOneCycle": (CosineOneCycle, optax.cosine_onecycle_schedule, _onecycle),
    "ExponentialDecay": (
        ExponentialDecay,
        optax.exponential_decay,
        lambda draw: {"init_value": draw.real(0.1, 2), **draw.decay()},
    ),
    "ExponentialDecay_staircase_bounded": (
        ExponentialDecay,
        optax.exponential_decay,
        lambda draw: {
            "init_value": draw.real(0.5, 2),
            **draw.decay(),
            "staircase": True,
            "end_value": draw.real(0.3, 2.5),
        },
    ),
    "Join": (_ours_joined, _optax_joined, _join),
    "Linear": (Linear, optax.linear_schedule, _polynomial),
    "LinearOneCycle": (
        LinearOneCycle,
        optax.linear_onecycle_schedule,
        lambda draw: {**_onecycle(draw), "pct_final": draw.real(0.6, 0.9)},
    ),
    "PiecewiseConstant": (PiecewiseConstant, optax.piecewise_constant_schedule, _piecewise),
    "PiecewiseInterpolate_linear": (
        PiecewiseInterpolate,
        optax.piecewise_interpolate_schedule,
        lambda draw: {"interpolate_type": "linear", **_piecewise(draw)},
    ),
    "PiecewiseInterpolate_cosine": (
        PiecewiseInterpolate,
        optax.piecewise_interpolate_schedule,
        lambda draw: {"interpolate_type": "cosine", **_piecewise(draw)},
    ),
    "Polynomial": (
        Polynomial,
        optax.polynomial_schedule,
        lambda draw: {**_polynomial(draw), "power": draw.real(0.5, 3)},
    ),
    "SGDR": (
        SGDR,
        optax.sgdr_schedule,
        lambda draw: {"cosine_kwargs": [draw.cycle() for _ in range(3)]},
    ),
    "WarmupConstant": (WarmupConstant, optax.warmup_constant_schedule, _warmup),
    "WarmupCosineDecay": (
        WarmupCosineDecay,
        optax.warmup_cosine_decay_schedule,
        lambda draw: draw.cycle(),
    ),
    "WarmupExponentialDecay": (
        WarmupExponentialDecay,
        optax.warmup_exponential_decay_schedule,
        lambda draw: {**_warmup(draw), **draw.decay(), "end_value": draw.real(0.3, 2.5)},
    ),
}

each_case = pytest.mark.parametrize("name", CASES)


def build(name: str, seed: int) -> AbstractSchedule:
    ours, _, kwargs = CASES[name]
    return ours(**kwargs(Draw(seed)))


@contextlib.contextmanager
def in_64_bits() -> Iterator[None]:
    before = jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def in_float64(schedule: optax.Schedule) -> np.ndarray:
    """What optax's schedule gives at `COUNTS`, in float64 whatever the tests run in."""
    with (
        in_64_bits(),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        counts = jnp.asarray(COUNTS)
        return np.asarray(jax.vmap(lambda count: jnp.asarray(schedule(count), float))(counts))


def assert_close(actual: Any, expected: Any, tolerance: float | None = None) -> None:
    """Within a part of the largest value."""
    if tolerance is None:
        tolerance = 1e-12 if float_dtype() == np.float64 else 2e-6
    scale = np.max(np.abs(expected))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


@each_case
@pytest.mark.parametrize("seed", range(4))
def test_equals_optax(name: str, seed: int):
    ours, theirs, kwargs = CASES[name]
    expected = in_float64(theirs(**kwargs(Draw(seed))))
    assert_close(ours(**kwargs(Draw(seed)))(COUNTS), expected)


@each_case
def test_is_elementwise(name: str):
    schedule = build(name, 0)
    values = schedule(COUNTS)
    one_by_one = jnp.stack([schedule(int(count)) for count in COUNTS[::7]])
    # The vectorized sine may differ in its last bit.
    assert_close(values[::7], one_by_one, 4 * float(np.finfo(float_dtype()).eps))
    matrix = schedule(jnp.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(matrix, values[:6].reshape(2, 3))
    for shape in [(), (0,), (7,), (4, 1, 5)]:
        result = jax.eval_shape(schedule, jnp.zeros(shape, jnp.int32))
        assert result.shape == shape
        assert result.dtype == float_dtype() and not result.weak_type


@each_case
def test_other_numbers_do_not_retrace(name: str):
    traces = 0

    @eqx.filter_jit
    def value(schedule: AbstractSchedule, count: Array) -> Array:
        nonlocal traces
        traces += 1
        return schedule(count)

    for seed in range(3):
        schedule = build(name, seed)
        for count in (0, 5, 90):
            assert_close(value(schedule, jnp.asarray(count)), schedule(count))
    assert traces == 1


@each_case
def test_schedules_are_mapped(name: str):
    schedules = [build(name, seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *schedules)
    mapped = eqx.filter_vmap(lambda schedule: schedule(COUNTS))(stacked)
    for values, schedule in zip(mapped, schedules, strict=True):
        assert_close(values, schedule(COUNTS))


@each_case
def test_derivatives(name: str):
    # For every real number in it, at every count, against central differences in float64.
    with in_64_bits():
        schedule = build(name, 3)
        reals, rest = eqx.partition(schedule, lambda x: np.issubdtype(x.dtype, np.floating))
        flat, unravel = ravel_pytree(reals)

        def values(numbers: Float[Array, " n"]) -> Float[Array, " m"]:
            return eqx.combine(unravel(numbers), rest)(jnp.asarray(COUNTS))

        values = jax.jit(values)
        jacobian = jax.jit(jax.jacobian(values))(flat)
        step = 1e-6
        columns = [
            (values(flat.at[i].add(step)) - values(flat.at[i].add(-step))) / (2 * step)
            for i in range(flat.size)
        ]
        np.testing.assert_allclose(jacobian, np.stack(columns, axis=1), rtol=1e-6, atol=1e-7)


@each_case
def test_saved_and_loaded(name: str):
    schedule, other = build(name, 0), build(name, 1)
    # As an optimizer hands them back after a step.
    compiled = eqx.filter_jit(lambda x: x)(schedule)
    for source in (schedule, compiled):
        file = io.BytesIO()
        eqx.tree_serialise_leaves(file, source)
        file.seek(0)
        loaded = eqx.tree_deserialise_leaves(file, other)
        np.testing.assert_array_equal(loaded(COUNTS), schedule(COUNTS))
    assert not np.array_equal(other(COUNTS), schedule(COUNTS))


@each_case
def test_stored_fields_build_the_same(name: str):
    schedule = build(name, 0)
    assert eqx.tree_equal(dataclasses.replace(schedule), schedule)


@each_case
def test_no_field_is_a_backend_array(name: str):
    # NumPy until it enters a compiled program, in its final dtype.
    for leaf in jax.tree.leaves(build(name, 0)):
        assert isinstance(leaf, np.ndarray | np.generic)
        assert leaf.dtype in (float_dtype(), np.int32)


@pytest.mark.parametrize("count", [1.0, np.float32(3), np.array([0.5])])
@each_case
def test_counts_are_integers(name: str, count: Any):
    with pytest.raises(TypeError, match="integer counts"):
        build(name, 0)(count)
