"""Builds a hashable key of all that a function reads: functions with equal keys do the same.

In: a function. Out: its code and everything that the code names: globals, closure, defaults, and
the same of every function, class, module and object found there. Packages are not read.
The key exists because identity does not tell: a lambda that is made anew at each call is new and
does the same; a function whose global has been rebound is old and does not.
"""

import argparse
import collections
import enum
import functools
import hashlib
import io
import os
import re
import sys
import sysconfig
import types
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from .._base.compat import Tracer

# Larger arrays and longer containers are compared by identity.
_MAX_BYTES, _MAX_LENGTH = 1 << 20, 1000
_ATOMS = (bool, int, str, bytes, range, type(None), type(...))
_NUMBERS = (bool, int, float, complex)
_VALUES = (enum.Enum, np.dtype, re.Pattern)
_CONTAINERS = (dict, types.MappingProxyType, list, tuple, set, frozenset, collections.deque)
_MUTABLE = (dict, list, set, collections.deque, np.ndarray)
_BAGS = (argparse.Namespace, types.SimpleNamespace)
# Attributes in which callable objects and descriptors keep other functions and their arguments.
_PARTS = ("__func__", "__self__", "__wrapped__", "func", "args", "keywords", "fget")
_COMPOSED = (types.MethodType, types.BuiltinFunctionType, functools.partial, property)
_COMPOSED += (functools._lru_cache_wrapper, staticmethod, classmethod)
_BLIND = {"globals", "locals", "eval", "exec", "open", "input"}
# A function that names one of these may read any attribute of an object.
_REFLECTION = {"getattr", "vars", "__dict__", "asdict", "astuple", "fields", "replace"}
# Methods that a function does not run because it has an object.
_UNUSED = {"__init__", "__new__", "__post_init__", "__repr__", "__str__", "__eq__", "__hash__"}
_PLACES = ("stdlib", "platstdlib", "purelib", "platlib")
_ROOTS = tuple({os.path.join(sysconfig.get_path(x), "") for x in _PLACES})
_ROOTS += (os.path.join(os.path.dirname(os.path.dirname(__file__)), ""), "<frozen ")
_PACKAGES = tuple(f"{os.sep}{x}{os.sep}" for x in ("site-packages", "dist-packages"))
_MISSING = object()
_NONE = type(None), None


class UnreadableError(Exception):
    """Something that a function reads cannot be compared."""


class Identity:
    """Compares by identity. The object is kept alive only if it has no weak references."""

    def __init__(self, x: Any) -> None:
        self.hash = id(x)
        try:
            self.ref: Any = weakref.ref(x)
        except TypeError:
            self.ref = lambda: x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self.ref() is other.ref() is not None

    def __hash__(self) -> int:
        return self.hash


class Callbacks(NamedTuple):
    """Codes that run on the host while the program runs, and the containers that they use.

    A function that has callbacks reads everything by identity too: its program calls back into the
    very objects of the function for which it was compiled.
    """

    codes: frozenset[types.CodeType | None] = frozenset()
    containers: tuple[Any, ...] = ()


class FunctionKey:
    """The key of a function; an `UnreadableError` says what cannot be compared, and why.

    - `tokens`, `names`: one token for each thing that the function reads, and the thing's name.
    - `has_arrays`: whether it reads arrays. They are constants of a program.
    - `glance`: what it reads, if that is numbers, packages, and functions that read nothing else.
    """

    def __init__(self, reader: "_Reader") -> None:
        self.tokens, self.names = tuple(reader.tokens), reader.names
        self.has_arrays = reader.has_arrays
        self.glance = reader.glance if reader.plain else None
        self.hash = hash(self.tokens)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FunctionKey) and self.tokens == other.tokens

    def __hash__(self) -> int:
        return self.hash

    def is_current(self) -> bool:
        """Whether a glance tells that the function reads the very objects that it has read."""
        return self.glance is not None and all(
            scope.get(name, _MISSING) is x if name else scope.__code__ is x and _is_bare(scope)
            for scope, name, x in self.glance
        )

    def changes(self, before: "FunctionKey") -> dict[str, tuple[Any, Any]]:
        """The names of the things that differ, with the tokens before and now."""
        old, new = (dict(zip(x.names, x.tokens, strict=True)) for x in (before, self))
        pairs = {x: (old.get(x, _NONE), new.get(x, _NONE)) for x in old | new}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    def has_grown(self, before: "FunctionKey") -> bool:
        """Whether things were only added or counted up, as a memo or a counter does."""
        return all(
            old == _NONE or (old[0] is new[0] and isinstance(new[1], int) and new[1] > old[1])
            for old, new in self.changes(before).values()
        )


def described(name: str) -> str:
    where, _, expression = name.rpartition(":")
    return f"`{expression}`, {where}," if where else f"`{expression}`"


