"""What the law tests share: models with all that models have, and ways to count and compare."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from eqopt.states import EmptyState
from eqopt.writing import AbstractTransformation, Context

X64 = bool(jax.config.read("jax_enable_x64"))
FLOAT = np.float64 if X64 else np.float32
# For laws in which no number is of a dtype that the width decides, or in which that is no matter.
in_one_width = pytest.mark.skipif(X64, reason="the same in both float widths")
DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16, jnp.complex64]
DTYPES += [jnp.float64, jnp.complex128] if X64 else []


def values(shape: tuple[int, ...], seed: int, dtype: Any = FLOAT) -> Array:
    """Reproducible numbers between a half and one in modulus, of either sign."""
    rng = np.random.default_rng(seed)

    def draw() -> np.ndarray:
        return rng.uniform(0.5, 1.0, shape) * rng.choice([-1.0, 1.0], shape)

    numbers = draw() + 1j * draw() if jnp.issubdtype(dtype, jnp.complexfloating) else draw()
    return jnp.asarray(numbers.astype(dtype))


def tree(seed: int = 0, dtype: Any = FLOAT) -> dict[str, Any]:
    """A tree with a branch, a vector and matrices of one shape."""
    return {
        "a": values((2, 3), seed, dtype),
        "branch": {"b": values((3,), seed + 1, dtype), "w": values((2, 3), seed + 2, dtype)},
    }


class Zoo(eqx.Module):
    """A model with every kind of leaf that models have."""

    weight: Array
    bias: Array
    layer: eqx.nn.Linear
    dropout: eqx.nn.Dropout
    activation: Callable[[Array], Array]
    integers: Array
    booleans: Array
    key: Array
    old_key: Array
    number: int
    rate: float
    flag: bool
    name: str
    nothing: None
    shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, dtype: Any = FLOAT) -> None:
        self.weight = values((2, 3), 10, dtype)
        self.bias = values((3,), 11, dtype)
        self.layer = eqx.nn.Linear(3, 3, dtype=dtype, key=jax.random.key(0))
        self.dropout = eqx.nn.Dropout(0.0)
        self.activation = jax.nn.tanh
        self.integers = jnp.arange(3)
        self.booleans = jnp.asarray([True, False])
        self.key = jax.random.key(1)
        self.old_key = jax.random.PRNGKey(2)
        self.number = 2
        self.rate = 0.5
        self.flag = True
        self.name = "zoo"
        self.nothing = None
        self.shape = (2, 3)

    def __call__(self, x: Array) -> Array:
        # What is no array is used as Python uses it: to loop, to branch, to look up.
        assert self.flag and {"zoo": True}[self.name] and self.rate == 0.5
        y = x @ self.weight + self.bias
        for _ in range(self.number):
            y = self.activation(self.layer(self.dropout(y)))
        seed = jax.random.key_data(self.key)[1] + self.old_key[1]
        return y + (self.integers + seed.astype(self.integers.dtype)).astype(self.bias.dtype)


def zoo_loss(model: Zoo, x: Array) -> Array:
    return jnp.sum(jnp.square(jnp.abs(model(x))))


class Tally:
    """Counts traces. Hashed by identity, so what holds a new one has never been compiled."""

    def __init__(self) -> None:
        self.num = 0
        self.seen: list[Context] = []


class Traced(AbstractTransformation[EmptyState]):
    """Does nothing, and counts how often it is traced."""

    tally: Tally = eqx.field(static=True)

    def init_state(self, params: Any, context: Context) -> EmptyState:
        return EmptyState()

    def transform(
        self, updates: Any, state: EmptyState, params: Any, context: Context
    ) -> tuple[Any, EmptyState]:
        self.tally.num += 1
        self.tally.seen.append(context)
        return updates, state


def flatten(x: Any) -> list[Any]:
    """The leaves, `None` included."""
    return jax.tree.leaves(x, is_leaf=lambda leaf: leaf is None)


def subtrees(state: Any, kind: type) -> list[Any]:
    """The trees within a state that are of the parameters' own type."""

    def found(x: Any) -> bool:
        return isinstance(x, kind)

    return [x for x in jax.tree.leaves(state, is_leaf=found) if found(x)]


def trees_in(state: Any) -> list[Any]:
    """The trees within a state that are like `tree()`."""

    def is_tree(x: Any) -> bool:
        return isinstance(x, dict) and set(x) == set(tree())

    return [x for x in jax.tree.leaves(state, is_leaf=is_tree) if is_tree(x)]


def lane(x: Any, index: int) -> Any:
    """One of several trees that are stacked along the first axis of their arrays."""
    return jax.tree.map(lambda leaf: leaf[index] if eqx.is_array_like(leaf) else leaf, x)


def types(x: Any) -> Any:
    """Structure, shapes, dtypes and weak types: what a compiled program depends on."""
    leaves, structure = jax.tree.flatten(x)
    return structure, [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in leaves]


def same(a: Any, b: Any) -> bool:
    """Whether two trees are equal to the last bit, NaN equal to NaN."""
    pairs = zip(flatten(a), flatten(b), strict=True)
    return all(_bits(x) == _bits(y) for x, y in pairs)


def _bits(x: Any) -> Any:
    if not eqx.is_array_like(x):
        return x
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    x = np.asarray(x)
    return x.dtype, x.shape, x.tobytes()


def assert_close(a: Any, b: Any, rtol: float | None = None) -> None:
    """Compares two trees of arrays, by default to a few roundings in their dtype."""
    left, right = jax.tree.leaves(a), jax.tree.leaves(b)
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(left, right, strict=True):
        assert x.dtype == y.dtype
        inexact = jnp.issubdtype(x.dtype, jnp.inexact)
        tolerance = 32 * float(jnp.finfo(x.dtype).eps) if inexact and rtol is None else rtol or 0
        wide = np.complex128 if jnp.iscomplexobj(x) else np.float64
        np.testing.assert_allclose(
            np.asarray(x).astype(wide), np.asarray(y).astype(wide), rtol=tolerance, atol=tolerance
        )


def finite(x: Any) -> bool:
    return all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(x))


def complaint(kind: type[Exception], fn: Any, *args: Any, **kwargs: Any) -> str:
    """The message of the exception that a call raises, which has a few lines."""
    with pytest.raises(kind) as caught:
        fn(*args, **kwargs)
    message = str(caught.value)
    assert len(message.splitlines()) <= 10
    return message
