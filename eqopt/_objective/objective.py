"""The objective, as transformations see it: its evaluation, the function, and the context."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, Generic, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import PyTree

from .._base import checks
from .._base.converters import prng_key
from .._base.key_data import unkept
from .._base.trees import add_updates
from .._base.types import Args, Aux, Function, Kwargs, Params, Updates
from .bounds import Bounds


class Evaluation(eqx.Module, Generic[Aux]):
    """The objective at one point.

    **Arguments:**

    - `value`: the objective's value, of shape `()`.
    - `grad`: its gradient, as `jax.grad` gives it: like the parameters, and `None` for leaves that
        are not trained.
    - `aux`: the second value that the objective returned; `None` without `has_aux`.
    """

    value: jax.Array
    grad: PyTree
    aux: Aux


AnyEvaluation: TypeAlias = Evaluation[Any]


class Context(eqx.Module):
    """The arguments of `update` and `step` besides updates, state and parameters.

    Each transformation reads the arguments that it needs, by `need`, and passes the whole context
    on to the transformations inside it.

    **Arguments:**

    - `value`: the objective's value at the parameters, or `None`.
    - `grad`: its gradient there, like the updates, or `None`. The gradient of complex parameters
        is conjugated, as the updates are: it points uphill.
    - `value_fn`: the objective as a function of the parameters alone, which returns its value and
        aux (see [`eqopt.writing.Objective`][]), or `None`.
    - `key`: a PRNG key, or `None`.
    - `extra`: every other keyword argument, by name.
    - `whole`: all parameters, and the objective as a function of all of them (see
        [`eqopt.writing.FullProblem`][]), also inside a wrapper that shows only some parameters; or
        `None`.
    """

    value: Any = None
    grad: PyTree = None
    value_fn: "Objective | None" = None
    key: Any = None
    extra: Kwargs = eqx.field(default_factory=dict)
    whole: "FullProblem | None" = None

    def require(self, name: str, owner: object) -> Any:
        """Gives the argument called `name`; a `ValueError` if it was not given.

        **Arguments:**

        - `name`: the name of the keyword argument.
        - `owner`: the transformation that needs it, for the message.
        """
        known = {"value": self.value, "grad": self.grad, "value_fn": self.value_fn, "key": self.key}
        found = known[name] if name in known else self.extra.get(name)
        if found is None:
            raise ValueError(
                f"`{type(owner).__name__}` needs `{name}`: pass it to `update` by keyword, or use "
                "`step`"
            )
        return unkept(prng_key("key")(found)) if name == "key" else found


class Objective(eqx.Module):
    """An objective and all its arguments except the trained parameters.

    It is called with the parameters alone, a tree of arrays and `None`, and returns the value and
    aux (`None` without `has_aux`).

    **Arguments:**

    - `fn`: the user's function, called `fn(model, *args, **kwargs)`.
    - `rest`: the leaves of the model that are not trained.
    - `args`, `kwargs`: the other arguments.
    - `has_aux`: whether `fn` returns `(value, aux)`; `None` decides by the value that it returns.
    - `argnums`: the position of the model among the positional arguments; with several positions,
        the model is the tuple of these arguments.
    - `replay`: the objective's evaluation, if it has been traced already; see `traced`.
    """

    fn: Function
    rest: PyTree
    args: Args = ()
    kwargs: Kwargs = eqx.field(default_factory=dict)
    has_aux: bool | None = eqx.field(static=True, default=False)
    argnums: int | tuple[int, ...] = eqx.field(static=True, default=0)
    replay: Callable[[PyTree], AnyEvaluation] | None = None

    def __call__(self, params: PyTree) -> tuple[jax.Array, PyTree]:
        """Gives the value at `params`, and aux."""
        args, kwargs = self._arguments(eqx.combine(params, self.rest))
        out = self.fn(*args, **kwargs)
        if self.has_aux and not _is_pair(out):
            raise TypeError(
                "with `has_aux=True`, the objective must return a pair `(value, aux)`; "
                f"it returned a {type(out).__name__}"
            )
        if self.has_aux is False and isinstance(out, tuple):
            raise TypeError(
                "the objective must return one number; it returned a tuple. To return "
                "`(value, aux)`, pass `has_aux=True`"
            )
        value, aux = out if self.has_aux is not False and _is_pair(out) else (out, None)
        number = jnp.asarray(value) if isinstance(value, (*checks.ARRAYS, int, float)) else None
        if number is None or number.shape or not jnp.issubdtype(number.dtype, jnp.floating):
            raise TypeError(
                "the objective must return one real floating-point number, of shape (); it "
                f"returned {checks.describe(value)}"
            )
        return number, aux

    def evaluate(self, params: PyTree) -> AnyEvaluation:
        """Gives value, gradient and aux at `params`."""
        if self.replay is not None:
            return self.replay(params)
        (value, aux), grad = jax.value_and_grad(lambda p: self(p), has_aux=True)(params)
        return Evaluation(_strong(value), jax.tree.map(_strong, grad), aux)

    def traced(self, params: PyTree) -> tuple["Objective", AnyEvaluation]:
        """Traces the evaluation once, for several places in one program.

        Its aux consists of arrays then. Also gives the shapes and dtypes of the evaluation.
        """

        def evaluate(params: PyTree) -> AnyEvaluation:
            found = self.evaluate(params)
            return Evaluation(found.value, found.grad, as_arrays(found.aux))

        replay: Any = eqx.filter_closure_convert(evaluate, params)
        return dataclasses.replace(self, replay=replay), replay.out_struct

    def _arguments(self, model: PyTree) -> tuple[list[object], Kwargs]:
        if isinstance(self.argnums, int):
            places, models = (self.argnums,), (model,)
        else:
            places, models = self.argnums, model
        args, kwargs = list(self.args), dict(self.kwargs)
        for place, x in sorted(zip(places, models, strict=True), key=lambda pair: pair[0]):
            if place <= len(args):
                args.insert(place, x)
            else:  # what stands before it is given by name, and so must it be
                kwargs[list(inspect.signature(self.fn).parameters)[place]] = x
        return args, kwargs

    def arguments(self) -> PyTree:
        """Everything that the value depends on, except the parameters.

        Arguments are listed by their names in the signature: passing an argument by position or by
        keyword makes no difference.
        """
        hole = None if isinstance(self.argnums, int) else (None,) * len(self.argnums)
        args, kwargs = self._arguments(hole)
        try:
            bound: object = dict(inspect.signature(self.fn).bind(*args, **kwargs).arguments)
        except (TypeError, ValueError):  # a builtin, whose signature nobody knows
            bound = args, kwargs
        return self.fn, self.rest, bound


class FullProblem(eqx.Module):
    """The problem that a line search works on: all parameters, even if its direction changes only a
    few.

    **Arguments:**

    - `params`: all parameters.
    - `objective`: the objective as a function of them, or `None`.
    - `evaluation`: the objective at `params`, if it is known for certain, or `None`.
    - `bounds`: the [`eqopt.writing.Bounds`][] of the parameters, or `None`.
    """

    params: PyTree
    objective: Objective | None = None
    evaluation: AnyEvaluation | None = None
    bounds: Bounds | None = None

    def moved(self, updates: Updates) -> Params:
        """Gives the parameters after the updates, within the bounds.

        **Arguments:**

        - `updates`: the updates, which may be missing for some parameters.
        """
        params = add_updates(self.params, updates)
        return params if self.bounds is None else self.bounds.project(params)

    def unblocked(self, direction: Updates, updates: Updates | None = None) -> Updates:
        """Gives the direction without the entries that leave the bounds at once.

        **Arguments:**

        - `direction`: the direction.
        - `updates`: where it starts, beyond the parameters; `None` is at the parameters.
        """
        if self.bounds is None:
            return direction
        start = self.params if updates is None else self.moved(updates)
        return self.bounds.unblocked(direction, start)


def at(context: Context, params: PyTree) -> Context:
    """The context at other parameters than the call's, possibly at only some of them."""
    whole = context.whole
    if whole is not None:
        full = eqx.combine(params, whole.params)
        whole = FullProblem(full, whole.objective, bounds=whole.bounds)
    return dataclasses.replace(context, whole=whole)


