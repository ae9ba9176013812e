"""The ways to copy something."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import cloudpickle
import equinox as eqx
import jax
import pytest

from tests.support.toolbox import same

COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "cloudpickle": lambda x: cloudpickle.loads(cloudpickle.dumps(x)),
}
every_copy = pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES.keys())


def through_a_file(x: Any, like: Any) -> Any:
    """Writes a tree as Equinox does, and reads it into one that is like it."""
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, x)
    file.seek(0)
    return eqx.tree_deserialise_leaves(file, like)


def assert_equal(a: Any, b: Any) -> None:
    """Structures, types and bits are equal."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert list(map(type, jax.tree.leaves(a))) == list(map(type, jax.tree.leaves(b)))
    assert same(a, b)


class Layers(eqx.Module):
    """A tree of Modules, of parameters, masks or labels."""

    weight: Any
    bias: Any
    inner: Any = None
