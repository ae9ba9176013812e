"""What a function reads, and what that is known by.

Nothing is data here: see `_closure.py` for what may be.
"""

import builtins
import enum
import functools
import hashlib
import inspect
import re
import sys
import types
from collections.abc import Hashable, Iterator, Set
from typing import Any

import equinox as eqx
import jax
import numpy as np

from .bytecode import (
    CALL,
    Callbacks,
    CALLED,
    installed,
    NOWHERE,
    Path,
    Paths,
    uses,
    uses_of_self,
    WHOLE,
)
from .identity_keys import Identity, Place, place, Same

# Of a code, a name that it reads.
Name = tuple[Hashable, str]
ROOT = "<code>"


class UnseenError(Exception):
    """There is something that cannot be seen into."""


_BLIND = {"globals", "locals", "vars", "eval", "exec", "open", "input", "__import__", "getattr"}
_ATOMS = (bool, int, str, bytes, range, type(None), type(...), enum.Enum, np.dtype, re.Pattern)
_CONSTANTS = (np.ufunc, type(jax.jit(lambda: None)), type(np.sum), types.GenericAlias)
_CONSTANTS += (types.UnionType, types.MethodDescriptorType, types.WrapperDescriptorType)
_MAX_BYTES = 1 << 20
# What a callback may change, and those of its methods that do so without reading it.
_WRITERS: dict[type, frozenset[str]] = {
    list: frozenset({"append", "extend", "insert", "clear"}),
    dict: frozenset({"update", "clear"}),
    set: frozenset({"add", "update", "discard", "clear"}),
    np.ndarray: frozenset(),
}


def known(module: str | None) -> bool:
    """Whether a module belongs to an installed package, and so does not change."""
    if module is None or module == "__main__":
        return False
    loaded = sys.modules.get(module)
    path = None if loaded is None else vars(loaded).get("__file__")
    return module.partition(".")[0] in sys.stdlib_module_names or (
        path is not None and installed(path)
    )


