"""A user's function as an argument of a compiled call.

In: any function. Out: a `KeyedFunction`, which is called as the function is, and is static: a
program that was compiled for one serves for all with an equal key (see `function_key.py`). What a
trace shows is learned: which functions are callbacks, and what the function itself changes.
"""

import functools
import inspect
import os
import types
import warnings
import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from .._base.compat import is_jaxpr
from .._base.types import Function
from .function_key import (
    Callbacks,
    callbacks_of,
    described,
    FunctionKey,
    is_of_package,
    read,
    UnreadableError,
)

_MAX_TRACES, _MAX_REMEMBERED = 4, 256


class RecompilationWarning(UserWarning):
    """A function is compiled again and again."""


class _Learned:
    """What is known of all functions with one code.

    - `canonical`: the key of the program, for the key that the trace has left by changing what the
        function reads: a memo, a counter. The program serves until something else changes.
    - `left`: keys that a trace has left by changing a value that was there, which may have been
        another thread. Only if the next trace changes something too, it is the function.
    - `traces`: how often it was traced for one signature, and the key of the latest trace.
    - `latest`: the latest function, for a glance.
    """

    def __init__(self) -> None:
        self.callbacks = Callbacks()
        self.left: set[FunctionKey] = set()
        self.canonical: dict[FunctionKey, FunctionKey] = {}
        self.traces: dict[Hashable, tuple[int, FunctionKey | None]] = {}
        self.latest: tuple[Callable[[], Any], KeyedFunction] | None = None


_learned: dict[Hashable, _Learned] = {}


class StaticFunction:
    """A function with its key; without a key it equals itself only, and `reason` says why."""

    def __init__(self, fn: Function, learned: _Learned) -> None:
        self.learned, self.reason, self.is_traced = learned, "", False
        self.own: FunctionKey | None = None
        self.key: FunctionKey | None = None
        self.after: FunctionKey | None = None
        try:
            self.ref: Callable[[], Any] = weakref.ref(fn)
        except TypeError:
            self.ref = lambda: fn

    def read(self) -> tuple[FunctionKey | None, tuple[Any, ...]]:
        """Gives the key as it is now, and the tracers that the function reads."""
        try:
            return read(self.ref(), self.learned.callbacks)
        except (UnreadableError, TypeError) as error:  # a `TypeError`: something has no hash
            self.reason = str(error)
            return None, ()

    def __eq__(self, other: object) -> bool:
        known = isinstance(other, StaticFunction) and self.key is not None
        return self.key == other.key if known else self is other

    def __hash__(self) -> int:
        return hash(self.key)

    def has_arrays(self) -> bool:
        return self.key is not None and self.key.has_arrays

    def note_trace(self) -> None:
        """Reads the function again: tracing may have changed what it reads."""
        self.is_traced = True
        self.after, _ = self.read()

    def learn(self, jaxpr: Any, signature: Hashable) -> None:
        """Notes what a trace of a program with this function has shown.

        **Arguments:**

        - `jaxpr`: that of the program. The callbacks are read off it.
        - `signature`: all that is a good reason to trace anew: shapes, dtypes, structures.
        """
        learned, after, self.is_traced = self.learned, self.after, False
        num, before = learned.traces.get(signature, (0, None))
        learned.traces[signature] = num + 1, self.own
        if num + 1 == _MAX_TRACES:
            self._warn(before)
        if self.own is None or self.key is None or after is None:
            return
        functions = [y for x in _callbacks_in(jaxpr) for y in _users_functions(x)]
        if functions:
            found, known = callbacks_of(functions), learned.callbacks
            containers = {id(x): x for x in (*found.containers, *known.containers)}
            kept = tuple(containers.values())[:_MAX_REMEMBERED]
            learned.callbacks = Callbacks(known.codes | {*map(root_of, functions)}, kept)
        if not after.has_grown(self.own) and self.own not in learned.left:
            learned.left.add(after)
            return
        left = self.read()[0] if functions else after
        if left is not None:
            learned.canonical[left] = self.key

    def _warn(self, before: FunctionKey | None) -> None:
        fn = self.ref()
        code = root_of(fn)
        why = self.reason
        if self.own is not None and before is not None:
            changed = [*self.own.changes(before)]
            why = f"{described(changed[0]) if changed else 'its code'} changes"
        # At the function, and not at the call, which is somewhere within eqopt.
        where = (
            (code.co_filename, code.co_firstlineno) if isinstance(code, types.CodeType) else ("", 0)
        )
        warnings.warn_explicit(
            f"`{getattr(code, 'co_name', code)}` has been compiled {_MAX_TRACES} times for arguments "
            f"of the same shapes: {why}.\nPass it as an argument, which is data: "
            "`opt.step(fn, model, state, x, y)`.",
            RecompilationWarning,
            *where,
        )


