"""Models, batches and aux of `fit`: each as in `step`."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import eqopt
from eqopt._base.converters import float_dtype
from tests.support.toolbox import same, X64

FLOAT = float_dtype()
TOLERANCE = 1e-12 if X64 else 1e-5
every_number_of_steps = pytest.mark.parametrize("steps_per_call", [1, 3])


# Models.


class Layer(eqx.Module):
    weight: Array
    count: Array
    activation: Callable[[Array], Array]
    rate: float


ADAM = eqopt.AdamW(0.1, weight_decay=0.01)
MODELS: dict[str, tuple[Any, Any]] = {
    "one array": (ADAM, jnp.arange(3, dtype=FLOAT)),
    "one number": (ADAM, jnp.asarray(0.5, FLOAT)),
    "a weakly typed number": (ADAM, jnp.asarray(0.5)),
    "one NumPy array": (ADAM, np.arange(3, dtype=FLOAT)),
    "a dict": (ADAM, {"w": jnp.arange(3, dtype=FLOAT), "b": {"c": jnp.ones((), FLOAT), "n": None}}),
    "a tuple": (ADAM, (jnp.arange(3, dtype=FLOAT), jnp.ones((2, 2), FLOAT))),
    "a Module": (ADAM, Layer(jnp.arange(3, dtype=FLOAT), jnp.arange(2), jnp.tanh, 0.5)),
    "LookaheadParams": (
        eqopt.Lookahead(eqopt.SGD(0.1, 0.9), 2, 0.5),
        eqopt.LookaheadParams(jnp.arange(3, dtype=FLOAT), jnp.arange(3, dtype=FLOAT)),
    ),
    "an average": (eqopt.ParamEMA(eqopt.SGD(0.1), 0.9), {"w": jnp.arange(3, dtype=FLOAT)}),
    "a line search": (
        eqopt.Chain(eqopt.SGD(1.0), eqopt.ScaleByBacktrackingLinesearch(5, store_grad=True)),
        jnp.arange(3, dtype=FLOAT),
    ),
    "a window of steps": (eqopt.MultiSteps(eqopt.Adam(0.1), 2), jnp.arange(3, dtype=FLOAT)),
}


# Batches.


class Pair(NamedTuple):
    x: Any
    y: Any


class Sample(eqx.Module):
    x: Any
    offset: float = 0.25
    kind: str = eqx.field(static=True, default="sample")


def _array(i: int) -> np.ndarray:
    """The data of a batch; the last of five batches is shorter."""
    return np.linspace(-1, 1 + i, 2 if i == 4 else 3).astype(FLOAT)


def _spread(*args: Any) -> tuple[Any, tuple[Any, ...]]:
    return args, args


# What a batch is, as `fit` is given it, and as the arguments of the loss.
BATCHES: dict[str, Callable[[int], tuple[Any, tuple[Any, ...]]]] = {
    "an array": lambda i: (_array(i), (_array(i),)),
    "an array of JAX's": lambda i: (jnp.asarray(_array(i)), (_array(i),)),
    "now NumPy, now JAX": lambda i: ([np.asarray, jnp.asarray][i % 2](_array(i)), (_array(i),)),
    "a tuple": lambda i: ((_array(i), _array(i)), (_array(i), _array(i))),
    "a list": lambda i: ([_array(i), _array(i)], (_array(i), _array(i))),
    "a list in a tuple": lambda i: (([_array(i), i],), ([_array(i), i],)),
    "a dict": lambda i: ({"x": _array(i)}, ({"x": _array(i)},)),
    "a named tuple": lambda i: (Pair(_array(i), 2), (Pair(_array(i), 2),)),
    "a Module": lambda i: (Sample(_array(i)), (Sample(_array(i)),)),
    "a number": lambda i: (0.5 * i, (0.5 * i,)),
    "a whole number": lambda i: (i, (i,)),
    "a NumPy number": lambda i: (FLOAT.type(i), (FLOAT.type(i),)),
    "numbers": lambda i: ((_array(i), 0.5 * i, i), (_array(i), 0.5 * i, i)),
    "a weak number of JAX's": lambda i: ((jnp.asarray(0.5),), (0.5,)),
    "a string": lambda i: ((_array(i), "mean"), (_array(i), "mean")),
    "now one string, now another": lambda i: _spread(_array(i), "ab"[i // 2 % 2]),
    "True": lambda i: _spread(_array(i), i > 1),
    "None": lambda i: (None, (None,)),
    "None in it": lambda i: _spread(_array(i), None),
    "a function": lambda i: _spread(_array(i), jnp.tanh),
    "a key": lambda i: _spread(jax.random.key(i)),
    "whole numbers": lambda i: _spread(np.arange(i % 2), np.ones(2, bool)),
    "nothing": lambda i: ((), ()),
    "an empty list": lambda i: ([], ()),
}


def loss_fn(model: Any, *args: Any) -> Array:
    """A loss of any model and any arguments."""
    total = jnp.ones((), FLOAT)
    for i, x in enumerate(leaves(args)):
        if isinstance(x, Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        if isinstance(x, str):
            total = total + ord(x[0]) / 100
        elif x is True:
            total = 2 * total
        elif isinstance(x, Array | np.ndarray | int | float):
            total = total + jnp.sum(jnp.asarray(x).astype(FLOAT)) / (i + 3)
    if isinstance(model, eqopt.LookaheadParams):
        model = model.fast
    weights = leaves(eqx.filter(model, eqx.is_inexact_array))
    return sum([jnp.sum((w - total) ** 2) for w in weights], jnp.zeros((), FLOAT)) / 2


def with_call(model: Any, *args: Any) -> tuple[Array, str]:
    """The loss, and what it was called with, in words."""
    types = [str(jax.typeof(x)) if isinstance(x, Array) else repr(x) for x in leaves(args)]
    return loss_fn(model, *args), f"{type(model)} {jax.tree.structure(args)} {types}"


def leaves(x: Any) -> list[Any]:
    return jax.tree.leaves(x)


def compare(
    optimizer: Any, model: Any, batches: list[Any], calls: list[tuple[Any, ...]], num: int
) -> None:
    """`fit` over batches, and a loop of `step` with the arguments that they stand for."""
    # What a line search keeps of aux must be an array.
    has_aux = not isinstance(optimizer, eqopt.Chain)
    fn = with_call if has_aux else loss_fn
    found = eqopt.fit(fn, optimizer, model, iter(batches), has_aux=has_aux, steps_per_call=num)
    state, values, aux = optimizer.init(model), [], []
    for args in calls:
        model, state, evaluation = optimizer.step(fn, model, state, *args, has_aux=has_aux)
        values.append(evaluation.value)
        aux.append(evaluation.aux)
    assert jax.tree.structure(found.model) == jax.tree.structure(model)
    for x, y in zip(leaves((found.model, found.state)), leaves((model, state)), strict=True):
        if not eqx.is_array(y):
            assert x == y
            continue
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        if jnp.issubdtype(y.dtype, jnp.inexact):
            np.testing.assert_allclose(x, y, rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_allclose(found.history.loss, values, rtol=TOLERANCE)
    assert found.history.aux == (aux[0] if len(set(aux)) == 1 else aux)


@every_number_of_steps
@pytest.mark.parametrize("optimizer, model", MODELS.values(), ids=MODELS.keys())
def test_models(optimizer: Any, model: Any, steps_per_call: int):
    batches = [_array(i) for i in range(5)]
    compare(optimizer, model, batches, [(x,) for x in batches], steps_per_call)


@every_number_of_steps
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES.keys())
def test_batches(batch: Callable[[int], tuple[Any, tuple[Any, ...]]], steps_per_call: int):
    batches, calls = zip(*map(batch, range(5)), strict=True)
    model = {"w": jnp.arange(3, dtype=FLOAT), "b": jnp.ones((), FLOAT)}
    compare(eqopt.SGD(0.05, 0.5), model, list(batches), list(calls), steps_per_call)


@every_number_of_steps
def test_numbers_do_not_widen_a_narrow_model(steps_per_call: int):
    def loss(params: Array, number: Any, weak: Any) -> Array:
        # In strict promotion a number goes with any dtype; an array goes with its own alone.
        return jnp.sum(params * number * weak).astype(np.float32)

    batches = [(0.5 * i, jnp.asarray(2.0)) for i in range(4)]
    model = jnp.zeros(2, jnp.bfloat16)
    fit = eqopt.fit(loss, eqopt.SGD(0.25), model, batches, steps_per_call=steps_per_call)
    assert fit.model.dtype == jnp.bfloat16
    np.testing.assert_array_equal(fit.model.astype(np.float32), np.full(2, -0.25 * 6))


@every_number_of_steps
def test_a_new_number_never_retraces(steps_per_call: int):
    traces: list[int] = []

    def loss(params: Array, *args: Any) -> Array:
        traces.append(steps_per_call)
        return loss_fn(params, *args)

    batches = [(np.ones(3, FLOAT), 0.5 * i, i) for i in range(7)]
    eqopt.fit(loss, eqopt.SGD(0.1), jnp.zeros(3, FLOAT), batches, steps_per_call=steps_per_call)
    # The last of seven is alone.
    assert len(traces) == (1 if steps_per_call == 1 else 2)


def test_a_batch_that_is_neither_data_nor_hashable_is_named():
    batches = [({"x": np.ones(2, FLOAT), "seen": {1, 2}},)]
    with pytest.raises(TypeError, match=r"\['seen'\]` is a set, which is neither an array nor"):
        eqopt.fit(lambda w, batch: jnp.sum(w), eqopt.SGD(0.1), jnp.ones(2, FLOAT), batches)


# Aux.


def _fit(
    make: Callable[[Any, Any], Any], steps_per_call: int, *, batches: Any = None, key: Any = None
) -> tuple[Any, list[Any]]:
    """The history's aux, and what a callback sees of it."""

    def loss(params: Array, batch: Any, key: Any = None) -> tuple[Array, Any]:
        x = batch["x"]
        return jnp.sum(params**2) * jnp.sum(x), make(batch, key)

    seen: list[Any] = []
    fit = eqopt.fit(
        loss,
        eqopt.SGD(0.01),
        jnp.ones(2, FLOAT),
        [{"x": _array(i)} for i in range(5)] if batches is None else batches,
        has_aux=True,
        steps_per_call=steps_per_call,
        key=key,
        callback=lambda progress: seen.append(progress.aux),
    )
    return fit.history.aux, seen


