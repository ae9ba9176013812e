"""Which axes of a parameter form a matrix.

In: parameters. Out: the axes of each matrix. It goes by layers, because a stack of biases has two
axes too, because `eqx.nn` puts the output first, and because an embedding is a list of vectors.
"""

import abc
from collections.abc import Callable
from typing import Any, TypeAlias

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from ..._base import checks
from ..._base.types import TreeDef
from ...selectors._selector import AbstractSelector

# The axes of the rows, and the axes of the columns.
Axes: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]

MATRIX: Axes = ((0,), (1,))


def _axis(name: str) -> Callable[[Any], int | tuple[int, ...]]:
    def convert(value: Any) -> int | tuple[int, ...]:
        axes = value if isinstance(value, tuple | list) else (value,)
        for x in axes:
            if isinstance(x, bool) or not isinstance(x, int | np.integer):
                raise TypeError(f"`{name}` must be an axis, or several in a tuple; got {value!r}")
        found = tuple(map(int, axes))
        return found if isinstance(value, tuple | list) else found[0]

    return convert


class MuonDimensionNumbers(eqx.Module):
    """Says which axes of a parameter form a matrix.

    The axes in neither of the two are batch axes: there is a matrix for each index of the batch
    axes. A convolution's kernel of shape `(out, in, height, width)`, as Equinox has it, is one
    matrix with `MuonDimensionNumbers((1, 2, 3), 0)`, and `height * width` of them with
    `MuonDimensionNumbers(1, 0)`.

    **Arguments:**

    - `reduction_axis`: the axis that is summed over when the parameter is applied, or several in a
        tuple; negative numbers count from the last axis. The size of no axes, `()`, is 1.
    - `output_axis`: the axis of the output, or several.
    """

    reduction_axis: int | tuple[int, ...] = eqx.field(
        converter=_axis("reduction_axis"), static=True, default=0
    )
    output_axis: int | tuple[int, ...] = eqx.field(
        converter=_axis("output_axis"), static=True, default=1
    )

    def __hash__(self) -> int:
        return hash((self.reduction_axis, self.output_axis))


def _axes(x: MuonDimensionNumbers) -> Axes:
    rows, columns = (
        (own,) if isinstance(own, int) else own for own in (x.reduction_axis, x.output_axis)
    )
    return rows, columns


# Which parameters are matrices, and how


class AbstractDimensions(eqx.Module):
    """Gives the axes of each parameter's matrices; `None` for parameters that are not matrices."""

    @abc.abstractmethod
    def axes(self, params: PyTree) -> list[Axes | None]:
        """Gives the axes for each leaf of `params`, in order."""


class _FunctionDimensions(AbstractDimensions):
    """The axes that a function of the parameters gives."""

    function: Callable[[Any], Any] = eqx.field(static=True)

    def axes(self, params: PyTree) -> list[Axes | None]:
        return _TreeDimensions(self.function(params)).axes(params)


class _TreeDimensions(AbstractDimensions):
    """The axes in a tree, possibly a prefix of the parameters."""

    # Kept flat and static, because they decide the shape of the program; as plain numbers, because
    # they are hashed at every call.
    entries: tuple[Axes | None, ...] = eqx.field(static=True)
    structure: TreeDef = eqx.field(static=True, repr=False)

    def __init__(self, tree: PyTree) -> None:
        leaves, self.structure = jax.tree.flatten(tree, is_leaf=_is_entry)
        self.entries = tuple(map(_entry, leaves))

    def __reduce__(self) -> tuple[object, ...]:
        # Through the tree: the structure of a Module cannot be copied on its own.
        entries = [None if x is None else MuonDimensionNumbers(*x) for x in self.entries]
        return _TreeDimensions, (self.structure.unflatten(entries),)

    def axes(self, params: PyTree) -> list[Axes | None]:
        numbered = self.structure.unflatten(range(len(self.entries)))
        places = checks.spread_prefix(numbered, params, "weight_dimension_numbers")
        return [self.entries[i] for i in places]


