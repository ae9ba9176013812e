"""A user's function as a PyTree: its code is static, and what it reads is data.

A compiled program may serve again for a function that does the same. Identity does not tell: a
lambda rebuilt at each call is new and does the same; a function whose global has been rebound is
old and does not. So at each call of the front door the function is read: closure cells, defaults,
the globals that its code names, and the same of every function found among these. Arrays become
leaves. All else becomes a static key, compared by type and value. What cannot be seen into makes
the function opaque: a program compiled for it serves once.

Numbers are keys, not leaves: `range(n)` and `if flag:` must work, and the derivative of `x**n` with
a traced `n` is NaN where it should not be.

Two limits, which are those of every `jit`: what an installed package keeps to itself (`random`,
`os.environ`) and the classes of the function's *arguments* are only looked at when tracing.
"""

import builtins
import dataclasses
import datetime
import dis
import enum
import functools
import inspect
import logging
import os
import pathlib
import re
import sys
import sysconfig
import types
import warnings
import weakref
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeAlias

import equinox as eqx
import jax
import numpy as np
from jax.tree_util import PyTreeDef

from ._types import Function


class RecompilationWarning(UserWarning):
    """A function is compiled again and again."""


class _Unseen(Exception):
    """There is something that cannot be seen into."""


class _Same:
    """A constant, compared by identity."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


class _Equal:
    """A constant, compared by a key that holds its type: `1 == 1.0 == True`, but not here."""

    def __init__(self, value: Any, *key: Hashable):
        self.value, self.key = value, (type(value), *key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Equal) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


class _Alive:
    """An array as a constant. It is not kept alive, and once dead equals nothing."""

    def __init__(self, array: jax.Array):
        self.ref, self.key = weakref.ref(array), id(array)

    @property
    def value(self) -> Any:
        return self.ref()

    def __eq__(self, other: object) -> bool:
        mine = self.ref()
        return isinstance(other, _Alive) and mine is not None and mine is other.ref()

    def __hash__(self) -> int:
        return self.key


_EMPTY = _Same(object())  # a cell that is not assigned yet
_Constant: TypeAlias = _Same | _Equal | _Alive
_Ref: TypeAlias = int | _Constant  # the number of a slot, which is rebuilt at each call; or not


class _Code:
    """What is known of a code object, once and for all, and how often it has been traced."""

    def __init__(self, code: types.CodeType):
        self.code = code
        self.key = _Equal(code, code, code.co_filename)
        self.uses: dict[str, set[str | None]] = {}
        self.globals: set[str] = set()
        self.attributes: set[str] = set()
        self.unseen: str | None = None
        self._read(code)
        # A list that is appended to, and nothing else, is written and never read.
        self.logs = {name for name, uses in self.uses.items() if uses == {"append"}}
        self.passes_self = None in self.uses.get((*code.co_varnames, "")[0], ())
        self.given_up = False
        self.signatures: set[Hashable] = set()
        self.repeats = 0

    def _read(self, code: types.CodeType) -> None:
        instructions = list(dis.get_instructions(code))
        for i, step in enumerate(instructions):
            op, name = step.opname, step.argval
            after = instructions[min(i + 1, len(instructions) - 1)]
            if "GLOBAL" in op or op == "LOAD_NAME":
                self.globals.add(name)
            if "ATTR" in op or op in ("LOAD_METHOD", "IMPORT_FROM"):
                self.attributes.add(name)
            elif op == "IMPORT_NAME" and (instructions[i - 2].argval != 0 or not _known(name)):
                self.unseen = f"imports `{name}`"
            elif op == "LOAD_CLOSURE" or (op == "LOAD_FAST" and name in code.co_freevars):
                pass  # a cell that is handed on to a nested function, whose code says what it does
            elif any(kind in op for kind in ("GLOBAL", "DEREF", "FAST")) or op == "LOAD_NAME":
                by_attribute = "ATTR" in after.opname or after.opname == "LOAD_METHOD"
                for used in name if isinstance(name, tuple) else (name,):
                    use = after.argval if op.startswith("LOAD") and by_attribute else None
                    self.uses.setdefault(used, set()).add(use)
        for nested in code.co_consts:
            if isinstance(nested, types.CodeType):
                self._read(nested)


_codes: dict[int, _Code] = {}  # by id: hashing a code object reads all of it. Codes are kept alive


def _code(code: types.CodeType) -> _Code:
    found = _codes.get(id(code))
    if found is None:
        if len(_codes) >= 4096:
            _codes.clear()
        found = _codes[id(code)] = _Code(code)
    return found


# What is installed does not change under our feet, and is not looked into. Nor is eqopt.
_PREFIXES = ("<frozen ", os.path.dirname(__file__) + os.sep) + tuple(
    sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")
)
_PACKAGES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


@functools.lru_cache(4096)
def _installed(path: str) -> bool:
    return path.startswith(_PREFIXES) or any(x in path for x in _PACKAGES)


def _known(module: str | types.ModuleType | None) -> bool:
    if isinstance(module, str):
        return _known(sys.modules.get(module)) or module in sys.stdlib_module_names
    if module is None:
        return False
    file = vars(module).get("__file__")
    if file is None:  # built in, unless it is a namespace of the user's own making
        name = module.__name__.partition(".")[0]
        builtin = name in sys.stdlib_module_names and name != "__main__"
        return builtin and sys.modules.get(module.__name__) is module
    return _installed(file)


def _known_class(cls: type) -> bool:
    if cls.__module__ == "builtins":  # also where a notebook's globals have no `__name__`
        return vars(builtins).get(cls.__name__) is cls or not cls.__flags__ & 1 << 9
    return _known(sys.modules.get(cls.__module__))


def _known_function(fn: types.FunctionType) -> bool:
    if not _installed(fn.__code__.co_filename):
        return False
    module = sys.modules.get(fn.__module__ or "")
    if module is not None and vars(module).get(fn.__name__) is fn:
        return True
    # A closure of a package's, `jax.grad(fn)` for one, may hold anything of the user's.
    return fn.__closure__ is None and "<locals>" not in fn.__qualname__


_ATOMS = frozenset((type(None), type(...), type(NotImplemented), bool, int, str, bytes, range))
_ATOMS |= {datetime.date, datetime.datetime, datetime.timedelta}
_FIXED = (re.Pattern, pathlib.PurePath, logging.Logger, inspect.Signature, types.BuiltinFunctionType)
_FIXED += (types.MethodDescriptorType, types.WrapperDescriptorType, types.GetSetDescriptorType)
_FIXED += (types.MemberDescriptorType, types.ClassMethodDescriptorType)
# Of these packages, objects that are none of the above are configuration and wrapped functions.
_TRUSTED = frozenset(("jax", "jaxlib", "equinox", "numpy", "jaxtyping", "beartype", "typing", "types"))
_BLINDING = frozenset(("globals", "locals", "vars", "dir", "eval", "exec", "getattr", "hasattr"))
_BLINDING |= {"setattr", "delattr", "open", "input", "__import__"}
_MAX_LEAVES = 4096
_JITTED = type(jax.jit(lambda: None))


class _Bound(eqx.Module):
    def method(self) -> None: ...


_BOUND = type(_Bound().method)


@functools.lru_cache(256)
def _nodes(treedef: PyTreeDef) -> tuple[tuple[type, ...], tuple[types.FunctionType, ...]]:
    """The user's classes in a tree, and the functions in its static fields."""
    node = treedef.node_data()
    if node is None:
        return (), ()
    classes = () if _known_class(node[0]) else (node[0],)
    functions, rest = [], [node[1]]
    while rest:
        aux = rest.pop()
        if isinstance(aux, types.FunctionType):
            functions.append(aux)
        elif isinstance(aux, tuple | list):
            rest.extend(aux)
    for child in treedef.children():
        more, others = _nodes(child)
        classes, functions = (*classes, *more), [*functions, *others]
    return classes, tuple(functions)


