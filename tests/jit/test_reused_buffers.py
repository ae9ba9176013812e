"""NumPy memory is its owner's: what is written to it after a call changes nothing.

JAX runs programs after the call that starts them has returned, and reads the very memory of arrays
that begin at a multiple of 64 bytes.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqopt
from eqopt._base.converters import float_dtype

FLOAT = float_dtype()
SIZES = [2, 1_000_000]


def buffer(value: float, size: int = 2, dtype: Any = FLOAT) -> np.ndarray:
    """An array whose memory JAX would read where it is."""
    memory = np.zeros(size * np.dtype(dtype).itemsize + 64, np.uint8)
    start = -memory.ctypes.data % 64
    array = memory[start : start + size * np.dtype(dtype).itemsize].view(dtype)
    array[:] = value
    return array


def _slowly(x: jax.Array) -> jax.Array:
    """The same array, after a few million operations."""
    seed = jnp.full((128, 128), 1e-3, np.float32)
    found = jax.lax.fori_loop(0, 60, lambda _, m: jnp.tanh(m @ m), seed)
    # Which no number is after a `tanh`.
    return jnp.where(found[0, 0] > 2, jnp.zeros_like(x), x)


@jax.jit
def late(x: jax.Array) -> jax.Array:
    """An array that is there later than the program that waits for it."""
    return _slowly(x)


def weighted(params: Any, weights: Any) -> jax.Array:
    return jnp.sum(params * _slowly(weights))


OPT = eqopt.SGD(1.0)


# While a program is compiled, what is late arrives. So each call is made twice.
TWICE = range(2)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("steps_per_call", [1, 2, 3, 8])
def test_one_buffer_for_all_batches(steps_per_call: int, size: int):
    batch = buffer(0, size)

    def batches() -> Iterator[np.ndarray]:
        for i in range(8):
            batch[:] = i
            yield batch
        batch[:] = -1

    fit = eqopt.fit(weighted, OPT, jnp.zeros(size, FLOAT), batches(), steps_per_call=steps_per_call)
    np.testing.assert_array_equal(fit.model, np.full(size, -sum(range(8))))


@pytest.mark.parametrize("steps_per_call", [1, 3])
def test_buffers_in_a_tree_and_of_other_dtypes(steps_per_call: int):
    whole = {"x": buffer(0), "n": buffer(0, 1, np.int32), "one": np.zeros((), FLOAT)}

    def batches() -> Iterator[dict[str, Any]]:
        for i in range(7):
            for x in whole.values():
                x[...] = i
            yield whole

    def loss(params: Any, batch: dict[str, Any]) -> jax.Array:
        numbers = batch["n"].astype(FLOAT), jnp.broadcast_to(batch["one"], 1)
        return weighted(params, jnp.concatenate([batch["x"], *numbers]))

    fit = eqopt.fit(loss, OPT, jnp.zeros(4, FLOAT), batches(), steps_per_call=steps_per_call)
    np.testing.assert_array_equal(fit.model, np.full(4, -21))


def test_what_fit_is_given_once():
    for _ in TWICE:
        _given_once()


def _given_once() -> None:
    model = {"trained": buffer(1), "still": buffer(2, 2, np.int32), "late": late(jnp.zeros(2))}
    weights, key = buffer(1), buffer(7, 2, np.uint32)

    def loss(model: Any, key: Any) -> jax.Array:
        keys = jax.random.key_data(key)[0].astype(FLOAT)
        return weighted(model["trained"], weights) * model["still"][0].astype(FLOAT) + 0 * keys

    given = model["trained"], model["still"], key

    def batches() -> Iterator[tuple[()]]:
        for x in given:
            x[:] = 100
        yield ()
        yield ()

    words = np.asarray([7, 7], np.uint32)
    fit = eqopt.fit(loss, OPT, model, batches(), key=key)
    np.testing.assert_array_equal(fit.model["trained"], [-3, -3])
    np.testing.assert_array_equal(fit.model["still"], [2, 2])
    expected = jax.random.split(jax.random.split(words)[0])[0]
    np.testing.assert_array_equal(fit.key, expected)


@pytest.mark.parametrize("size", SIZES)
def test_arguments_of_step(size: int):
    model, batch = jnp.zeros(size, FLOAT), buffer(0, size)
    state = OPT.init(model)
    for i in range(4):
        batch[:] = i
        model, state, _ = OPT.step(weighted, model, state, batch)
    batch[:] = 100
    np.testing.assert_array_equal(model, np.full(size, -6))


def test_what_a_loss_reads_is_read_when_it_is_traced():
    weights = buffer(1)

    def fit(*values: float) -> Any:
        def batches() -> Iterator[tuple[()]]:
            weights[:] = values[-1]
            yield ()

        weights[:] = values[0]
        model = jnp.zeros(2, FLOAT)
        return eqopt.fit(lambda x: weighted(x, weights), OPT, model, batches()).model

    np.testing.assert_array_equal(fit(1, 100), [-100, -100])
    np.testing.assert_array_equal(fit(1), [-1, -1])


# Its content changes at each call.
@pytest.mark.filterwarnings("ignore::eqopt.RecompilationWarning")
def test_the_closure_of_a_loss():
    model, weights = jnp.zeros(2, FLOAT), buffer(0)
    state = OPT.init(model)
    for i in range(4):
        weights[:] = i
        model, state, _ = OPT.step(lambda params: weighted(params, weights), model, state)
    weights[:] = 100
    np.testing.assert_array_equal(model, [-6, -6])


def _updated(x: np.ndarray) -> Any:
    # One that looks at the parameters, and so waits for them.
    opt, params = eqopt.Chain(eqopt.AddDecayedWeights(0.5), OPT), late(jnp.zeros(2, FLOAT))
    return opt.update(x, opt.init(params), params)[0]


def _optimizer() -> Any:
    return eqopt.Optimizer.create(OPT, late(jnp.zeros(2, FLOAT)))


def _minimized(x: np.ndarray) -> Any:
    def distance(params: Any, target: Any) -> jax.Array:
        return jnp.sum((params - _slowly(target)) ** 2) / 2

    solution = eqopt.minimize(distance, OPT, jnp.zeros(2, FLOAT), (x,), throw=False, max_steps=1)
    return -solution.params


def _scaled(x: np.ndarray) -> Any:
    params = late(jnp.zeros(2, FLOAT))
    scale = eqopt.precision.DynamicScale(scale=1.0)
    return scale.scaled_step(OPT, weighted, params, OPT.init(params), x).model


# From an array of ones to minus ones.
CALLS: dict[str, Callable[[np.ndarray], Any]] = {
    "update": _updated,
    "apply_updates, updates": lambda x: eqopt.apply_updates(late(jnp.full(2, -2, FLOAT)), x),
    "apply_updates, model": lambda x: eqopt.apply_updates(x, late(jnp.full(2, -2, FLOAT))),
    "apply_gradient": lambda x: _optimizer().apply_gradient(x).target,
    "Optimizer.step": lambda x: _optimizer().step(weighted, x)[0].target,
    "minimize": _minimized,
    "scaled_step": _scaled,
    "incremental_update": lambda x: -eqopt.incremental_update(x, late(jnp.ones(2, FLOAT)), 0.5),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_arguments_of_other_calls(call: Callable[[np.ndarray], Any]):
    for _ in TWICE:
        array = buffer(1)
        found = call(array)
        array[:] = 100
        np.testing.assert_array_equal(found, [-1, -1])


def test_what_an_optimizer_holds():
    target, frozen = buffer(1), buffer(3, 2, np.int32)
    optimizer = eqopt.Optimizer.create(OPT, {"x": target, "n": frozen})
    replaced = optimizer.replace(target={"x": target, "n": frozen})
    target[:], frozen[:] = 100, 100
    for one in (optimizer, replaced):
        np.testing.assert_array_equal(one.target["x"], [1, 1])
        after = one.apply_gradient({"x": jnp.ones(2, FLOAT), "n": None})
        np.testing.assert_array_equal(after.target["x"], [0, 0])
        np.testing.assert_array_equal(after.target["n"], [3, 3])


def test_what_a_step_hands_through():
    for _ in TWICE:
        number = buffer(3, 2, np.int32)
        model = {"x": late(jnp.zeros(2, FLOAT)), "n": number}
        new, _, _ = OPT.step(lambda m: jnp.sum(m["x"]), model, OPT.init(model))
        number[:] = 100
        np.testing.assert_array_equal(new["n"], [3, 3])


def test_what_is_put_into_a_state():
    params = jnp.ones(2, FLOAT)
    injected = eqopt.InjectHyperparams(eqopt.SGD)(0.5)
    state, rate = injected.init(params), buffer(0.25, 1).reshape(())
    state.hyperparams["learning_rate"] = rate
    rate[...] = 100
    assert float(state.hyperparams["learning_rate"]) == 0.25

    momentum = eqopt.Trace(0.5)
    trace = buffer(2)
    placed = eqopt.tree.set(momentum.init(params), "trace", trace)
    trace[:] = 100
    np.testing.assert_array_equal(placed.trace, [2, 2])


def test_what_optimizers_are_built_of():
    """Of each kind of field that may hold an array."""
    words = buffer(7, 2, np.uint32)
    bounds = {"x": buffer(-1)}
    boundaries = buffer(3, 1, np.int32)
    mask = {"x": np.asarray(True)}
    built = [
        eqopt.AddNoise(0.1, 0.5, words),
        eqopt.InjectHyperparams(eqopt.NoisySGD)(0.1, key=words),
        eqopt.projections.Box(bounds, 1.0),
        eqopt.Join((0.1, 0.2), boundaries),
        eqopt.Masked(eqopt.SGD(0.1), mask),
    ]
    before = [np.array(x) for x in jax.tree.leaves(built)]
    texts = repr(built)
    words[:], bounds["x"][:], boundaries[:], mask["x"][...] = 1, 5, 9, False
    for x, y in zip(jax.tree.leaves(built), before, strict=True):
        np.testing.assert_array_equal(x, y)
    assert repr(built) == texts
