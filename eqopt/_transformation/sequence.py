"""Transformations one after the other."""

from collections.abc import Sequence

from jaxtyping import PyTree

from .._base.types import Params, Updates
from .._objective.objective import Context
from . import leafwise
from .base import AbstractLeafwise, AnyTransformation, check_state
from .nesting import check_nesting, Requirement


def check_links(owner: AnyTransformation, links: Sequence[AnyTransformation]) -> None:
    """Refuses links in an order that makes no sense."""
    after = "the links after it change them. Put it last, or around the chain"
    for link in links[:-1]:
        # After a transformation of some parameters, a link may be for the others.
        check_nesting(owner, link, {Requirement.MOVES: after}, of_a_part=False)
    for link in links[1:]:
        check_nesting(owner, link, {Requirement.GRADIENT: "put it first, or around the chain"})


def transform_links(
    links: Sequence[AnyTransformation],
    states: Sequence[object],
    names: Sequence[str],
    updates: Updates,
    params: Params | None,
    context: Context,
) -> tuple[Updates, list[PyTree]]:
    """Applies links one after the other, and fuses leafwise links.

    The states' names are for messages.
    """
    after: list[object] = []
    rules: list[leafwise.Rule] = []
    for link, own, name in zip(links, states, names, strict=True):
        check_state(link, own, name)
        if isinstance(link, AbstractLeafwise):
            rules.append(link.rule(own, params, context))
            continue
        updates, done = leafwise.run(rules, updates, params)
        updates, own = link.transform(updates, own, params, context)
        after, rules = [*after, *done, own], []
    updates, done = leafwise.run(rules, updates, params)
    return updates, [*after, *done]
