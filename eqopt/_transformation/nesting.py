"""Which transformations make no sense within which."""

import abc
import enum
from collections.abc import Iterator, Mapping

import jax

from .._base.types import State
from ..selectors._selector import AbstractSelector
from .base import AbstractOptimizer, AbstractTransformation, AnyTransformation


class Requirement(enum.Enum):
    """What a transformation takes for granted of those around it."""

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
    """A transformation that makes no sense within some others."""

    @abc.abstractmethod
    def requirements(self) -> frozenset[Requirement]:
        """What it needs of those around it."""


def check_nesting(
    owner: AnyTransformation,
    inner: AnyTransformation,
    broken: Mapping[Requirement, str],
    *,
    of_a_part: bool = True,
) -> None:
    """Refuses, when it is built, a wrapper around what makes no sense within it.

    **Arguments:**

    - `owner`: the wrapper.
    - `inner`: what is in it.
    - `broken`: the needs that go unmet there, and why.
    - `of_a_part`: whether to look into what transforms a part of the parameters.
    """
    for part in _parts(inner, of_a_part):
        if isinstance(part, AbstractConstrained):
            unmet = [need for need in broken if need in part.requirements()]
            if unmet:
                raise _senseless(owner, part, unmet[0].value, broken[unmet[0]])


def requirements_within(transformation: AnyTransformation) -> frozenset[Requirement]:
    """What a transformation and those within it need."""
    parts = _parts(transformation, True)
    return frozenset().union(
        *(x.requirements() for x in parts if isinstance(x, AbstractConstrained))
    )


def refuse_selectors(owner: AnyTransformation, inner: AnyTransformation, why: str) -> None:
    """Refuses a wrapper, in which the parameters are not as they were, around what chooses some."""
    for part in _parts(inner, True):
        if _selects(part):
            raise _senseless(owner, part, "chooses parameters as they are in the model", why)


def _senseless(
    owner: AnyTransformation, part: AnyTransformation, does: str, why: str
) -> ValueError:
    inside, outside = type(part).__name__, type(owner).__name__
    return ValueError(f"`{inside}` within `{outside}` makes no sense: `{inside}` {does}; {why}")


def _parts(transformation: AnyTransformation, of_a_part: bool) -> Iterator[AnyTransformation]:
    """A transformation, and those within it."""
    yield transformation
    if isinstance(transformation, AbstractOptimizer):
        yield from _parts(transformation.compose(), of_a_part)
        return
    if not of_a_part and _selects(transformation):
        return

    def within(x: object) -> bool:
        return x is not transformation and isinstance(x, AbstractTransformation)

    for x in jax.tree.leaves(transformation, is_leaf=within):
        if within(x):
            yield from _parts(x, of_a_part)


def _selects(transformation: AnyTransformation) -> bool:
    """Whether it holds a selector, and not only what is within it."""

    def is_leaf(x: object) -> bool:
        inner = x is not transformation and isinstance(x, AbstractTransformation)
        return inner or isinstance(x, AbstractSelector)

    leaves = jax.tree.leaves(transformation, is_leaf=is_leaf)
    return any(isinstance(x, AbstractSelector) for x in leaves)
