"""Rounding once to half precision, and models cast to it."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqopt
from tests.support.toolbox import same, values, Zoo


def test_applying_keeps_float16_below_its_normal_numbers():
    x = jnp.asarray([0.0, 1e-5, 3e-6, -6e-5, 1e-7], jnp.float16)
    u = jnp.asarray([1e-6, 0.0, 2e-6, 0.0, 5e-8], jnp.float32)
    expected = (np.asarray(x).astype(np.float32) + np.asarray(u)).astype(np.float16)
    assert (expected != 0).all()
    np.testing.assert_array_equal(np.asarray(eqopt.apply_updates(x, u)), expected)


def test_rounding_is_numpys():
    rng = np.random.default_rng(0)
    x = rng.normal(size=20_000) * 10.0 ** rng.integers(-9, 4, 20_000)
    edges = [0.0, 65519.0, 65519.99, 65520.0, 2.0**-14, 2.0**-14 * (1 - 2.0**-11), -(2.0**-25)]
    x = np.append(x, edges).astype(np.float32)
    for dtype in (jnp.float16, jnp.bfloat16):
        with np.errstate(over="ignore"):
            expected = x.astype(dtype)
        zero = jnp.zeros(x.shape, dtype)
        np.testing.assert_array_equal(np.asarray(eqopt.apply_updates(zero, x)), expected)


def test_cast_floating():
    model = {"zoo": Zoo(jnp.float32), "complex": values((2,), 0, jnp.complex64), "np": np.ones(2)}
    half = eqopt.precision.cast_floating(model, jnp.bfloat16)
    assert type(half["zoo"]) is Zoo
    for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(half), strict=True):
        if eqx.is_array_like(a) and hasattr(a, "dtype") and jnp.issubdtype(a.dtype, jnp.floating):
            assert b.dtype == jnp.bfloat16
        else:
            assert a is b
    assert half["np"].dtype == jnp.bfloat16

    some = eqopt.precision.cast_floating(Zoo(jnp.float32), "float16", eqopt.ByNdim(2))
    assert (some.weight.dtype, some.bias.dtype) == (jnp.float16, jnp.float32)
    linear = eqopt.precision.cast_floating(model["zoo"], jnp.float16, eqopt.ByPath("layer.**"))
    assert (linear.weight.dtype, linear.layer.weight.dtype) == (jnp.float32, jnp.float16)


def test_cast_floating_within_a_loss():
    def loss_fn(model: Any) -> Any:
        return jnp.sum(eqopt.precision.cast_floating(model, jnp.float16)["w"] ** 2)

    grads = jax.grad(loss_fn)({"w": jnp.asarray([1.0, 2.0], jnp.float32)})
    assert same(grads, {"w": jnp.asarray([2.0, 4.0], jnp.float32)})


@pytest.mark.parametrize("dtype", [jnp.complex64, jnp.int32, None, "half a float"])
def test_cast_floating_to_what_is_no_floating_dtype(dtype: Any):
    with pytest.raises(TypeError, match="`dtype` must be a"):
        eqopt.precision.cast_floating(jnp.ones(2), dtype)
