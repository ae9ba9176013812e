"""States, which are trees: what is in them by class or by name, and the parts that are like the
parameters.

Begin with `get(state, eqopt.states.ScaleByAdamState)` or `get(state, "mu")`; `set` gives a state in
which one part is another, and `map_params` maps a function over the parts.
"""

from collections.abc import Callable, Iterator
from typing import Any, overload, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ._base import checks
from ._base.trees import owned
from ._base.types import Function, Leaves, Tree, TreeDef
from ._train.optimizer import Optimizer

__all__ = ["get", "get_all", "map_params", "set"]


def __dir__() -> list[str]:
    return __all__


_Class = TypeVar("_Class")
_Path = tuple[object, ...]


@overload
def get(state: PyTree, which: type[_Class]) -> _Class: ...
@overload
def get(state: PyTree, which: str) -> Any: ...
def get(state: PyTree, which: object) -> Any:
    """Returns the only part of a state that has a given class or name.

    ```python
    import eqopt, jax.numpy as jnp

    opt = eqopt.Chain(eqopt.ClipByGlobalNorm(1.0), eqopt.Adam(1e-3))
    state = opt.init(jnp.ones(3))
    adam = eqopt.tree.get(state, eqopt.states.ScaleByAdamState)
    assert eqopt.tree.get(state, "mu") is adam.mu
    ```

    **Arguments:**

    - `state`: a state, an [`eqopt.Optimizer`][] (its state is searched), or any other PyTree.
    - `which`: a class; or a name, of a field or of a key; or a whole path, as in messages and in
        `get_all`, such as `"states[1].states[0].count"`.

    **Returns:**

    That part, unchanged.

    **Raises:**

    A `ValueError` if there are several parts, which lists their paths, or none, which lists the
    classes or names in the state.
    """
    tree = _state(state)
    return _one(tree, which)[1]


def get_all(state: PyTree, which: type[_Class] | str) -> dict[str, Any]:
    """Returns all parts of a state that have a given class or name.

    **Arguments:**

    - `state`, `which`: as for [`eqopt.tree.get`][].

    **Returns:**

    The parts by their paths, such as `"states[1].states[0].mu"`, from the outside inward; possibly
    an empty dictionary.
    """
    return {_written(path): x for path, x in _found(_state(state), which)}


def set(state: Tree, which: type[Any] | str, value: object) -> Tree:
    """Returns a copy of a state in which the only part with a class or name is replaced.

    ```python
    import eqopt, jax.numpy as jnp

    opt = eqopt.Adam(1e-3)
    state = eqopt.tree.set(opt.init(jnp.ones(3)), "mu", 0.1 * jnp.ones(3))
    ```

    **Arguments:**

    - `state`, `which`: as for [`eqopt.tree.get`][].
    - `value`: of the same structure, shapes and dtypes. For an array of shape `()`, a Python number
        is accepted. The arrays are not copied: if the state is donated, they are donated.

    **Returns:**

    A state of the same type.

    **Raises:**

    As [`eqopt.tree.get`][] does; and a `ValueError` or `TypeError` if the value does not fit, which
    names the leaf.
    """
    if isinstance(state, Optimizer):
        return state.replace(state=set(state.state, which, value))
    path, old = _one(state, which)
    return _replaced(state, path, _fitted(value, old, _written(path) or "state"))


def map_params(
    fn: Function,
    state: PyTree,
    params: PyTree,
    *rest: PyTree,
    others: Callable[[Any], Any] | None = None,
) -> Any:
    """Applies a function to every part of a state that is like the parameters: moments, averages,
    copies.

    This example places moments by the parameters' specifications, and copies other arrays to all
    devices:

    ```python
    import eqopt, jax, jax.numpy as jnp

    params = {"w": jnp.ones((4, 2)), "b": jnp.ones(2)}
    specs = {"w": jax.P("data"), "b": jax.P()}
    state = eqopt.Adam(1e-3).init(params)
    placed = eqopt.tree.map_params(
        lambda moment, param, spec: spec, state, params, specs, others=lambda x: jax.P()
    )
    assert eqopt.tree.get(placed, "mu") == specs
    ```

    A part is found by its structure: the structure of the parameters, with inexact arrays, or
    `None` for parameters that are masked out. The arrays may have other shapes than the parameters,
    as in Adafactor. If the parameters are a single array, all inexact arrays of its shape are
    parts.

    **Arguments:**

    - `fn`: called `fn(leaf, param, *others)` with each array of a part, its parameter, and the
        leaves in its place in `rest`.
    - `state`: a state, however nested, or an [`eqopt.Optimizer`][].
    - `params`: the model: any PyTree. Leaves that are not trained have no part in a state.
    - `*rest`: trees like the model, with anything in the place of its inexact arrays.
    - `others`: called with each array that is in no such part; `None` leaves these arrays as they
        are.

    **Returns:**

    A tree of the state's structure, or an optimizer with it.

    **Raises:**

    A `ValueError` if a tree in `rest` is not like the model.
    """
    if isinstance(state, Optimizer):
        return state.replace(state=map_params(fn, state.state, params, *rest, others=others))
    trained = jax.tree.map(lambda x: x if checks.is_inexact(x) else None, params)
    leaves, treedef = checks.flatten(trained)
    columns = [_column(x, params, leaves, treedef, i) for i, x in enumerate(rest)]

    def is_part(x: PyTree) -> bool:
        found, own = checks.flatten(x)
        if own != treedef:
            return False
        if own == _LEAF:
            return checks.is_inexact(x) and np.shape(x) == np.shape(leaves[0])
        return all(y is None or checks.is_inexact(y) for y in found)

    def change(x: object) -> Any:
        if is_part(x):
            columns_of_x, _ = checks.flatten(x)
            new = [
                None if y is None else fn(y, *values)
                for y, *values in zip(columns_of_x, leaves, *columns, strict=True)
            ]
            return treedef.unflatten(new)
        return x if others is None else others(x)

    return jax.tree.map(change, state, is_leaf=is_part)


