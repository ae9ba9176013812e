"""Building one Module from the fields of another."""

import dataclasses
from typing import TypeVar

import equinox as eqx

_Module = TypeVar("_Module", bound=eqx.Module)


def from_fields(cls: type[_Module], source: eqx.Module, **others: object) -> _Module:
    """Builds a link from an optimizer: every field is the optimizer's field of the same name.

    No field of the link keeps its default: if the optimizer lacks a field, and `others` too, that
    is an error.

    **Arguments:**

    - `cls`: the class of the link.
    - `source`: the optimizer.
    - `**others`: the fields of the link that are not fields of the optimizer.
    """
    fields = [f.name for f in dataclasses.fields(cls) if f.init]
    return cls(**{x: others[x] if x in others else getattr(source, x) for x in fields})
