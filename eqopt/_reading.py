"""What a function reads, and what that is known by.

Nothing is data here: see `_closure.py` for what may be.
"""

import builtins
import dataclasses
import dis
import enum
import functools
import hashlib
import inspect
import os
import re
import sys
import sysconfig
import types
import weakref
from collections.abc import Hashable, Iterator
from typing import Any

import equinox as eqx
import jax
import numpy as np

# Of a code, a name that it reads.
Name = tuple[Hashable, str]
# Names of which it has been seen that the function itself changes what they stand for (a counter, a
# log): no input, then.
written: set[Name] = set()
ROOT = "<code>"


class UnseenError(Exception):
    """There is something that cannot be seen into."""


class _Identity:
    """An array as part of a key. It is not kept alive, and once dead equals nothing."""

    def __init__(self, array: Any) -> None:
        self.ref, self.hash = weakref.ref(array), id(array)

    def __eq__(self, other: object) -> bool:
        mine = self.ref()
        return isinstance(other, _Identity) and mine is not None and mine is other.ref()

    def __hash__(self) -> int:
        return self.hash


@dataclasses.dataclass(frozen=True)
class _Names:
    """What a code, with the codes inside it, names."""

    globals: frozenset[str]
    attributes: frozenset[str]
    modules: frozenset[str]


@functools.lru_cache(4096)
def names_in(code: types.CodeType) -> _Names:
    found: dict[str, set[str]] = {"globals": set(), "attributes": set(), "modules": set()}
    codes = [code]
    while codes:
        code = codes.pop()
        codes += [x for x in code.co_consts if isinstance(x, types.CodeType)]
        for step in dis.get_instructions(code):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                found["globals"].add(step.argval)
            elif step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                found["attributes"].add(step.argval)
            elif step.opname == "IMPORT_NAME":
                found["modules"].add(step.argval)
    return _Names(**{name: frozenset(names) for name, names in found.items()})


_STDLIB = tuple(os.path.join(sysconfig.get_path(x), "") for x in ("stdlib", "platstdlib"))
_HERE = os.path.join(os.path.dirname(__file__), "")
_BLIND = {"globals", "locals", "vars", "eval", "exec", "open", "input", "__import__", "getattr"}
_ATOMS = (bool, int, str, bytes, range, type(None), type(...), enum.Enum, np.dtype, re.Pattern)
_CONSTANTS = (np.ufunc, type(jax.jit(lambda: None)), type(np.sum), types.GenericAlias)
_CONSTANTS += (types.UnionType, types.MethodDescriptorType, types.WrapperDescriptorType)
_MAX_BYTES = 1 << 20


@functools.lru_cache(4096)
def installed(path: str) -> bool:
    inside = any(x in path for x in ("site-packages", "dist-packages", "<frozen "))
    return inside or path.startswith((_HERE, *_STDLIB))


def _known(module: str | None) -> bool:
    """Whether a module belongs to an installed package, and so does not change."""
    if module is None or module == "__main__":
        return False
    loaded = sys.modules.get(module)
    path = None if loaded is None else vars(loaded).get("__file__")
    return module.partition(".")[0] in sys.stdlib_module_names or (
        path is not None and installed(path)
    )


