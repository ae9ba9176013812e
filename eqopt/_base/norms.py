"""The norm of a tree, also where the squares of its numbers overflow or vanish."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Inexact, PyTree

from .arithmetic import abs_sq, cast, divide, real_dtype, times, wider
from .checks import is_inexact
from .compat import pcast, varying
from .trace_sharing import bundle_by_kind
from .trees import sum_of


def global_norm(tree: PyTree) -> Float[Array, ""]:
    r"""The 2-norm of all leaves together, $\sqrt{\sum_i |x_i|^2}$.

    It is accumulated in float32 at least: a float16 tree with finite entries has a finite norm.
    Its derivative at a zero tree is 0.

    **Arguments:**

    - `tree`: any PyTree of arrays; leaves that are not inexact arrays are ignored.

    **Returns:**

    A scalar, in the widest dtype of the leaves and at least float32; 0 for a tree without leaves.
    """
    leaves = [x for x in jax.tree.leaves(tree) if is_inexact(x) and x.size > 0]
    return _norm(leaves) if leaves else jnp.zeros((), np.float32)


@jax.custom_jvp
def _norm(leaves: list[Array]) -> Float[Array, ""]:
    """The norm of a list of leaves, none of them empty.

    If the sum of the squares overflows, or is so small that it loses digits, it is computed again
    from scaled leaves. This is a loop and not `lax.cond`, so the program has only one sum.
    """
    dtype = real_dtype(wider(*{x.dtype for x in leaves}))
    bits = jnp.finfo(dtype)
    largest, smallest = (
        np.asarray(2.0**e, dtype) for e in (bits.maxexp // 2 + 6, bits.minexp // 2)
    )
    one = _varying_like(leaves, np.ones((), dtype))

    def going(carry: tuple[Array, Array, Array]) -> Array:
        total, _, first = carry
        return (first > 0) | ((first == 0) & ~(jnp.isfinite(total) & (total > smallest)))

    def body(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        total, scale, first = carry
        rescaled = jnp.where(jnp.isfinite(total), largest, 1 / largest)
        scale = jnp.where(first > 0, scale, rescaled)
        return _sum_of_squares(leaves, scale), scale, first - 1

    total, scale, _ = lax.while_loop(going, body, (one, one, one))
    return lax.div(lax.sqrt(total), scale)


@_norm.defjvp
def _(
    primals: tuple[list[Array]], tangents: tuple[list[Array]]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    (leaves,), (changes,) = primals, tangents
    norm = _norm(leaves)
    # The derivative is 0 where the norm is 0 or not finite.
    some = (norm > 0) & jnp.isfinite(norm)
    size = jnp.where(some, norm, 1)

    def term(x: Array, dx: Array) -> Array:
        dtype = wider(x.dtype, size.dtype)
        unit = divide(cast(x, dtype), cast(size, real_dtype(dtype)))
        unit = jnp.where(some, unit, 0)
        return cast(jnp.sum(jnp.real(unit.conj() * cast(dx, unit.dtype))), norm.dtype)

    return norm, sum_of(map(term, leaves, changes))


def _varying_like(leaves: list[Array], x: np.ndarray) -> Array:
    """A number that varies over all `shard_map` axes over which any leaf varies."""
    names = frozenset().union(*map(varying, leaves))
    return pcast(jnp.asarray(x), tuple(names)) if names else jnp.asarray(x)


def _sum_of_squares(leaves: list[Array], scale: Float[Array, ""]) -> Float[Array, ""]:
    small: dict[np.dtype, list[Array]] = {}
    sums: list[Array] = []
    for x in leaves:
        if _is_small(x):
            small.setdefault(x.dtype, []).append(x)
        else:
            sums.append(_sum_sq(x, scale))
    for alike in small.values():
        bundles, rest = bundle_by_kind([x.shape for x in alike])
        sums += [_sum_sq_joined([alike[i] for i in own], scale) for own in (*bundles, rest) if own]
    return sum_of(cast(x, scale.dtype) for x in sums)


# The compiler makes a separate kernel for each sum. So small leaves are first copied into one
# vector.
_MAX_SMALL = 1024


def _is_small(x: Array) -> bool:
    # Leaves that are divided between devices must not be copied to all devices.
    kind = jax.typeof(x)
    return x.size <= _MAX_SMALL and not (kind.sharding.mesh.manual_axes or any(kind.sharding.spec))


@jax.jit
def _sum_sq_joined(leaves: list[Array], scale: Float[Array, ""]) -> Float[Array, ""]:
    if len(leaves) == 1:
        return _sum_sq(leaves[0], scale)
    return _sum_sq(lax.concatenate([x.reshape(-1) for x in leaves], 0), scale)


@jax.jit
def _sum_sq(x: Inexact[Array, "*shape"], scale: Float[Array, ""]) -> Float[Array, ""]:
    dtype = wider(x.dtype)
    return jnp.sum(abs_sq(times(cast(scale, real_dtype(dtype)), cast(x, dtype))))