class _Reader:
    """Reads a function: gives the arrays, and slots that say how to put it together again."""

    def __init__(self):
        self.leaves: list[Any] = []
        self.slots: list[tuple[Any, ...]] = []
        self.memo: dict[tuple[int, bool], int] = {}
        self.read: list[Any] = []  # what the ids in the memo belong to
        self.tables: dict[int, dict[str, _Ref]] = {}  # the globals and modules among the slots
        self.modules: list[tuple[int, types.ModuleType, bool]] = []
        self.classes: list[type] = []
        self.pins: list[Hashable] = []
        self.attributes: set[str] = set()
        self.logs: set[int] = set()
        self.entry: tuple[type, Any] | None = None
        # A class cannot be rebuilt: arrays that its methods read are constants, by identity.
        self.pinned = False
        self.name = "the function"

    def slot(self, x: Any) -> int:
        self.slots.append(())
        self.read.append(x)
        self.memo[id(x), self.pinned] = len(self.slots) - 1
        return len(self.slots) - 1

    def unseen(self, x: Any) -> _Unseen:
        return _Unseen(f"`{self.name}` is a `{type(x).__name__}`")

    def see(self, x: Any) -> _Ref:
        kind = type(x)
        if kind in _ATOMS:
            return _Equal(x, x)
        if kind is float or kind is complex:
            return _Equal(x, repr(x))  # tells -0.0 from 0.0, and not NaN from NaN
        seen = self.memo.get((id(x), self.pinned))
        if seen is not None:
            return seen
        if isinstance(x, jax.Array | np.ndarray | np.generic):
            return self.array(x)
        if kind is types.FunctionType:
            return _Same(x) if _known_function(x) else self.function(x)
        if isinstance(x, types.ModuleType):
            return _Same(x) if _known(x) else self.module(x)
        if isinstance(x, type):
            if not _known_class(x):
                self.classes.append(x)
            return _Same(x)
        if kind is types.MethodType:
            return self.method(x.__func__, x.__self__)
        if kind is functools.partial or kind is jax.tree_util.Partial:
            slot = self.slot(x)
            parts = self.see(x.func), self.see(x.args), self.see(x.keywords)
            self.slots[slot] = (_make_partial, kind, *parts)
            return slot
        return self.tree(x)

    def array(self, x: Any) -> _Ref:
        if not isinstance(x, jax.Array):
            exact = isinstance(x, np.generic) or type(x) is np.ndarray
            if not exact or x.dtype.kind not in "biufcV" or x.dtype.names is not None:
                raise self.unseen(x)
            if self.pinned:
                if x.nbytes > 4096:
                    raise self.unseen(x)
                return _Equal(x.copy(), x.dtype, x.shape, x.tobytes())
        elif self.pinned:
            return _Alive(x)
        slot = self.slot(x)
        self.slots[slot] = (_make_leaf, len(self.leaves))
        self.leaves.append(x)
        return slot

    def function(self, fn: types.FunctionType) -> _Ref:
        code = _code(fn.__code__)
        if code.given_up or code.unseen:
            raise _Unseen(f"`{fn.__name__}` {code.unseen or 'changes or inspects what it reads'}")
        slot = self.slot(fn)
        self.attributes |= code.attributes
        if _installed(fn.__code__.co_filename):
            environment = _Same(fn.__globals__)
        else:
            environment = self.globals(fn.__globals__, code)
        cells = zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True)
        self.slots[slot] = (
            _make_function,
            code.key,
            (fn.__name__, fn.__qualname__, fn.__module__),
            environment,
            tuple(self.cell(name, cell, code) for name, cell in cells),
            fn.__defaults__ and self.see(fn.__defaults__),
            fn.__kwdefaults__ and self.see(fn.__kwdefaults__),
            fn.__dict__ and self.see(fn.__dict__),
        )
        return slot

    def cell(self, name: str, cell: types.CellType, code: _Code) -> _Ref:
        try:
            value = cell.cell_contents
        except ValueError:
            return _EMPTY
        return self.named(name, value, code)

    def named(self, name: str, value: Any, code: _Code) -> _Ref:
        self.name = name
        if type(value) is list and name in code.logs:
            self.logs.add(id(value))
            return _Same(value)
        return self.see(value)

    def globals(self, source: dict[str, Any], code: _Code) -> int:
        seen = self.memo.get((id(source), self.pinned))
        if seen is None:
            if source.get("__builtins__", builtins) not in (builtins, vars(builtins)):
                raise _Unseen("there are other builtins")
            seen = self.slot(source)
            self.tables[seen] = {"__name__": self.see(source.get("__name__"))}
        table = self.tables[seen]
        for name in code.globals:
            if name in source:
                if name not in table:
                    table[name] = self.named(name, source[name], code)
            elif name in _BLINDING:
                raise _Unseen(f"`{name}` is called")
        return seen
