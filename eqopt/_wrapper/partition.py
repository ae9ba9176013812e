"""A transformation for each group of parameters."""

import abc
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeAlias

import equinox as eqx
from jaxtyping import PyTree

from .._base import checks
from .._base.converters import flag
from .._base.types import Function, Params, TreeDef, Updates
from .._objective.objective import Context
from .._transformation.base import (
    AbstractTransformation,
    AnyTransformation,
    check_state,
    check_transformation,
)
from .._transformation.masking import Chosen, first_change, hide, narrow, transform_part
from ..selectors._selector import AbstractSelector
from ..selectors._table import first_choices, only_selectors

Label: TypeAlias = Hashable


class PartitionState(eqx.Module):
    """The state of [`eqopt.Partition`][].

    **Arguments:**

    - `inner_states`: the states of the transformations by label, with `None` for the parameters of
        other groups.
    - `labels`: the label of each leaf of the parameters, in order; `None` where there is no
        parameter. Static.
    """

    inner_states: dict[Any, Any]
    labels: tuple[Label, ...] = eqx.field(static=True)


class Partition(AbstractTransformation[PartitionState]):
    """Applies a separate transformation to each group of parameters.

    Groups are given by labels, or by selectors, where the first that chooses a parameter decides:

    ```python
    import eqopt
    from eqopt import ByNdim, ByPath

    opt = eqopt.Partition({"w": eqopt.AdamW(1e-3), "b": eqopt.SGD(0.1)}, {"w": "w", "b": "b"})
    opt = eqopt.Partition({ByPath("**.bias"): eqopt.SGD(0.1), ...: eqopt.AdamW(1e-3)})
    opt = eqopt.Partition(
        {"vectors": eqopt.SGD(0.1), "rest": eqopt.AdamW(1e-3)},
        {ByNdim(0, 1): "vectors", ...: "rest"},
    )
    ```

    Each transformation sees `None` for the parameters of other groups; an objective, in `value_fn`,
    is still called with all of them.

    **Arguments:**

    - `transforms`: the transformations by label. Without `param_labels`, by selector, with `...`
        for parameters that no selector chooses; their labels are then 0, 1, ..., in order.
    - `param_labels`: the label of each parameter: a tree of labels, possibly a prefix (also a
        Module that holds labels, callable or not); a function from the parameters to such a tree;
        labels by selector, with `...` for parameters that no selector chooses; or a selector, for
        the labels `True` and `False`. They must be the same at each step.
    - `mask_compatible_extra_args`: whether each transformation sees only its own group of extra
        arguments that are trees like the parameters.

    Raises a `ValueError` that names the parameters for which there is no transformation, or that
    are in another group than in `init`.
    """

    transforms: dict[Any, AnyTransformation]
    param_labels: "_AbstractLabels"
    mask_compatible_extra_args: bool = eqx.field(static=True)

    def __init__(
        self,
        transforms: Mapping[Any, AnyTransformation],
        param_labels: PyTree | Function | None = None,
        mask_compatible_extra_args: bool = False,
    ) -> None:
        if not isinstance(transforms, Mapping):
            raise TypeError(
                "`transforms` must be a dictionary of transformations by label or by selector; got "
                f"{checks.describe(transforms)}"
            )
        for key, transform in transforms.items():
            check_transformation(f"transforms[{_shown(key)}]", transform)
        if param_labels is None:
            only_selectors("`transforms` without `param_labels`", transforms)
            param_labels = {key: i for i, key in enumerate(transforms)}
            transforms = dict(enumerate(transforms.values()))
        elif by_selector := [key for key in transforms if _is_rule(key)]:
            raise TypeError(
                f"with `param_labels`, `transforms` has labels, not {_shown(by_selector[0])}"
            )
        _check_sortable(transforms)
        self.transforms = dict(transforms)
        self.param_labels = _as_labels(param_labels)
        self.mask_compatible_extra_args = flag("mask_compatible_extra_args")(
            mask_compatible_extra_args
        )

    def init_state(self, params: Params, context: Context) -> PartitionState:
        labels = self._resolved(params)
        inner_states: dict[Any, Any] = {}
        for label, transform in self.transforms.items():
            chosen = _group(labels, label)
            inside = narrow(context, params, chosen)
            inner_states[label] = transform.init_state(hide(params, chosen), inside)
        return PartitionState(inner_states, labels)

    def transform(
        self, updates: Updates, state: PartitionState, params: Params | None, context: Context
    ) -> tuple[Updates, PartitionState]:
        self._check_state(state)
        changed = first_change(state.labels, self._resolved, updates, params)
        if changed is not None:
            path, then, now = changed
            raise ValueError(
                f"`Partition` has other groups than those that its state was made for: `{path}` "
                f"was in group {_shown(then)}, and is in {_shown(now)}. Make the state anew by "
                "`init`"
            )
        inner_states: dict[Any, Any] = {}
        for label, transform in self.transforms.items():
            updates, inner_states[label] = transform_part(
                transform,
                _group(state.labels, label),
                updates,
                state.inner_states[label],
                params,
                context,
                mask_extra=self.mask_compatible_extra_args,
            )
        return updates, PartitionState(inner_states, state.labels)

    def reset(
        self,
        state: PartitionState,
        params: PyTree,
        label: Label,
        *,
        value_fn: Function | None = None,
        args: tuple[object, ...] = (),
        has_aux: bool = False,
    ) -> PartitionState:
        """Returns the state with a new state for one group; the other groups keep theirs.

        All states are made again, and those of the other groups are dropped; within a compiled
        function that costs nothing.

        **Arguments:**

        - `state`: the state.
        - `params`: the model.
        - `label`: the group's label; for transformations by selector, its number.
        - `value_fn`, `args`, `has_aux`: as given to `init`.

        **Returns:**

        The new state.

        **Raises:**

        A `ValueError` if there is no such group, or if the parameters are not those of the state.
        """
        if label not in self.transforms:
            raise ValueError(
                f"there is no group {_shown(label)}; there are {_listed(self.transforms)}"
            )
        check_state(self, state, "state")
        self._check_state(state)
        fresh = self.init(params, value_fn=value_fn, args=args, has_aux=has_aux)
        old, new = state.inner_states[label], fresh.inner_states[label]
        if fresh.labels != state.labels or not checks.like(new, old):
            raise ValueError(
                "`state` was made for other parameters, or by `init` with other `value_fn`, `args` "
                "or `has_aux`"
            )
        return PartitionState({**state.inner_states, label: new}, state.labels)

    def _resolved(self, params: Params) -> tuple[Label, ...]:
        leaves, _ = checks.flatten(params)
        labels = self.param_labels.resolve(params)
        faults: list[str] = []
        names = checks.paths("params", params)
        for name, x, label in zip(names, leaves, labels, strict=True):
            if x is None or label in self.transforms:
                continue
            had = "no label" if label is None else f"the label {_shown(label)}"
            faults.append(f"`{name}` has {had}")
        if faults:
            there = f"there are transformations for {_listed(self.transforms) or 'nothing'}"
            if isinstance(self.param_labels, _SelectedLabels):
                there += "; `...` stands for what no selector chooses"
            raise ValueError(f"{checks.listed(faults)}\n{there}")
        return tuple(None if x is None else label for x, label in zip(leaves, labels, strict=True))

    def _check_state(self, state: PartitionState) -> None:
        if state.inner_states.keys() != self.transforms.keys():
            raise ValueError(
                f"`state.inner_states` is of the groups {_listed(state.inner_states)}; there are "
                f"transformations for {_listed(self.transforms)}"
            )
        for label, transform in self.transforms.items():
            name = f"state.inner_states[{_shown(label)}]"
            check_state(transform, state.inner_states[label], name)


