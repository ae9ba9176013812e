"""Parameters as stacks of matrices; matrices of equal size form one stack."""

import abc
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Inexact, PyTree

from ..._base import checks
from ..._base.trees import placed_like, replicated
from ..._base.types import Params, TreeDef
from ..._base.xla import hidden_from_compiler
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
    """Takes a function of the parameters, or a tree of `MuonDimensionNumbers` and `None`."""
    if isinstance(value, AbstractDimensions):
        return value
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


# One parameter


@dataclasses.dataclass(frozen=True)
class Form:
    """How a parameter becomes a stack of matrices, of shape `(batch, rows, columns)`, and back.

    **Arguments:**

    - `order`: the parameter's axes: those of the batch, of the rows, and of the columns.
    - `split`: its shape, with the axes in that order.
    - `sizes`: the shape of the stack.
    - `turned`: whether the matrices are then transposed.
    - `batched`: whether there are batch axes at all.
    """

    order: tuple[int, ...]
    split: tuple[int, ...]
    sizes: tuple[int, int, int]
    turned: bool
    batched: bool

    def matrices(self, x: Inexact[Array, "..."]) -> Inexact[Array, "batch rows columns"]:
        x = lax.reshape(turn(replicated(x), self.order), self.sizes)
        return turn(x, (0, 2, 1)) if self.turned else x

    def back(
        self, x: Inexact[Array, "batch rows columns"], reference: Inexact[Array, "..."]
    ) -> Inexact[Array, "..."]:
        """Undoes `matrices`; placed like `reference`."""
        x = lax.reshape(turn(x, (0, 2, 1)) if self.turned else x, self.split)
        x = turn(x, tuple(sorted(range(len(self.order)), key=self.order.__getitem__)))
        return placed_like(x, reference)


def turn(x: Array, order: tuple[int, ...]) -> Array:
    """Transposes, if that does anything."""
    return x if order == tuple(range(x.ndim)) else lax.transpose(x, order)


@functools.lru_cache(1024)
def form_of(shape: tuple[int, ...], axes: Axes, turned: bool) -> Form:
    """The form of a parameter; `turned`, no matrix has more rows than columns.

    A `ValueError` says what is wrong with the axes.
    """
    ndim = len(shape)
    if not all(-ndim <= axis < ndim for own in axes for axis in own):
        raise ValueError(f"it has no axes {_shown(axes)}")
    rows, columns = (tuple(axis % ndim for axis in own) for own in axes)
    batch = tuple(axis for axis in range(ndim) if axis not in rows + columns)
    order = batch + rows + columns
    if len(order) != ndim:
        raise ValueError(f"the axes {_shown(axes)} are not different ones")
    split = tuple(shape[axis] for axis in order)
    b, m, n = (math.prod(shape[axis] for axis in own) for own in (batch, rows, columns))
    return Form(
        order=order, split=split, sizes=(b, m, n), turned=turned and m > n, batched=bool(batch)
    )


def _shown(axes: Axes) -> str:
    return f"{axes[0]} and {axes[1]}"


def forms_of(
    params: Params, dimensions: AbstractDimensions | None, name: str, *, turned: bool = False
) -> list[Form | None]:
    """The form of each leaf, in order.

    It is `None` for missing leaves, and for leaves without given axes; by default every parameter
    with two axes is a matrix. A `ValueError` names a leaf that lacks the given axes.
    """
    leaves, _ = checks.flatten(params)
    if dimensions is None:
        axes = [MATRIX if x is not None and x.ndim == 2 else None for x in leaves]
    else:
        axes = dimensions.axes(params)
    forms: list[Form | None] = []
    faults: list[str] = []
    for i, (x, own) in enumerate(zip(leaves, axes, strict=True)):
        form = None
        if x is not None and own is not None:
            try:
                form = form_of(x.shape, own, turned)
            except ValueError as error:
                faults.append(f"`{checks.paths(name, params)[i]}` has shape {x.shape}; {error}")
        forms.append(form)
    if faults:
        raise ValueError(checks.listed(faults))
    return forms


def all_forms_of(
    params: Params, dimensions: AbstractDimensions | None, name: str, owner: object
) -> list[Form | None]:
    """The same, transposed if there are more rows than columns; a `ValueError` names a leaf that is
    not a matrix."""
    forms = forms_of(params, dimensions, name, turned=True)
    leaves, _ = checks.flatten(params)
    pairs = enumerate(zip(leaves, forms, strict=True))
    wrong = [i for i, (x, form) in pairs if x is not None and form is None]
    if wrong:
        names = checks.paths(name, params)
        faults = [f"`{names[i]}` has shape {leaves[i].shape}, and is no matrix" for i in wrong]
        cure = f"`{type(owner).__name__}` takes matrices; see `weight_dimension_numbers`"
        raise ValueError(f"{checks.listed(faults)}\n{cure}")
    return forms


# Many parameters


class Groups:
    """Matrices of equal size and dtype, from any parameters, in one stack.

    Operations on a stack are traced and compiled once, for any number of parameters.
    """

    def __init__(self, matrices: Sequence[Array]) -> None:
        self.nums = [x.shape[0] for x in matrices]
        members: dict[object, list[int]] = {}
        for i, x in enumerate(matrices):
            members.setdefault((x.shape[1:], x.dtype), []).append(i)
        self.members = list(members.values())

    def stacked(self, matrices: Sequence[Array]) -> list[Array]:
        """A stack for each group."""
        return [
            lax.concatenate([matrices[i] for i in own], 0) if len(own) > 1 else matrices[own[0]]
            for own in self.members
        ]

    def apart(self, stacks: Sequence[Array]) -> list[Array]:
        """Undoes `stacked`."""
        found: dict[int, Array] = {}
        for own, stack in zip(self.members, stacks, strict=True):
            found.update(zip(own, _parts(stack, [self.nums[i] for i in own]), strict=True))
        return [found[i] for i in range(len(self.nums))]


def _parts(stack: Array, nums: list[int]) -> list[Array]:
    """The parts of a stack, given the number of matrices in each."""
    if len(nums) == 1:
        return [stack]
    starts = hidden_from_compiler([0, *itertools.accumulate(nums[:-1])], stack)
    return [lax.dynamic_slice_in_dim(stack, i, n) for i, n in zip(starts, nums, strict=True)]


def map_matrices(
    function: Callable[[Array], Array], leaves: Sequence[Array | None], forms: Sequence[Form | None]
) -> list[Array | None]:
    """Applies `function` to stacks of matrices, one for each size; leaves without a form stay."""
    places = [
        (i, x, form)
        for i, (x, form) in enumerate(zip(leaves, forms, strict=True))
        if x is not None and form is not None and x.size
    ]
    matrices = [form.matrices(x) for _, x, form in places]
    groups = Groups(matrices)
    out = groups.apart([function(x) for x in groups.stacked(matrices)])
    found = list(leaves)
    for (i, x, form), y in zip(places, out, strict=True):
        found[i] = form.back(y, x)
    return found


def adjoint(x: Inexact[Array, "*batch m n"]) -> Inexact[Array, "*batch n m"]:
    """The conjugate transpose of each matrix."""
    return jnp.conj(jnp.swapaxes(x, -1, -2))
