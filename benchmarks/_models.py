"""What is trained in the benchmarks: a small network, a deep one, and many leaves."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# A small network: eight leaves


def model_and_data() -> tuple[eqx.nn.MLP, Float[Array, "32 8"], Float[Array, "32 4"]]:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(32, 8)), jnp.float32)
    y = jnp.asarray(rng.normal(size=(32, 4)), jnp.float32)
    model = eqx.nn.MLP(8, 4, width_size=32, depth=3, dtype=jnp.float32, key=jax.random.key(0))
    return model, x, y


def loss_fn(
    model: eqx.nn.MLP, x: Float[Array, "batch in"], y: Float[Array, "batch out"]
) -> Float[Array, ""]:
    return jnp.mean(jnp.square(jax.vmap(model)(x) - y))


# A deep one


Layers = list[dict[str, Array]]


def network(num_layers: int) -> Layers:
    keys = jax.random.split(jax.random.key(0), num_layers)
    return [
        {
            "w": 0.1 * jax.random.normal(key, (16, 16)),
            "b": jnp.zeros(16),
            "scale": jnp.ones(16),
            "shift": jnp.zeros(16),
        }
        for key in keys
    ]


def plain(layer: dict[str, Array], x: Array) -> Array:
    return jnp.tanh(x @ layer["w"] + layer["b"])


def normalized(layer: dict[str, Array], x: Array) -> Array:
    normal = layer["scale"] * jax.nn.standardize(x) + layer["shift"]
    return jax.nn.gelu(normal @ layer["w"] + layer["b"])


def normalized_by_equinox(layer: dict[str, Array], x: Array) -> Array:
    norm, linear = eqx.nn.LayerNorm(16), eqx.nn.Linear(16, 16, key=jax.random.key(0))
    norm = eqx.tree_at(lambda m: (m.weight, m.bias), norm, (layer["scale"], layer["shift"]))
    linear = eqx.tree_at(lambda m: (m.weight, m.bias), linear, (layer["w"], layer["b"]))
    return jax.vmap(lambda row: jax.nn.gelu(linear(norm(row))))(x)


def loss_of(layer_fn: Callable[[dict[str, Array], Array], Array]) -> Callable[..., Array]:
    """Of a residual network of such layers."""

    def loss(layers: Layers, x: Array, y: Array) -> Array:
        for layer in layers:
            x = x + layer_fn(layer, x)
        return jnp.mean(jnp.square(x - y))

    return loss


def rosenbrock(x: Array) -> Array:
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


# Leaves without a network


def many_leaves(num: int) -> dict[str, Float[Array, "rows columns"]]:
    """Matrices of seven shapes in turn."""
    return {f"leaf{i:03}": jnp.full((4, 4 + i % 7), 0.5, jnp.float32) for i in range(num)}


def matrices(num: int) -> dict[str, Float[Array, "rows columns"]]:
    """Matrices of five shapes in turn, as those of a transformer, but small."""
    shapes = ((16, 16), (16, 48), (16, 64), (64, 16), (32, 16))
    return {f"leaf{i:03}": jnp.full(shapes[i % 5], 0.5, jnp.float32) for i in range(num)}
