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
import enum
import functools
import inspect
import logging
import pathlib
import re
import types
import weakref
from collections.abc import Hashable, Iterator
from typing import Any

import equinox as eqx
import jax
import numpy as np

from . import _code, _rebuild
from ._code import RecompilationWarning as RecompilationWarning
from ._rebuild import Aside, EMPTY, Equal, Hoisted, Once, Opaque, Plan, Ref, Same, Weak
from ._types import Function


class _Unseen(Exception):
    """There is something that cannot be seen into."""


_ATOMS = frozenset((type(None), type(...), type(NotImplemented), bool, int, str, bytes, range))
_ATOMS |= {datetime.date, datetime.datetime, datetime.timedelta}
_FIXED = (re.Pattern, pathlib.PurePath, logging.Logger, inspect.Signature, np.dtype, np.ufunc)
_FIXED += (types.GenericAlias, types.UnionType, types.MethodDescriptorType, type(np.sum))
_FIXED += (types.WrapperDescriptorType, types.GetSetDescriptorType, types.MemberDescriptorType)
_FIXED += (type(inspect.FullArgSpec.args),)  # a field of a named tuple
# Objects of these packages are configuration, or wrap functions that are their attributes.
_TRUSTED = frozenset(("jax", "jaxlib", "equinox", "jaxtyping", "beartype", "typing"))
# Instances of these, and of the user's own classes derived from them, are all in their `__dict__`.
_PLAIN = {"builtins.object", "abc.ABC", "typing.Generic", "typing.Protocol", "argparse.Namespace"}
_PLAIN |= {"argparse._AttributeHolder", "types.SimpleNamespace"}
_BLINDING = frozenset(("globals", "eval", "exec", "open", "input", "__import__"))
_GROPING = frozenset(("vars", "dir", "getattr", "hasattr", "setattr", "delattr"))
_MAX_LEAVES = 4096
_NONE = Equal(None)
_JITTED = type(jax.jit(lambda: None))


class _Probe(eqx.Module):
    """Shows what a method of a Module is, once bound."""

    def method(self) -> None: ...


_BOUND = type(_Probe().method)


def _constant(x: Any) -> Equal | Same:
    try:
        hash(x)
    except TypeError:
        return Same(x)
    return Equal(x, x)