class Settings:
    """An object that is no array."""


SETTINGS = Settings()


@every_number_of_steps
def test_aux_that_is_no_array_and_stays_the_same(steps_per_call: int):
    given = {"mode": "a", "function": jnp.tanh, "object": SETTINGS, "dtype": np.dtype(FLOAT)}
    aux, seen = _fit(
        lambda batch, key: {**given, "none": None, "mean": jnp.mean(batch["x"])}, steps_per_call
    )
    means = np.array([np.mean(_array(i)) for i in range(5)])
    np.testing.assert_allclose(aux.pop("mean"), means, rtol=TOLERANCE)
    assert aux == {**given, "none": None}
    np.testing.assert_allclose(seen[-1].pop("mean"), means[-1], rtol=TOLERANCE)
    assert seen[-1] == {**given, "none": None}


@every_number_of_steps
def test_numbers_in_aux_are_stacked(steps_per_call: int):
    # A number is static in a batch's shape, and not in a history.
    aux, seen = _fit(lambda batch, key: (len(batch["x"]), 0.5, True, 1j), steps_per_call)
    np.testing.assert_array_equal(aux[0], [3, 3, 3, 3, 2])
    for x, value, kind in zip(aux[1:], (0.5, True, 1j), "fbc", strict=True):
        assert x.dtype.kind == kind
        np.testing.assert_array_equal(x, [value] * 5)
    assert int(seen[-1][0]) == 2


