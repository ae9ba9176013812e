"""Trees taken apart into what a compiled program is given, and what it is compiled for."""

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
# Types of arrays, but for tracers, and of what is none: of the rest, `isinstance` is slow to tell.
_CONCRETE: set[type] = set()
_SCALARS: set[type] = {np.float32, np.float64, np.int32, np.bool_}
_NUMBERS: set[type] = {int, float, complex}
# The most numbers in an array of `on_device_once`: the words of a PRNG key.
MAX_SHARED = 4
_STATIC: set[type] = {bool, int, float, complex, str, types.FunctionType}


class StaticPart:
    """All of a tree that is static. There is one object for all that are equal: see `pack`."""

    __slots__ = ("__weakref__", "statics", "structure")

    def __init__(self, structure: TreeDef, statics: tuple[object, ...]) -> None:
        self.structure = structure
        self.statics = statics


@functools.lru_cache(maxsize=4096)
def _spec(
    structure: TreeDef, statics: tuple[object, ...], kinds: tuple[type | str, ...]
) -> StaticPart:
    # By what equality does not tell apart: `1 == 1.0 == True`, and `0.0 == -0.0`.
    del kinds
    return StaticPart(structure, statics)


# Not a Module: Equinox takes its time to make one, and one is made at each step.
@functools.partial(jax.tree_util.register_dataclass, data_fields=("arrays",), meta_fields=("spec",))
@dataclasses.dataclass
class Partitioned:
    """A tree, taken apart into its arrays, with `None` for what is none, and all else."""

    arrays: Leaves
    spec: StaticPart

    def leaves(self) -> Leaves:
        statics = self.spec.statics
        return [s if x is None else x for x, s in zip(self.arrays, statics, strict=True)]

    def unpack(self) -> PyTree:
        return self.spec.structure.unflatten(self.leaves())


def pack(tree: object, *, remember: bool = True) -> Partitioned:
    """Takes a tree apart. The gradient of an integer, of dtype float0, counts as none.

    What is static of it is remembered, unless `remember=False`; a `TypeError` names the leaf that
    is neither data nor hashable.
    """
    return pack_leaves(*jax.tree.flatten(tree), remember=remember)


def pack_leaves(leaves: Leaves, structure: TreeDef, *, remember: bool = True) -> Partitioned:
    """The same of a tree that has been flattened."""
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
    """Marks the Python numbers in a tree as data, but for those within a Module.

    `True` and `False` stay static, and so does what makes a model what it is, such as the rate of
    its dropout.
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
    """What of a leaf is data, or `None`."""
    if isinstance(x, checks.ARRAYS):
        if isinstance(x, jax.Array) and not isinstance(x, Tracer):
            _CONCRETE.add(type(x))
        return None if x.dtype == _FLOAT0 else x
    return x.number if isinstance(x, _Number) else None


def on_device_once(x: np.generic | np.ndarray) -> Array:
    """A NumPy scalar, or a few words of a PRNG key, on the device, to which it is brought once.

    The hyper-parameters and keys of an optimizer are NumPy's. They would be brought at each step.
    """
    # By its bytes, for `0.0 == -0.0`. The last decides what becomes of a float64.
    key = x.dtype, x.shape, x.tobytes(), jax.dtypes.canonicalize_dtype(np.float64)
    found = _kept_on_device(*key)
    if found.is_deleted():  # by somebody who donated it
        _kept_on_device.cache_clear()
        found = _kept_on_device(*key)
    return found


@functools.lru_cache(maxsize=4096)
def _kept_on_device(dtype: Any, shape: tuple[int, ...], data: bytes, wide: Any) -> Array:
    del wide
    # An array, also where somebody else is tracing.
    with jax.ensure_compile_time_eval():
        return jax.device_put(np.frombuffer(data, dtype).reshape(shape))


def _are_words(x: np.ndarray) -> bool:
    return x.dtype == np.uint32 and 0 < x.size <= MAX_SHARED


def static(x: object) -> Any:
    """What of a leaf is static, or `None`."""
    return None if is_array(x) or type(x) is _Number else x


def filter_arrays(tree: object) -> PyTree:
    """Replaces each leaf that is no array by a mark, which tells no more than its type.

    A program that has no use for these leaves need not be compiled for them.
    """
    return jax.tree.map(lambda x: checks.mark(type(x)) if data(x) is None else x, tree)


def on_device(tree: object) -> PyTree:
    """Brings what is NumPy's to the device: a program that is given it does so at each call."""
    kinds = np.ndarray | np.generic
    return jax.tree.map(
        lambda x: jax.device_put(owned(x)) if isinstance(x, kinds) and x.dtype != _FLOAT0 else x,
        tree,
    )


@jax.tree_util.register_pytree_with_keys_class
class Flat:
    """A tree that is kept as its leaves, for a program to be given, and built when it is asked for.

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
    """Refuses, by its path, what is neither data nor fit to be static."""
    found, _ = jax.tree_util.tree_flatten_with_path(tree)
    for path, x in found:
        try:
            hash(None if is_array(x) else x)
        except TypeError:
            raise TypeError(
                f"the leaf at `{checks.keystr(path[1:])}` is a {type(x).__name__}, which is "
                "neither an array nor hashable; make it an array, or a static field"
            ) from None
