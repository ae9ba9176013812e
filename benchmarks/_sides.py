"""The libraries that are compared, and the train steps that users write with them."""

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax
from jaxtyping import Array

import eqopt

RATE = 1e-3
MAX_NORM = 1.0


def peer(name: str) -> Any:
    """A package that is compared with where it is installed; else `None`."""
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


def torch_on_cpu() -> Any:
    """torch, where it is installed and what it does runs on the same device as ours."""
    return peer("torch") if jax.default_backend() == "cpu" else None


def _eqopt_apply(
    optimizer: Any, model: Any, grads: Any, state: Any, **extra: Any
) -> tuple[Any, Any]:
    updates, state = optimizer.update(grads, state, model, **extra)
    return eqopt.apply_updates(model, updates), state


def _optax_apply(
    optimizer: Any, model: Any, grads: Any, state: Any, **extra: Any
) -> tuple[Any, Any]:
    params = eqx.filter(model, eqx.is_inexact_array)
    updates, state = optimizer.update(grads, state, params, **extra)
    return eqx.apply_updates(model, updates), state


@dataclasses.dataclass(frozen=True)
class Side:
    """A library: how its AdamW is made, with clipping before it or not, begins, and is applied."""

    name: str
    make: Callable[[float], Any]
    clipping: Callable[[float], Any]
    trained: Callable[[Any], Any]
    apply: Callable[..., tuple[Any, Any]]


# The same weight decay on both sides. eqopt takes the model as it is; optax takes its arrays.
EQOPT = Side(
    "eqopt",
    lambda rate: eqopt.AdamW(rate),
    lambda rate: eqopt.Chain(eqopt.ClipByGlobalNorm(MAX_NORM), eqopt.AdamW(rate)),
    lambda model: model,
    _eqopt_apply,
)
OPTAX = Side(
    "optax",
    lambda rate: optax.adamw(rate),
    lambda rate: optax.chain(optax.clip_by_global_norm(MAX_NORM), optax.adamw(rate)),
    lambda model: eqx.filter(model, eqx.is_inexact_array),
    _optax_apply,
)
# With a state that is one vector for each average.
FLATTENED = dataclasses.replace(
    EQOPT,
    name="eqopt Flatten",
    make=lambda rate: eqopt.Flatten(EQOPT.make(rate)),
    clipping=lambda rate: eqopt.Flatten(EQOPT.clipping(rate)),
)
SIDES = (EQOPT, OPTAX)


# Train steps


def written_out(side: Side, loss: Callable[..., Any]) -> Callable[..., Any]:
    """A train step as a user writes it, not compiled yet."""

    def step(optimizer: Any, model: Any, state: Any, x: Array, y: Array) -> tuple[Any, Any]:
        grads = eqx.filter_grad(loss)(model, x, y)
        return side.apply(optimizer, model, grads, state)

    return step


def by_hand(side: Side, loss: Callable[..., Any]) -> Callable[..., Any]:
    """The same, compiled; the optimizer is an argument."""
    return eqx.filter_jit(written_out(side, loss))


def by_step(side: Side, loss: Callable[..., Any]) -> Callable[..., Any]:
    """The same, as eqopt's optimizers have it."""

    def step(optimizer: Any, model: Any, state: Any, x: Array, y: Array) -> tuple[Any, Any]:
        model, state, _ = optimizer.step(loss, model, state, x, y)
        return model, state

    return step


WAYS = {"eqopt": (EQOPT, by_hand), "eqopt's step": (EQOPT, by_step), "optax": (OPTAX, by_hand)}


# The update alone


class Update:
    """Updates and applies, compiled; the parameters and the state are overwritten.

    What the optimizer has for numbers are arguments.
    """

    def __init__(self, side: Side, optimizer: Any, extra: Callable[..., Any] | None = None) -> None:
        self.numbers, rest = eqx.partition(optimizer, _is_array)

        def step(params: Any, state: Any, numbers: Any, grads: Any) -> tuple[Any, Any]:
            more = {} if extra is None else extra(params, grads)
            return side.apply(eqx.combine(numbers, rest), params, grads, state, **more)

        self.step = jax.jit(step, donate_argnums=(0, 1))

    def __call__(self, params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        return self.step(params, state, self.numbers, grads)

    def lower(self, params: Any, state: Any, grads: Any) -> Any:
        return self.step.lower(params, state, self.numbers, grads)


def _is_array(x: Any) -> bool:
    return isinstance(x, np.ndarray | jax.Array)
