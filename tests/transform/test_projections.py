"""Projections: optax's results where it is right, the definition where it is not, and a link that
lands in the set."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st

from eqopt import projections
from tests.support.toolbox import assert_close, finite, FLOAT, same, X64, Zoo
from tests.support.trees import assert_near, random_like, random_tree

EPS = float(np.finfo(FLOAT).eps)
NORMAL = random_tree(np.random.default_rng(5), FLOAT)
BELOW = jax.tree.map(lambda x: -np.abs(x), NORMAL)
ABOVE = jax.tree.map(np.abs, NORMAL)
theirs = optax.projections


def _all(tree: Any, number: float) -> Any:
    return jax.tree.map(lambda x: jnp.full_like(x, number), tree)


@dataclasses.dataclass(frozen=True)
class Case:
    """A projection, and the same of optax."""

    ours: Any
    theirs: Callable[[Any], Any]

    def __repr__(self) -> str:
        return type(self.ours).__name__


CASES = [
    Case(projections.NonNegative(), theirs.projection_non_negative),
    # Of a tree, optax refuses bounds that are numbers.
    Case(
        projections.Box(-0.3, 0.7),
        lambda x: theirs.projection_box(x, _all(x, -0.3), _all(x, 0.7)),
    ),
    Case(projections.Box(BELOW, ABOVE), lambda x: theirs.projection_box(x, BELOW, ABOVE)),
    Case(
        projections.Hypercube(0.4),
        lambda x: theirs.projection_box(x, _all(x, 0.0), _all(x, 0.4)),
    ),
    *(
        Case(projections.Simplex(s), lambda x, s=s: theirs.projection_simplex(x, FLOAT(s)))
        for s in (0.1, 30.0)
    ),
    *(
        Case(projections.L1Sphere(s), lambda x, s=s: theirs.projection_l1_sphere(x, FLOAT(s)))
        for s in (0.1, 500.0)
    ),
    *(
        Case(projections.L1Ball(s), lambda x, s=s: theirs.projection_l1_ball(x, FLOAT(s)))
        for s in (3.0, 500.0)
    ),
    *(
        Case(projections.L2Sphere(s), lambda x, s=s: theirs.projection_l2_sphere(x, FLOAT(s)))
        for s in (0.1, 50.0)
    ),
    *(
        Case(projections.L2Ball(s), lambda x, s=s: theirs.projection_l2_ball(x, FLOAT(s)))
        for s in (0.1, 50.0)
    ),
    Case(projections.LInfBall(0.3), lambda x: theirs.projection_linf_ball(x, FLOAT(0.3))),
    Case(
        projections.Hyperplane(NORMAL, 2.0),
        lambda x: theirs.projection_hyperplane(x, NORMAL, FLOAT(2.0)),
    ),
    *(
        Case(
            projections.Halfspace(NORMAL, b),
            lambda x, b=b: theirs.projection_halfspace(x, NORMAL, FLOAT(b)),
        )
        for b in (-2.0, 1000.0)
    ),
    Case(projections.Line(NORMAL), lambda x: theirs.projection_vector(x, NORMAL)),
]
BY_CLASS = list({type(x.ours): x.ours for x in CASES}.values())
each = pytest.mark.parametrize("projection", BY_CLASS, ids=lambda x: type(x).__name__)


def test_every_projection_is_compared():
    found = [getattr(projections, x) for x in dir(projections)]
    base = projections.AbstractProjection
    classes = {x for x in found if isinstance(x, type) and issubclass(x, base)}
    assert classes - {base} == set(map(type, BY_CLASS))


def _slope(project: Any) -> Any:
    """The projection, and the derivative of a sum of its numbers, each with a weight."""

    def weighted(x: Any, weights: Any) -> Any:
        projected = project(x)
        products = jax.tree.map(lambda a, b: jnp.sum(a * b), projected, weights)
        return sum(jax.tree.leaves(products)), projected

    return jax.jit(jax.grad(weighted, has_aux=True))


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_the_same_as_optax(case: Case):
    rng = np.random.default_rng(0)
    ours, others = _slope(case.ours), _slope(case.theirs)
    for size in (1, 10):
        x = jax.tree.map(lambda y, size=size: size * y, random_like(rng, NORMAL))
        weights = random_like(rng, NORMAL)
        slope, projected = ours(x, weights)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            expected_slope, expected = others(x, weights)
        # In float32 optax's simplex is off by 3e-5, for it sums the numbers before it subtracts.
        assert_near(projected, expected, 1e-12 if X64 else 1e-4)
        # A leaf of the derivative may be of rounding errors only, in optax and here.
        assert_close(slope, expected_slope, 1e-11 if X64 else 3e-5)


@each
def test_a_projection_is_idempotent_and_leaves_all_else_alone(projection: Any):
    if isinstance(projection, projections.Box | projections.Hyperplane | projections.Halfspace):
        point = random_like(np.random.default_rng(1), NORMAL)
    elif isinstance(projection, projections.Line):
        point = random_like(np.random.default_rng(1), NORMAL)
    else:
        model = Zoo()
        projected = projection(model)
        assert type(projected) is Zoo
        rest, expected = (
            eqx.filter(m, eqx.is_inexact_array, inverse=True) for m in (projected, model)
        )
        assert same(rest, expected)
        point = eqx.filter(model, eqx.is_inexact_array)
    once = projection(jax.tree.map(lambda x: 5 * x, point))
    assert_close(projection(once), once, 64 * EPS)


# The definition: no other point of the set is nearer.


def _flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)])


def _simplex(x: np.ndarray, s: float) -> np.ndarray:
    """By brute force over the supports: the feasible one with the nearest point."""
    best, distance = x, np.inf
    for support in itertools.product((False, True), repeat=x.size):
        on = np.array(support)
        if not on.any():
            continue
        y = np.where(on, x - (x[on].sum() - s) / on.sum(), 0.0)
        if (y >= -1e-12).all() and np.sum((y - x) ** 2) < distance:
            best, distance = y, np.sum((y - x) ** 2)
    return best


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(-4, 4, width=16), min_size=6, max_size=6),
    st.floats(0.0625, 16, width=16),
)
def test_the_simplex_by_brute_force(numbers: list[float], s: float):
    x = np.array(numbers)
    point = {"a": jnp.asarray(x[:4].reshape(2, 2), FLOAT), "b": jnp.asarray(x[4:], FLOAT)}
    tolerance = 1e-12 if X64 else 1e-5

    def near(found: Any, expected: Any) -> None:
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)

    found = _flat(projections.Simplex(s)(point))
    near(found, _simplex(x, s))

    sign = np.where(x < 0, -1.0, 1.0)
    on_the_sphere = sign * _simplex(np.abs(x), s)
    near(_flat(projections.L1Sphere(s)(point)), on_the_sphere)
    inside = np.abs(x).sum() <= s
    in_the_ball = _flat(projections.L1Ball(s)(point))
    near(in_the_ball, x if inside else on_the_sphere)


def test_the_derivative_of_the_simplex_is_that_of_its_support():
    x = jnp.asarray([0.9, 0.4, -0.3, 0.8], FLOAT)
    on = np.array([1.0, 1.0, 0.0, 1.0])
    expected = np.diag(on) - np.outer(on, on) / 3
    project = projections.Simplex()
    np.testing.assert_allclose(jax.jacfwd(project)(x), expected, atol=4 * EPS)
    np.testing.assert_allclose(jax.jacrev(project)(x), expected, atol=4 * EPS)
    by_scale = jax.jacfwd(lambda s: projections.Simplex(s)(x))(jnp.asarray(1.0, FLOAT))
    np.testing.assert_allclose(by_scale, on / 3, atol=4 * EPS)


@pytest.mark.skipif(not X64, reason="differences want the digits of float64")
@each
def test_derivatives_are_right(projection: Any):
    x, weights = (random_like(np.random.default_rng(i), NORMAL) for i in (2, 3))
    numbers, rest = eqx.partition(projection, eqx.is_inexact_array)

    def weighted(numbers: Any, x: Any) -> Any:
        out = eqx.combine(numbers, rest)(x)
        return sum(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum(a * b), out, weights)))

    run = jax.jit(jax.value_and_grad(weighted, argnums=(0, 1)))
    h = 1e-6
    slope = run(numbers, x)[1]
    above, _ = run(*jax.tree.map(lambda y: y * (1 + h), (numbers, x)))
    below, _ = run(*jax.tree.map(lambda y: y * (1 - h), (numbers, x)))
    along = sum(jax.tree.leaves(jax.tree.map(lambda d, y: jnp.sum(d * y), slope, (numbers, x))))
    np.testing.assert_allclose(along, (above - below) / (2 * h), rtol=1e-7, atol=1e-8)


# Numerics.


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_any_scale(size: float):
    x = {"a": jnp.asarray([3.0, -4.0], FLOAT) * FLOAT(size), "b": jnp.asarray(12 * size, FLOAT)}
    unit = np.array([3.0, -4.0, 12.0])
    r = 2 * size
    found = [
        (projections.L2Sphere(r), unit / 13 * 2),
        (projections.L2Ball(r), unit / 13 * 2),
        (projections.L1Ball(r), np.array([0.0, 0.0, 2.0])),
        (projections.Simplex(r), np.array([0.0, 0.0, 2.0])),
        (projections.LInfBall(r), np.array([2.0, -2.0, 2.0])),
        (projections.Hyperplane(size, 0.0), unit - 11 / 3),
    ]
    for projection, expected in found:
        np.testing.assert_allclose(_flat(projection(x)) / size, expected, rtol=8 * EPS, atol=1e-6)


def test_a_common_offset_costs_no_digits():
    numbers = np.array([0.25, -0.5, 0.5, 0.0])
    offset = FLOAT(2.0 ** (20 if not X64 else 49))
    found = projections.Simplex()(jnp.asarray(numbers.astype(FLOAT) + offset))
    np.testing.assert_allclose(found, _simplex(numbers, 1.0), atol=4 * EPS)


def test_zero_goes_to_a_point_of_the_sphere():
    zero = {"a": jnp.zeros(3, FLOAT), "b": jnp.zeros((), FLOAT)}
    for projection, norm in (
        (projections.L1Sphere(2.0), lambda x: np.abs(x).sum()),
        (projections.L2Sphere(2.0), lambda x: np.sqrt(np.square(x).sum())),
    ):
        found = projection(zero)
        np.testing.assert_allclose(norm(_flat(found)), 2.0, rtol=4 * EPS)
        slope = jax.grad(lambda x, p=projection: jnp.sum(p(x)["a"]))(zero)
        assert finite(slope)
    # And single zeros count too, which have no sign.
    found = projections.L1Sphere(1.0)(jnp.asarray([0.3, 0.0], FLOAT))
    np.testing.assert_allclose(found, [0.65, 0.35], rtol=4 * EPS)


@each
def test_nothing_hides_a_nan(projection: Any):
    if isinstance(projection, projections.Box):
        projection = projections.Box(-1.0, 1.0)
    point = random_like(np.random.default_rng(1), NORMAL)
    point["pair"][0][0] = np.nan
    assert np.isnan(projection(point)["pair"][0][0])


def test_complex_numbers_are_pairs():
    dtype = np.result_type(FLOAT, np.complex64)
    z = {"z": jnp.asarray([3 - 4j, 0.5 + 0.1j], dtype), "x": jnp.asarray([-1.0], FLOAT)}
    pair = {"re": jnp.real(z["z"]), "im": jnp.imag(z["z"]), "x": z["x"]}
    for projection in BY_CLASS:
        normal: Any = {"z": np.array([1 + 2j, 3 - 1j], dtype), "x": np.array([0.5], FLOAT)}
        other = {"re": normal["z"].real, "im": normal["z"].imag, "x": normal["x"]}
        ours, split = projection, projection
        if isinstance(projection, projections.Box):
            ours = split = projections.Box(-0.3, 0.7)
        elif isinstance(projection, projections.Line):
            ours, split = projections.Line(normal), projections.Line(other)
        elif isinstance(projection, projections.Hyperplane | projections.Halfspace):
            ours, split = type(projection)(normal, -2.0), type(projection)(other, -2.0)
        found, expected = ours(z), split(pair)
        assert found["z"].dtype == dtype
        assert_close(jnp.real(found["z"]), expected["re"])
        assert_close(jnp.imag(found["z"]), expected["im"])
        assert_close(found["x"], expected["x"])


# Bounds.

HALVES = [jnp.float16, jnp.bfloat16]


@pytest.mark.parametrize("dtype", [*HALVES, jnp.float32], ids=lambda x: jnp.dtype(x).name)
def test_bounds_are_rounded_inward(dtype: Any):
    lower, upper = FLOAT(0.1), FLOAT(0.3)
    low, high = projections.Box(lower, upper)(jnp.asarray([-1.0, 1.0], dtype))
    assert low.dtype == high.dtype == dtype
    assert np.float64(low) >= np.float64(lower) and np.float64(high) <= np.float64(upper)
    # And no further than to the next number.
    ulp = float(jnp.finfo(dtype).eps) * 0.25
    assert np.float64(low) - lower < ulp and upper - np.float64(high) < ulp


def test_bounds_of_some_entries():
    x = {"a": jnp.asarray([-2.0, 2.0], FLOAT), "b": jnp.asarray([-2.0, 2.0], FLOAT)}
    box = projections.Box({"a": -1.0, "b": None}, {"a": np.array([0.0, np.inf]), "b": 1.0})
    assert same(box(x), {"a": x["a"].at[0].set(-1.0), "b": x["b"].at[1].set(1.0)})


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: projections.L2Ball(-1.0), "`scale`"),
        (lambda: projections.Simplex(0.0), "`scale`"),
        (lambda: projections.Hypercube(-1.0), "`scale`"),
        (lambda: projections.Box(1.0, 0.0), "`lower`.*`upper`"),
        (lambda: projections.Box({"a": 1.0}, {"b": 2.0}), "`upper.*"),
        (lambda: projections.Box(-1.0, 1.0)(1.0) and projections.Box("a", 1.0), "`lower`"),
        (lambda: projections.Box({"a": 1.0}, np.inf)({"b": jnp.ones(2)}), "`lower"),
        (lambda: projections.Box({"a": np.ones(3)}, np.inf)({"a": jnp.ones(2)}), "lower.*shape"),
        (lambda: projections.Hyperplane({"a": 1.0}, 1.0)({"b": jnp.ones(2)}), "`normal"),
        (lambda: projections.Hyperplane(1.0, np.nan), "`offset`"),
    ],
)
def test_mistakes(build: Callable[[], Any], words: str):
    with pytest.raises((TypeError, ValueError), match=words):
        build()


def test_bounds_of_integers_are_bounds():
    params = {"w": jnp.asarray([-1.0, 2.0], FLOAT), "b": jnp.asarray(-3.0, FLOAT)}
    low: Any = {"w": jnp.asarray([0, 5]), "b": np.int32(-2)}
    found = projections.Box(low, np.inf)(params)
    np.testing.assert_array_equal(found["w"], [0.0, 5.0])
    assert found["b"] == -2
    plane = projections.Hyperplane({"w": np.asarray([1, 2]), "b": 0}, 7.0)
    moved = plane(params)["w"] - params["w"]
    np.testing.assert_allclose(moved, [0.8, 1.6], rtol=1e-6)