def read(fn: Any, callbacks: Callbacks) -> tuple[FunctionKey, tuple[Tracer, ...]]:
    """Gives the key of a function, and the tracers that it reads: data of another program."""
    reader = _Reader(callbacks)
    reader.read_all(fn)
    return FunctionKey(reader), tuple(reader.captured)


def callbacks_of(functions: list[Any]) -> Callbacks:
    """The codes of some functions, and all lists, sets and dictionaries that they use."""
    reader = _Reader(Callbacks())
    for fn in functions:
        try:
            reader.read_all(fn)
        except UnreadableError:
            continue
    codes = frozenset(getattr(x, "__code__", None) for x in functions)
    return Callbacks(codes, tuple(x for x in reader.alive if isinstance(x, _MUTABLE)))


def is_of_package(path: str) -> bool:
    """Whether a file belongs to Python, to an installed package, or to eqopt."""
    return path.startswith(_ROOTS) or any(x in path for x in _PACKAGES)


def _is_package(module: Any) -> bool:
    if type(module) is not str or module == "__main__":
        return False
    # A module without a file is the user's, unless it is Python's.
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return module.partition(".")[0] in sys.stdlib_module_names or is_of_package(file)


def _is_known(x: Any) -> bool:
    """Whether a package has it under its own name."""
    if isinstance(x, types.ModuleType):
        return _is_package(x.__name__)
    # Not every callable object says how it is called and where it is from.
    module, name = getattr(x, "__module__", None), getattr(x, "__name__", "")
    return callable(x) and _is_package(module) and vars(sys.modules[module]).get(name) is x


def _is_bare(fn: types.FunctionType) -> bool:
    return not (fn.__closure__ or fn.__defaults__ or fn.__kwdefaults__ or fn.__dict__)


@functools.lru_cache(4096)
def _names(code: types.CodeType, skipped: frozenset[types.CodeType]) -> frozenset[str]:
    # Strings too, for they may be given to `getattr`.
    found = {*code.co_names, *(x for x in code.co_consts if isinstance(x, str))}
    inner = [x for x in code.co_consts if isinstance(x, types.CodeType) and x not in skipped]
    return frozenset(found.union(*(_names(x, skipped) for x in inner)))


class _Owner(NamedTuple):
    """A module, class or object: attributes that no code names are not read, such as a counter."""

    attributes: Mapping[str, Any]
    name: str
    done: set[str]
    reflects: bool = False  # reflection may read all attributes
    is_open: bool = False  # all attributes are read


