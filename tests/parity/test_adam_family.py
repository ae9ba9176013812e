"""Adam's kin equal optax's, and where optax is wrong or silent, the papers' formulas."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqopt
from tests.support.parity import (
    ADAM,
    between,
    DECAY,
    fields,
    HALF,
    power,
    RATE,
    row,
    towards_one,
    trajectories,
    trajectory,
)
from tests.support.toolbox import FLOAT, X64

MOMENTS = {name: ADAM[name] for name in ("b1", "b2", "eps")}
# With the decay of the average change at a half, it is one minus itself, which optax takes for it.
ADAN = {"b1": ADAM["b1"], "b3": ADAM["b2"], "eps": ADAM["eps"], "eps_root": ADAM["eps_root"]}
RADAM = {
    **ADAM,
    # In float32, optax's own length of the average has too few digits near 1.
    "b2": ADAM["b2"] if X64 else towards_one(-1.3, -1),
    "threshold": between(4.2, 8),
}
NOVOGRAD = {**ADAM, "b2": between(0, 0.99), **DECAY}
SLOW = {"alpha": between(0, 8)}
ADEMAMIX = {**ADAM, "b3": towards_one(-4, -2), **SLOW}
# Near 1 of this decay, optax's corrections are off by 1e-5 in float32; and the steps are long.
SIMPLIFIED = {**RATE, **ADAM, **SLOW, **DECAY, "b2": towards_one(-1.5, -1)}
OPTIMISTIC = {"alpha": between(0, 2), "beta": between(0, 2)}


def rising(count: Any) -> Any:
    """A limit that is reached at first, and not at last, for `clip_value_fn`."""
    return 0.3 + jnp.asarray(count, FLOAT) / 20


# A link that has no row of its own is compared within its optimizer, which passes on all of its
# fields.
ROWS = [
    row(eqopt.AMSGrad, optax.amsgrad, {**RATE, **ADAM}, scheduled="learning_rate"),
    row(
        eqopt.AMSGrad,
        optax.amsgrad,
        {**RATE, **ADAM},
        mu_dtype=HALF,
        bias_correction_mu=False,
        bias_correction_nu=False,
    ),
    row(eqopt.Adamax, optax.adamax, {**RATE, **MOMENTS}, scheduled="learning_rate"),
    row(eqopt.AdamaxW, optax.adamaxw, {**RATE, **MOMENTS, **DECAY}, masks=("mask",)),
    row(eqopt.Adan, optax.adan, {**RATE, **ADAN, **DECAY}, masks=("mask",), b2=0.5),
    row(eqopt.RAdam, optax.radam, {**RATE, **RADAM}, scheduled="learning_rate"),
    row(eqopt.RAdam, optax.radam, {**RATE, **RADAM}, nesterov=True),
    row(
        eqopt.ScaleByYogi,
        optax.scale_by_yogi,
        {**ADAM, "initial_accumulator_value": power(-6, -1)},
    ),
    row(eqopt.Yogi, optax.yogi, {**RATE, **MOMENTS}),
    row(eqopt.NovoGrad, optax.novograd, {**RATE, **NOVOGRAD}),
    # With `mu_dtype`, the dtypes of optax's state change at the first step.
    row(
        eqopt.AdEMAMix,
        optax.contrib.ademamix,
        {**RATE, **ADEMAMIX, **DECAY},
        scheduled="alpha",
        masks=("mask",),
        elsewhere=("mu_dtype",),
    ),
    row(eqopt.AdEMAMix, optax.contrib.ademamix, {**RATE, **ADEMAMIX}, scheduled="b3"),
    # Of complex gradients, optax averages the complex square, which is no measure of their size.
    row(
        eqopt.SimplifiedAdEMAMix,
        optax.contrib.simplified_ademamix,
        SIMPLIFIED,
        scheduled="alpha",
        masks=("mask",),
        real=True,
    ),
    # Complex numbers have no order, and optax does not clip them.
    row(eqopt.ADOPT, optax.contrib.adopt, {**RATE, **MOMENTS}, real=True),
    row(
        eqopt.ADOPT,
        optax.contrib.adopt,
        {**RATE, **MOMENTS},
        mu_dtype=HALF,
        nesterov=True,
        clip_value_fn=rising,
    ),
    row(eqopt.ADOPT, optax.contrib.adopt, {**RATE, **MOMENTS}, use_clipping=False),
    row(eqopt.ACProp, optax.contrib.acprop, {**RATE, **ADAM, **DECAY}, masks=("mask",)),
    row(eqopt.OptimisticAdamV2, optax.optimistic_adam_v2, {**RATE, **ADAM, **OPTIMISTIC}),
    row(
        eqopt.OptimisticAdamV2,
        optax.optimistic_adam_v2,
        {**RATE, **ADAM, **OPTIMISTIC},
        mu_dtype=HALF,
        nesterov=False,
    ),
]


test_trajectories_equal_those_of_optax = trajectories(ROWS)
test_every_field_is_varied = fields(ROWS)


# The papers' own formulas, in NumPy and float64.

_PAPER = 1e-12 if X64 else 2e-5


def _numbers(*shape: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(len(shape))
    return rng.standard_normal(shape).astype(FLOAT), rng.standard_normal((20, *shape)).astype(FLOAT)


def _run(opt: Any, params: Any, gradients: Any) -> tuple[Any, Any]:
    """The updates and the parameters of each step."""

    @eqx.filter_jit
    def steps(opt: Any) -> Any:
        return trajectory(opt, eqopt.apply_updates, params, gradients)

    return steps(opt)


def test_adan_is_that_of_the_paper():
    """In the paper's own letters: `b_i` is one minus ours. The averages are debiased, as in the
    authors' code. In optax, the factor `1 - b2` of the changes is `b2`."""
    x, gradients = _numbers(3, 2)
    _, found = _run(eqopt.Adan(0.1, 0.9, 0.7, 0.95, 1e-4, 0.0), x, gradients)
    b1, b2, b3 = 0.1, 0.3, 0.05
    x, m, v, n = x.astype(np.float64), np.zeros((3, 2)), np.zeros((3, 2)), np.zeros((3, 2))
    last = gradients[0].astype(np.float64)
    for k, (g, ours) in enumerate(zip(gradients.astype(np.float64), found, strict=True), 1):
        m = (1 - b1) * m + b1 * g
        v = (1 - b2) * v + b2 * (g - last)
        n = (1 - b3) * n + b3 * (g + (1 - b2) * (g - last)) ** 2
        rate = 0.1 / (np.sqrt(n / (1 - (1 - b3) ** k)) + 1e-4)
        x = x - rate * (m / (1 - (1 - b1) ** k) + (1 - b2) * v / (1 - (1 - b2) ** k))
        np.testing.assert_allclose(ours, x, rtol=_PAPER, atol=_PAPER)
        last = g


