"""Modules that eqopt builds again: they are remembered, and checked only the first time."""

import contextlib
import weakref
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

_rebuilding: ContextVar[bool] = ContextVar("rebuilding", default=False)

is_rebuilding = _rebuilding.get


@contextlib.contextmanager
def rebuilding() -> Iterator[None]:
    """Within it, what is built has been checked before."""
    token = _rebuilding.set(True)
    try:
        yield
    finally:
        _rebuilding.reset(token)


class IdentityMap:
    """Remembers a value for an object, by identity, for as long as the object lives."""

    def __init__(self) -> None:
        self._values: dict[int, tuple[weakref.ref[Any], Any]] = {}

    def get(self, x: object) -> Any:
        """The value for `x`, or `None`."""
        ref, value = self._values.get(id(x), (None, None))
        return value if ref is not None and ref() is x else None

    def add(self, x: object, value: Any) -> Any:
        """Remembers the value, and gives it back."""
        key = id(x)
        self._values[key] = weakref.ref(x, lambda _: self._values.pop(key, None)), value
        return value
