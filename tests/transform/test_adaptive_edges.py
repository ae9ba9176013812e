"""The adaptive and layerwise optimizers at the edges: zeros, one element, halves, shards."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import eqopt
from eqopt._base.arithmetic import safe_sqrt
from eqopt._transform import factored
from tests.support.toolbox import FLOAT, same, values, X64
from tests.support.trees import assert_near

MAKERS: list[Callable[[], Any]] = [
    *(lambda cls=cls: cls(0.1) for cls in (eqopt.AdaBelief, eqopt.Adagrad, eqopt.LAMB, eqopt.LARS)),
    eqopt.Adadelta,
    lambda: eqopt.Adafactor(0.1, 2, momentum=0.9),
    lambda: eqopt.ScaleByRSS(0.0, 0.0),
    lambda: eqopt.ScaleByRSS(0.0, 0.0, eps_in_sqrt=False),
    lambda: eqopt.ScaleByFactoredRMS(min_dim_size_to_factor=2),
    eqopt.ScaleByFactoredRMS,
    eqopt.ScaleByTrustRatio,
    lambda: eqopt.ScaleByParamBlockNorm(0.0),
    lambda: eqopt.ScaleByParamBlockRMS(0.0),
    lambda: eqopt.ClipByBlockRMS(0.0),
]
_every_maker = pytest.mark.parametrize("make", MAKERS, ids=lambda make: type(make()).__name__)


@_every_maker
def test_zero_gradients_give_zero_updates_with_finite_derivatives(make: Any):
    opt = make()
    params = {
        "matrices": [jnp.zeros((3, 2), FLOAT), jnp.ones((3, 2), FLOAT)],
        "vectors": [jnp.zeros(1, FLOAT), jnp.ones(1, FLOAT)],
        "scalar": jnp.zeros((), FLOAT),
        "empty": jnp.zeros((0, 2), FLOAT),
        "hole": None,
    }
    zeros = jax.tree.map(jnp.zeros_like, params)

    @eqx.filter_jit
    def run(opt: Any, gradients: Any, params: Any) -> Any:
        _, state = opt.update(gradients, opt.init(params), params)
        return opt.update(gradients, state, params)

    updates, state = run(opt, zeros, params)
    assert same(jax.tree.map(jnp.abs, updates), zeros)
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(state))

    def total(moving: Any) -> Any:
        updates, _ = run(*moving)
        return sum(jnp.sum(x) for x in jax.tree.leaves(updates))

    derivative = eqx.filter_grad(total)((opt, zeros, params))
    found = [x for x in jax.tree.leaves(derivative) if eqx.is_inexact_array(x)]
    assert found and all(bool(jnp.all(jnp.isfinite(x))) for x in found)


def test_parameters_of_zero_and_the_trust_ratio():
    g, zeros = values((3,), 0), jnp.zeros(3, FLOAT)
    ratio = eqopt.ScaleByTrustRatio(trust_coefficient=0.01)
    assert same(ratio.update(g, ratio.init(zeros), zeros)[0], g)
    lars = eqopt.LARS(0.5, momentum=0.0)
    np.testing.assert_allclose(lars.update(g, lars.init(zeros), zeros)[0], -0.5 * g, rtol=1e-6)
    for cls in (eqopt.ScaleByParamBlockNorm, eqopt.ScaleByParamBlockRMS):
        block = cls(0.25)
        assert same(block.update(g, block.init(zeros), zeros)[0], g / 4)


def test_leaves_of_one_element():
    g, p = jnp.asarray([-3.0], FLOAT), jnp.asarray([0.5], FLOAT)
    rms = eqopt.Adafactor(0.1, 1, clipping_threshold=None)
    # One entry: the gradient over its modulus, times the rate and the parameter's own size.
    np.testing.assert_allclose(rms.update(g, rms.init(p), p)[0], [0.05], rtol=1e-6)
    matrix = eqopt.ScaleByFactoredRMS(min_dim_size_to_factor=1)
    state = matrix.init(p[None])
    assert state.v_row.shape == state.v_col.shape == (1,) and state.v is None
    np.testing.assert_allclose(matrix.update(g[None], state)[0], [[-1.0]], rtol=1e-6)
    ratio = eqopt.ScaleByTrustRatio()
    np.testing.assert_allclose(ratio.update(g, ratio.init(p), p)[0], [-0.5], rtol=1e-6)


def test_what_is_not_finite_is_clipped_to_zero_leaf_by_leaf():
    g = {"bad": jnp.asarray([np.inf, 1.0], FLOAT), "good": jnp.asarray([3.0, 4.0], FLOAT)}
    clip = eqopt.ClipByBlockRMS(1.0)
    updates, _ = clip.update(g, clip.init(g))
    assert same(updates["bad"], jnp.zeros(2, FLOAT))
    np.testing.assert_allclose(updates["good"], np.asarray([3.0, 4.0]) / np.sqrt(12.5), rtol=1e-6)


def test_norms_of_float16_do_not_overflow():
    p, g = jnp.full((100,), 300.0, jnp.float16), jnp.full((100,), 400.0, jnp.float16)
    assert float(eqopt.ScaleByTrustRatio().update(g, eqopt.states.EmptyState(), p)[0][0]) == 300.0
    clip = eqopt.ClipByBlockRMS(2.0)
    assert float(clip.update(g, clip.init(g))[0][0]) == 2.0
    state = eqopt.ScaleByFactoredRMS().init(p)
    assert float(eqopt.ScaleByFactoredRMS().update(g, state, p)[0][0]) == 1.0


def test_before_the_offset_nothing_is_remembered_and_nothing_is_lost():
    opt = eqopt.ScaleByFactoredRMS(step_offset=2)
    gradients = [values((3,), seed) for seed in range(5)]
    state, fresh = opt.init(gradients[0]), eqopt.ScaleByFactoredRMS()
    for g in gradients[:2]:
        updates, state = opt.update(g, state)
        np.testing.assert_allclose(updates, jnp.sign(g), rtol=1e-6)
    own = fresh.init(gradients[0])
    for g in gradients[2:]:
        updates, state = opt.update(g, state)
        expected, own = fresh.update(g, own)
        assert same(updates, expected)
    # optax's decay there is not a number, and its average never recovers.
    tx = optax.scale_by_factored_rms(step_offset=2)
    theirs = tx.init(gradients[0])
    with jax.numpy_dtype_promotion("standard"):
        for g in gradients:
            _, theirs = tx.update(g, theirs, g)
        lost: Any = tx.update(gradients[0], theirs, gradients[0])[0]
    assert bool(jnp.all(jnp.isnan(lost)))


def test_a_negative_offset_is_a_head_start():
    """As if so many steps had been taken, also where a count can go no further."""
    opt = eqopt.ScaleByFactoredRMS(step_offset=-10)
    g = jnp.asarray([1.0, -2.0], FLOAT)
    state = opt.init(g)
    _, state = opt.update(g, state)
    np.testing.assert_allclose(state.v, 11**-0.8 * np.square(g), rtol=1e-6)
    last = np.iinfo(np.int32).max
    state = eqx.tree_at(lambda s: s.count, state, jnp.asarray(last, jnp.int32))
    _, state = opt.update(g, state)
    assert bool(jnp.all(jnp.isfinite(state.v))) and int(state.count) == last
    with pytest.raises(ValueError, match="from -2147483648 to"):
        eqopt.ScaleByFactoredRMS(step_offset=-(2**40))


def test_the_memory_of_a_matrix_is_two_vectors():
    params = {"big": jnp.ones((256, 130), jnp.bfloat16), "b": jnp.ones(130), "k": jnp.ones((2, 9))}
    state = eqopt.ScaleByFactoredRMS().init(params)
    assert (state.v_row["big"].shape, state.v_col["big"].shape) == ((130,), (256,))
    assert state.v_row["big"].dtype == state.v_col["big"].dtype == jnp.float32
    assert state.v["big"] is state.v_row["b"] is state.v_col["k"] is None
    assert (state.v["b"].shape, state.v["k"].shape) == ((130,), (2, 9))


def test_a_state_of_other_sizes_is_refused():
    params = {"w": jnp.ones((4, 3), FLOAT)}
    state = eqopt.ScaleByFactoredRMS(min_dim_size_to_factor=2).init(params)
    with pytest.raises(ValueError, match=r"`state.v_row\['w'\]`.*\(4, 3\), so it must be None"):
        eqopt.ScaleByFactoredRMS().update(params, state, params)
    wide = {"w": jnp.ones((5, 3), FLOAT)}
    with pytest.raises(ValueError, match=r"`state.v_col\['w'\]`.*\(5, 3\), so it must be \(5,\)"):
        eqopt.ScaleByFactoredRMS(min_dim_size_to_factor=2).update(wide, state, wide)


def test_mistakes_in_building():
    untyped: Any = eqopt
    with pytest.raises(TypeError, match="`decay_rate_fn` must be a function"):
        untyped.ScaleByFactoredRMS(decay_rate_fn=0.8)
    with pytest.raises(TypeError, match="`min_dim_size_to_factor` must be an int"):
        untyped.Adafactor(0.1, 2.5)
    with pytest.raises(TypeError, match="`learning_rate` must be a number"):
        untyped.Adadelta(None)
    with pytest.raises(ValueError, match="`eps` must be above 0"):
        eqopt.Adadelta(eps=0.0)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name)
def test_rows_and_columns_live_where_the_axes_of_their_parameter_live(kind: AxisType):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    p = jax.device_put(values((8, 4), 0), NamedSharding(mesh, PartitionSpec("x", "y")))
    opt = eqopt.ScaleByFactoredRMS(min_dim_size_to_factor=2)
    # The largest axis is the first: `v_row` lacks it.
    row, col = (NamedSharding(mesh, PartitionSpec(x)) for x in ("y", "x"))
    states = [opt.init(p), eqx.filter_jit(opt.init)(p)]
    updates, new = opt.update(p / 2, states[0], p)
    for state in [*states, new]:
        assert state.v_row.sharding.is_equivalent_to(row, 1)
        assert state.v_col.sharding.is_equivalent_to(col, 1)
    assert updates.sharding.is_equivalent_to(p.sharding, 2)


def test_an_ensemble_is_its_members():
    """Axes are counted within a member."""
    params, gradients = values((5, 4, 3), 0), values((5, 4, 3), 1)
    opt = eqopt.Adafactor(0.1, 3, momentum=0.5)

    def two(params: Any, gradients: Any) -> Any:
        updates, state = opt.update(gradients, opt.init(params), params)
        params = eqopt.apply_updates(params, updates)
        return opt.update(gradients, state, params)

    together, state = jax.vmap(two)(params, gradients)
    assert state.states[0].v_row.shape == (5, 3)
    for i in range(5):
        alone, _ = two(params[i], gradients[i])
        assert_near(together[i], alone, 1e-13 if X64 else 1e-6)


def test_leaves_of_one_shape_share_a_trace(monkeypatch: pytest.MonkeyPatch):
    calls: list[Any] = []

    def counted(x: Any) -> Any:
        calls.append(x.shape)
        return safe_sqrt(x)

    monkeypatch.setattr(factored, "safe_sqrt", counted)
    # A shape that nothing else has, or it would have been traced already.
    params = [values((11, 7), seed) for seed in range(6)]
    opt = eqopt.ScaleByFactoredRMS(min_dim_size_to_factor=2)
    opt.update(params, opt.init(params))
    assert sorted(calls) == [(1,), (7,), (11,)]
