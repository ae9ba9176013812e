"""Functions that count their evaluations, in every way that comes to mind."""

import functools
import types
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from jaxtyping import Array

Counting = tuple[Callable[..., Array], Callable[[], int]]

calls: list[int] = []
table: dict[str, int] = {"n": 0}
number: int = 0
numbers = np.zeros(1, np.int32)
module = types.ModuleType("module_of_a_user")
vars(module)["calls"] = []


class Counter:
    kept: ClassVar[list[int]] = []

    def __init__(self) -> None:
        self.n = 0
        self.traces = 0
        self.calls: list[int] = []

    def tick(self, *args: Any) -> None:
        self.record()

    def record(self) -> None:
        self.n += 1

    def __call__(self, x: Array) -> Array:
        jax.debug.callback(self.tick)
        return x

    def counted(self, x: Array) -> Array:
        self.traces += 1

        def call(x: Any) -> Any:
            self.n += 1
            return np.asarray(x)

        @jax.custom_jvp
        def tick(x: Array) -> Array:
            shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
            return jax.pure_callback(call, shape, x, vmap_method="sequential")

        @tick.defjvp
        def _(primals: Any, tangents: Any) -> Any:
            return tick(primals[0]), tangents[0]

        return tick(x)


counter = Counter()


def count_one() -> None:
    calls.append(1)


