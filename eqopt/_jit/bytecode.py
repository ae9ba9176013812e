"""What a code names, and what it does with what it names."""

import dataclasses
import dis
import functools
import os
import sysconfig
import types
from typing import NamedTuple

# The attributes that are taken of something, one of another: `a.b.c` is `("b", "c")`. Of what is
# called, `__call__` is the last. The empty path stands for any other use.
Path = tuple[str, ...]
Paths = frozenset[Path]
NOWHERE: Paths = frozenset()
WHOLE: Paths = frozenset({()})
CALL = "__call__"
CALLED: Paths = frozenset({(CALL,)})
_CHANGED = "<changed>"  # the end of what is only counted up: `a.b += 1`, `a[b] += 1`

_GLOBALS = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}
_CELLS = {"LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"}
_STORES = {"STORE_GLOBAL", "STORE_NAME", "STORE_DEREF"}
_SILENT = {"CACHE", "EXTENDED_ARG", "NOP"}

_STDLIB = tuple(os.path.join(sysconfig.get_path(x), "") for x in ("stdlib", "platstdlib"))
_HERE = os.path.join(os.path.dirname(__file__), "")


@functools.lru_cache(4096)
def installed(path: str) -> bool:
    """Whether a file belongs to Python or to a package, and not to the user."""
    inside = any(x in path for x in ("site-packages", "dist-packages", "<frozen "))
    return inside or path.startswith((_HERE, *_STDLIB))


class Callbacks(NamedTuple):
    """Codes that are called when the program runs, and not while it is traced.

    **Arguments:**

    - `silent`: those that return nothing to the program. What they read is no input of it.
    - `answering`: those that do. What they do nothing with but to count it up is no input.
    """

    silent: frozenset[types.CodeType] = frozenset()
    answering: frozenset[types.CodeType] = frozenset()

    def __contains__(self, code: object) -> bool:
        return code in self.silent or code in self.answering


NO_CALLBACKS = Callbacks()


@dataclasses.dataclass(frozen=True)
class Uses:
    """What a code uses, together with the codes inside it."""

    globals: dict[str, Paths] = dataclasses.field(default_factory=dict)
    cells: dict[str, Paths] = dataclasses.field(default_factory=dict)
    locals: dict[str, Paths] = dataclasses.field(default_factory=dict)  # of the code itself
    attributes: frozenset[str] = frozenset()
    modules: frozenset[str] = frozenset()
    stored: frozenset[str] = frozenset()
    inner: frozenset[str] = frozenset()  # globals and cells that the code itself does not use
    handed: frozenset[str] = frozenset()  # cells that callbacks have
    partial: bool = False  # whether there are any callbacks


@functools.lru_cache(4096)
def uses(code: types.CodeType, callbacks: Callbacks = NO_CALLBACKS) -> Uses:
    own = _own(code)
    found = Uses(stored=own.stored)
    if code in callbacks:
        found = dataclasses.replace(found, handed=frozenset(code.co_freevars), partial=True)
    answers = code in callbacks.answering
    if code not in callbacks.silent:
        found = dataclasses.replace(
            found,
            globals=_used(own.globals, answers),
            cells=_used(own.cells, answers),
            locals=_used(own.locals, answers),
            attributes=own.attributes,
            modules=own.modules,
        )
    for inside in code.co_consts:
        if isinstance(inside, types.CodeType):
            # What is defined within a callback is run by it, if at all.
            found = _joined(found, uses(inside, _with(callbacks, code, inside)))
    inner = {*found.globals, *found.cells} - {*own.globals, *own.cells}
    return dataclasses.replace(found, inner=frozenset(inner))


def uses_of_self(code: types.CodeType, callbacks: Callbacks) -> tuple[Paths, bool]:
    """What a method does with its first argument, and whether a callback has it."""
    found = uses(code, callbacks)
    if code in callbacks.silent:
        return NOWHERE, True
    if code.co_argcount == 0 or "super" in found.globals:
        return WHOLE, True
    name = code.co_varnames[0]
    paths = found.locals.get(name, NOWHERE)
    if name in code.co_cellvars:
        paths |= found.cells.get(name, NOWHERE)
    return paths, code in callbacks or name in found.handed


def _with(callbacks: Callbacks, code: types.CodeType, inside: types.CodeType) -> Callbacks:
    silent, answering = callbacks
    if code in silent:
        return Callbacks(silent | {inside}, answering - {inside})
    return Callbacks(silent, answering | {inside}) if code in answering else callbacks


