"""A user's function as an argument of a compiled call.

In: any function. Out: a `KeyedFunction`, which is called like the function and is static: a program
compiled for one serves all with an equal key (see `function_key.py`). A trace and a run show what
the function and its callbacks change; this is remembered, so that such changes do not compile the
program again.
"""

import functools
import inspect
import os
import types
import warnings
import weakref
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import numpy as np

from .._base.compat import JAXPRS
from .._base.types import Function, RecompilationWarning
from .function_key import changes, described, has_grown, Key, Reader, UnreadableError

_MAX_TRACES, _MAX_REMEMBERED = 4, 256


class _Learned:
    """What is known about all functions with the same code.

    - `calls_back`, `written`: as in `Reader`.
    - `aliases`: tracing a function may add to what it reads (a memo, a counter), which gives it
        another key. Maps that key to the key of the program, which serves until something else
        changes.
    - `traces`: how often it was traced for one signature because the key had changed, and the key
        of the latest trace.
    """

    def __init__(self) -> None:
        self.calls_back = False
        self.written: set[str] = set()
        self.aliases: dict[Key, Key] = {}
        self.traces: dict[Hashable, tuple[int, Key | None]] = {}


_learned: dict[Any, _Learned] = {}
# The latest plain function of each code.
_plain: dict[Any, "KeyedFunction"] = {}


class StaticFunction:
    """A function with its key; without a key it equals itself only, and `reason` says why.

    - `own`: the key before the call.
    - `after`: the key after the trace, if the function was traced; empty, if it cannot be read.
    - `key`: the key of the program that serves this function.
    """

    def __init__(self, fn: Function) -> None:
        self.reason, self.has_arrays = "", False
        self.after: Key | None = None
        self.captured: tuple[object, ...] = ()
        self.is_current: Callable[[], bool] | None = None
        try:
            self.ref: Callable[[], Any] = weakref.ref(fn)
        except TypeError:
            self.ref = lambda: fn
        self.root = _root(fn)
        self.learned = _learned.setdefault(self.root, _Learned())
        self.own = self.read()
        self.key = None if self.own is None else self.learned.aliases.get(self.own, self.own)
        self.hash = hash(self.key)

    def read(self) -> Key | None:
        """The key as it is now."""
        reader = Reader(self.learned.calls_back, self.learned.written)
        try:
            key = reader.key(self.ref())
            hash(key)
        except UnreadableError as error:
            self.reason = str(error)
            return None
        except Exception as error:  # of an object's own methods, or it is nested too deeply
            self.reason = f"reading it raises {type(error).__name__}: {error}"
            return None
        self.has_arrays, self.captured = reader.has_arrays, tuple(reader.captured)
        self.is_current = reader.is_current if reader.is_plain else None
        if self.captured:
            self.reason = "it reads an array that is traced by another transformation"
        return key

    def serves(self, fn: Function) -> bool:
        """Whether this is the key of `fn`, which is plain and reads the same objects as before."""
        return (
            self.ref() is fn
            and self.key is not None
            and self.is_current is not None
            and self.is_current()
        )

    def __eq__(self, other: object) -> bool:
        if self is other or not isinstance(other, StaticFunction):
            return self is other
        return self.key is not None and self.key == other.key

    def __hash__(self) -> int:
        return self.hash

    def learn(self, jaxpr: object, results: object, signature: Hashable | None) -> None:
        """Remembers what the trace and the first run of a program with this function have shown.

        **Arguments:**

        - `jaxpr`: the program's jaxpr, which shows whether it has callbacks.
        - `results`: the results of the run.
        - `signature`: everything that is a good reason to trace again: shapes, dtypes, the other
            static parts. `None` does not count the trace.
        """
        learned, after, self.after = self.learned, self.after, None
        if signature is not None:
            self._count(signature)
        if self.own is None or self.key is None:
            return
        if not after or not has_grown(self.own, after):
            self.key = None  # the program may have read either value: it serves no other call
            return
        left, grown = after, changes(self.own, after)
        if _calls_back(jaxpr):
            jax.block_until_ready(results)
            jax.effects_barrier()
            ran = self.read()
            learned.written.update(() if ran is None else changes(after, ran))
            learned.calls_back = True
            left = self.read()
        if left is not None:
            old = dict(left) | {name: token for name, (token, _) in grown.items()}
            # The key before the trace gets an alias too, because callbacks are known only now.
            learned.aliases[tuple(x for x in old.items() if x[1] is not None)] = self.key
            learned.aliases[left] = self.key

    def _count(self, signature: Hashable) -> None:
        num, before = self.learned.traces.get(signature, (0, None))
        if self.own is not None and self.own == before and not self.captured:
            return  # something other than the function has changed
        self.learned.traces[signature] = num + 1, self.own
        if num + 1 == _MAX_TRACES:
            self._warn(before)

    def _warn(self, before: Key | None) -> None:
        code, why = _root(self.ref()), self.reason
        if not why:
            (changed, *_) = changes(before or (), self.own or ())
            why = f"{described(changed)} changes"
        # The warning points at the function, because the call is inside eqopt. A class written in C
        # has no code.
        where = getattr(code, "co_filename", ""), getattr(code, "co_firstlineno", 0)
        name = getattr(code, "co_name", code)
        warnings.warn_explicit(
            f"`{name}` has been compiled {_MAX_TRACES} times for "
            f"arguments of the same shapes: {why}.\nPass it as an argument, which is data: "
            "`opt.step(fn, model, state, x, y)`.",
            RecompilationWarning,
            *where,
        )


