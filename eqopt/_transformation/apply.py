"""Adding updates to a model."""

import equinox as eqx
import jax
from jaxtyping import PyTree

from .._base import checks
from .._base.models import check_places
from .._base.trees import sums
from .._base.types import Model
from .._jit import compiled_call, partition


def apply_updates(params: Model, updates: PyTree) -> Model:
    """Adds updates to a model.

    Each sum is rounded once, from float32 or wider, to the parameter's dtype, which never changes.

    **Arguments:**

    - `params`: the model: any PyTree that has an array.
    - `updates`: like the model, with an array of the parameter's shape for each inexact array to be
        changed, and `None` for everything that is to stay as it is.

    **Returns:**

    The new model, of the same type.

    **Raises:** a `ValueError` or `TypeError` that names the leaf that does not fit.
    """
    return merged(
        params, compiled_call.call(_apply, *map(partition.filter_arrays, (params, updates)))
    )


def merged(model: Model, arrays: PyTree) -> Model:
    """The model with other arrays."""
    return jax.tree.map(
        lambda x, new: x if new is None else new, model, arrays, is_leaf=checks.is_none
    )


def arrays_of(model: PyTree, updates: PyTree) -> PyTree:
    """The arrays of a model that is to be changed."""
    arrays = eqx.filter(model, partition.is_array)
    if not jax.tree.leaves(arrays) and jax.tree.leaves(updates):
        raise ValueError(
            f"`params` has no array, so nothing can be added to it; it is {checks.describe(model)}"
        )
    check_places(updates, model, "params")
    return arrays


def _apply(model: PyTree, updates: PyTree) -> PyTree:
    return applied(arrays_of(model, updates), updates)


def applied(model: PyTree, updates: PyTree) -> PyTree:
    """`apply_updates`, uncompiled, for a tree of arrays."""
    leaves, treedef = checks.flatten(model)
    trained = treedef.unflatten([x if checks.is_inexact(x) else None for x in leaves])
    changes, _ = checks.flatten(checks.conform_to(updates, trained, "updates", any_dtype=True))
    return treedef.unflatten(sums(leaves, changes))
