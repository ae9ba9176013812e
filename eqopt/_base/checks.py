"""Checks that name the leaf.

Trees are checked at the front door, by one pass over structure, shapes and dtypes. It costs less
than a microsecond per leaf if all is right; only explaining an error is slow. Kernels, states and
schedules are checked by jaxtyping and beartype, through `typed`.
"""

import dataclasses
import functools
import inspect
import operator
from collections.abc import Callable
from typing import Any, TypeGuard, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np

from .arithmetic import wider
from .types import Function, Leaves, TreeDef

Annotated = TypeVar("Annotated")


def typed(annotated: Annotated) -> Annotated:
    """Has a function's or a dataclass's jaxtyping annotations checked by beartype at each call.

    For kernels and states, which are called only during tracing, so a step costs nothing. With
    `JAXTYPING_DISABLE=1` nothing is checked.

    **Arguments:**

    - `annotated`: the function or class.
    """
    checked: Any = annotated
    if isinstance(annotated, type):
        checked.__init__ = _at_first_call(checked.__init__)
        return checked
    return _at_first_call(checked)


def _at_first_call(fn: Function) -> Any:
    # Not at definition: importing beartype and generating a check for each kernel takes longer than
    # importing the rest of eqopt.
    @functools.wraps(fn)
    def checking(*args: object, **kwargs: object) -> Any:
        return _checked(fn)(*args, **kwargs)

    return checking


@functools.cache
def _checked(fn: Function) -> Function:
    from beartype import beartype

    return jaxtyping.jaxtyped(fn, typechecker=beartype)


def is_function(x: object) -> bool:
    """Whether it is a function, and not a class or a tree that can be called.

    Not `callable` alone: a mask for a model that can be called is itself a callable tree.
    """
    if not callable(x) or isinstance(x, type):
        return False
    # Some functions are trees too: `jax.tree_util.Partial`, a Module's method, an `eqx.filter_jit`
    # function.
    known = isinstance(x, functools.partial) or not {"__func__", "__wrapped__"}.isdisjoint(dir(x))
    return known or jax.tree_util.all_leaves([x])


def is_plain_function(x: object) -> TypeGuard[Function]:
    """Whether it can be called, and is neither a class nor a Module: models can be called."""
    return callable(x) and not isinstance(x, eqx.Module | type)


def call_traced(name: str, function: Function, *args: object, **kwargs: object) -> Any:
    """Calls a user's function with traced arrays; explains the error if it needs their values."""
    errors = jax.errors
    try:
        return function(*args, **kwargs)
    except (
        errors.ConcretizationTypeError,
        errors.TracerArrayConversionError,
        errors.TracerIntegerConversionError,
    ) as error:
        raise TypeError(
            f"{name} asks for the value of its argument, which is traced: one compiled program "
            "serves all steps. Choose by `jnp.where(count < 10, a, b)` instead of `if`, and "
            "compute by `jax.numpy` instead of `math` and NumPy"
        ) from error


# Not a union, which would be built again for every leaf. JAX's last: it is slow to tell.
ARRAYS = (np.ndarray, np.generic, jax.Array)

_MAX_FAULTS = 4


def enabled() -> bool:
    """Whether checks are made: they are, unless `JAXTYPING_DISABLE=1`."""
    return not jaxtyping.config.jaxtyping_disable


is_none = functools.partial(operator.is_, None)  # used for every leaf, without a Python call


def flatten(tree: object) -> tuple[Leaves, TreeDef]:
    """Flattens `tree` so that `None`, which stands for "nothing here", is a leaf."""
    return jax.tree.flatten(tree, is_leaf=is_none)


def keystr(path: tuple[object, ...]) -> str:
    """Writes a path as Python code: `.layers[0].weight`."""
    return jax.tree_util.keystr(path)


def paths(name: str, tree: object) -> list[str]:
    """Names each leaf of `tree`, `None` included, as `name.layers[0].weight`."""
    found, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_none)
    return [name + keystr(path) for path, _ in found]


def describe(x: object) -> str:
    """Describes `x` briefly: `float32[3,4]` for arrays, else its type."""
    if x is None:
        return "None"
    if isinstance(x, ARRAYS):  # also PRNG keys, whose dtype is `key<fry>`
        return f"{x.dtype}{list(x.shape)}".replace(" ", "")
    name = kind_of(x).__name__
    return f"a{'n' * (name[0] in 'aeiouAEIO')} {name}"


@dataclasses.dataclass(frozen=True)
class Mark:
    """Stands for a leaf of a model that is not an array; see `partition.filter_arrays`."""

    kind: type


@functools.cache
def mark(kind: type) -> Mark:
    return Mark(kind)


def kind_of(x: object) -> type:
    return x.kind if isinstance(x, Mark) else type(x)


