"""PRNG keys, kept as their words, which can be written to a file."""

from collections.abc import Hashable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import wadler_lindig as wl
from jaxtyping import Array, Key, PyTree, UInt32

from . import checks


class KeyData(eqx.Module):
    """A PRNG key, kept as its words.

    Equinox writes arrays of numbers to files, but not the keys that `jax.random.key` makes. An
    optimizer that is given such a key keeps a `KeyData`, and [`eqopt.Fit`][] returns one.
    Optimizers and [`eqopt.fit`][] take a `KeyData` in place of a key, and `wrap` returns the key:

    ```python
    import eqopt, jax

    opt = eqopt.NoisySGD(0.1, key=jax.random.key(0))
    assert opt.key.wrap() == jax.random.key(0)
    another = eqopt.NoisySGD(0.2, key=opt.key)
    ```

    `words` are its words, uint32, as `jax.random.key_data` gives them, and `impl` is the kind of
    key, which is static.

    **Arguments:**

    - `key`: the key.
    """

    words: UInt32[Array | np.ndarray, "*keys _"]
    impl: Hashable = eqx.field(static=True)

    def __init__(self, key: Key[Array, "*keys"]) -> None:
        if not (isinstance(key, jax.Array) and is_typed_key(key)):
            raise TypeError(
                f"`key` must be a key that `jax.random.key` makes; got {checks.describe(key)}"
            )
        self.words, self.impl = jax.random.key_data(key), jax.random.key_impl(key)

    def wrap(self) -> Key[Array, "*keys"]:
        """Returns the key, for the functions of `jax.random`."""
        return jax.random.wrap_key_data(jnp.asarray(self.words), impl=self.impl)

    def __pdoc__(self, **kwargs: object) -> wl.AbstractDoc:
        return wl.TextDoc(f"KeyData({self.impl})")


def is_key(x: object) -> bool:
    """Whether it is an array of typed PRNG keys, or the words of an old-style key."""
    is_array = isinstance(x, np.ndarray | jax.Array)
    return is_array and (is_typed_key(x) or x.dtype == np.uint32)


def is_typed_key(x: Any) -> bool:
    """Whether an array holds PRNG keys, and not numbers."""
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def kept(tree: object) -> PyTree:
    """A tree, or a single key, with its typed keys replaced by their words."""
    return jax.tree.map(
        lambda x: KeyData(x) if isinstance(x, jax.Array) and is_typed_key(x) else x, tree
    )


def unkept(tree: object) -> PyTree:
    """Undoes `kept`."""
    return jax.tree.map(lambda x: x.wrap() if is_kept(x) else x, tree, is_leaf=is_kept)


def is_kept(x: object) -> bool:
    return isinstance(x, KeyData)