def _used(names: dict[str, Paths], answers: bool) -> dict[str, Paths]:
    """The paths to what is read."""
    found: dict[str, Paths] = {}
    for name, paths in names.items():
        changed = frozenset(path for path in paths if path[-1:] == (_CHANGED,))
        read = paths - changed if answers else paths - changed | {path[:-1] for path in changed}
        if read:
            found[name] = read
    return found


def _joined(a: Uses, b: Uses) -> Uses:
    globals_, cells = (
        {name: x.get(name, NOWHERE) | y.get(name, NOWHERE) for name in {**x, **y}}
        for x, y in ((a.globals, b.globals), (a.cells, b.cells))
    )
    return Uses(
        globals=globals_,
        cells=cells,
        locals=a.locals,
        attributes=a.attributes | b.attributes,
        modules=a.modules | b.modules,
        stored=a.stored | b.stored,
        inner=a.inner,
        handed=a.handed | b.handed,
        partial=a.partial or b.partial,
    )


@dataclasses.dataclass(frozen=True)
class _Own:
    """What a code itself uses."""

    globals: dict[str, Paths] = dataclasses.field(default_factory=dict)
    cells: dict[str, Paths] = dataclasses.field(default_factory=dict)
    locals: dict[str, Paths] = dataclasses.field(default_factory=dict)
    attributes: frozenset[str] = frozenset()
    modules: frozenset[str] = frozenset()
    stored: frozenset[str] = frozenset()


@functools.lru_cache(4096)
def _own(code: types.CodeType) -> _Own:
    own = _Own()
    sets: dict[str, set[str]] = {"attributes": set(), "modules": set(), "stored": set()}
    closure = {*code.co_cellvars, *code.co_freevars}
    steps = [x for x in dis.get_instructions(code) if x.opname not in _SILENT]
    for i, step in enumerate(steps):
        if step.opname in _GLOBALS:
            _add(own.globals, step.argval, _path(steps, i))
        elif step.opname in _CELLS:
            _add(own.cells, step.argval, _path(steps, i))
        elif "LOAD_FAST" in step.opname:
            *firsts, last = step.argval if isinstance(step.argval, tuple) else (step.argval,)
            for name in firsts:
                _add(own.locals, name, ())
            if last not in closure:  # else a cell itself, on its way into a closure
                _add(own.locals, last, _path(steps, i))
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"):
            sets["attributes"].add(step.argval)
        elif step.opname == "IMPORT_NAME":
            sets["modules"].add(step.argval)
        elif step.opname in _STORES:
            sets["stored"].add(step.argval)
    return dataclasses.replace(own, **{name: frozenset(x) for name, x in sets.items()})


def _add(found: dict[str, Paths], name: str, path: Path | None) -> None:
    found[name] = found.get(name, NOWHERE) | (NOWHERE if path is None else {path})


def _path(steps: list[dis.Instruction], i: int) -> Path | None:
    """What is taken of that which step `i` loads; `None` if it is only assigned to."""
    path: list[str] = []
    called = "NULL" in steps[i].argrepr or (i > 0 and steps[i - 1].opname == "PUSH_NULL")
    end = i + 1
    while end < len(steps) and steps[end].opname in ("LOAD_ATTR", "LOAD_METHOD"):
        path.append(steps[end].argval)
        called = steps[end].opname == "LOAD_METHOD" or "NULL" in steps[end].argrepr
        end += 1
    ahead = [(x.opname, x.arg) for x in steps[end : end + 3]]
    names = [x for x, _ in ahead]
    if ahead[:1] == [("COPY", 1)] and names[1:2] == ["LOAD_ATTR"]:
        return (*path, steps[end + 1].argval, _CHANGED)
    if names[:1] and names[0].startswith("LOAD_") and ahead[1:] == [("COPY", 2), ("COPY", 2)]:
        return (*path, _CHANGED)
    if not path and _is_counted_up(steps, i):
        return (_CHANGED,)
    if names[:1] in (["STORE_ATTR"], ["DELETE_ATTR"]):
        return (*path, steps[end].argval) if path else None
    called = called or names[:1] == ["PUSH_NULL"]
    return (*path, CALL) if called else tuple(path)


def _is_counted_up(steps: list[dis.Instruction], i: int) -> bool:
    """Whether step `i` begins something like `n += 1`."""
    names = [x.opname for x in steps[i + 1 : i + 4]]
    return (
        len(names) == 3
        and names[0].startswith("LOAD_")
        and names[1] == "BINARY_OP"
        and names[2] in _STORES
        and steps[i + 3].argval == steps[i].argval
    )