def no_transformation(name: str, x: object) -> str:
    """Says that an argument is not a transformation, and how to make one from it."""
    got, way = describe(x), ""
    if isinstance(x, type):
        got, way = f"the class `{x.__name__}`", f". Build it: `{x.__name__}(...)`"
    elif {"init", "update"} <= set(dir(x)):
        way = ". One of optax's is taken by `eqopt.from_optax`"
    elif isinstance(x, list | tuple):
        way = ". Several go into a chain, one by one: `eqopt.Chain(*links)`"
    elif inspect.isroutine(x):
        way = ". `eqopt.Stateless` takes a function of the updates"
    return f"`{name}` must be a transformation; got {got}{way}"


def is_array(x: object) -> bool:
    # The dtype of a PRNG key is not a NumPy one, and a key is not a number.
    return isinstance(x, ARRAYS) and not jnp.issubdtype(x.dtype, jax.dtypes.extended)


def is_inexact(x: object) -> bool:
    return isinstance(x, ARRAYS) and _is_inexact_dtype(x.dtype)


@functools.lru_cache(256)
def _is_inexact_dtype(dtype: Any) -> bool:
    # Called several times for every leaf: `issubdtype` takes ten times as long.
    return jnp.issubdtype(dtype, jnp.inexact)


def listed(faults: list[str]) -> str:
    """Joins faults into a short message: the first few, and the number of the others."""
    shown = faults[:_MAX_FAULTS]
    more = len(faults) - len(shown)
    return "\n".join([*shown, *([f"... and {more} more"] if more else [])])


def check_num_leaves(leaves: list[object], expected: int, name: str) -> None:
    """Refuses a tree whose number of leaves differs from the state's."""
    if len(leaves) != expected:
        raise ValueError(f"`state` was made for {expected} leaves; `{name}` has {len(leaves)}")


def structure_error(tree: object, reference: object, name: str, reference_name: str) -> ValueError:
    """Explains how the structure of `tree` differs from `reference`."""
    faults: list[str] = []
    _compare(tree, reference, name, reference_name, faults)
    return ValueError(listed(faults))


def spread_prefix(
    prefix: object, tree: object, name: str, fits: Callable[[Any, Any], bool] = lambda *_: True
) -> Leaves:
    """For each leaf of `tree`, the leaf of `prefix` at or above it; `None` is a leaf of both.

    A `ValueError` names the leaf that does not fit. `fits` tells whether a leaf of `prefix` may
    stand for a part of `tree`.
    """
    found: list[object] = []

    def spread(entry: object, part: object) -> None:
        if not fits(entry, part):
            raise ValueError
        found.extend([entry] * len(flatten(part)[0]))

    try:
        jax.tree.map(spread, prefix, tree, is_leaf=is_none)
    except ValueError:
        raise structure_error(prefix, tree, name, "params") from None
    return found


def _compare(tree: object, reference: object, name: str, other: str, faults: list[str]) -> None:
    children, treedef = _one_level(tree)
    expected, reference_treedef = _one_level(reference)
    if treedef == reference_treedef:
        for key, child in children.items():
            if child is not tree:  # a leaf is its own child
                _compare(child, expected[key], name + key, other + key, faults)
        return
    if type(tree) is not type(reference):
        faults.append(f"`{name}` is {describe(tree)}; `{other}` is {describe(reference)}")
        return
    missing = [f"`{name}{key}`" for key in expected if key not in children]
    extra = [f"`{name}{key}`" for key in children if key not in expected]
    if missing:
        faults.append(f"missing, though `{other}` has it: {_some(missing)}")
    if extra:
        faults.append(f"not in `{other}`: {_some(extra)}")
    if not missing and not extra:
        faults.append(f"`{name}` and `{other}` differ in what is static{_statics(tree, reference)}")


def _statics(tree: object, reference: object) -> str:
    if not dataclasses.is_dataclass(tree) or not dataclasses.is_dataclass(reference):
        return ""
    for field in dataclasses.fields(tree):
        if field.metadata.get("static", False):
            given, expected = vars(tree).get(field.name), vars(reference).get(field.name)
            if given is not expected and given != expected:
                return f": `{field.name}` is {given!r}, not {expected!r}"[:120]
    return ""


def _one_level(tree: object) -> tuple[dict[str, object], TreeDef]:
    found, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is not tree)
    return {keystr(path): child for path, child in found}, treedef


def _some(names: list[str]) -> str:
    more = len(names) - _MAX_FAULTS
    return ", ".join(names[:_MAX_FAULTS]) + (f" and {more} more" if more > 0 else "")


