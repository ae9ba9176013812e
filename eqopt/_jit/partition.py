"""Splits a tree into arrays, which a compiled program takes, and a static part.

In: any PyTree. Out: a `Partitioned`: a list of arrays, and a `StaticPart` (the structure and the
leaves that are not arrays), which is one object for all equal trees, so that comparing is cheap.
`Flat` keeps a tree in this form between calls. It exists because a step must find its compiled
program without comparing the structures of several trees leaf by leaf.
"""

import dataclasses
import functools
import types
from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, PyTree

from .._base import checks
from .._base.compat import Tracer
from .._base.trees import owned
from .._base.types import Leaves, TreeDef

_FLOAT0 = jax.dtypes.float0
# Known types: arrays (tracers excepted), NumPy scalars, static leaves. `isinstance` is slow.
_CONCRETE: set[type] = set()
_SCALARS: set[type] = {np.float32, np.float64, np.int32, np.bool_}
_NUMBERS: set[type] = {int, float, complex}
# The largest size of an array for `on_device_once`: the words of a PRNG key.
MAX_SHARED = 4
_STATIC: set[type] = {bool, int, float, complex, str, types.FunctionType}


class StaticPart:
    """The static part of a tree. Equal parts are one object: see `pack`."""

    __slots__ = ("__weakref__", "statics", "structure")

    def __init__(self, structure: TreeDef, statics: tuple[object, ...]) -> None:
        self.structure = structure
        self.statics = statics


@functools.lru_cache(maxsize=4096)
def _spec(
    structure: TreeDef, statics: tuple[object, ...], kinds: tuple[type | str, ...]
) -> StaticPart:
    # A part of the cache's key, because `1 == 1.0 == True` and `0.0 == -0.0`.
    del kinds
    return StaticPart(structure, statics)


# Not a Module: one is made at each step, and Equinox is slow to make a Module.
@functools.partial(jax.tree_util.register_dataclass, data_fields=("arrays",), meta_fields=("spec",))
@dataclasses.dataclass
class Partitioned:
    """A tree, split into its arrays (`None` for other leaves) and the static part."""

    arrays: Leaves
    spec: StaticPart

    def leaves(self) -> Leaves:
        statics = self.spec.statics
        return [s if x is None else x for x, s in zip(self.arrays, statics, strict=True)]

    def unpack(self) -> PyTree:
        return self.spec.structure.unflatten(self.leaves())


def pack(tree: object, *, remember: bool = True) -> Partitioned:
    """Splits a tree. The gradient of an integer, of dtype float0, does not count as an array.

    The static part is remembered, unless `remember=False`. A `TypeError` names a leaf that is
    neither data nor hashable.
    """
    return pack_leaves(*jax.tree.flatten(tree), remember=remember)


def pack_leaves(leaves: Leaves, structure: TreeDef, *, remember: bool = True) -> Partitioned:
    """Does the same with a tree that is already flattened."""
    arrays, statics = [], []
    for x in leaves:
        kind = type(x)
        if kind in _CONCRETE:
            arrays.append(x)
            statics.append(None)
        elif kind in _SCALARS:
            arrays.append(on_device_once(x))
            statics.append(None)
        elif kind is _Number or (kind not in _STATIC and isinstance(x, checks.ARRAYS)):
            array = data(x)
            if isinstance(array, np.ndarray):
                array = on_device_once(array) if _are_words(array) else array.copy()
            arrays.append(array)
            statics.append(None)
        else:
            arrays.append(None)
            statics.append(x)
    own = tuple(statics)
    if not remember:
        return Partitioned(arrays, StaticPart(structure, own))
    kinds = tuple([repr(x) if type(x) in (float, complex) else type(x) for x in own])
    try:
        return Partitioned(arrays, _spec(structure, own, kinds))
    except TypeError:
        _check_hashable(structure.unflatten(leaves))
        raise


class _Number:
    """A Python number that is data."""

    __slots__ = ("number",)

    def __init__(self, number: complex) -> None:
        self.number = number


def mark_numbers_dynamic(tree: object) -> PyTree:
    """Marks the Python numbers in a tree as data, except those within a Module.

    `True` and `False` stay static, and so do settings of a model, such as its dropout rate.
    """
    if _NUMBERS.isdisjoint(map(type, jax.tree.leaves(tree))):
        return tree
    return jax.tree.map(
        lambda x: _Number(x) if type(x) in _NUMBERS else x,
        tree,
        is_leaf=lambda x: isinstance(x, eqx.Module),
    )


def is_array(x: object) -> bool:
    return isinstance(x, checks.ARRAYS)


