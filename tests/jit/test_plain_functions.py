"""Plain functions are not read anew while they read the same objects, and are as soon as not."""

import types
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import pytest

from eqopt._jit.function import key_function
from tests.jit.test_functions import Door, P

SOURCE = """
import jax.numpy as jnp
from jax import vmap
from equinox import Module

scale = 2.0

def inner(x):
    return scale * x

def loss(p):
    return jnp.sum(abs(inner(p)))

def other(p):
    return jnp.sum(vmap(inner)(p)) if issubclass(Module, object) else p

mapped = vmap(inner)

def wrapped(p):
    return jnp.sum(mapped(p))
"""


def scope() -> dict[str, Any]:
    """A new namespace, with the functions in it."""
    found: dict[str, Any] = {}
    exec(compile(SOURCE, "a_users_file.py", "exec"), found)
    return found


@pytest.mark.parametrize("name", ["inner", "loss", "other"])
def test_a_plain_function_is_read_once(name: str) -> None:
    found = scope()
    assert key_function(found[name]) is key_function(found[name])
    assert key_function(found[name]) is not key_function(scope()[name])


def _rebind_number(found: dict[str, Any]) -> None:
    found["scale"] = 3.0


def _rebind_function(found: dict[str, Any]) -> None:
    found["inner"] = lambda x: 3.0 * x


def _other_code(found: dict[str, Any]) -> None:
    found["inner"].__code__ = (lambda x: 3.0 * x).__code__


def _default(found: dict[str, Any]) -> None:
    def inner(x: Any, scale: float = 3.0) -> Any:
        return scale * x

    found["inner"].__code__ = inner.__code__
    found["inner"].__defaults__ = inner.__defaults__


def _shadow_builtin(found: dict[str, Any]) -> None:
    found["abs"] = lambda x: 1.5 * x


def _own_code(found: dict[str, Any]) -> None:
    found["loss"].__code__ = _tripled.__code__


def _tripled(p: Any) -> Any:
    return 3.0 * jnp.sum(p)


CHANGES = [_rebind_number, _rebind_function, _other_code, _default, _shadow_builtin, _own_code]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change: Callable[[dict[str, Any]], None]) -> None:
    door, found = Door(), scope()
    for _ in range(2):
        door.check(found["loss"])
    assert door.num_traces == 1
    change(found)
    assert found["loss"](P) == 3 * jnp.sum(P)
    door.check(found["loss"])
    assert door.num_traces == 2


def test_a_change_behind_a_packages_function_is_seen() -> None:
    # The code of `mapped` is JAX's; what it calls is the user's.
    door, found = Door(), scope()
    door.check(found["wrapped"])
    found["scale"] = 3.0
    door.check(found["wrapped"])
    assert door.num_traces == 2


def _closure() -> Any:
    number = [1.0]
    return lambda p: number[0] * p


def _with_default(p: Any, number: float = 1.0) -> Any:
    return number * p


def _reads_a_list(p: Any) -> Any:
    return _numbers[0] * p


def _has_an_attribute(p: Any) -> Any:
    return p


_numbers = [1.0]
vars(_has_an_attribute)["scale"] = 1.0


def _reads_a_users_module(p: Any) -> Any:
    return _module.scale * p


_module: Any = types.ModuleType("module_of_a_user")
_module.scale = 1.0
NOT_PLAIN = [_closure(), _with_default, _reads_a_list, _has_an_attribute, _reads_a_users_module]


@pytest.mark.parametrize("fn", NOT_PLAIN)
def test_what_may_change_within_is_read_anew(fn: Any) -> None:
    assert key_function(fn) is not key_function(fn)