_LEAF = jax.tree.structure(0)


def _column(tree: PyTree, params: PyTree, leaves: Leaves, treedef: TreeDef, i: int) -> Leaves:
    """The leaves of a tree like the model that are in the places of the parameters."""
    try:
        found = treedef.flatten_up_to(tree)
    except ValueError as error:
        raise ValueError(f"`rest[{i}]` is not like `params`: {error}") from None
    return [None if x is None else y for x, y in zip(leaves, found, strict=True)]


def _state(tree: PyTree) -> PyTree:
    return tree.state if isinstance(tree, Optimizer) else tree


def _written(path: _Path) -> str:
    return checks.keystr(path).lstrip(".")


def _walk(tree: PyTree, path: _Path = ()) -> Iterator[tuple[_Path, PyTree]]:
    """A tree and all its subtrees, with their paths, from the outside inward."""
    yield path, tree
    # A field may hold `None` too.
    children, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is not tree)
    for own, child in children:
        if own:  # a leaf is its own child
            yield from _walk(child, (*path, *own))


def _found(tree: PyTree, which: object) -> list[tuple[_Path, PyTree]]:
    if isinstance(which, type):
        return [(path, x) for path, x in _walk(tree) if isinstance(x, which)]
    if not isinstance(which, str):
        raise TypeError(f"`which` must be a class or a name; got {checks.describe(which)}")
    return [
        (path, x) for path, x in _walk(tree) if path and which in (_name(path[-1]), _written(path))
    ]


def _name(key: Any) -> str | None:
    if isinstance(key, jax.tree_util.GetAttrKey):
        return key.name
    return key.key if isinstance(key, jax.tree_util.DictKey) and type(key.key) is str else None


def _one(tree: PyTree, which: object) -> tuple[_Path, PyTree]:
    found = _found(tree, which)
    if len(found) == 1:
        return found[0]
    word = f"`{which.__name__}`" if isinstance(which, type) else f"`{which}`"
    if found:
        places = [f"`{_written(path) or 'state'}`" for path, _ in found]
        raise ValueError(f"`state` has {len(found)} {word}: {', '.join(places)}")
    there: dict[str, None] = {}
    for path, x in _walk(tree):
        if isinstance(which, type) and isinstance(x, eqx.Module):
            there[f"`{type(x).__name__}`"] = None
        elif not isinstance(which, type) and path and (name := _name(path[-1])) is not None:
            there[f"`{name}`"] = None
    raise ValueError(f"`state` has no {word}; it has {', '.join(there) or 'neither'}")


def _replaced(tree: PyTree, path: _Path, value: object) -> PyTree:
    if not path:
        return value
    children, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is not tree)
    return treedef.unflatten(
        [_replaced(x, path[1:], value) if own == path[:1] else x for own, x in children]
    )


def _fitted(value: object, old: object, name: str) -> PyTree:
    """Refuses a leaf of another type, and names it."""
    expected, treedef = checks.flatten(old)
    given, own = checks.flatten(value)
    if own != treedef:
        raise checks.structure_error(value, old, "value", name)
    paths = zip(checks.paths("value", value), checks.paths(name, old), strict=True)
    new = [_fitted_leaf(x, y, *names) for x, y, names in zip(given, expected, paths, strict=True)]
    return treedef.unflatten(new)


def _fitted_leaf(x: object, old: object, name: str, old_name: str) -> Any:
    if isinstance(old, checks.ARRAYS) and old.shape == () and isinstance(x, bool | int | float):
        kinds = {bool: np.bool_, int: np.integer, float: np.floating}
        integral = isinstance(x, int) and not isinstance(x, bool)
        floats = integral and jnp.issubdtype(old.dtype, np.inexact)
        if floats or jnp.issubdtype(old.dtype, kinds[type(x)]):
            return jnp.asarray(x, old.dtype)
    if isinstance(old, checks.ARRAYS) and isinstance(x, checks.ARRAYS):
        if (x.shape, x.dtype) == (old.shape, old.dtype):
            return owned(x)
    elif x is None and old is None:
        return x
    elif not isinstance(old, checks.ARRAYS) and type(x) is type(old):
        return x
    mistake = ValueError if isinstance(x, checks.ARRAYS) else TypeError
    raise mistake(f"`{name}` is {checks.describe(x)}; `{old_name}` is {checks.describe(old)}")
