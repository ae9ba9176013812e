"""Gradients of single examples: how they are made, clipped and added up."""

import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqopt
from tests.support.per_example import a_model, clipped_sum, examples, Model, square_loss
from tests.support.toolbox import assert_close, FLOAT, same, values, X64
from tests.support.trees import assert_near

RTOL = 1e-12 if X64 else 5e-6


# Gradients


def test_each_gradient_is_that_of_one_example():
    model, x, y = a_model(), values((4, 3), 0), values((4,), 1)
    losses, grads = eqx.filter_jit(eqopt.per_example_value_and_grad(square_loss))(model, x, y)
    for i in range(4):
        loss, grad = eqx.filter_value_and_grad(square_loss)(model, x[i], y[i])
        assert_close(losses[i], loss, RTOL)
        assert_close(jax.tree.map(lambda g, i=i: g[i], grads), grad, RTOL)
        assert jax.tree.structure(grads) == jax.tree.structure(grad)


def test_aux_axes_and_keywords_are_mapped_as_asked():
    def loss(scale: Any, model: Model, x: Any, *, shift: Any) -> Any:
        value = scale * model(x) + shift
        return value, {"value": value, "name": model.name}

    model, x = a_model(), values((3, 4), 0)
    fn = eqopt.per_example_value_and_grad(loss, 1, has_aux=True, in_axes=(None, None, -1))
    (losses, aux), grads = fn(jnp.asarray(2, FLOAT), model, x, shift=jnp.asarray(1, FLOAT))
    expected = jax.vmap(lambda column: 2 * model(column) + 1, in_axes=1)(x)
    assert_close(losses, expected, RTOL)
    assert_close(aux["value"], expected, RTOL)
    assert aux["name"] == "a model"
    assert grads.mlp.layers[0].weight.shape == (4, 4, 3)
    several = eqopt.per_example_value_and_grad(loss, (0, 1), has_aux=True, in_axes=(None, None, 1))
    _, (slopes, same_grads) = several(jnp.asarray(2, FLOAT), model, x, shift=jnp.asarray(1, FLOAT))
    assert_close(slopes, jax.vmap(model, in_axes=1)(x), RTOL)
    assert_close(same_grads, grads, RTOL)


@pytest.mark.parametrize(
    ("in_axes", "shapes", "words"),
    [
        (0, ((4, 3), (5,)), ["`args[2]` is of 5 examples", "`args[1]` is of 4"]),
        (0, ((4, 3), ()), ["`args[2]` has shape ()", "`in_axes`"]),
        ((None, 0), ((4, 3), (4,)), ["`in_axes` has 2 entries", "3 arguments"]),
        ((0, 0, 0), ((4, 3), (4,)), ["argument 0", "differentiated"]),
        ((None, None, None), ((4, 3), (4,)), ["no batch"]),
    ],
)
def test_batches_that_do_not_fit_are_named(in_axes: Any, shapes: Any, words: list[str]):
    x, y = (jnp.ones(shape, FLOAT) for shape in shapes)
    with pytest.raises(ValueError, match=".*".join(map(re.escape, words))):
        eqopt.per_example_value_and_grad(square_loss, in_axes=in_axes)(a_model(), x, y)


# Clipping


@pytest.mark.parametrize("limit", [0.0, 0.3, 4.0, np.inf])
def test_clipping_by_the_global_norm(limit: float):
    _, grads = examples(real=False)
    total, num = jax.jit(eqopt.options.per_example_global_norm_clip)(grads, limit)
    if limit:
        assert_near(total, clipped_sum(grads, limit), RTOL)
    with jax.numpy_dtype_promotion("standard"):
        theirs, their_num = jax.jit(optax.per_example_global_norm_clip)(grads, FLOAT(limit))
    assert_close(total, theirs, RTOL * 10)
    assert int(num) == int(their_num)
    assert num.dtype == np.int32


@pytest.mark.parametrize("uniform", [True, False])
def test_clipping_by_the_norms_of_layers(uniform: bool):
    _, grads = examples(real=False)
    ours = jax.jit(eqopt.options.per_example_layer_norm_clip, static_argnums=2)
    total, num = ours(grads, 3.0, uniform)
    with jax.numpy_dtype_promotion("standard"):
        other = jax.jit(optax.per_example_layer_norm_clip, static_argnums=2)
        theirs, their_num = other(grads, FLOAT(3), uniform)
    assert_near(total, theirs, RTOL)
    assert same(num, jax.tree.map(lambda x: x.astype(np.int32), their_num))
    assert {int(x) for x in jax.tree.leaves(num)} - {0, 5} != set()


def test_an_example_that_is_not_finite_is_left_out():
    _, grads = examples()
    bad = jax.tree.map(lambda x: x, grads)
    bad["pair"] = (bad["pair"][0].at[1].set(np.nan), bad["pair"][1].at[3].set(np.inf))
    rest = jax.tree.map(lambda x: x[np.asarray([0, 2, 4])], grads)
    total, num = eqopt.options.per_example_global_norm_clip(bad, 0.3)
    assert_near(total, clipped_sum(rest, 0.3), RTOL)
    assert int(num) == 2 + int(eqopt.options.per_example_global_norm_clip(rest, 0.3)[1])


def test_half_precision_is_added_up_in_float32():
    # The sum, 3000, would stay at 2048 in float16; the squares of 300 are beyond its range.
    ones = {"w": jnp.ones((3000, 1), jnp.float16)}
    total, _ = eqopt.options.per_example_global_norm_clip(ones, 10.0)
    assert total["w"].dtype == jnp.float32 and float(total["w"][0]) == 3000
    big = {"w": jnp.full((2, 4), 300.0, jnp.float16)}
    total, num = eqopt.options.per_example_global_norm_clip(big, 1.0)
    assert int(num) == 2
    np.testing.assert_allclose(total["w"], 1.0, rtol=1e-6)


@pytest.mark.parametrize("clip", ["global", "layer"])
def test_gradients_that_cannot_be_clipped_are_named(clip: str):
    function = {
        "global": eqopt.options.per_example_global_norm_clip,
        "layer": eqopt.options.per_example_layer_norm_clip,
    }[clip]
    ones = jnp.ones((2, 3), FLOAT)
    with pytest.raises(
        ValueError, match=r"`grads\['b'\]` is of 3 examples; `grads\['a'\]` is of 2"
    ):
        function({"a": ones, "b": ones.T}, 1.0)
    with pytest.raises(ValueError, match=r"`grads\['b'\]` has shape \(\)"):
        function({"a": ones, "b": ones[0, 0]}, 1.0)
    with pytest.raises(TypeError, match=r"`grads\['b'\]` is int32\[2\]"):
        function({"a": ones, "b": jnp.ones(2, np.int32)}, 1.0)
    with pytest.raises(ValueError, match="l2_norm_clip` must be at least 0"):
        function({"a": ones}, -1.0)
    total, _ = function({"a": ones, "b": None}, 1.0)
    assert total["b"] is None
