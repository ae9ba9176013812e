"""Choosing parameters: by path, by the type of the module they are in, by shape, by hand."""

import abc
import re
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np
import wadler_lindig as wl
from jaxtyping import PyTree

from .._base import checks
from .._base.compat import Tracer
from .._base.converters import flag, module_pdoc, optional, size
from .._base.types import TreeDef
from . import _path_pattern


class AbstractSelector(eqx.Module):
    """Chooses some of the parameters of a model.

    Selectors combine: `a & b`, `a | b`, `~a`. Every argument that takes a mask takes a selector.
    """

    # Selectors are keys of dictionaries. Every Module is hashable, but type checkers accept only
    # classes that define `__hash__` themselves.

    @abc.abstractmethod
    def select(self, params: PyTree) -> PyTree[bool]:
        """Gives a tree like `params` that has `True` where the parameter is chosen."""

    def __and__(self, other: "AbstractSelector") -> "And":
        return And(self, other)

    def __or__(self, other: "AbstractSelector") -> "Or":
        return Or(self, other)

    def __invert__(self) -> "Not":
        return Not(self)

    def __pdoc__(self, **kwargs: object) -> wl.AbstractDoc:
        return module_pdoc(self, **kwargs)


def _map(choose: Callable[[Any, Any], bool], params: PyTree) -> PyTree[bool]:
    return jax.tree_util.tree_map_with_path(choose, params, is_leaf=checks.is_none)


class ByPath(AbstractSelector):
    r"""Chooses parameters by their path.

    A parameter's path is written with dots: `layers.0.weight`, for lists and dictionaries too.
    Brackets are read as dots, so paths can be copied from an error message: `layers[0].weight`.

    **Arguments:**

    - `pattern`: in it `*` stands for any characters but a dot, `?` for one of them, and `**` for
        any number of whole components, none included: `layers.*.weight`, `**.bias`, `encoder.**`.
        The pattern must match the whole path. A compiled regular expression (`re.compile`) is
        searched for anywhere in the path.
    - `must_match`: whether a pattern that matches no path is an error.

    Raises a `ValueError` with similar patterns and paths, if it matches nothing.
    """

    pattern: str | re.Pattern[str] = eqx.field(static=True)
    must_match: bool = eqx.field(converter=flag("must_match"), static=True, default=True)

    def __hash__(self) -> int:
        return eqx.Module.__hash__(self)

    def __check_init__(self) -> None:
        if not isinstance(self.pattern, str | re.Pattern):
            raise TypeError(f"`pattern` must be a string; got {self.pattern!r}")

    def select(self, params: PyTree) -> PyTree[bool]:
        names, treedef = _path_pattern.dotted_paths(params)
        chosen = _path_pattern.matches(self.pattern, names)
        if self.must_match and not any(chosen):
            raise ValueError(f"`ByPath`: {_path_pattern.no_match(self.pattern, names)}")
        return treedef.unflatten(chosen)


class ByType(AbstractSelector):
    """Chooses the parameters that lie within a module of one of the given types.

    **Arguments:**

    - `*types`: such as `eqx.nn.LayerNorm, eqx.nn.Embedding`. Subclasses count.
    - `must_match`: whether it is an error if the model has no module of these types. By default it
        is not, unlike for a path: a type cannot be misspelt, and "all except the norms" is right
        for a model without norms too.

    Raises a `ValueError` with the types in the model, if a match is required and there is none.
    """

    types: tuple[type, ...] = eqx.field(static=True)
    must_match: bool = eqx.field(static=True)

    def __hash__(self) -> int:
        return eqx.Module.__hash__(self)

    def __init__(self, *types: type, must_match: bool = False) -> None:
        wrong = [x for x in types if not isinstance(x, type)]
        if wrong or not types:
            raise TypeError(f"`ByType` takes types of modules; got {wrong or 'none'}")
        self.types = types
        self.must_match = flag("must_match")(must_match)

    def select(self, params: PyTree) -> PyTree[bool]:
        seen: set[str] = set()

        def choose(node: object) -> PyTree[bool]:
            inside = isinstance(node, self.types)
            return jax.tree.map(lambda _: inside, node, is_leaf=checks.is_none)

        def is_chosen(node: object) -> bool:
            seen.add(type(node).__name__)
            return node is None or isinstance(node, self.types)

        chosen = jax.tree.map(choose, params, is_leaf=is_chosen)
        if self.must_match and not any(jax.tree.leaves(chosen)):
            names = ", ".join(f"`{x.__name__}`" for x in self.types)
            raise ValueError(
                f"`ByType`: the model has nothing of type {names}; it is made of "
                + ", ".join(f"`{x}`" for x in sorted(seen - {"NoneType"}))
            )
        return chosen


