"""A user's function as a PyTree: its code is static, and what it reads is data.

A compiled program may serve again for a function that does the same. Identity does not tell: a
lambda rebuilt at each call is new and does the same; a function whose global has been rebound is
old and does not. So at each call of the front door the function is read: closure cells, defaults,
the globals that its code names, and the same of every function found among these. Arrays become
leaves. All else becomes a static key, compared by type and value. What cannot be seen into makes
the function opaque: a program compiled for it serves once.

Numbers are keys, not leaves: `range(n)` and `if flag:` must work, and with a traced `n` the
derivative of `x**n` is NaN at `x <= 0`.

Two limits, which are those of every `jit`: what an installed package keeps to itself (`random`,
`os.environ`), and the classes of the function's *arguments*, are looked at only when tracing.
"""

import builtins
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
from collections.abc import Hashable
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


class _Weak:
    """Something that is not kept alive, compared by identity; once dead it equals nothing."""

    def __init__(self, value: Any):
        self.ref, self.key = weakref.ref(value), id(value)

    @property
    def value(self) -> Any:
        return self.ref()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Weak) and self.value is other.value is not None

    def __hash__(self) -> int:
        return self.key


class _Aside(_Weak):
    """Something that is not kept alive, and not compared: others say whether it is the same."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Aside)

    def __hash__(self) -> int:
        return 0


_EMPTY = _Same(object())  # a cell that is not assigned yet
_Ref: TypeAlias = int | _Same | _Equal | _Weak  # a slot's number: rebuilt at each call; a constant


class _Code:
    """What is known of a code object, once and for all, and how often it has been traced."""

    def __init__(self, code: types.CodeType):
        self.code, self.key = code, _Equal(code, code)
        self.uses: dict[str, set[str | None]] = {}
        self.globals: set[str] = set()
        self.attributes: set[str] = set()
        self.unseen: str | None = None
        self._read(code)
        # A list that is appended to, and nothing else, is not read: it is as good as a constant.
        self.logs = {name for name, uses in self.uses.items() if uses == {"append"}}
        self.passes_self = None in self.uses.get((*code.co_varnames, "")[0], ())
        self.signatures: set[int] = set()
        self.repeats = 0

    def _read(self, code: types.CodeType) -> None:
        steps = list(dis.get_instructions(code))
        for i, step in enumerate(steps):
            op, name = step.opname, step.argval
            is_global = "GLOBAL" in op or op == "LOAD_NAME"
            if is_global:
                self.globals.add(name)
            if "ATTR" in op or op in ("LOAD_METHOD", "IMPORT_FROM"):
                self.attributes.add(name)
            elif op == "IMPORT_NAME" and (steps[i - 2].argval != 0 or not _known_name(name)):
                self.unseen = f"imports `{name}`"
            elif op == "LOAD_CLOSURE" or (op == "LOAD_FAST" and name in code.co_freevars):
                pass  # a cell handed on to a nested function, whose own code says what it does
            elif is_global or "DEREF" in op or "FAST" in op:
                after = steps[i + 1] if op.startswith("LOAD") else step
                attribute = "ATTR" in after.opname or after.opname == "LOAD_METHOD"
                for used in name if isinstance(name, tuple) else (name,):
                    self.uses.setdefault(used, set()).add(after.argval if attribute else None)
        for nested in code.co_consts:
            if isinstance(nested, types.CodeType):
                self._read(nested)


_codes: dict[int, _Code] = {}  # by id, and kept alive: hashing a code object reads all of it


def _code(code: types.CodeType) -> _Code:
    found = _codes.get(id(code))
    if found is None:
        if len(_codes) >= 4096:
            _codes.clear()
        found = _codes[id(code)] = _Code(code)
    return found


# What is installed does not change under our feet, and is not looked into. Nor is eqopt.
_PREFIXES = ("<frozen ", os.path.dirname(__file__) + os.sep, sysconfig.get_path("stdlib") + os.sep)
_FOLDERS = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


@functools.lru_cache(4096)
def _installed(path: str) -> bool:
    return path.startswith(_PREFIXES) or any(folder in path for folder in _FOLDERS)


def _known(module: types.ModuleType) -> bool:
    file = vars(module).get("__file__")
    if file is not None:
        return _installed(file)
    # Built in; unless it is of the user's own making, under whatever name.
    name = module.__name__
    builtin = name.partition(".")[0] in sys.stdlib_module_names and name != "__main__"
    return builtin and sys.modules.get(name) is module


def _known_name(name: str) -> bool:
    module = sys.modules.get(name)
    return name in sys.stdlib_module_names if module is None else _known(module)


def _known_class(cls: type) -> bool:
    if cls.__module__ == "builtins":  # so says a class, too, if a notebook has no `__name__`
        return vars(builtins).get(cls.__name__) is cls or not cls.__flags__ & 1 << 9
    module = sys.modules.get(cls.__module__)
    return module is not None and _known(module)


def _known_function(fn: types.FunctionType) -> bool:
    if not _installed(fn.__code__.co_filename):
        return False
    module = sys.modules.get(fn.__module__ or "")
    if module is not None and vars(module).get(fn.__name__) is fn:
        return True
    # A closure, such as `jax.grad(fn)`, holds what the user gave.
    return fn.__closure__ is None and "<locals>" not in fn.__qualname__


_ATOMS = frozenset((type(None), type(...), type(NotImplemented), bool, int, str, bytes, range))
_ATOMS |= {datetime.date, datetime.datetime, datetime.timedelta}
_FIXED = (re.Pattern, pathlib.PurePath, logging.Logger, inspect.Signature, np.dtype, np.ufunc)
_FIXED += (types.GenericAlias, types.UnionType, types.MethodDescriptorType, type(np.sum))
_FIXED += (types.WrapperDescriptorType, types.GetSetDescriptorType, types.MemberDescriptorType)
# Objects of these packages are configuration, or wrap functions that are their attributes.
_TRUSTED = frozenset(("jax", "jaxlib", "equinox", "jaxtyping", "beartype", "typing"))
# Instances of these, and of the user's own classes derived from them, are all in their `__dict__`.
_PLAIN = {"builtins.object", "abc.ABC", "typing.Generic", "typing.Protocol", "argparse.Namespace"}
_PLAIN |= {"argparse._AttributeHolder", "types.SimpleNamespace"}
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
    functions, rest = (), [node[1]]
    while rest:
        aux = rest.pop()
        if isinstance(aux, types.FunctionType):
            functions += (aux,)
        elif isinstance(aux, tuple | list):
            rest.extend(aux)
    inner = [_nodes(child) for child in treedef.children()]
    return sum((c for c, _ in inner), classes), sum((f for _, f in inner), functions)


class _Reader:
    """Reads a function: its arrays, and slots that say how to put it together again."""

    def __init__(self):
        self.leaves: list[Any] = []
        self.slots: list[tuple[Any, ...]] = []
        self.memo: dict[tuple[int, bool], int] = {}
        self.alive: list[Any] = []  # what the ids in the memo belong to
        self.tables: dict[int, dict[str, _Ref]] = {}  # of the slots that are globals or modules
        self.modules: list[tuple[int, types.ModuleType, bool]] = []
        self.classes: list[type] = []
        self.pins: list[Hashable] = []
        self.attributes: set[str] = set()
        self.lists: dict[int, bool] = {}
        self.entry: tuple[type, Any] | None = None
        self.name = "the function"
        # What cannot be rebuilt, such as a class, reads its own globals. These are pinned: an array
        # is then a constant, by identity, and another one is another program.
        self.pinned = False

    def slot(self, x: Any) -> int:
        self.slots.append(())
        self.alive.append(x)
        self.memo[id(x), self.pinned] = len(self.slots) - 1
        return len(self.slots) - 1

    def pin(self, x: Any) -> _Ref:
        before, self.pinned = self.pinned, True
        ref = self.see(x)
        self.pinned = before
        return ref

    def unseen(self, x: Any) -> _Unseen:
        return _Unseen(f"`{self.name}` holds a `{type(x).__name__}`")

    def see(self, x: Any) -> _Ref:
        kind = type(x)
        if kind in _ATOMS:
            return _Equal(x, x)
        if kind is float or kind is complex:
            return _Equal(x, repr(x))  # tells -0.0 from 0.0, and not NaN from NaN
        slot = self.memo.get((id(x), self.pinned))
        if slot is not None:
            return slot
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
            self.slots[slot] = _make_partial, kind, *parts
            return slot
        return self.tree(x)

    def array(self, x: Any) -> _Ref:
        if not isinstance(x, jax.Array):
            exact = isinstance(x, np.generic) or type(x) is np.ndarray
            large = self.pinned and x.nbytes > 4096
            if not exact or large or x.dtype.kind not in "biufcV" or x.dtype.names is not None:
                raise self.unseen(x)
            if self.pinned:
                return _Equal(x.copy(), x.dtype, x.shape, x.tobytes())
        elif self.pinned:
            return _Weak(x)
        slot = self.slot(x)
        self.slots[slot] = _make_leaf, len(self.leaves)
        self.leaves.append(x)
        return slot

    def function(self, fn: types.FunctionType) -> int:
        code = _code(fn.__code__)
        if code.unseen is not None:
            raise _Unseen(f"`{fn.__name__}` {code.unseen}")
        slot = self.slot(fn)
        self.attributes |= code.attributes
        installed = _installed(fn.__code__.co_filename)
        names = _Equal((fn.__name__, fn.__qualname__, fn.__module__), fn.__qualname__)
        environment = _Same(fn.__globals__) if installed else self.globals(fn.__globals__, code)
        cells = zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True)
        cells = tuple(self.cell(name, cell, code) for name, cell in cells)
        rest = map(self.see, (fn.__defaults__, fn.__kwdefaults__, fn.__dict__ or None))
        self.slots[slot] = _make_function, code.key, names, environment, cells, *rest
        return slot

    def cell(self, name: str, cell: types.CellType, code: _Code) -> _Ref:
        try:
            value = cell.cell_contents
        except ValueError:
            return _EMPTY
        return self.named(name, value, code)

    def named(self, name: str, value: Any, code: _Code) -> _Ref:
        self.name = name
        if type(value) is list:
            log = name in code.logs
            if self.lists.setdefault(id(value), log) is not log:
                raise _Unseen(f"`{name}` is appended to here and read there")
            if log:
                return _Same(value)
        return self.see(value)

    def globals(self, source: dict[str, Any], code: _Code) -> int:
        slot = self.memo.get((id(source), self.pinned))
        if slot is None:
            if source.get("__builtins__", builtins) not in (builtins, vars(builtins)):
                raise _Unseen("its builtins are not Python's")
            slot = self.slot(source)
            self.slots[slot] = (_make_globals,)
            self.tables[slot] = {"__name__": self.see(source.get("__name__"))}
        for name in code.globals:
            if name in source:
                self.tables[slot][name] = self.named(name, source[name], code)
            elif name in _BLINDING:
                raise _Unseen(f"it calls `{name}`")
        return slot

    def module(self, x: types.ModuleType) -> int:
        if "__getattr__" in vars(x):
            raise self.unseen(x)
        slot = self.slot(x)
        self.slots[slot] = _make_module, _Same(x)
        self.tables[slot] = {}
        self.modules.append((slot, x, self.pinned))
        return slot

    def method(self, fn: Any, owner: Any) -> int:
        slot = self.slot((fn, owner))
        self.slots[slot] = _make_method, self.see(fn), self.see(owner)
        return slot

    def tree(self, x: Any) -> _Ref:
        try:
            leaves, treedef = jax.tree.flatten(x)
            hash(treedef)
        except Exception:  # a cycle, keys that cannot be sorted, whatever a class may raise
            raise self.unseen(x) from None
        if len(leaves) == 1 and leaves[0] is x:
            return self.object(x)
        if len(leaves) > _MAX_LEAVES:
            raise _Unseen(f"`{self.name}` has more than {_MAX_LEAVES} leaves")
        slot = self.slot(x)
        classes, functions = _nodes(treedef)
        self.classes += classes
        self.pins += map(self.pin, functions)
        self.slots[slot] = _make_tree, treedef, tuple(map(self.see, leaves))
        return slot

    def object(self, x: Any) -> _Ref:
        kind = type(x)
        if isinstance(x, enum.Enum):
            self.see(kind)
            return _Same(x)
        if isinstance(x, _FIXED):
            return _Equal(x, x)
        if isinstance(x, types.BuiltinFunctionType):
            if x.__self__ is None or isinstance(x.__self__, type | types.ModuleType):
                return _Equal(x, x)
        elif kind is set or kind is frozenset:
            return _Equal(x, frozenset(map(self.pin, x)))
        elif kind is slice:
            return _Equal(x, self.pin((x.start, x.stop, x.step)))
        elif kind is weakref.ref:
            return _Equal(x, self.pin(x()))
        elif kind.__module__.partition(".")[0] in _TRUSTED and "Ref" not in kind.__name__:
            if kind is not _JITTED and kind.__dictoffset__:
                functions = [y for y in vars(x).values() if type(y) is types.FunctionType]
                self.pins += map(self.pin, functions)
            return _Equal(x, x) if isinstance(x, Hashable) else _Same(x)
        elif all(f"{c.__module__}.{c.__name__}" in _PLAIN or not _known_class(c) for c in kind.mro()):
            slot = self.slot(x)
            self.see(kind)
            self.slots[slot] = _make_object, _Same(kind), _Aside(x), self.pin(x.__getstate__())
            return slot
        raise self.unseen(x)
