"""One compiled call around a whole composition: arrays and numbers are data, the rest is static."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.interpreters.partial_eval import DynamicJaxprTracer
from jax.tree_util import PyTreeDef

from . import _check

_FLOAT0 = jax.dtypes.float0


class Result(eqx.Module):
    """What a compiled call returns: its arrays, and around them whatever is none."""

    arrays: list[Any]
    statics: tuple[Any, ...] = eqx.field(static=True)
    structure: PyTreeDef = eqx.field(static=True)


def is_data(x: Any) -> bool:
    """Whether a leaf is traced: arrays are, and numbers; `True`, `False` and strings are not."""
    if isinstance(x, jax.Array):
        return True
    if isinstance(x, np.ndarray | np.generic):
        return x.dtype != _FLOAT0
    return isinstance(x, int | float | complex) and not isinstance(x, bool)


def is_array(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray | np.generic)


def call(function: Callable[..., Any], *args: Any, reuse: bool = True) -> Any:
    """Calls `function(*args)` in one compiled program, which is reused while nothing static changes.

    Within somebody else's compiled program the function is called as it is: a program within a
    program would only be traced twice over. With `reuse=False` the program is thrown away.
    """
    leaves, treedef = jax.tree.flatten(args)
    if any(type(x) is DynamicJaxprTracer for x in leaves):
        return function(*args)
    data = [x if is_data(x) else None for x in leaves]
    statics = tuple(None if is_data(x) else x for x in leaves)
    program = _program if reuse else jax.jit(_body, static_argnums=(0, 1, 2))
    try:
        result = program(function, treedef, statics, data)
    except TypeError:
        _check_hashable(args)
        raise
    return _merge(result.arrays, result.statics, result.structure)


def _body(
    function: Callable[..., Any], treedef: PyTreeDef, statics: tuple[Any, ...], data: list[Any]
) -> Result:
    out, structure = jax.tree.flatten(function(*_merge(data, statics, treedef)))
    arrays = [x if is_data(x) else None for x in out]
    return Result(arrays, tuple(None if is_data(x) else x for x in out), structure)


_program = jax.jit(_body, static_argnums=(0, 1, 2))


def _merge(data: list[Any], statics: tuple[Any, ...], treedef: PyTreeDef) -> Any:
    leaves = [s if d is None else d for d, s in zip(data, statics, strict=True)]
    return treedef.unflatten(leaves)


def _check_hashable(args: Any) -> None:
    found, _ = jax.tree_util.tree_flatten_with_path(args)
    for path, x in found:
        try:
            hash(x) if not is_data(x) else None
        except TypeError:
            raise TypeError(
                f"the leaf at `{_check.keystr(path[1:])}` is a {type(x).__name__}, which is neither "
                "an array nor hashable; make it an array, or a static field"
            ) from None


def drop_statics(tree: Any) -> Any:
    """Replaces all that is no array by `None`."""
    return jax.tree.map(lambda x: x if is_array(x) and x.dtype != _FLOAT0 else None, tree)


