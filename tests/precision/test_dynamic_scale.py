"""Loss scaling, against flax, and on steps that overflow."""

import json
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import eqopt
from tests.support.toolbox import FLOAT, same, Tally, types, Zoo

# What `DynamicScale` of flax 0.5.3 (`dynscale_053`) and of flax 0.12.8 (`dynscale_today`) did: the
# numbers after each of 20 steps. `meta` says of what.
GOLDEN = np.load(Path(__file__).parents[1] / "data" / "dynamic_scale.npz", allow_pickle=False)
CASES = sorted({name.rsplit("/", 1)[0] for name in GOLDEN.files})


def _golden(case: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    found = {x.rsplit("/", 1)[1]: GOLDEN[x] for x in GOLDEN.files if x.startswith(case + "/")}
    return json.loads(str(found.pop("meta"))), found


def _half(p: Any, m: Any) -> Any:
    return p.astype(jnp.float16) ** 2


def _scripted(p: Any, m: Any) -> Any:
    return jnp.sum(p * m)


@pytest.mark.parametrize("case", CASES)
def test_flax(case: str):
    meta, golden = _golden(case)
    loss_fn = _half if "fp16" in case else _scripted
    scale = eqopt.precision.DynamicScale(**meta["hyper"])
    p = jnp.asarray(meta["p0"], jnp.float32)

    @jax.jit
    def step(scale: eqopt.precision.DynamicScale, p: Any, m: Any) -> Any:
        scale, finite, loss, grad = scale.value_and_grad(loss_fn)(p, m)
        return scale, finite, loss, grad, jnp.where(finite, p - np.float32(0.01) * grad, p)

    for t in range(20):
        m = jnp.asarray(golden["m"][t] if "m" in golden else 0.0, jnp.float32)
        known = float(scale.scale)
        scale, finite, loss, grad, p = step(scale, p, m)
        assert bool(finite) == golden["fin"][t]
        assert int(scale.fin_steps) == golden["fin_steps"][t]
        assert (scale.scale.dtype, scale.fin_steps.dtype) == (jnp.float32, jnp.int32)
        assert float(scale.scale) == np.float32(golden["scale"][t])
        np.testing.assert_allclose(np.asarray(grad), golden["grad"][t], rtol=5e-6)
        np.testing.assert_allclose(np.asarray(p), golden["p"][t], rtol=5e-6)
        if "053" in case or known <= 65504 or loss.dtype != jnp.float16 or t == 0:
            np.testing.assert_allclose(np.asarray(loss), golden["loss"][t], rtol=5e-6)
        else:
            # After its first step the scale of today's flax is of another type, by which JAX
            # promotes a float16 loss. Here the loss keeps its dtype, as in flax 0.5.3.
            assert np.isnan(np.asarray(loss)) and np.isfinite(golden["loss"][t])


def test_the_example_of_flax():
    scale = eqopt.precision.DynamicScale(growth_interval=10)
    p = jnp.zeros((), jnp.float32) + 1
    tally = Tally()

    def loss_fn(p: Any) -> Any:
        tally.num += 1
        return jnp.asarray(p, jnp.float16) ** 2

    @eqx.filter_jit
    def step(scale: eqopt.precision.DynamicScale, p: Any) -> Any:
        scale, finite, _, grad = scale.value_and_grad(loss_fn)(p)
        return scale, jnp.where(finite, p - 0.01 * grad, p), finite

    grown, shrunk, skipped = 0, 0, 0
    expected = 1.0
    for _ in range(100):
        before = float(scale.scale)
        scale, p, finite = step(scale, p)
        grown += float(scale.scale) == 2 * before
        shrunk += float(scale.scale) == before / 2
        skipped += not finite
        expected *= 0.98 if finite else 1.0
    assert tally.num == 1
    assert shrunk == skipped > 0 < grown
    # The gradient is that at the parameter in float16.
    np.testing.assert_allclose(float(p), expected, rtol=2e-3)
    # It hovers at the largest scale for which float16 does not overflow: `2 p scale < 65520`.
    assert 65504 / 8 < 2 * float(p) * float(scale.scale) < 2 * 65520


def test_it_grows_after_more_than_the_interval_and_only_if_finite():
    scale = eqopt.precision.DynamicScale(scale=4.0, growth_interval=2)
    good, bad = jnp.asarray(True), jnp.asarray(False)
    seen = []
    for finite in (good, good, good, good, good, bad, good, good, bad):
        scale = scale.after(finite)
        seen.append((float(scale.scale), int(scale.fin_steps)))
    # The last is bad where it was due to grow.
    expected = [(4, 1), (4, 2), (8, 0), (8, 1), (8, 2), (4, 0), (4, 1), (4, 2), (2, 0)]
    assert seen == expected


def test_the_scale_has_limits():
    largest = float(np.finfo(np.float32).max)
    scale = eqopt.precision.DynamicScale(scale=3e38, growth_interval=0).after(jnp.asarray(True))
    assert float(scale.scale) == largest
    scale = eqopt.precision.DynamicScale(scale=4.0, minimum_scale=3.0).after(jnp.asarray(False))
    assert float(scale.scale) == 3.0
    tiny = float(np.finfo(np.float32).tiny)
    assert float(
        eqopt.precision.DynamicScale(scale=tiny).after(jnp.asarray(False)).scale
    ) == np.float32(tiny)


def test_a_shorter_interval_on_the_way():
    scale = eqopt.precision.DynamicScale(scale=2.0, fin_steps=7)
    scale = eqx.tree_at(lambda s: s.growth_interval, scale, 3).after(jnp.asarray(True))
    assert (float(scale.scale), int(scale.fin_steps)) == (4.0, 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("growth_factor", 0.5),
        ("backoff_factor", 1.5),
        ("backoff_factor", 0.0),
        ("growth_interval", -1),
        ("scale", 0.0),
        ("scale", float("inf")),
        ("minimum_scale", -1.0),
    ],
)
def test_bad_numbers_are_named(name: str, value: Any):
    with pytest.raises(ValueError, match=f"`{name}`"):
        eqopt.precision.DynamicScale(**{name: value})


