"""Gradients of a batch, computed a slice at a time."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import eqopt
from eqopt import micro_grad
from eqopt.options import MeanAccumulator, RunningMeanAccumulator, StackAccumulator
from tests.support.toolbox import assert_close, FLOAT, same, Tally, types, values, X64, Zoo

RTOL = 1e-12 if X64 else 1e-5
ACCUMULATORS = [MeanAccumulator(), RunningMeanAccumulator()]


def _mean_loss(model: Zoo, x: Any, y: Any) -> Any:
    predictions = jax.vmap(model)(x)
    return jnp.mean(jnp.square(predictions - y))


def _data(num: int = 12) -> tuple[Any, Any]:
    return values((num, 2), 1), values((num, 3), 2)


@pytest.mark.parametrize("accumulator", ACCUMULATORS, ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("size", [1, 4, 12])
def test_it_is_the_gradient_of_the_whole_batch(accumulator: Any, size: int):
    model, (x, y) = Zoo(), _data()
    sliced = micro_grad(_mean_loss, microbatch_size=size, accumulator=accumulator)
    loss, grads = eqx.filter_jit(sliced)(model, x, y)
    expected = eqopt.value_and_grad(_mean_loss)(model, x, y)
    assert types((loss, grads)) == types(expected)
    assert_close((loss, grads), expected, RTOL)


def test_a_sum_is_the_sum_of_the_slices():
    model, (x, y) = Zoo(), _data()

    def loss(model: Zoo, x: Any, y: Any) -> Any:
        return 36 * _mean_loss(model, x, y) * (x.shape[0] / 12)

    sliced = micro_grad(loss, microbatch_size=3, accumulator=eqopt.options.SumAccumulator())
    assert_close(sliced(model, x, y), eqopt.value_and_grad(loss)(model, x, y), RTOL)


def test_slices_are_strided_and_aux_is_stacked():
    def loss(w: Any, x: Any) -> Any:
        return w * jnp.sum(x), {"seen": x, "num": x.shape[0], "nothing": None}

    x = jnp.arange(6, dtype=FLOAT)
    sliced = micro_grad(loss, has_aux=True, microbatch_size=2)
    (value, aux), grad = sliced(jnp.asarray(2, FLOAT), x)
    np.testing.assert_array_equal(aux["seen"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(aux["num"], [2, 2, 2])
    assert aux["nothing"] is None
    assert float(value) == 10 and float(grad) == 5


def test_aux_is_accumulated_as_asked():
    def loss(w: Any, x: Any) -> Any:
        return w * jnp.sum(x), {"largest": jnp.max(x), "num": x.shape[0], "odd": x[0] % 2 == 1}

    def aux_of(accumulator: Any) -> Any:
        sliced = micro_grad(loss, 0, True, microbatch_size=2, aux_accumulator=accumulator)
        return sliced(jnp.asarray(2, FLOAT), jnp.arange(6, dtype=FLOAT))[0][1]

    total = aux_of(eqopt.options.SumAccumulator())
    assert (float(total["largest"]), int(total["num"]), int(total["odd"])) == (12, 6, 1)
    for accumulator in ACCUMULATORS:
        with pytest.raises(TypeError, match=r"`aux\['num'\]` is int\d+, which has no mean"):
            aux_of(accumulator)


class Largest(eqopt.writing.AbstractAccumulator):
    """Keeps the largest, and in the end says of how many."""

    def init(self, like: Any, num_slices: int) -> Any:
        return jax.tree.map(lambda x: jnp.full(x.shape, -np.inf, x.dtype), like)

    def update(self, total: Any, result: Any, index: Any) -> Any:
        return jax.tree.map(jnp.maximum, total, result)

    def finalize(self, total: Any, num_slices: int) -> Any:
        return {"largest": total, "of": num_slices}


def test_an_accumulator_may_be_written():
    def loss(w: Any, x: Any) -> Any:
        return w * jnp.sum(x), jnp.sum(x)

    sliced = micro_grad(loss, has_aux=True, microbatch_size=2, aux_accumulator=Largest())
    (_, aux), _ = sliced(jnp.asarray(2, FLOAT), jnp.arange(6, dtype=FLOAT))
    assert float(aux["largest"]) == 7 and aux["of"] == 3


def test_arguments_axes_and_keywords():
    model, (x, _) = Zoo(), _data()
    keys = jax.random.split(jax.random.key(0), 12)

    def loss(batch: Any, scale: Any, model: Zoo, keys: Any, *, shift: Any) -> Any:
        assert batch["name"] == "a batch"
        noise = jax.vmap(lambda key: jax.random.normal(key, (3,), FLOAT))(keys)
        return scale * _mean_loss(model, batch["x"].T, noise) + shift

    args = ({"x": x.T, "name": "a batch"}, jnp.asarray(2, FLOAT), model, keys)
    sliced = micro_grad(loss, (2, 1), microbatch_size=4, in_axes=(-1, None, None, 0))
    expected = eqopt.value_and_grad(loss, (2, 1))(*args, shift=jnp.asarray(1, FLOAT))
    assert_close(sliced(*args, shift=jnp.asarray(1, FLOAT)), expected, RTOL)


def test_the_loss_is_traced_once():
    tally, (x, y) = Tally(), _data()

    def loss(model: Zoo, x: Any, y: Any) -> Any:
        tally.num += 1
        return _mean_loss(model, x, y), x

    sliced = eqx.filter_jit(micro_grad(loss, has_aux=True, microbatch_size=3))
    for _ in range(2):
        sliced(Zoo(), x, y)
    assert tally.num == 1


@pytest.mark.default_flags
def test_it_needs_the_memory_of_one_slice():
    width, num = 64, 512
    mlp = eqx.nn.MLP(width, 1, width, 2, key=jax.random.key(0), dtype=FLOAT)
    params, rest = eqx.partition(mlp, eqx.is_array)

    def loss(params: Any, x: Any) -> Any:
        return jnp.mean(jnp.square(jax.vmap(eqx.combine(params, rest))(x)))

    def memory(function: Any) -> int:
        compiled = jax.jit(function).lower(params, jnp.ones((num, width), FLOAT)).compile()
        analysis = compiled.memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    bytes_of_gradient = sum(x.nbytes for x in jax.tree.leaves(params))
    activations = num * width * np.dtype(FLOAT).itemsize
    whole = memory(lambda params, x: jax.value_and_grad(loss)(params, x))
    sliced = memory(lambda p, x: micro_grad(loss, microbatch_size=num // 32)(p, x))
    # All of the batch: two layers' activations, kept for the way back. A slice: next to nothing,
    # the gradient that is accumulated, and one slice's own.
    assert whole > 2 * activations
    assert sliced < 3 * bytes_of_gradient + activations


def test_half_precision_is_added_up_in_float32():
    def loss(w: Any, x: Any) -> Any:
        return jnp.sum(w * x)

    # 1 + 256 times 2**-9 is 1.5; in bfloat16 each of these terms is lost.
    x = jnp.asarray([1.0] + [2.0**-9] * 256 + [0.0] * 255, jnp.bfloat16)
    sliced = micro_grad(loss, microbatch_size=1, accumulator=eqopt.options.SumAccumulator())
    _, grad = sliced(jnp.ones((), jnp.bfloat16), x)
    assert grad.dtype == jnp.bfloat16 and float(grad) == 1.5


def test_a_running_mean_does_not_overflow():
    def loss(w: Any, x: Any) -> Any:
        return jnp.sum(w * x)

    huge = float(np.finfo(FLOAT).max) / 2
    x = jnp.full(8, huge, FLOAT)
    for accumulator, finite in zip(ACCUMULATORS, (False, True), strict=True):
        sliced = micro_grad(loss, microbatch_size=1, accumulator=accumulator)
        _, grad = sliced(jnp.ones((), FLOAT), x)
        np.testing.assert_allclose(grad, huge if finite else np.inf, rtol=1e-6)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name)
def test_a_batch_that_is_divided_between_devices_stays_so(kind: AxisType):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    x = jax.device_put(values((16, 3), 0), sharding)
    seen = []

    def loss(w: Any, x: Any) -> Any:
        seen.append(jax.typeof(x).sharding.spec)
        return jnp.mean(jnp.square(jnp.sum(x * w[None], 1)))

    w = values((3,), 1)
    sliced = jax.jit(lambda w, x: micro_grad(loss, microbatch_size=8)(w, x))
    found = jax.device_get(sliced(w, x))
    assert_close(found, jax.device_get(jax.value_and_grad(loss)(w, jax.device_get(x))), RTOL)
    if kind is AxisType.Explicit:
        assert seen[0][0] == "data"


def test_it_serves_an_optimizer():
    model, (x, y) = Zoo(), _data()
    opt = eqopt.AdamW(1e-2)
    _, grads = micro_grad(_mean_loss, microbatch_size=4)(model, x, y)
    updates, _ = opt.update(grads, opt.init(model), model)
    _, whole = eqopt.value_and_grad(_mean_loss)(model, x, y)
    expected, _ = opt.update(whole, opt.init(model), model)
    assert_close(updates, expected, 1e-8 if X64 else 1e-4)
    assert not same(updates.weight, jnp.zeros_like(updates.weight))


def test_mistakes_are_named():
    model, (x, y) = Zoo(), _data()
    with pytest.raises(ValueError, match="12 examples, and `microbatch_size` is 5"):
        micro_grad(_mean_loss, microbatch_size=5)(model, x, y)
    with pytest.raises(ValueError, match="12 examples, and `microbatch_size` is 24"):
        micro_grad(_mean_loss, microbatch_size=24)(model, x, y)
    with pytest.raises(ValueError, match=r"`args\[2\]` is of 11 examples; `args\[1\]` is of 12"):
        micro_grad(_mean_loss, microbatch_size=4)(model, x, y[1:])
    with pytest.raises(ValueError, match=r"`in_axes` has 2 entries; 3 arguments"):
        micro_grad(_mean_loss, microbatch_size=4, in_axes=(None, 0))(model, x, y)
    with pytest.raises(ValueError, match="`microbatch_size` must be at least 1"):
        micro_grad(_mean_loss, microbatch_size=0)
    for name in ("accumulator", "aux_accumulator"):
        given: Any = {name: "mean"}
        with pytest.raises(TypeError, match=f"`{name}` must be an accumulator.*got 'mean'"):
            micro_grad(_mean_loss, microbatch_size=4, **given)
    with pytest.raises(TypeError, match=r"`aux\[1\]` is a str"):
        sliced = micro_grad(lambda w, x: (w * x[0], (1, "text")), 0, True, microbatch_size=1)
        sliced(jnp.asarray(2, FLOAT), jnp.ones(3, FLOAT))
    assert isinstance(StackAccumulator(), eqopt.writing.AbstractAccumulator)