class _Reader:
    """Adds a token and a name for each thing that it reads."""

    def __init__(self, callbacks: Callbacks) -> None:
        self.callbacks = callbacks
        self.tokens: list[Any] = []
        self.names: list[str] = []
        self.seen: dict[Any, int] = {}
        self.alive: list[Any] = []  # whatever has been read, so that no `id` is used twice
        self.captured: list[Any] = []
        self.has_arrays = False
        self.named: set[str] = set()
        self.owners: list[_Owner] = []
        self.glance: list[tuple[Any, str, Any]] = []
        self.plain = True

    def read_all(self, fn: Any) -> None:
        try:
            self.read(fn, type(fn).__name__)
            before = -1
            while before < (before := len(self.named) + len(self.owners)):
                for owner in list(self.owners):
                    self.read_owner(owner)
        except RecursionError:
            raise UnreadableError("it reads something that is nested too deeply") from None

    def read_owner(self, owner: _Owner) -> None:
        every = owner.is_open or (owner.reflects and self.named & _REFLECTION)
        names = owner.attributes.keys() if every else self.named & owner.attributes.keys()
        for name in sorted(names - owner.done):
            owner.done.add(name)
            self.read(owner.attributes[name], f"{owner.name}.{name}")

    def add(self, token: Any, name: str) -> None:
        self.tokens.append(token)
        self.names.append(name)

    def read(self, x: Any, name: str) -> None:
        kind = type(x)
        if kind in _ATOMS or isinstance(x, _VALUES):
            return self.add((kind, x), name)
        if kind is float or kind is complex:  # a NaN equals itself, and -0.0 is not 0.0
            return self.add((kind, repr(x)), name)
        if id(x) in self.seen:
            return self.add(("seen", self.seen[id(x)]), name)
        self.seen[id(x)] = len(self.seen)
        self.alive.append(x)
        if _is_known(x):
            return self.add(Identity(x), name)
        if isinstance(x, types.FunctionType):
            return self.read_function(x, name)
        self.plain = False
        if isinstance(x, jax.Array):
            return self.read_array(x, name)
        if self.callbacks.codes and not isinstance(x, type | types.BuiltinFunctionType | tuple):
            self.add(Identity(x), name)
            if any(x is y for y in self.callbacks.containers):
                return self.read_shared(x, name)
        if isinstance(x, np.ndarray | np.generic) and not x.dtype.hasobject:
            small = x.nbytes <= _MAX_BYTES
            content = hashlib.blake2b(x.tobytes()).digest() if small else Identity(x)
            return self.add((kind, x.shape, x.dtype, content), name)
        if isinstance(x, Iterator) and not isinstance(x, io.IOBase):
            raise UnreadableError(
                f"{described(name)} is a {kind.__name__}, which changes when read"
            )
        if isinstance(x, types.ModuleType):
            self.add(Identity(x), name)
            self.owners.append(_Owner(vars(x), name, set()))
        elif isinstance(x, type):
            self.add(x, name)
            self.read_class(x, name, set())
        elif isinstance(x, _COMPOSED):
            self.add((kind, getattr(x, "__name__", None)), name)
            for part in [y for y in _PARTS if y in dir(x)]:
                self.read(getattr(x, part), name)
        elif isinstance(x, _CONTAINERS):
            self.read_container(x, name)
        else:
            self.read_object(x, name)

    def read_array(self, x: jax.Array, name: str) -> None:
        if isinstance(x, Tracer):
            self.captured.append(x)
            return self.add((x.shape, x.dtype), name)
        self.has_arrays = True
        self.add(Identity(x), name)

    def read_function(self, fn: types.FunctionType, name: str) -> None:
        code = fn.__code__
        if code in self.callbacks.codes:
            return self.add(Identity(fn), name)
        self.add(code, name)
        self.glance.append((fn, "", code))
        self.plain = self.plain and _is_bare(fn)
        if not is_of_package(code.co_filename):
            self.read_globals(fn)
        called = [c for c in code.co_consts if c in self.callbacks.codes]
        for variable, cell in zip(code.co_freevars, fn.__closure__ or (), strict=True):
            where = f"in the closure of `{fn.__name__}`:{variable}"
            try:
                x = cell.cell_contents
            except ValueError:  # not assigned yet
                x = _MISSING
            if type(x) in _NUMBERS and any(variable in c.co_freevars for c in called):
                self.add(Identity(cell), where)  # a callback may count in it
            self.read(x, where)
        for x in (fn.__defaults__, fn.__kwdefaults__, fn.__dict__):
            if x:
                self.read(x, f"in the signature of `{fn.__name__}`:defaults")

    def read_globals(self, fn: types.FunctionType) -> None:
        names, scope = _names(fn.__code__, self.callbacks.codes), fn.__globals__
        blind = sorted(_BLIND.intersection(fn.__code__.co_names) - scope.keys())
        if blind:
            raise UnreadableError(f"`{fn.__name__}` calls `{blind[0]}`, which may read anything")
        self.named |= names
        for name in sorted(names):
            x = scope.get(name, _MISSING)
            self.glance.append((scope, name, x))
            if x is _MISSING:  # perhaps a module that is imported within the function
                within = f"{scope.get('__package__') or ''}.{name}"
                x = sys.modules.get(name) or sys.modules.get(within, _MISSING)
            if x is not _MISSING and (id(scope), name) not in self.seen:
                self.seen[id(scope), name] = len(self.seen)
                self.read(x, f"a global of `{fn.__name__}`:{name}")

    def read_class(self, cls: type, name: str, unused: set[str]) -> None:
        for base in cls.__mro__:
            if not _is_package(base.__module__):
                own = vars(base)
                self.named |= {x for x in own if x[:2] == "__" and callable(own[x])} - unused
                self.owners.append(_Owner(own, name, set(unused)))

    def read_container(self, x: Any, name: str) -> None:
        has_keys = isinstance(x, dict | types.MappingProxyType)
        self.add((type(x), len(x)), name)
        if len(x) > _MAX_LENGTH:
            return self.add(Identity(x), name)
        for key, value in list(x.items() if has_keys else enumerate(x)):
            if has_keys:
                self.read(key, name)
            self.read(value, f"{name}[{key!r}]" if type(key) in _ATOMS else name)
        if type(x) not in _CONTAINERS:
            self.read_object(x, name)

    def read_shared(self, x: Any, name: str) -> None:
        """Reads a container that a callback uses: only the items that other code names."""
        if isinstance(x, dict):
            items = {key: value for key, value in x.items() if type(key) is str}
            self.owners.append(_Owner(items, name, set()))

    def read_object(self, x: Any, name: str) -> None:
        cls = type(x)
        mro, foreign = cls.__mro__, _is_package(cls.__module__)
        is_open = any("__getattr__" in vars(c) for c in mro) or not jax.tree_util.all_leaves([x])
        by_identity = foreign and not is_open and not isinstance(x, _BAGS)
        self.add(Identity(x) if by_identity else cls, name)
        self.read_class(cls, name, _UNUSED)
        # An object of C has no dictionary, and a slot may not be set.
        state = dict(getattr(x, "__dict__", {}))
        slots = [vars(c).get("__slots__", ()) for c in mro]
        for slot in [y for ys in slots for y in ((ys,) if isinstance(ys, str) else ys)]:
            if not slot.startswith("__"):
                state[slot] = getattr(x, slot, _MISSING)
        self.owners.append(_Owner(state, name, set(), not foreign, is_open))
