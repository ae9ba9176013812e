"""optax's transformations in eqopt, and eqopt's transformations in optax."""

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any, TYPE_CHECKING, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .._base import checks
from .._base.arithmetic import cast, wider
from .._base.key_data import kept, unkept
from .._base.trees import placed_like, widened
from .._base.types import Params, TreeDef, Updates
from .._objective.objective import accepted, Context, Objective
from .._transformation.base import AbstractTransformation, AnyTransformation

if TYPE_CHECKING:
    import optax


def as_optax(
    transformation: AnyTransformation,
) -> "optax.GradientTransformationExtraArgs":
    """Makes an optax transformation, for `optax.chain` and all other places that take one.

    It takes the gradients of complex parameters as optax does: the conjugate of the gradient from
    `jax.grad`. Updates with another dtype than their parameter, which occur within an optax chain,
    are cast to the parameter's dtype. Extra arguments pass.

    **Arguments:**

    - `transformation`: the transformation. For an [`eqopt.interop.FromOptax`][], the original is
        returned.

    **Returns:**

    An `optax.GradientTransformationExtraArgs`. Its state holds arrays only: `jax.jit` will do.

    **Raises:**

    An `ImportError` if optax is not installed, a `TypeError` if it is not a transformation.
    """
    optax = _optax()
    if not isinstance(transformation, AbstractTransformation):
        raise TypeError(
            f"`transformation` must be one of eqopt's; got a {type(transformation).__name__}"
        )
    if isinstance(transformation, FromOptax):
        return optax.with_extra_args_support(transformation.transformation)

    # Plain functions: a bound method of a Module is a PyTree, which `jax.jit` refuses.
    def init(params: PyTree) -> PyTree:
        return transformation.init(params)

    def update(
        updates: PyTree, state: object, params: PyTree = None, *, grad: PyTree = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        # The front door takes gradients as `jax.grad` returns them.
        updates = _fitted(updates, params)
        if grad is not None:
            grad = _fitted(_masked(grad, params, optax.MaskedNode), params)
        return transformation.update(updates, state, params, grad=grad, **extra)

    return optax.GradientTransformationExtraArgs(init, update)


def from_optax(transformation: "optax.GradientTransformation") -> "FromOptax":
    """Makes an eqopt transformation from an optax transformation: see
    [`eqopt.interop.FromOptax`][].

    **Arguments:**

    - `transformation`: any `optax.GradientTransformation`.

    **Raises:**

    An `ImportError` if optax is not installed, a `TypeError` if it is not an optax transformation.
    """
    return FromOptax(transformation)


class FromOptaxState(eqx.Module):
    """The state of [`eqopt.interop.FromOptax`][].

    **Arguments:**

    - `inner_state`: the state of optax's transformation, with its numbers as strongly typed arrays,
        and its keys as [`eqopt.states.KeyData`][].
    """

    inner_state: PyTree


class FromOptax(AbstractTransformation[FromOptaxState]):
    """Applies an optax transformation.

    It sees what it expects: trees of arrays, with the gradients of complex parameters conjugated. A
    `GradientTransformationExtraArgs` gets `value`, `grad`, `value_fn`, `key` and the other extra
    arguments, if it takes them and the user gave them; a plain `GradientTransformation` gets none.

    !!! note
        Parameters and updates in half precision are passed in float32, so that averages are kept in
        float32, as everywhere in eqopt.

    !!! note
        A parameter without a gradient (`None`) gets no update, and its part of the state, found by
        the parameter's path, stays as it was. In anything that the transformation shares between
        parameters (a norm, a flattened vector), a missing gradient is zero. This requires that
        `update` is given the parameters.

    **Arguments:**

    - `transformation`: the `optax.GradientTransformation`. It is static: a new object is compiled
        again. To change a number without compiling, use `optax.inject_hyperparams`, or a
        transformation of eqopt's.

    Raises a `TypeError` if it is not an optax transformation, and a `ValueError` that names the
    leaf if the updates that it returns do not fit.
    """

    transformation: "optax.GradientTransformation" = eqx.field(
        converter=lambda x: _one_of_optax(x), static=True
    )

    def init_state(self, params: Params, context: Context) -> FromOptaxState:
        with _lenient():
            state = self.transformation.init(widened(params))
        return FromOptaxState(kept(_placed(jax.tree.map(_strong, state), params)))

    def transform(
        self, updates: Updates, state: FromOptaxState, params: Params | None, context: Context
    ) -> tuple[Updates, FromOptaxState]:
        update = _optax().with_extra_args_support(self.transformation).update
        given = {
            "value": context.value,
            "grad": _complete(context.grad, params),
            "key": context.key,
            **context.extra,
        }
        if context.value_fn is not None and params is not None:
            given["value_fn"] = _Value(context.value_fn, params, given)
        extra = {name: x for name, x in given.items() if x is not None}
        full, wide = _complete(updates, params), widened(params)
        before = unkept(state.inner_state)
        with _lenient():
            out, inner = update(full, before, wide, **accepted(update, extra))
        inner = _settled(inner, before)
        out = checks.conform_to(
            out, updates if params is None else params, "updates", any_dtype=True
        )
        leaves, treedef = checks.flatten(updates)
        missing = [] if params is None else _holes(leaves, treedef, params)
        if missing:
            inner = _kept(inner, before, missing)
        found = treedef.flatten_up_to(out)
        out = [None if u is None else x for u, x in zip(leaves, found, strict=True)]
        return treedef.unflatten(out), FromOptaxState(kept(inner))


class _Value:
    """An objective in the form that optax's line searches need: a function that returns a
    scalar."""

    def __init__(self, objective: Objective, params: Params, given: dict[str, object]) -> None:
        self.objective = objective
        self.params = params
        self.dtype_promotion = jax.numpy_dtype_promotion.value
        self.rank_promotion = jax.numpy_rank_promotion.value
        # The searches raise for an argument that the function does not take by name, even if it is
        # for another link. This function takes all arguments, and ignores them.
        names = [x for x in given if x.isidentifier() and x not in ("value", "grad", "params")]
        kinds = inspect.Parameter
        self.__signature__ = inspect.Signature(
            [
                kinds("params", kinds.POSITIONAL_ONLY),
                *(kinds(x, kinds.KEYWORD_ONLY, default=None) for x in names),
            ]
        )

    def __call__(self, params: Params, /, **ignored: object) -> Array:
        # A model in half precision is evaluated in half precision.
        rounded = jax.tree.map(lambda x, p: x.astype(p.dtype), params, self.params)
        with (
            jax.numpy_dtype_promotion(self.dtype_promotion),
            jax.numpy_rank_promotion(self.rank_promotion),
        ):
            return self.objective(rounded)[0]


def _optax() -> Any:
    # Imported on use: eqopt does without it.
    try:
        import optax
    except ImportError as e:
        raise ImportError("this needs optax: `pip install 'eqopt[optax]'`") from e
    return optax


def _one_of_optax(value: object) -> Any:
    if isinstance(value, _optax().GradientTransformation):
        return value
    raise TypeError(
        f"`transformation` must be an `optax.GradientTransformation`; got a {type(value).__name__}"
        + (". Give its `gradient_transformation()`" * isinstance(value, _optax().MultiSteps))
    )


# Into optax.


def _fitted(updates: PyTree, params: PyTree) -> PyTree:
    """Casts to the parameters' dtypes, and conjugates.

    Leaves that do not fit are left for the front door to name.
    """
    if params is not None:
        updates = _cast(updates, params)
    return jax.tree.map(lambda x: jnp.conj(x) if checks.is_inexact(x) else x, updates)


def _cast(updates: PyTree, params: PyTree) -> PyTree:
    leaves, treedef = checks.flatten(updates)
    reference, expected = checks.flatten(params)
    if treedef != expected:
        return updates
    return treedef.unflatten([_cast_like(u, p) for u, p in zip(leaves, reference, strict=True)])


def _cast_like(u: Any, p: Any) -> Any:
    if not (checks.is_inexact(u) and checks.is_inexact(p)):
        return u
    if jnp.iscomplexobj(u) and not jnp.iscomplexobj(p):
        return u
    return u.astype(p.dtype)


def _masked(tree: PyTree, params: PyTree, node: type) -> PyTree:
    """Masks extra arguments like the parameters, because `optax.masked` passes them on unmasked."""
    try:
        return jax.tree.map(
            lambda p, x: p if isinstance(p, node) else x,
            params,
            tree,
            is_leaf=lambda p: p is None or isinstance(p, node),
        )
    except ValueError:
        return tree


# From optax.


@contextlib.contextmanager
def _lenient() -> Iterator[None]:
    """JAX's default promotion: half of optax fails under strict promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def _complete(updates: PyTree, params: PyTree | None) -> PyTree:
    """Widens the updates like the parameters, and puts zeros where there is no gradient."""
    if updates is None or params is None:
        return widened(updates)
    leaves, treedef = checks.flatten(updates)
    full = [
        u if p is None else jnp.zeros(p.shape, wider(p.dtype)) if u is None else _wide(u, p)
        for u, p in zip(leaves, treedef.flatten_up_to(params), strict=True)
    ]
    return treedef.unflatten(full)


def _wide(u: Array, p: Array) -> Array:
    return cast(u, wider(p.dtype))


def _strong(x: object) -> Any:
    """Makes a strongly typed array from a number. A PRNG key is not a number, and has no weak
    type."""
    numeric = isinstance(x, np.ndarray | np.generic | bool | int | float | complex)
    if not (numeric or checks.is_array(x)):
        return x
    x = jnp.asarray(x)
    return x.astype(x.dtype)


def _settled(state: PyTree, before: PyTree) -> PyTree:
    """Gives a state the types that it had before the step.

    A state whose structure changes, as `optax.monitor`'s does in the first step, is left unchanged:
    it works, but not in a `scan`.
    """
    if jax.tree.structure(state) != jax.tree.structure(before):
        return jax.tree.map(_strong, state)
    return jax.tree.map(
        # Not `cast`, which leaves a weakly typed number as it is.
        lambda x, old: jnp.asarray(x).astype(old.dtype) if checks.is_array(old) else x,
        state,
        before,
    )


_Path: TypeAlias = tuple[object, ...]


def _paths(tree: PyTree) -> list[tuple[_Path, PyTree]]:
    return jax.tree_util.tree_flatten_with_path(tree)[0]


def _parameter_of(path: _Path, lengths: list[int], known: dict[_Path, object]) -> _Path | None:
    """The path of the parameter to which a leaf of the state belongs: the end of its own path."""
    ends = (path[len(path) - n :] for n in lengths if n <= len(path))
    return next((end for end in ends if end in known), None)


def _placed(state: PyTree, params: Params) -> PyTree:
    """Puts a parameter's part of the state on the parameter's devices."""
    known = dict(_paths(params))
    lengths = sorted({len(path) for path in known}, reverse=True)

    def place(path: _Path, x: Any) -> Any:
        end = _parameter_of(path, lengths, known)
        if end is None or not checks.is_array(x) or x.shape != known[end].shape:
            return x
        # As in eqopt's `zeros_like`: optax's, when compiled, does not depend on its argument.
        return placed_like(x, known[end])

    return jax.tree_util.tree_map_with_path(place, state)


def _holes(leaves: list[object], treedef: TreeDef, params: Params) -> list[_Path]:
    """The paths of the parameters that have no gradient."""
    trained = treedef.flatten_up_to(params)
    marks = [
        p if u is None and p is not None else None for u, p in zip(leaves, trained, strict=True)
    ]
    return [path for path, _ in _paths(treedef.unflatten(marks))]


def _kept(state: PyTree, before: PyTree, missing: list[_Path]) -> PyTree:
    """Keeps the old state of some parameters."""
    known: dict[_Path, PyTree] = dict.fromkeys(missing)
    lengths = sorted({len(path) for path in missing}, reverse=True)
    if jax.tree.structure(state) != jax.tree.structure(before):
        return state
    return jax.tree_util.tree_map_with_path(
        lambda path, x, old: x if _parameter_of(path, lengths, known) is None else old,
        state,
        before,
    )
