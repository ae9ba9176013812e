"""The words that every signature in eqopt is written in."""

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

Tree = TypeVar("Tree")
Model = TypeVar("Model")
Aux = TypeVar("Aux")
State = TypeVar("State", bound=eqx.Module)


class RecompilationWarning(UserWarning):
    """A function is compiled again and again."""