class ByNdim(AbstractSelector):
    """Chooses parameters by their number of dimensions.

    `ByNdim(2)` chooses matrices, convolution kernels and every other parameter with two dimensions
    or more; `ByNdim(2, 2)` matrices alone; `ByNdim(0, 1)` vectors and scalars.

    !!! warning
        The bias of `eqx.nn.Conv2d` has shape `(channels, 1, 1)`, three dimensions. For "weights,
        not biases" of a convolutional network, choose by path: `ByPath("**.weight")`.

    **Arguments:**

    - `at_least`: the smallest number of dimensions.
    - `at_most`: the largest number of dimensions, or `None` for no limit.
    """

    at_least: int = eqx.field(converter=size("at_least", at_least=0), static=True)
    at_most: int | None = eqx.field(
        converter=optional(size("at_most", at_least=0)), static=True, default=None
    )

    def __hash__(self) -> int:
        return eqx.Module.__hash__(self)

    def select(self, params: PyTree) -> PyTree[bool]:
        upper = np.inf if self.at_most is None else self.at_most
        return _map(lambda _, x: x is not None and self.at_least <= np.ndim(x) <= upper, params)


class Where(AbstractSelector):
    """Chooses parts of a model by a function, as in `eqx.tree_at`.

    **Arguments:**

    - `where`: a function from the model to a part of it, or to several in a tuple or list:
        `Where(lambda model: model.layers[-1])`. All parameters within the parts are chosen.
    - `must_match`: whether parts without a parameter are an error.
    """

    where: Callable[[Any], Any] = eqx.field(static=True)
    must_match: bool = eqx.field(converter=flag("must_match"), static=True, default=True)

    def __hash__(self) -> int:
        return eqx.Module.__hash__(self)

    def __check_init__(self) -> None:
        if not checks.is_function(self.where):
            raise TypeError(f"`where` must be a function of the model; got {self.where!r}")

    def select(self, params: PyTree) -> PyTree[bool]:
        leaves, treedef = checks.flatten(params)
        # Each leaf is replaced by its own number, so that leaves that are the same object, or
        # `None`, can be distinguished in the result of `where`.
        numbered = treedef.unflatten([_Number(i) for i in range(len(leaves))])
        found = jax.tree.leaves(self.where(numbered))
        strangers = [x for x in found if not isinstance(x, _Number)]
        if strangers:
            raise ValueError(
                f"`where` must return parts of the model; got a {type(strangers[0]).__name__}"
            )
        if self.must_match and not found:
            raise ValueError(
                "`Where`: `where` returns no part of the model that has a parameter. If that is "
                "right, pass `must_match=False`"
            )
        chosen = {x.index for x in found}
        return treedef.unflatten([i in chosen for i in range(len(leaves))])


class _Number:
    """A leaf with its place."""

    def __init__(self, index: int) -> None:
        self.index = index


class And(AbstractSelector):
    """Chooses the parameters that all its selectors choose; written `a & b`.

    **Arguments:**

    - `*selectors`: the selectors.
    """

    selectors: tuple[AbstractSelector, ...]

    def __hash__(self) -> int:
        return eqx.Module.__hash__(self)

    def __init__(self, *selectors: AbstractSelector) -> None:
        self.selectors = _selectors(selectors)

    def select(self, params: PyTree) -> PyTree[bool]:
        return _combine(all, self.selectors, params)


class Or(AbstractSelector):
    """Chooses the parameters that at least one of its selectors chooses; written `a | b`.

    **Arguments:**

    - `*selectors`: the selectors.
    """

    selectors: tuple[AbstractSelector, ...]

    def __hash__(self) -> int:
        return eqx.Module.__hash__(self)

    def __init__(self, *selectors: AbstractSelector) -> None:
        self.selectors = _selectors(selectors)

    def select(self, params: PyTree) -> PyTree[bool]:
        return _combine(any, self.selectors, params)