class _Reader:
    """Reads a function: its arrays, and slots that say how to put it together again."""

    def __init__(self, pinned: bool):
        self.leaves: list[Any] = []
        self.slots: list[tuple[Any, ...]] = []
        self.memo: dict[tuple[int, bool], int] = {}
        self.alive: list[Any] = []  # what the ids in the memo belong to
        self.tables: dict[int, dict[str, Ref]] = {}  # of the slots that are globals or modules
        self.modules: list[tuple[int, types.ModuleType, bool]] = []
        self.classes: list[type] = []
        self.pins: list[Hashable] = []
        self.attributes: set[str] = set()
        self.lists: dict[int, bool] = {}
        self.entry: tuple[type, Any] | None = None
        self.code: _code.Code | None = None  # the first of the user's that was met
        self.name = "the function"
        # What cannot be rebuilt, such as a class, reads its own globals. These are pinned: an array
        # is then a constant, by identity, and another one is another program.
        self.pinned = pinned
        self.blind = False

    def slot(self, x: Any) -> int:
        self.slots.append(())
        self.alive.append(x)
        self.memo[id(x), self.pinned] = len(self.slots) - 1
        return len(self.slots) - 1

    def pin(self, x: Any) -> Ref:
        before, self.pinned = self.pinned, True
        ref = self.see(x)
        self.pinned = before
        return ref

    def unseen(self, x: Any) -> _Unseen:
        return _Unseen(f"`{self.name}` holds a `{type(x).__name__}`")

    def read(self, fn: Function) -> Ref:
        call = type(fn).__call__
        called = isinstance(fn, eqx.Module) and type(call) is types.FunctionType
        if called and not isinstance(fn, _BOUND) and not _code.installed(call.__code__.co_filename):
            root = self.method(call, fn)
        else:
            root = self.see(fn)
        before = self.pinned
        self.finish()
        self.pinned = before
        return root

    def see(self, x: Any) -> Ref:
        kind = type(x)
        if kind in _ATOMS:
            return Equal(x, x)
        if kind is float or kind is complex:
            return Equal(x, repr(x))  # tells -0.0 from 0.0, and not NaN from NaN
        slot = self.memo.get((id(x), self.pinned))
        if slot is not None:
            return slot
        if kind is types.FunctionType:
            return Same(x) if _code.known_function(x) else self.function(x)
        if isinstance(x, types.ModuleType):
            return Same(x) if _code.known(x) else self.module(x)
        if isinstance(x, jax.Array | np.ndarray | np.generic):
            return self.array(x)
        if isinstance(x, type):
            if not _code.known_class(x):
                self.classes.append(x)
            return Same(x)
        if kind is types.MethodType or isinstance(x, _BOUND):
            return self.method(x.__func__, x.__self__)
        if kind is functools.partial or kind is jax.tree_util.Partial:
            slot = self.slot(x)
            parts = self.see(x.func), self.see(x.args), self.see(x.keywords)
            self.slots[slot] = _rebuild.make_partial, kind, *parts
            return slot
        return self.tree(x)

    def array(self, x: Any) -> Ref:
        if not isinstance(x, jax.Array):
            exact = isinstance(x, np.generic) or type(x) is np.ndarray
            large = self.pinned and x.nbytes > 65536
            if not exact or large or x.dtype.kind not in "biufcV" or x.dtype.type is np.void:
                raise self.unseen(x)
            if self.pinned:
                return Equal(x.copy(), x.dtype, x.shape, x.tobytes())
        elif self.pinned:
            return Weak(x)
        slot = self.slot(x)
        self.slots[slot] = _rebuild.make_leaf, len(self.leaves)
        self.leaves.append(x)
        return slot

    def function(self, fn: types.FunctionType) -> int:
        code = _code.code_of(fn.__code__)
        installed = _code.installed(fn.__code__.co_filename)
        if self.code is None and not installed:
            self.code = code
        if code.unseen is not None:
            raise _Unseen(f"`{fn.__name__}` {code.unseen}")
        slot = self.slot(fn)
        self.attributes |= code.attributes
        names = Equal((fn.__name__, fn.__qualname__, fn.__module__), fn.__qualname__)
        environment = Same(fn.__globals__) if installed else self.globals(fn.__globals__, code)
        cells = zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True)
        cells = tuple(self.cell(name, cell, code) for name, cell in cells)
        rest = map(self.see, (fn.__defaults__, fn.__kwdefaults__, fn.__dict__ or None))
        self.slots[slot] = (
            _rebuild.make_function,
            Equal(code.code, code.code),
            names,
            environment,
            cells,
            *rest,
        )
        return slot

    def cell(self, name: str, cell: types.CellType, code: _code.Code) -> Ref:
        try:
            value = cell.cell_contents
        except ValueError:
            return EMPTY
        return self.named(name, value, code)

    def named(self, name: str, value: Any, code: _code.Code) -> Ref:
        self.name = name
        if type(value) is list:
            log = name in code.logs
            if self.lists.setdefault(id(value), log) is not log:
                raise _Unseen(f"`{name}` is appended to here and read there")
            if log:
                return Same(value)
        return self.see(value)

    def globals(self, source: dict[str, Any], code: _code.Code) -> int:
        slot = self.memo.get((id(source), self.pinned))
        if slot is None:
            if source.get("__builtins__", builtins) not in (builtins, vars(builtins), {}):
                raise _Unseen("its builtins are not Python's")
            slot = self.slot(source)
            self.slots[slot] = (_rebuild.make_globals,)
            self.tables[slot] = {"__name__": self.see(source.get("__name__"))}
        for name in code.globals:
            if name in source:
                self.tables[slot][name] = self.named(name, source[name], code)
            elif name in _BLINDING:
                raise _Unseen(f"it calls `{name}`")
            elif name in _GROPING:
                self.blind = True
        return slot

    def module(self, x: types.ModuleType) -> int:
        if "__getattr__" in vars(x):
            raise self.unseen(x)
        slot = self.slot(x)
        self.slots[slot] = _rebuild.make_module, Same(x)
        self.tables[slot] = {}
        self.modules.append((slot, x, self.pinned))
        return slot

    def method(self, fn: Any, owner: Any) -> int:
        slot = self.slot((fn, owner))
        if self.entry is None and isinstance(owner, eqx.Module):
            self.entry = type(owner), fn
        self.slots[slot] = _rebuild.make_method, self.see(fn), self.see(owner)
        return slot

    def tree(self, x: Any) -> Ref:
        if isinstance(x, Iterator):  # JAX warns
            raise self.unseen(x)
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
        classes, functions = _code.nodes(treedef)
        self.classes += classes
        self.pins += map(self.pin, functions)
        self.slots[slot] = _rebuild.make_tree, treedef, tuple(map(self.see, leaves))
        return slot

    def object(self, x: Any) -> Ref:
        kind = type(x)
        if isinstance(x, enum.Enum):
            self.see(kind)
            return Same(x)
        if isinstance(x, _FIXED):
            return _constant(x)
        if isinstance(x, types.BuiltinFunctionType):
            if x.__self__ is None or isinstance(x.__self__, type | types.ModuleType):
                return Equal(x, x)
        elif kind is set or kind is frozenset:
            return Equal(x, frozenset(map(self.pin, x)))
        elif kind is slice:
            return Equal(x, self.pin((x.start, x.stop, x.step)))
        elif kind is weakref.ref and x() is not None:
            slot = self.slot(x)
            self.slots[slot] = _rebuild.make_weakref, self.see(x())
            return slot
        elif kind.__module__.partition(".")[0] in _TRUSTED and "Ref" not in kind.__name__:
            if kind is not _JITTED and kind.__dictoffset__:
                self.pins += map(self.pin, filter(callable, vars(x).values()))
            return _constant(x)
        elif all(
            f"{c.__module__}.{c.__name__}" in _PLAIN or not _code.known_class(c)
            for c in kind.__mro__
        ):
            slot = self.slot(x)
            self.see(kind)
            self.slots[slot] = (
                _rebuild.make_object,
                kind,
                self.pin(object.__getstate__(x)),
                Aside(x),
            )
            return slot
        raise self.unseen(x)

    def finish(self) -> None:
        """Pins the classes, and reads those attributes of modules that some code names."""
        done: set[type] = set()
        doubt, before = False, None
        while before != (before := (len(self.attributes), len(self.modules), len(done), doubt)):
            for cls in self.classes:
                if cls not in done:
                    done.add(cls)
                    self.pin_class(cls, None if doubt else self.entry)
            for slot, module, pinned in self.modules:
                self.pinned, table, here = pinned, self.tables[slot], vars(module)
                for name in sorted(self.attributes & here.keys() - table.keys()):
                    self.name = f"{module.__name__}.{name}"
                    table[name] = self.see(here[name])
            if not doubt and self.entry is not None and self.twice(*self.entry):
                doubt = True
                done.discard(self.entry[0])
        if self.modules and (self.blind or "__dict__" in self.attributes):
            raise _Unseen(f"it looks into `{self.modules[0][1].__name__}` in ways unknown")
        for slot, table in self.tables.items():
            self.slots[slot] += (tuple(sorted(table.items())),)

    def twice(self, cls: type, fn: Any) -> bool:
        """Whether the method that was called first may also be called through its class."""
        if self.classes.count(cls) > 1 or fn.__name__ in self.attributes:
            return True
        own = [y for c in cls.__mro__ if not _code.known_class(c) for y in vars(c).values()]
        codes = [_code.code_of(y.__code__) for y in own if type(y) is types.FunctionType]
        return fn.__name__ == "__call__" and any(code.passes_self for code in codes)

    def pin_class(self, cls: type, entry: tuple[type, Any] | None) -> None:
        self.name = cls.__name__
        if not _code.known_class(type(cls)):
            raise self.unseen(cls)
        found: list[tuple[str, Ref]] = []
        for c in cls.__mro__:
            for name, x in () if _code.known_class(c) else vars(c).items():
                if isinstance(x, property):
                    x = x.fget, x.fset
                elif isinstance(x, functools.cached_property):
                    x = x.func
                elif isinstance(x, staticmethod | classmethod):
                    x = x.__func__
                elif type(x) is not types.FunctionType and (name[0] == name[-1] == "_"):
                    continue  # `__doc__`, `_member_map_`
                is_entry = entry is not None and entry[0] is cls and entry[1] is x
                if name != "_abc_impl" and not is_entry:
                    found.append((name, self.pin(x)))
        self.pins.append((Same(cls), tuple(found)))


