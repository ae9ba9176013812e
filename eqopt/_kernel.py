"""Rules that treat every leaf alike: a kernel from arrays to arrays, mapped over the trees.

A step of Adam is the same few operations on each of perhaps a thousand leaves. They are written
once, for one leaf (the *kernel*), and traced once for each distinct shape and dtype. Kernels of
links that follow each other are fused: a leaf goes through all of them in one call, in the wide
dtype throughout, and is rounded once, at the front door.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from . import _check
from ._arithmetic import cast, is_complex, real_dtype, wider
from ._types import TreeDef


@dataclasses.dataclass(frozen=True)
class Rule:
    """What one step of a leafwise transformation does to each leaf.

    **Arguments:**

    - `kernel`: a module-level function `kernel(update, *trees, *scalars)` that returns the new
        update, or `(update, *trees)` if there are trees; with `needs_params`,
        `kernel(update, param, *trees, *scalars)`. Its arrays arrive in one dtype, at least
        float32; what it returns for the trees is cast back to the dtype they are kept in.
    - `state`: the state after the step, but for the trees.
    - `trees`: names of the fields of `state` that hold one array for each parameter, of its shape.
    - `scalars`: numbers of this step (rates, bias corrections), computed once for all leaves.
    - `needs_params`: whether the kernel takes the parameter.
    - `options`: hashable objects that the kernel is given first, before the update.
    - `mask`: a tree of Python booleans like the parameters, or `None`; where it is `False`, the
        rule leaves the update and its trees as they are.
    """

    kernel: Callable[..., Any]
    state: eqx.Module
    trees: tuple[str, ...] = ()
    scalars: tuple[Any, ...] = ()
    needs_params: bool = False
    options: tuple[Any, ...] = ()
    mask: PyTree | None = None

    @property
    def program(self) -> tuple[Callable[..., Any], tuple[Any, ...], bool, bool]:
        """What of the rule is static."""
        return self.kernel, self.options, self.needs_params, bool(self.trees)


# What is static of the rules that one leaf goes through: kernel, options, needs_params, and whether
# there are trees.
_Program = tuple[tuple[Callable[..., Any], tuple[Any, ...], bool, bool], ...]
# Of one leaf: the update, the parameter, and for each rule its trees' arrays.
_Leaf = tuple[Array, Array | None, tuple[tuple[Array, ...], ...]]


def run(rules: Sequence[Rule], updates: PyTree, params: PyTree | None) -> tuple[PyTree, list[Any]]:
    """Applies the rules to each leaf, one after the other; gives the updates and the states.

    A leaf whose update is `None` is passed over: its update stays `None`, and its state as it was.
    """
    leaves, treedef = _check.flatten(updates)
    param_leaves = leaves if params is None else treedef.flatten_up_to(params)
    columns = [
        [_column(rule, name, updates, leaves, treedef) for name in rule.trees] for rule in rules
    ]
    masks = [None if r.mask is None else treedef.flatten_up_to(r.mask) for r in rules]

    groups: dict[Any, list[int]] = {}
    for i, leaf in enumerate(leaves):
        if leaf is None:
            continue
        active = tuple(j for j, mask in enumerate(masks) if mask is None or mask[i])
        arrays = [leaf, param_leaves[i], *(column[i] for j in active for column in columns[j])]
        kind = (active, *((x.shape, x.dtype) for x in arrays))
        groups.setdefault(kind, []).append(i)

    scalars: dict[Any, Any] = {}
    for (active, *_), members in groups.items():
        program = tuple(rules[j].program for j in active)
        if not program:
            continue
        pending: list[_Leaf] = []
        for i in members:
            param = param_leaves[i] if any(needs for *_, needs, _ in program) else None
            trees = tuple(tuple(column[i] for column in columns[j]) for j in active)
            pending.append((leaves[i], param, trees))
        dtype = _compute_dtype(pending[0])
        key = (active, real_dtype(dtype))
        if key not in scalars:
            scalars[key] = tuple(_cast_scalars(rules[j].scalars, key[1]) for j in active)
        chunk = _chunk(len(members))
        whole = 0 if chunk == 1 else len(members) - len(members) % chunk
        results = [
            result
            for start in range(0, whole, chunk)
            for result in _several(program, dtype, pending[start : start + chunk], scalars[key])
        ]
        results += [_one(program, dtype, *leaf, scalars[key]) for leaf in pending[whole:]]
        for i, (update, trees) in zip(members, results, strict=True):
            leaves[i] = update
            for j, new in zip(active, trees, strict=True):
                for column, x in zip(columns[j], new, strict=True):
                    column[i] = x

    states = [
        dataclasses.replace(
            rule.state,
            **{name: treedef.unflatten(c) for name, c in zip(rule.trees, own, strict=True)},
        )
        for rule, own in zip(rules, columns, strict=True)
    ]
    return treedef.unflatten(leaves), states


@functools.cache
def _chunk(num_leaves: int) -> int:
    """How many leaves of one kind to hand over at a time.

    A call is dear, to trace and to lower; the one for several leaves is itself traced only once,
    so with chunks of `c` there are `c` calls in it, and one for each chunk and each leaf left over.
    """
    chunks = range(2, num_leaves // 2 + 1)
    calls = {c: c + num_leaves // c + num_leaves % c for c in chunks}
    return min({1: num_leaves, **calls}.items(), key=lambda item: item[1])[0]


def _column(
    rule: Rule, name: str, updates: PyTree, leaves: list[Any], treedef: TreeDef
) -> list[Any]:
    """The leaves of one of the state's trees, in the order of the updates' leaves."""
    tree = getattr(rule.state, name)
    found, own_treedef = _check.flatten(tree)
    if own_treedef != treedef:
        raise _check.structure_error(tree, updates, f"state.{name}", "updates")
    if _check.enabled():
        faults = [
            f"`{path}` is {_check.describe(x)}; the update has shape {u.shape}"
            for path, x, u in _mismatches(f"state.{name}", tree, found, leaves)
        ]
        if faults:
            raise ValueError(_check.listed(faults))
    return found


def _mismatches(name: str, tree: PyTree, found: list[Any], leaves: list[Any]) -> list[Any]:
    wrong = [
        i
        for i, (x, u) in enumerate(zip(found, leaves, strict=True))
        if u is not None and (x is None or x.shape != u.shape)
    ]
    if not wrong:
        return []
    names = _check.paths(name, tree)
    return [(names[i], found[i], leaves[i]) for i in wrong]


def _compute_dtype(leaf: _Leaf) -> np.dtype:
    update, param, trees = leaf
    arrays = [update, *([] if param is None else [param]), *(x for own in trees for x in own)]
    return wider(*(x.dtype for x in arrays if jnp.issubdtype(x.dtype, jnp.inexact)))


def _cast_scalars(scalars: tuple[Any, ...], dtype: np.dtype) -> tuple[Array, ...]:
    return tuple(cast(jnp.asarray(x), dtype) for x in scalars)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _several(
    program: _Program, dtype: np.dtype, leaves: list[_Leaf], scalars: tuple[tuple[Array, ...], ...]
) -> list[Any]:
    return [_one(program, dtype, *leaf, scalars) for leaf in leaves]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _one(
    program: _Program,
    dtype: np.dtype,
    update: Array,
    param: Array | None,
    trees: tuple[tuple[Array, ...], ...],
    scalars: tuple[tuple[Array, ...], ...],
) -> tuple[Array, tuple[tuple[Array, ...], ...]]:
    wide = cast(update, dtype)
    results = []
    for (kernel, options, needs_params, has_trees), own, numbers in zip(
        program, trees, scalars, strict=True
    ):
        before = [_widen(x, dtype) for x in own]
        values = [wide, *([cast(param, dtype)] if needs_params and param is not None else [])]
        out = kernel(*options, *values, *before, *numbers)
        wide, *after = out if has_trees else (out,)
        results.append(tuple(cast(new, x.dtype) for new, x in zip(after, own, strict=True)))
    return wide, tuple(results)


def _widen(x: Array, dtype: np.dtype) -> Array:
    if is_complex(x):
        return cast(x, dtype)
    return cast(x, real_dtype(dtype)) if jnp.issubdtype(x.dtype, jnp.floating) else x