def _zoo_loss(model: Zoo, x: Any) -> Any:
    return jnp.sum(jnp.square(model(x)))


def test_whole_models_and_aux():
    model, x = Zoo(), jnp.ones(2, FLOAT)
    value, expected = eqx.filter_value_and_grad(_zoo_loss)(model, x)
    scale = eqopt.precision.DynamicScale(scale=1024.0)

    def aux_fn(model: Zoo, x: Any) -> Any:
        return _zoo_loss(model, x), "aux"

    new, finite, (loss, aux), grads = scale.value_and_grad(aux_fn, has_aux=True)(model, x)
    assert finite and aux == "aux" and int(new.fin_steps) == 1
    np.testing.assert_allclose(np.asarray(loss), np.asarray(value), rtol=1e-6)
    assert jax.tree.structure(grads) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5)

    both = scale.value_and_grad(lambda a, b, c: jnp.sum(a * b * c), (0, -1))
    _, _, _, (da, dc) = both(jnp.full(2, 2.0), jnp.full(2, 3.0), c := jnp.full(2, 5.0))
    np.testing.assert_allclose(np.asarray(da), 15.0)
    np.testing.assert_allclose(np.asarray(dc), 6.0)
    assert c.dtype == dc.dtype


def test_gradients_are_wide():
    scale = eqopt.precision.DynamicScale(scale=2.0**14)
    # The gradient, 2e-9, is far below what float16 can hold.
    small = jnp.asarray(1e-4, jnp.float16)
    result = scale.value_and_grad(lambda p: p * small * small * jnp.asarray(0.2, jnp.float16))
    _, finite, _, grad = result(jnp.asarray(1.0, jnp.float16))
    assert finite and grad.dtype == jnp.float32
    assert 1e-9 < float(grad) < 3e-9
    p = jnp.asarray(1 + 2j, jnp.complex64)
    grad = scale.value_and_grad(lambda p: jnp.square(jnp.abs(p)))(p).grad
    np.testing.assert_allclose(np.asarray(grad), 2 - 4j, rtol=1e-6)


def test_what_the_objective_must_return():
    scale = eqopt.precision.DynamicScale()
    with pytest.raises(TypeError, match="pair"):
        scale.value_and_grad(lambda p: p, has_aux=True)(jnp.ones(()))
    with pytest.raises(TypeError, match="one real floating-point number"):
        scale.value_and_grad(lambda p: p)(jnp.ones(2))
    with pytest.raises(TypeError, match="has_aux=True"):
        scale.value_and_grad(lambda p: (p, 1))(jnp.ones(()))