def hoist(fn: Function) -> Function:
    """Makes a function a PyTree. What it reads now is data, and it is called as before.

    Two results of one structure are one program on different data; if a result is `opaque`, nobody
    knows. A constant, such as a function from an installed package, comes back as it is.
    """
    if isinstance(fn, Hoisted | Opaque):
        return fn
    reader = _Reader(pinned=False)
    try:
        root = reader.read(fn)
        if reader.code is not None and reader.code.pinned:
            reader = _Reader(pinned=True)
            root = reader.read(fn)
    except (_Unseen, RecursionError) as e:
        code, call = reader.code, type(fn).__call__
        if code is None and type(call) is types.FunctionType:
            code = _code.code_of(call.__code__)
        return Opaque(Once(fn), code, str(e))
    if not isinstance(root, int) and not reader.pins:
        return fn
    key = root, tuple(reader.slots), tuple(reader.pins)
    return Hoisted(tuple(reader.leaves), Plan(key, reader.pinned, reader.code, Aside(fn)))


def opaque(fn: Function) -> bool:
    """Whether a program that is compiled for what `hoist` returned must not serve again."""
    if isinstance(fn, Hoisted):
        return not fn.plan.pinned and fn.plan.code is not None and fn.plan.code.pinned
    return isinstance(fn, Opaque)


def note_trace(fn: Function, signature: Hashable) -> None:
    """Notes that what `hoist` returned is being traced; warns at the third repetition.

    **Arguments:**

    - `fn`: what `hoist` returned.
    - `signature`: all that is a good reason to trace anew: shapes, dtypes, structures, optimizer.
    """
    if isinstance(fn, Opaque) and fn.code is not None:
        fn.code.note_trace(signature, fn.reason)
    elif isinstance(fn, Hoisted) and fn.plan.code is not None:
        fn.plan.code.note_trace(signature, None)
