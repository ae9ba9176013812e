"""Functions that are seen at a glance to do what they did.

To read a function anew at each call takes ten microseconds. A plain one has no closure and no
defaults, and reads numbers, what packages have, and other plain functions: then it is enough to see
that it reads the same objects still.
"""

import sys
import types
from typing import Any

from .bytecode import NO_CALLBACKS, uses
from .function_key import known

_MISSING = object()
_NUMBERS = (bool, int, float, complex, str, type(None))


class Glance:
    """A plain function, with all that it reads."""

    def __init__(self) -> None:
        self._codes: list[tuple[types.FunctionType, types.CodeType]] = []
        self._reads: list[tuple[dict[str, Any], str, Any]] = []

    @classmethod
    def at(cls, fn: Any) -> "Glance | None":
        """What there is to see, or `None` if the function is not plain."""
        glance = cls()
        return glance if glance._take(fn) else None

    def same(self, fn: Any) -> bool:
        """Whether `fn` is the function, and reads the same."""
        return (
            self._codes[0][0] is fn
            and all(x.__code__ is code and _is_bare(x) for x, code in self._codes)
            and all(scope.get(name, _MISSING) is x for scope, name, x in self._reads)
        )

    def _take(self, fn: Any) -> bool:
        if type(fn) is not types.FunctionType or not _is_bare(fn):
            return False
        code, scope = fn.__code__, fn.__globals__
        if (fn, code) in self._codes:
            return True
        self._codes.append((fn, code))
        found = uses(code, NO_CALLBACKS)
        if found.partial or found.stored:
            return False
        for name in found.globals:
            x = scope.get(name, _MISSING)
            self._reads.append((scope, name, x))
            if not (x is _MISSING or type(x) in _NUMBERS or _is_a_packages(x) or self._take(x)):
                return False
        return True


def _is_a_packages(x: Any) -> bool:
    """Whether it is a module, a class or a function of an installed package."""
    if isinstance(x, types.ModuleType):
        return known(x.__name__)
    if not isinstance(x, type | types.FunctionType) or not known(x.__module__):
        return False
    # Found under its own name: a package's code may be what a decorator of its put around a user's.
    home = sys.modules.get(x.__module__)
    return home is not None and vars(home).get(x.__name__) is x


def _is_bare(fn: types.FunctionType) -> bool:
    """Whether there is nothing about a function but its code."""
    return not (fn.__closure__ or fn.__defaults__ or fn.__kwdefaults__ or fn.__dict__)
