"""A row of the table, and how rows are made."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import eqopt
from eqopt.states import EmptyState
from eqopt.writing import AbstractTransformation, Context

Transformation = AbstractTransformation[Any]
MATRICES = eqopt.ByNdim(2)
# Of the old kind: a typed key would start a backend.
KEY = np.asarray([0, 7], np.uint32)


@dataclasses.dataclass(frozen=True)
class Row:
    """One transformation, with one choice of its flags.

    **Arguments:**

    - `name`: the class's name, and the choice.
    - `make`: builds it. Its numbers differ from each other and from 0 and 1, so that laws about
        them can fail.
    - `descends`: whether it is an optimizer by itself: its updates go downhill.
    - `needs_params`: whether `update` must be given the parameters.
    - `needs`: the keyword arguments that `update` must be given, built from the parameters.
    - `differentiable`: whether its updates have derivatives. A line search has none: it runs until
        it is done. Nor has what chooses by what it finds which steps to remember.
    - `stands_for`: the class that it is the row of, where that is a part of what `make` builds.
    """

    name: str
    make: Callable[[], Transformation]
    descends: bool = False
    needs_params: bool = False
    needs: Callable[[Any], dict[str, Any]] = lambda params: {}
    differentiable: bool = True
    stands_for: type[Transformation] | None = None

    @property
    def cls(self) -> type[Transformation]:
        """The class that it is the row of."""
        return self.stands_for or type(self.make())


@dataclasses.dataclass(frozen=True)
class Wrapper:
    """A transformation of transformations, around any inner one."""

    name: str
    wrap: Callable[[Transformation], Transformation]


def half_square(params: Any) -> Any:
    """An objective of whatever parameters there are."""
    leaves = [x for x in jax.tree.leaves(params) if eqx.is_inexact_array(x)]
    wide = [jnp.abs(x.astype(np.float32) if x.dtype.itemsize == 2 else x) for x in leaves]
    return sum(jnp.sum(jnp.square(x).astype(jnp.result_type(float))) for x in wide) / 2


def of_objective(params: Any) -> dict[str, Any]:
    """What a line search needs."""
    value, grad = eqx.filter_jit(eqx.filter_value_and_grad(half_square))(params)
    return {"value": value, "grad": grad, "value_fn": half_square}


def an_objective(params: Any) -> dict[str, Any]:
    """What asks for its curvature."""
    return {"value_fn": half_square}


class Examples(AbstractTransformation[EmptyState]):
    """Makes of a gradient those of two examples, twice as long and as it is.

    The laws have gradients like the parameters.
    """

    def init_state(self, params: Any, context: Context) -> EmptyState:
        return EmptyState()

    def transform(
        self, updates: Any, state: EmptyState, params: Any, context: Context
    ) -> tuple[Any, EmptyState]:
        return jax.tree.map(lambda u: jnp.stack([2 * u, u]), updates), state


def private(name: str, make: Callable[[], Transformation], *, descends: bool = False) -> Row:
    """The row of what takes the gradients of single examples."""
    return Row(
        name,
        lambda: eqopt.Chain(Examples(), make()),
        descends,
        needs_params=True,
        stands_for=type(make()),
    )


def a_value(params: Any) -> dict[str, Any]:
    """What needs a value, and does not ask of what."""
    return {"value": jnp.asarray(2.0)}


def a_key(params: Any) -> dict[str, Any]:
    """What rounds at random."""
    return {"key": jax.random.key(3)}


def search(name: str, make: Callable[[], Transformation]) -> Row:
    """The row of a line search."""
    return Row(name, make, needs_params=True, needs=of_objective, differentiable=False)


def optimizer(name: str, make: Callable[[], Transformation]) -> Row:
    """The row of an optimizer that needs the parameters."""
    return Row(name, make, descends=True, needs_params=True)


def direction(name: str, make: Callable[[], Transformation], *, descends: bool = False) -> Row:
    """The row of what does without the value, but makes use of one."""
    return Row(name, make, descends, needs_params=True, needs=a_value, differentiable=False)
