"""Trees of arrays, in which `None` stands for "not trained" or "no gradient"."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Inexact, PyTree

from . import checks
from .arithmetic import cast, is_complex, real_dtype, wider
from .trace_sharing import map_leaves
from .types import Count, Leaves

_INT32_MAX = np.int32(np.iinfo(np.int32).max)


def accumulator_dtype(dtype: Any, asked: Any = None) -> np.dtype:
    """The dtype of a moment or an average of leaves of `dtype`.

    At least float32, unless another dtype is given; complex leaves have complex averages.
    """
    if asked is None:
        return wider(dtype)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return wider(asked, np.complex64)
    return jnp.dtype(asked)


def full_like(tree: PyTree, value: Any, dtype: Any = None, *, real: bool = False) -> PyTree:
    """A constant for a moment of each leaf, on the devices on which the leaf lives.

    `dtype` as in `accumulator_dtype`; with `real`, the dtype of the leaf's squared modulus.
    """

    def full(x: Array) -> Array:
        own = accumulator_dtype(x.dtype, dtype)
        own = real_dtype(own) if real else own
        return placed_like(jnp.full_like(x, value, dtype=own), x)

    return jax.tree.map(full, tree)


def zeros_like(tree: PyTree, dtype: object = None, *, real: bool = False) -> PyTree:
    """Makes zeros for a moment of each parameter, on the devices on which the parameter lives.

    **Arguments:**

    - `tree`: the parameters: arrays, and `None` for leaves that are not trained.
    - `dtype`: the dtype of the zeros; `None` is the parameter's, and float32 for half precision.
    - `real`: whether zeros for complex parameters are real, as their squared moduli are.

    **Returns:**

    A tree like the parameters.
    """
    return full_like(tree, 0, dtype, real=real)


def zeros_exactly_like(tree: PyTree) -> PyTree:
    """Zeros in the very dtypes of the leaves."""
    return jax.tree.map(lambda x: full_like(x, 0, x.dtype), tree)


def copies(tree: PyTree, dtype: object = None) -> PyTree:
    """A copy of each leaf that shares no buffer with it; `dtype` as in `accumulator_dtype`."""

    def copy(x: Array) -> Array:
        # Strongly typed, and the result of an operation: a compiled program may return its input
        # buffer.
        return jnp.copy(lax.convert_element_type(x, accumulator_dtype(x.dtype, dtype)))

    return jax.tree.map(copy, tree)


def add(x: Array, u: Array) -> Array:
    """A parameter plus its update, rounded once, to the parameter's dtype."""
    dtype = wider(x.dtype, u.dtype)
    return narrowed(lax.add(cast(x, dtype), cast(u, dtype)), x.dtype)


def narrowed(x: Array, dtype: np.dtype) -> Array:
    """Rounds to a dtype no wider, once, to the nearest."""
    if x.dtype == dtype:
        return x
    if not is_complex(x):
        # The compiler may drop a cast alone if the next operation is in the wide dtype.
        bits = jnp.finfo(dtype)
        rounded = lax.reduce_precision(x, bits.nexp, bits.nmant)
        if bits.nexp < jnp.finfo(x.dtype).nexp:
            # It rounds numbers below the smallest normal number to zero: in float16 below 6e-5,
            # which is the size of weights that began at zero.
            unit = np.asarray(bits.smallest_subnormal, x.dtype)
            small = lax.round(lax.div(x, unit), lax.RoundingMethod.TO_NEAREST_EVEN)
            tiny = lax.lt(lax.abs(x), np.asarray(bits.tiny, x.dtype))
            rounded = lax.select(tiny, lax.mul(small, unit), rounded)
        x = rounded
    return cast(x, dtype)


def sums(leaves: Leaves, updates: Leaves) -> Leaves:
    """Adds to each leaf its update, if there is one; traced once for leaves of equal shape and
    dtype."""
    places = [i for i, u in enumerate(updates) if u is not None]
    added = list(leaves)
    found = map_leaves(add, [leaves[i] for i in places], [updates[i] for i in places])
    for i, x in zip(places, found, strict=True):
        added[i] = x
    return added


