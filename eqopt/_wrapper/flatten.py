"""All parameters as one vector for each dtype."""

import math
from typing import Any, Generic

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

from .._base import checks
from .._base.arithmetic import cast, wider
from .._base.ravel import cut
from .._base.trees import placed_like, replicated
from .._base.types import Params, State, Updates
from .._objective.objective import Context
from .._transformation.base import AbstractTransformation, check_state, check_transformation
from .._transformation.eval_params import AbstractEvalState
from .._transformation.nesting import refuse_selectors
from .._transformation.reparametrization import (
    AbstractReparametrization,
    eval_params_in,
    init_in,
    transform_in,
)


class _Vectors(eqx.Module):
    """Concatenates the leaves of a tree, with one vector for each dtype."""

    vectors: tuple[Array | None, ...]


class _Layout(AbstractReparametrization):
    """Where in the vectors each leaf is. Static.

    **Arguments:**

    - `shapes`: the shape of each leaf of the parameters, in order; `None` where there is none.
    - `groups`: for each leaf, the number of its vector; there is one vector for each dtype.
    """

    shapes: tuple[tuple[int, ...] | None, ...] = eqx.field(static=True)
    groups: tuple[int, ...] = eqx.field(static=True)

    def pack(self, tree: PyTree) -> _Vectors:
        leaves, _ = checks.flatten(tree)
        parts: list[list[object]] = [[] for _ in range(self.num_vectors)]
        for x, shape, group in zip(leaves, self.shapes, self.groups, strict=True):
            if shape is not None:
                # Reshaping gathers a sharded array; in explicit mode this must be stated.
                size = math.prod(shape)
                parts[group].append(size if x is None else lax.reshape(replicated(x), (size,)))
        return _Vectors(tuple(map(_joined, parts)))

    def unpack(self, packed: _Vectors, like: PyTree) -> PyTree:
        references, treedef = checks.flatten(like)
        shapes: list[list[tuple[int, ...]]] = [[] for _ in range(self.num_vectors)]
        for shape, group in zip(self.shapes, self.groups, strict=True):
            if shape is not None:
                shapes[group].append(shape)
        parts = [
            iter([None] * len(own) if vector is None else cut(vector, own))
            for vector, own in zip(packed.vectors, shapes, strict=True)
        ]
        leaves: list[Array | None] = [None] * len(references)
        for i, (reference, group) in enumerate(zip(references, self.groups, strict=True)):
            part = next(parts[group]) if group >= 0 else None
            if reference is not None and part is not None:
                leaves[i] = placed_like(part, reference)
        return treedef.unflatten(leaves)

    @property
    def num_vectors(self) -> int:
        return max(self.groups, default=-1) + 1

    def missing(self, tree: PyTree) -> list[np.ndarray]:
        """For each vector, where the tree has no leaf."""
        leaves, _ = checks.flatten(tree)
        parts: list[list[np.ndarray]] = [[] for _ in range(self.num_vectors)]
        for x, shape, group in zip(leaves, self.shapes, self.groups, strict=True):
            if shape is not None:
                parts[group].append(np.full(math.prod(shape), x is None))
        return [np.concatenate(xs) for xs in parts]


def _layout(params: Params) -> _Layout:
    leaves, _ = checks.flatten(params)
    dtypes = list(dict.fromkeys(x.dtype.name for x in leaves if x is not None))
    return _Layout(
        tuple(None if x is None else x.shape for x in leaves),
        tuple(-1 if x is None else dtypes.index(x.dtype.name) for x in leaves),
    )


def _joined(parts: list[Any]) -> Array | None:
    """Concatenates vectors. An integer stands for so many zeros.

    If there are only integers, the result is `None`.
    """
    known = [x for x in parts if not isinstance(x, int)]
    if not known:
        return None
    # An earlier link may have made some leaves wider than others.
    dtypes = {x.dtype for x in known}
    dtype = dtypes.pop() if len(dtypes) == 1 else wider(*dtypes)
    zero = lax.full_like(known[0], 0, dtype, ())
    wide = [lax.broadcast(zero, (x,)) if isinstance(x, int) else cast(x, dtype) for x in parts]
    return lax.concatenate(wide, 0)