def _is_entry(x: object) -> bool:
    return x is None or isinstance(x, MuonDimensionNumbers)


def _entry(x: object) -> Axes | None:
    if isinstance(x, MuonDimensionNumbers):
        return _axes(x)
    # Other leaves of a model may be in places without a parameter.
    if x is None or checks.is_array(x) or isinstance(x, str) or callable(x):
        return None
    raise TypeError(
        "`weight_dimension_numbers` must hold `MuonDimensionNumbers` and None; it holds "
        f"{checks.describe(x)}"
    )


def as_dimensions(value: Any) -> AbstractDimensions:
    """Takes a selector, a function of the parameters, or a tree of numbers and `None`."""
    if isinstance(value, AbstractDimensions):
        return value
    if isinstance(value, AbstractSelector):
        return _ChosenLayers(value)
    if checks.is_function(value):
        return _FunctionDimensions(value)
    return _TreeDimensions(value)


class HasDimensions(AbstractSelector):
    """Chooses the parameters that have the axes of a matrix.

    **Arguments:**

    - `dimensions`: gives the axes.
    """

    dimensions: AbstractDimensions

    def __hash__(self) -> int:
        return eqx.Module.__hash__(self)

    def select(self, params: PyTree) -> PyTree[bool]:
        _, treedef = checks.flatten(params)
        return treedef.unflatten([x is not None for x in self.dimensions.axes(params)])


# By layers


_CONVOLUTIONS = eqx.nn.Conv, eqx.nn.ConvTranspose
_PRODUCTS = eqx.nn.Linear, eqx.nn.GRUCell, eqx.nn.LSTMCell
_OTHERS = (
    eqx.nn.BatchNorm,
    eqx.nn.Embedding,
    eqx.nn.GroupNorm,
    eqx.nn.LayerNorm,
    eqx.nn.PReLU,
    eqx.nn.RMSNorm,
)
_LAYERS = (*_CONVOLUTIONS, *_PRODUCTS, *_OTHERS)


class LayerDimensions(AbstractDimensions):
    """The axes of the weights of `eqx.nn`, where the output comes first.

    Linear layers, convolutions and recurrent cells have matrices; axes before those of the layer,
    as of layers made by `eqx.filter_vmap`, are batch axes. Biases, norms and embeddings are no
    matrices. Outside these layers a parameter with two axes is a matrix, with the output last.
    """

    def axes(self, params: PyTree) -> list[Axes | None]:
        nodes = jax.tree.leaves(params, is_leaf=lambda x: x is None or isinstance(x, _LAYERS))
        found: list[Axes | None] = []
        for x in nodes:
            if isinstance(x, _LAYERS):
                inside, _ = jax.tree_util.tree_flatten_with_path(x, is_leaf=checks.is_none)
                found += [_in_layer(x, path[0].name, leaf) for path, leaf in inside]
            else:
                found.append(MATRIX if checks.is_array(x) and x.ndim == 2 else None)
        return found


class _ChosenLayers(AbstractDimensions):
    """The axes of the layers, for the parameters that a selector chooses."""

    selector: AbstractSelector

    def axes(self, params: PyTree) -> list[Axes | None]:
        chosen = jax.tree.leaves(self.selector.select(params))
        return [x if c else None for x, c in zip(_LAYER_AXES.axes(params), chosen, strict=True)]


_LAYER_AXES = LayerDimensions()


def _in_layer(layer: Any, name: str, x: Any) -> Axes | None:
    if not checks.is_array(x) or not name.startswith("weight") or isinstance(layer, _OTHERS):
        return None
    num = layer.num_spatial_dims if isinstance(layer, _CONVOLUTIONS) else 0
    if x.ndim < 2 + num:
        return None
    return tuple(range(-1 - num, 0)), (-2 - num,)
