"""Limits, noise and other simple transformations equal optax's, and what they say they do."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqopt
from tests.support.parity import (
    between,
    falling,
    fields,
    links,
    power,
    RATE,
    Row,
    row,
    trajectories,
    trajectory,
)
from tests.support.toolbox import FLOAT, same, values, X64
from tests.support.trees import is_matrix

# What the axes of a unit depend on: their number, and which are of size 1.
SHAPES = {"three": (3, 2, 4), "five": (2, 1, 3, 2, 2), "column": (3, 1)}

NOISE = {"eta": power(-3, 0), "gamma": between(0.2, 1)}
CLIPPING = {"clipping": power(-2, 0), "eps": power(-4, -1)}
KEY = jax.random.key(5)


def _twice_and_half(update: Any, param: Any) -> Any:
    return 2 * update + param / 2


ROWS = [
    row(eqopt.Fromage, optax.fromage, RATE),
    row(
        eqopt.Fromage,
        optax.fromage,
        {**RATE, "min_norm": between(0.1, 5)},
        scheduled="learning_rate",
    ),
    row(
        eqopt.NormalizeByUpdateNorm,
        optax.normalize_by_update_norm,
        {"scale_factor": between(-2, -0.1), "eps": power(-6, 0)},
    ),
    row(eqopt.Centralize, optax.centralize, {}),
    row(eqopt.AdaptiveGradClip, optax.adaptive_grad_clip, CLIPPING),
    Row(
        eqopt.AdaptiveGradClip,
        "axis",
        lambda h: eqopt.Masked(eqopt.AdaptiveGradClip(**h, axis=(-1, 0)), eqopt.ByNdim(2)),
        lambda h: optax.masked(optax.adaptive_grad_clip(**h, axis=(-1, 0)), is_matrix),
        CLIPPING,
        {"axis"},
    ),
    # Complex numbers have no order.
    row(eqopt.KeepParamsNonnegative, optax.keep_params_nonnegative, {}, real=True),
    row(eqopt.ZeroNaNs, optax.zero_nans, {}),
    Row(
        eqopt.StatelessWithTreeMap,
        "",
        lambda h: eqopt.StatelessWithTreeMap(_twice_and_half),
        lambda h: optax.stateless_with_tree_map(_twice_and_half),
        {},
        {"f"},
    ),
    # The keys are split as optax splits them, so that even the noise is the same.
    Row(
        eqopt.AddNoise,
        "",
        lambda h: eqopt.AddNoise(**h, key=KEY),
        lambda h: optax.add_noise(**h, key=KEY),
        NOISE,
        {"eta", "gamma", "key"},
    ),
    Row(
        eqopt.NoisySGD,
        "schedule",
        lambda h: eqopt.NoisySGD(**{**h, "learning_rate": falling(h["learning_rate"])}, key=KEY),
        lambda h: optax.noisy_sgd(**{**h, "learning_rate": falling(h["learning_rate"])}, key=KEY),
        {**RATE, **NOISE},
        {"learning_rate", "eta", "gamma", "key"},
    ),
]


test_trajectories_equal_those_of_optax = trajectories(ROWS, SHAPES)
test_every_field_is_varied = fields(ROWS)
test_an_optimizer_is_its_links_one_by_one = links(ROWS, 128, SHAPES)


_TIGHT = 1e-13 if X64 else 1e-6


# Fromage and its last link.


@pytest.mark.parametrize("rate", [1e-5, 0.1, 3.0])
def test_parameters_are_contracted(rate: float):
    params, updates = values((3, 2), 0), values((3, 2), 1)
    opt = eqopt.control.ContractByLearningRate(rate)
    found, _ = opt.update(updates, opt.init(params), params)
    x, u, s = np.float64(params), np.float64(updates), float(FLOAT(rate))
    # In extended precision, for the difference is one of nearly equal numbers.
    exact = (np.longdouble(x) + u) / np.sqrt(1 + np.longdouble(s) ** 2) - x
    np.testing.assert_allclose(found, np.float64(exact), rtol=4e-13 if X64 else 1e-6)
    still, _ = opt.update(jnp.zeros_like(updates), opt.init(params), params)
    np.testing.assert_allclose(still, x * float(1 / np.sqrt(1 + np.longdouble(s) ** 2) - 1), 1e-5)


def test_a_fromage_step_at_a_right_angle_keeps_the_length():
    params, gradient = jnp.asarray([3.0, 4.0], FLOAT), jnp.asarray([-4.0, 3.0], FLOAT)
    opt = eqopt.Fromage(0.3)
    updates, _ = opt.update(gradient, opt.init(params), params)
    new = eqopt.apply_updates(params, updates)
    np.testing.assert_allclose(jnp.linalg.norm(new), 5, rtol=10 * _TIGHT)
    assert not np.allclose(new, params, rtol=0.1)


# Limits.


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_has_no_direction_becomes_zero(bad: float):
    gradients = {"a": jnp.asarray([1.0, bad], FLOAT), "b": jnp.ones(2, FLOAT)}
    opt = eqopt.NormalizeByUpdateNorm()
    updates, _ = opt.update(gradients, opt.init(gradients))
    assert same(updates, jax.tree.map(jnp.zeros_like, gradients))

    matrix = jnp.ones((3, 2), FLOAT)
    clip = eqopt.AdaptiveGradClip(0.5)
    updates, _ = clip.update(matrix.at[0, 1].set(bad), clip.init(matrix), matrix)
    np.testing.assert_allclose(updates, np.outer(np.full(3, 0.5), [1, 0]), rtol=_TIGHT)


@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_normalizing_zero_gives_zero(eps: float):
    zeros = jnp.zeros(3, FLOAT)
    updates, _ = eqopt.NormalizeByUpdateNorm(-2.0, eps).update(zeros, eqopt.states.EmptyState())
    assert same(updates, zeros)


def test_the_norm_of_half_precision_does_not_overflow():
    large = jnp.full(4, 6e4, jnp.float16)
    opt = eqopt.NormalizeByUpdateNorm(3.0)
    updates, _ = opt.update(large, opt.init(large))
    np.testing.assert_allclose(np.float32(updates), 1.5, rtol=1e-3)


def test_small_updates_are_clipped_to_the_very_limit():
    # optax divides by 1e-6 at least, and makes them smaller than asked.
    params, small = jnp.zeros(4, FLOAT), jnp.full(4, 4e-7, FLOAT)
    opt = eqopt.AdaptiveGradClip(1e-4)
    updates, _ = opt.update(small, opt.init(params), params)
    np.testing.assert_allclose(jnp.linalg.norm(updates), 1e-7, rtol=10 * _TIGHT)
    tx: Any = optax.adaptive_grad_clip(1e-4)
    theirs, _ = tx.update(small, tx.init(params), params)
    assert np.linalg.norm(theirs) < 0.9e-7


def test_units_of_equinox_layers():
    linear = eqx.nn.Linear(3, 2, use_bias=False, key=KEY)
    weight = jnp.asarray([[3.0, 4.0, 0.0], [0.3, 0.4, 0.0]], FLOAT)
    linear = eqx.tree_at(lambda x: x.weight, linear, weight)
    opt = eqopt.AdaptiveGradClip(0.5, axis=1)
    ones = eqx.tree_at(lambda x: x.weight, linear, jnp.ones((2, 3), FLOAT))
    updates, _ = opt.update(ones, opt.init(linear), linear)
    np.testing.assert_allclose(jnp.linalg.norm(updates.weight, axis=1), [np.sqrt(3), 0.25], 1e-6)


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        (None, r"`params\['x'\]` has shape \(1, 2, 1, 2, 1, 2\); `axis` must say"),
        (7, r"`params\['x'\]` has shape \(1, 2, 1, 2, 1, 2\); `axis` is 7"),
        ((0, -6), r"`axis` is \(0, -6\)"),
    ],
)
def test_an_axis_that_does_not_fit_is_refused_by_the_leafs_name(axis: Any, message: str):
    params = {"x": jnp.ones((1, 2, 1, 2, 1, 2), FLOAT)}
    opt = eqopt.AdaptiveGradClip(0.5, axis=axis)
    with pytest.raises(ValueError, match=message):
        opt.init(params)
    with pytest.raises(ValueError, match=message):
        opt.update(params, eqopt.states.EmptyState(), params)


@pytest.mark.parametrize("axis", ["0", True, 0.0, (0, "1")])
def test_an_axis_is_an_int(axis: Any):
    with pytest.raises(TypeError, match="`axis` must be an int, several ints, or None"):
        eqopt.AdaptiveGradClip(0.5, axis=axis)


# Nonnegative parameters.


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, FLOAT])
def test_parameters_are_nonnegative_to_the_last_bit(dtype: Any):
    rng = np.random.default_rng(0)
    params = jnp.asarray(rng.uniform(0, 1, 4000) * (rng.uniform(size=4000) > 0.2), dtype)
    # Most take the parameter to zero, but for a rounding up or down.
    factors = 1 + rng.normal(size=4000) * float(jnp.finfo(dtype).eps)
    wide = jnp.asarray(-np.float64(params) * factors, FLOAT).astype(jnp.float32)
    wide = wide if dtype != FLOAT else jnp.asarray(-np.float64(params) * factors, FLOAT)
    opt = eqopt.Chain(eqopt.Scale(1.0), eqopt.KeepParamsNonnegative())
    updates, _ = opt.update(wide, opt.init(params), params)
    assert updates.dtype == dtype
    new = np.float64(eqopt.apply_updates(params, updates))
    assert new.min() == 0 and new.max() > 0
    # Without it they are not.
    plain = eqopt.apply_updates(params, wide)
    assert np.float64(plain).min() < 0
    # What was not in the way is left alone.
    free = np.float64(wide) >= -np.float64(params)
    assert same(updates[free], wide[free].astype(dtype))


def test_both_parts_of_complex_parameters_are_nonnegative():
    z = jnp.asarray([1 + 2j, 1 + 2j, -1 + 1j])
    u = jnp.asarray([-2 + 1j, 1 - 3j, 0.5 + 0j])
    opt = eqopt.KeepParamsNonnegative()
    updates, _ = opt.update(jnp.conj(u), opt.init(z), z)
    np.testing.assert_array_equal(eqopt.apply_updates(z, updates), [3j, 2, 1j])


# NaN.


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.complex64])
def test_nans_are_zeroed_and_told_of(dtype: Any):
    good, bad = jnp.ones((2, 3), dtype), jnp.asarray([np.nan, np.inf, -2], dtype)
    gradients = {"good": good, "bad": bad, "none": None}
    params = {"good": good, "bad": jnp.ones(3, dtype), "none": jnp.ones(2, dtype)}
    opt, tx = eqopt.ZeroNaNs(), optax.zero_nans()
    state: Any = opt.init(params)
    assert jax.tree.map(bool, state.found_nan) == {"good": False, "bad": False, "none": False}
    updates, state = opt.update(gradients, state, params)
    assert jax.tree.map(bool, state.found_nan) == {"good": False, "bad": True, "none": False}
    theirs, _ = tx.update(gradients, tx.init(gradients))
    assert same(jax.tree.map(jnp.abs, updates), jax.tree.map(jnp.abs, theirs))
    _, state = opt.update(params, state, params)
    assert not any(jax.tree.leaves(jax.tree.map(bool, state.found_nan)))


# Functions of a leaf.


def test_a_function_of_a_leaf_sees_no_holes():
    gradients = {"a": jnp.ones(2, FLOAT), "b": None}
    params = {"a": jnp.full(2, 3.0, FLOAT), "b": jnp.ones(3, FLOAT)}
    opt = eqopt.StatelessWithTreeMap(lambda u, x: u if x is None else u * x)
    updates, _ = opt.update(gradients, opt.init(params), params)
    assert same(updates, {"a": params["a"], "b": None})
    updates, _ = opt.update(gradients, opt.init(params))
    assert same(updates, gradients)


def test_a_function_of_a_leaf_gives_one_of_its_shape():
    gradients = {"a": jnp.ones(2, FLOAT)}
    opt = eqopt.StatelessWithTreeMap(lambda u, x: jnp.sum(u))
    with pytest.raises(ValueError, match=r"`f\(update, param\)\['a'\]` has shape \(\)"):
        opt.update(gradients, eqopt.states.EmptyState())
    nothing: Any = None
    with pytest.raises(TypeError, match="`f` must be a function"):
        eqopt.StatelessWithTreeMap(nothing)


# Noise.


def _noises(opt: Any, params: Any, num_steps: int) -> Any:
    zeros = jax.tree.map(lambda x: np.zeros((num_steps, *x.shape), x.dtype), params)

    @eqx.filter_jit
    def run(opt: Any) -> Any:
        return trajectory(opt, eqopt.apply_updates, params, zeros)[0]

    return run(opt)


def test_noise_has_its_variance_and_is_independent():
    size, num_steps = 20_000, 4
    kinds = {"a": FLOAT, "b": FLOAT, "half": jnp.bfloat16, "complex": np.complex64}
    params = {name: jnp.zeros(size, dtype) for name, dtype in kinds.items()}
    found = _noises(eqopt.AddNoise(0.25, 0.5, KEY), params, num_steps)
    drawn = {name: np.asarray(x.astype(np.complex64)) for name, x in found.items()}
    for t in range(num_steps):
        expected = 0.25 / (1 + t) ** 0.5
        for x in drawn.values():
            # Five standard deviations of the mean, and of the mean of squares.
            assert abs(np.mean(x[t])) < 5 * np.sqrt(expected / size)
            np.testing.assert_allclose(np.mean(np.abs(x[t]) ** 2), expected, rtol=5 * 0.01)
        parts = drawn["complex"][t]
        np.testing.assert_allclose(np.mean(parts.real**2), expected / 2, rtol=5 * 0.01)
    rows = np.concatenate([np.real(x) for x in drawn.values()] + [np.imag(drawn["complex"])])
    correlations = np.corrcoef(rows) - np.eye(len(rows))
    assert np.max(np.abs(correlations)) < 5 / np.sqrt(size)


def test_another_key_gives_other_noise_and_one_key_the_same():
    params = jnp.zeros(4, FLOAT)
    words = np.asarray(jax.random.key_data(KEY))
    first = _noises(eqopt.AddNoise(0.25, 0.5, KEY), params, 3)
    assert same(first, _noises(eqopt.AddNoise(0.25, 0.5, words), params, 3))
    assert not same(first, _noises(eqopt.AddNoise(0.25, 0.5, jax.random.key(6)), params, 3))

    other = jax.random.key(5, impl="rbg")
    opt = eqopt.AddNoise(0.25, 0.5, other)
    updates, state = opt.update(params, opt.init(params))
    assert state.key.shape == jax.random.key_data(other).shape
    assert not same(updates, first[0])


def test_keys_may_be_mapped_over():
    keys, params = jax.random.split(KEY, 3), jnp.zeros(4, FLOAT)

    @eqx.filter_vmap
    def noise(key: Any) -> Any:
        opt = eqopt.NoisySGD(0.5, 0.25, 0.5, key=key)
        return opt.update(params, opt.init(params))[0]

    found = noise(keys)
    for key, own in zip(keys, found, strict=True):
        opt = eqopt.NoisySGD(0.5, 0.25, 0.5, key=key)
        np.testing.assert_allclose(own, opt.update(params, opt.init(params))[0], rtol=1e-6)


@pytest.mark.parametrize("cls", [eqopt.AddNoise, eqopt.NoisySGD])
def test_seeds_are_refused(cls: Any):
    for wrong in (0, None, "key", np.float32(1), jnp.zeros(2)):
        with pytest.raises(TypeError, match="`key` must be a PRNG key, such as"):
            cls(0.1, 0.5, key=wrong)
    with pytest.raises(ValueError, match=r"`key` must be one PRNG key; got .* shape \(3,\)"):
        cls(0.1, 0.5, key=jax.random.split(KEY, 3))
    with pytest.raises(TypeError, match="key"):
        cls(0.1, 0.5)


def test_a_key_is_no_number():
    opt = eqopt.NoisySGD(0.1, key=KEY)
    names = eqopt.hyperparameters(opt, opt.init(jnp.ones(2))).keys()
    assert set(names) == {"learning_rate", "eta", "gamma"}
    assert repr(opt).endswith("key=KeyData(threefry2x32))")
    old = eqopt.NoisySGD(0.1, key=np.asarray([0, 3], np.uint32))
    assert set(eqopt.hyperparameters(old, old.init(jnp.ones(2)))) == set(names)
