"""A user's function as a PyTree: what it reads is looked up at each call, as in plain Python.

A compiled program may serve again for a function that does the same. Identity does not tell: a
lambda that is made anew at each call is new and does the same; a function whose global has been
rebound is old and does not. So a function is known by its code and by what it reads (closure,
defaults, the globals that its code names), and the same of every function that it finds there.

Arrays in closures and defaults are data: another array is no other program. Everything else is part
of the function's key, arrays by identity, and the program is traced anew when it changes. What
cannot be seen into makes the function opaque, and a program compiled for it serves once.

A function that is handed to a callback runs when the program runs. What it reads then, such as the
list to which it appends, is no input of the program. It is learned from the first trace which
functions these are, and from then on they are left out.

Two limits, which are those of every `jit`: what an installed package keeps to itself, and the
methods of the classes of the function's *arguments*, are only looked at when tracing.
"""

import dataclasses
import functools
import os
import types
import warnings
import weakref
from collections.abc import Callable, Hashable, Set
from typing import Any

import equinox as eqx
import jax
import numpy as np

from .._base.types import Function, RecompilationWarning
from .bytecode import Callbacks, CALLED, installed, NO_CALLBACKS, Paths, WHOLE
from .callbacks import Watch, watching
from .function_fast_path import Glance
from .function_key import Name, Reader, UnseenError


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("leaves", "process"), meta_fields=("plan",)
)
@dataclasses.dataclass
class Hoisted:
    """A function, its arrays as leaves. (Made at each step, and so no Module.)

    **Arguments:**

    - `leaves`: the arrays in its closure and its defaults.
    - `plan`: everything else.
    - `process`: a number that no other process has. What is remembered of a function, and saved,
        must not be taken for another's: after a restart the same name may be other code.
    """

    leaves: tuple[Any, ...]
    plan: "_Plan"
    # A leaf, which a compiled program is given: a constant would be that of one process.
    process: Any = dataclasses.field(default_factory=lambda: _PROCESS)

    @property
    def __wrapped__(self) -> Function:
        # Of which `inspect.signature` is asked.
        return self.plan.skeleton(None)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        # Run when tracing only. What the function itself changes (a counter, a log) is no input.
        plan = self.plan
        before = plan.reread()
        with watching(plan.doubtful) as watch:
            out = self._run(args, kwargs)
        after = plan.reread()
        plan.learn(watch, {name for name in before if before[name] != after.get(name)})
        return out

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return self.plan.skeleton(iter(self.leaves))(*args, **kwargs)
        except Exception:
            origin = self.plan.origin()
            if origin is None or not self.leaves:
                raise
            # It may want to know a number in its closure now, as a mask or a size. The original
            # does; if it fails too, that is its user's error. Else its arrays are constants from
            # here on, part of the key.
            out = origin(*args, **kwargs)
            self.plan.learned.constant = True
            return out


def hoist(fn: Function) -> Function:
    """Makes a PyTree of a function: its arrays are leaves, and it is called as before."""
    if isinstance(fn, Hoisted):
        return fn
    root = _code_of(fn)
    learned = _learned.get(root)
    if learned is None:
        learned = _learned.setdefault(root, _Learned(root))
    if learned.seen is not None and learned.seen.same(fn) and learned.callbacks == NO_CALLBACKS:
        return learned.hoisted
    hoister = _Hoister(learned, learned.callbacks, constant=learned.constant)
    try:
        skeleton = hoister.hoist_all(fn)
    except (UnseenError, RecursionError):
        return Hoisted((), _Plan(lambda arrays: fn, hoister.reader, fn, learned, opaque=True))
    hoisted = Hoisted(tuple(hoister.leaves), _Plan(skeleton, hoister.reader, fn, learned))
    learned.seen = Glance.at(fn)
    learned.hoisted = None if learned.seen is None else hoisted  # which may have arrays
    return hoisted


def opaque(fn: Function) -> bool:
    """Whether a program compiled for what `hoist` returned must not serve again."""
    return isinstance(fn, Hoisted) and fn.plan.opaque


def note_trace(fn: Function, signature: Hashable) -> None:
    """Notes that what `hoist` returned is traced; warns when that is once too often.

    **Arguments:**

    - `fn`: what `hoist` returned.
    - `signature`: all that is a good reason to trace anew: shapes, dtypes, structures.
    """
    code = _code_of(fn)
    if code is None:
        return
    seen = _traces.setdefault(code, {})
    seen[signature] = seen.get(signature, 0) + 1
    if seen[signature] == _MAX_TRACES and code not in _warned:
        _warned.add(code)
        # Where the function is, and not where it was called, somewhere within a trace.
        warnings.warn_explicit(
            f"`{code.co_name}` has been compiled {_MAX_TRACES} times for arguments of the same "
            "shapes, because what it reads from outside keeps changing.\nPass that as arguments, "
            "which are data: `opt.step(fn, model, state, x, y)`.",
            RecompilationWarning,
            code.co_filename,
            code.co_firstlineno,
        )