@pytest.mark.parametrize("b2", [0.5, 0.9, 0.99, 0.9999])
def test_radam_knows_how_many_squares_there_are(b2: float):
    """The factor of a step, from the definition: sums over the squares, in which nothing cancels.

    Of gradients that are all 1, the averages are 1, and that factor is all that is left.
    """
    num_steps, ones = 200, jnp.ones((200, 1), FLOAT)
    opt = eqopt.ScaleByRAdam(0.8, b2, 0.0, 0.0, 4.5)
    found, _ = _run(opt, jnp.zeros(1, FLOAT), ones)
    decay = float(FLOAT(b2))
    limit = (1 + decay) / (1 - decay)
    ages = np.arange(num_steps)
    weights = decay**ages
    length = 1 + 2 * np.cumsum(ages * weights) / np.cumsum(weights)
    square = (length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length)
    expected = np.where(length >= 4.5, np.sqrt(np.where(length >= 4.5, square, 1)), 1)
    # Where rectified steps begin, the factor is near 0.3, and its error is that of the length.
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-12 if X64 else 1e-5)


def test_radam_takes_no_root_of_what_is_negative():
    found, _ = _run(eqopt.ScaleByRAdam(threshold=1.0), *_numbers(3))
    assert np.all(np.isfinite(found))
    same, _ = _run(eqopt.ScaleByRAdam(threshold=4.0), *_numbers(3))
    np.testing.assert_array_equal(found, same)


def test_rectified_steps_have_derivatives():
    """Of eight steps, the last ones are rectified."""
    params, gradients = _numbers(2)
    numbers, rest = eqx.partition(eqopt.ScaleByRAdam(0.8, 0.95, 1e-3), eqx.is_inexact_array)

    @jax.jit
    @jax.value_and_grad
    def total(x: Any) -> Any:
        opt = eqx.combine(x[0], rest)
        return jnp.sum(trajectory(opt, eqopt.apply_updates, params, x[1])[0][-1])

    _, slope = total((numbers, jnp.zeros((8, 2), FLOAT)))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(slope))
    x = (numbers, jnp.asarray(gradients[:8]))
    _, slope = total(x)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(slope))
    assert float(slope[0].b2) != 0
    if X64:
        above, below = (
            total(jax.tree.map(lambda a, h=h: a * (1 + h), x))[0] for h in (1e-6, -1e-6)
        )
        along = sum(jnp.sum(a * b) for a, b in zip(*map(jax.tree.leaves, (slope, x)), strict=True))
        np.testing.assert_allclose((above - below) / 2e-6, along, rtol=1e-6)


