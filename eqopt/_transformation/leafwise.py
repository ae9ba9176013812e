"""Runs rules that do the same to every leaf, written as a kernel from arrays to arrays.

In: a list of rules, the updates and the parameters. Out: the new updates and each rule's new state.
It exists because a model may have a thousand leaves, and tracing is slow: a kernel is written for
one leaf, and traced once for each distinct shape and dtype. Kernels of successive links are fused:
a leaf passes all of them in one call, in the wide dtype, and is rounded once, at the front door.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .._base import checks
from .._base.arithmetic import cast, is_complex, real_dtype, wider
from .._base.trace_sharing import bundle_by_kind
from .._base.types import Function, Leaves, TreeDef


@dataclasses.dataclass(frozen=True)
class Rule:
    """What one step of a leafwise transformation does to each leaf.

    **Arguments:**

    - `kernel`: a module-level function `kernel(update, *trees, *scalars)` that returns the new
        update, or `(update, *trees)` if there are trees; with `needs_params`,
        `kernel(update, param, *trees, *scalars)`. Its arrays arrive in one dtype, at least
        float32; what it returns for the trees is cast back to the dtype they are kept in.
    - `state`: the state after the step, except for the trees.
    - `trees`: names of the fields of `state` that hold one array for each parameter.
    - `scalars`: numbers of this step (rates, bias corrections), computed once for all leaves.
    - `needs_params`: whether the kernel takes the parameter.
    - `options`: hashable objects that the kernel takes first, before the update.
    - `mask`: a tree of Python booleans like the parameters, or `None`; where it is `False`, the
        rule leaves the update and its trees as they are.
    - `shapes`: maps a parameter's shape to the shapes of its arrays in `trees`, with `None` for a
        missing array; `None` if all arrays have the parameter's shape.
    """

    kernel: Function
    state: eqx.Module
    trees: tuple[str, ...] = ()
    scalars: tuple[object, ...] = ()
    needs_params: bool = False
    options: tuple[object, ...] = ()
    mask: PyTree | None = None
    shapes: Callable[[tuple[int, ...]], tuple[tuple[int, ...] | None, ...]] | None = None

    @property
    def program(self) -> tuple[Function, tuple[object, ...], bool, bool]:
        """The static part of the rule."""
        return self.kernel, self.options, self.needs_params, bool(self.trees)


# The static part of the rules of one leaf: kernel, options, needs_params, whether there are trees.
_Program = tuple[tuple[Function, tuple[object, ...], bool, bool], ...]
# One leaf's update, parameter, and arrays in each rule's trees; and the new update and arrays.
_Leaf = tuple[Array, Array | None, tuple[tuple[Array | None, ...], ...]]
_Result = tuple[Array, tuple[tuple[Array | None, ...], ...]]
# One leaf's program, the dtype it runs in, and the index of its tuple of scalars.
_Spec = tuple[_Program, np.dtype, int]


@dataclasses.dataclass
class _Kind:
    """Leaves of one shape and dtype to which the same rules apply: they share one trace."""

    rules: tuple[int, ...]
    needs_param: bool
    spec: _Spec


def run(rules: Sequence[Rule], updates: PyTree, params: PyTree | None) -> tuple[PyTree, Leaves]:
    """Applies the rules to each leaf, one after the other; returns the updates and the states.

    A leaf whose update is `None` is skipped: its update and its state stay as they are.
    """
    leaves, treedef = checks.flatten(updates)
    param_leaves = leaves if params is None else treedef.flatten_up_to(params)
    columns = [
        [_column(rule, name, updates, leaves, treedef) for name in rule.trees] for rule in rules
    ]
    masks = [None if r.mask is None else treedef.flatten_up_to(r.mask) for r in rules]

    programs = [rule.program for rule in rules]
    scalars: dict[object, tuple[tuple[Array, ...], ...]] = {}
    kinds: dict[object, _Kind] = {}
    places: list[int] = []
    keys: list[object] = []
    for i, leaf in enumerate(leaves):
        if leaf is None:
            continue
        active = tuple([j for j, mask in enumerate(masks) if mask is None or mask[i]])
        if not active:
            continue
        moments = [column[i] for j in active for column in columns[j] if column[i] is not None]
        arrays = [param_leaves[i], *moments]
        # The shapes of the state's arrays, and which are missing, follow from this key.
        key = (active, leaf.shape, leaf.dtype, *[x.dtype for x in arrays])
        if key not in kinds:
            program = tuple([programs[j] for j in active])
            needs_param = True in [rules[j].needs_params for j in active]
            dtype = _compute_dtype([leaf, *arrays[0 if needs_param else 1 :]])
            own = (active, real_dtype(dtype))
            if own not in scalars:
                scalars[own] = tuple([_cast_scalars(rules[j].scalars, own[1]) for j in active])
            kinds[key] = _Kind(active, needs_param, (program, dtype, list(scalars).index(own)))
        places.append(i)
        keys.append(key)

    def take(kind: _Kind, i: int) -> _Leaf:
        param = param_leaves[i] if kind.needs_param else None
        trees = tuple([tuple([column[i] for column in columns[j]]) for j in kind.rules])
        return leaves[i], param, trees

    def put(kind: _Kind, i: int, result: _Result) -> None:
        leaves[i], trees = result
        for j, new in zip(kind.rules, trees, strict=True):
            for column, x in zip(columns[j], new, strict=True):
                column[i] = x

    numbers = tuple(scalars.values())
    bundles, rest = bundle_by_kind(keys)
    for bundle in [*bundles, *[[n] for n in rest]]:
        which = [(kinds[keys[n]], places[n]) for n in bundle]
        specs = tuple([kind.spec for kind, _ in which])
        results = _several(specs, [take(*x) for x in which], numbers)
        for x, result in zip(which, results, strict=True):
            put(*x, result)

    states = [
        dataclasses.replace(
            rule.state,
            **{name: treedef.unflatten(c) for name, c in zip(rule.trees, own, strict=True)},
        )
        for rule, own in zip(rules, columns, strict=True)
    ]
    return treedef.unflatten(leaves), states


def _column(rule: Rule, name: str, updates: PyTree, leaves: Leaves, treedef: TreeDef) -> Leaves:
    """The leaves of one of the state's trees, in the order of the updates' leaves."""
    tree = getattr(rule.state, name)
    found, own_treedef = checks.flatten(tree)
    if own_treedef != treedef:
        raise checks.structure_error(tree, updates, f"state.{name}", "updates")
    if checks.enabled():
        shapes = [None if u is None else u.shape for u in leaves]
        if rule.shapes is not None:
            which = rule.trees.index(name)
            shapes = [None if x is None else rule.shapes(x)[which] for x in shapes]
        wrong = [
            i
            for i, (x, u) in enumerate(zip(found, leaves, strict=True))
            if u is not None and (None if x is None else x.shape) != shapes[i]
        ]
        if wrong:
            names = checks.paths(f"state.{name}", tree)
            faults = [
                f"`{names[i]}` is {checks.describe(found[i])}; the update has shape "
                f"{leaves[i].shape}"
                + ("" if rule.shapes is None else f", so it must be {shapes[i]}")
                for i in wrong
            ]
            raise ValueError(checks.listed(faults))
    return found


def _compute_dtype(arrays: list[Array]) -> np.dtype:
    return wider(*[x.dtype for x in arrays if jnp.issubdtype(x.dtype, jnp.inexact)])


def _cast_scalars(scalars: tuple[object, ...], dtype: np.dtype) -> tuple[Array, ...]:
    return tuple([jnp.asarray(x, dtype) for x in scalars])


@functools.partial(jax.jit, static_argnums=0)
def _several(
    specs: tuple[_Spec, ...],
    leaves: list[_Leaf],
    scalars: tuple[tuple[tuple[Array, ...], ...], ...],
) -> list[_Result]:
    return [
        _one(program, dtype, *leaf, scalars[which])
        for (program, dtype, which), leaf in zip(specs, leaves, strict=True)
    ]


# Inlined: a call of `_several` is enough. It is traced once all the same.
@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _one(
    program: _Program,
    dtype: np.dtype,
    update: Array,
    param: Array | None,
    trees: tuple[tuple[Array | None, ...], ...],
    scalars: tuple[tuple[Array, ...], ...],
) -> _Result:
    wide = cast(update, dtype)
    results = []
    for (kernel, options, needs_params, has_trees), own, numbers in zip(
        program, trees, scalars, strict=True
    ):
        values = [wide, *([cast(param, dtype)] if needs_params and param is not None else [])]
        if not has_trees:
            wide = kernel(*options, *values, *numbers)
            results.append(())
            continue
        before = [None if x is None else _widen(x, dtype) for x in own]
        wide, *after = kernel(*options, *values, *before, *numbers)
        kept = zip(after, own, strict=True)
        results.append(tuple([None if x is None else cast(new, x.dtype) for new, x in kept]))
    return wide, tuple(results)


def _widen(x: Array, dtype: np.dtype) -> Array:
    if is_complex(x):
        return cast(x, dtype)
    return cast(x, real_dtype(dtype)) if jnp.issubdtype(x.dtype, jnp.floating) else x
