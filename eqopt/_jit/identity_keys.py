"""Keys for what is not known by what is in it."""

import types
import weakref
from collections.abc import Hashable
from typing import Any

import jax

from .bytecode import uses


class Identity:
    """An array as part of a key. It is not kept alive, and once dead equals nothing."""

    def __init__(self, array: Any) -> None:
        self.ref, self.hash = weakref.ref(array), id(array)

    def __eq__(self, other: object) -> bool:
        mine = self.ref()
        return isinstance(other, Identity) and mine is not None and mine is other.ref()

    def __hash__(self) -> int:
        return self.hash


class Same:
    """Something of which only matters which one it is."""

    def __init__(self, x: Any) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.x is other.x

    def __hash__(self) -> int:
        return id(self.x)


class Place:
    """A cell that a callback uses: this one, or one that holds the same and always will."""

    def __init__(self, cell: types.CellType, stored: bool, inside: frozenset[int]) -> None:
        self.cell, self.stored, self.inside = cell, stored, inside

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Place):
            return False
        return self.cell is other.cell or (
            not (self.stored or other.stored) and self.content() == other.content()
        )

    def __hash__(self) -> int:
        return 0

    def content(self) -> Hashable:
        try:
            return place(self.cell.cell_contents, self.inside)
        except ValueError:  # not assigned yet
            return self


def place(x: Any, inside: frozenset[int] = frozenset()) -> Hashable:
    """What a value is known by if only a callback uses it: where to find it, when it changes.

    **Arguments:**

    - `x`: the value.
    - `inside`: the functions, by id, in whose closures it has been found.
    """
    if isinstance(x, jax.Array):
        return Identity(x)
    if isinstance(x, bool | int | float | complex | str | bytes | type(None)):
        return type(x), repr(x)
    if isinstance(x, types.FunctionType) and id(x) not in inside:
        code, inside = x.__code__, inside | {id(x)}
        cells = zip(code.co_freevars, x.__closure__ or (), strict=True)
        places = tuple(Place(cell, name in uses(code).stored, inside) for name, cell in cells)
        defaults = tuple(place(y, inside) for y in x.__defaults__ or ())
        return code, id(x.__globals__), places, defaults
    return Same(x)
