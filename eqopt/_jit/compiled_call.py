"""Runs a function in one compiled program, which is reused from call to call.

In: a function and its arguments, any PyTrees. Out: what the function returns. Arrays are the
program's data; everything else is static, and the program is reused while it is equal.
It exists because `jax.jit` and `eqx.filter_jit` compile again for a lambda that is made anew at
each call, and take longer to flatten the arguments than a small step takes to run.
"""

import functools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._base.compat import jit_is_disabled, JitTracer, of_one_trace, Tracer
from .._base.types import Function, Leaves, TreeDef
from .function import key_function, KeyedFunction, StaticFunction
from .partition import data, Flat, MAX_SHARED, pack, pack_leaves, Partitioned, static, StaticPart

_inlined: list[bool] = []


def is_inside_trace() -> bool:
    """Whether we are inside another trace, or `jit` is disabled."""
    return bool(_inlined) or jit_is_disabled()


def call(function: Function, *args: object) -> PyTree:
    """Calls `function(*args)` in one compiled program, reused while nothing static changes.

    Inside another trace the function is called directly: a program within a program would only be
    traced twice.
    """
    return _call(function, None, args)


def call_objective(
    function: Function, fn: Function | None, *args: object, reuse: bool = True
) -> PyTree:
    """Calls `function(fn, *args)` as `call` does.

    **Arguments:**

    - `function`: the function to compile.
    - `fn`: the user's function, which is static and known by its key, or `None`.
    - `*args`: all other arguments.
    - `reuse`: whether later calls may use the program. They never do if `fn` reads something that
        cannot be compared.
    """
    if fn is None:
        return _call(function, None, (None, *args))
    return _call(function, key_function(fn), args, reuse=reuse)


def _call(
    function: Function,
    fn: KeyedFunction | None,
    args: tuple[object, ...],
    *,
    reuse: bool = True,
) -> PyTree:
    call = _Call.of(fn, args)
    if _traced(call.leaves):
        return _inline(function, args if fn is None else (fn, *args))
    (result,) = _run(function, [], call, reuse=reuse)
    return result.unpack()


def advance(
    function: Callable[..., tuple[Flat, PyTree]],
    kept: tuple[Flat, ...],
    *args: object,
    fn: Function | None = None,
) -> tuple[Flat, PyTree]:
    """Calls `function(*kept, *args)`, or with `fn` `function(*kept, fn, *args)`, as `call` does.

    The function returns a tree to keep and another tree. The kept tree stays flat between calls: it
    is neither flattened nor built.
    """
    keyed = None if fn is None else key_function(fn)
    call = _Call.of(keyed, args)
    packed = [x.packed for x in kept]
    if any(_traced(xs) for xs in (call.leaves, *[x.arrays for x in packed])):
        return _inline(function, (*kept, *(args if keyed is None else (keyed, *args))))
    new, rest = _run(function, packed, call)
    return Flat.from_partitioned(new), rest.unpack()


class _Call(NamedTuple):
    """The arguments of a call, flattened. The leaves include the data of the user's function."""

    leaves: Leaves
    structure: TreeDef
    fn: KeyedFunction | None

    @classmethod
    def of(cls, fn: KeyedFunction | None, args: tuple[object, ...]) -> "_Call":
        return cls(*jax.tree.flatten(args if fn is None else (fn.data, *args)), fn)


class CapturedTracerError(Exception):
    """A program reads a tracer that is not one of its arguments, so the program must not be
    kept."""


def captures(tree: object, argument: object) -> bool:
    """Whether `tree` has a tracer that does not belong to the trace of the program's `argument`."""
    (own, *_), found = jax.tree.leaves(argument), jax.tree.leaves(tree)
    return any(isinstance(x, Tracer) and not of_one_trace(x, own) for x in found)


def _traced(leaves: list[object]) -> bool:
    return JitTracer in map(type, leaves)


def _inline(function: Function, args: tuple[object, ...]) -> PyTree:
    _inlined.append(True)
    try:
        return function(*jax.tree.map(_inside, args))
    finally:
        _inlined.pop()


def _inside(x: object) -> Any:
    """Prepares a leaf for a direct call: NumPy arrays become JAX arrays."""
    array = data(x)
    if array is None:
        return static(x)
    return jnp.asarray(array) if isinstance(array, np.ndarray | np.generic) else array


def _run(
    function: Function, kept: list[Partitioned], call: _Call, *, reuse: bool = True
) -> tuple[Partitioned, ...]:
    reuse = reuse and (call.fn is None or call.fn.is_reusable())
    packed = [*kept, pack_leaves(call.leaves, call.structure, remember=reuse)]
    specs, arrays = tuple([x.spec for x in packed]), [x.arrays for x in packed]
    fn = None if call.fn is None else call.fn.static
    program = _program if reuse else _new_program()
    if reuse and fn is not None and fn.has_arrays:
        program = _program_with_arrays(fn)
    # The function is a separate argument: JAX must trace the function of this call, not an equal
    # one of an earlier call, which may have changed since.
    results = program(function, specs, fn, arrays)
    if fn is not None and fn.after is not None:
        static = function, *[(x.structure, repr(x.statics)) for x in specs]
        learn(fn, program, (function, specs, fn, arrays), results, static)
    return results


def learn(
    fn: StaticFunction,
    program: Any,
    args: tuple[object, ...],
    results: object,
    static: tuple[Hashable, ...] | None = None,
) -> None:
    """Lets the function learn from a call of a program, if the call has traced it.

    `static` holds everything static except the function; with it, repeated traces give a warning.
    """
    if fn.after is not None and not jit_is_disabled():
        jaxpr = program.trace(*args).jaxpr  # JAX has kept the trace
        fn.learn(jaxpr, results, None if static is None else (*static, *jaxpr.in_avals))


def _body(
    function: Function,
    specs: tuple[StaticPart, ...],
    fn: StaticFunction | None,
    arrays: list[Leaves],
) -> tuple[Partitioned, ...]:
    *kept, last = map(Partitioned, arrays, specs)
    args = last.unpack()
    if fn is not None:
        args = (KeyedFunction(fn, *args[0]), *args[1:])
    result = function(*map(Flat.from_partitioned, kept), *args)
    results = (pack(result),) if not kept else (result[0].packed, pack(result[1]))
    # Small arrays that are returned unchanged are copied: JAX would return the input array itself,
    # and equal hyper-parameters share one array.
    small = {id(x) for xs in arrays for x in xs if x is not None and np.size(x) <= MAX_SHARED}
    return tuple(
        Partitioned([jnp.copy(x) if id(x) in small else x for x in own.arrays], own.spec)
        for own in results
    )


_program = jax.jit(_body, static_argnums=(0, 1, 2))


def _new_program() -> Any:
    # A new function each time, because JAX keeps the programs of a function that it has seen.
    return jax.jit(lambda *x: _body(*x), static_argnums=(0, 1, 2))


@functools.lru_cache(maxsize=8)
def _program_with_arrays(fn: StaticFunction) -> Any:
    """The program for a function that reads arrays. Few are kept, because they hold the arrays."""
    del fn
    return _new_program()