class KeyedFunction(NamedTuple):
    """A function as a PyTree.

    - `static`: the function and its key, which are one leaf.
    - `captured`: the tracers that the function reads.
    - `process`: a number that is unique to this process: a state saved by another process must not
        match this function. It is a leaf, because as a constant it would make a different program
        in each process.
    """

    static: StaticFunction
    captured: tuple[object, ...] = ()
    process: Any = np.frombuffer(os.urandom(8), np.uint32)

    @property
    def __wrapped__(self) -> Function:
        return self.static.ref()  # used by `inspect.signature`

    def __call__(self, /, *args: object, **kwargs: object) -> Any:
        """Calls the function. This happens only during tracing."""
        out = self.static.ref()(*args, **kwargs)
        self.static.after = self.static.read() or ()  # tracing may have changed what it reads
        return out

    @property
    def data(self) -> tuple[object, ...]:
        """All fields except `static`."""
        return self[1:]

    def is_reusable(self) -> bool:
        """Whether later calls may use the program that was compiled for the function."""
        return self.static.key is not None and not self.captured


def key_function(fn: Function) -> KeyedFunction:
    """Gives a function its key."""
    if isinstance(fn, KeyedFunction):
        return fn
    code = fn.__code__ if isinstance(fn, types.FunctionType) else None
    keyed = _plain.pop(code, None)
    if keyed is None or not keyed.static.serves(fn):
        for remembered in (_learned, _plain):
            if len(remembered) > _MAX_REMEMBERED:
                remembered.pop(next(iter(remembered)), None)
        static = StaticFunction(fn)
        keyed = KeyedFunction(static, static.captured)
    # What was used last is forgotten last.
    static = keyed.static
    _learned[static.root] = _learned.pop(static.root, static.learned)
    if code is not None and static.is_current is not None:
        _plain[code] = keyed
    return keyed


def forget() -> None:
    """Forgets all functions, as `jax.clear_caches` forgets all programs."""
    _learned.clear()
    _plain.clear()


def is_unknown(fn: Function) -> bool:
    """Whether the function cannot be compared with another."""
    return isinstance(fn, KeyedFunction) and fn.static.key is None


def _root(fn: Any) -> Any:
    """The code of a function, below partials, methods and wrappers; its class, if it has no
    code."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    fn = inspect.unwrap(getattr(fn, "__func__", fn))  # most callable objects are not methods
    fn = fn if isinstance(fn, types.FunctionType) else type(fn).__call__
    return getattr(fn, "__code__", type(fn))  # a class that is written in C has no code


def _calls_back(jaxpr: Any) -> bool:
    """Whether a program, or one within it, calls back into Python."""
    programs = [jaxpr]
    while programs:
        for equation in programs.pop().eqns:
            if "callback" in equation.params:
                return True
            for x in equation.params.values():
                for y in x if isinstance(x, tuple) else (x,):
                    if isinstance(y, JAXPRS):
                        programs.append(y)
    return False