def conform_to(
    updates: object,
    params: object,
    name: str,
    *,
    any_dtype: bool = False,
    any_shape: bool = False,
    reference_name: str = "params",
) -> Any:
    """Makes a tree like `params` from the user's updates: an array or `None` for each parameter.

    Leaves that are not trained are dropped, a `None` stands for everything below it, and any other
    difference is an error that names the leaf. Updates in a narrower dtype than their parameter are
    widened, without loss; updates of half-precision parameters may be in float32. Without `params`,
    updates are only required to be inexact arrays. With `any_shape`, the caller checks their
    shapes.
    """
    if params is None:
        leaves, treedef = flatten(updates)
        reference, against = [x if is_inexact(x) else None for x in leaves], "gradient"
    else:
        reference, treedef = flatten(params)
        against = "parameter"
        leaves, own = flatten(updates)
        if own != treedef:
            leaves, own = flatten(_extend(updates, params))
            if own != treedef:
                raise structure_error(updates, params, name, reference_name)
    kept: list[object] = []
    wrong: list[int] = []
    for i, (u, p) in enumerate(zip(leaves, reference, strict=True)):
        if u is None or (p is None and _may_be_dropped(u, params)):
            kept.append(None)
            continue
        if p is None or not is_inexact(u) or not (any_shape or u.shape == p.shape):
            wrong.append(i)
        elif u.dtype != p.dtype and not (any_dtype and _castable(u, p)):
            if _is_narrower(u.dtype, p.dtype):
                u = u.astype(p.dtype)
            elif u.dtype != wider(p.dtype):
                wrong.append(i)
        kept.append(u)
    if wrong and (enabled() or any(not is_inexact(leaves[i]) for i in wrong)):
        names = paths(name, treedef.unflatten(leaves))
        faults = [_fault(names[i], leaves[i], reference[i], against, any_shape) for i in wrong]
        mistake = ValueError if all(is_inexact(leaves[i]) for i in wrong) else TypeError
        raise mistake(listed(faults))
    return treedef.unflatten(kept)


def _may_be_dropped(u: object, params: object) -> bool:
    # Where a leaf is not trained, the updates may hold any leaf of a model, or the float0 gradient
    # of an integer. Without the parameters, a number is an error.
    if params is not None:
        return not is_inexact(u)
    return not is_array(u) and not isinstance(u, int | float | complex)


@functools.lru_cache(256)
def _is_narrower(dtype: Any, other: Any) -> bool:
    """Whether each number of one dtype is a number of another, both real or both complex."""
    # Not `np.can_cast`, which does not know bfloat16.
    a, b = jnp.finfo(dtype), jnp.finfo(other)
    same_kind = jnp.issubdtype(dtype, jnp.floating) == jnp.issubdtype(other, jnp.floating)
    return same_kind and a.nmant <= b.nmant and a.maxexp <= b.maxexp and a.minexp >= b.minexp


def _castable(u: object, p: object) -> bool:
    return jnp.iscomplexobj(p) or not jnp.iscomplexobj(u)


def _fault(name: str, u: Any, p: Any, against: str, any_shape: bool) -> str:
    if not is_inexact(u):
        expected = "a gradient is an inexact array or None" if p is None else describe(p)
        return f"`{name}` is {describe(u)}; " + (
            expected if p is None else f"the {against} is {expected}"
        )
    if p is None:
        return f"`{name}` is {describe(u)}; the {against} is not trained"
    if u.shape != p.shape and not any_shape:
        return f"`{name}` has shape {u.shape}; the {against} has {p.shape}"
    return f"`{name}` has dtype {u.dtype.name}; the {against} has {p.dtype.name}"


def num_examples(updates: object, params: object, owner: object) -> int:
    """The number of examples in updates that have one more axis than the parameters; 0 if empty.

    Checked even if checks are turned off: nobody would notice that the gradient of a whole batch
    was taken for the gradient of one example.
    """
    leaves, treedef = flatten(updates)
    shapes = [() if x is None else x.shape for x in treedef.flatten_up_to(params)]
    names = paths("updates", updates)
    given = [(names[i], u.shape, shapes[i]) for i, u in enumerate(leaves) if u is not None]
    faults = [
        f"`{name}` has shape {shape}; expected ({', '.join(['num_examples', *map(str, own)])})"
        for name, shape, own in given
        if len(shape) != len(own) + 1 or shape[1:] != own
    ]
    if faults:
        who = f"`{type(owner).__name__}` must come first of all, and"
        what = "be given the gradient of each example, by `eqopt.per_example_value_and_grad`;"
        raise ValueError(
            listed([f"{who} {what}", "`step` and `fit` have that of all of them together", *faults])
        )
    for name, shape, _ in given:
        first, (num, *_), _ = given[0]
        if shape[0] == 0:
            raise ValueError(f"`{name}` is of no examples; at least one is needed")
        if shape[0] != num:
            raise ValueError(f"`{name}` is of {shape[0]} examples; `{first}` is of {num}")
    return given[0][1][0] if given else 0


def _extend(updates: object, params: object) -> Any:
    """Expands a `None` that stands for a whole branch to a `None` for each parameter below it."""
    try:
        return jax.tree.map(
            lambda u, part: jax.tree.map(lambda _: None, part) if u is None else u,
            updates,
            params,
            is_leaf=is_none,
        )
    except ValueError:
        return updates


def like(tree: object, reference: object) -> bool:
    """Whether `tree` has the structure and the shapes of `reference`."""
    leaves, treedef = flatten(tree)
    others, expected = flatten(reference)
    return treedef == expected and all(
        x is None or y is None or jnp.shape(x) == jnp.shape(y)
        for x, y in zip(leaves, others, strict=True)
    )
