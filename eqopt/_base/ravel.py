"""Trees as few long vectors, and back."""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PyTree

from .arithmetic import is_complex, real_dtype, wider
from .trees import placed_like, replicated
from .types import TreeDef
from .xla import hidden_from_compiler

Shape: TypeAlias = tuple[int, ...]


def cut(vector: Array, shapes: Sequence[Shape]) -> list[Array]:
    """Arrays of the given shapes, one after another, from a vector."""
    return _cut(vector, starts_of(shapes, vector), tuple(shapes))


def starts_of(shapes: Sequence[Shape], near: Array) -> list[Array]:
    """Where in a vector each array begins."""
    sizes = [math.prod(shape) for shape in shapes]
    return hidden_from_compiler([0, *itertools.accumulate(sizes[:-1])], near)


@functools.partial(jax.jit, static_argnums=2, inline=True)
def _cut(vector: Array, starts: list[Array], shapes: tuple[Shape, ...]) -> list[Array]:
    axes = vector.shape[:-1]
    zeros = (np.int32(0),) * len(axes)
    parts = [
        lax.dynamic_slice(vector, (*zeros, start), (*axes, math.prod(shape)))
        for start, shape in zip(starts, shapes, strict=True)
    ]
    return [lax.reshape(x, (*axes, *shape)) for x, shape in zip(parts, shapes, strict=True)]


# One vector for each dtype


class Raveled(eqx.Module):
    """The arrays of a tree, concatenated into one vector per dtype; maps the dtype's name to the
    vector."""

    vectors: dict[str, Array]


class Ravel(eqx.Module):
    """Converts a tree to a bundle and back: a loop over few long vectors compiles fast.

    **Arguments:**

    - `starts`: where each leaf begins in the vector of its dtype.
    - `treedef`, `shapes`, `dtypes`: the tree's. Static.
    """

    starts: dict[str, list[Array]]

    treedef: TreeDef = eqx.field(static=True)
    shapes: tuple[Shape, ...] = eqx.field(static=True)
    dtypes: tuple[str, ...] = eqx.field(static=True)

    def __init__(self, tree: PyTree) -> None:
        leaves, self.treedef = jax.tree.flatten(tree)
        self.shapes = tuple(x.shape for x in leaves)
        self.dtypes = tuple(x.dtype.name for x in leaves)
        shapes = self._by_dtype(self.shapes)
        self.starts = {name: starts_of(own, leaves[0]) for name, own in shapes.items()}

    def pack(self, tree: PyTree) -> Raveled:
        """The bundle of a tree with the layout's structure and shapes."""
        leaves = [lax.reshape(x, (x.size,)) for x in self.treedef.flatten_up_to(tree)]
        parts = self._by_dtype(leaves)
        return Raveled({name: lax.concatenate(xs, 0) for name, xs in parts.items()})

    def unpack(self, bundle: Raveled) -> PyTree:
        """The tree. Axes before a vector's last axis become the first axes of every leaf."""
        leaves = {
            name: iter(_cut(bundle.vectors[name], self.starts[name], tuple(shapes)))
            for name, shapes in self._by_dtype(self.shapes).items()
        }
        return self.treedef.unflatten([next(leaves[name]) for name in self.dtypes])

    def unpack_all(self, tree: PyTree) -> PyTree:
        """Unpacks every bundle in a tree."""
        return jax.tree.map(
            lambda x: self.unpack(x) if _is_bundle(x) else x, tree, is_leaf=_is_bundle
        )

    def _by_dtype(self, leaves: Sequence[object]) -> dict[str, list[Any]]:
        found: dict[str, list[object]] = {name: [] for name in self.dtypes}
        for x, name in zip(leaves, self.dtypes, strict=True):
            found[name].append(x)
        return found


def _is_bundle(x: object) -> bool:
    return isinstance(x, Raveled)


# One vector of real numbers


def real_vector(tree: PyTree) -> Float[Array, " n"]:
    """All real and imaginary parts in a tree, at least in float32."""
    parts: list[Array] = []
    for x in jax.tree.leaves(tree):
        parts += [x.real, x.imag] if is_complex(x) else [x]
    dtype = wider(*[x.dtype for x in parts])
    return lax.concatenate([lax.reshape(replicated(x.astype(dtype)), (x.size,)) for x in parts], 0)


def from_real_vector(vector: Float[Array, " n"], like: PyTree) -> PyTree:
    """The tree with these real and imaginary parts."""
    leaves, treedef = jax.tree.flatten(like)
    sizes = [x.size for x in leaves for _ in range(1 + is_complex(x))]
    # At constant places, because this is differentiated, also within a linear solver.
    parts = iter(jnp.split(vector, np.cumsum(sizes)[:-1]))

    def part(x: Array) -> Array:
        return next(parts).astype(real_dtype(x.dtype)).reshape(x.shape)

    made = [lax.complex(part(x), part(x)) if is_complex(x) else part(x) for x in leaves]
    return treedef.unflatten([placed_like(x, y) for x, y in zip(made, leaves, strict=True)])
