"""What the tests of wrappers that skip steps share: bad gradients, trajectories, counted calls."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import eqopt
from eqopt.states import EmptyState
from eqopt.writing import AbstractTransformation, Context
from tests.support.toolbox import FLOAT, X64
from tests.support.trees import random_like, random_tree

NUM_STEPS = 60
TOLERANCE = 1e-12 if X64 else 5e-6
# Its square overflows.
HUGE = float(np.finfo(FLOAT).max) ** 0.75


def problem(seed: int) -> tuple[Any, Any]:
    """Random parameters, of the same shapes for every seed, and gradients for each of the steps."""
    shapes, rng = np.random.default_rng(3), np.random.default_rng(seed)
    params = random_like(rng, random_tree(shapes, FLOAT))
    return params, random_like(rng, params, leading=(NUM_STEPS,))


def spoiled(gradients: Any, seed: int, bad: np.ndarray, kinds: list[float]) -> Any:
    """The gradients with a bad number, at a random place of a random leaf, at the given steps."""
    rng = np.random.default_rng(seed)
    leaves, treedef = jax.tree.flatten(gradients)
    leaves = [np.array(x) for x in leaves]
    for step in np.flatnonzero(bad):
        leaf = leaves[rng.integers(len(leaves))]
        leaf[(step, *(rng.integers(n) for n in leaf.shape[1:]))] = rng.choice(kinds)
    return treedef.unflatten(leaves)


def at(gradients: Any, step: int) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x[step]), gradients)


@eqx.filter_jit
def ours(opt: AbstractTransformation[Any], params: Any, gradients: Any) -> Any:
    """The updates, the state and the parameters after each step."""
    return _trajectory(opt.init, opt.update, eqopt.apply_updates, params, gradients)


def theirs(tx: Any, params: Any, gradients: Any) -> Any:
    """The same by optax. One object for the same transformation saves a compilation."""
    with jax.numpy_dtype_promotion("standard"):
        return _theirs(tx.init, tx.update, params, gradients)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _theirs(init: Any, update: Any, params: Any, gradients: Any) -> Any:
    return _trajectory(init, update, optax.apply_updates, params, gradients)


def _trajectory(init: Any, update: Any, apply: Any, params: Any, gradients: Any) -> Any:
    def step(carry: Any, gradient: Any) -> Any:
        params, state = carry
        updates, state = update(gradient, state, params)
        params = apply(params, updates)
        return (params, state), (updates, state, params)

    return lax.scan(step, (params, init(params)), gradients)[1]


class Calls:
    """Counts what is really executed."""

    def __init__(self) -> None:
        self.num = 0

    def add(self) -> None:
        self.num += 1


class Counted(AbstractTransformation[EmptyState]):
    """Does nothing, and counts how often it does so."""

    calls: Calls = eqx.field(static=True)

    def init_state(self, params: Any, context: Context) -> EmptyState:
        return EmptyState()

    def transform(
        self, updates: Any, state: EmptyState, params: Any, context: Context
    ) -> tuple[Any, EmptyState]:
        jax.debug.callback(self.calls.add)
        return updates, state


def to_bfloat16(updates: Any, params: Any) -> Any:
    return jax.tree.map(lambda u: u.astype(jnp.bfloat16), updates)


def to_float32(updates: Any, params: Any) -> Any:
    return jax.tree.map(lambda u: u.astype(jnp.float32), updates)
