"""What the tests of both directions of interoperation with optax share."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import eqopt
from eqopt.states import EmptyState
from eqopt.writing import AbstractTransformation, Context
from tests.support.toolbox import FLOAT, X64
from tests.support.trees import conj, random_array, random_like, random_tree

NUM_STEPS = 6
TOLERANCE = 1e-13 if X64 else 2e-6

# These of optax do not work with complex parameters.
REAL = {"inject_hyperparams", "MultiSteps", "mechanize"}


def problem(name: str = "") -> tuple[Any, Any]:
    """Parameters, some complex, and a gradient for each step."""
    rng = np.random.default_rng(0)
    tree = random_tree(rng, FLOAT)
    if name not in REAL:
        tree["complex"] = random_array(rng, (3, 2), np.result_type(FLOAT, np.complex64))
    gradients = [jax.tree.map(jnp.asarray, random_like(rng, tree)) for _ in range(NUM_STEPS)]
    return jax.tree.map(jnp.asarray, tree), gradients


def run_ours(opt: AbstractTransformation[Any], params: Any, gradients: Any, **extra: Any) -> Any:
    state, seen = opt.init(params), []
    for gradient in gradients:
        updates, state = opt.update(gradient, state, params, **extra)
        params = eqopt.apply_updates(params, updates)
        seen.append(params)
    return seen


def run_theirs(tx: optax.GradientTransformation, params: Any, gradients: Any, **extra: Any) -> Any:
    """As users of optax do it: complex gradients conjugated, and `jax.jit` around it."""
    tx = optax.with_extra_args_support(tx)
    update = jax.jit(tx.update)
    with jax.numpy_dtype_promotion("standard"):
        state, seen = jax.jit(tx.init)(params), []
        for gradient in gradients:
            updates, state = update(conj(gradient), state, params, **extra)
            params = optax.apply_updates(params, updates)
            seen.append(params)
    return seen


class Probed(AbstractTransformation[EmptyState]):
    """Scales the updates by an extra argument."""

    def init_state(self, params: Any, context: Context) -> EmptyState:
        return EmptyState()

    def transform(
        self, updates: Any, state: EmptyState, params: Any, context: Context
    ) -> tuple[Any, EmptyState]:
        probe = context.require("probe", self)
        return jax.tree.map(lambda u: u * probe.astype(u.dtype), updates), state


def init_nothing(params: Any) -> optax.EmptyState:
    return optax.EmptyState()


def _scale_by_probe(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
    probe = extra["probe"]
    return jax.tree.map(lambda u: u * probe.astype(u.dtype), updates), state


PROBED = optax.GradientTransformationExtraArgs(init_nothing, _scale_by_probe)


def falling(count: Any) -> Any:
    return 0.1 / (1 + count.astype(FLOAT))


def labels(params: Any) -> Any:
    return jax.tree.map(lambda x: "adam" if x.ndim >= 2 else "sgd", params)