def add_updates(params: PyTree, updates: PyTree) -> PyTree:
    """The parameters after the updates, which may be missing for some parameters."""
    return jax.tree.map(
        lambda x, u: x if x is None or u is None else add(x, u),
        params,
        updates,
        is_leaf=checks.is_none,
    )


def round_like(updates: PyTree, reference: PyTree) -> PyTree:
    """Casts each update to the dtype of its leaf in `reference`."""
    return jax.tree.map(
        lambda u, x: None if u is None else cast(u, x.dtype),
        updates,
        reference,
        is_leaf=checks.is_none,
    )


def widened(tree: PyTree) -> PyTree:
    """The leaves in the dtype to compute in: float32 for half precision."""
    return jax.tree.map(lambda x: cast(x, wider(x.dtype)), tree)


def mask_like(updates: PyTree, tree: PyTree) -> PyTree:
    """The tree, with `None` where there is no gradient."""
    return jax.tree.map(
        lambda u, x: None if u is None else x, updates, tree, is_leaf=checks.is_none
    )


def fill_missing(updates: PyTree, other: PyTree) -> PyTree:
    """The updates, in the dtypes of `other`; leaves of `other` replace missing updates."""
    return jax.tree.map(
        lambda u, x: x if u is None else cast(u, x.dtype), updates, other, is_leaf=checks.is_none
    )


def replicated(x: Array) -> Array:
    """In explicit sharding mode, a copy of `x` that is whole on every device; else `x` itself."""
    sharding = jax.typeof(x).sharding
    if not any(sharding.spec):
        return x
    return jax.sharding.reshard(x, sharding.update(spec=jax.sharding.PartitionSpec()))


def placed_like(x: Array, reference: Array) -> Array:
    """`x`, sharded like `reference`, which has the same shape.

    In automatic sharding mode a compiled constant depends on no array, and the compiler puts it on
    one device. So the constant is made to depend on the reference. This does not work with integers
    or booleans: the compiler would simplify the expression.
    """
    if not jnp.issubdtype(reference.dtype, jnp.inexact):
        return x
    sharding = jax.typeof(reference).sharding
    if any(sharding.spec):
        x = jax.sharding.reshard(x, sharding)
    real = jnp.real(lax.stop_gradient(reference))
    # Always false, also for infinities and NaN; the compiler does not simplify it. The selected
    # value depends on the reference too, because a choice between two constants is a constant.
    never = real - real > 0
    return lax.select(never, lax.convert_element_type(real, x.dtype), x)


def stack_like(tree: PyTree, size: int, dtype: object = None) -> PyTree:
    """Zeros for `size` moments of each leaf, along a new first axis; `dtype` as in `full_like`."""

    def stack(x: Array) -> Array:
        reference = jnp.broadcast_to(x, (size, *x.shape))
        return full_like(reference, 0, dtype)

    return jax.tree.map(stack, tree)


def differences(a: PyTree, b: PyTree) -> PyTree:
    """`a - b`, each in the dtype of `a`'s leaf."""
    leaves, treedef = jax.tree.flatten(a)
    return treedef.unflatten(map_leaves(_difference, leaves, jax.tree.leaves(b)))


def _difference(x: Array, y: Array) -> Array:
    return lax.sub(x, cast(y, x.dtype))


def inner(a: PyTree, b: PyTree) -> Float[Array, ""]:
    """The real inner product of two trees, the real part of the sum of `conj(a) * b`."""
    dtype = np.dtype(jax.dtypes.canonicalize_dtype(np.float64))
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    terms = [_inner(x, y, dtype) for x, y in pairs]
    return sum_of(terms) if terms else jnp.zeros((), dtype)


