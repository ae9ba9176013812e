"""One compiled call around a whole composition: arrays are data, the rest is static."""

import operator
from collections.abc import Callable, Hashable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters.partial_eval import DynamicJaxprTracer

from . import _check
from ._types import TreeDef

_FLOAT0 = jax.dtypes.float0


class Packed(eqx.Module):
    """A tree, taken apart into its arrays and whatever else is in it."""

    arrays: list[Any]
    statics: tuple[Any, ...] = eqx.field(static=True)
    structure: TreeDef = eqx.field(static=True)

    def unpack(self) -> Any:
        leaves = [s if x is None else x for x, s in zip(self.arrays, self.statics, strict=True)]
        return self.structure.unflatten(leaves)


def pack(tree: Any) -> Packed:
    """Takes a tree apart. The gradient of an integer, of dtype float0, counts as none."""
    return _pack(*jax.tree.flatten(tree))


def _pack(leaves: list[Any], structure: TreeDef) -> Packed:
    arrays = [_data(x) for x in leaves]
    statics = tuple([_static(x) for x in leaves])
    return Packed(arrays, statics, structure)


class _Number:
    """A Python number that is data."""

    __slots__ = ("number",)

    def __init__(self, number: complex) -> None:
        self.number = number


def numbers_are_data(tree: Any) -> Any:
    """Marks the Python numbers in a tree as data, but for those within a Module.

    `True` and `False` stay static, and so does what makes a model what it is, such as the rate of
    its dropout.
    """
    return jax.tree.map(
        lambda x: _Number(x) if type(x) in (int, float, complex) else x,
        tree,
        is_leaf=lambda x: isinstance(x, eqx.Module),
    )


def is_array(x: Any) -> bool:
    return isinstance(x, _check.ARRAYS)


def _data(x: Any) -> Any:
    if isinstance(x, _check.ARRAYS):
        return None if x.dtype == _FLOAT0 else x
    return x.number if isinstance(x, _Number) else None


def _static(x: Any) -> Any:
    return None if isinstance(x, _check.ARRAYS) or type(x) is _Number else x


_inlined: list[bool] = []
# The type of JAX's configuration does not tell what attributes it has.
_disable_jit = operator.attrgetter("jax_disable_jit")


def inlined() -> bool:
    """Whether what runs is a part of somebody else's program, who may trace at will, or of none."""
    return bool(_inlined) or bool(_disable_jit(jax.config))


def call(function: Callable[..., Any], *args: Any, reuse: bool = True) -> Any:
    """Calls `function(*args)` in one compiled program, reused while nothing static changes.

    Within somebody else's compiled program the function is called as it is: a program within a
    program would only be traced twice over. With `reuse=False` the program is thrown away.
    """
    leaves, structure = jax.tree.flatten(args)
    if DynamicJaxprTracer in map(type, leaves):
        _inlined.append(True)
        try:
            return function(*structure.unflatten([_inside(x) for x in leaves]))
        finally:
            _inlined.pop()
    packed = _pack(leaves, structure)
    # A new function, for JAX keeps the programs of one that it knows.
    program = _program if reuse else jax.jit(lambda *x: _body(*x), static_argnums=(0, 1, 2))
    try:
        result = program(function, packed.structure, packed.statics, packed.arrays)
    except (TypeError, ValueError):
        check_hashable(args)
        raise
    return result.unpack()


def _inside(x: Any) -> Any:
    """What a leaf is on its way into a program of our own: NumPy's arrays become JAX's."""
    data = _data(x)
    if data is None:
        return _static(x)
    return jnp.asarray(data) if isinstance(data, np.ndarray | np.generic) else data


def _body(
    function: Callable[..., Any], structure: TreeDef, statics: tuple[Any, ...], arrays: list[Any]
) -> Packed:
    return pack(function(*Packed(arrays, statics, structure).unpack()))


_program = jax.jit(_body, static_argnums=(0, 1, 2))


def check_hashable(args: Any) -> None:
    """Refuses, by its path, what is neither data nor fit to be static."""
    found, _ = jax.tree_util.tree_flatten_with_path(args)
    for path, x in found:
        try:
            hash(None if is_array(x) else x)
        except TypeError:
            raise TypeError(
                f"the leaf at `{_check.keystr(path[1:])}` is a {type(x).__name__}, which is "
                "neither an array nor hashable; make it an array, or a static field"
            ) from None


def drop_statics(tree: Any) -> Any:
    """Replaces all that is no array by `None`."""
    return jax.tree.map(lambda x: None if _data(x) is None else x, tree)


def signature(tree: Any) -> Hashable:
    """All of a tree that decides what is traced: structure, statics, and the arrays' types."""
    packed = pack(tree)
    kinds = tuple(jax.typeof(x) for x in packed.arrays if x is not None)
    return packed.structure, packed.statics, kinds
