"""Single examples: models, losses and gradients, for tests that want some."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from tests.support.toolbox import FLOAT
from tests.support.trees import random_like, random_tree


def examples(seed: int = 0, num: int = 5, *, real: bool = True) -> tuple[Any, Any]:
    """Parameters, and gradients of as many examples, of very different lengths."""
    rng = np.random.default_rng(seed)
    params = random_tree(rng, FLOAT)
    if not real:
        params["complex"] = rng.standard_normal((3, 2)) * np.exp(1j * rng.uniform(0, 6, (3, 2)))
        params["complex"] = params["complex"].astype(np.result_type(FLOAT, np.complex64))
    grads = random_like(rng, params, leading=(num,))
    lengths = 10.0 ** np.linspace(-2, 1, num)

    def scaled(g: Any) -> Any:
        return jnp.asarray((g * lengths.reshape(-1, *[1] * (g.ndim - 1))).astype(g.dtype))

    return jax.tree.map(jnp.asarray, params), jax.tree.map(scaled, grads)


def clipped_sum(grads: Any, limit: float) -> Any:
    """The definition, example by example, in NumPy."""
    leaves, treedef = jax.tree.flatten(grads)
    total = [np.zeros(x.shape[1:], x.dtype) for x in leaves]
    for i in range(leaves[0].shape[0]):
        one = [np.asarray(x[i]) for x in leaves]
        norm = np.sqrt(sum(float(np.sum(np.abs(x) ** 2)) for x in one))
        total = [t + x * min(1.0, limit / norm) for t, x in zip(total, one, strict=True)]
    return treedef.unflatten([np.asarray(t, x.dtype) for t, x in zip(total, leaves, strict=True)])


class Model(eqx.Module):
    mlp: eqx.nn.MLP
    name: str

    def __call__(self, x: Any) -> Any:
        return self.mlp(x)


def a_model() -> Model:
    mlp = eqx.nn.MLP(3, "scalar", 4, 1, key=jax.random.key(0), dtype=FLOAT)
    return Model(mlp, "a model")


def square_loss(model: Model, x: Any, y: Any) -> Any:
    return (model(x) - y) ** 2
