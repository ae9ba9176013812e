"""Transformations one after the other."""

from typing import Any, Generic, overload, TypeVar

import equinox as eqx

from .._base import checks
from .._base.types import Params, Updates
from .._objective.objective import Context
from .._transformation.base import (
    AbstractSequence,
    AbstractTransformation,
    AnyTransformation,
    check_transformation,
)
from .._transformation.sequence import check_links, transform_links

_States = TypeVar("_States", bound=tuple[Any, ...])
_S1 = TypeVar("_S1", bound=eqx.Module)
_S2 = TypeVar("_S2", bound=eqx.Module)
_S3 = TypeVar("_S3", bound=eqx.Module)
_S4 = TypeVar("_S4", bound=eqx.Module)
_S5 = TypeVar("_S5", bound=eqx.Module)
_S6 = TypeVar("_S6", bound=eqx.Module)
_T = AbstractTransformation


class ChainState(eqx.Module, Generic[_States]):
    """The state of [`eqopt.Chain`][].

    **Arguments:**

    - `states`: the states of the links, in order.
    """

    states: _States


class Chain(AbstractSequence[ChainState[_States]], Generic[_States]):
    r"""Applies transformations one after the other: $u \leftarrow f_n(\dots f_2(f_1(u)))$.

    Every link sees the same parameters and the same extra arguments. Successive leafwise links are
    fused, and the updates are rounded to their dtypes only after the last link.

    **Arguments:**

    - `*links`: the transformations, in the order in which they are applied. An empty chain leaves
        the updates unchanged.
    """

    links: tuple[AnyTransformation, ...]

    @overload
    def __init__(self: "Chain[tuple[()]]") -> None: ...
    @overload
    def __init__(self: "Chain[tuple[_S1]]", a: _T[_S1], /) -> None: ...
    @overload
    def __init__(self: "Chain[tuple[_S1, _S2]]", a: _T[_S1], b: _T[_S2], /) -> None: ...
    @overload
    def __init__(
        self: "Chain[tuple[_S1, _S2, _S3]]", a: _T[_S1], b: _T[_S2], c: _T[_S3], /
    ) -> None: ...
    @overload
    def __init__(
        self: "Chain[tuple[_S1, _S2, _S3, _S4]]", a: _T[_S1], b: _T[_S2], c: _T[_S3], d: _T[_S4], /
    ) -> None: ...
    @overload
    def __init__(
        self: "Chain[tuple[_S1, _S2, _S3, _S4, _S5]]",
        a: _T[_S1],
        b: _T[_S2],
        c: _T[_S3],
        d: _T[_S4],
        e: _T[_S5],
        /,
    ) -> None: ...
    @overload
    def __init__(
        self: "Chain[tuple[_S1, _S2, _S3, _S4, _S5, _S6]]",
        a: _T[_S1],
        b: _T[_S2],
        c: _T[_S3],
        d: _T[_S4],
        e: _T[_S5],
        f: _T[_S6],
        /,
    ) -> None: ...
    @overload
    def __init__(self: "Chain[tuple[Any, ...]]", *links: _T[Any]) -> None: ...
    def __init__(self, *links: AnyTransformation) -> None:
        for i, link in enumerate(links):
            check_transformation(f"links[{i}]", link)
        check_links(self, links)
        self.links = links

    def in_order(self) -> tuple[AnyTransformation, ...]:
        return self.links

    def init_state(self, params: Params, context: Context) -> ChainState[_States]:
        states: Any = tuple(link.init_state(params, context) for link in self.links)
        return ChainState(states)

    def transform(
        self, updates: Updates, state: ChainState[_States], params: Params | None, context: Context
    ) -> tuple[Updates, ChainState[_States]]:
        if checks.enabled() and len(state.states) != len(self.links):
            raise ValueError(
                f"`state.states` has {len(state.states)} entries; the chain has {len(self.links)} "
                "links"
            )
        names = [f"state.states[{i}]" for i in range(len(self.links))]
        updates, states = transform_links(self.links, state.states, names, updates, params, context)
        after: Any = tuple(states)
        return updates, ChainState(after)
