"""Which functions a trace hands over to be called when the program runs."""

import contextlib
import functools
import inspect
import sys
import types
from collections.abc import Iterator, Set
from typing import Any

import jax

from .._base.compat import io_callback
from .bytecode import installed


class Watch:
    """What has been seen of a trace: the codes that it ran, and those that it handed over."""

    def __init__(self) -> None:
        self.ran: dict[int, types.CodeType] = {}
        self.silent: set[types.CodeType] = set()
        self.answering: set[types.CodeType] = set()

    def among(self, codes: Set[types.CodeType]) -> Set[types.CodeType]:
        """Those of some codes that the trace ran."""
        names = {x.co_name for x in codes}  # to hash a code takes long
        return {x for x in self.ran.values() if x.co_name in names and x in codes}


@contextlib.contextmanager
def watching(wanted: bool) -> Iterator[Watch]:
    """Watches what runs within, if that is wanted and can be done."""
    previous: Any = sys.getprofile()
    watch = Watch()
    if not wanted or (previous is not None and not callable(previous)):  # a profiler in C
        yield watch
        return

    def see(frame: types.FrameType, event: str, arg: Any) -> None:
        if event == "call":
            code = frame.f_code
            if id(code) not in watch.ran:
                watch.ran[id(code)] = code
            if id(code) in _ENTRIES:
                first, second = (frame.f_locals[x] for x in code.co_varnames[:2])
                answers = _ENTRIES[id(code)] and jax.tree.leaves(second)
                handed = watch.answering if answers else watch.silent
                handed.update(_codes(first))
        if previous is not None:
            previous(frame, event, arg)

    sys.setprofile(see)
    try:
        yield watch
    finally:
        sys.setprofile(previous)


# Whatever calls back goes through one of these. Of the last two, the second argument says what is
# returned.
_ENTRIES = {
    id(inspect.unwrap(fn).__code__): answers
    for fn, answers in ((jax.debug.callback, False), (jax.pure_callback, True), (io_callback, True))
}


def _codes(x: Any, depth: int = 5) -> Iterator[types.CodeType]:
    """The user's codes in something that is to be called."""
    parts: list[Any] = []
    if isinstance(x, functools.partial):
        parts = [x.func, *x.args, *x.keywords.values()]
    elif isinstance(x, types.MethodType):
        parts = [x.__func__]
    elif isinstance(x, types.FunctionType):
        if not installed(x.__code__.co_filename):
            yield x.__code__
            return
        for cell in x.__closure__ or ():  # of a package's wrapper
            with contextlib.suppress(ValueError):  # not assigned yet
                parts.append(cell.cell_contents)
    elif callable(x) and isinstance(type(x).__call__, types.FunctionType):
        parts = [type(x).__call__]
    for part in parts if depth else ():
        yield from _codes(part, depth - 1)
