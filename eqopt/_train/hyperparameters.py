"""Reads the hyper-parameters that an optimizer's next step will use."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._base.converters import canonicalize
from .._base.key_data import is_key
from .._jit import compiled_call
from .._schedule.base import AbstractSchedule
from .._transformation.base import (
    AbstractOptimizer,
    AnyTransformation,
    check_state,
    children,
    composed,
    state_type,
)
from .._wrapper.inject_hyperparams import InjectedHyperparams
from .._wrapper.scheduled import Scheduled


@dataclasses.dataclass(frozen=True)
class _Found:
    name: str
    source: Any  # the number or the schedule in the optimizer
    value: Float[Array, ""]


def hyperparameters(
    transformation: AnyTransformation, state: eqx.Module
) -> dict[str, Float[Array, ""]]:
    """Gives the numeric hyper-parameters that the next step will use, for logging.

    Schedules are evaluated at the state's counts. It works inside compiled functions too.

    **Arguments:**

    - `transformation`: an optimizer, or any transformation.
    - `state`: its state.

    **Returns:**

    The values by name: `"learning_rate"` of an optimizer, `"links[0].max_norm"` of a chain's first
    link, `"inner.b1"` inside a wrapper. Within [`eqopt.Scheduled`][] and
    [`eqopt.InjectedHyperparams`][], the inner names are used without a prefix.

    **Raises:**

    A `TypeError` if the state is another transformation's.

    !!! example

        ```python
        import eqopt
        import jax.numpy as jnp

        opt = eqopt.Adam(eqopt.Linear(init_value=1.0, end_value=0.0, transition_steps=10))
        state = opt.init(jnp.ones(3))
        assert eqopt.hyperparameters(opt, state)["learning_rate"] == 1.0
        ```
    """
    check_state(transformation, state, "state")
    transformation = canonicalize(transformation)
    return {found.name: found.value for found in _collect(transformation, state)}


def learning_rate(transformation: AnyTransformation, state: eqx.Module) -> Any:
    """The first learning rate found, or `None`."""
    rates = [
        value
        for name, value in hyperparameters(transformation, state).items()
        if name.split(".")[-1] == "learning_rate"
    ]
    return rates[0] if rates else None


def _collect(transformation: AnyTransformation, state: Any) -> list[_Found]:
    if isinstance(transformation, Scheduled):
        return _collect(transformation.at(state.count), state.inner_state)
    if isinstance(transformation, InjectedHyperparams):
        values = compiled_call.call(_in_force, transformation, state)
        return [_Found(name, None, x) for name, x in values.items()]
    if isinstance(transformation, AbstractOptimizer):
        # An optimizer passes its schedules to its links, whose states have the counts.
        inside = {id(x.source): x.value for x in _collect(composed(transformation), state)}
        return [
            _Found(name, x, inside[id(x)] if isinstance(x, AbstractSchedule) else jnp.asarray(x))
            for name, x in _numbers(transformation)
        ]
    own = [
        _Found(name, x, x(state.count) if isinstance(x, AbstractSchedule) else jnp.asarray(x))
        for name, x in _numbers(transformation)
    ]
    states = iter(_modules(state))
    for name, child in children(transformation).items():
        expected = state_type(child)
        own_state = next((x for x in states if isinstance(x, expected)), None)
        if own_state is None:
            raise TypeError(f"`state` holds no `{expected.__name__}`, the state of `{name}`")
        own += [
            _Found(f"{name}.{found.name}", found.source, found.value)
            for found in _collect(child, own_state)
        ]
    return own


def _in_force(transformation: InjectedHyperparams[Any], state: Any) -> dict[str, Any]:
    # Traced, so that numbers that a user has put into the state are not compared with the bounds.
    found = _collect(transformation.at(state), state.inner_state)
    return {x.name: x.value for x in found}


def _numbers(transformation: AnyTransformation) -> list[tuple[str, Any]]:
    found = [(f.name, getattr(transformation, f.name)) for f in dataclasses.fields(transformation)]
    kinds = AbstractSchedule | jax.Array | np.ndarray | np.generic
    return [(name, x) for name, x in found if isinstance(x, kinds) and not is_key(x)]


def _modules(state: eqx.Module) -> list[Any]:
    return [
        x
        for x in jax.tree.leaves(
            state, is_leaf=lambda x: isinstance(x, eqx.Module) and x is not state
        )
        if isinstance(x, eqx.Module)
    ]
