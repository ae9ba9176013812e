"""Norms that stay, over many steps and in half precision; blocks; and what has no direction."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import eqopt
from eqopt import control
from tests.support.toolbox import FLOAT, in_one_width, same, values

untyped: Any = eqopt.control


def _norms(x: Any) -> np.ndarray:
    """The norm of each matrix."""
    return np.linalg.norm(np.asarray(x, np.float64), axis=(-2, -1))


def _run(opt: Any, params: Any, num_steps: int) -> Any:
    """The parameters after many steps with noise for gradients, and the state."""

    def step(carry: Any, key: Any) -> Any:
        params, state = carry
        keys = jax.random.split(key, len(params))
        grads = {
            x: jax.random.normal(k, y.shape, jnp.float32).astype(y.dtype)
            for k, (x, y) in zip(keys, params.items(), strict=True)
        }
        updates, state = opt.update(grads, state, params)
        return (eqopt.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(0), num_steps)
    return eqx.filter_jit(lambda p: lax.scan(step, (p, opt.init(p)), keys)[0])(params)


def _params(dtype: Any) -> dict[str, Any]:
    return {"matrix": values((8, 6), 0, dtype), "stack": values((3, 5, 4), 1, dtype)}


@in_one_width
@pytest.mark.parametrize(
    "make",
    [lambda: control.Hyperball(0.05), lambda: control.AdamH(0.05)],
    ids=["Hyperball", "AdamH"],
)
def test_a_norm_stays_over_many_steps(make: Any):
    params = _params(jnp.float32)
    after, _ = _run(make(), params, 10_000)
    for name, x in params.items():
        assert not np.allclose(after[name], x, rtol=0.1)
        np.testing.assert_allclose(_norms(after[name]), _norms(x), rtol=1e-6)


@in_one_width
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_norm_stays_in_half_precision(dtype: Any):
    params = _params(dtype)
    opt = eqopt.precision.MasterWeights(control.AdamH(0.02))
    after, state = _run(opt, params, 1000)
    for name, x in params.items():
        assert after[name].dtype == dtype
        # A master follows its parameter where that more than doubles, or changes its sign.
        rounding = float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(_norms(state.masters[name]), _norms(x), rtol=rounding / 2)
        np.testing.assert_allclose(_norms(after[name]), _norms(x), rtol=rounding / 2)


@in_one_width
def test_a_norm_stays_without_masters_up_to_rounding():
    params = _params(jnp.bfloat16)
    after, _ = _run(control.Hyperball(0.05), params, 1000)
    for name, x in params.items():
        np.testing.assert_allclose(_norms(after[name]), _norms(x), rtol=2.0**-8)


def test_the_length_of_an_update_does_not_matter():
    params = _params(FLOAT)
    grads = jax.tree.map(lambda x: values(x.shape, 7), params)
    opt = control.Hyperball(0.05)
    state = opt.init(params)
    updates, _ = opt.update(grads, state, params)
    for factor in (2.0**-60, 2.0**60):
        scaled = jax.tree.map(lambda g, c=factor: g * FLOAT(c), grads)
        assert same(opt.update(scaled, state, params)[0], updates)


def test_each_matrix_of_a_stack_has_its_own_norm():
    params = {"stack": values((3, 4, 5), 0) * jnp.asarray([1, 10, 100], FLOAT)[:, None, None]}
    grads = {"stack": values((3, 4, 5), 1)}
    for make in (
        lambda: control.Hyperball(0.1),
        lambda: eqopt.Chain(eqopt.Scale(-0.1), control.KeepRadius()),
        control.RelativeUpdate,
        lambda: control.UpdateFloor(2.0),
        lambda: control.RadialBrake(0.0),
        lambda: control.ClipUpdateRMS(0.1),
        lambda: control.Graft(eqopt.SGD(0.1), eqopt.SGD(1.0, 0.9)),
        lambda: control.CautiousUpdates(eqopt.Trace(0.9)),
        lambda: control.StableAdamW(0.1),
        lambda: control.MARS(0.1),
        lambda: control.CAME(0.1),
    ):
        opt: Any = make()
        together, _ = opt.update(grads, opt.init(params), params)
        for i in range(3):
            own = {"stack": params["stack"][i]}
            alone, _ = opt.update({"stack": grads["stack"][i]}, opt.init(own), own)
            np.testing.assert_allclose(together["stack"][i], alone["stack"], rtol=1e-5)


@pytest.mark.parametrize(("ndim", "lead"), [(None, ()), (2, (3,)), (1, (3, 4)), (7, ())])
def test_blocks_are_trailing_axes(ndim: int | None, lead: tuple[int, ...]):
    params, grads = {"x": values((3, 4, 5), 0)}, {"x": values((3, 4, 5), 1) * 100}
    opt = control.Hyperball(0.1, block_ndim=ndim)
    state = opt.init(params)
    assert state.radius["x"].shape == lead
    updates, _ = control.RelativeUpdate(block_ndim=ndim).update(
        grads, control.RelativeUpdate().init(params), params
    )

    def norms(x: Any) -> Any:
        return np.linalg.norm(np.reshape(np.asarray(x, np.float64), (*lead, -1)), axis=-1)

    np.testing.assert_allclose(norms(updates["x"]), norms(params["x"]), rtol=1e-5)
    np.testing.assert_allclose(state.radius["x"], norms(params["x"]), rtol=1e-5)


def test_a_given_radius_holds_from_the_first_step():
    params, grads = {"x": values((4, 5), 0)}, {"x": values((4, 5), 1)}
    for start in (params, {"x": jnp.zeros((4, 5), FLOAT)}):
        opt = control.Hyperball(0.1, 2.5)
        updates, state = opt.update(grads, opt.init(start), start)
        assert jax.tree.leaves(state.radius) == []
        np.testing.assert_allclose(_norms(eqopt.apply_updates(start, updates)["x"]), 2.5, rtol=1e-6)


def test_a_schedule_sets_the_rate():
    params, grads = {"x": values((4, 5), 0)}, {"x": values((4, 5), 1)}
    scheduled, constant = control.Hyperball(eqopt.Linear(0.1, 0.3, 2)), control.Hyperball(0.2)
    _, state = scheduled.update(grads, scheduled.init(params), params)
    updates, _ = scheduled.update(grads, state, params)
    assert same(updates, constant.update(grads, constant.init(params), params)[0])


def test_updates_without_a_direction():
    params = {"zero": jnp.zeros((2, 3), FLOAT), "x": values((2, 3), 0)}
    nothing = jax.tree.map(jnp.zeros_like, params)
    something = jax.tree.map(lambda x: values(x.shape, 5), params)
    for make in (
        lambda: control.Hyperball(0.1),
        control.KeepRadius,
        control.RelativeUpdate,
        lambda: control.UpdateFloor(1.0),
        control.RadialBrake,
        control.ClipUpdateRMS,
        lambda: control.Graft(eqopt.SGD(0.1), eqopt.Adam(0.1)),
    ):
        opt: Any = make()
        updates, _ = opt.update(nothing, opt.init(params), params)
        for x in jax.tree.leaves(updates):
            np.testing.assert_allclose(x, np.zeros((2, 3)), atol=1e-6)
        updates, _ = opt.update(something, opt.init(params), params)
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(updates))
    # A parameter that is 0 moves all the same.
    for make, factor in (
        (lambda: control.Hyperball(0.5), -0.5),
        (control.KeepRadius, 1.0),
        (control.RelativeUpdate, 1.0),
        (control.RadialBrake, 1.0),
    ):
        opt: Any = make()
        updates, _ = opt.update(something, opt.init(params), params)
        np.testing.assert_array_equal(updates["zero"], factor * something["zero"])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_update_that_is_not_finite_has_no_direction(bad: float):
    params = {"x": values((2, 3), 0), "zero": jnp.zeros((2, 3), FLOAT)}
    bad_ones = values((2, 3), 1).at[0, 0].set(bad)
    grads = {"x": bad_ones, "zero": jnp.zeros((2, 3), FLOAT)}
    updates, _ = control.Hyperball(0.1).update(
        {**grads, "zero": bad_ones}, control.Hyperball(0.1).init(params), params
    )
    assert not np.any(updates["zero"])
    for make in (lambda: control.Hyperball(0.1), control.RelativeUpdate, control.ClipUpdateRMS):
        opt: Any = make()
        updates, _ = opt.update(grads, opt.init(params), params)
        np.testing.assert_allclose(updates["x"], np.zeros((2, 3)), atol=1e-6)


def test_a_step_straight_through_the_center():
    params = {"x": values((2, 3), 0)}
    opt = control.Hyperball(1.0)
    updates, _ = opt.update(params, opt.init(params), params)
    np.testing.assert_allclose(
        _norms(eqopt.apply_updates(params, updates)["x"]), _norms(params["x"]), rtol=1e-6
    )
    keep = eqopt.Chain(eqopt.Scale(-3.0), control.KeepRadius())
    updates, _ = keep.update(params, keep.init(params), params)
    np.testing.assert_allclose(updates["x"], -3 * params["x"], rtol=1e-6)


def test_a_tangential_step_keeps_the_radius():
    x, g = values((3, 4), 0), values((3, 4), 1)
    tangent = {"x": g - x * jnp.sum(g * x) / jnp.sum(x * x)}
    params = {"x": x}
    plain = eqopt.apply_updates(params, jax.tree.map(lambda u: -u, tangent))
    assert _norms(plain["x"]) > 1.1 * _norms(x)
    opt = eqopt.Chain(eqopt.Scale(-1.0), control.KeepRadius())
    updates, _ = opt.update(tangent, opt.init(params), params)
    np.testing.assert_allclose(
        _norms(eqopt.apply_updates(params, updates)["x"]), _norms(x), rtol=1e-6
    )


def test_the_brake_acts_outward_alone():
    params = {"x": values((3, 4), 0)}
    inward, outward = params, jax.tree.map(lambda x: -x, params)
    opt = control.RadialBrake(0.25)
    np.testing.assert_allclose(opt.update(inward, opt.init(params), params)[0]["x"], inward["x"])
    braked, _ = opt.update(outward, opt.init(params), params)
    np.testing.assert_allclose(braked["x"], 0.25 * outward["x"], rtol=1e-6)
    braked, _ = control.RadialBrake(1.0, 0.25).update(inward, opt.init(params), params)
    np.testing.assert_allclose(braked["x"], 0.25 * inward["x"], rtol=1e-6)


def test_mistakes():
    params = {"x": values((2, 3), 0)}
    for make in (
        lambda: control.Hyperball(0.1),
        control.KeepRadius,
        control.RelativeUpdate,
        lambda: control.UpdateFloor(0.1),
        control.RadialBrake,
    ):
        opt: Any = make()
        name = type(opt).__name__
        with pytest.raises(ValueError, match=f"`{name}` needs the parameters"):
            opt.update(params, opt.init(params))
    for build, words in (
        (lambda: untyped.Hyperball(-0.1), "`learning_rate` must be at least 0"),
        (lambda: untyped.Hyperball(0.1, 0.0), "`radius` must be above 0"),
        (lambda: untyped.Hyperball(0.1, block_ndim=0), "`block_ndim` must be at least 1"),
        (lambda: untyped.UpdateFloor(-1.0), "`floor` must be at least 0"),
        (lambda: untyped.RadialBrake(1.5), "`outward` must be at least 0 and at most 1"),
        (lambda: untyped.ClipUpdateRMS(-1.0), "`max_rms` must be at least 0"),
    ):
        with pytest.raises(ValueError, match=words):
            build()
    with pytest.raises(TypeError, match="`block_ndim` must be an int"):
        untyped.Hyperball(0.1, block_ndim=1.5)
    with pytest.raises(TypeError, match="`direction` must be a transformation"):
        untyped.Graft(eqopt.SGD(0.1), 3)


@pytest.mark.parametrize("last", [lambda: control.Hyperball(0.1), lambda: control.AdamH(0.1)])
def test_nestings_that_make_no_sense(last: Any):
    if isinstance(last(), control.Hyperball):
        with pytest.raises(ValueError, match=r"`Hyperball` within `Chain` makes no sense"):
            eqopt.Chain(last(), eqopt.Scale(0.5))
    for wrap in (
        eqopt.precision.Compensated,
        eqopt.precision.StochasticRounding,
        lambda x: eqopt.Lookahead(x, 2, 0.5),
        eqopt.Mechanize,
        control.CautiousUpdates,
        lambda x: control.Graft(x, eqopt.SGD(0.1)),
    ):
        with pytest.raises(ValueError, match=r"`Hyperball` within `.*` makes no sense"):
            wrap(last())
