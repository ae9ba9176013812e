"""Whether the library builds again what a user has built, and checked, before."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_rebuilding: ContextVar[bool] = ContextVar("rebuilding", default=False)

is_rebuilding = _rebuilding.get


@contextlib.contextmanager
def rebuilding() -> Iterator[None]:
    token = _rebuilding.set(True)
    try:
        yield
    finally:
        _rebuilding.reset(token)
