"""The gradient of each example in a batch."""

import operator
from collections.abc import Sequence
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Inexact, Int, PyTree

from .._base import checks
from .._base.arithmetic import cast, real_dtype, times, wider, within
from .._base.converters import real
from .._base.norms import global_norm
from .._base.trace_sharing import map_leaves
from .._base.trees import zero_count
from .._base.types import Function, ScalarLike
from .value_and_grad import value_and_grad

# For each positional argument, the axis of examples in its arrays; `None` for an argument that all
# examples share.
Axes: TypeAlias = tuple[int | None, ...]


def batch_axes(args: Sequence[Any], argnums: int | tuple[int, ...], in_axes: Any) -> Axes:
    """Which arguments are batches, and along which axis."""
    num = len(args)
    trained = {i % num for i in ((argnums,) if isinstance(argnums, int) else argnums) if num}
    if isinstance(in_axes, int):
        return tuple(None if i in trained else in_axes for i in range(num))
    if len(in_axes) != num:
        raise ValueError(
            f"`in_axes` has {len(in_axes)} entries; {num} arguments were given by position"
        )
    wrong = [i for i in trained if in_axes[i] is not None]
    if wrong:
        raise ValueError(
            f"`in_axes` says that argument {wrong[0]} is a batch; it is differentiated, so its "
            "entry must be None"
        )
    return tuple(None if axis is None else operator.index(axis) for axis in in_axes)


def batch_size(batches: Sequence[tuple[str, object, int]], hint: str = "") -> int:
    """How many examples there are; a `ValueError` names the array that has another number.

    **Arguments:**

    - `batches`: trees, each with its name and the axis of examples.
    - `hint`: what to do about an array without that axis.
    """
    sizes: dict[str, int] = {}
    for tree_name, tree, axis in batches:
        leaves, _ = checks.flatten(tree)
        for name, x in zip(checks.paths(tree_name, tree), leaves, strict=True):
            if eqx.is_array(x):
                if not -x.ndim <= axis < x.ndim:
                    raise ValueError(
                        f"`{name}` has shape {x.shape}, and no axis {axis} of examples{hint}"
                    )
                sizes[name] = x.shape[axis]
    if not sizes:
        raise ValueError("there is no batch: only the differentiated arguments have arrays")
    first = next(iter(sizes))
    for name, size in sizes.items():
        if size != sizes[first]:
            raise ValueError(f"`{name}` is of {size} examples; `{first}` is of {sizes[first]}")
    return sizes[first]


def size_of(args: Sequence[object], axes: Axes) -> int:
    """How many examples there are in the arguments."""
    batches = [
        (f"args[{i}]", arg, axis)
        for i, (arg, axis) in enumerate(zip(args, axes, strict=True))
        if axis is not None
    ]
    return batch_size(batches, ". An argument that is no batch has None in `in_axes`")


def per_example_value_and_grad(
    fun: Function,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    in_axes: int | Sequence[int | None] = 0,
) -> Function:
    """Makes a function that computes the value and the gradient of `fun` for each example.

    It is `jax.vmap` of [`eqopt.value_and_grad`][], for models: the differentiated argument is
    shared by all examples, and may be any PyTree. Everything it returns has an axis of examples in
    front, also each leaf of the gradient. [`eqopt.DPSGD`][] takes such gradients.

    ```python
    def loss_fn(model, x, y):  # of one example
        return jnp.sum((model(x) - y) ** 2)


    model = eqx.nn.MLP(2, 1, 8, 1, key=jax.random.key(0))
    x, y = jnp.ones((4, 2)), jnp.ones((4, 1))
    losses, grads = eqopt.per_example_value_and_grad(loss_fn)(model, x, y)
    assert losses.shape == (4,)
    assert grads.layers[0].weight.shape == (4, *model.layers[0].weight.shape)
    ```

    It needs memory for one gradient per example.

    **Arguments:**

    - `fun`: a function of one example that returns a real scalar, or with `has_aux` a pair `(value,
        aux)`. For a loss of a batch, use `lambda model, x: loss(model, x[None])`.
    - `argnums`: the positional argument to differentiate, or a sequence of several.
    - `has_aux`: whether `fun` returns `(value, aux)`.
    - `in_axes`: the axis of examples in all positional arguments that are not differentiated; or a
        sequence with an axis for each positional argument, and `None` for an argument that is not a
        batch.

    !!! warning
        Keyword arguments are the same for all examples: if a batch is passed by keyword, each
        example sees the whole batch, and each gradient depends on all of it.

    **Raises:**

    A `ValueError` that names an array without that axis, or with another number of examples than
    the others.
    """
    places = argnums if isinstance(argnums, int) else tuple(argnums)
    wrapper = _PerExample(value_and_grad(fun, argnums, has_aux), places, _axes(in_axes))
    return eqx.module_update_wrapper(wrapper)


def _axes(in_axes: int | Sequence[int | None]) -> int | Axes:
    return in_axes if isinstance(in_axes, int) else tuple(in_axes)


