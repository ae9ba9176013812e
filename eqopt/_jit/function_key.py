"""Builds a hashable key of all that a function reads: functions with equal keys do the same.

In: a function. Out: its code and everything that the code names: globals, closure, defaults, and
the same of every function, class, module and object found there. Packages are not read. The key
exists because identity is not enough: a lambda made at each call is a new object that does the
same; a function whose global was rebound is the same object and does something else.
"""

import argparse
import collections
import enum
import functools
import hashlib
import io
import os
import sys
import sysconfig
import types
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from .._base.compat import trace_state_clean, Tracer

# Larger arrays and longer containers are compared by identity.
_MAX_BYTES, _MAX_LENGTH = 1 << 20, 1000
_ATOMS = (bool, int, str, bytes, type(None), type(...))
_NUMBERS = (bool, int, float, complex)
_VALUES: tuple[Any, ...] = (int, float, complex, str, bytes)
_CONTAINERS = (dict, types.MappingProxyType, list, tuple, set, frozenset, collections.deque)
_IMMUTABLE = (type, tuple, frozenset, types.BuiltinFunctionType, *_VALUES)
_OPEN = (collections.UserDict, collections.UserList, collections.ChainMap)
_BAGS = (argparse.Namespace, types.SimpleNamespace)
# Callable objects and descriptors, and the attributes in which they keep what they call.
_COMPOSED = (types.MethodType, types.BuiltinFunctionType, functools.partial, property)
_COMPOSED += (functools._lru_cache_wrapper, staticmethod, classmethod)
_PARTS = ("__func__", "__self__", "__wrapped__", "func", "args", "keywords", "fget")
_BLIND = {"globals", "eval", "exec"}
# A function that names one of these may read any attribute of an object.
_REFLECTION = {"getattr", "vars", "__dict__", "asdict", "astuple", "fields", "replace"}
# Methods that a function does not run because it has an object.
_UNUSED = {"__init__", "__new__", "__post_init__", "__repr__", "__str__", "__eq__", "__hash__"}
_PLACES = ("stdlib", "platstdlib", "purelib", "platlib")
_ROOTS = tuple({os.path.join(sysconfig.get_path(x), "") for x in _PLACES})
_ROOTS += (os.path.join(os.path.dirname(os.path.dirname(__file__)), ""), "<frozen ")
_INSTALLED = {"site-packages", "dist-packages"}

_MISSING = object()

# The names of all things that a function reads, each with a token.
Key = tuple[tuple[str, Any], ...]


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


def changes(before: Key, after: Key) -> dict[str, tuple[Any, Any]]:
    """The names of the things that differ, with the tokens before and after."""
    old, new = dict(before), dict(after)
    pairs = {name: (old.get(name), new.get(name)) for name in old | new}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _is_count(token: Any) -> bool:
    """Whether the token is an integer's, or a container's with its length."""
    return type(token) is tuple and type(token[1]) is int


def has_grown(before: Key, after: Key) -> bool:
    """Whether things were only added or counted up, as a memo or a counter does."""
    return all(
        old is None or (_is_count(old) and _is_count(new) and old[0] is new[0] and old[1] < new[1])
        for old, new in changes(before, after).values()
    )


@functools.lru_cache(4096)
def _is_in_package(path: str) -> bool:
    """Whether a file belongs to Python, to an installed package, or to eqopt."""
    return path.startswith(_ROOTS) or not _INSTALLED.isdisjoint(path.split(os.sep))


def _is_package(module: Any) -> bool:
    if type(module) is not str or module == "__main__":
        return False
    # A module without a file is the user's, unless it is Python's.
    file = getattr(sys.modules.get(module), "__file__", None)
    return _is_in_package(file) if file else module.partition(".")[0] in sys.stdlib_module_names


def _is_bare(fn: types.FunctionType) -> bool:
    return not (fn.__closure__ or fn.__defaults__ or fn.__kwdefaults__ or fn.__dict__)


def _is_users(x: Any) -> bool:
    return isinstance(x, types.FunctionType) and not _is_in_package(x.__code__.co_filename)


def _is_known(x: Any) -> bool:
    """Whether it is a package's module, or what a package has under the object's own name."""
    if isinstance(x, types.ModuleType):
        return _is_package(x.__name__)
    if not callable(x) or not _is_package(type(x).__module__):
        return False
    # Not every callable object has a name and a module.
    module, name = getattr(x, "__module__", ""), getattr(x, "__name__", "")
    return _is_package(module) and vars(sys.modules[module]).get(name) is x


