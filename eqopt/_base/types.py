"""The types in eqopt's signatures."""

import typing
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, Inexact, Int, PyTree

# Trees that share their structure and, leaf by leaf, their shape. At run time the front door
# checks this by one pass of its own (see `checks.py`); here it is documentation.
Params = PyTree[Inexact[Array, "?*p"], "P"]
Updates = PyTree[Inexact[Array, "?*p"], "P"]

# A real hyper-parameter as a transformation stores it: NumPy until it enters a compiled
# program, so that building an optimizer starts no JAX backend.
Scalar: TypeAlias = Float[Array | np.ndarray | np.number[Any], ""]
ScalarLike: TypeAlias = float | int | np.ndarray | np.generic | Array
Steps: TypeAlias = Int[Array | np.ndarray | np.number[Any], ""]
StepsLike: TypeAlias = int | np.ndarray | np.generic | Array

# A number of steps: a strong int32 that starts at 0 and saturates.
Count: TypeAlias = Int[Array, ""]

# `jax.tree_util.PyTreeDef`, which type checkers take for a variable.
TreeDef: TypeAlias = Any

Function: TypeAlias = Callable[..., Any]

# The arguments of a user's function.
Args: TypeAlias = tuple[Any, ...]
Kwargs: TypeAlias = dict[str, Any]

# The leaves of a tree, of any type; `None` stands for a leaf that is missing.
Leaves: TypeAlias = list[Any]

Tree = TypeVar("Tree")
Model = TypeVar("Model")
Aux = TypeVar("Aux")
State = TypeVar("State", bound=eqx.Module)


class RecompilationWarning(UserWarning):
    """A function is compiled many times for arguments of the same shapes."""


def type_argument(cls: type, generic: type, parameter: TypeVar) -> type:
    """The class that `cls` gives for a parameter of a generic base; `object` if it gives none."""
    for base in vars(cls).get("__orig_bases__", cls.__bases__):
        origin, arguments = typing.get_origin(base) or base, typing.get_args(base)
        if not issubclass(origin, generic):
            continue
        if parameter in vars(origin).get("__parameters__", ()):
            named = typing.get_origin(arguments[0]) or arguments[0] if arguments else object
            return object if isinstance(named, TypeVar) else named
        return type_argument(origin, generic, parameter)
    return object