@every_number_of_steps
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_keys_in_aux_are_stacked(steps_per_call: int, impl: str):
    start = key = jax.random.key(3, impl=impl)
    aux, seen = _fit(
        lambda batch, own: {"key": own, "pair": jax.random.split(own)}, steps_per_call, key=key
    )
    keys, pairs = aux["key"].wrap(), aux["pair"].wrap()
    for i in range(5):
        key, own = jax.random.split(key)
        assert same(keys[i], own)
        assert same(pairs[i], jax.random.split(own))
    assert keys.dtype == start.dtype and pairs.shape == (5, 2)
    assert same(seen[-1]["key"], keys[-1])

    old = jax.random.PRNGKey(3)
    aux, _ = _fit(lambda batch, own: own, steps_per_call, key=old)
    assert aux.shape == (5, 2) and aux.dtype == np.uint32
    np.testing.assert_array_equal(aux[0], jax.random.split(old)[1])


@every_number_of_steps
def test_aux_as_long_as_the_batch(steps_per_call: int):
    aux, seen = _fit(
        lambda batch, key: {"each": 2 * batch["x"], "sum": jnp.sum(batch["x"])}, steps_per_call
    )
    assert isinstance(aux["each"], list) and len(aux["each"]) == 5
    for i, x in enumerate(aux["each"]):
        np.testing.assert_allclose(x, 2 * _array(i), rtol=TOLERANCE)
    np.testing.assert_allclose(aux["sum"], [np.sum(_array(i)) for i in range(5)], rtol=TOLERANCE)
    np.testing.assert_allclose(seen[-1]["each"], 2 * _array(4), rtol=TOLERANCE)

    keys, _ = _fit(
        lambda batch, own: jax.random.split(own, len(batch["x"])),
        steps_per_call,
        key=jax.random.key(0),
    )
    assert [x.wrap().shape for x in keys] == [(3,)] * 4 + [(2,)]