@functools.lru_cache(4096)
def _names(code: types.CodeType) -> tuple[tuple[str, ...], set[str]]:
    """All names in a code and in the codes within it, and the names that may read anything."""
    inner = [_names(x) for x in code.co_consts if isinstance(x, types.CodeType)]
    # Strings too, because they may be arguments of `getattr` or `attrgetter`.
    strings = [x.split(".") for x in code.co_consts if isinstance(x, str)]
    found = {*code.co_names}.union(*strings)
    blind = _BLIND.intersection(code.co_names).union(*[x for _, x in inner])
    return tuple(sorted(found.union(*[x for x, _ in inner]))), blind


class Reader:
    """Finds a token for each thing that a function reads.

    - `calls_back`: whether a program of the function calls back into Python. Objects that can
        change are then compared by identity too, because the program uses those objects themselves.
    - `written`: the names of things that callbacks were seen to change. Their content is not read.
    - `captured`: the tracers that the function reads: data of another program.
    - `has_arrays`: whether it reads arrays, which are constants of its program.
    - `is_plain`: whether it reads nothing but packages, constants, and functions that read no more.
    """

    def __init__(self, calls_back: bool, written: set[str]) -> None:
        self.calls_back, self.written = calls_back, written
        self.captured: list[Tracer] = []
        self.has_arrays = False
        self.is_plain = True
        self.functions: list[tuple[types.FunctionType, types.CodeType]] = []
        self.globals: list[tuple[dict[str, object], str, object]] = []
        self.tokens: dict[str, Any] = {}
        self.seen: dict[Any, str] = {}
        self.alive: list[object] = []  # all objects that were read, so that no `id` is used twice
        self.named: set[str] = set()
        # Modules, classes and objects. Only the attributes that some code names are read.
        self.owners: list[tuple[Mapping[str, object], str, set[str], bool]] = []

    def key(self, fn: Any) -> Key:
        """Gives the key of a function; an `UnreadableError` says what cannot be compared."""
        self.read(fn, type(fn).__name__)
        before = -1
        while before < (before := len(self.named) + len(self.owners)):
            for owner in list(self.owners):
                self.read_attributes(*owner)
        return tuple(self.tokens.items())

    def is_current(self) -> bool:
        """Whether a plain function still reads the very objects that it has read: a quick look."""
        for fn, code in self.functions:
            if fn.__code__ is not code or not _is_bare(fn):
                return False
        for scope, name, x in self.globals:
            if scope.get(name, _MISSING) is not x:
                return False
        return self.is_plain

    def read_attributes(
        self, attributes: Mapping[str, object], name: str, done: set[str], reflects: bool
    ) -> None:
        every = reflects and self.named & _REFLECTION
        names = (attributes.keys() if every else self.named & attributes.keys()) - done
        done |= names
        for attribute in sorted(names):
            self.read(attributes[attribute], f"{name}.{attribute}")

    def read(self, x: Any, name: str) -> None:
        while name in self.tokens:
            name += "'"
        kind = type(x)
        if kind in _ATOMS:
            self.tokens[name] = kind, x if name not in self.written else None
        elif kind in (float, complex, range):  # a NaN equals itself, and -0.0 is not 0.0
            self.tokens[name] = kind, repr(x) if name not in self.written else None
        elif id(x) in self.seen:
            self.tokens[name] = "seen", self.seen[id(x)]
        else:
            self.seen[id(x)] = name
            self.alive.append(x)
            self.read_object(x, name)

    def read_object(self, x: Any, name: str) -> None:
        if name in self.written or _is_known(x):
            self.tokens[name] = Identity(x)
            self.named.add(getattr(x, "__name__", ""))  # `getattr` by another name
        elif isinstance(x, types.FunctionType):
            self.read_function(x, name)
        else:
            self.is_plain = False
            self.read_other(x, name)

    def read_other(self, x: Any, name: str) -> None:
        if isinstance(x, Tracer):
            if not trace_state_clean():  # else an earlier trace left it behind
                self.captured.append(x)
            self.tokens[name] = x.shape, x.dtype
        elif isinstance(x, jax.Array):
            self.has_arrays = True
            self.tokens[name] = Identity(x)
        elif isinstance(x, Iterator) and not isinstance(x, io.IOBase):
            kind = type(x).__name__
            raise UnreadableError(f"{described(name)} is a {kind}, which changes when read")
        elif self.calls_back and not isinstance(x, _IMMUTABLE):
            self.tokens[f"the identity of {name}"] = Identity(x)
            self.read_content(x, name)
        else:
            self.read_content(x, name)

    def read_content(self, x: Any, name: str) -> None:
        cls = type(x)
        if isinstance(x, np.ndarray | np.generic) and not x.dtype.hasobject:
            small = x.nbytes <= _MAX_BYTES
            content = hashlib.blake2b(x.tobytes()).digest() if small else Identity(x)
            self.tokens[name] = cls, x.shape, x.dtype, content
        elif isinstance(x, types.ModuleType):
            self.tokens[name] = Identity(x)
            self.owners.append((vars(x), name, set(), False))
        elif isinstance(x, type):
            self.tokens[name] = x
            self.read_class(x, name, set())
        elif isinstance(x, _COMPOSED):
            self.tokens[name] = cls, getattr(x, "__name__", None)  # a property has none
            for part in [y for y in _PARTS if y in dir(x)]:
                self.read(getattr(x, part), f"{name}.{part}")
        elif isinstance(x, _CONTAINERS) or (isinstance(x, np.ndarray) and x.ndim):
            self.read_container(x, name)
            if cls not in _CONTAINERS:
                self.read_instance(x, f"{name}.__dict__")
        else:
            self.read_instance(x, name)

    def read_function(self, fn: types.FunctionType, name: str) -> None:
        code = fn.__code__
        self.functions.append((fn, code))
        self.is_plain = self.is_plain and _is_bare(fn)
        self.tokens[name] = code
        if not _is_in_package(code.co_filename):
            self.read_globals(fn)
        for variable, cell in zip(code.co_freevars, fn.__closure__ or (), strict=True):
            try:
                x = cell.cell_contents
            except ValueError:  # not assigned yet
                continue
            where = f"{fn.__name__}: {variable}"
            if where in self.written and type(x) in _NUMBERS:
                self.tokens[f"the cell of {where}"] = Identity(cell)
            self.read(x, where)
        for x in (fn.__defaults__, fn.__kwdefaults__, fn.__dict__):
            if x:
                self.read(x, f"{fn.__name__}: its defaults")

    def read_globals(self, fn: types.FunctionType) -> None:
        (names, blind), scope = _names(fn.__code__), fn.__globals__
        for name in blind - scope.keys():
            raise UnreadableError(f"`{fn.__name__}` calls `{name}`, which may read anything")
        self.named.update(names)
        for name in names:
            self.globals.append((scope, name, scope.get(name, _MISSING)))
            # A name that is not a global may be a module that the function imports.
            within = f"{scope.get('__package__') or ''}.{name}"
            x = scope[name] if name in scope else sys.modules.get(name, sys.modules.get(within))
            if (name in scope or x is not None) and (id(scope), name) not in self.seen:
                self.seen[id(scope), name] = name
                self.read(x, f"{fn.__name__}: {name}")

    def read_class(self, cls: type, name: str, unused: set[str]) -> None:
        for base in cls.__mro__:
            if not _is_package(base.__module__):
                own = vars(base)
                self.named |= {x for x in own if x[:2] == "__" and callable(own[x])} - unused
                self.owners.append((own, f"{name}.{base.__name__}", set(unused), False))

    def read_container(self, x: Any, name: str) -> None:
        has_keys = isinstance(x, dict | types.MappingProxyType)
        self.tokens[name] = type(x), len(x)
        if len(x) > _MAX_LENGTH:
            self.tokens[f"the identity of {name}"] = Identity(x)
            return
        # Not by `x[key]`: the user's class may define it.
        for i, (key, value) in enumerate(list(x.items() if has_keys else enumerate(x))):
            where = f"{name}[{key!r}]" if type(key) in _ATOMS else f"{name}[{i}]"
            if has_keys:
                self.read(key, f"the key of {where}")
            self.read(value, where)

    def read_instance(self, x: Any, name: str) -> None:
        cls = type(x)
        foreign = _is_package(cls.__module__)
        has_hook = any("__getattr__" in vars(c) for c in cls.__mro__)
        is_open = has_hook or isinstance(x, _OPEN) or not jax.tree_util.all_leaves([x])
        by_identity = foreign and not is_open and not isinstance(x, _BAGS)
        values = [base.__repr__(x) for base in _VALUES if isinstance(x, base)]
        self.tokens[name] = (
            Identity(x) if by_identity or isinstance(x, enum.Enum) else (cls, *values)
        )
        self.read_class(cls, name, _UNUSED)
        state: Any = object.__getstate__(x)  # the attributes, and those in slots
        for part in state if isinstance(state, tuple) else (state,):
            self.owners.append((part or {}, name, set(), not foreign))
            for attribute, value in sorted((part or {}).items(), key=lambda x: x[0]):
                # The functions that it may call are not named by any code that is read.
                if is_open or (foreign and _is_users(value)):
                    self.read(value, f"{name}.{attribute}")


def described(name: str) -> str:
    """The name, in words for a message."""
    where, _, expression = name.rpartition(": ")
    return f"`{expression}`, which `{where}` reads," if where else f"`{expression}`"
