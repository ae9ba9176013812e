"""What a transformation may be told about the objective."""

import inspect
from typing import Any, Generic

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from . import _check
from ._types import Aux, Function, Params


class Evaluation(eqx.Module, Generic[Aux]):
    """The objective at one point.

    **Arguments:**

    - `value`: the objective's value, of shape `()`.
    - `grad`: its gradient, as `jax.grad` gives it: like the parameters, and `None` for what is not
        trained.
    - `aux`: what else the objective returned; `None` without `has_aux`.
    """

    value: jax.Array
    grad: PyTree
    aux: Aux


class Context(eqx.Module):
    """What `update` and `step` were given besides updates, state and parameters.

    Each transformation takes what it needs, by `need`, and passes all of it on to those inside it.

    **Arguments:**

    - `value`: the objective's value at the parameters, or `None`.
    - `grad`: its gradient there, like the updates, or `None`. The gradient of complex parameters
        is conjugated, as the updates are: it points uphill.
    - `value_fn`: the objective as a function of the parameters alone, which returns its value and
        aux (see [`eqopt.Objective`][]), or `None`.
    - `key`: a PRNG key, or `None`.
    - `extra`: every other keyword argument, by name.
    """

    value: Any = None
    grad: PyTree = None
    value_fn: "Objective | None" = None
    key: Any = None
    extra: dict[str, Any] = eqx.field(default_factory=dict)

    def need(self, name: str, owner: object) -> Any:
        """Gives the argument called `name`; a `ValueError` if it was not given.

        **Arguments:**

        - `name`: the name of the keyword argument.
        - `owner`: the transformation that needs it, for the message.
        """
        known = {"value": self.value, "grad": self.grad, "value_fn": self.value_fn, "key": self.key}
        found = known[name] if name in known else self.extra.get(name)
        if found is None:
            raise ValueError(
                f"`{type(owner).__name__}` needs `{name}`: pass it to `update` by keyword"
            )
        return found


class Objective(eqx.Module):
    """An objective and everything that it is called with but the trained parameters.

    It is called with the parameters alone, a tree of arrays and `None`, and returns the value and
    aux (`None` without `has_aux`).

    **Arguments:**

    - `fn`: the user's function, called `fn(model, *args, **kwargs)`.
    - `rest`: what of the model is not trained.
    - `args`, `kwargs`: the other arguments.
    - `has_aux`: whether `fn` returns `(value, aux)`.
    """

    fn: Function
    rest: PyTree
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    has_aux: bool = eqx.field(static=True)

    def __call__(self, params: PyTree) -> tuple[jax.Array, Any]:
        """Gives the value at `params`, and aux."""
        out = self.fn(eqx.combine(params, self.rest), *self.args, **self.kwargs)
        if self.has_aux:
            if not (isinstance(out, tuple) and len(out) == 2):
                raise TypeError(
                    "with `has_aux=True`, the objective must return a pair `(value, aux)`; "
                    f"it returned a {type(out).__name__}"
                )
            value, aux = out
        else:
            if isinstance(out, tuple):
                raise TypeError(
                    "the objective must return one number; it returned a tuple. To return "
                    "`(value, aux)`, pass `has_aux=True`"
                )
            value, aux = out, None
        number = jnp.asarray(value) if isinstance(value, (*_check.ARRAYS, int, float)) else None
        if number is None or number.shape or not jnp.issubdtype(number.dtype, jnp.floating):
            raise TypeError(
                "the objective must return one real floating-point number, of shape (); it "
                f"returned {_check.describe(value)}"
            )
        return number, aux

    def evaluate(self, params: PyTree) -> Evaluation[Any]:
        """Gives value, gradient and aux at `params`."""
        (value, aux), grad = jax.value_and_grad(lambda p: self(p), has_aux=True)(params)
        return Evaluation(value, grad, aux)


def accepted(fn: Function, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Those of the keyword arguments that `fn` takes by name."""
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        return kwargs  # a builtin, whose signature nobody knows
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return kwargs
    names = {p.name for p in parameters if p.kind is not p.POSITIONAL_ONLY}
    return {name: value for name, value in kwargs.items() if name in names}


def need_params(params: Params | None, owner: object) -> Params:
    """Gives the parameters; a `ValueError` if the user gave none."""
    if params is None:
        raise ValueError(
            f"`{type(owner).__name__}` needs the parameters: `update(updates, state, params)`"
        )
    return params