_PROCESS = np.frombuffer(os.urandom(8), np.uint32)
_MAX_TRACES = 4
_traces: dict[types.CodeType, dict[Hashable, int]] = {}
_warned: set[types.CodeType] = set()

# From the arrays to the function, or to another value that holds arrays. With `None` for the
# arrays, something like it, of which only the signature is asked.
_Skeleton = Callable[[Any], Any]


class _Learned:
    """What has been seen of a function when it was traced. All functions with its code share it."""

    def __init__(self, root: types.CodeType | None) -> None:
        self.root = root
        self.traced = False
        self.constant = False  # whether its arrays must be constants
        self.written: set[Name] = set()  # what it changes itself
        self.callbacks = NO_CALLBACKS
        self.ran: Set[types.CodeType] = frozenset()  # what would be one, but is run by itself too
        self.seen: Glance | None = None  # the latest function, if it is plain, and what it became
        self.hoisted: Any = None

    def learn(self, watch: Watch, written: Set[Name]) -> None:
        answering = self.callbacks.answering | watch.answering
        silent = self.callbacks.silent | watch.silent
        self.ran |= watch.among(answering | silent)
        answering -= self.ran
        self.callbacks = Callbacks(silent - self.ran - answering, answering)
        self.written |= written
        self.traced = True


class _Plan:
    """All of a function that is static; equal if all that is read is equal."""

    def __init__(
        self,
        skeleton: _Skeleton,
        reader: Reader,
        origin: Any,
        learned: _Learned,
        *,
        opaque: bool = False,
    ) -> None:
        self.skeleton = skeleton
        self.items = {} if opaque else reader.items
        self.opaque = opaque
        # Not kept alive, for its arrays' sake.
        self.origin: Callable[[], Any] = _weakly(origin)
        self.learned, self.callbacks = learned, reader.callbacks
        # Whether to watch a trace, which takes time. What cannot be seen into has one chance.
        self.doubtful = reader.partial or (not learned.traced if opaque else reader.doubtful)
        self.hash = hash((learned.root, type(origin)))

    def reread(self) -> dict[Name, Hashable]:
        if self.opaque:
            return {}
        # Of what the skeleton keeps: the arrays are out of it already.
        return _read(self.skeleton(None), self.learned, self.callbacks, self.items)

    def learn(self, watch: Watch, written: Set[Name]) -> None:
        """Takes to heart what a trace has shown."""
        self.learned.learn(watch, written)
        origin, callbacks = self.origin(), self.learned.callbacks
        if callbacks != self.callbacks and origin is not None and not self.opaque:
            self.items = _read(origin, self.learned, callbacks, self.items)
            self.callbacks = callbacks

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Plan) or self.opaque or other.opaque:
            return self is other
        names = self.items.keys() | other.items.keys()
        written = self.learned.written | other.learned.written
        return all(
            name in written or self.items.get(name, _NONE) == other.items.get(name, _NONE)
            for name in names
        )

    def __hash__(self) -> int:
        # Of what never changes under a cache's hands.
        return self.hash


_NONE = object()
_learned: dict[types.CodeType | None, _Learned] = {}


def _read(
    fn: Any, learned: _Learned, callbacks: Callbacks, otherwise: dict[Name, Hashable]
) -> dict[Name, Hashable]:
    hoister = _Hoister(learned, callbacks)
    try:
        hoister.hoist_all(fn)
    except (UnseenError, RecursionError):
        return otherwise
    return hoister.reader.items


def _code_of(fn: Any) -> types.CodeType | None:
    if isinstance(fn, Hoisted):
        return fn.plan.learned.root
    if isinstance(fn, functools.partial):
        return _code_of(fn.func)
    if isinstance(fn, types.MethodType):
        return _code_of(fn.__func__)
    if isinstance(fn, types.FunctionType):
        wrapped = vars(fn).get("__wrapped__")
        foreign = installed(fn.__code__.co_filename)
        return _code_of(wrapped) if foreign and wrapped is not None else fn.__code__
    if isinstance(fn, jax.custom_jvp | jax.custom_vjp):
        return _code_of(fn.__wrapped__)
    call = type(fn).__call__ if callable(fn) else None
    return call.__code__ if isinstance(call, types.FunctionType) else None


