"""Random trees of arrays, for tests that want many."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def random_array(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Normally distributed numbers; complex ones have both parts."""
    x = rng.standard_normal(shape)
    if np.issubdtype(dtype, np.complexfloating):
        x = x + 1j * rng.standard_normal(shape)
    return np.asarray(x, dtype)


def random_tree(rng: np.random.Generator, dtype: Any) -> dict[str, Any]:
    """Matrices, vectors, a scalar, a convolution's kernel: of random sizes, nested, with a hole."""

    def leaf(ndim: int) -> np.ndarray:
        return random_array(rng, tuple(int(n) for n in rng.integers(1, 6, ndim)), dtype)

    return {
        "kernel": leaf(4),
        "layers": [{"weight": leaf(2), "bias": leaf(1)}, {"weight": leaf(2), "bias": None}],
        "pair": (leaf(1), leaf(0)),
    }


def random_like(rng: np.random.Generator, tree: Any, *, leading: tuple[int, ...] = ()) -> Any:
    """Other numbers in a tree of the same shapes, or of those shapes behind some leading axes."""
    return jax.tree.map(lambda x: random_array(rng, (*leading, *x.shape), x.dtype), tree)


def random_run(seed: int, num_steps: int, dtype: Any) -> tuple[Any, Any]:
    """Parameters, some of them complex, and a gradient for each step."""
    rng = np.random.default_rng(seed)
    params = random_tree(rng, dtype)
    params["complex"] = random_array(rng, (3, 2), np.result_type(dtype, np.complex64))
    return params, random_like(rng, params, leading=(num_steps,))


def assert_near(left: Any, right: Any, tolerance: float) -> None:
    """Compares leaf by leaf, each relative to its own largest number."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    pairs = zip(jax.tree_util.tree_leaves_with_path(left), jax.tree.leaves(right), strict=True)
    for (path, x), y in pairs:
        name = jax.tree_util.keystr(path)
        assert x.dtype == y.dtype, name
        assert np.all(np.isfinite(y)), name
        assert np.max(np.abs(x - y)) <= tolerance * np.max(np.abs(y)), name


def is_matrix(tree: Any) -> Any:
    """A mask, as optax has them. Ours is `ByNdim(2)`."""
    return jax.tree.map(lambda x: x.ndim >= 2, tree)


def conj(tree: Any) -> Any:
    """What optax takes for a gradient, of what `jax.grad` gives."""
    return jax.tree.map(jnp.conj, tree)
