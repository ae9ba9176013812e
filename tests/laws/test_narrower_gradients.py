"""Gradients in a narrower dtype than their parameters are widened, everywhere."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqopt
from tests.laws.table import each, Row, ROWS
from tests.support.toolbox import assert_close, FLOAT, in_one_width, tree, types, values, X64

NARROWER = [jnp.float32] if X64 else [jnp.bfloat16, jnp.float16]
by_dtype = pytest.mark.parametrize("dtype", NARROWER, ids=lambda x: jnp.dtype(x).name)


def _cast(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(dtype), tree)


@in_one_width
@each({row.cls: row for row in ROWS}.values())
def test_every_class_takes_them(row: Row):
    params, opt = tree(), row.make()
    needs = row.needs(params)
    state = opt.init(params)
    narrow = _cast(tree(7), jnp.bfloat16)
    updates, new_state = opt.update(narrow, state, params, **needs)
    assert types(new_state) == types(state)
    expected = opt.update(_cast(narrow, FLOAT), state, params, **needs)
    assert_close((updates, new_state), expected)


@by_dtype
@pytest.mark.parametrize(
    "make",
    [
        lambda: eqopt.Chain(eqopt.ClipByGlobalNorm(1.0), eqopt.AdamW(0.1)),
        lambda: eqopt.MultiSteps(eqopt.Masked(eqopt.Adam(0.1), eqopt.ByPath("a")), 2),
        lambda: eqopt.Lookahead(
            eqopt.Partition({eqopt.ByPath("a"): eqopt.Lion(0.1), ...: SGD}), 2, 0.5
        ),
    ],
    ids=["chain", "masked in a window", "groups"],
)
def test_in_a_loop(make: Any, dtype: Any):
    params, opt = tree(), make()
    narrow = [_cast(tree(i), dtype) for i in range(4)]

    @eqx.filter_jit
    def run(gradients: Any) -> Any:
        def one(carry: Any, g: Any) -> Any:
            params, state = carry
            updates, state = opt.update(g, state, params)
            return (eqopt.apply_updates(params, updates), state), None

        stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *gradients)
        return jax.lax.scan(one, (params, opt.init(params)), stacked)[0]

    assert_close(run(narrow), run([_cast(g, FLOAT) for g in narrow]))


SGD = eqopt.SGD(0.1)


@by_dtype
def test_of_a_copy_of_the_model(dtype: Any):
    """Mixed precision as people write it: the forward pass, and so the gradients, in half."""
    model = eqx.nn.Linear(3, 2, dtype=FLOAT, key=jax.random.key(0))
    x = values((4, 3), 1)

    def loss(model: Any, x: Any) -> Any:
        return jnp.sum(jax.vmap(model)(x).astype(FLOAT) ** 2)

    half = eqopt.precision.cast_floating(model, dtype)
    grads = eqx.filter_grad(loss)(half, x.astype(dtype))
    assert grads.weight.dtype == dtype
    bundle = eqopt.Optimizer.create(SGD, model).apply_gradient(grads)
    by_hand = jax.tree.map(
        lambda p, g: p - FLOAT(0.1) * g.astype(FLOAT), *eqx.filter((model, grads), eqx.is_array)
    )
    assert_close(eqx.filter(bundle.target, eqx.is_array), by_hand, 1e-6)
    updates, _ = SGD.update(grads, SGD.init(model), model, grad=grads)
    assert updates.weight.dtype == FLOAT


def test_integers_and_complex_numbers_are_not():
    params = {"x": jnp.ones(2, jnp.complex64)}
    with pytest.raises(ValueError, match=r"`updates\['x'\]` has dtype float32"):
        SGD.update({"x": jnp.ones(2, jnp.float32)}, SGD.init(params), params)
    with pytest.raises(TypeError, match=r"`updates\['x'\]` is int8"):
        SGD.update({"x": jnp.ones(2, jnp.int8)}, SGD.init(tree()), {"x": jnp.ones(2)})


@pytest.mark.skipif(not X64, reason="float64 is wider than any parameter without it")
def test_wider_ones_are_refused():
    params = {"x": jnp.ones(2, jnp.float32)}
    with pytest.raises(ValueError, match="has dtype float64; the parameter has float32"):
        SGD.update({"x": jnp.ones(2, np.float64)}, SGD.init(params), params)
    narrow = {"x": jnp.ones(2, jnp.complex64)}
    wide = {"x": jnp.ones(2, jnp.complex128)}
    updates, _ = SGD.update(narrow, SGD.init(wide), wide)
    assert updates["x"].dtype == jnp.complex128
    with pytest.raises(ValueError, match="has dtype complex128; the parameter has complex64"):
        SGD.update(wide, SGD.init(narrow), narrow)
