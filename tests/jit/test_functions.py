"""Functions as PyTrees: right whatever they read, and compiled anew only where they must be."""

import functools
import gc
import inspect
import sys
import types
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from eqopt._jit import compiled_call
from eqopt._jit.function import key_function, RecompilationWarning

P = jnp.arange(1.0, 4.0)


class Door:
    """A front door in small: compiles around a function, and counts its traces."""

    def __init__(self) -> None:
        self.num_traces = 0

    def _body(self, fn: Callable[..., Any], p: Array) -> tuple[Array, Array]:
        self.num_traces += 1
        return jax.value_and_grad(lambda q: fn(q))(p)

    def check(self, fn: Callable[..., Any], p: Array = P) -> None:
        """Holds the compiled function against the function itself."""
        value, grad = compiled_call.call_objective(self._body, fn, p)
        expected, expected_grad = jax.value_and_grad(fn)(p)
        assert np.allclose(value, expected, rtol=1e-6)
        assert np.allclose(grad, expected_grad, rtol=1e-6)


# What the functions below read; the tests rebind it.
batch: Any = jnp.zeros(3)
factor: Any = 1.0
counted: int = 0
log: list[int] = []
helpers = types.ModuleType("helpers_of_a_user")
found = types.ModuleType("statistics_of_a_user")
vars(found)["__file__"] = "/srv/my-site-packages-fork/statistics_of_a_user.py"
sys.modules[found.__name__] = found


def helper(p: Array) -> Array:
    return p - batch


def reads_global(p: Array) -> Array:
    return jnp.sum(helper(p) ** 2)


def recursive(p: Array, n: int = 3) -> Array:
    return jnp.sum((p - batch) ** 2) if n == 0 else recursive(p, n - 1)


def even(p: Array, n: int = 4) -> Array:
    return jnp.sum(p * batch) if n == 0 else odd(p, n - 1)


def odd(p: Array, n: int) -> Array:
    return even(p, n - 1)


def doubled(fn: Callable[..., Array]) -> Callable[..., Array]:
    @functools.wraps(fn)
    def wrapper(*args: Any) -> Array:
        return 2 * fn(*args)

    return wrapper


class Loss(eqx.Module):
    target: Array

    def __call__(self, p: Array) -> Array:
        return self.scaled(p) * factor

    def scaled(self, p: Array) -> Array:
        return jnp.sum((p - self.target) ** 2)


class Plain:
    def __init__(self) -> None:
        self.target = jnp.zeros(3)

    def loss(self, p: Array) -> Array:
        return jnp.sum((p - self.target) ** 2)


plain = Plain()
squared = jax.custom_jvp(lambda p: jnp.sum((p - batch) ** 2))
squared.defjvp(lambda p, t: (squared(p[0]), jnp.sum(2 * (p[0] - batch) * t[0])))
mapped = jax.vmap(lambda x: (x - batch[0]) ** 2)


def _local(b: Any) -> Callable[..., Array]:
    return lambda p: jnp.sum((p - b) ** 2)


def _decorated(b: Array) -> Callable[..., Array]:
    return doubled(lambda p: jnp.sum((p - b) ** 2))


def _defaults(b: Array) -> Callable[..., Array]:
    def loss(p: Array, b: Array = b, *, c: Array = b) -> Array:
        return jnp.sum((p - b) * (2 * c))

    return loss


def _recursive(b: Array) -> Callable[..., Array]:
    def loss(p: Array, n: int = 2) -> Array:
        return jnp.sum((p - b) ** 2) if n == 0 else loss(p, n - 1)

    return loss


def _nested(b: Array) -> Callable[..., Array]:
    def loss(p: Array) -> Array:
        def inner(q: Array) -> Array:
            return jnp.stack([q * x for x in (b, b + 1)]).sum()

        return inner(p)

    return loss


def _mapped(b: Array) -> Callable[..., Array]:
    per_entry = jax.vmap(lambda x: (x - b[0]) ** 2)
    return lambda p: jnp.sum(per_entry(p))


