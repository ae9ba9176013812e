"""Values by selector.

A dictionary of selectors cannot be a part of a Module: JAX sorts its keys. So it is kept as two
tuples.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import equinox as eqx
from jaxtyping import PyTree

from .._base import checks
from .._base.converters import real
from ._selector import AbstractSelector

_Value = TypeVar("_Value")


def first_choices(selectors: Sequence[AbstractSelector], params: PyTree) -> list[int]:
    """The place of the first selector that chooses each leaf; their number where none does."""
    leaves, _ = checks.flatten(params)
    found = [len(selectors)] * len(leaves)
    for i in reversed(range(len(selectors))):
        chosen, _ = checks.flatten(selectors[i].select(params))
        found = [i if c else x for x, c in zip(found, chosen, strict=True)]
    return found


def only_selectors(name: str, rules: Mapping[Any, Any], *, rest: bool = True) -> None:
    """Refuses other keys than selectors and, with `rest`, `...`."""
    for key in rules:
        if not (isinstance(key, AbstractSelector) or (rest and key is ...)):
            kinds = "selectors and `...`" if rest else "selectors"
            raise TypeError(
                f"the keys of {name} are {kinds}, such as `eqopt.ByPath('**.bias')`; got {key!r}"
            )


def _values(values: tuple[Any, ...]) -> tuple[Any, ...]:
    number = real("values")
    return tuple(x if isinstance(x, eqx.Module) else number(x) for x in values)


class Table(eqx.Module, Generic[_Value]):
    """A value for each selector, and possibly one more, for parameters that none chooses."""

    selectors: tuple[AbstractSelector, ...]
    # Numbers are converted here too, since a changed one comes back to its own field's converter.
    values: tuple[_Value, ...] = eqx.field(converter=_values)

    def groups(self, params: PyTree) -> Iterator[tuple[_Value, PyTree[bool]]]:
        """Each value that some parameter has, with the mask of these parameters."""
        _, treedef = checks.flatten(params)
        places = first_choices(self.selectors, params)
        for i, value in enumerate(self.values):
            if i in places:
                yield value, treedef.unflatten([x == i for x in places])


def as_table(
    name: str, what: str, convert: Callable[[Any], _Value], value: object, *, rest: bool = False
) -> Table[_Value]:
    """Makes a table of a dictionary; a `TypeError` for anything else.

    **Arguments:**

    - `name`, `what`: the argument's name, and what its values are called, for messages.
    - `convert`: converts a value.
    - `value`: the dictionary, or a table.
    - `rest`: whether a key may be `...`, for all other parameters.
    """
    if isinstance(value, Table):
        return value
    if not isinstance(value, Mapping):
        raise TypeError(
            f"`{name}` must be a dictionary of {what} by selector; got {checks.describe(value)}"
        )
    rows: Mapping[Any, Any] = value
    only_selectors(f"`{name}`", rows, rest=rest)
    selectors = tuple(key for key in rows if key is not ...)
    keys = (*selectors, ...) if ... in rows else selectors
    return Table(selectors, tuple(convert(rows[key]) for key in keys))
