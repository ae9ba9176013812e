"""Empty leaves, huge and tiny gradients, and JAX's flags that look for NaN."""

import functools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import eqopt
from tests.laws.table import each, Row, ROWS
from tests.support.toolbox import finite, FLOAT, in_one_width, values, X64

every_class = each({row.cls: row for row in ROWS}.values())


def with_empty_leaves() -> dict[str, Any]:
    return {
        "a": values((2, 3), 0),
        "no_rows": jnp.zeros((0, 3), FLOAT),
        "no_columns": jnp.zeros((3, 0), FLOAT),
        "nothing": jnp.zeros(0, FLOAT),
    }


@in_one_width
@every_class
def test_leaves_may_be_empty(row: Row):
    params, opt = with_empty_leaves(), row.make()
    needs = row.needs(params)
    state = opt.init(params)
    gradients = jax.tree.map(lambda x: x / 2, params)
    _, state = opt.update(gradients, state, params, **needs)
    updates, state = opt.update(gradients, state, params, **needs)
    assert finite(updates)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
    # What is not known yet is never marked by a NaN: `jax_debug_nans` would stop at it.
    assert not any(bool(jnp.any(jnp.isnan(x))) for x in _numbers(state))
    assert not any(bool(jnp.any(jnp.isnan(x))) for x in _numbers(opt.init(params)))


def _numbers(state: Any) -> list[Any]:
    return [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.inexact)]


MINIMIZERS = [eqopt.LBFGS, eqopt.BFGS, eqopt.NonlinearCG, lambda: eqopt.Adam(0.1)]
by_minimizer = pytest.mark.parametrize(
    "make", MINIMIZERS, ids=["LBFGS", "BFGS", "NonlinearCG", "Adam"]
)


@by_minimizer
def test_minimize_with_empty_leaves(make: Any):
    params = with_empty_leaves()

    def distance(p: Any) -> Any:
        return sum(jnp.sum(jnp.square(x - 2)) for x in jax.tree.leaves(p))

    solution = eqopt.minimize(distance, make(), params)
    np.testing.assert_allclose(solution.params["a"], np.full((2, 3), 2), atol=1e-2)
    assert solution.params["no_rows"].shape == (0, 3)


@by_minimizer
def test_the_flag_that_looks_for_nan(make: Any):
    """`minimize` itself advises it."""

    def distance(x: Any) -> Any:
        return jnp.sum(jnp.square(x - 1))

    x, opt = jnp.zeros(2, FLOAT), make()
    jax.config.update("jax_debug_nans", True)
    try:
        state = opt.init(x)
        for _ in range(2):
            x, state, _ = opt.step(distance, x, state)
        found = eqopt.minimize(distance, opt, x, history=True)
    finally:
        jax.config.update("jax_debug_nans", False)
    np.testing.assert_allclose(found.params, [1, 1], atol=1e-2)
    after = found.stats["values"][int(found.num_steps) + 1 :]
    assert after.size and bool(jnp.all(jnp.isinf(after)))


# Norms.

# As far as the squares of these are no numbers of the dtype.
SCALES = [1e-300, 1e-170, 1e160, 3e307] if X64 else [1e-37, 1e-22, 1e20, 5e37]
by_scale = pytest.mark.parametrize("scale", SCALES)
EPS = float(jnp.finfo(FLOAT).eps)


@by_scale
def test_norms_of_huge_and_tiny_trees(scale: float):
    tree = {"a": jnp.asarray([3 * scale], FLOAT), "b": jnp.asarray([[0.0, -4 * scale]], FLOAT)}
    expected = math.hypot(float(tree["a"][0]), float(tree["b"][0, 1]))
    np.testing.assert_allclose(eqopt.global_norm(tree), FLOAT(expected), rtol=4 * EPS)
    mapped = jax.vmap(eqopt.global_norm)(jax.tree.map(lambda x: jnp.stack([x, x * 0, x]), tree))
    np.testing.assert_allclose(mapped, np.array([expected, 0, expected], FLOAT), rtol=4 * EPS)


@by_scale
@pytest.mark.parametrize(
    "make",
    [
        eqopt.Normalize,
        lambda: eqopt.NormalizeByUpdateNorm(eps=0.0),
    ],
    ids=["Normalize", "NormalizeByUpdateNorm"],
)
def test_a_finite_gradient_has_a_direction(make: Any, scale: float):
    gradients = jnp.asarray([0.3 * scale, -0.4 * scale], FLOAT)
    opt = make()
    updates, _ = opt.update(gradients, opt.init(gradients))
    numbers = np.asarray(updates, np.float64)
    np.testing.assert_allclose(numbers / math.hypot(*numbers), [0.6, -0.8], rtol=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: eqopt.ClipByGlobalNorm(1.0),
        lambda: eqopt.AdaptiveGradClip(0.5),
    ],
    ids=["ClipByGlobalNorm", "AdaptiveGradClip"],
)
def test_clipping_of_a_huge_gradient_is_that_of_a_large_one(make: Any):
    opt = make()
    params = jnp.asarray([[1.0], [2.0]], FLOAT)
    large, huge = (
        opt.update(jnp.asarray([[3 * x], [-4 * x]], FLOAT), opt.init(params), params)[0]
        for x in (1e6, 1e160 if X64 else 1e20)
    )
    assert float(jnp.abs(large[0, 0])) > 0
    np.testing.assert_allclose(huge, large, rtol=1e-5)


