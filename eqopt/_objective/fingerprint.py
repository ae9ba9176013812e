"""A fingerprint of everything that a call depends on: 64 words of uint32, which a state can hold.

In: a PyTree of arrays and hashable objects. Out: equal words if the static parts are equal and the
arrays are equal, bit for bit. The static part gets a number when it is first seen; arrays are
compared whole up to 252 bytes, and by a 64-bit hash above.
It exists because a state holds arrays only, and must tell whether its evaluation is still valid.
"""

import itertools
from collections.abc import Hashable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, PyTree, UInt32

from .._base import checks
from .._base.trees import sum_of

WORDS = 64

Key = UInt32[Array, f"{WORDS}"]


def fingerprint(tree: PyTree, *, fresh: bool = False) -> Key:
    """Returns the words that distinguish `tree` from others.

    **Arguments:**

    - `tree`: any PyTree; leaves that are not arrays must be hashable.
    - `fresh`: whether the words must differ from all earlier ones, even those of the same tree.
    """
    leaves, treedef = jax.tree.flatten(tree)
    arrays = [jnp.asarray(x) for x in leaves if _is_data(x)]
    arrays = [x for x in arrays if x.dtype != jax.dtypes.float0]
    statics = tuple(None if _is_data(x) else (type(x), x) for x in leaves)
    kinds = tuple((x.shape, str(x.dtype)) for x in arrays)
    number = next(_numbers) if fresh else _number_of((treedef, statics, kinds))
    parts = [part for x in arrays for part in _words(x)]
    if sum(part.size for part in parts) < WORDS and not any(map(_is_sharded, parts)):
        data = [part.reshape(-1) for part in parts]
    else:
        data = [jnp.stack([_hash(parts, seed) for seed in _SEEDS])]
    words = jnp.concatenate([jnp.full(1, number, np.uint32), *data])
    return jnp.zeros(WORDS, np.uint32).at[: words.size].set(words)


def same_bits(a: PyTree, b: PyTree) -> Bool[Array, ""]:
    """Whether two trees of arrays, of the same shapes and dtypes, are equal bit for bit."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    equal = [jnp.all(v == w) for x, y in pairs for v, w in zip(_words(x), _words(y), strict=True)]
    return jnp.all(jnp.stack(equal)) if equal else jnp.asarray(True)


_numbers = itertools.count(1)
_known: dict[Hashable, int] = {}
_SEEDS = (0x9E3779B9, 0x7FEB352D)


def _number_of(static: Hashable) -> int:
    if static not in _known:
        if len(_known) >= 4096:  # numbers are never reused, so clearing only causes misses
            _known.clear()
        _known[static] = next(_numbers)
    return _known[static]


def _is_data(x: object) -> bool:
    return isinstance(x, (*checks.ARRAYS, int, float, complex)) and not isinstance(x, bool)


def _is_sharded(x: Array) -> bool:
    return any(jax.typeof(x).sharding.spec)


def _words(x: Array) -> list[Array]:
    """The bits of an array, as arrays of uint32."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return [jax.random.key_data(x)]
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return _words(x.real) + _words(x.imag)
    if x.dtype == np.bool_:
        return [x.astype(np.uint32)]
    if x.dtype.itemsize >= 4:  # eight bytes give two words, along a new last axis
        return [lax.bitcast_convert_type(x, np.uint32)]
    if jnp.issubdtype(x.dtype, jnp.integer):
        return [x.astype(np.uint32)]
    unsigned = np.uint16 if x.dtype.itemsize == 2 else np.uint8
    return [lax.bitcast_convert_type(x, unsigned).astype(np.uint32)]


def _hash(parts: list[Array], seed: int) -> Array:
    # A sum over all words, each mixed with its place. The order does not matter, nor do the
    # devices.
    return sum_of([_hash_one(x, seed + 0x85EBCA6B * i) for i, x in enumerate(parts)])


def _hash_one(x: Array, seed: int) -> Array:
    place = jnp.full(x.shape, seed & 0xFFFFFFFF, np.uint32)
    for axis in range(x.ndim):
        place = (place ^ lax.broadcasted_iota(np.uint32, x.shape, axis)) * np.uint32(0x01000193)
    # The finalizer of MurmurHash3: every bit of the word reaches every bit of the sum.
    mixed = (x + _mix(place)) ^ place
    return jnp.sum(_mix(mixed), dtype=np.uint32)


def _mix(x: Array) -> Array:
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
