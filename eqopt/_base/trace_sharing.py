"""Groups leaves of equal shape and dtype, so that a model's layers share one trace.

In: the kind of each leaf. Out: bundles of leaves, each with the same kinds in the same order, such
as one bundle for each layer. A jitted function that takes a whole bundle is traced once for all.
It exists because each call inside a traced function costs time to trace and to lower: one call for
a bundle costs less than one call for each of its leaves.
"""

import functools
from collections.abc import Callable, Hashable, Sequence

import jax
from jaxtyping import Array


def bundle_by_kind(kinds: Sequence[Hashable]) -> tuple[list[list[int]], list[int]]:
    """Bundles leaves by their kinds; returns each bundle's indices, and the indices left over.

    All bundles have the same number of leaves of each kind, in the same order.
    """
    members: dict[Hashable, list[int]] = {}
    for i, kind in enumerate(kinds):
        members.setdefault(kind, []).append(i)
    num = _num_bundles(tuple([len(own) for own in members.values()]))
    shares = [(own, len(own) // max(num, 1)) for own in members.values()]
    bundles = [
        [i for own, share in shares for i in own[b * share : (b + 1) * share]] for b in range(num)
    ]
    return bundles, [i for own, share in shares for i in own[num * share :]]


@functools.cache
def _num_bundles(counts: tuple[int, ...]) -> int:
    """The number of bundles with the fewest calls, given the number of leaves of each kind.

    Each of `b` bundles gets `1 / b` of each kind. That makes `b` calls, one call within them for
    each leaf of a bundle, and one for each leaf left over; without bundles, one for each leaf.
    """
    calls = {b: b + sum([n // b + n % b for n in counts]) for b in range(2, max(counts, default=0))}
    return min({0: sum(counts), **calls}.items(), key=lambda item: item[1])[0]


def map_leaves(function: Callable[..., Array], *columns: Sequence[Array]) -> list[Array]:
    """Applies `function` to each leaf: one array of each column.

    **Arguments:**

    - `function`: a module-level function.
    - `*columns`: lists of arrays, all of one length.
    """
    leaves = list(zip(*columns, strict=True))
    bundles, rest = bundle_by_kind([tuple([(x.shape, x.dtype) for x in leaf]) for leaf in leaves])
    results: dict[int, Array] = {i: function(*leaves[i]) for i in rest}
    for bundle in bundles:
        results.update(zip(bundle, _several(function, [leaves[i] for i in bundle]), strict=True))
    return [results[i] for i in range(len(leaves))]


def map_present(
    function: Callable[..., Array], *columns: Sequence[Array | None]
) -> list[Array | None]:
    """The same, where missing leaves, `None` in the last column, stay so."""
    found: list[Array | None] = [None] * len(columns[-1])
    places = [i for i, x in enumerate(columns[-1]) if x is not None]
    given = [[x for i in places if (x := column[i]) is not None] for column in columns]
    for i, x in zip(places, map_leaves(function, *given), strict=True):
        found[i] = x
    return found


@functools.partial(jax.jit, static_argnums=0)
def _several(function: Callable[..., Array], leaves: list[tuple[Array, ...]]) -> list[Array]:
    return [function(*leaf) for leaf in leaves]
