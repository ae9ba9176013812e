"""Parameters cut into blocks, such as the heads of an attention."""

from collections.abc import Mapping
from typing import Any, Generic

import equinox as eqx
from jax import lax
from jaxtyping import Array, PyTree

from .._base import checks
from .._base.converters import optional, size
from .._base.trees import placed_like, replicated
from .._base.types import Params, State, Updates
from .._objective.objective import Context
from .._transformation.base import AbstractTransformation, check_state, check_transformation
from .._transformation.eval_params import AbstractEvalState
from .._transformation.nesting import refuse_selectors
from .._transformation.reparametrization import (
    AbstractReparametrization,
    eval_params_in,
    init_in,
    transform_in,
)
from ..selectors._table import as_table, Table


def _sizes(value: Any) -> tuple[int, ...]:
    found = tuple(map(size("split_sizes"), value))
    if not found:
        raise ValueError("`split_sizes` is empty")
    return found


class Cut(eqx.Module):
    """How [`eqopt.matrix.Blocks`][] cuts a parameter along one axis.

    **Arguments:**

    - `split_sizes`: the sizes of the parts, such as those of query, key and value in one matrix;
        `None` is one part.
    - `num_heads`: into how many blocks of equal size each part is cut.
    - `axis`: the axis, by default the last but one: the output of a layer of `eqx.nn`, also of many
        layers in one.

    Raises a `ValueError` for a size below 1.
    """

    split_sizes: tuple[int, ...] | None = eqx.field(
        converter=optional(_sizes), static=True, default=None
    )
    num_heads: int = eqx.field(converter=size("num_heads"), static=True, default=1)
    axis: int = eqx.field(static=True, default=-2)

    def sizes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The sizes of the blocks of a parameter; a `ValueError` tells why there are none."""
        if not -len(shape) <= self.axis < len(shape):
            raise ValueError(f"it has no axis {self.axis}")
        whole = shape[self.axis]
        parts = (whole,) if self.split_sizes is None else self.split_sizes
        if sum(parts) != whole:
            raise ValueError(f"the sizes {parts} do not add up to {whole}")
        if any(part % self.num_heads for part in parts):
            raise ValueError(f"{self.num_heads} heads do not divide {parts}")
        return tuple(part // self.num_heads for part in parts for _ in range(self.num_heads))


def _cut(value: object) -> Cut:
    if not isinstance(value, Cut):
        raise TypeError(
            "`cuts` must be a dictionary of `eqopt.matrix.Cut` by selector; it holds "
            + checks.describe(value)
        )
    return value


class _Layout(AbstractReparametrization):
    """For each leaf of the parameters the axis and the sizes of its blocks, or `None`. Static."""

    cuts: tuple[tuple[int, tuple[int, ...]] | None, ...] = eqx.field(static=True)

    def pack(self, tree: PyTree) -> PyTree:
        leaves, treedef = checks.flatten(tree)
        return treedef.unflatten(map(_apart, leaves, self.cuts))

    def unpack(self, packed: PyTree, like: PyTree) -> PyTree:
        references, treedef = checks.flatten(like)
        parts = treedef.flatten_up_to(packed)
        return treedef.unflatten(map(_joined, parts, references, self.cuts))


def _apart(x: Array | None, cut: tuple[int, tuple[int, ...]] | None) -> Any:
    if cut is None:
        return x
    axis, sizes = cut
    return (None,) * len(sizes) if x is None else tuple(lax.split(replicated(x), sizes, axis))


def _joined(
    parts: Any, reference: Array | None, cut: tuple[int, tuple[int, ...]] | None
) -> Array | None:
    if reference is None or cut is None:
        return parts if reference is not None else None
    return placed_like(lax.concatenate(parts, cut[0]), reference)


class BlocksState(AbstractEvalState, Generic[State]):
    """The state of [`eqopt.matrix.Blocks`][].

    **Arguments:**

    - `inner_state`: the state of the inner transformation, in which a parameter that is cut is a
        tuple of blocks.
    - `layout`: the blocks of each parameter. Static.
    """

    inner_state: State
    layout: _Layout

    def eval_params(self, params: Params) -> Params:
        return eval_params_in(self.layout, params, self.inner_state)


class Blocks(AbstractTransformation[BlocksState[State]], Generic[State]):
    """Applies a transformation to blocks of some parameters, and joins its updates.

    A matrix that computes query, key and value at once, for many heads, is many matrices to an
    optimizer that makes matrices orthogonal:

    ```python
    import eqopt
    from eqopt import matrix

    heads = {eqopt.ByPath("**.qkv.weight"): matrix.Cut((64, 64, 64), num_heads=4)}
    opt = eqopt.Chain(matrix.Blocks(eqopt.ScaleByMuon(), heads), eqopt.ScaleByLearningRate(0.02))
    ```

    **Arguments:**

    - `inner`: the transformation. To it, a parameter that is cut is a tuple of blocks.
    - `cuts`: a [`eqopt.matrix.Cut`][] by selector; the first selector that chooses a parameter
        decides. Others stay whole.

    Raises a `TypeError` for other `cuts`, and a `ValueError` that names a parameter that cannot be
    cut so.
    """

    inner: AbstractTransformation[State]
    cuts: Table[Cut]

    def __init__(
        self, inner: AbstractTransformation[State], cuts: Mapping[Any, Cut] | Table[Cut]
    ) -> None:
        check_transformation("inner", inner)
        refuse_selectors(self, inner, "here some are cut into blocks. Put it around")
        self.inner = inner
        self.cuts = as_table("cuts", "`eqopt.matrix.Cut`", _cut, cuts)

    def init_state(self, params: Params, context: Context) -> BlocksState[State]:
        layout = self._layout(params)
        return BlocksState(init_in(layout, self.inner, params, context), layout)

    def transform(
        self, updates: Updates, state: BlocksState[State], params: Params | None, context: Context
    ) -> tuple[Updates, BlocksState[State]]:
        check_state(self.inner, state.inner_state, "state.inner_state")
        layout = state.layout
        leaves, _ = checks.flatten(updates)
        checks.check_num_leaves(leaves, len(layout.cuts), "updates")
        out, inner = transform_in(layout, self.inner, updates, state.inner_state, params, context)
        return out, BlocksState(inner, layout)

    def _layout(self, params: Params) -> _Layout:
        leaves, _ = checks.flatten(params)
        chosen: list[Cut | None] = [None] * len(leaves)
        for cut, mask in self.cuts.groups(params):
            here = checks.flatten(mask)[0]
            chosen = [cut if c else old for c, old in zip(here, chosen, strict=True)]
        found: list[tuple[int, tuple[int, ...]] | None] = []
        faults: list[str] = []
        for i, (x, cut) in enumerate(zip(leaves, chosen, strict=True)):
            blocks = None
            if x is not None and cut is not None:
                try:
                    blocks = cut.axis % x.ndim, cut.sizes(x.shape)
                except ValueError as error:
                    faults.append(
                        f"`{checks.paths('params', params)[i]}` has shape {x.shape}; {error}"
                    )
            found.append(blocks)
        if faults:
            raise ValueError(checks.listed(faults))
        return _Layout(tuple(found))