def _tuple(b: Array) -> Callable[..., Array]:
    both = (b, 3.0)
    return lambda p: jnp.sum(p * both[0]) * both[1]


LOCAL = {
    "lambda": _local,
    "decorated": _decorated,
    "defaults": _defaults,
    "recursive": _recursive,
    "nested": _nested,
    "vmap inside": _mapped,
    "tuple": _tuple,
    "NumPy": lambda b: _local(np.asarray(b)),
    "checkpoint": lambda b: jax.checkpoint(_local(b)),
    "partial": lambda b: functools.partial(lambda b, p: jnp.sum((p - b) ** 2), b),
    "jax's partial": lambda b: jax.tree_util.Partial(lambda b, p: jnp.sum((p - b) ** 2), b),
    "Module": Loss,
    "method of a Module": lambda b: Loss(b).scaled,
}


@pytest.mark.filterwarnings("ignore::eqopt.RecompilationWarning")
@pytest.mark.parametrize("make", LOCAL.values(), ids=LOCAL.keys())
def test_local_arrays_are_constants(make: Callable[..., Any]) -> None:
    door = Door()
    for i in range(3):
        door.check(make(b := i * jnp.arange(3.0)))
        door.check(make(b))
    assert door.num_traces == 3


def set_batch(i: int) -> None:
    globals()["batch"] = i * jnp.arange(3.0)


def set_factor(i: int) -> None:
    globals()["factor"] = 1.0 + i


def set_plain(i: int) -> None:
    plain.target = i * jnp.ones(3)


def set_helpers(i: int) -> None:
    vars(helpers)["batch"] = i * jnp.ones(3)


def set_found(i: int) -> None:
    vars(found)["batch"] = i * jnp.ones(3)


def in_dictionary(i: int) -> None:
    globals()["batch"] = {"x": i * jnp.ones(3)}


def set_numpy(i: int) -> None:
    if i == 0:
        globals()["batch"] = np.ones(3, P.dtype)
    batch[:] = i  # in place


REBOUND = {
    "through a helper": (lambda i: set_batch(i), reads_global),
    "recursive": (set_batch, recursive),
    "mutually recursive": (set_batch, even),
    "custom_jvp": (set_batch, lambda p: squared(p)),
    "vmap made outside": (set_batch, lambda p: jnp.sum(mapped(p))),
    "in a set": (set_batch, functools.partial(lambda f, p: next(iter(f))(p), {reads_global})),
    "by a method": (set_factor, Loss(jnp.ones(3))),
    "by a class": (set_factor, lambda p: Loss(p)(p + 1)),
    "plain object": (set_plain, plain.loss),
    "plain object in a global": (set_plain, lambda p: plain.loss(p)),
    "a user's module": (set_helpers, lambda p: jnp.sum(p * helpers.batch)),
    "a module in a folder with a misleading name": (
        set_found,
        lambda p: jnp.sum(p * found.batch),
    ),
    "dictionary": (in_dictionary, lambda p: jnp.sum(p * batch["x"])),
    "NumPy, in place": (set_numpy, lambda p: jnp.sum(p * batch)),
    "flag": (set_factor, lambda p: jnp.sum(p) if factor > 2 else jnp.sum(p**2)),
}


@pytest.mark.filterwarnings("ignore::eqopt.RecompilationWarning")
@pytest.mark.parametrize("rebind, fn", REBOUND.values(), ids=REBOUND.keys())
def test_what_is_rebound_is_seen(
    rebind: Callable[[int], None], fn: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("batch", "factor"):
        monkeypatch.setattr(sys.modules[__name__], name, globals()[name])
    door = Door()
    for i in range(4):
        rebind(i)
        door.check(fn)


def test_cells_of_a_notebook() -> None:
    scope: dict[str, Any] = {"jnp": jnp}
    exec("X = jnp.ones(3)\ndef loss(p):\n    return jnp.sum((p - X) ** 2)", scope)
    door = Door()
    for i in range(3):
        exec(f"X = {i} * jnp.ones(3)", scope)
        door.check(scope["loss"])
    door.check(scope["loss"])
    assert door.num_traces == 3  # the last one reads what the one before it read


def test_what_a_trace_adds_or_counts_is_no_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "counted", 0)
    calls = {"n": 0}

    def loss(p: Array) -> Array:
        global counted
        counted += 1
        log.append(counted)
        calls["n"] += 1
        return jnp.sum(p**2)

    door = Door()
    for _ in range(4):
        compiled_call.call_objective(door._body, loss, P)
    assert (door.num_traces, counted, len(log), calls["n"]) == (1, 1, 1, 1)


