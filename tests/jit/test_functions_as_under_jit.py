"""A function has the value that `jax.jit` gives it, and ordinary objects compile it once."""

import argparse
import dataclasses
import functools
import logging
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import eqopt
from eqopt._base.compat import Tracer
from tests.jit.test_functions import Door
from tests.support.toolbox import FLOAT

P = jnp.asarray([1.0, 2.0, 3.0], FLOAT)
OPT = eqopt.SGD(0.1)


# What it reads, by which a program is told apart from others without being compiled anew.


class Slots:
    __slots__ = ("scale",)

    def __init__(self) -> None:
        self.scale = 2.0


@dataclasses.dataclass
class Settings:
    scale: float = 2.0


class Fields:
    """Its fields are found by a hook, as in a pydantic model or a `ConfigDict`."""

    def __init__(self) -> None:
        vars(self)["_fields"] = {"scale": 2.0}

    def __getattr__(self, name: str) -> Any:
        try:
            return vars(self)["_fields"][name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        vars(self)["_fields"][name] = value


class Trainer:
    """It holds a large data set, and counts what it does."""

    def __init__(self) -> None:
        self.data = np.zeros((1 << 18,), np.float64)
        self.rows = [np.zeros(1) for _ in range(2000)]
        self.scale, self.num_steps, self.history = 2.0, 0, list[float]()

    def loss(self, p: Array) -> Array:
        return jnp.sum(p**2) * self.scale

    def note(self) -> None:
        self.num_steps += 1
        self.history.append(0.5)


def _reads(settings: Any) -> Callable[[Array], Array]:
    return lambda p: jnp.sum(p**2) * settings.scale


def _logs() -> Callable[[Array], Array]:
    logger = logging.getLogger(__name__)

    def loss(p: Array) -> Array:
        logger.debug("traced")
        return jnp.sum(p**2)

    return loss


def _cached() -> Callable[[Array], Array]:
    @functools.cache
    def scale(n: int) -> float:
        return 2.0 * n

    return lambda p: jnp.sum(p**2) * scale(3)


def _large() -> Callable[[Array], Array]:
    weights = np.ones(1 << 18)
    return lambda p: jnp.sum(p**2) * weights.size


def _cyclic(cycle: Any, key: Any) -> Callable[[Array], Array]:
    return lambda p: jnp.sum(p**2) * len(cycle[key])


def _list() -> Callable[[Array], Array]:
    cycle: list[Any] = []
    cycle.append(cycle)
    return _cyclic(cycle, 0)


def _dictionary() -> Callable[[Array], Array]:
    cycle: dict[str, Any] = {}
    cycle["self"] = cycle
    return _cyclic(cycle, "self")


ONCE: dict[str, Callable[[], Callable[[Array], Array]]] = {
    "argparse.Namespace": lambda: _reads(argparse.Namespace(scale=2.0)),
    "SimpleNamespace": lambda: _reads(types.SimpleNamespace(scale=2.0)),
    "slots": lambda: _reads(Slots()),
    "dataclass": lambda: _reads(Settings()),
    "hooked fields": lambda: _reads(Fields()),
    "trainer": lambda: Trainer().loss,
    "logger": _logs,
    "cached helper": _cached,
    "getattr": lambda: lambda p: getattr(jnp, "su" + "m")(p**2),
    "a large array": _large,
    "a list in itself": _list,
    "a dictionary in itself": _dictionary,
}


@pytest.mark.parametrize("make", ONCE.values(), ids=ONCE.keys())
def test_six_calls_compile_once(make: Callable[[], Callable[[Array], Array]]):
    door, fn = Door(), make()
    for _ in range(6):
        door.check(fn, P)
    assert door.num_traces == 1


@pytest.mark.parametrize(
    "settings",
    [
        argparse.Namespace(scale=2.0),
        types.SimpleNamespace(scale=2.0),
        Slots(),
        Settings(),
        Fields(),
    ],
    ids=lambda x: type(x).__name__,
)
def test_another_setting_is_seen(settings: Any):
    door, fn = Door(), _reads(settings)
    for scale in (2.0, 3.0, 3.0, 2.0):
        settings.scale = scale
        door.check(fn, P)
    assert door.num_traces == 2


def test_what_a_trainer_counts_does_not_matter():
    door, trainer = Door(), Trainer()
    for _ in range(6):
        door.check(trainer.loss, P)
        trainer.note()
    assert door.num_traces == 1
    trainer.scale = 5.0
    door.check(trainer.loss, P)
    assert door.num_traces == 2


# The value.

CONSTANTS: dict[str, Any] = {
    "a large int64": np.int64(2**31 + 5),
    "an array of large int64": np.full(3, 2**31 + 5),
    "NumPy's float64": np.float64(1) / 3,
    "an array of float64": np.full(3, 1 / 3),
    "a small int64": np.int64(3),
    "float16": np.float16(0.1),
    "Python's int": 3,
    "Python's float": 0.1,
    "bool": True,
    "a complex number": 1.0 + 2.0j,
    "JAX's array": jnp.full(3, 1 / 3, FLOAT),
}
USES: dict[str, Callable[[Any, Any], Any]] = {
    "added": lambda p, c: jnp.sum(jnp.abs(p + jnp.asarray(c))),
    "raised": lambda p, c: jnp.sum(p) * np.asarray(c).ravel()[0].real ** 2,
    "a key": lambda p, c: jnp.sum(p) * {f"{c}": 2.0}[f"{c}"] * len(f"{c}"),
    "its type": lambda p, c: jnp.sum(p) * len(type(c).__name__),
    "traced?": lambda p, c: jnp.sum(p) * (2.0 if isinstance(c, Tracer) else 3.0),
    "remainder": lambda p, c: jnp.sum(p) * (int(np.real(np.ravel(c)[0])) % 7),
}


def _closure(use: Any, c: Any) -> Callable[[Array], Array]:
    return lambda p: use(p, c).astype(FLOAT)


def _default(use: Any, c: Any) -> Callable[[Array], Array]:
    return lambda p, c=c: use(p, c).astype(FLOAT)


def by_step(fn: Any) -> Any:
    return OPT.step(fn, P, OPT.init(P))[2].value


def by_fit(fn: Any) -> Any:
    return eqopt.fit(lambda p, _: fn(p), OPT, P, [None]).history.loss[0]


@pytest.mark.filterwarnings("ignore::UserWarning")  # JAX's, of float64 that is cut to float32
@pytest.mark.parametrize("make", [_closure, _default])
@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_the_value_is_that_of_jit(use: Callable[[Any, Any], Any], make: Callable[..., Any]):
    with jax.numpy_dtype_promotion("standard"):
        for name, constant in CONSTANTS.items():
            expected = jax.jit(make(use, constant))(P)
            np.testing.assert_array_equal(by_step(make(use, constant)), expected, name)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", CONSTANTS)
def test_the_value_in_fit_is_that_of_jit(name: str):
    with jax.numpy_dtype_promotion("standard"):
        fn = _closure(USES["added"], CONSTANTS[name])
        np.testing.assert_array_equal(by_fit(fn), jax.jit(fn)(P))


def test_the_value_in_minimize_is_that_of_jit():
    large = np.int64(2**31 + 5)

    def fn(p: Array) -> Array:
        return jnp.sum(p**2) + jnp.asarray(large % 1000, FLOAT)

    solution = eqopt.minimize(fn, eqopt.BFGS(), P)
    np.testing.assert_array_equal(solution.value, jax.jit(fn)(solution.params))