class Not(AbstractSelector):
    """Chooses the parameters that its selector does not choose; written `~a`.

    **Arguments:**

    - `selector`: the selector.
    """

    selector: AbstractSelector

    def __hash__(self) -> int:
        return eqx.Module.__hash__(self)

    def __check_init__(self) -> None:
        _selectors((self.selector,))

    def select(self, params: PyTree) -> PyTree[bool]:
        return jax.tree.map(lambda chosen: not chosen, self.selector.select(params))


def _selectors(selectors: tuple[Any, ...]) -> tuple[AbstractSelector, ...]:
    for x in selectors:
        if not isinstance(x, AbstractSelector):
            raise TypeError(f"expected a selector; got a {type(x).__name__}")
    return selectors


def _combine(
    how: Callable[[Any], bool], selectors: tuple[AbstractSelector, ...], params: PyTree
) -> PyTree[bool]:
    trees = [x.select(params) for x in selectors]
    everywhere = jax.tree.map(lambda _: how(()), params, is_leaf=checks.is_none)
    return jax.tree.map(lambda _, *chosen: how(chosen), everywhere, *trees)


class FunctionSelector(AbstractSelector):
    """Chooses by a function of the parameters. A plain function given as a mask is wrapped in it.

    **Arguments:**

    - `function`: from the parameters to a tree of booleans, or a prefix of one.
    """

    function: Callable[[Any], Any] = eqx.field(static=True)

    def __hash__(self) -> int:
        return eqx.Module.__hash__(self)

    def select(self, params: PyTree) -> PyTree[bool]:
        return _spread(self.function(params), params)


class TreeSelector(AbstractSelector):
    """Chooses by a tree of booleans. A tree given as a mask is wrapped in it.

    The tree may be a prefix of the parameters (one boolean for a whole layer), and may be a Module
    that holds booleans, also a callable one.

    **Arguments:**

    - `tree`: the booleans.
    """

    # Kept flat and static: a mask decides the shape of the program, and must be hashable.
    booleans: tuple[bool | None, ...] = eqx.field(static=True)
    structure: TreeDef = eqx.field(static=True, repr=False)

    def __hash__(self) -> int:
        return eqx.Module.__hash__(self)

    def __init__(self, tree: PyTree[bool]) -> None:
        leaves, self.structure = checks.flatten(tree)
        self.booleans = tuple(_boolean(tree, i, x) for i, x in enumerate(leaves))

    def __reduce__(self) -> tuple[object, ...]:
        # Through the tree: the structure of a Module cannot be copied on its own.
        return TreeSelector, (self.structure.unflatten(self.booleans),)

    def select(self, params: PyTree) -> PyTree[bool]:
        return _spread(self.structure.unflatten(self.booleans), params)


def _boolean(tree: PyTree, index: int, x: object) -> bool | None:
    # Other leaves than booleans are allowed only where the model has no parameter: a mask made by
    # mapping over a whole model still has its activation functions, and `None`.
    if isinstance(x, Tracer):
        raise TypeError(f"`{checks.paths('mask', tree)[index]}` is traced; masks are static")
    if isinstance(x, bool | np.bool_):
        return bool(x)
    if isinstance(x, jax.Array | np.ndarray) and x.dtype == np.bool_ and x.shape == ():
        return bool(x)
    if x is None or callable(x) or isinstance(x, str):
        return None
    name = checks.paths("mask", tree)[index]
    raise TypeError(f"`{name}` must be True or False; got {checks.describe(x)}")


def _spread(mask: PyTree, params: PyTree) -> PyTree[bool]:
    """Extends a prefix tree of booleans to all of `params`."""
    chosen = checks.spread_prefix(mask, params, "mask", _stands_for)
    return checks.flatten(params)[1].unflatten(map(bool, chosen))


def _stands_for(chosen: object, part: object) -> bool:
    if isinstance(chosen, Tracer):
        raise TypeError("a mask must not depend on the parameters' values, only on their shapes")
    if not isinstance(chosen, bool | np.bool_ | None):
        raise TypeError(f"a mask must hold True or False; it holds {checks.describe(chosen)}")
    # Not read as `False`: a `None` in a mask in the place of a parameter is more often a mistake.
    return chosen is not None or not jax.tree.leaves(part)


def as_selector(mask: Any) -> AbstractSelector:
    """Takes a selector, a function of the parameters, or a tree of booleans."""
    if isinstance(mask, AbstractSelector):
        return mask
    if checks.is_function(mask):
        return FunctionSelector(mask)
    return TreeSelector(mask)
