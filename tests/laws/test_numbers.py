"""The laws of selection, precision, complex parameters and extra arguments."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqopt
from eqopt.states import EmptyState
from eqopt.writing import AbstractTransformation, Context
from tests.laws.table import every, every_optimizer, every_wrapper, Row
from tests.laws.table.row import Wrapper
from tests.support.toolbox import (
    assert_close,
    FLOAT,
    in_one_width,
    same,
    Tally,
    Traced,
    tree,
    values,
    X64,
)

bad_numbers = pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
halves = pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])


# 7. Select, never blend.


@in_one_width
@every
def test_what_is_masked_out_does_not_leak(row: Row):
    params, gradients = tree(), tree(7)
    opt = eqopt.Masked(row.make(), ~eqopt.ByPath("branch.b"))
    state = opt.init(params)
    needs = row.needs(params)

    def two_updates(b: Any) -> tuple[Any, Any]:
        g = {"a": gradients["a"], "branch": {"b": b, "w": gradients["branch"]["w"]}}
        _, once = opt.update(g, state, params, **needs)
        return opt.update(g, once, params, **needs)

    expected, expected_state = two_updates(jnp.zeros(3, FLOAT))
    bad = jnp.asarray([np.nan, np.inf, -np.inf], FLOAT)
    updates, new_state = two_updates(bad)
    assert same(updates["a"], expected["a"])
    assert same(updates["branch"]["w"], expected["branch"]["w"])
    assert same(updates["branch"]["b"], bad)
    # Not that it is finite: what is not known yet may be infinite, whatever the gradients were.
    assert same(new_state, expected_state)


@bad_numbers
def test_zero_is_zero(bad: float):
    updates, _ = eqopt.SetToZero().update(jnp.full(3, bad, FLOAT), EmptyState())
    assert same(updates, jnp.zeros(3, FLOAT))


@bad_numbers
def test_weights_that_do_not_decay_do_not_leak(bad: float):
    params = {"in": jnp.ones(2, FLOAT), "out": jnp.full(2, bad, FLOAT)}
    gradients = {"in": jnp.ones(2, FLOAT), "out": jnp.ones(2, FLOAT)}
    opt = eqopt.AddDecayedWeights(0.5, mask={"in": True, "out": False})
    updates, _ = opt.update(gradients, opt.init(params), params)
    assert same(updates, {"in": jnp.full(2, 1.5, FLOAT), "out": jnp.ones(2, FLOAT)})


@bad_numbers
@pytest.mark.parametrize("max_norm", [0.0, 1.0])
def test_updates_without_a_direction_clip_to_zero(bad: float, max_norm: float):
    opt = eqopt.ClipByGlobalNorm(max_norm)
    gradients = {"a": jnp.asarray([1.0, bad], FLOAT), "b": jnp.ones(2, FLOAT)}
    updates, _ = opt.update(gradients, opt.init(gradients))
    assert same(updates, jax.tree.map(jnp.zeros_like, gradients))


@pytest.mark.parametrize("max_norm", [0.0, 1.0])
def test_clipping_zero_gives_zero(max_norm: float):
    opt = eqopt.ClipByGlobalNorm(max_norm)
    updates, _ = opt.update(jnp.zeros(3, FLOAT), EmptyState())
    assert same(updates, jnp.zeros(3, FLOAT))


def test_infinity_is_clipped_to_the_limit():
    gradient = jnp.asarray([np.inf, -np.inf, 0.5], FLOAT)
    updates, _ = eqopt.Clip(1.0).update(gradient, EmptyState())
    np.testing.assert_array_equal(updates, [1.0, -1.0, 0.5])


# 8. Precision is kept.


def is_cache(x: Any) -> bool:
    return isinstance(x, eqopt.states.Cache)


@every
@halves
def test_memory_of_half_precision_is_float32(row: Row, dtype: Any):
    params = {"a": values((2, 5), 0, dtype), "b": values((7,), 1, dtype)}
    state = jax.eval_shape(row.make().init, params)
    # The first is there to show that one may ask for less. What rounding took away from a number
    # in half precision is one itself.
    asked = row.name in ("ScaleByAdam-mu_dtype", "Compensated")
    # A line search's cache holds a gradient and a point, not a memory that grows from many.
    moments = [x for x in jax.tree.leaves(state, is_leaf=is_cache) if not is_cache(x)]
    for x in moments:
        # In 64 bits some numbers are in float64, such as a value of the objective, or one for each
        # step in memory; nothing of a parameter's size is.
        number = x.dtype == FLOAT and x.ndim <= 1 and x.size < 7
        floating = jnp.issubdtype(x.dtype, jnp.floating)
        wide = x.dtype == jnp.float32 or number
        assert not floating or wide or (asked and x.dtype in (jnp.bfloat16, dtype))


@every_optimizer
@halves
def test_half_precision_is_rounded_once(row: Row, dtype: Any):
    # The same in float32 and rounded at the end: what two roundings would give differs in places.
    params, gradients, opt = tree(0, dtype), tree(7, dtype), row.make()
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), (params, gradients))
    updates, state = opt.update(gradients, opt.init(params), params, **row.needs(params))
    updates, _ = opt.update(gradients, state, params, **row.needs(params))
    exact, state = opt.update(wide[1], opt.init(wide[0]), wide[0], **row.needs(wide[0]))
    exact, _ = opt.update(wide[1], state, wide[0], **row.needs(wide[0]))
    ulp = float(jnp.finfo(dtype).eps)
    for x, y in zip(jax.tree.leaves(updates), jax.tree.leaves(exact), strict=True):
        assert x.dtype == dtype
        # Half an ulp of the rounding, and a little for float32's own.
        np.testing.assert_allclose(np.float32(x), y, rtol=0.51 * ulp, atol=1e-9)


def test_adam_in_bfloat16_reaches_its_average():
    """The average of a constant square stalls at 0.5 in bfloat16; in float32 it goes on."""
    params, ones = jnp.zeros(2, jnp.bfloat16), jnp.ones(2, jnp.bfloat16)
    opt = eqopt.ScaleByAdam()

    @eqx.filter_jit
    def run(state: Any) -> Any:
        return jax.lax.fori_loop(0, 2000, lambda _, s: opt.update(ones, s, params)[1], state)

    state = run(opt.init(params))
    assert state.nu.dtype == jnp.float32
    np.testing.assert_allclose(state.nu, 1 - 0.999**2000, rtol=1e-4)
    assert abs(1 - 0.999**2000 - 0.865) < 1e-3


@halves
def test_apply_rounds_once_from_float32(dtype: Any):
    # 1 - 0.6 ulp is nearer to 1 - ulp than to 1; of an update rounded first, it would be as well.
    one = jnp.ones((), dtype)
    ulp_below = float(jnp.finfo(dtype).eps) / 2
    update = jnp.asarray(-0.5002 * ulp_below, jnp.float32)
    new = eqopt.apply_updates(one, update)
    assert new.dtype == dtype
    assert float(new) == 1 - ulp_below
    assert float(eqopt.apply_updates(one, jnp.asarray(-0.4998 * ulp_below, jnp.float32))) == 1


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.complex64])
@pytest.mark.parametrize("wide", [np.float32, FLOAT])
def test_apply_never_changes_a_dtype(dtype: Any, wide: Any):
    params = {"x": values((3,), 0, dtype)}
    new = eqopt.apply_updates(params, {"x": values((3,), 1, wide)})
    assert new["x"].dtype == dtype


def test_the_norm_of_float16_does_not_overflow():
    gradients = {"a": jnp.full(100, 300.0, jnp.float16), "b": jnp.full(44, 300.0, jnp.float16)}
    norm = eqopt.global_norm(gradients)
    assert norm.dtype == jnp.float32
    np.testing.assert_allclose(norm, 3600.0, rtol=1e-6)
    opt = eqopt.ClipByGlobalNorm(1.0)
    updates, _ = opt.update(gradients, opt.init(gradients))
    np.testing.assert_allclose(np.float32(updates["a"]), 1 / 12, rtol=1e-3)


@pytest.mark.parametrize("decay", [0.9, 0.999, 0.999999])
@pytest.mark.parametrize("steps", [1, 2, 10, 1000])
def test_bias_corrections_do_not_cancel(decay: float, steps: int):
    """An average of ones, debiased, is one; `1 - decay**count` would put it 3e-2 off."""
    opt = eqopt.EMA(decay)
    state = eqopt.states.EMAState(
        jnp.asarray(steps - 1, jnp.int32),
        # In float64: what the average has collected is given, and only its correction is tested.
        jnp.full(2, -np.expm1((steps - 1) * np.log(np.float64(FLOAT(decay)))), FLOAT),
    )
    updates, _ = opt.update(jnp.ones(2, FLOAT), state)
    np.testing.assert_allclose(updates, 1.0, rtol=1e-12 if X64 else 2e-6 + 1e-7 / (1 - decay))


# 10. Complex parameters take the gradient exactly as `jax.grad` returns it.


def _distance(z: Any, c: Any) -> Any:
    parts = jax.tree.map(lambda a, b: jnp.sum(jnp.square(jnp.abs(a - b))), z, c)
    return sum(jax.tree.leaves(parts))


@every_optimizer
@pytest.mark.parametrize("dtype", [jnp.complex64] + [jnp.complex128] * X64)
def test_complex_parameters_descend(row: Row, dtype: Any):
    z, c = tree(0, dtype), tree(7, dtype)
    opt = row.make()
    before, gradients = jax.value_and_grad(_distance)(z, c)
    updates, _ = opt.update(gradients, opt.init(z), z, **row.needs(z))
    after = _distance(eqopt.apply_updates(z, updates), c)
    assert after < before
    # Against the gradient there would be no descent of any entry; with it, in all of them.
    uphill = eqopt.apply_updates(z, jax.tree.map(lambda u: -u, updates))
    assert _distance(uphill, c) > before


@pytest.mark.parametrize(
    "opt",
    [
        eqopt.SGD(0.1),
        eqopt.SGD(0.1, 0.9),
        eqopt.SGD(0.1, 0.9, nesterov=True),
        eqopt.Chain(eqopt.AddDecayedWeights(0.1), eqopt.EMA(0.5), eqopt.SGD(0.1)),
        eqopt.Chain(eqopt.ClipByGlobalNorm(0.5), eqopt.SGD(0.1)),
        eqopt.Chain(eqopt.Clip(0.5), eqopt.SGD(0.1)),
    ],
    ids=["SGD", "momentum", "nesterov", "decay", "clip-norm", "clip"],
)
def test_the_imaginary_part_is_a_second_real_parameter(opt: AbstractTransformation[Any]):
    dtype = jnp.complex128 if X64 else jnp.complex64
    z, c = values((3,), 0, dtype), values((3,), 1, dtype)
    pair = {"re": jnp.real(z), "im": jnp.imag(z)}

    def loss(z: Any) -> Any:
        # Not symmetric in the real and the imaginary part, nor between the entries.
        w = z * z - c
        return jnp.sum(jnp.real(w) ** 2 + 2 * jnp.imag(w) ** 2)

    def split_loss(p: Any) -> Any:
        return loss(jax.lax.complex(p["re"], p["im"]))

    state, split_state = opt.init(z), opt.init(pair)
    for _ in range(3):
        updates, state = opt.update(jax.grad(loss)(z), state, z)
        z = eqopt.apply_updates(z, updates)
        split, split_state = opt.update(jax.grad(split_loss)(pair), split_state, pair)
        pair = eqopt.apply_updates(pair, split)
    assert_close(z, jax.lax.complex(pair["re"], pair["im"]), 1e-13 if X64 else 1e-5)


def test_a_complex_moment_is_measured_by_its_modulus():
    dtype = jnp.complex128 if X64 else jnp.complex64
    z, g = values((3,), 0, dtype), values((3,), 1, dtype)
    opt = eqopt.ScaleByAdam()
    updates, state = opt.update(g, opt.init(z), z)
    # Debiased, the averages of one gradient are the gradient and its squared modulus.
    assert_close(updates, jnp.conj(g) / jnp.abs(g).astype(dtype), 1e-7 if X64 else 1e-5)
    assert_close(
        state.nu, (1 - jnp.asarray(0.999, FLOAT)) * jnp.abs(g) ** 2, 1e-12 if X64 else 1e-5
    )


# 11. Every extra argument reaches every link.


class Needy(AbstractTransformation[EmptyState]):
    """Cannot do without anything."""

    def init_state(self, params: Any, context: Context) -> EmptyState:
        return EmptyState()

    def transform(
        self, updates: Any, state: EmptyState, params: Any, context: Context
    ) -> tuple[Any, EmptyState]:
        value, grad = context.require("value", self), context.require("grad", self)
        value_fn, key = context.require("value_fn", self), context.require("key", self)
        probe = context.require("probe", self)
        size = eqopt.global_norm(grad) + value_fn(params)[0] + value + probe
        noise = jax.random.normal(key, (), FLOAT)
        return jax.tree.map(lambda u: u * (size + noise), updates), state


def _everything(params: Any) -> dict[str, Any]:
    return {
        "value": jnp.asarray(1.5, FLOAT),
        "grad": tree(7),
        "value_fn": lambda p: sum(jnp.sum(x) for x in jax.tree.leaves(p)),
        "key": jax.random.key(3),
        "probe": jnp.asarray(0.25, FLOAT),
        "unwanted": jnp.ones(2, FLOAT),
    }


@in_one_width
@every_wrapper
def test_extra_arguments_reach_the_inside(wrapper: Wrapper):
    params, gradients, tally = tree(), tree(7), Tally()
    opt = eqopt.Masked(wrapper.wrap(eqopt.Chain(Needy(), Traced(tally))), eqopt.ByPath("**"))
    given = _everything(params)
    updates, _ = opt.update(gradients, opt.init(params), params, **given)
    (context,) = tally.seen
    assert set(context.extra) == {"probe", "unwanted"}
    assert None not in (context.value, context.grad, context.value_fn, context.key)

    factor = (
        eqopt.global_norm(given["grad"])
        + given["value_fn"](params)
        + given["value"]
        + given["probe"]
        + jax.random.normal(given["key"], (), FLOAT)
    )
    alone = wrapper.wrap(eqopt.Stateless(lambda u, _: jax.tree.map(lambda x: x * factor, u)))
    expected, _ = alone.update(gradients, alone.init(params), params)
    assert_close(updates, expected, 1e-12 if X64 else 1e-5)


@in_one_width
@every_wrapper
@pytest.mark.parametrize("missing", ["value", "grad", "value_fn", "key", "probe"])
def test_a_missing_argument_is_named(wrapper: Wrapper, missing: str):
    params = tree()
    opt = wrapper.wrap(Needy())
    given = {name: x for name, x in _everything(params).items() if name != missing}
    with pytest.raises(ValueError, match=f"`Needy` needs `{missing}`"):
        opt.update(tree(7), opt.init(params), params, **given)


@in_one_width
@every
def test_arguments_that_nobody_wants_are_no_harm(row: Row):
    params, gradients, opt = tree(), tree(7), row.make()
    state, needs = opt.init(params), row.needs(params)
    expected = opt.update(gradients, state, params, **needs)
    given = {**_everything(params), **needs}
    assert_close(opt.update(gradients, state, params, **given), expected)


def test_a_step_gives_all_of_it_to_the_links():
    tally = Tally()
    opt = eqopt.Chain(Needy(), Traced(tally), eqopt.Scale(0.0))
    params = tree()

    def loss(p: Any, scale: Any, *, key: Any) -> Any:
        noise = jax.random.normal(key, (), FLOAT)
        return scale * (noise + sum(jnp.sum(x) for x in jax.tree.leaves(p)))

    key = jax.random.key(3)
    new, _, evaluation = opt.step(loss, params, opt.init(params), 2.0, key=key, probe=1.0)
    assert same(new, params)
    np.testing.assert_allclose(evaluation.value, loss(params, 2.0, key=key), rtol=1e-6)
    assert set(tally.seen[0].extra) == {"probe"}
