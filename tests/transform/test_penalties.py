"""Penalties: their proximal operators minimize what they are to minimize."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqopt import projections
from tests.support.toolbox import FLOAT, X64
from tests.support.trees import random_like, random_tree

COMPLEX = np.complex128 if X64 else np.complex64
EPS = float(np.finfo(FLOAT).eps)
TREE = random_tree(np.random.default_rng(3), FLOAT)
COMPLEX_TREE = random_tree(np.random.default_rng(4), COMPLEX)
MATRICES = {
    "wide": random_like(np.random.default_rng(5), jnp.zeros((3, 5), FLOAT)),
    "tall": random_like(np.random.default_rng(6), jnp.zeros((2, 6, 2), FLOAT)),
}
STRENGTHS = jax.tree.map(lambda x: np.abs(x) / 2, random_like(np.random.default_rng(7), TREE))
PENALTIES = {
    "L1": (projections.L1(0.3), TREE),
    "L1-complex": (projections.L1(0.6), COMPLEX_TREE),
    "L1-tree": (projections.L1(STRENGTHS), TREE),
    "ElasticNet": (projections.ElasticNet(0.8, 0.3), TREE),
    "ElasticNet-complex": (projections.ElasticNet(0.8, 0.7), COMPLEX_TREE),
    "GroupL2": (projections.GroupL2(0.9), TREE),
    "GroupL2-complex": (projections.GroupL2(0.9), COMPLEX_TREE),
    "GroupL2-axis": (projections.GroupL2(0.9, axis=0), MATRICES),
    "NuclearNorm": (projections.NuclearNorm(0.7), MATRICES),
    "NuclearNorm-complex": (
        projections.NuclearNorm(0.7),
        random_like(np.random.default_rng(8), jnp.zeros((4, 3), COMPLEX)),
    ),
    "NonNegative": (projections.NonNegative(), TREE),
    "Box": (projections.Box(-0.3, 0.4), TREE),
    "Simplex": (projections.Simplex(2.0), TREE),
    "L1Ball": (projections.L1Ball(1.5), TREE),
    "L2Ball": (projections.L2Ball(0.7), COMPLEX_TREE),
}


def test_every_penalty_is_here():
    found = [getattr(projections, x) for x in dir(projections)]
    classes = {x for x in found if isinstance(x, type)}
    sets = {x for x in classes if issubclass(x, projections.AbstractProjection)}
    ours = {type(penalty) for penalty, _ in PENALTIES.values()}
    assert classes - sets - {projections.AbstractPenalty} == ours - sets


every = pytest.mark.parametrize("name", PENALTIES)


def squared(tree: Any) -> float:
    leaves = jax.tree.leaves(tree)
    return sum(float(np.sum(np.abs(np.asarray(x, np.complex128)) ** 2)) for x in leaves)


def inner(a: Any, b: Any) -> float:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return sum(float(np.real(np.sum(np.conj(x) * y))) for x, y in pairs)


def minus(a: Any, b: Any) -> Any:
    return jax.tree.map(lambda x, y: np.asarray(x) - np.asarray(y), a, b)


def prox(penalty: Any, params: Any, step: float) -> Any:
    return penalty.prox(jax.tree.map(jnp.asarray, params), jnp.asarray(step, FLOAT))


@every
def test_no_other_point_is_better(name: str):
    penalty, params = PENALTIES[name]
    step = 0.7

    def objective(z: Any) -> float:
        z = jax.tree.map(jnp.asarray, z)
        return float(penalty.value(z)) + squared(minus(z, params)) / (2 * step)

    found = prox(penalty, params, step)
    lowest, rng = objective(found), np.random.default_rng(0)
    for scale in (1.0, 0.1, 1e-2, 1e-3):
        for _ in range(20):
            noise = random_like(rng, params)
            other = jax.tree.map(lambda z, n, s=scale: np.asarray(z) + s * n, found, noise)
            if isinstance(penalty, projections.AbstractProjection):
                other = penalty(jax.tree.map(jnp.asarray, other))  # the set is all that there is
            assert objective(other) >= lowest * (1 - 20 * EPS)
    # One coordinate at a time, so that a penalty on one leaf cannot hide behind another.
    for i, leaf in enumerate(jax.tree.leaves(found)):
        for sign in (-1, 1):
            change = np.zeros(leaf.shape, leaf.dtype)
            change.flat[0] = sign * 0.05
            leaves = [
                np.asarray(x) + (change if i == j else 0)
                for j, x in enumerate(jax.tree.leaves(found))
            ]
            other = jax.tree.unflatten(jax.tree.structure(found), leaves)
            if not isinstance(penalty, projections.AbstractProjection):
                assert objective(other) >= lowest * (1 - 20 * EPS)


@every
def test_firmly_nonexpansive(name: str):
    penalty, params = PENALTIES[name]
    rng = np.random.default_rng(1)
    for scale in (0.1, 1.0, 10.0):
        other = jax.tree.map(lambda x, n, s=scale: x + s * n, params, random_like(rng, params))
        a, b = prox(penalty, params, 0.7), prox(penalty, other, 0.7)
        apart = minus(a, b)
        assert squared(apart) <= inner(apart, minus(params, other)) * (1 + 1e3 * EPS)


def test_moreau():
    """The rest, `x - prox(x)`, is the projection onto the ball of the dual norm."""
    step = 0.5
    for name, ball in (("L1", projections.LInfBall(0.3 * step)),):
        penalty, params = PENALTIES[name]
        rest, expected = minus(params, prox(penalty, params, step)), ball(params)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=4 * EPS), rest, expected)
    penalty, params = PENALTIES["GroupL2-complex"]
    found, ball = prox(penalty, params, step), projections.L2Ball(0.9 * step)
    for x, z in zip(jax.tree.leaves(params), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(x - np.asarray(z), ball(jnp.asarray(x)), atol=8 * EPS)
    penalty, params = PENALTIES["NuclearNorm"]
    found = prox(penalty, params, step)
    for x, z in zip(jax.tree.leaves(params), jax.tree.leaves(found), strict=True):
        left, values, right = np.linalg.svd(x, full_matrices=False)
        rest = left * np.minimum(values, 0.7 * step)[..., None, :] @ right
        np.testing.assert_allclose(x - np.asarray(z), rest, atol=30 * EPS)


@pytest.mark.parametrize("name", ["L1", "ElasticNet", "GroupL2", "GroupL2-axis", "NuclearNorm"])
def test_values(name: str):
    penalty, params = PENALTIES[name]
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(params)]
    expected = {
        "L1": lambda x: 0.3 * np.sum(np.abs(x)),
        "ElasticNet": lambda x: 0.8 * np.sum(0.3 * np.abs(x) + 0.35 * x**2),
        "GroupL2": lambda x: 0.9 * np.linalg.norm(x),
        "GroupL2-axis": lambda x: 0.9 * np.sum(np.linalg.norm(x, axis=0)),
        "NuclearNorm": lambda x: 0.7 * np.sum(np.linalg.svd(x, compute_uv=False)),
    }[name]
    value = penalty.value(jax.tree.map(jnp.asarray, params))
    np.testing.assert_allclose(value, sum(map(expected, leaves)), rtol=1e-12 if X64 else 1e-5)
    assert value.dtype == FLOAT


@every
def test_a_step_of_zero_moves_only_into_the_set(name: str):
    penalty, params = PENALTIES[name]
    found = prox(penalty, params, 0.0)
    if isinstance(penalty, projections.AbstractProjection):
        params = penalty(jax.tree.map(jnp.asarray, params))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=30 * EPS), found, params)


def test_zeros_are_exact_and_nan_stays():
    x = jnp.asarray([0.1, -0.1, 2.0, np.nan, -3.0], FLOAT)
    for penalty in (projections.L1(0.5), projections.ElasticNet(1.0, 0.5)):
        z = np.asarray(prox(penalty, x, 1.0))
        assert z[0] == z[1] == 0 and np.isnan(z[3])
    np.testing.assert_array_equal(prox(projections.L1(0.5), x[:3], 1.0), [0.0, 0.0, 1.5])
    assert np.all(np.isnan(prox(projections.GroupL2(0.1), x, 1.0)))
    assert not np.any(prox(projections.GroupL2(10.0), x[:3], 1.0))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_rounded_once(dtype: Any):
    x = jnp.asarray(np.linspace(-2, 2, 41), dtype)
    wide = np.asarray(x, np.float32)
    found = prox(projections.L1(0.1), x, 0.3)
    assert found.dtype == jnp.float32
    expected = np.sign(wide) * np.maximum(np.abs(wide) - np.float32(0.1) * np.float32(0.3), 0)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_model_with_a_strength_for_some_leaves():
    model = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0), dtype=FLOAT)
    none = jax.tree.map(lambda _: None, model)
    weights = eqx.tree_at(
        lambda m: [layer.weight for layer in m.layers],
        none,
        [2.0, 0.5],
        is_leaf=lambda x: x is None,
    )
    arrays = eqx.filter(model, eqx.is_inexact_array)
    expected = sum(
        s * float(jnp.sum(jnp.abs(x.weight))) for s, x in zip((2.0, 0.5), model.layers, strict=True)
    )
    penalty = projections.L1(weights)
    np.testing.assert_allclose(penalty.value(arrays), expected, rtol=1e-5)
    found = prox(penalty, arrays, 100.0)
    for old, new in zip(model.layers, found.layers, strict=True):
        assert not np.any(new.weight)
        np.testing.assert_array_equal(new.bias, old.bias)
    matrices = projections.NuclearNorm(weights)
    assert not np.any(prox(matrices, arrays, 100.0).layers[0].weight)


def test_mistakes():
    x = {"w": jnp.ones((2, 3), FLOAT), "b": jnp.ones(3, FLOAT)}
    with pytest.raises(ValueError, match="`strength` must not be negative"):
        projections.L1({"w": -1.0, "b": 1.0})
    with pytest.raises(ValueError, match="`strength` must be finite"):
        projections.GroupL2(np.inf)
    with pytest.raises(ValueError, match="`l1_ratio` must be"):
        projections.ElasticNet(1.0, 1.5)
    with pytest.raises(ValueError, match=r"`params\['b'\]` has the shape \(3,\), and is no matrix"):
        projections.NuclearNorm(1.0).value(x)
    with pytest.raises(ValueError, match=r"`axis` is \(1,\); `params\['b'\]`"):
        projections.GroupL2(1.0, axis=1).value(x)
    with pytest.raises(TypeError, match="`axis` must be an int"):
        axis: Any = 0.5
        projections.GroupL2(1.0, axis)
    with pytest.raises(ValueError, match=r"the strength of `params\['b'\]` must be one number"):
        projections.GroupL2({"w": 1.0, "b": jnp.ones(3)}).value(x)
    with pytest.raises(ValueError, match="strength"):
        projections.L1({"w": 1.0}).value(x)