def test_a_trace_may_keep_anything() -> None:
    kept: dict[str, Any] = {"last": None}

    def loss(p: Array) -> Array:
        kept["last"] = p if kept["last"] is None else 0
        return jnp.sum(p**2)

    door = Door()
    for _ in range(4):
        value, _ = compiled_call.call_objective(door._body, loss, P)
        assert value == jnp.sum(P**2)


def test_arrays_that_must_be_constants() -> None:
    door = Door()

    def make(mask: np.ndarray) -> Callable[..., Any]:
        return lambda p: jnp.sum(p[mask] ** 2)

    for mask in ([True, False, True], [False, True, True], [False, True, True]):
        door.check(make(np.array(mask)))


def test_constants_and_installed_functions() -> None:
    door = Door()
    compiled = jax.jit(lambda p: jnp.sum(p**2))
    for fn in (jnp.sum, compiled):
        for _ in range(3):
            door.check(fn)
    assert door.num_traces == 2


def test_signature() -> None:
    def loss(p: Array, x: int = 1, *, key: Any = None) -> Array:
        return jnp.sum(p)

    assert inspect.signature(key_function(loss)) == inspect.signature(loss)


@pytest.mark.filterwarnings("ignore::eqopt.RecompilationWarning")
def test_few_arrays_are_kept_alive() -> None:
    door = Door()

    def run() -> weakref.ref[Array]:
        b = jnp.ones(3)
        door.check(lambda p: jnp.sum(p * b))
        return weakref.ref(b)

    kept = [run() for _ in range(9)]
    gc.collect()
    assert sum(x() is not None for x in kept) <= 8


def caught_warnings(fns: list[Callable[..., Any]]) -> list[warnings.WarningMessage]:
    """The warnings of one compiled call with each function, of arguments of the same shapes."""
    door = Door()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for fn in fns:
            compiled_call.call_objective(door._body, fn, P)
    assert door.num_traces == len(fns)
    return caught


def test_a_change_at_each_call_is_named_once() -> None:
    def make(target: Array) -> Callable[..., Any]:
        def loss(p: Array) -> Array:
            return jnp.sum(p - target)

        return loss

    (caught,) = caught_warnings([make(i * jnp.ones(3)) for i in range(9)])
    assert caught.category is RecompilationWarning
    assert caught.filename == __file__  # where the function is
    message = str(caught.message)
    assert "`loss` has been compiled 4 times" in message
    assert "`target`, which `loss` reads, changes" in message
    assert "Pass it as an argument" in message
    assert len(message.splitlines()) <= 3


def test_what_cannot_be_compared_is_named() -> None:
    stream = (x for x in range(100))

    def reads_iterator(p: Array) -> Array:
        return jnp.sum(p) * next(stream)

    def evaluates(p: Array) -> Array:
        return jnp.sum(p) * eval("2.0")

    (iterator,) = caught_warnings(5 * [reads_iterator])
    assert "`stream`, which `reads_iterator` reads, is a generator" in str(iterator.message)
    (evaluation,) = caught_warnings(5 * [evaluates])
    assert "`evaluates` calls `eval`, which may read anything" in str(evaluation.message)


def test_other_shapes_are_a_good_reason(recwarn: pytest.WarningsRecorder) -> None:
    door = Door()
    for n in range(1, 9):
        door.check(jnp.sum, jnp.ones(n))
    assert not recwarn.list
