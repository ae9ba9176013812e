"""Parameters as stacks of matrices; matrices of equal size form one stack."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType
from jaxtyping import Array, Inexact

from ..._base import checks
from ..._base.trees import placed_like, replicated
from ..._base.types import Params
from ..._base.xla import hidden_from_compiler
from .dimensions import AbstractDimensions, Axes, LayerDimensions

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
        if len(self.order) == 2:  # which needs no reshaping, and keeps its sharding
            x = lax.expand_dims(turn(x, self.order), (0,))
        else:
            x = lax.reshape(turn(replicated(x), self.order), self.sizes)
        return turn(x, (0, 2, 1)) if self.turned else x

    def back(
        self, x: Inexact[Array, "batch rows columns"], reference: Inexact[Array, "..."]
    ) -> Inexact[Array, "..."]:
        """Undoes `matrices`; placed like `reference`."""
        x = turn(x, (0, 2, 1)) if self.turned else x
        x = lax.squeeze(x, (0,)) if len(self.order) == 2 else lax.reshape(x, self.split)
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

    It is `None` for missing leaves, and for leaves without given axes; `None` for `dimensions` goes
    by the layers. A `ValueError` names a leaf that lacks the given axes.
    """
    leaves, _ = checks.flatten(params)
    axes = (LayerDimensions() if dimensions is None else dimensions).axes(params)
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
    params: Params,
    dimensions: AbstractDimensions | None,
    name: str,
    owner: object,
    *,
    turned: bool = True,
) -> list[Form | None]:
    """The same, transposed if there are more rows than columns; a `ValueError` names a leaf that is
    not a matrix."""
    forms = forms_of(params, dimensions, name, turned=turned)
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
    starts = [0, *itertools.accumulate(nums[:-1])]
    if jax.typeof(stack).sharding.mesh.size > 1:
        return [lax.slice_in_dim(stack, i, i + n) for i, n in zip(starts, nums, strict=True)]
    hidden = hidden_from_compiler(starts, stack)
    return [lax.dynamic_slice_in_dim(stack, i, n) for i, n in zip(hidden, nums, strict=True)]


def _by_matrix(function: Callable[[Array], Array], stack: Array) -> Array:
    """Applies `function`, where arrays are sharded, with whole matrices on each device.

    The stack is padded with zeros up to a multiple of the number of devices. Sharded by rows, an
    iteration would communicate in each of its steps.
    """
    before = jax.typeof(stack).sharding
    mesh = before.mesh
    kinds = set(mesh.axis_types)
    if mesh.size <= 1 or AxisType.Manual in kinds:
        return function(stack)
    place = jax.sharding.reshard if AxisType.Explicit in kinds else lax.with_sharding_constraint
    num = stack.shape[0]
    missing = -num % mesh.size
    if missing:
        stack = lax.pad(stack, jnp.zeros((), stack.dtype), ((0, missing, 0), (0, 0, 0), (0, 0, 0)))
    layout = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names))
    stack = place(function(place(stack, layout)), layout)
    if AxisType.Explicit in kinds:
        stack = place(stack, before)
    return lax.slice_in_dim(stack, 0, num)


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
    out = groups.apart([_by_matrix(function, x) for x in groups.stacked(matrices)])
    found = list(leaves)
    for (i, x, form), y in zip(places, out, strict=True):
        found[i] = form.back(y, x)
    return found


def adjoint(x: Inexact[Array, "*batch m n"]) -> Inexact[Array, "*batch n m"]:
    """The conjugate transpose of each matrix."""
    return jnp.conj(jnp.swapaxes(x, -1, -2))
