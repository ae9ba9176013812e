"""Whatever a function reads while it is traced is seen to change, with a callback or without."""

import collections
import enum
import functools
import operator
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback
from jaxtyping import Array

from eqopt._jit.function import key_function
from tests.jit.test_functions import Door, P
from tests.support.functions_that_count import answered, calls, squares


@pytest.fixture(autouse=True)
def _empty() -> None:
    # Another file may have left arrays in it, for which a function is traced once more.
    calls.clear()


coefs: list[float] = [1.0]
number: int = 0
module = types.ModuleType("module_of_a_user")


class Settings:
    scale: float = 1.0

    def __init__(self) -> None:
        self.own = 1.0
        self.coefs = [1.0]
        self.inner: Any = None

    def times(self, p: Array) -> Array:
        return self.own * p

    def times_numpy(self, p: Any) -> Any:
        return np.asarray(p) * p.dtype.type(self.own)

    @property
    def first(self) -> float:
        return self.coefs[0]

    @classmethod
    def scaled(cls, p: Array) -> Array:
        return cls.scale * p


# As a user may write it.
exec(
    """
class Derived(Settings):
    def times(self, p):
        return super().times(p)
"""
)


class Hooked(Settings):
    def __getattr__(self, name: str) -> float:
        return self.own


class Slots(Settings):
    __slots__ = ("slot",)


class Dictionary(dict):
    pass


class Attributes(dict):
    def __getattr__(self, name: str) -> Any:
        return self[name]  # a `KeyError`, and not an `AttributeError`


class Meters(float):
    pass


class Kind(enum.Enum):
    LINEAR = 1

    def times(self, p: Array) -> Array:
        return coefs[0] * p


class Methods:
    def _times(self, num: int, p: Array) -> Array:
        return coefs[0] * p

    times = functools.partialmethod(_times, 1)


settings: Any = Settings()
settings.inner = derived = globals()["Derived"]()
hooked, slots, dictionary = (Hooked(), Slots(), Dictionary())
attributes, methods, kind, user_dict = Attributes(), Methods(), Kind.LINEAR, collections.UserDict()
objects = np.array([1.0, "a"], object)
find, steps, length = getattr, range(2), Meters(1)
vectorized = np.vectorize(lambda x: x * coefs[0])


def first_of(x: list[float]) -> float:
    return x[0]


def attribute_of(x: Any) -> float:
    return x.own


def handed_and_run() -> float:
    return coefs[0]


def _with_attribute() -> None: ...


with_attribute: Any = _with_attribute


def _by_a_callback_too(p: Array) -> Array:
    io_callback(handed_and_run, jax.ShapeDtypeStruct((), P.dtype))
    return squares(p * handed_and_run())


def _backwards(p: Array) -> Array:
    @jax.custom_vjp
    def same(p: Array) -> Array:
        return p

    same.defvjp(lambda p: (p, None), lambda _, g: (g * coefs[0],))
    return squares(same(p))


@jax.custom_vjp
def backwards(p: Array) -> Array:
    return p


backwards.defvjp(lambda p: (p, None), lambda _, g: (g * coefs[0],))


@jax.custom_jvp
def forwards(p: Array) -> Array:
    return p


forwards.defjvps(lambda t, _, p: t * coefs[0])


def _answer_of_a_callback(p: Array) -> Array:
    return squares(answered(lambda p: np.asarray(p) * p.dtype.type(coefs[0]), p))


def _answer_of_a_method(p: Array) -> Array:
    return squares(answered(settings.times_numpy, p))


def _scanned(p: Array) -> Array:
    return squares(jax.lax.scan(lambda c, _: (c * coefs[0], None), p, None, length=2)[0])


def _alias(p: Array) -> Array:
    mine = settings
    io_callback(mine.times, jax.ShapeDtypeStruct((3,), P.dtype), jax.lax.stop_gradient(p))
    return squares(p * mine.own)


def _local_class(p: Array) -> Array:
    class Local:
        factor = coefs[0]

    return squares(p * Local.factor)


def set_list(i: int) -> None:
    coefs[0] = 1.0 + i


def set_own(i: int) -> None:
    for x in (settings, derived, hooked):
        x.own = 1.0 + i


def set_coefs(i: int) -> None:
    settings.coefs[0] = 1.0 + i


def set_class(i: int) -> None:
    Settings.scale = 1.0 + i


def set_module(i: int) -> None:
    vars(module)["factor"] = 1.0 + i


def set_slot(i: int) -> None:
    slots.slot = 1.0 + i


def set_dictionary(i: int) -> None:
    dictionary["x"] = 1.0 + i


def set_others(i: int) -> None:
    attributes["x"] = user_dict["x"] = objects[0] = 1.0 + i
    globals().update(length=Meters(1.0 + i), steps=range(0, 3 + i, 2))  # the ranges are equal


def set_function(i: int) -> None:
    with_attribute.factor = 1.0 + i


