"""What a loss reads and sets at once: each case says by closed form what it gives, and gives next.

A case makes a loss, `weight * sum(p**2)`, and what changes the weight from `BEFORE` to `AFTER`.
Plain Python sees the change, and so must every call of `step`.
"""

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

BEFORE, AFTER = 2.0, 5.0


class After(NamedTuple):
    """A loss, and another that is to be called once before it."""

    first: Callable[[Array], Array]
    loss: Callable[[Array], Array]


Made = tuple[Callable[[Array], Array] | After, Callable[[], None]]


def _times(weight: Any, p: Array) -> Array:
    return jnp.sum(jnp.square(p)) * p.dtype.type(weight)


_made_on_first_use: float | None = None


def lazy_global() -> Made:
    """A global that is made on first use."""
    global _made_on_first_use
    _made_on_first_use = None

    def loss(p: Array) -> Array:
        global _made_on_first_use
        if _made_on_first_use is None:
            _made_on_first_use = BEFORE
        return _times(_made_on_first_use, p)

    def change() -> None:
        global _made_on_first_use
        _made_on_first_use = AFTER

    return loss, change


class _Penalty:
    def __init__(self) -> None:
        self.weight: float | None = None

    def __call__(self, p: Array) -> Array:
        if self.weight is None:
            self.weight = BEFORE
        return _times(self.weight, p)


def lazy_attribute() -> Made:
    """An attribute that is made on first use."""
    penalty = _Penalty()

    def change() -> None:
        penalty.weight = AFTER

    return lambda p: penalty(p), change


def memo() -> Made:
    """A dictionary that remembers what has been computed."""
    known: dict[str, float] = {}

    def loss(p: Array) -> Array:
        if "weight" not in known:
            known["weight"] = BEFORE
        return _times(known["weight"], p)

    return loss, lambda: known.update(weight=AFTER)


def counter_beside_a_setting() -> Made:
    """A counter in the same dictionary as what matters."""
    settings = {"weight": BEFORE, "calls": 0}

    def loss(p: Array) -> Array:
        settings["calls"] += 1
        return _times(settings["weight"], p)

    return loss, lambda: settings.update(weight=AFTER)


def _closure(settings: dict[str, float], *, counts: bool) -> Callable[[Array], Array]:
    def loss(p: Array) -> Array:
        if counts:
            settings["calls"] = settings.get("calls", 0) + 1
        return _times(settings["weight"], p)

    return loss


def another_closure_of_the_same_code() -> Made:
    """One closure writes to what it reads; another of the same code does not."""
    writing = _closure({"weight": BEFORE}, counts=True)
    settings = {"weight": BEFORE}
    reading = _closure(settings, counts=False)
    return After(writing, reading), lambda: settings.update(weight=AFTER)


class _Weight:
    value = BEFORE


def another_thread() -> Made:
    """A number that another thread sets while the loss is traced."""
    weight = _Weight()
    weight.value = BEFORE - 1

    def loss(p: Array) -> Array:
        if weight.value < BEFORE:
            thread = threading.Thread(target=lambda: setattr(weight, "value", BEFORE))
            thread.start()
            thread.join()
        return _times(weight.value, p)

    return loss, lambda: setattr(weight, "value", AFTER)


_scale = BEFORE


class _Static:
    @staticmethod
    def term(p: Array) -> Array:
        return _times(_scale, p)

    def __call__(self, p: Array) -> Array:
        return self.term(p)


def static_method() -> Made:
    """A static method, taken of an instance, that reads a global."""
    global _scale
    _scale = BEFORE

    def change() -> None:
        global _scale
        _scale = AFTER

    return _Static(), change


def order_of_a_dictionary() -> Made:
    """The order of a dictionary, in which it is read."""
    weights = {"a": BEFORE, "b": AFTER}

    def loss(p: Array) -> Array:
        return _times(next(iter(weights.values())), p)

    def change() -> None:
        weights["a"] = weights.pop("a")

    return loss, change


CASES = (
    lazy_global,
    lazy_attribute,
    memo,
    counter_beside_a_setting,
    another_closure_of_the_same_code,
    another_thread,
    static_method,
    order_of_a_dictionary,
)
