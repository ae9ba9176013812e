"""Transformations that users write, in the ways in which they write them."""

from functools import partial
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import eqopt
from eqopt.states import EmptyState
from eqopt.writing import AbstractTransformation, Context
from tests.support.toolbox import assert_close, FLOAT, tree

PARAMS, GRADS = tree(), tree(7)


class Untyped(AbstractTransformation):
    """Does not say what kind of state it has."""

    def init_state(self, params: Any, context: Context) -> Any:
        return {"count": jnp.zeros((), jnp.int32)}

    def transform(self, updates: Any, state: Any, params: Any, context: Context) -> Any:
        return updates, {"count": state["count"] + 1}


class UntypedLeafwise(eqopt.writing.AbstractLeafwise):
    def init_state(self, params: Any, context: Context) -> Any:
        return EmptyState()

    def rule(self, state: Any, params: Any, context: Context) -> Any:
        return eqopt.writing.Rule(_doubled, state)


def _doubled(update: Any) -> Any:
    return 2 * update


class UntypedOptimizer(eqopt.writing.AbstractOptimizer):
    def compose(self) -> AbstractTransformation[Any]:
        return eqopt.Chain(UntypedLeafwise(), eqopt.Scale(-1.0))


State = TypeVar("State", bound=eqx.Module)


class Passing(AbstractTransformation[State], Generic[State]):
    """Has a state of a type that a subclass, or nobody, settles."""

    inner: AbstractTransformation[State]

    def init_state(self, params: Any, context: Context) -> State:
        return self.inner.init_state(params, context)

    def transform(self, updates: Any, state: State, params: Any, context: Context) -> Any:
        return self.inner.transform(updates, state, params, context)


def test_a_class_need_not_name_its_state():
    cases: tuple[tuple[AbstractTransformation[Any], int], ...] = (
        (Untyped(), 1),
        (UntypedLeafwise(), 2),
        (UntypedOptimizer(), -2),
        (eqopt.Chain(Untyped(), eqopt.Masked(UntypedLeafwise(), eqopt.ByPath("**"))), 2),
        (Passing(eqopt.Scale(3.0)), 3),
    )
    for opt, factor in cases:
        state = opt.init(PARAMS)
        updates, state = opt.update(GRADS, state, PARAMS)
        updates, _ = opt.update(GRADS, state, PARAMS)
        assert_close(updates, jax.tree.map(partial(jnp.multiply, FLOAT(factor)), GRADS))
    # One that does is still held to it.
    with pytest.raises(
        TypeError, match="`state` is a `EmptyState`; `UntypedOptimizer` has a `Chain"
    ):
        UntypedOptimizer().update(GRADS, EmptyState(), PARAMS)