@pytest.mark.parametrize("scale", SCALES[2:])
@pytest.mark.parametrize(
    "make",
    [
        lambda: eqopt.ScaleByTrustRatio(),
        lambda: eqopt.ScaleByMuon(weight_dimension_numbers=None),
    ],
    ids=["ScaleByTrustRatio", "ScaleByMuon"],
)
def test_rules_that_divide_by_a_norm_do_not_know_the_scale(make: Any, scale: float):
    params = jnp.asarray([[1.0, 0.5], [0.25, 2.0]], FLOAT)
    gradients = jnp.asarray([[3.0, -1.0], [0.5, 4.0]], FLOAT)
    opt = make()
    updates = [
        opt.update(gradients * FLOAT(x), opt.init(params), params)[0] for x in (1.0, scale / 1000)
    ]
    np.testing.assert_allclose(updates[1], updates[0], rtol=1e-3)


def test_the_derivative_of_a_norm():
    x = {"a": values((3,), 0), "b": values((2, 2), 1), "none": jnp.zeros((0,), FLOAT)}
    norm = eqopt.global_norm(x)
    grad = jax.grad(eqopt.global_norm)(x)
    for own, leaf in zip(jax.tree.leaves(grad), jax.tree.leaves(x), strict=True):
        np.testing.assert_allclose(own, leaf / norm, rtol=4 * EPS)
    # The Hessian of |x| is (1 - x x^T / |x|^2) / |x|.
    v = values((3,), 2)
    hessian = jax.hessian(eqopt.global_norm)(v)
    size = np.linalg.norm(v)
    expected = (np.eye(3) - np.outer(v, v) / size**2) / size
    np.testing.assert_allclose(hessian, expected, rtol=0, atol=20 * EPS)
    for bad in (0.0, np.inf, np.nan):
        assert not np.any(jax.grad(eqopt.global_norm)(jnp.full(2, bad, FLOAT)))
    mixed = {"wide": values((3,), 0), "narrow": values((3,), 1, jnp.float32)}
    mixed["half"] = values((3,), 2, jnp.bfloat16)
    norm, grad = jax.value_and_grad(eqopt.global_norm)(mixed)
    for name, x in mixed.items():
        assert grad[name].dtype == x.dtype
        tolerance = 4 * float(jnp.finfo(x.dtype).eps)
        np.testing.assert_allclose(
            np.asarray(grad[name], np.float64), np.asarray(x, np.float64) / norm, rtol=tolerance
        )
    z = jnp.asarray([3 + 4j, 0], jnp.complex64)
    np.testing.assert_allclose(jax.grad(eqopt.global_norm)(z), [0.6 - 0.8j, 0], rtol=1e-6)


def test_norms_of_what_is_not_finite():
    for bad in (np.inf, -np.inf):
        assert float(eqopt.global_norm([jnp.asarray([1.0, bad], FLOAT)])) == np.inf
    assert np.isnan(float(eqopt.global_norm([jnp.asarray([1.0, np.nan], FLOAT)])))
    assert float(eqopt.global_norm({})) == 0


@in_one_width
def test_a_norm_within_shard_map():
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    divided, whole = jnp.full(2, 3e20, FLOAT), jnp.full(1, 4e20, FLOAT)
    specs = (PartitionSpec("x"), PartitionSpec())

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("x"))
    def norm(divided: Any, whole: Any) -> Any:
        return eqopt.global_norm([divided, whole])[None]

    np.testing.assert_allclose(norm(divided, whole), [5e20, 5e20], rtol=1e-6)


def test_the_objective_may_overflow():
    """A gradient whose square is no number is clipped to its own direction."""
    opt = eqopt.Chain(eqopt.ClipByGlobalNorm(1.0), eqopt.SGD(0.1))
    x = jnp.asarray([1e18, -1e18], FLOAT)
    updates, _ = opt.update(eqx.filter_grad(lambda x: jnp.sum(x**2))(x * 1e2), opt.init(x), x)
    np.testing.assert_allclose(updates, [-0.1 / np.sqrt(2), 0.1 / np.sqrt(2)], rtol=1e-5)
