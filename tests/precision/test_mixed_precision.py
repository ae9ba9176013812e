"""Half-precision parameters: what is too small for one step arrives after a thousand."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import eqopt
from tests.laws.table.row import Transformation
from tests.support.toolbox import FLOAT, same, values

HALVES = pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bf16", "f16"])
EPS = {jnp.bfloat16: 2.0**-8, jnp.float16: 2.0**-11}  # half the distance, at most, relative

# Relative to the parameter, and far less than half the distance between two bfloat16.
STEP, NUM_STEPS = 1e-3, 1000


def _start(dtype: Any, num: int = 64) -> jax.Array:
    return jnp.asarray(np.linspace(1.0, 2.0, num, endpoint=False), dtype)


def _run(opt: Transformation, params: Any, step: Callable[[Any], Any], num: int) -> Any:
    """Applies updates that are functions of the parameters, each with a key of its own."""

    def body(carry: Any, key: Any) -> Any:
        params, state = carry
        updates, state = opt.update(step(params), state, params, key=key)
        return (eqopt.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(0), num)
    return jax.jit(lambda carry: lax.scan(body, carry, keys)[0])((params, opt.init(params)))


def _constant(start: Any) -> Callable[[Any], Any]:
    """Updates of a thousandth of where the parameters begin, in float32."""
    wide = start.astype(jnp.float32) * np.float32(STEP)
    return lambda params: wide


def test_without_help_nothing_arrives():
    start = _start(jnp.bfloat16)
    params, _ = _run(eqopt.Identity(), start, _constant(start), NUM_STEPS)
    assert same(params, start)


def _exact(start: Any) -> np.ndarray:
    return np.asarray(start).astype(np.float64) * (1 + STEP * NUM_STEPS)


@HALVES
@pytest.mark.parametrize(
    ("wrap", "digits"),
    # Float32's sums, and sums with twice the digits of the dtype: a thousand roundings of each,
    # and the last one to the parameter.
    [(eqopt.precision.MasterWeights, 2.0**-24), (eqopt.precision.Compensated, None)],
    ids=["masters", "compensation"],
)
def test_a_thousand_small_updates_arrive(wrap: Any, digits: float | None, dtype: Any):
    start = _start(dtype)
    params, state = _run(wrap(eqopt.Identity()), start, _constant(start), NUM_STEPS)
    assert params.dtype == dtype
    error = np.asarray(params).astype(np.float64) / _exact(start) - 1
    own = EPS[dtype] ** 2 * 2 if digits is None else digits
    assert np.abs(error).max() <= EPS[dtype] + NUM_STEPS * own
    # And in the mean, over many parameters, much better than that.
    assert abs(error.mean()) <= EPS[dtype] / 4 + NUM_STEPS * own / 4
    # With what they remember, better still.
    if wrap is eqopt.precision.MasterWeights:
        masters = np.asarray(state.masters).astype(np.float64)
        np.testing.assert_allclose(masters, _exact(start), rtol=NUM_STEPS * own)
        assert same(jnp.asarray(state.masters).astype(dtype), params)
    else:
        both = np.asarray(params).astype(np.float64) + np.asarray(state.compensation).astype(float)
        np.testing.assert_allclose(both, _exact(start), rtol=NUM_STEPS * own)


def _assert_in_the_mean(params: Any, expected: np.ndarray, dtype: Any, num: int) -> None:
    """Each step's error has no bias, and is of one distance at most: `2 * EPS` of the number.

    Its variance is at most a quarter of the distance squared, and with the small updates here,
    `d` distances long, at most `d` of it; steps are independent of each other.
    """
    error = np.asarray(params).astype(np.float64) / expected - 1
    distance = 2 * EPS[dtype]
    d = min(STEP / distance * 2, 0.25)
    sigma = distance * np.sqrt(d * num)
    assert abs(error.mean()) < 5 * sigma / np.sqrt(error.size)
    # It is random: not all alike, and not wider than it must be.
    assert sigma / 8 < error.std() < 2 * sigma


@HALVES
def test_a_thousand_small_updates_arrive_in_the_mean(dtype: Any):
    start = _start(dtype, 1024)
    opt = eqopt.precision.StochasticRounding(eqopt.Identity())
    params, _ = _run(opt, start, _constant(start), NUM_STEPS)
    _assert_in_the_mean(params, _exact(start), dtype, NUM_STEPS)


def test_a_thousand_small_updates_arrive_in_the_mean_when_applied():
    start = _start(jnp.bfloat16, 1024)
    wide = start.astype(jnp.float32) * np.float32(STEP)

    def body(params: Any, key: Any) -> Any:
        return eqopt.precision.apply_updates_stochastically({"w": params}, {"w": wide}, key)[
            "w"
        ], None

    keys = jax.random.split(jax.random.key(1), NUM_STEPS)
    params, _ = jax.jit(lambda p: lax.scan(body, p, keys))(start)
    assert params.dtype == jnp.bfloat16
    _assert_in_the_mean(params, _exact(start), jnp.bfloat16, NUM_STEPS)


@pytest.mark.parametrize(
    "wrap",
    [
        eqopt.precision.MasterWeights,
        eqopt.precision.Compensated,
        eqopt.precision.StochasticRounding,
    ],
)
def test_decay_arrives(wrap: Any):
    # Proportional to what the parameter is: p <- p (1 - 1e-3), which has a closed form.
    start = _start(jnp.bfloat16, 4096)
    inner = eqopt.Chain(eqopt.AddDecayedWeights(STEP), eqopt.Scale(-1.0))
    params, _ = _run(wrap(inner), start, jnp.zeros_like, NUM_STEPS)
    exact = np.asarray(start).astype(np.float64) * (1 - STEP) ** NUM_STEPS
    error = np.asarray(params).astype(np.float64) / exact - 1
    # In the mean. The compensated one decays what is rounded; stochastic rounding is random.
    assert abs(error.mean()) < 2.0**-8
    plain, _ = _run(inner, start, jnp.zeros_like, NUM_STEPS)
    assert np.abs(np.asarray(plain).astype(np.float64) / exact - 1).min() > 1  # it stays


# Rounding at random.


@HALVES
def test_random_rounding_is_to_a_neighbor_with_the_right_chance(dtype: Any):
    num = 40_000
    cases = [(1.0, EPS[dtype], 0.5), (1.0, 0.5 * EPS[dtype], 0.25), (-1.5, -0.2 * EPS[dtype], 0.1)]
    if dtype == jnp.float16:  # below its normal numbers
        cases.append((2.0**-16, 2.0**-26, 0.25))
    for x, u, chance in cases:
        params = jnp.full(num, x, dtype)
        updates = jnp.full(num, u, jnp.float32)
        new = eqopt.precision.apply_updates_stochastically(params, updates, jax.random.key(2))
        found, counts = np.unique(np.asarray(new).astype(np.float64), return_counts=True)
        assert len(found) == 2
        assert x in found
        low, high = sorted((x, float(found[found != x][0])))
        assert low < x + u < high or x + u in (low, high)
        assert counts[found != x] / num == pytest.approx(chance, abs=5 * np.sqrt(0.25 / num))


def test_random_rounding_of_what_needs_none():
    key = jax.random.key(0)
    params = {
        "exact": jnp.asarray([1.0, 0.0, -3.0], jnp.bfloat16),
        "odd": jnp.asarray([np.inf, np.nan, 60000.0], jnp.float16),
        "wide": values((3,), 0),
        "complex": values((3,), 1, jnp.complex64),
        "fn": jnp.tanh,
    }
    updates = {
        "exact": jnp.asarray([0.5, 1.0, 1.0], jnp.bfloat16),
        "odd": jnp.asarray([1.0, 1.0, 60000.0], jnp.float16),
        "wide": values((3,), 2),
        "complex": values((3,), 3, jnp.complex64),
        "fn": None,
    }
    new = eqopt.precision.apply_updates_stochastically(params, updates, key)
    assert same(new, eqopt.apply_updates(params, updates))
    with pytest.raises(ValueError, match=r"`updates\['exact'\]` has shape"):
        bad = {**updates, "exact": jnp.zeros(2, jnp.bfloat16)}
        eqopt.precision.apply_updates_stochastically(params, bad, key)


def test_random_rounding_wants_a_key_for_half_precision_only():
    opt = eqopt.precision.StochasticRounding(eqopt.SGD(0.1))
    wide = jnp.ones(2, jnp.float32)
    updates, _ = opt.update(wide, opt.init(wide), wide)
    assert same(updates, eqopt.SGD(0.1).update(wide, eqopt.SGD(0.1).init(wide), wide)[0])
    half = jnp.ones(2, jnp.bfloat16)
    with pytest.raises(ValueError, match="`StochasticRounding` needs `key`"):
        opt.update(half, opt.init(half), half)


def test_leaves_and_steps_are_rounded_independently():
    params = {"a": jnp.ones(1000, jnp.bfloat16), "b": jnp.ones(1000, jnp.bfloat16)}
    updates = jax.tree.map(lambda x: jnp.full(1000, 2.0**-8, jnp.float32), params)
    one, two = (
        eqopt.precision.apply_updates_stochastically(params, updates, jax.random.key(i))
        for i in (0, 1)
    )
    ups = [np.asarray(x).astype(float) > 1 for x in (one["a"], one["b"], two["a"], two["b"])]
    correlations = np.asarray(np.corrcoef(ups))[np.triu_indices(4, 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(1000)


# Master weights.


@HALVES
def test_masters_are_what_float32_would_be(dtype: Any):
    # The very steps that the inner optimizer makes of float32 parameters and gradients.
    model = {"w": values((8, 4), 0, dtype), "b": values((4,), 1, FLOAT), "fn": jnp.tanh}
    opt, inner = eqopt.precision.MasterWeights(eqopt.AdamW(1e-3)), eqopt.AdamW(1e-3)
    state = opt.init(model)
    wide = {"w": model["w"].astype(jnp.float32), "b": model["b"]}
    wide_state = inner.init(wide)
    for i in range(20):
        grads = {"w": values((8, 4), 10 + i, dtype), "b": values((4,), 40 + i, FLOAT), "fn": None}
        updates, state = opt.update(grads, state, model)
        model = eqopt.apply_updates(model, updates)
        wide_grads = {"w": grads["w"].astype(jnp.float32), "b": grads["b"]}
        wide_updates, wide_state = inner.update(wide_grads, wide_state, wide)
        wide = eqopt.apply_updates(wide, wide_updates)
        assert updates["w"].dtype == model["w"].dtype == dtype
        assert same(model["w"], state.masters["w"].astype(dtype))
        np.testing.assert_allclose(
            np.asarray(state.masters["w"]), np.asarray(wide["w"]), rtol=1e-6, atol=1e-7
        )
    assert state.masters["b"] is None
    np.testing.assert_allclose(np.asarray(model["b"]), np.asarray(wide["b"]), rtol=1e-6)


@HALVES
@pytest.mark.parametrize("size", [1e-3, 0.3, 1.0, 3.0, 30.0])
def test_parameters_are_masters_rounded_whatever_the_step(size: float, dtype: Any):
    rng = np.random.default_rng(0)
    params = jnp.asarray(rng.normal(size=5000) / 8, dtype)
    opt = eqopt.precision.MasterWeights(eqopt.Identity())
    state = opt.init(params)
    for _ in range(2):
        before = np.asarray(state.masters).astype(np.float64)
        u = jnp.asarray(rng.normal(size=5000) * size * np.abs(before), jnp.float32)
        updates, state = opt.update(u, state, params)
        params = eqopt.apply_updates(params, updates)
        masters = np.asarray(state.masters)
        assert np.array_equal(masters.astype(dtype), np.asarray(params))
        # Exact but for steps that double a parameter or halve it, which may be rounded themselves.
        wanted = np.asarray(u).astype(np.float64)
        error = np.abs(masters - before - wanted)
        largest = np.maximum(np.abs(wanted), np.abs(before))
        tiny = float(jnp.finfo(dtype).smallest_subnormal)
        assert (error <= tiny + (2.0**-23 if size < 0.1 else 1.01 * EPS[dtype]) * largest).all()


def test_masters_follow_what_is_done_to_the_parameters():
    params = jnp.asarray([1.0, 2.0, 3.0], jnp.bfloat16)
    opt = eqopt.precision.MasterWeights(eqopt.Identity())
    small = jnp.full(3, 1e-3, jnp.float32)
    updates, state = opt.update(small, opt.init(params), params)
    params = eqopt.apply_updates(params, updates)
    # One is projected; the others keep what they have collected.
    params = params.at[1].set(jnp.asarray(1.5, jnp.bfloat16))
    _, state = opt.update(small, state, params)
    np.testing.assert_allclose(np.asarray(state.masters), [1.002, 1.501, 3.002], rtol=1e-6)


def test_the_inside_sees_masters_and_an_objective_of_half_precision():
    seen = []

    def look(updates: Any, params: Any) -> Any:
        seen.append((updates["w"].dtype, params["w"].dtype))
        return updates

    def loss_fn(params: Any) -> Any:
        assert params["w"].dtype == jnp.bfloat16
        return jnp.sum(params["w"].astype(jnp.float32) ** 2)

    params = {"w": jnp.asarray([1.0, -3.0], jnp.bfloat16)}
    search = eqopt.ScaleByBacktrackingLinesearch(10, store_grad=True)
    opt = eqopt.precision.MasterWeights(
        eqopt.Chain(eqopt.Stateless(look), eqopt.Scale(-1.0), search)
    )
    state, losses = opt.init(params), []
    for _ in range(5):
        params, state, evaluation = opt.step(loss_fn, params, state)
        losses.append(float(evaluation.value))
        assert same(params["w"], state.masters["w"].astype(jnp.bfloat16))
    assert set(seen) == {(jnp.dtype(jnp.float32), jnp.dtype(jnp.float32))}
    assert losses[-1] < losses[0] / 20


def test_averages_inside_are_of_masters():
    start = _start(jnp.bfloat16)
    opt = eqopt.precision.MasterWeights(eqopt.ParamEMA(eqopt.Identity(), 0.0))
    params, state = _run(opt, start, _constant(start), 10)
    averaged = np.asarray(state.inner_state.ema)
    np.testing.assert_array_equal(averaged, np.asarray(state.masters))
    assert eqopt.eval_params(params, state).dtype == jnp.bfloat16


def test_gradients_in_float32_are_taken_as_they_are():
    # In float16 this gradient would be zero.
    params, tiny = jnp.ones(2, jnp.float16), jnp.full(2, 1e-9, jnp.float32)
    opt = eqopt.precision.MasterWeights(eqopt.Scale(-1e6))
    _, state = opt.update(tiny, opt.init(params), params)
    np.testing.assert_allclose(np.asarray(state.masters), 1 - 1e-3, rtol=1e-6)
    with pytest.raises(ValueError, match="dtype"):
        opt.update(jnp.ones(2, jnp.bfloat16), opt.init(params), params)


@pytest.mark.parametrize(
    "wrap",
    [
        eqopt.precision.MasterWeights,
        eqopt.precision.Compensated,
        eqopt.precision.StochasticRounding,
    ],
)
def test_what_comes_after_is_refused(wrap: Any):
    with pytest.raises(ValueError, match=r"makes no sense.*Put it last"):
        eqopt.Chain(wrap(eqopt.SGD(0.1)), eqopt.Scale(0.5))
    with pytest.raises(ValueError, match=r"to the last bit.*Put it around"):
        eqopt.SAM(wrap(eqopt.SGD(0.1)), eqopt.SGD(0.1))
    wrap(eqopt.SAM(eqopt.SGD(0.1), eqopt.SGD(0.1)))


# Compensation.


def test_compensation_helps_float32_too():
    start = _start(jnp.float32)
    tiny = start * np.float32(2.0**-26)
    params, state = _run(eqopt.precision.Compensated(eqopt.Identity()), start, lambda _: tiny, 4096)
    exact = np.asarray(start).astype(np.float64) * (1 + 2.0**-14)
    np.testing.assert_allclose(np.asarray(params), exact, rtol=2.0**-23)
    both = np.asarray(params).astype(np.float64) + np.asarray(state.compensation)
    np.testing.assert_allclose(both, exact, rtol=1e-10)
    plain, _ = _run(eqopt.Identity(), start, lambda _: tiny, 4096)
    assert same(plain, start)


def test_compensation_of_complex_parameters_is_by_parts():
    z = values((16,), 3, jnp.complex64)
    parts = {"re": jnp.real(z), "im": jnp.imag(z)}
    opt = eqopt.precision.Compensated(eqopt.Identity())
    new, state = _run(opt, parts, lambda p: jax.tree.map(lambda x: x * np.float32(3e-8), p), 50)
    # A gradient comes as JAX gives it: the conjugate of the update.
    whole, its = _run(opt, z, lambda p: jnp.conj(p) * np.complex64(3e-8), 50)
    assert same((jnp.real(whole), jnp.imag(whole)), (new["re"], new["im"]))
    # The gradient is computed in the same program, where a product and a sum may be fused.
    for found, part in ((its.compensation.real, "re"), (its.compensation.imag, "im")):
        expected = np.asarray(state.compensation[part])
        np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=1e-12)


def test_a_bad_step_does_not_stay_in_the_compensation():
    params = jnp.ones(2, jnp.bfloat16)
    opt = eqopt.precision.Compensated(eqopt.Identity())
    _, state = opt.update(jnp.asarray([np.nan, np.inf], jnp.bfloat16), opt.init(params), params)
    assert same(state.compensation, jnp.zeros(2, jnp.bfloat16))


# What it costs.


def _bytes_per_parameter(opt: Transformation, dtype: Any) -> float:
    params = jnp.zeros(1000, dtype)
    state = opt.init(params)
    return sum(x.nbytes for x in jax.tree.leaves(state) if x.ndim) / params.size + dtype(0).nbytes


@pytest.mark.parametrize(
    ("wrap", "dtype", "expected"),
    [
        (lambda x: x, jnp.float32, 12),
        (lambda x: x, jnp.bfloat16, 10),
        (eqopt.precision.StochasticRounding, jnp.bfloat16, 10),
        (eqopt.precision.Compensated, jnp.bfloat16, 12),
        (eqopt.precision.MasterWeights, jnp.bfloat16, 14),
        (eqopt.precision.MasterWeights, jnp.float32, 12),
    ],
)
def test_bytes_per_parameter(wrap: Any, dtype: Any, expected: int):
    assert _bytes_per_parameter(wrap(eqopt.Adam(1e-3)), dtype) == expected
