"""Which transformations make no sense inside which wrappers."""

import abc
import enum
from collections.abc import Iterator, Mapping

import jax

from .._base.rebuilding import is_rebuilding
from .._base.types import State
from ..selectors._selector import AbstractSelector
from .base import AbstractTransformation, AnyTransformation, children, composed


class Requirement(enum.Enum):
    """What a transformation requires from the transformations around it."""

    MOVES = "takes it that the parameters move by its updates, and by nothing else"
    EXACT = "takes it that the parameters are, to the last bit, what its updates make of them"
    LANDS = "takes it that the parameters are in the place that it has chosen for them"
    EVALUATED = "has parameters of its own to evaluate with"
    POINT = "takes gradients at a place of its own choice"
    GRADIENT = "takes gradients by itself, which nothing before it would see"
    OBJECTIVE = "evaluates the objective, which must be the one that its gradient is of"
    STEP = "finds a step that is good as it is"
    REST = "collects gradients at one place, where the parameters are to rest meanwhile"


class AbstractConstrained(AbstractTransformation[State]):
    """A transformation that makes no sense inside some wrappers."""

    @abc.abstractmethod
    def requirements(self) -> frozenset[Requirement]:
        """Its requirements."""


def check_nesting(
    owner: AnyTransformation,
    inner: AnyTransformation,
    broken: Mapping[Requirement, str],
    *,
    of_a_part: bool = True,
) -> None:
    """Refuses, when a wrapper is built, an inner transformation that makes no sense inside it.

    **Arguments:**

    - `owner`: the wrapper.
    - `inner`: the transformation inside it.
    - `broken`: the requirements that the wrapper breaks, each with the reason.
    - `of_a_part`: whether to look into transformations of a part of the parameters.
    """
    for part in parts_of(inner, of_a_part=of_a_part):
        if isinstance(part, AbstractConstrained):
            unmet = [need for need in broken if need in part.requirements()]
            if unmet:
                raise _senseless(owner, part, unmet[0].value, broken[unmet[0]])


def requirements_within(transformation: AnyTransformation) -> frozenset[Requirement]:
    """The requirements of a transformation and of those inside it."""
    parts = _parts(transformation, True)
    return frozenset().union(
        *(x.requirements() for x in parts if isinstance(x, AbstractConstrained))
    )


def refuse_selectors(owner: AnyTransformation, inner: AnyTransformation, why: str) -> None:
    """Refuses a selector inside a wrapper that changes the form of the parameters."""
    for part in parts_of(inner):
        if _selects(part):
            raise _senseless(owner, part, "chooses parameters as they are in the model", why)


def _senseless(
    owner: AnyTransformation, part: AnyTransformation, does: str, why: str
) -> ValueError:
    inside, outside = type(part).__name__, type(owner).__name__
    return ValueError(f"`{inside}` within `{outside}` makes no sense: `{inside}` {does}; {why}")


def parts_of(inner: AnyTransformation, *, of_a_part: bool = True) -> Iterator[AnyTransformation]:
    """A transformation and all inside it, when a wrapper is built; none when it is rebuilt."""
    yield from () if is_rebuilding() else _parts(inner, of_a_part)


def _parts(transformation: AnyTransformation, of_a_part: bool) -> Iterator[AnyTransformation]:
    """A transformation, and all transformations inside it."""
    yield transformation
    within = composed(transformation)
    if within is not transformation:
        yield from _parts(within, of_a_part)
    elif of_a_part or not _selects(transformation):
        for child in children(transformation).values():
            yield from _parts(child, of_a_part)


def _selects(transformation: AnyTransformation) -> bool:
    """Whether the transformation itself holds a selector, not only one inside it."""

    def is_leaf(x: object) -> bool:
        inner = x is not transformation and isinstance(x, AbstractTransformation)
        return inner or isinstance(x, AbstractSelector)

    leaves = jax.tree.leaves(transformation, is_leaf=is_leaf)
    return any(isinstance(x, AbstractSelector) for x in leaves)