class _Hoister:
    """Takes the arrays out of functions, and reads what is left."""

    def __init__(self, learned: _Learned, callbacks: Callbacks, *, constant: bool = False) -> None:
        self.constant = constant
        self.leaves: list[Any] = []
        self.reader = Reader(callbacks, learned.written)
        # Cells that are to hold a function which is not made yet: one that refers to itself.
        self.waiting: dict[int, list[types.CellType]] = {}

    def hoist_all(self, fn: Any) -> _Skeleton:
        skeleton = self.hoist(fn, CALLED)
        self.reader.finish()
        return skeleton

    def hoist(self, x: Any, paths: Paths = WHOLE) -> _Skeleton:
        """Takes the arrays out of a value; what is left makes the value again, given arrays."""
        if isinstance(x, Hoisted):
            x = x.plan.skeleton(iter(x.leaves))
        if isinstance(x, types.FunctionType) and self._is_open(x.__code__, x.__closure__):
            return self._hoist_function(x)
        if isinstance(x, types.MethodType) and isinstance(x.__self__, eqx.Module):
            parts = self.hoist(x.__func__), self.hoist(x.__self__)
            return lambda arrays: types.MethodType(parts[0](arrays), parts[1](arrays))
        if isinstance(x, functools.partial):
            kind, func = type(x), self.hoist(x.func)
            args = self._hoist_tree((x.args, dict(x.keywords)))
            return lambda arrays: _partial(kind, func(arrays), *args(arrays))
        if _is_array(x) or _is_immutable_tree(x):
            return self._hoist_tree(x)
        self.reader.note_value("value", self.reader.key(x, paths))
        return lambda arrays: x

    def _is_open(self, code: types.CodeType, closure: Any) -> bool:
        return code not in self.reader.callbacks and bool(
            closure or not installed(code.co_filename)
        )

    def _hoist_tree(self, x: Any) -> _Skeleton:
        leaves, treedef = jax.tree.flatten(x)
        slots = [self._hoist_leaf(leaf) for leaf in leaves]
        # A Module's class has methods, which read as functions do; of `treedef`, the static fields.
        self.reader.note_value("tree", (treedef, self.reader.classes(x)))
        return lambda arrays: treedef.unflatten([slot(arrays) for slot in slots])

    def _hoist_leaf(self, x: Any) -> _Skeleton:
        if not _is_array(x):
            return self.hoist(x)
        if self.constant:
            self.reader.note_value("array", self.reader.key(x))
            return lambda arrays: x
        self.leaves.append(x)
        stand_in = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return lambda arrays: stand_in if arrays is None else next(arrays)

    def _hoist_function(self, fn: types.FunctionType) -> _Skeleton:
        self.reader.hoisting.add(id(fn))
        me = self.reader.read_globals(fn)
        closure = zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True)
        cells = [self._hoist_cell(me, fn.__code__, name, cell) for name, cell in closure]
        defaults = self._hoist_defaults(fn.__defaults__)
        keyword_defaults = self._hoist_defaults(fn.__kwdefaults__)
        self.reader.hoisting.remove(id(fn))
        # Not `fn` itself, which would keep its arrays alive for as long as a program is kept.
        code, names, scope = (
            fn.__code__,
            (fn.__name__, fn.__qualname__, fn.__module__),
            fn.__globals__,
        )
        own, extra, waiting = id(fn), dict(fn.__dict__), self.waiting
        annotations = dict(fn.__annotations__)

        def make(arrays: Any) -> types.FunctionType:
            made = tuple(cell(arrays) for cell in cells)
            # The globals are the user's own, not a copy: a function may count its calls in one.
            new = types.FunctionType(code, scope, names[0], defaults(arrays), made or None)
            new.__kwdefaults__ = keyword_defaults(arrays)
            new.__qualname__, new.__module__ = names[1:]
            new.__dict__.update(extra)
            new.__annotations__ = annotations
            for cell in waiting.pop(own, ()):
                cell.cell_contents = new
            return new

        return make

    def _hoist_defaults(self, x: Any) -> _Skeleton:
        return (lambda arrays: None) if x is None else self._hoist_tree(x)

    def _hoist_cell(
        self, me: Hashable, code: types.CodeType, name: str, cell: types.CellType
    ) -> _Skeleton:
        paths, handed = self.reader.read_cell(me, code, name, cell)
        if not paths:
            return lambda arrays: cell
        try:
            x = cell.cell_contents
        except ValueError:  # not assigned yet
            self.reader.items[me, name] = None
            return lambda arrays: cell
        if id(x) in self.reader.hoisting:
            own, waiting = id(x), self.waiting
            return lambda arrays: _wait(waiting, own)
        hoistable = isinstance(x, types.FunctionType | types.MethodType | functools.partial)
        # A callback must find an array itself, and not what stands for it while tracing.
        if hoistable or _is_immutable_tree(x) or (_is_array(x) and not handed):
            skeleton = self.hoist(x)
            return lambda arrays: types.CellType(skeleton(arrays))
        # The cell itself is kept: a counter or a list in it is the user's own.
        self.reader.note(me, name, x, paths)
        return lambda arrays: cell


def _is_array(x: Any) -> bool:
    if isinstance(x, np.ndarray | np.generic):
        return x.dtype.kind in "biufcV" and x.dtype.names is None
    return isinstance(x, jax.Array)


def _is_immutable_tree(x: Any) -> bool:
    # A list or a dictionary may be what the function writes its notes into: it stays the user's.
    return isinstance(x, tuple | eqx.Module)


def _partial(kind: Any, func: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    return kind(func, *args, **keywords)


def _wait(waiting: dict[int, list[types.CellType]], function: int) -> types.CellType:
    cell = types.CellType()
    waiting.setdefault(function, []).append(cell)
    return cell


def _weakly(x: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(x)
    except TypeError:
        return lambda: x
