"""Adding updates to a model."""

import equinox as eqx
from jaxtyping import PyTree

from . import _check, _door, _packed
from ._tree import sums
from ._types import Model


def apply_updates(model: Model, updates: PyTree) -> Model:
    """Adds updates to a model.

    Each sum is rounded once, from float32 or wider, to the parameter's dtype, which never changes.

    **Arguments:**

    - `model`: the model: any PyTree.
    - `updates`: like the model, with an array of the parameter's shape for each inexact array to be
        changed, and `None` for everything that is to stay as it is.

    **Returns:**

    The new model, of the same type.

    **Raises:** a `ValueError` or `TypeError` that names the leaf that does not fit.
    """
    arrays, rest = eqx.partition(model, _packed.is_array)
    return eqx.combine(_door.call(applied, arrays, _packed.drop_statics(updates)), rest)


def applied(model: PyTree, updates: PyTree) -> PyTree:
    """`apply_updates`, uncompiled, for a tree of arrays."""
    leaves, treedef = _check.flatten(model)
    trained = treedef.unflatten([x if _check.is_inexact(x) else None for x in leaves])
    changes, _ = _check.flatten(_check.fit(updates, trained, "updates", any_dtype=True))
    return treedef.unflatten(sums(leaves, changes))