@jax.custom_jvp
def ticked(x: Array) -> Array:
    def call(x: Any) -> Any:
        calls.append(1)
        return np.asarray(x)

    return jax.pure_callback(call, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


@ticked.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return ticked(primals[0]), tangents[0]


def answered(call: Callable[..., Any], p: Array) -> Array:
    """`call(p)`, whose derivative is taken for the identity's."""

    @jax.custom_jvp
    def ask(p: Array) -> Array:
        return jax.pure_callback(call, jax.ShapeDtypeStruct(p.shape, p.dtype), p)

    ask.defjvp(lambda p, t: (ask(p[0]), t[0]))
    return ask(p)


def squares(p: Array) -> Array:
    return jnp.sum(p**2)


def _global_list() -> Counting:
    def fn(p: Array) -> Array:
        jax.debug.callback(lambda: calls.append(1))
        return squares(p)

    return fn, lambda: len(calls)


def _global_list_by_a_function() -> Counting:
    def fn(p: Array) -> Array:
        jax.debug.callback(count_one)
        return squares(p)

    return fn, lambda: len(calls)


def _method_of_a_list() -> Counting:
    def fn(p: Array) -> Array:
        jax.debug.callback(calls.append, 1)
        return squares(p)

    return fn, lambda: len(calls)


def _global_dictionary() -> Counting:
    table["n"] = 0

    def fn(p: Array) -> Array:
        def count() -> None:
            table["n"] += 1

        jax.debug.callback(count)
        return squares(p)

    return fn, lambda: table["n"]


def _global_number() -> Counting:
    globals()["number"] = 0

    def fn(p: Array) -> Array:
        def count() -> None:
            global number
            number += 1

        jax.debug.callback(count)
        return squares(p)

    return fn, lambda: number


def _numpy() -> Counting:
    numbers[:] = 0

    def fn(p: Array) -> Array:
        def count() -> None:
            numbers[0] += 1

        jax.debug.callback(count)
        return squares(p)

    return fn, lambda: int(numbers[0])


def _module() -> Counting:
    module.calls.clear()

    def fn(p: Array) -> Array:
        jax.debug.callback(lambda: module.calls.append(1))
        return squares(p)

    return fn, lambda: len(module.calls)


def _cell_list() -> Counting:
    mine: list[int] = []

    def fn(p: Array) -> Array:
        jax.debug.callback(lambda: mine.append(1))
        return squares(p)

    return fn, lambda: len(mine)


def _cell_number() -> Counting:
    n = 0

    def fn(p: Array) -> Array:
        def count() -> None:
            nonlocal n
            n += 1

        jax.debug.callback(count)
        return squares(p)

    return fn, lambda: n


def _cell_function() -> Counting:
    n = [0]

    def record(*args: Any) -> None:
        n[0] += 1

    def count(*args: Any) -> None:
        record()

    def fn(p: Array) -> Array:
        io_callback(count, None, jax.lax.stop_gradient(p))
        return squares(p)

    return fn, lambda: n[0]


def _partial() -> Counting:
    mine: list[int] = []

    def count(k: int) -> None:
        mine.append(k)

    def fn(p: Array) -> Array:
        jax.debug.callback(functools.partial(count, 1))
        return squares(p)

    return fn, lambda: len(mine)


def _object() -> Counting:
    mine = Counter()

    def fn(p: Array) -> Array:
        jax.debug.callback(mine.tick)
        return squares(p)

    return fn, lambda: mine.n


def _object_in_a_lambda() -> Counting:
    mine = Counter()

    def fn(p: Array) -> Array:
        jax.debug.callback(lambda: mine.tick())
        return squares(p)

    return fn, lambda: mine.n


def _list_of_an_object() -> Counting:
    mine = Counter()

    def fn(p: Array) -> Array:
        jax.debug.callback(mine.calls.append, 1)
        return squares(p)

    return fn, lambda: len(mine.calls)


def _list_of_a_class() -> Counting:
    Counter.kept.clear()

    def fn(p: Array) -> Array:
        jax.debug.callback(lambda: Counter.kept.append(1))
        return squares(p)

    return fn, lambda: len(Counter.kept)


def _object_that_is_called() -> Counting:
    mine = Counter()

    def fn(p: Array) -> Array:
        return squares(mine(p))

    return fn, lambda: mine.n


def _object_with_a_rule() -> Counting:
    mine = Counter()

    def fn(p: Array) -> Array:
        return squares(mine.counted(p))

    return fn, lambda: mine.n


def _global_object() -> Counting:
    counter.n = 0

    def fn(p: Array) -> Array:
        return squares(counter.counted(p))

    return fn, lambda: counter.n


def _method_of_a_trainer() -> Counting:
    class Trainer(Counter):
        def loss(self, p: Array) -> Array:
            jax.debug.callback(self.tick)
            return squares(p)

    trainer = Trainer()
    return trainer.loss, lambda: trainer.n


def _rule_of_a_global() -> Counting:
    return lambda p: squares(ticked(p)), lambda: len(calls)


def _rule_in_a_closure() -> Counting:
    mine: list[int] = []

    def call(x: Any) -> Any:
        mine.append(1)
        return np.asarray(x)

    @jax.custom_vjp
    def tick(x: Array) -> Array:
        return x

    def forward(x: Array) -> Any:
        return jax.pure_callback(call, jax.ShapeDtypeStruct(x.shape, x.dtype), x), None

    tick.defvjp(forward, lambda _, g: (g,))
    return lambda p: squares(tick(p)), lambda: len(mine)


def _in_a_scan() -> Counting:
    mine: list[int] = []

    def body(carry: Array, _: None) -> tuple[Array, None]:
        return carry, jax.debug.callback(lambda: mine.append(1))

    def fn(p: Array) -> Array:
        return squares(jax.lax.scan(body, p, None, length=1)[0])

    return fn, lambda: len(mine)


def _equinox() -> Counting:
    mine: list[int] = []

    def count(x: Any) -> Any:
        mine.append(1)
        return np.zeros((), np.int32)

    def fn(p: Array) -> Array:
        n = eqx.filter_pure_callback(
            count, jax.lax.stop_gradient(p), result_shape_dtypes=jax.ShapeDtypeStruct((), np.int32)
        )
        return squares(p) + 0 * n.astype(p.dtype)

    return fn, lambda: len(mine)


def _answering() -> Counting:
    n, entries, mine = 0, [0], Counter()
    table["n"] = 0

    def call(p: Any) -> Any:
        nonlocal n
        n += 1
        entries[0] += 1
        table["n"] += 1
        mine.n += 1
        calls.append(1)
        return np.asarray(p)

    def count() -> int:
        assert n == entries[0] == table["n"] == mine.n == len(calls)
        return n

    return lambda p: squares(answered(call, p)), count


COUNTING = {
    "list, global": _global_list,
    "list, by a global function": _global_list_by_a_function,
    "list, its own method": _method_of_a_list,
    "list in a closure": _cell_list,
    "dictionary": _global_dictionary,
    "number, global": _global_number,
    "number in a closure": _cell_number,
    "NumPy": _numpy,
    "module": _module,
    "function in a closure": _cell_function,
    "partial": _partial,
    "object": _object,
    "object, in a lambda": _object_in_a_lambda,
    "object, its list": _list_of_an_object,
    "object, called": _object_that_is_called,
    "object with a rule": _object_with_a_rule,
    "object, global": _global_object,
    "class": _list_of_a_class,
    "trainer": _method_of_a_trainer,
    "custom_jvp": _rule_of_a_global,
    "custom_vjp": _rule_in_a_closure,
    "scan": _in_a_scan,
    "Equinox": _equinox,
    "with an answer": _answering,
}