class FlattenState(AbstractEvalState, Generic[State]):
    """The state of [`eqopt.Flatten`][].

    **Arguments:**

    - `inner_state`: the state of the inner transformation, which sees vectors.
    - `layout`: where in the vectors each parameter is. Static.
    """

    inner_state: State
    layout: _Layout

    def eval_params(self, params: Params) -> Params:
        return eval_params_in(self.layout, params, self.inner_state)


class Flatten(AbstractTransformation[FlattenState[State]], Generic[State]):
    """Applies a transformation to all parameters as one long vector for each dtype.

    The updates are split into leaves again. An elementwise transformation gives the same result as
    without the wrapper; if there are many small parameters, its program is shorter.

    The gradient `grad` and extra arguments that are trees of inexact arrays like the parameters are
    given to `inner` as such vectors too, and the objective `value_fn` as a function of them.

    !!! warning
        Inside, all parameters are vectors, without paths and without dimensions. Transformations
        that need paths or dimensions, such as weight decay with a mask, belong outside:
        `Chain(Flatten(ScaleByAdam()), AddDecayedWeights(0.1, mask), ...)`.

    The state of a parameter without a gradient stays as it is.

    A part of the state is as large as all parameters of its dtype. In explicit sharding mode every
    device holds all of it.

    A line search inside works, but its cache is about vectors, so `step` evaluates the objective
    again. Outside, in a chain with the wrapper, the search saves that evaluation.

    **Arguments:**

    - `inner`: the transformation.

    Raises a `ValueError` if the state was made for other parameters.
    """

    inner: AbstractTransformation[State]

    def __check_init__(self) -> None:
        check_transformation("inner", self.inner)
        why = "here they are vectors, without paths and dimensions. Put it around"
        refuse_selectors(self, self.inner, why)

    def init_state(self, params: Params, context: Context) -> FlattenState[State]:
        layout = _layout(params)
        return FlattenState(init_in(layout, self.inner, params, context), layout)

    def transform(
        self, updates: Updates, state: FlattenState[State], params: Params | None, context: Context
    ) -> tuple[Updates, FlattenState[State]]:
        check_state(self.inner, state.inner_state, "state.inner_state")
        layout = state.layout
        _check_fits(layout, updates)
        out, inner_state = transform_in(
            layout, self.inner, updates, state.inner_state, params, context
        )
        masks = layout.missing(updates)
        if any(mask.any() for mask in masks):
            inner_state = _kept(state.inner_state, inner_state, masks)
        return out, FlattenState(inner_state, layout)


def _check_fits(layout: _Layout, updates: Updates) -> None:
    leaves, _ = checks.flatten(updates)
    checks.check_num_leaves(leaves, len(layout.shapes), "updates")
    wrong = [
        i
        for i, (x, shape) in enumerate(zip(leaves, layout.shapes, strict=True))
        if x is not None and x.shape != shape
    ]
    if wrong:
        names = checks.paths("updates", updates)
        faults = [
            f"`{names[i]}` has shape {leaves[i].shape}; `state` was made for {layout.shapes[i]}"
            for i in wrong
        ]
        raise ValueError(checks.listed(faults))


def _kept(before: State, after: State, missing: list[np.ndarray]) -> State:
    """The state after a step, unchanged for parameters without a gradient."""

    def keep(old: Any, new: Any) -> Any:
        if not isinstance(new, _Vectors):
            return new
        pairs = zip(old.vectors, new.vectors, missing, strict=True)
        return _Vectors(tuple(_where(mask, x, y) for x, y, mask in pairs))

    return jax.tree.map(keep, before, after, is_leaf=lambda x: isinstance(x, _Vectors))


def _where(mask: np.ndarray, old: Any, new: Any) -> Any:
    if new is None or new.shape[-1:] != mask.shape:  # something smaller, such as a norm
        return new
    return jnp.where(jnp.broadcast_to(mask, new.shape), old, new)
