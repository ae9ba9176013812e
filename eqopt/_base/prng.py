"""PRNG keys: how a state keeps one, and draws with it."""

from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt32

from .key_data import KeyData, unkept
from .trees import placed_like

# A key as a transformation stores it. A key that `eqx.tree_at` has put there may be typed.
PRNGKey: TypeAlias = KeyData | Key[Array, ""] | UInt32[Array | np.ndarray, "_"]
# A key as a state keeps it: its words, which are saved, selected and donated as other arrays are.
KeyWords: TypeAlias = UInt32[Array, "_"]


def words_of(key: PRNGKey | None) -> KeyWords:
    """The words of a key for a new state, in their own buffer; `None` is key 0."""
    first = jax.random.key(0) if key is None else unkept(key)
    return jnp.copy(jax.random.key_data(first))


def advance(words: KeyWords, first: PRNGKey | None) -> tuple[KeyWords, Key[Array, ""]]:
    """Splits a state's key: the words to keep next, and a key for the draws of one step.

    **Arguments:**

    - `words`: the words in the state.
    - `first`: the key that the state began with, which has the key's type.
    """
    impl = None if first is None else jax.random.key_impl(unkept(first))
    key = jax.random.wrap_key_data(words, impl=impl)
    after, own = jax.random.split(key)
    return jax.random.key_data(after), own


def signs_like(key: Key[Array, ""], x: Array) -> Array:
    """A random sign for each entry of a real array, in its dtype."""
    return placed_like(jax.random.rademacher(key, x.shape, x.dtype), x)


def normal_like(key: Key[Array, ""], x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """A standard normal number for each entry of a real array, in its dtype."""
    return placed_like(jax.random.normal(key, x.shape, x.dtype), x)