class Reader:
    """Collects, by code and name, what each thing that is read is known by.

    **Arguments:**

    - `callbacks`: codes that only run when the program runs.
    - `written`: names of what the function itself changes, a counter or a log: no input either.
    """

    def __init__(self, callbacks: Callbacks, written: Set[Name]) -> None:
        self.callbacks, self.written = callbacks, written
        self.items: dict[Name, Hashable] = {}
        self.doubtful = False  # whether a callback might change some of it
        self.partial = False  # whether there were any callbacks
        self.order: dict[int, Hashable] = {}  # what functions and objects are called, by id
        self.numbers: dict[Hashable, int] = {}
        self.hoisting: set[int] = set()  # functions that are being taken apart
        self.taken: dict[Name, Paths] = {}  # what is done with an attribute
        self.done: set[tuple[int, Path]] = set()
        # What has attributes that any code may read, and all that any code reads.
        self.open: dict[int, Any] = {}
        self.attributes: set[str] = set()

    def finish(self) -> None:
        """Reads the attributes of functions, classes and modules, if any code names them."""
        before = -1
        while before < len(self.items):
            before = len(self.items)
            for x in list(self.open.values()):
                for name in sorted(self.attributes & vars(x).keys()):
                    if not isinstance(x, type) or _is_data(vars(x)[name]):
                        self._take(x, name, vars(x)[name], WHOLE)

    def note_value(self, kind: str, key: Hashable) -> None:
        """Notes something that has no name."""
        self.items[(kind, self._count(kind)), ROOT] = key

    def read_globals(self, fn: types.FunctionType, *, runs: bool = False) -> Hashable:
        """Reads a function's globals; `runs` if it is certain to run while tracing."""
        code, runs = fn.__code__, runs or not self.order
        me = self._name(fn, code)
        self.items[me, ROOT] = id(fn.__globals__)
        if installed(code.co_filename):
            return me  # what a package's own names stand for does not change
        found = uses(code, self.callbacks)
        self.attributes |= found.attributes
        self.partial = self.partial or found.partial
        if fn.__dict__:
            self.open[id(fn)] = fn
        for name in sorted(found.globals):
            if name in fn.__globals__:
                # What it reads itself is read, whatever its callbacks do.
                certain = runs and name not in found.inner
                self.doubtful = self.doubtful or name in found.stored
                self.note(me, name, fn.__globals__[name], found.globals[name], certain=certain)
            elif name in _BLIND and name in vars(builtins):
                raise UnseenError(f"it calls `{name}`")
        if not all(map(known, found.modules)):
            raise UnseenError("it imports a module that is not installed")
        return me

    def read_cell(
        self, me: Hashable, code: types.CodeType, name: str, cell: types.CellType
    ) -> tuple[Paths, bool]:
        """Gives what is done with a cell while tracing, and whether a callback has it as well."""
        if installed(code.co_filename):
            return WHOLE, False
        found = uses(code, self.callbacks)
        self.doubtful = self.doubtful or name in found.stored
        if name in found.handed:  # it matters, then, which one it is
            self.items[me, f"<cell> {name}"] = Place(cell, name in found.stored, frozenset())
        return found.cells.get(name, NOWHERE), name in found.handed

    def note(
        self, me: Hashable, name: str, x: Any, paths: Paths = WHOLE, *, certain: bool = False
    ) -> None:
        if (me, name) in self.written:
            return
        self.doubtful = self.doubtful or (type(x) in _WRITERS and not certain)
        if isinstance(x, types.FunctionType):
            runs = certain and not paths.isdisjoint(CALLED)
            self.items[me, name] = self._function_key(x, runs=runs)
        else:
            self.items[me, name] = self.key(x, paths)

    def key(self, x: Any, paths: Paths = WHOLE) -> Hashable:
        """Gives what a value is known by, if it may not be data."""
        if isinstance(x, types.ModuleType):  # what a function names most often
            return self._module_key(x, paths)
        if isinstance(x, float | complex):
            return type(x), repr(x)  # tells 0.0 from -0.0, and not NaN from NaN
        if isinstance(x, _ATOMS):
            return type(x), x
        if isinstance(x, jax.Array):
            return Identity(x)
        if isinstance(x, np.ndarray | np.generic):
            if x.dtype.hasobject or x.nbytes > _MAX_BYTES:
                raise UnseenError("a large NumPy array may be changed in place")
            return x.shape, x.dtype, hashlib.blake2b(x.tobytes()).digest()
        if isinstance(x, types.FunctionType):
            return self._function_key(x)
        if isinstance(x, type):
            return self._class_key(x, paths)
        if isinstance(x, types.MethodType):
            ordinary = _static(type(x.__self__), x.__func__.__name__) is x.__func__
            path = frozenset({(x.__func__.__name__, CALL)})
            return self.key(x.__func__), self.key(x.__self__, path if ordinary else WHOLE)
        if isinstance(x, functools.partial):
            return self.key(x.func), self.key(x.args), self.key(dict(x.keywords))
        if isinstance(x, types.BuiltinFunctionType):
            plain = isinstance(x.__self__, types.ModuleType) or _only_writes(x.__self__, x.__name__)
            return x, None if plain else self.key(x.__self__)
        if isinstance(x, jax.custom_jvp | jax.custom_vjp):
            return self._custom_key(x)
        if paths and all(path and _only_writes(x, path[0]) for path in paths):
            # It is not read. Handed on, as `log.append` is, it matters which one it is.
            return "log", Same(x) if any(len(path) == 1 for path in paths) else None
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
            return self._object_key(x, paths)
        return treedef, self.classes(x), tuple(self.key(leaf) for leaf in leaves)

    def _count(self, kind: Hashable) -> int:
        self.numbers[kind] = self.numbers.get(kind, -1) + 1
        return self.numbers[kind]

    def _name(self, x: Any, kind: Hashable) -> Hashable:
        """Gives something a name, by which it is known when it is met again."""
        if id(x) not in self.order:
            self.order[id(x)] = kind, self._count(kind)
        return self.order[id(x)]

    def _take(self, owner: Any, name: str, x: Any, paths: Paths) -> None:
        """Notes an attribute, with all that has been done with it so far."""
        me = "attribute", self.order[id(owner)]
        known = self.taken.get((me, name), NOWHERE)
        if paths <= known:
            return
        self.taken[me, name] = known | paths
        try:
            self.note(me, name, x, known | paths)
        except UnseenError:
            if not isinstance(owner, type):
                raise
            self.items[me, name] = Same(x)  # a lock, a registry: what classes have

    def _function_key(self, fn: types.FunctionType, *, runs: bool = False) -> Hashable:
        if installed(fn.__code__.co_filename) and fn.__closure__ is None:
            return fn
        if fn.__code__ in self.callbacks.silent:
            self.partial = True
            return place(fn)
        if id(fn) in self.hoisting and (fn.__closure__ or fn.__defaults__ or fn.__kwdefaults__):
            raise UnseenError("it calls itself by a global name, with its own arrays")
        if id(fn) in self.order:
            return self.order[id(fn)]
        me = self.read_globals(fn, runs=runs)
        for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
            paths, _ = self.read_cell(me, fn.__code__, name, cell)
            try:
                if paths:
                    self.note(me, name, cell.cell_contents, paths)
            except ValueError:  # not assigned yet
                self.items[me, name] = None
        self.items[me, "<defaults>"] = self.key(fn.__defaults__), self.key(fn.__kwdefaults__)
        return me

    def _custom_key(self, x: Any) -> Hashable:
        """A function with its own rules for derivatives is known by them too."""
        fn = x.__wrapped__
        if isinstance(fn, types.FunctionType) and installed(fn.__code__.co_filename):
            return Same(x)
        rules = [vars(x).get(name) for name in ("jvp", "fwd", "bwd")]
        return Same(x), self.key(fn), tuple(map(self.key, rules))

    def _module_key(self, module: types.ModuleType, paths: Paths) -> Hashable:
        me = self._name(module, ("module", id(module)))
        if not known(module.__name__):
            for path in paths:
                if not path:
                    self.open[id(module)] = module
                if path and path[0] in vars(module):
                    self._take(module, path[0], vars(module)[path[0]], frozenset({path[1:]}))
        return me

    def _object_key(self, x: Any, paths: Paths) -> Hashable:
        """An object of a user's own class is known by those of its attributes that are read."""
        cls = type(x)
        if known(cls.__module__) or cls.__dictoffset__ == 0 or any(map(_hides, cls.__mro__)):
            raise UnseenError(f"a {cls.__name__} cannot be seen into")
        self.doubtful = True
        me, pending = self._name(x, ("object", cls)), paths
        if any(_static(cls, name) is not None for name in ("__getattr__", "__getattribute__")):
            pending = WHOLE
        while pending:
            path = next(iter(pending))
            pending -= {path}
            if (id(x), path) in self.done:
                continue
            self.done.add((id(x), path))
            if path:
                pending |= self._take_path(x, path)
            else:
                self._open(cls)
                for name, value in list(vars(x).items()):
                    self._take(x, name, value, WHOLE)
        return me, ("class", cls)

    def _take_path(self, x: Any, path: Path) -> Paths:
        """Reads what leads to one attribute; gives what its methods do with the object then."""
        head, tail, found = path[0], frozenset({path[1:]}), _static(type(x), path[0])
        if head in vars(x):
            self._take(x, head, vars(x)[head], tail)
        method = found.fget if isinstance(found, property) else found
        if isinstance(method, types.FunctionType) and not installed(method.__code__.co_filename):
            self._function_key(method)
            paths, handed = uses_of_self(method.__code__, self.callbacks)
            if handed:
                self.items[self.order[id(x)], "<object>"] = Same(x)
            return paths
        if head.startswith("__") or (found is None and head not in vars(x)):
            return WHOLE
        if isinstance(found, classmethod) or (found is not None and _is_data(found)):
            self._open(type(x))
            self.attributes.add(head)
            return NOWHERE
        return NOWHERE if found is None or isinstance(found, staticmethod) else WHOLE

    def _class_key(self, cls: type, paths: Paths = WHOLE) -> Hashable:
        """A class is known by its identity; what its own methods read, as if they were called."""
        self._open(cls)
        self.attributes.update(path[0] for path in paths if path)
        return "class", cls

    def _open(self, cls: type) -> None:
        for base in cls.__mro__:
            if known(base.__module__) or base is object or id(base) in self.order:
                continue
            self._name(base, ("class", base))
            self.open[id(base)] = base
            for name in vars(base):
                method = (
                    inspect.unwrap(getattr(base, name)) if callable(getattr(base, name)) else None
                )
                method = method.__func__ if isinstance(method, types.MethodType) else method
                if isinstance(vars(base)[name], property):
                    method = vars(base)[name].fget
                if isinstance(method, types.FunctionType):
                    self._function_key(method)

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


def _only_writes(x: Any, method: str) -> bool:
    return method in _WRITERS.get(type(x), frozenset())


def _static(cls: type, name: str) -> Any:
    """An attribute of a class as it was written."""
    found = (vars(base)[name] for base in cls.__mro__[:-1] if name in vars(base))
    return next(found, None)


def _is_data(x: Any) -> bool:
    """Whether an attribute of a class is what it seems, and is read with no code of its own."""
    kept = any("__get__" in vars(base) for base in type(x).__mro__)
    return not kept and not isinstance(x, staticmethod | classmethod)


def _hides(base: type) -> bool:
    """Whether the objects of a class hold more than attributes in a dictionary."""
    builtin = not base.__flags__ & (1 << 9)  # not made by a `class` statement
    slots = vars(base).get("__slots__", ())
    slots = {slots} if isinstance(slots, str) else set(slots)
    return base is not object and (builtin or bool(slots - {"__dict__", "__weakref__"}))
