"""A link that keeps the parameters in a set, to the last bit where the set has bounds."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import eqopt
from eqopt import projections
from tests.support.toolbox import assert_close, FLOAT, same, tree, values
from tests.support.trees import random_like
from tests.transform.test_projections import each, EPS, HALVES, NORMAL

untyped: Any = eqopt


def test_what_is_no_projection():
    with pytest.raises(TypeError, match=r"`projection` must be an `eqopt\.projections"):
        untyped.Project(jax.nn.relu)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.sampled_from([*HALVES, jnp.float32]),
    st.lists(st.floats(-3, 3, width=16), min_size=8, max_size=8),
    st.lists(st.floats(-3, 3, width=16), min_size=8, max_size=8),
    st.sampled_from([(0.0, np.inf), (-0.1, 0.1), (1e-3, 1.0), (0.1, 0.7), (-2.0, -1e-3)]),
)
def test_the_parameters_land_between_the_bounds(
    dtype: Any, numbers: list[float], steps: list[float], bounds: tuple[float, float]
):
    box = projections.NonNegative() if bounds[1] == np.inf else projections.Box(*bounds)
    opt = eqopt.Project(box)
    params = box(jnp.asarray(numbers, dtype))
    updates, _ = opt.update(jnp.asarray(steps, dtype), opt.init(params), params)
    new = eqopt.apply_updates(params, updates)
    assert updates.dtype == new.dtype == dtype
    assert np.all(np.asarray(new, np.float64) >= FLOAT(bounds[0]))
    assert np.all(np.asarray(new, np.float64) <= FLOAT(bounds[1]))
    wanted = np.asarray(box(eqopt.apply_updates(params, jnp.asarray(steps, dtype))), np.float64)
    # As near to the point of the set as the update's own digits allow.
    ulps = 4 * float(jnp.finfo(dtype).eps) * (np.abs(np.asarray(params, np.float64)) + 1e-7)
    assert np.all(np.abs(np.asarray(new, np.float64) - wanted) <= ulps)


@each
def test_the_parameters_land_in_the_set(projection: Any):
    params, steps = (random_like(np.random.default_rng(i), NORMAL) for i in (7, 8))
    params = projection(params)
    opt = eqopt.Project(projection)
    updates, _ = opt.update(steps, opt.init(params), params)
    new = eqopt.apply_updates(params, updates)
    assert_close(new, projection(eqopt.apply_updates(params, steps)), 16 * EPS)
    assert_close(new, projection(new), 64 * EPS)


def test_what_has_no_gradient_stays_and_does_not_count():
    params = {"a": values((3,), 0), "b": values((2,), 1)}
    opt = eqopt.Project(projections.L2Sphere(2.0))
    updates, _ = opt.update({"a": values((3,), 2), "b": None}, opt.init(params), params)
    new = eqopt.apply_updates(params, updates)
    assert same(new["b"], params["b"])
    np.testing.assert_allclose(eqopt.global_norm(new["a"]), 2.0, rtol=8 * EPS)

    masked = eqopt.Masked(opt, {"a": True, "b": False})
    updates, _ = masked.update(
        {"a": values((3,), 2), "b": values((2,), 3)}, masked.init(params), params
    )
    assert same(updates["b"], values((2,), 3))
    assert same(eqopt.apply_updates(params, updates)["a"], new["a"])


def _distance(x: Any, target: Any) -> Any:
    return jnp.sum(jnp.square(x - target)) / 2


@pytest.mark.parametrize("inner", [eqopt.SGD(0.3), eqopt.LBFGS()], ids=["SGD", "LBFGS"])
def test_a_constrained_minimum_is_found(inner: Any):
    # The nearest point of a set is the minimum of the squared distance.
    target = jnp.asarray([1.5, -0.5, 0.25], FLOAT)
    opt = eqopt.Chain(inner, eqopt.Project(projections.Simplex()))
    x = jnp.asarray([0.2, 0.3, 0.5], FLOAT)
    state = opt.init(x)
    for _ in range(60):
        x, state, _ = opt.step(_distance, x, state, target)
    np.testing.assert_allclose(x, [1.0, 0.0, 0.0], atol=1e-6)


@pytest.mark.parametrize(
    "search",
    [
        eqopt.ScaleByBacktrackingLinesearch(8, store_grad=True),
        eqopt.ScaleByZoomLinesearch(8),
    ],
    ids=lambda x: type(x).__name__,
)
def test_a_search_before_it_evaluates_where_the_parameters_are(search: Any):
    target = jnp.asarray([1.5, -0.5, 0.25], FLOAT)
    opt = eqopt.Chain(eqopt.SGD(1.0), search, eqopt.Project(projections.NonNegative()))
    x = jnp.asarray([0.2, 0.3, 0.5], FLOAT)
    state = opt.init(x)
    for _ in range(4):
        value, slope = jax.value_and_grad(_distance)(x, target)
        x, state, evaluation = opt.step(_distance, x, state, target)
        np.testing.assert_allclose(evaluation.value, value, rtol=8 * EPS)
        np.testing.assert_allclose(evaluation.grad, slope, rtol=8 * EPS, atol=8 * EPS)
        assert np.all(np.asarray(x) >= 0)
    # Without the projection the cache would be of a point that is elsewhere.
    fresh = eqopt.value_and_grad_from_state(_distance)(x, target, state=state)[0]
    np.testing.assert_allclose(fresh, _distance(x, target), rtol=8 * EPS)
    np.testing.assert_allclose(x, [1.5, 0.0, 0.25], atol=1e-6)


def test_masters_stay_in_the_set():
    opt = eqopt.precision.MasterWeights(
        eqopt.Chain(eqopt.SGD(0.1), eqopt.Project(projections.NonNegative()))
    )
    params = jnp.asarray([0.5, 0.001, 0.0], jnp.bfloat16)
    state = opt.init(params)
    for _ in range(10):
        updates, state = opt.update(jnp.ones(3, jnp.bfloat16), state, params)
        params = eqopt.apply_updates(params, updates)
        assert np.all(np.asarray(params, np.float32) >= 0)
        assert np.all(np.asarray(state.masters) >= 0)
    assert np.all(np.asarray(params, np.float32) == 0)


def test_a_new_number_does_not_retrace():
    num = 0

    class Counted(projections.AbstractProjection):
        inner: projections.L2Ball

        def project(self, params: Any) -> Any:
            nonlocal num
            num += 1
            return self.inner.project(params)

    for scale in (0.1, 0.2, jnp.asarray(0.3)):
        found = Counted(projections.L2Ball(scale))(tree())
        np.testing.assert_allclose(eqopt.global_norm(found), scale, rtol=1e-6)
    assert num == 1


def test_nonnegative_parameters_come_last():
    last = eqopt.Chain(eqopt.Adam(0.1), eqopt.KeepParamsNonnegative())
    x = jnp.asarray([0.01, 1.0], FLOAT)
    updates, _ = last.update(jnp.ones_like(x), last.init(x), x)
    assert eqopt.apply_updates(x, updates)[0] == 0
    with pytest.raises(ValueError, match="KeepParamsNonnegative"):
        eqopt.Chain(eqopt.KeepParamsNonnegative(), eqopt.Scale(0.1))