CHANGED: dict[str, tuple[Callable[[int], None], Callable[[Array], Array]]] = {
    "in a lambda": (set_list, lambda p: jnp.sum(jax.tree.map(lambda w: w * coefs[0], p) ** 2)),
    "in a comprehension": (set_list, lambda p: squares(jnp.stack([c * p for c in coefs]))),
    "passed on": (set_list, lambda p: squares(p * first_of(coefs))),
    "popped": (set_list, lambda p: squares(p * coefs.copy().pop())),
    "by what a callback runs too": (set_list, _by_a_callback_too),
    "going back": (set_list, lambda p: squares(backwards(p))),
    "going back, inside": (set_list, _backwards),
    "a rule": (set_list, lambda p: squares(forwards(p))),
    "scan": (set_list, _scanned),
    "by a callback that answers": (set_list, _answer_of_a_callback),
    "by a method that answers": (set_own, _answer_of_a_method),
    "class body": (set_list, _local_class),
    "attribute": (set_own, lambda p: squares(p * settings.own)),
    "attribute, passed on": (set_own, lambda p: squares(p * attribute_of(settings))),
    "attribute, by another name": (set_own, _alias),
    "attribute, in a list": (set_own, lambda p: squares(p * [settings][0].own)),
    "attribute, by a method": (set_own, lambda p: squares(settings.times(p))),
    "attribute, by super": (set_own, lambda p: squares(derived.times(p))),
    "attribute, by an object": (set_own, lambda p: squares(p * settings.inner.own)),
    "attribute, by an object's method": (set_own, lambda p: squares(settings.inner.times(p))),
    "attribute, by __getattr__": (set_own, lambda p: squares(p * hooked.whatever)),
    "list of an object": (set_coefs, lambda p: squares(p * settings.coefs[0])),
    "property": (set_coefs, lambda p: squares(p * settings.first)),
    "class": (set_class, lambda p: squares(p * Settings.scale)),
    "class, by an object": (set_class, lambda p: squares(p * settings.scale)),
    "class, by a method": (set_class, lambda p: squares(settings.scaled(p))),
    "class, by a method of the class": (set_class, lambda p: squares(Settings.scaled(p))),
    "module": (set_module, lambda p: squares(p * module.factor)),
    "slot": (set_slot, lambda p: squares(p * slots.slot)),
    "a dictionary's class": (set_dictionary, lambda p: squares(p * dictionary["x"])),
    "attribute, by getattr": (set_own, lambda p: squares(p * find(settings, "nwo"[::-1]))),
    "attribute, by attrgetter": (
        set_own,
        lambda p: squares(p * operator.attrgetter("inner.own")(settings)),
    ),
    "enum": (set_list, lambda p: squares(kind.times(p))),
    "partial method": (set_list, lambda p: squares(methods.times(p))),
    "vectorized": (set_list, lambda p: squares(p * vectorized(1.0))),
    "dictionary with attributes": (set_others, lambda p: squares(p * attributes.x)),
    "UserDict": (set_others, lambda p: squares(p * user_dict["x"])),
    "array of objects": (set_others, lambda p: squares(p * objects[0])),
    "a number's class": (set_others, lambda p: squares(p * float(length))),
    "range": (set_others, lambda p: squares(p * steps.stop)),
    "function": (set_function, lambda p: squares(p * with_attribute.factor)),
}


@pytest.mark.filterwarnings("ignore::eqopt.RecompilationWarning")
@pytest.mark.parametrize("counted", (False, True))
@pytest.mark.parametrize("change, fn", CHANGED.values(), ids=CHANGED.keys())
def test_what_is_read_while_tracing_is_seen_to_change(
    change: Callable[[int], None], fn: Callable[..., Array], counted: bool
) -> None:
    def both(p: Array) -> Array:
        jax.debug.callback(lambda: calls.append(1))
        return fn(p)

    door = Door()
    for i in range(4):
        change(i // 2)
        door.check(both if counted else fn)
    change(0)
    assert door.num_traces == 2


def test_a_function_that_stays_in_use_is_not_forgotten() -> None:
    def counting(p: Array) -> Array:
        jax.debug.callback(lambda: calls.append(1))
        return squares(p)

    door = Door()
    for i in range(600):
        key_function(eval(f"lambda p: {i} * p"))
        if i % 100 == 0:
            door.check(counting)
    assert door.num_traces == 1


def test_a_callback_of_one_function_is_read_by_another() -> None:
    def counting(p: Array) -> Array:
        io_callback(handed_and_run, jax.ShapeDtypeStruct((), P.dtype))
        return squares(p)

    Door().check(counting)
    door = Door()
    for i in range(3):
        set_list(i)
        door.check(lambda p: jnp.sum(handed_and_run() * p))
    set_list(0)


@pytest.mark.filterwarnings("ignore::eqopt.RecompilationWarning")
def test_a_callback_that_is_run_after_all() -> None:
    flags = {"run": False}

    def fn(p: Array) -> Array:
        io_callback(handed_and_run, jax.ShapeDtypeStruct((), P.dtype))
        return squares(p * handed_and_run() if flags["run"] else p)

    door = Door()
    door.check(fn)
    flags["run"] = True
    for i in range(3):
        set_list(i)
        door.check(fn)
    set_list(0)


def test_a_function_that_can_no_longer_be_compared_is_traced_again() -> None:
    mine: dict[str, Any] = {}

    def fn(p: Array) -> Array:
        mine["stream"] = iter([1.0])
        return squares(p)

    door = Door()
    for _ in range(2):
        mine.clear()
        door.check(fn)
    assert door.num_traces == 2


def test_what_one_function_changes_is_read_by_another() -> None:
    mine, other = Settings(), Settings()

    def changing(p: Array) -> Array:
        mine.own += 1
        return squares(p)

    Door().check(changing)
    door = Door()
    for i in range(3):
        other.own = 1.0 + i
        door.check(lambda p: squares(other.own * p))
