"""Changes hyper-parameters of an optimizer, by name."""

import abc
import dataclasses
import typing
from typing import Any, TypeVar

import equinox as eqx
import jax
import numpy as np

from .._base import checks
from .._base.converters import real
from .._base.types import Scalar, Steps
from .._schedule.base import AbstractSchedule, Constant
from .._transformation.base import AbstractTransformation, AnyTransformation
from .._wrapper.scheduled import Scheduled

_Path = tuple[object, ...]
_Transformation = TypeVar("_Transformation", bound=AnyTransformation)
_NUMERIC = {*typing.get_args(Scalar), *typing.get_args(Steps)}


class AbstractOverridable(eqx.Module):
    """A transformation with its own way to override its hyper-parameters."""

    @abc.abstractmethod
    def override(self, changes: dict[str, Any]) -> AnyTransformation:
        """Returns the transformation with other hyper-parameters, in the same form.

        **Arguments:**

        - `changes`: the new values by name.
        """


@dataclasses.dataclass(frozen=True)
class _Slot:
    """Where a hyper-parameter is kept."""

    name: str  # as `hyperparameters` has it
    path: _Path
    field: dataclasses.Field[Any]
    schedules: tuple[_Path, ...] = ()  # of each `Scheduled` that would set it
    holds_scheduled: bool = False  # it is a schedule, and a `Scheduled` sets a number in it


def override(transformation: _Transformation, changes: dict[str, Any]) -> _Transformation:
    """Returns a transformation with other numeric hyper-parameters; states stay as they are.

    A name is a key of `hyperparameters`, or only the last part of a key.
    """
    if not changes:
        return transformation
    if isinstance(transformation, AbstractOverridable):
        changed: Any = transformation.override(changes)
        return changed
    slots = _slots(transformation, "", ())
    new: dict[_Path, Any] = {}
    for name, value in changes.items():
        slot = _find(transformation, slots, name)
        if slot.path in new:
            raise TypeError(f"`{slot.name}` is given twice")
        if slot.holds_scheduled:
            raise TypeError(f"`{name}` is a schedule, and `Scheduled` sets one of its numbers")
        new[slot.path] = _converted(slot, name, value)
        new.update({path: Constant(new[slot.path]) for path in slot.schedules})
    found, treedef = jax.tree_util.tree_flatten_with_path(
        transformation, is_leaf=lambda x: x is None or isinstance(x, AbstractSchedule)
    )
    return treedef.unflatten([new.get(path, x) for path, x in found])


def _slots(transformation: AnyTransformation, name: str, path: _Path) -> list[_Slot]:
    if isinstance(transformation, Scheduled):
        return _scheduled(transformation, name, path)
    # Modules are flattened by field, so the first key tells to which field a value belongs.
    fields = {x.name: x for x in dataclasses.fields(transformation)}
    found, _ = jax.tree_util.tree_flatten_with_path(
        transformation, is_leaf=lambda x: x is not transformation and _is_value(x)
    )
    slots: list[_Slot] = []
    for own, x in found:
        full = name + jax.tree_util.keystr(own)
        if isinstance(x, AbstractTransformation):
            slots += _slots(x, full, path + own)
        elif len(own) == 1 and _is_numeric(fields[own[0].name], x):
            slots.append(_Slot(full.lstrip("."), path + own, fields[own[0].name]))
    return slots


def _scheduled(scheduled: Scheduled[Any], name: str, path: _Path) -> list[_Slot]:
    # By their inner names, as in `hyperparameters`.
    inside = (*path, jax.tree_util.GetAttrKey("inner"))
    leaves, treedef = jax.tree_util.tree_flatten_with_path(scheduled.inner)
    marked = scheduled.where(treedef.unflatten([_Mark(own) for own, _ in leaves]))
    target = (*inside, *marked.path) if isinstance(marked, _Mark) else ()
    schedule = (*path, jax.tree_util.GetAttrKey("schedule"))
    slots: list[_Slot] = []
    for slot in _slots(scheduled.inner, name, inside):
        if slot.path == target:
            slot = dataclasses.replace(slot, schedules=(*slot.schedules, schedule))
        elif slot.path == target[: len(slot.path)]:
            slot = dataclasses.replace(slot, holds_scheduled=True)
        slots.append(slot)
    return slots


class _Mark:
    """A leaf that knows its path."""

    def __init__(self, path: _Path) -> None:
        self.path = path


def _is_value(x: object) -> bool:
    return x is None or isinstance(x, AbstractTransformation | AbstractSchedule)


def _is_numeric(field: dataclasses.Field[Any], x: object) -> bool:
    if x is None:  # `None` now, but may be given
        return not _NUMERIC.isdisjoint(typing.get_args(field.type))
    return isinstance(x, AbstractSchedule) or _is_number(x)


def _is_number(x: object) -> bool:
    return isinstance(x, (*checks.ARRAYS, int, float)) and not isinstance(x, bool | np.bool_)


def _find(transformation: AnyTransformation, slots: list[_Slot], name: str) -> _Slot:
    exact = [x for x in slots if x.name == name]
    found = exact or [x for x in slots if x.name.rsplit(".", 1)[-1] == name]
    if len(found) == 1:
        return found[0]
    kind = type(transformation).__name__
    if found:
        raise TypeError(
            f"`{kind}` has {len(found)} hyper-parameters `{name}`: {_listed(found)}. Give the "
            "whole name of one, as a key: `**{" + repr(found[0].name) + ": ...}`"
        )
    raise TypeError(
        f"`{kind}` has no numeric hyper-parameter `{name}`; it has {_listed(slots) or 'none'}"
    )


def _listed(slots: list[_Slot]) -> str:
    return ", ".join(f"`{x.name}`" for x in slots)


def _converted(slot: _Slot, name: str, value: object) -> Any:
    if not _is_number(value):
        raise TypeError(f"`{name}` must be a number; got {checks.describe(value)}")
    return slot.field.metadata.get("converter", real(slot.field.name))(value)