@functools.partial(jax.jit, static_argnums=2)
def _inner(x: Array, y: Array, dtype: np.dtype) -> Array:
    wide = wider(x.dtype, y.dtype)
    x, y = x.astype(wide), y.astype(wide)
    if is_complex(x):
        return jnp.sum(x.real * y.real + x.imag * y.imag).astype(dtype)
    return jnp.sum(x * y).astype(dtype)


def all_positive(tree: PyTree) -> Bool[Array, ""]:
    """Whether every number in the tree is finite and positive."""
    leaves = [jnp.all(jnp.isfinite(x) & (x > 0)) for x in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(leaves)) if leaves else jnp.asarray(True)


def conj(tree: PyTree) -> PyTree:
    """The complex conjugate of each complex leaf."""
    return jax.tree.map(lambda x: x.conj() if is_complex(x) else x, tree)


def sum_of(values: Any) -> Array:
    """Adds scalars pairwise: a chain of a thousand additions compiles, and rounds, badly."""
    terms = list(values)
    while len(terms) > 1:
        odd = terms[-1:] if len(terms) % 2 else []
        terms = [lax.add(a, b) for a, b in zip(terms[::2], terms[1::2], strict=False)] + odd
    return terms[0]


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether every number in the tree is finite."""
    leaves = [_is_finite(x) for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.stack(leaves)) if leaves else jnp.asarray(True)


@jax.jit
def _is_finite(x: Inexact[Array, "*shape"]) -> Bool[Array, ""]:
    # `x - x` is zero or NaN. A sum, because a CPU computes `all(isfinite(x))` one boolean at a
    # time, which takes three times as long, and memory. (The largest modulus may miss a NaN.)
    return lax.eq(jnp.sum(lax.sub(x, x)), np.zeros((), x.dtype))


def select(condition: Bool[Array, ""], true: PyTree, false: PyTree) -> PyTree:
    """Picks one of two trees. A NaN in the other tree has no effect."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), true, false)


def increment(count: Count) -> Count:
    """Adds one to a count, which stays at the largest int32 once there.

    **Arguments:**

    - `count`: an int32 of shape `()`.
    """
    return lax.add(lax.min(count, _INT32_MAX - 1), np.int32(1))


def zero_count() -> Count:
    return jnp.zeros((), np.int32)


def one_minus(decay: object) -> Float[Array, ""]:
    r"""The weight $1 - \beta$ that an exponential moving average gives to its newest term.

    Computed in the dtype of the stored decay: from 0.999 in float32, the error would be 1.3e-5.
    """
    decay = jnp.asarray(decay)
    return lax.sub(np.ones((), decay.dtype), decay)


def bias_correction(decay: object, count: Count) -> Float[Array, ""]:
    r"""The weight that an exponential moving average has collected, $1 - \beta^t$.

    **Arguments:**

    - `decay`: the decay $\beta$, in $[0, 1)$.
    - `count`: the number $t$ of terms, at least 1, int32 of shape `()`.
    """
    decay = jnp.asarray(decay)
    # Not `1 - decay**count`, which cancels: with `decay=0.999` and small counts its relative error
    # in float32 is 1e-5, against 1e-7 here.
    return lax.neg(lax.expm1(lax.mul(cast(count, decay.dtype), lax.log(decay))))


def moment_weights(
    b1: object, b2: object, count: Count, *, nesterov: bool = False
) -> tuple[Float[Array, ""], ...]:
    """The bias corrections of two averages, and the first average's correction one step ahead."""
    weights = (bias_correction(b1, count), bias_correction(b2, count))
    return (*weights, bias_correction(b1, increment(count))) if nesterov else weights


def owned(x: object) -> Any:
    """A leaf that nobody else writes to: a NumPy array is copied.

    JAX may read the memory of a NumPy array itself, and a program may still run after the call has
    returned, when the array's owner changes it.
    """
    return x.copy() if isinstance(x, np.ndarray) else x