@every_number_of_steps
def test_aux_that_changes(steps_per_call: int):
    modes = ["train", "train", "test", "train", "train"]
    batches = [{"x": _array(0), "mode": mode} for mode in modes]
    aux, seen = _fit(
        lambda batch, key: (batch["mode"], jnp.ones(2)), steps_per_call, batches=batches
    )
    assert aux[0] == modes and aux[1].shape == (5, 2)
    assert seen[-1][0] == "train"

    def branch(batch: Any, key: Any) -> Any:
        return {"x": batch["x"]} if batch["mode"] == "test" else [batch["x"], 7]

    aux, _ = _fit(branch, steps_per_call, batches=batches)
    assert [type(x) for x in aux] == [list, list, dict, list, list]
    np.testing.assert_array_equal(aux[2]["x"], _array(0))
    assert int(aux[4][1]) == 7


@every_number_of_steps
def test_aux_that_cannot_be_kept_is_named(steps_per_call: int):
    with pytest.raises(TypeError, match=r"`aux\['seen'\]\[1\]` is a set, which is neither an"):
        _fit(lambda batch, key: {"n": 1.0, "seen": (jnp.ones(1), {3})}, steps_per_call)


def test_a_long_history_is_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("eqopt._train.history._FLUSH", 4)
    batches = [{"x": _array(i % 5)} for i in range(23)]
    aux, _ = _fit(lambda batch, key: (batch["x"], jnp.sum(batch["x"])), 1, batches=batches)
    expected = [_array(i % 5) for i in range(23)]
    np.testing.assert_allclose(aux[1], [np.sum(x) for x in expected], rtol=TOLERANCE, atol=1e-6)
    for x, y in itertools.zip_longest(aux[0], expected):
        np.testing.assert_array_equal(x, y)