def data(x: object) -> Any:
    """The data of a leaf, or `None` if it is static."""
    if isinstance(x, checks.ARRAYS):
        if isinstance(x, jax.Array) and not isinstance(x, Tracer):
            _CONCRETE.add(type(x))
        return None if x.dtype == _FLOAT0 else x
    return x.number if isinstance(x, _Number) else None


def on_device_once(x: np.generic | np.ndarray) -> Array:
    """A NumPy scalar or the words of a PRNG key, as an array on the device, copied there only once.

    An optimizer keeps its hyper-parameters and keys in NumPy: they would be copied at each step.
    """
    # The bytes, because `0.0 == -0.0`. The last entry decides to which dtype a float64 is
    # converted.
    key = x.dtype, x.shape, x.tobytes(), jax.dtypes.canonicalize_dtype(np.float64)
    found = _kept_on_device(*key)
    if found.is_deleted():  # a user has donated it
        _kept_on_device.cache_clear()
        found = _kept_on_device(*key)
    return found


@functools.lru_cache(maxsize=4096)
def _kept_on_device(dtype: Any, shape: tuple[int, ...], data: bytes, wide: Any) -> Array:
    del wide
    # A concrete array, also within a trace.
    with jax.ensure_compile_time_eval():
        return jax.device_put(np.frombuffer(data, dtype).reshape(shape))


def _are_words(x: np.ndarray) -> bool:
    return x.dtype == np.uint32 and 0 < x.size <= MAX_SHARED


def static(x: object) -> Any:
    """The static part of a leaf, or `None` if it is data."""
    return None if is_array(x) or type(x) is _Number else x


def filter_arrays(tree: object) -> PyTree:
    """Replaces each leaf that is not an array by a mark of its type.

    A program that has no use for these leaves need not be compiled for them.
    """
    return jax.tree.map(lambda x: checks.mark(type(x)) if data(x) is None else x, tree)


def on_device(tree: object) -> PyTree:
    """Copies NumPy arrays to the device. Otherwise a program copies them at each call."""
    kinds = np.ndarray | np.generic
    return jax.tree.map(
        lambda x: jax.device_put(owned(x)) if isinstance(x, kinds) and x.dtype != _FLOAT0 else x,
        tree,
    )


@jax.tree_util.register_pytree_with_keys_class
class Flat:
    """A tree kept as its leaves, ready for a program, and built only on request.

    It is a PyTree with the leaves of the tree, under their paths.
    """

    __slots__ = ("_leaves", "_packed", "structure")

    def __init__(
        self, structure: TreeDef, leaves: Leaves | None = None, packed: Partitioned | None = None
    ) -> None:
        self.structure = structure
        self._leaves = leaves
        self._packed = packed

    @classmethod
    def of(cls, tree: object) -> "Flat":
        leaves, structure = jax.tree.flatten(tree)
        return cls(structure, [owned(x) for x in leaves])

    @classmethod
    def from_partitioned(cls, packed: Partitioned) -> "Flat":
        """The tree that has been taken apart."""
        return cls(packed.spec.structure, packed=packed)

    @property
    def packed(self) -> Partitioned:
        if self._packed is None:
            self._packed = pack_leaves(self.leaves, self.structure)
        return self._packed

    @property
    def leaves(self) -> Leaves:
        if self._leaves is None:
            self._leaves = self.packed.leaves()
        return self._leaves

    def whole(self) -> PyTree:
        """Builds the tree."""
        return self.structure.unflatten(self.leaves)

    def tree_flatten(self) -> tuple[Leaves, TreeDef]:
        return self.leaves, self.structure

    def tree_flatten_with_keys(self) -> tuple[list[tuple[object, object]], TreeDef]:
        numbered = self.structure.unflatten(range(self.structure.num_leaves))
        found, _ = jax.tree_util.tree_flatten_with_path(numbered)
        return [(_Path(path), self.leaves[i]) for path, i in found], self.structure

    @classmethod
    def tree_unflatten(cls, structure: TreeDef, leaves: Iterable[object]) -> "Flat":
        return cls(structure, list(leaves))

    def __reduce__(self) -> tuple[object, ...]:
        return Flat.of, (self.whole(),)


@dataclasses.dataclass(frozen=True)
class _Path:
    """A path, as one key."""

    path: tuple[object, ...]

    def __str__(self) -> str:
        return jax.tree_util.keystr(self.path)


def _check_hashable(tree: object) -> None:
    """Refuses a leaf that is neither data nor hashable, and names its path."""
    found, _ = jax.tree_util.tree_flatten_with_path(tree)
    for path, x in found:
        try:
            hash(None if is_array(x) else x)
        except TypeError:
            raise TypeError(
                f"the leaf at `{checks.keystr(path[1:])}` is a {type(x).__name__}, which is "
                "neither an array nor hashable; make it an array, or a static field"
            ) from None
