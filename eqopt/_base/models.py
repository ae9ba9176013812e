"""Checks of models, and of updates against models."""

import equinox as eqx
import jax
from jaxtyping import PyTree

from .checks import ARRAYS, is_inexact, keystr, kind_of, listed


def split(model: object, name: str) -> tuple[PyTree, PyTree]:
    """Splits a model into the trained arrays and the rest; refuses Python numbers."""
    trained, rest = eqx.partition(model, is_inexact)
    also = () if jax.tree.leaves(trained) else (int,)
    refuse_numbers(rest, name, (float, complex, *also))
    return trained, rest


def refuse_numbers(model: object, name: str, kinds: tuple[type, ...] = (float, complex)) -> None:
    """Refuses Python numbers in a model, and names their paths.

    A user who puts a number among the parameters wants it trained. Within a Module a number may be
    a setting, such as a dropout rate.
    """
    found, _ = jax.tree_util.tree_flatten_with_path(
        model, is_leaf=lambda x: isinstance(x, eqx.Module)
    )
    faults = [
        f"`{name}{keystr(path)}` is a Python {kind.__name__}; make it an array, by `jnp.asarray`, "
        "to have it trained, or keep it out of the parameters"
        for path, x in found
        if (kind := kind_of(x)) in kinds
    ]
    if faults:
        raise TypeError(listed(faults))


def check_places(updates: object, model: object, name: str) -> None:
    """Raises if the updates and the model are in each other's place.

    Only a model has leaves that are neither arrays nor numbers, such as its activation functions.
    """
    if _has_statics(updates) and not _has_statics(model):
        raise ValueError(
            f"`updates` holds a whole model, and `{name}` does not: they are in each other's place"
        )


def _has_statics(tree: object) -> bool:
    numbers = (bool, int, float, complex)
    leaves = jax.tree.leaves(tree)
    return any(not isinstance(x, ARRAYS) and kind_of(x) not in numbers for x in leaves)
