"""Transformations one after the other, by name."""

from collections import Counter
from typing import Any

import equinox as eqx

from .._base import checks
from .._base.types import Params, Updates
from .._objective.objective import Context
from .._transformation.base import (
    AbstractSequence,
    AnyTransformation,
    check_transformation,
)
from .._transformation.sequence import check_links, transform_links


class NamedChainState(eqx.Module):
    """The state of [`eqopt.NamedChain`][].

    **Arguments:**

    - `states`: the states of the links, by name.
    """

    states: dict[str, Any]


class NamedChain(AbstractSequence[NamedChainState]):
    r"""Applies transformations one after the other, as [`eqopt.Chain`][], and calls them by name.

    `NamedChain(clip=ClipByGlobalNorm(1.0), adam=Adam(1e-3))`, or with pairs,
    `NamedChain(("clip", ClipByGlobalNorm(1.0)), ("adam", Adam(1e-3)))`. A link is
    `opt.links["clip"]`, and its state `state.states["clip"]`.

    **Arguments:**

    - `*pairs`, `**links`: the names and the transformations, in the order in which they are
        applied; pairs come before keywords.

    Raises a `ValueError` if a name is given twice.
    """

    links: dict[str, AnyTransformation]
    # The order in which the links are applied. A dictionary loses its order when it is a PyTree.
    names: tuple[str, ...] = eqx.field(static=True)

    def __init__(self, *pairs: tuple[str, AnyTransformation], **links: AnyTransformation) -> None:
        for i, pair in enumerate(pairs):
            if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
                raise TypeError(
                    f"`pairs[{i}]` must be a pair of a name and a transformation; got "
                    f"{checks.describe(pair)}"
                )
        every = [*pairs, *links.items()]
        for name, link in every:
            check_transformation(f"links['{name}']", link)
        self.names = tuple(name for name, _ in every)
        if twice := [name for name, num in Counter(self.names).items() if num > 1]:
            raise ValueError("names must differ; given more than once: " + _listed(twice))
        check_links(self, [link for _, link in every])
        self.links = dict(every)

    def in_order(self) -> tuple[AnyTransformation, ...]:
        return tuple(self.links[name] for name in self.names)

    def init_state(self, params: Params, context: Context) -> NamedChainState:
        return NamedChainState(
            {name: self.links[name].init_state(params, context) for name in self.names}
        )

    def transform(
        self, updates: Updates, state: NamedChainState, params: Params | None, context: Context
    ) -> tuple[Updates, NamedChainState]:
        if state.states.keys() != self.links.keys():
            raise ValueError(
                f"`state.states` has {_listed(sorted(state.states)) or 'nothing'}; the chain has "
                f"{_listed(sorted(self.links)) or 'no links'}"
            )
        links = [self.links[name] for name in self.names]
        states = [state.states[name] for name in self.names]
        where = [f"state.states['{name}']" for name in self.names]
        updates, states = transform_links(links, states, where, updates, params, context)
        return updates, NamedChainState(dict(zip(self.names, states, strict=True)))


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
