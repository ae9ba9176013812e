"""Each way to change what a plain function does is seen, and compiles once."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import pytest

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