class _PerExample(eqx.Module):
    with_grad: Function
    argnums: int | tuple[int, ...] = eqx.field(static=True)
    in_axes: int | Axes = eqx.field(static=True)

    @property
    def __wrapped__(self) -> Function:
        return self.with_grad

    def __call__(self, /, *args: object, **kwargs: object) -> Any:
        axes = batch_axes(args, self.argnums, self.in_axes)
        size_of(args, axes)
        parts = [
            (None, arg) if axis is None else eqx.partition(arg, eqx.is_array)
            for arg, axis in zip(args, axes, strict=True)
        ]

        def of_one(batch: list[object]) -> Any:
            given = [eqx.combine(x, rest) for x, (_, rest) in zip(batch, parts, strict=True)]
            return self.with_grad(*given, **kwargs)

        return eqx.filter_vmap(of_one, in_axes=(list(axes),))([x for x, _ in parts])


# Clipping.


def per_example_global_norm_clip(
    grads: PyTree, l2_norm_clip: ScalarLike
) -> tuple[PyTree, Int[Array, ""]]:
    r"""Adds up the gradients of the examples, each shrunk if its norm exceeds a limit.

    $$\sum_i g_i \min(1, C / \|g_i\|),$$

    with the norm over all leaves together, in float32 at least. A gradient whose norm is not finite
    is left out of the sum.

    **Arguments:**

    - `grads`: the gradients, with an axis of examples in front of each leaf, as
        [`eqopt.per_example_value_and_grad`][] gives them; `None` for a leaf without a gradient.
    - `l2_norm_clip`: the limit $C \ge 0$.

    **Returns:**

    The sum, without that axis, in float32 at least, and the number of gradients that were shrunk or
    left out, int32 of shape `()`.

    Raises a `ValueError` that names the leaf that has not as many examples as the others, or none.
    """
    _check_examples(grads)
    limit = real("l2_norm_clip", at_least=0, finite=False)(l2_norm_clip)
    leaves, treedef = jax.tree.flatten(grads)
    if not leaves:
        return grads, zero_count()
    factors, num_clipped = _factors(grads, jnp.asarray(limit))
    sums = map_leaves(_sum_scaled, leaves, [factors for _ in leaves])
    return treedef.unflatten(sums), num_clipped


def per_example_layer_norm_clip(
    grads: PyTree, global_l2_norm_clip: ScalarLike, uniform: bool = True
) -> tuple[PyTree, PyTree]:
    r"""Adds up the gradients of the examples, each leaf shrunk if its own norm exceeds a limit.

    The limits of the leaves are such that all leaves together stay within $C$: that of leaf $k$ is
    $C / \sqrt{K}$ for $K$ leaves or, in proportion to its size, $C \sqrt{D_k / D}$ for $D_k$ of $D$
    entries. A leaf whose norm is not finite is left out of the sum.

    **Arguments:**

    - `grads`: the gradients, as for [`eqopt.options.per_example_global_norm_clip`][].
    - `global_l2_norm_clip`: the limit $C \ge 0$ of all leaves together.
    - `uniform`: whether all leaves have the same limit.

    **Returns:**

    The sum, without the axis of examples, in float32 at least, and a tree like it of how many
    gradients of that leaf were shrunk or left out.

    Raises a `ValueError` that names the leaf that has not as many examples as the others, or none.

    ??? cite "Reference"
        McMahan, Ramage, Talwar and Zhang, *Learning Differentially Private Recurrent Language
        Models*, ICLR 2018 (arXiv 1710.06963).
    """
    _check_examples(grads)
    limit = real("global_l2_norm_clip", at_least=0, finite=False)(global_l2_norm_clip)
    leaves, treedef = jax.tree.flatten(grads)
    sizes = [1 if uniform else x[0].size for x in leaves]
    shares = [(size / sum(sizes)) ** 0.5 for size in sizes]
    found = [
        per_example_global_norm_clip(x, limit * limit.dtype.type(share))
        for x, share in zip(leaves, shares, strict=True)
    ]
    return tuple(treedef.unflatten([x[i] for x in found]) for i in range(2))


def _check_examples(grads: PyTree) -> None:
    leaves, _ = checks.flatten(grads)
    names = checks.paths("grads", grads)
    wrong = [i for i, x in enumerate(leaves) if x is not None and not checks.is_inexact(x)]
    if wrong:
        faults = [
            f"`{names[i]}` is {checks.describe(leaves[i])}; a gradient is an inexact array"
            for i in wrong
        ]
        raise TypeError(checks.listed(faults))
    if jax.tree.leaves(grads):
        batch_size([("grads", grads, 0)])


def _factors(
    grads: PyTree, limit: Float[Array, ""]
) -> tuple[Float[Array, "num_examples"], Int[Array, ""]]:
    """The factor for each gradient, and the number of gradients that are changed."""
    norms = jax.vmap(global_norm)(grads)
    limit = cast(limit, norms.dtype)
    kept = jnp.isfinite(norms) & (norms <= limit)
    return within(norms, limit), jnp.sum(~kept, dtype=np.int32)


@jax.jit
def _sum_scaled(
    x: Inexact[Array, "num_examples *shape"], factors: Float[Array, "num_examples"]
) -> Inexact[Array, "*shape"]:
    dtype = wider(x.dtype)
    wide, factors = cast(x, dtype), cast(factors, real_dtype(dtype))
    scaled = jax.vmap(times)(factors, wide)
    # Selected, because `0 * inf` is NaN.
    some = lax.expand_dims(factors > 0, range(1, x.ndim))
    return jnp.sum(jnp.where(some, scaled, 0), 0)
