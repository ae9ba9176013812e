"""Value and gradient, read from a line search's state if it holds them."""

from typing import Any

import equinox as eqx
from jaxtyping import PyTree

from .._base import checks
from .._base.types import Args, Function
from .._jit import compiled_call, partition
from .cache import Cache, recall, searches
from .objective import Objective


class ValueAndGradFromState(eqx.Module):
    """A function that [`eqopt.value_and_grad_from_state`][] makes.

    It may also be passed as `value_fn` to `update`, in place of `fun`: then `argnums` are
    understood there too.

    **Arguments:**

    - `fun`: the objective.
    - `argnums`: which arguments are the parameters.
    - `has_aux`: whether it returns `(value, aux)`.
    """

    fun: Function
    argnums: int | tuple[int, ...] = eqx.field(static=True)
    has_aux: bool = eqx.field(static=True)

    def __call__(self, *args: object, state: PyTree, **kwargs: object) -> tuple[Any, PyTree]:
        """Gives `(value, grad)`, or `((value, aux), grad)` with `has_aux`.

        **Arguments:**

        - `*args`, `**kwargs`: the objective's arguments, the parameters among them.
        - `state`: any state that holds one line search's state somewhere.
        """
        models, others = split(self.fun, self.argnums, args)
        single = isinstance(self.argnums, int)
        return compiled_call.call_objective(
            _recall,
            self.fun,
            models[0] if single else models,
            partition.mark_numbers_dynamic(others),
            partition.mark_numbers_dynamic(kwargs),
            self.argnums,
            self.has_aux,
            state,
        )


def value_and_grad_from_state(
    fun: Function, argnums: int | tuple[int, ...] = 0, has_aux: bool = False
) -> ValueAndGradFromState:
    """Makes a function that returns value and gradient, read from a line search's state if
    possible.

    A line search keeps the objective's value, gradient and aux at the point that it has chosen.
    They are used if the objective, the parameters and every other argument are still the same, bit
    for bit. In any other case (another batch, changed parameters, another function) the objective
    is evaluated again.

    ```python
    def fun(x, y):
        return jnp.sum((x + y) ** 2)


    opt, params, data = eqopt.LBFGS(), jnp.ones(3), jnp.arange(3.0)
    state = opt.init(params)
    value_and_grad = eqopt.value_and_grad_from_state(fun)
    value, grad = value_and_grad(params, data, state=state)
    updates, state = opt.update(grad, state, params, value=value, grad=grad, value_fn=fun, y=data)
    ```

    **Arguments:**

    - `fun`: the objective, a function of models and other arguments that returns a real number.
    - `argnums`: the positional arguments to differentiate with respect to: an int, or several. The
        optimizer's parameters are that argument, or the tuple of these arguments.
    - `has_aux`: whether `fun` returns `(value, aux)`. The state must have been made by
        `init(params, value_fn=fun, args=args, has_aux=True)`.

    **Returns:**

    An [`eqopt.writing.ValueAndGradFromState`][], called with the arguments of `fun` and `state=`.

    **Raises:**

    When called, a `ValueError` if there is no line search in the state, more than one, or one that
    stores no gradient.
    """
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    if not numbers or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in numbers):
        raise ValueError(f"`argnums` must be one or more ints of at least 0; got {argnums!r}")
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"`argnums` names an argument twice: {argnums!r}")
    return ValueAndGradFromState(fun, argnums if isinstance(argnums, int) else numbers, has_aux)


def split(
    fun: Function, argnums: int | tuple[int, ...], args: tuple[object, ...]
) -> tuple[Args, Args]:
    """Splits positional arguments into the parameters and the others."""
    numbers = (argnums,) if isinstance(argnums, int) else argnums
    if max(numbers) >= len(args):
        raise ValueError(
            f"`argnums` is {argnums!r}, but there are {len(args)} positional arguments; the "
            "parameters must be given by position"
        )
    models = tuple(args[n] for n in numbers)
    return models, tuple(x for i, x in enumerate(args) if i not in numbers)


def only_cache(state: PyTree) -> Cache:
    """The one cache in a state; a `ValueError` that says what to do if there is not just one."""
    found = searches(state)
    if not found:
        raise ValueError(
            "`state` holds no line search's state. Pass the state of a transformation that has "
            "one, or use `eqopt.value_and_grad`"
        )
    if len(found) > 1:
        raise ValueError(
            f"`state` holds {len(found)} line searches' states, so it is not known which to use. "
            "Pass the one that belongs to this objective"
        )
    cache = found[0].cache
    if cache is None:
        raise ValueError(
            "the line search in `state` stores no gradient. Build it with `store_grad=True`, or "
            "use `eqopt.value_and_grad`"
        )
    return cache


def _recall(
    fn: Function,
    model: PyTree,
    args: tuple[object, ...],
    kwargs: dict[str, object],
    argnums: int | tuple[int, ...],
    has_aux: bool,
    state: PyTree,
) -> tuple[Any, PyTree]:
    cache = only_cache(state)
    trained, rest = eqx.partition(model, checks.is_inexact)
    objective = Objective(
        fn=fn, rest=rest, args=args, kwargs=kwargs, has_aux=has_aux, argnums=argnums
    )
    found, _, _ = recall(objective, trained, cache)
    return ((found.value, found.aux) if has_aux else found.value), found.grad
