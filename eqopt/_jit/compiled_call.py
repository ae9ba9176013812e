"""One compiled call around a whole composition: arrays are data, the rest is static."""

from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._base.compat import jit_is_disabled, JitTracer, of_one_trace, Tracer
from .partition import data, Flat, MAX_SHARED, pack, pack_leaves, Partitioned, static, StaticPart

_inlined: list[bool] = []


def is_inside_trace() -> bool:
    """Whether what runs is a part of somebody else's program, who may trace at will, or of none."""
    return bool(_inlined) or jit_is_disabled()


def call(function: Callable[..., Any], *args: Any, reuse: bool = True) -> Any:
    """Calls `function(*args)` in one compiled program, reused while nothing static changes.

    Within somebody else's compiled program the function is called as it is: a program within a
    program would only be traced twice over. With `reuse=False` the program is thrown away.
    """
    leaves, structure = jax.tree.flatten(args)
    if _traced(leaves):
        return _inline(function, args)
    (result,) = _run(function, [pack_leaves(leaves, structure, remember=reuse)], reuse=reuse)
    return result.unpack()


def advance(
    function: Callable[..., tuple[Flat, Any]],
    kept: tuple[Flat, ...],
    *args: Any,
    reuse: bool = True,
) -> tuple[Flat, Any]:
    """Calls `function(*kept, *args)` likewise, which gives something to keep, and a tree.

    From one call to the next, what is kept is neither flattened nor built.
    """
    leaves, structure = jax.tree.flatten(args)
    packed = [x.packed for x in kept]
    if any(_traced(xs) for xs in (leaves, *[x.arrays for x in packed])):
        return _inline(function, (*kept, *args))
    packed.append(pack_leaves(leaves, structure, remember=reuse))
    new, rest = _run(function, packed, reuse=reuse)
    return Flat.from_partitioned(new), rest.unpack()


class CapturedTracerError(Exception):
    """A program reads a tracer that is not one of its arguments, and so must not be kept."""


def captures(tree: Any, argument: Any) -> bool:
    """Whether `tree` has a tracer that does not belong to the trace of the program's `argument`."""
    (own, *_), found = jax.tree.leaves(argument), jax.tree.leaves(tree)
    return any(isinstance(x, Tracer) and not of_one_trace(x, own) for x in found)


def _traced(leaves: list[Any]) -> bool:
    return JitTracer in map(type, leaves)


def _inline(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    _inlined.append(True)
    try:
        return function(*jax.tree.map(_inside, args))
    finally:
        _inlined.pop()


def _inside(x: Any) -> Any:
    """What a leaf is on its way into a program of our own: NumPy's arrays become JAX's."""
    array = data(x)
    if array is None:
        return static(x)
    return jnp.asarray(array) if isinstance(array, np.ndarray | np.generic) else array


def _run(
    function: Callable[..., Any], packed: list[Partitioned], *, reuse: bool
) -> tuple[Partitioned, ...]:
    # A new function, for JAX keeps the programs of one that it knows.
    program = _program if reuse else jax.jit(lambda *x: _body(*x), static_argnums=(0, 1))
    return program(function, tuple([x.spec for x in packed]), [x.arrays for x in packed])


def _body(
    function: Callable[..., Any], specs: tuple[StaticPart, ...], arrays: list[list[Any]]
) -> tuple[Partitioned, ...]:
    *kept, args = map(Partitioned, arrays, specs)
    result = function(*map(Flat.from_partitioned, kept), *args.unpack())
    results = (pack(result),) if not kept else (result[0].packed, pack(result[1]))
    # What is small and passed on is copied. JAX would give back the very array that was put in, and
    # one array serves all equal hyper-parameters.
    small = {id(x) for xs in arrays for x in xs if x is not None and np.size(x) <= MAX_SHARED}
    return tuple(
        Partitioned([jnp.copy(x) if id(x) in small else x for x in own.arrays], own.spec)
        for own in results
    )


_program = jax.jit(_body, static_argnums=(0, 1))


def signature(tree: Any) -> Hashable:
    """All of a tree that decides what is traced: its spec, and the arrays' types."""
    packed = pack(tree)
    return packed.spec, tuple(jax.typeof(x) for x in packed.arrays if x is not None)