class Reader:
    """Collects, by code and name, what each thing that is read is known by."""

    def __init__(self) -> None:
        self.items: dict[Name, Hashable] = {}
        self.order: dict[int, int] = {}  # functions and classes by id, in the order of reading
        self.hoisting: set[int] = set()  # functions that are being taken apart
        self.num_values = 0

    def note_value(self, kind: str, key: Hashable) -> None:
        """Notes something that has no name."""
        self.items[(kind, self.num_values), ROOT] = key
        self.num_values += 1

    def read_globals(self, fn: types.FunctionType) -> Hashable:
        names = names_in(fn.__code__)
        me = (fn.__code__, len(self.order))
        self.order[id(fn)] = len(self.order)
        self.items[me, ROOT] = id(fn.__globals__)
        if installed(fn.__code__.co_filename):
            return me  # what a package's own names stand for does not change
        for name in sorted(names.globals):
            if name in fn.__globals__:
                self.note(me, name, fn.__globals__[name], names.attributes)
            elif name in _BLIND and name in vars(builtins):
                raise UnseenError(f"it calls `{name}`")
        if not all(map(_known, names.modules)):
            raise UnseenError("it imports a module that is not installed")
        return me

    def note(
        self, me: Hashable, name: str, x: Any, attributes: frozenset[str] = frozenset()
    ) -> None:
        if (me, name) in written:
            return
        self.items[me, name] = self.key(x, attributes)

    def key(self, x: Any, attributes: frozenset[str] = frozenset()) -> Hashable:
        """Gives what a value is known by, if it may not be data."""
        if isinstance(x, float | complex):
            return type(x), repr(x)  # tells 0.0 from -0.0, and not NaN from NaN
        if isinstance(x, _ATOMS):
            return type(x), x
        if isinstance(x, jax.Array):
            return _Identity(x)
        if isinstance(x, np.ndarray | np.generic):
            if x.dtype.hasobject or x.nbytes > _MAX_BYTES:
                raise UnseenError("a large NumPy array may be changed in place")
            return x.shape, x.dtype, hashlib.blake2b(x.tobytes()).digest()
        if isinstance(x, types.FunctionType):
            return self._function_key(x)
        if isinstance(x, types.ModuleType):
            return self._module_key(x, attributes)
        if isinstance(x, type):
            return self._class_key(x)
        if isinstance(x, types.MethodType):
            return self.key(x.__func__), self.key(x.__self__)
        if isinstance(x, functools.partial):
            return self.key(x.func), self.key(x.args), self.key(dict(x.keywords))
        if isinstance(x, types.BuiltinFunctionType):
            return x, None if isinstance(x.__self__, types.ModuleType) else self.key(x.__self__)
        if isinstance(x, jax.custom_jvp | jax.custom_vjp):
            return id(x), self.key(x.__wrapped__)
        if isinstance(x, set | frozenset):
            return type(x), tuple(self.key(y) for y in x)
        if isinstance(x, Iterator):
            raise UnseenError("an iterator is used up by looking at it")
        if isinstance(x, _CONSTANTS) or _known_constant(x):
            return x
        try:
            leaves, treedef = jax.tree.flatten(x)
        except Exception:  # keys that cannot be sorted, a cycle, whatever a class may raise
            raise UnseenError(f"a {type(x).__name__} cannot be taken apart") from None
        if len(leaves) == 1 and leaves[0] is x:
            return self._object_key(x)
        return treedef, self.classes(x), tuple(self.key(leaf) for leaf in leaves)

    def _function_key(self, fn: types.FunctionType) -> Hashable:
        if installed(fn.__code__.co_filename) and fn.__closure__ is None:
            return fn
        if id(fn) in self.hoisting and (fn.__closure__ or fn.__defaults__ or fn.__kwdefaults__):
            raise UnseenError("it calls itself by a global name, with its own arrays")
        if id(fn) in self.order:
            return "again", self.order[id(fn)]
        me = self.read_globals(fn)
        for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
            try:
                self.note(me, name, cell.cell_contents, names_in(fn.__code__).attributes)
            except ValueError:  # not assigned yet
                self.items[me, name] = None
        self.items[me, "<defaults>"] = self.key(fn.__defaults__), self.key(fn.__kwdefaults__)
        return me

    def _module_key(self, module: types.ModuleType, attributes: frozenset[str]) -> Hashable:
        if not _known(module.__name__):
            for name in sorted(attributes & vars(module).keys()):
                self.note(("module", id(module)), name, vars(module)[name], attributes)
        return "module", id(module)

    def _object_key(self, x: Any) -> Hashable:
        """An object of a user's own class is known by its attributes."""
        if _known(type(x).__module__) or type(x).__dictoffset__ == 0:
            raise UnseenError(f"a {type(x).__name__} cannot be seen into")
        if id(x) in self.order:
            return "again", self.order[id(x)]
        me = ("object", len(self.order))
        self.order[id(x)] = len(self.order)
        for name, value in vars(x).items():
            self.note(me, name, value)
        return me, self._class_key(type(x))

    def _class_key(self, cls: type) -> Hashable:
        """A class is known by its identity; what its own methods read, as if they were called."""
        for base in cls.__mro__:
            if _known(base.__module__) or base is object or id(base) in self.order:
                continue
            self.order[id(base)] = len(self.order)
            for name in vars(base):
                method = (
                    inspect.unwrap(getattr(base, name)) if callable(getattr(base, name)) else None
                )
                method = method.__func__ if isinstance(method, types.MethodType) else method
                if isinstance(vars(base)[name], property):
                    method = vars(base)[name].fget
                if isinstance(method, types.FunctionType):
                    self._function_key(method)
        return "class", cls

    def classes(self, x: Any) -> Hashable:
        """What the classes in a tree are known by, and the functions in its static fields."""
        found: list[Hashable] = []
        if _is_node(x):
            found.append(self._class_key(type(x)))
        if isinstance(x, eqx.Module):
            found += [
                self.key(value)
                for value in vars(x).values()
                if isinstance(value, types.FunctionType | types.MethodType | functools.partial)
            ]
        for child in jax.tree.leaves(x, is_leaf=lambda y: y is not x and _is_node(y)):
            if _is_node(child) and child is not x:
                found.append(self.classes(child))
        return tuple(found)


def _is_node(x: Any) -> bool:
    """Whether `x` is a tree of a class that has methods."""
    return isinstance(x, eqx.Module) or (isinstance(x, tuple) and type(x) is not tuple)


# Of these packages, what is no function and no tree is configuration, and does not change.
_TRUSTED = {"jax", "jaxlib", "equinox", "jaxtyping", "typing", "pathlib", "datetime"}


def _known_constant(x: Any) -> bool:
    cls = type(x)
    trusted = cls.__module__.partition(".")[0] in _TRUSTED and not isinstance(x, eqx.Module)
    return cls is object or (trusted and cls.__hash__ is not None)