def _strong(x: jax.Array) -> jax.Array:
    # A weakly typed parameter has a weakly typed gradient, which would not stay so in a loop.
    return lax.convert_element_type(x, x.dtype) if x.weak_type else x


def as_arrays(tree: PyTree, name: str = "aux") -> PyTree:
    """Converts a function's result to arrays, for a state; a `TypeError` names a leaf that is no
    number."""
    leaves, treedef = jax.tree.flatten(tree)
    arrays: list[jax.Array] = []
    for i, x in enumerate(leaves):
        try:  # of what JAX makes of a number on the way, not every version has a public type
            arrays.append(_strong(jnp.asarray(x)))
        except (TypeError, ValueError):
            raise TypeError(
                f"`{checks.paths(name, tree)[i]}` is {checks.describe(x)}; it is kept in the "
                "state, which can keep arrays and numbers only"
            ) from None
    return treedef.unflatten(arrays)


def _is_pair(x: object) -> bool:
    return isinstance(x, tuple) and len(x) == 2


def accepted(fn: Function, kwargs: Kwargs) -> Kwargs:
    """The keyword arguments that `fn` takes by name."""
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        return kwargs  # a builtin, whose signature nobody knows
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return kwargs
    names = {p.name for p in parameters if p.kind is not p.POSITIONAL_ONLY}
    return {name: value for name, value in kwargs.items() if name in names}


def require_params(params: Params | None, owner: object, context: Context) -> Params:
    """Gives the parameters; a `ValueError` if the user gave none.

    **Arguments:**

    - `params`: the parameters, or `None`.
    - `owner`: the transformation that needs them, whose class the error names.
    - `context`: what `transform` was given.
    """
    # A model that is one array is `None` too, where a wrapper hides it.
    if params is None and context.whole is None:
        raise ValueError(
            f"`{type(owner).__name__}` needs the parameters: `update(updates, state, params)`"
        )
    return params
