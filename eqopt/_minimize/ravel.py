"""Trees as one vector for each dtype: a loop over few long vectors compiles fast."""

import functools
import math
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

from .._base.trace_sharing import hidden
from .._base.types import TreeDef
from .._objective.objective import Evaluation, Objective


class Raveled(eqx.Module):
    """The arrays of a tree, those of one dtype in one vector, by the dtypes' names."""

    vectors: dict[str, Array]


class Ravel(eqx.Module):
    """How a tree becomes a bundle, and the way back.

    **Arguments:**

    - `starts`: where in its vector each leaf begins.
    - `treedef`, `shapes`, `dtypes`: the tree's. Static.
    """

    starts: tuple[Array, ...]

    treedef: TreeDef = eqx.field(static=True)
    shapes: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    dtypes: tuple[str, ...] = eqx.field(static=True)

    def __init__(self, tree: PyTree) -> None:
        leaves, self.treedef = jax.tree.flatten(tree)
        self.shapes = tuple(x.shape for x in leaves)
        self.dtypes = tuple(x.dtype.name for x in leaves)
        ends = dict.fromkeys(self.dtypes, 0)
        starts: list[int] = []
        for shape, name in zip(self.shapes, self.dtypes, strict=True):
            starts.append(ends[name])
            ends[name] += math.prod(shape)
        self.starts = tuple(hidden(starts, leaves[0]))

    def pack(self, tree: PyTree) -> Raveled:
        """The bundle of a tree like the one that this was made from."""
        parts: dict[str, list[Array]] = {name: [] for name in self.dtypes}
        leaves = self.treedef.flatten_up_to(tree)
        for x, name in zip(leaves, self.dtypes, strict=True):
            parts[name].append(lax.reshape(x, (x.size,)))
        return Raveled({name: lax.concatenate(xs, 0) for name, xs in parts.items()})

    def unpack(self, bundle: Raveled) -> PyTree:
        """The tree; what axes there are before the last become the first of every leaf."""
        leaves = _cut(self.starts, bundle.vectors, self.shapes, self.dtypes)
        return self.treedef.unflatten(leaves)

    def unpack_all(self, tree: PyTree) -> PyTree:
        """Unpacks every bundle in a tree."""
        return jax.tree.map(
            lambda x: self.unpack(x) if _is_bundle(x) else x, tree, is_leaf=_is_bundle
        )

    def packed(self, objective: Objective) -> Objective:
        """The objective as a function of bundles."""

        def evaluate(bundle: Raveled) -> Evaluation[Any]:
            # Not differentiated through: the transpose of a slice is as long as the whole vector.
            found = objective.evaluate(self.unpack(bundle))
            return Evaluation(found.value, self.pack(found.grad), found.aux)

        return eqx.tree_at(lambda o: o.replay, objective, evaluate, is_leaf=lambda x: x is None)


@functools.partial(jax.jit, static_argnums=(2, 3), inline=True)
def _cut(
    starts: tuple[Array, ...],
    vectors: dict[str, Array],
    shapes: tuple[tuple[int, ...], ...],
    dtypes: tuple[str, ...],
) -> list[Array]:
    leaves: list[Array] = []
    zero = np.int32(0)
    for start, shape, name in zip(starts, shapes, dtypes, strict=True):
        vector = vectors[name]
        axes, length = vector.shape[:-1], math.prod(shape)
        part = lax.dynamic_slice(vector, (*(zero for _ in axes), start), (*axes, length))
        leaves.append(lax.reshape(part, (*axes, *shape)))
    return leaves


def _is_bundle(x: Any) -> bool:
    return isinstance(x, Raveled)