def _group(labels: tuple[Label, ...], label: Label) -> Chosen:
    return tuple(x is not None and x == label for x in labels)


def _shown(label: object) -> str:
    return "..." if label is ... else repr(label)


def _listed(labels: Mapping[Any, Any]) -> str:
    return ", ".join(map(_shown, sorted(labels)))


def _check_sortable(transforms: Mapping[Any, Any]) -> None:
    if None in transforms:
        raise TypeError("`None` cannot be a label: it stands for no label")
    try:
        sorted(transforms)
    except TypeError:
        raise TypeError(
            "labels must be all strings, or all numbers; got " + ", ".join(map(_shown, transforms))
        ) from None


# Labels


class _AbstractLabels(eqx.Module):
    """Gives each parameter a label. Static."""

    @abc.abstractmethod
    def resolve(self, params: Params) -> list[Label]:
        """The label of each leaf, in order; `None` where there is none."""


class _TreeLabels(_AbstractLabels):
    # Kept flat and static, like the booleans of `TreeSelector`.
    labels: tuple[Label, ...] = eqx.field(static=True)
    structure: TreeDef = eqx.field(static=True)

    def __reduce__(self) -> tuple[object, ...]:
        # Through the tree: the structure of a Module cannot be copied on its own.
        return _tree_labels, (self.structure.unflatten(self.labels),)

    def resolve(self, params: Params) -> list[Label]:
        return _spread(self.structure.unflatten(self.labels), params)


class _FunctionLabels(_AbstractLabels):
    function: Callable[[Any], Any] = eqx.field(static=True)

    def resolve(self, params: Params) -> list[Label]:
        return _spread(self.function(params), params)


class _SelectedLabels(_AbstractLabels):
    selectors: tuple[AbstractSelector, ...]
    labels: tuple[Label, ...] = eqx.field(static=True)
    default: Label = eqx.field(static=True)

    def resolve(self, params: Params) -> list[Label]:
        labels = (*self.labels, self.default)
        return [labels[i] for i in first_choices(self.selectors, params)]


def _as_labels(labels: object) -> _AbstractLabels:
    if isinstance(labels, _AbstractLabels):
        return labels
    if isinstance(labels, AbstractSelector):
        return _SelectedLabels((labels,), (True,), False)
    if isinstance(labels, Mapping) and any(map(_is_rule, labels)):
        only_selectors("`param_labels`", labels)
        rules = {key: x for key, x in labels.items() if key is not ...}
        return _SelectedLabels(tuple(rules), tuple(rules.values()), labels.get(...))
    if checks.is_function(labels):
        function: Any = labels
        return _FunctionLabels(function)
    return _tree_labels(labels)


def _tree_labels(labels: object) -> _TreeLabels:
    leaves, structure = checks.flatten(labels)
    return _TreeLabels(tuple(map(_label, leaves)), structure)


def _is_rule(key: object) -> bool:
    return key is ... or isinstance(key, AbstractSelector)


def _label(x: object) -> Label:
    # A tree of labels made by mapping over a whole model may still hold arrays and functions: in
    # the place of a parameter these are not labels.
    return None if checks.is_array(x) or not isinstance(x, Hashable) else x


def _spread(labels: PyTree, params: Params) -> list[Label]:
    """Extends a prefix tree of labels to all leaves."""
    return [_label(x) for x in checks.spread_prefix(labels, params, "param_labels")]