def test_the_mean_over_an_axis():
    scale = eqopt.precision.DynamicScale(scale=8.0)
    xs = jnp.asarray([1.0, 2.0, 6.0])

    def each(x: Any) -> Any:
        fn = scale.value_and_grad(lambda p, x: p * x, axis_name="batch")
        return fn(jnp.ones(()), x)

    new, finite, values, grads = jax.vmap(each, axis_name="batch")(xs)
    np.testing.assert_allclose(np.asarray(grads), 3.0)
    np.testing.assert_allclose(np.asarray(values), np.asarray(xs))
    assert finite.all()
    # One infinity is everybody's.
    new, finite, _, _ = jax.vmap(each, axis_name="batch")(xs.at[1].set(jnp.inf))
    assert not finite.any()
    np.testing.assert_array_equal(np.asarray(new.scale), 4.0)


def test_the_mean_over_devices():
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec
    start, opt = jnp.ones(1, FLOAT), eqopt.SGD(0.5)
    scale, state = eqopt.precision.DynamicScale(scale=8.0), opt.init(start)

    def loss_fn(p: Any, x: Any) -> Any:
        return jnp.sum(p * x)

    def by_hand(p: Any, x: Any) -> Any:
        result = scale.value_and_grad(loss_fn, axis_name="d")(p, x)
        return result.finite, result.grad

    def at_once(p: Any, x: Any) -> Any:
        result = scale.scaled_step(opt, loss_fn, p, state, x, axis_name="d")
        return result.finite, result.model

    xs = jnp.asarray([1.0, 2.0, 3.0, 10.0], FLOAT)
    for last, mean in ((10.0, 4.0), (np.inf, None)):
        for fn, after in ((by_hand, mean), (at_once, 1.0 if mean is None else 1 - 0.5 * mean)):
            mapped = jax.shard_map(
                fn, mesh=mesh, in_specs=(spec(), spec("d")), out_specs=(spec(), spec())
            )
            finite, out = jax.jit(mapped)(start, xs.at[3].set(last))
            assert bool(finite) is (mean is not None)
            if after is not None:
                np.testing.assert_allclose(np.asarray(out), after)


# The whole step.


def _loss(model: Any, x: Any, tally: Any = None) -> Any:
    if tally is not None:
        tally.num += 1
    return jnp.sum(jnp.square(model["w"] * x))