class KeyedFunction(NamedTuple):
    """A function as a PyTree.

    - `static`: the function and its key, which are one leaf.
    - `captured`: the tracers that the function reads.
    - `process`: a number that no other process has: a saved state must not take the function for
        another process's. It is a leaf because a constant would be another in each process.
    """

    static: StaticFunction
    captured: tuple[Any, ...] = ()
    process: Any = np.frombuffer(os.urandom(8), np.uint32)

    @property
    def __wrapped__(self) -> Function:
        return self.static.ref()  # used by `inspect.signature`

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Calls the function, when tracing only."""
        out = self.static.ref()(*args, **kwargs)
        self.static.note_trace()
        return out

    @property
    def data(self) -> tuple[Any, ...]:
        """All but `static`."""
        return self[1:]

    def is_reusable(self) -> bool:
        """Whether a program that was compiled for the function may serve again."""
        return self.static.key is not None and not self.captured


def key_function(fn: Function) -> KeyedFunction:
    """Gives a function its key."""
    if isinstance(fn, KeyedFunction):
        return fn
    learned = _learned.setdefault(root_of(fn), _Learned())
    if len(_learned) > _MAX_REMEMBERED:
        del _learned[next(iter(_learned))]
    if learned.latest is not None and learned.latest[0]() is fn:
        keyed = learned.latest[1]
        if keyed.static.own is not None and keyed.static.own.is_current():
            return keyed
    static = StaticFunction(fn, learned)
    static.own, captured = static.read()
    if static.own is not None:
        static.key = learned.canonical.get(static.own, static.own)
    keyed = KeyedFunction(static, captured)
    learned.latest = None if captured else (static.ref, keyed)
    return keyed


def forget() -> None:
    """Forgets all functions, as `jax.clear_caches` forgets all programs."""
    _learned.clear()


def is_unknown(fn: Function) -> bool:
    """Whether the function cannot be compared with another."""
    return isinstance(fn, KeyedFunction) and fn.static.key is None


def root_of(fn: Any) -> Any:
    """The code of a function, or of what it is made of; its class, if it has no code."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    fn = inspect.unwrap(getattr(fn, "__func__", fn))  # most callable objects are no methods
    fn = fn if isinstance(fn, types.FunctionType) else type(fn).__call__
    return getattr(fn, "__code__", type(fn))  # a class that is written in C has no code


def _callbacks_in(jaxpr: Any) -> Iterator[Any]:
    """The callbacks of a program, and of those within it, but for those that give an answer."""
    for equation in jaxpr.eqns:
        if "callback" in equation.params and not equation.outvars:
            yield equation.params["callback"]
        for x in jax.tree.leaves(equation.params, is_leaf=is_jaxpr):
            if is_jaxpr(x):
                yield from _callbacks_in(x)


def _users_functions(x: Any) -> Iterator[Any]:
    """The functions of the user that a callback runs, which JAX has wrapped."""
    if isinstance(x, types.FunctionType) and is_of_package(x.__code__.co_filename):
        for cell in x.__closure__ or ():
            yield from _users_functions(cell.cell_contents)
    elif type(x).__module__.partition(".")[0] in ("jax", "equinox"):
        for y in getattr(x, "__dict__", {}).values():  # an object of C has none
            yield from _users_functions(y)
    elif callable(x):
        yield x