def test_amsgrad_without_corrections_is_that_of_the_paper():
    x, gradients = _numbers(3, 2)
    opt = eqopt.AMSGrad(0.1, 0.8, 0.9, 1e-6, 0.0, None, False, False)
    _, found = _run(opt, x, gradients)
    x, m, v, most = x.astype(np.float64), np.zeros((3, 2)), np.zeros((3, 2)), np.zeros((3, 2))
    for g, ours in zip(gradients.astype(np.float64), found, strict=True):
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
        most = np.maximum(most, v)
        x = x - 0.1 * m / (np.sqrt(most) + 1e-6)
        np.testing.assert_allclose(ours, x, rtol=_PAPER, atol=_PAPER)


def test_simplified_ademamix_measures_complex_gradients_by_their_moduli():
    rng, dtype = np.random.default_rng(0), np.result_type(FLOAT, np.complex64)
    g = (rng.standard_normal(4) + 1j * rng.standard_normal(4)).astype(dtype)
    opt = eqopt.ScaleBySimplifiedAdEMAMix(alpha=2.0, eps=0.0)
    updates, _ = opt.update(g, opt.init(g), g)
    np.testing.assert_allclose(updates, 3 * np.conj(g) / np.abs(g), rtol=1e-12 if X64 else 1e-5)


def test_adopt_limits_the_parts_of_complex_gradients():
    dtype = np.result_type(FLOAT, np.complex64)
    # After the first gradient, of modulus 5, the second is divided by 5, and the limit is 1.
    first, second = np.asarray([3 + 4j], dtype), np.asarray([2 - 20j], dtype)
    opt = eqopt.ScaleByADOPT(b1=0.0)
    updates, state = opt.update(first, opt.init(first), first)
    np.testing.assert_array_equal(updates, [0])
    updates, _ = opt.update(second, state, first)
    np.testing.assert_allclose(updates, [0.4 + 1j], rtol=1e-6)


def test_the_limit_of_adopt_is_the_fourth_root():
    counts = [jnp.asarray(count, jnp.int32) for count in (0, 1, 16, 2**28)]
    found = [float(eqopt.options.clip_value_pow(count)) for count in counts]
    np.testing.assert_allclose(found, [0, 1, 2, 128], rtol=1e-6)


@pytest.mark.parametrize("value", [3.0, eqopt.Adam, "pow"])
def test_the_limit_of_adopt_must_be_a_function(value: Any):
    with pytest.raises(TypeError, match="`clip_value_fn`"):
        eqopt.ADOPT(0.1, clip_value_fn=value)


@pytest.mark.parametrize(
    ("opt", "moments"),
    [
        (eqopt.ScaleByNovoGrad(0.8, 0.0, 0.0), ("mu",)),
        (eqopt.ScaleByAdEMAMix(0.8, 0.0, 0.9, 2.0, 0.0), ("m1", "m2")),
    ],
    ids=["NovoGrad", "AdEMAMix"],
)
def test_only_what_is_remembered_of_the_averages_is_rounded(opt: Any, moments: tuple[str, ...]):
    """With the average of squares forgotten at once, the second step is a sum of two terms."""
    x, gradients = _numbers(5)
    g, h = gradients[:2].astype(np.float64)
    half = opt.replace(mu_dtype=jnp.bfloat16)
    _, state = half.update(gradients[0], half.init(x), x)
    assert [getattr(state, name).dtype for name in moments] == [HALF] * len(moments)
    updates, _ = half.update(gradients[1], state, x)

    def rounded(y: np.ndarray) -> np.ndarray:
        return y.astype(HALF).astype(np.float64)

    def second(kept: Any) -> np.ndarray:
        if isinstance(opt, eqopt.ScaleByNovoGrad):
            return 0.8 * kept(g / np.linalg.norm(g)) + h / np.linalg.norm(h)
        fast, slow = 0.8 * kept(0.2 * g) + 0.2 * h, 0.9 * kept(0.1 * g) + 0.1 * h
        return (fast / (1 - 0.8**2) + 2 * slow) / np.abs(h)

    np.testing.assert_allclose(updates, second(rounded), rtol=1e-12 if X64 else 1e-5)
    assert not np.allclose(updates, second(np.asarray), rtol=1e-4)