def test_scaled_step_is_a_step():
    # Powers of two scale without rounding.
    model, x = {"w": jnp.asarray([1.0, -2.0, 0.5], FLOAT), "fn": jnp.tanh}, jnp.ones((), FLOAT)
    opt, scale = eqopt.AdamW(0.1), eqopt.precision.DynamicScale(scale=256.0, growth_interval=1)
    state = opt.init(model)
    other, other_state = model, state
    for _ in range(4):
        scale, finite, model, state, evaluation = scale.scaled_step(opt, _loss, model, state, x)
        other, other_state, expected = opt.step(_loss, other, other_state, x)
        assert finite and model["fn"] is jnp.tanh
        assert same(evaluation, expected)
    assert float(scale.scale) == 1024.0
    np.testing.assert_allclose(np.asarray(model["w"]), np.asarray(other["w"]), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_step_that_overflows_changes_nothing_but_the_scale(bad: float):
    model = {"w": jnp.asarray([1.0, -2.0, 0.5], jnp.float16)}
    opt = eqopt.precision.MasterWeights(eqopt.AdamW(0.1))
    scale, good = eqopt.precision.DynamicScale(scale=256.0), jnp.ones((), jnp.float16)
    scale, _, model, state, _ = scale.scaled_step(opt, _loss, model, opt.init(model), good)
    result = scale.scaled_step(opt, _loss, model, state, jnp.asarray(bad, jnp.float16))
    assert not result.finite
    assert same(result.model, model) and same(result.state, state)
    assert float(result.dynamic_scale.scale) == 128.0
    assert int(result.dynamic_scale.fin_steps) == 0
    # And the next one is a step as if that one had not been.
    after = result.dynamic_scale.scaled_step(opt, _loss, model, state, good)
    straight = scale.scaled_step(opt, _loss, model, state, good)
    assert after.finite
    assert same(after.model, straight.model) and same(after.state, straight.state)


def test_only_the_scaled_loss_overflows():
    model = {"w": jnp.full(1, 8.0, jnp.float16)}
    opt, x = eqopt.SGD(0.25), jnp.ones((), jnp.float16)
    scale, finite, new, _, evaluation = eqopt.precision.DynamicScale().scaled_step(
        opt, _loss, model, opt.init(model), x
    )
    assert not finite and float(evaluation.value) == 64.0
    assert same(new, model) and float(scale.scale) == 32768.0


def test_one_program_for_every_scale():
    tally = Tally()
    model, x = {"w": jnp.asarray([1.0, -2.0], FLOAT)}, jnp.ones((), FLOAT)
    opt = eqopt.Adam(0.1)
    state, scale = opt.init(model), eqopt.precision.DynamicScale(growth_interval=0)

    def loss_fn(model: Any, x: Any) -> Any:
        return _loss(model, x, tally)

    scales = []
    for factor in (1.0, 1.0, np.inf, np.nan, -np.inf, 1.0):
        scale, _, model, state, _ = scale.scaled_step(
            opt, loss_fn, model, state, x * jnp.asarray(factor, FLOAT)
        )
        scales.append(float(scale.scale))
    assert len(set(scales)) > 3
    other = eqopt.precision.DynamicScale(3.0, 0.25, 7, 3, 100.0)
    other.scaled_step(opt, loss_fn, model, state, x)
    assert tally.num == 1


def test_through_scan_and_vmap():
    model = {"w": jnp.asarray([1.0, -2.0], jnp.float16)}
    opt = eqopt.precision.MasterWeights(eqopt.Adam(0.125))
    start = eqopt.precision.DynamicScale(scale=1024.0), model, opt.init(model)
    xs = jnp.asarray([1.0, np.inf, 1.0, 2.0], jnp.float16)

    def step(carry: Any, x: Any) -> Any:
        scale, model, state = carry
        out = scale.scaled_step(opt, _loss, model, state, x)
        return (out.dynamic_scale, out.model, out.state), out.finite

    scan = jax.jit(lambda carry, xs: lax.scan(step, carry, xs))
    end, finite = scan(start, xs)
    carry, one_by_one = start, []
    for x in xs:
        carry, fin = step(carry, x)
        one_by_one.append(bool(fin))
    assert finite.tolist() == one_by_one
    assert same(end[1], carry[1]) and same(end[0].scale, carry[0].scale)
    # Two of them at once; one overflows.
    lanes = jax.vmap(lambda x: step(start, x)[0][1]["w"])(jnp.asarray([1e-3, np.inf], jnp.float16))
    assert same(lanes[1], model["w"])
    assert not same(lanes[0], model["w"])


def test_a_state_of_fixed_types():
    scale = jax.tree.map(jnp.asarray, eqopt.precision.DynamicScale())
    assert types(eqx.filter_jit(lambda s: s.after(jnp.asarray(True)))(scale)) == types(scale)


def test_step_takes_aux_and_key():
    model, opt = (
        {"w": jnp.ones(2, jnp.bfloat16)},
        eqopt.precision.StochasticRounding(eqopt.SGD(0.1)),
    )
    key = jax.random.key(0)

    def loss_fn(model: Any, x: Any, key: Any) -> Any:
        noise = jax.random.normal(key, (2,), jnp.bfloat16)
        return jnp.sum(model["w"] * (x + noise)), {"noise": noise}

    out = eqopt.precision.DynamicScale(scale=2.0).scaled_step(
        opt, loss_fn, model, opt.init(model), jnp.ones(2, jnp.bfloat16), has_aux=True, key=key
    )
    assert out.finite and same(
        out.evaluation.aux["noise"], jax.random.normal(key, (2,), jnp.bfloat16)
    )
    wrong: Any = eqopt.states.EmptyState()
    with pytest.raises(TypeError, match=r"`state` is a `EmptyState`"):
        eqopt.precision.DynamicScale().scaled_step(opt, loss_fn, model, wrong, 1.0, key=key)


def test_it_prints_its_numbers():
    assert "scale=65536.0" in repr(eqopt.precision.DynamicScale())
