"""Transformations that keep what reaches them, and an objective that they are told."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from eqopt.writing import AbstractTransformation, Context
from tests.support.expected_views import table
from tests.support.toolbox import flatten, FLOAT

# The one extra argument that is a tree like the parameters.
WEIGHTS = "weights"


def digest(leaves: Iterable[Any]) -> Array:
    """One number for a list of arrays and `None`, of JAX's."""
    total = jnp.zeros((), FLOAT)
    for i, x in enumerate(leaves):
        if x is not None:
            factors = jnp.asarray(table(i, x.shape))
            total += jnp.sum(jnp.real(x).astype(FLOAT) * factors)
            total += jnp.sum(jnp.imag(x).astype(FLOAT) * factors * 3)
    return total


def objective(model: Any, scale: Any) -> Array:
    """A quadratic objective of all parameters of a model, and an extra argument."""
    total = jnp.zeros((), FLOAT)
    for i, x in enumerate(x for x in jax.tree.leaves(model) if eqx.is_inexact_array(x)):
        square = jnp.square(jnp.real(x).astype(FLOAT)) + jnp.square(jnp.imag(x).astype(FLOAT))
        total += jnp.sum(jnp.asarray(table(i, x.shape)) * square)
    return scale * total


def objective_with_aux(model: Any, scale: Any) -> tuple[Array, Any]:
    value = objective(model, scale)
    return value, {"value": value}


@dataclasses.dataclass(frozen=True)
class Sight:
    """What a spy finds at one trace: shapes and dtypes, and names."""

    name: str
    params: tuple[Any, ...]
    updates: tuple[Any, ...]
    grad: tuple[Any, ...]
    weights: tuple[Any, ...]
    statics: tuple[Any, ...]
    extra: frozenset[str]


class Witness:
    """What the spies find. Hashed by identity."""

    def __init__(self) -> None:
        self.sights: list[Sight] = []


def kinds(leaves: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(None if x is None else (x.shape, np.dtype(x.dtype)) for x in leaves)


class SpyState(eqx.Module):
    name: str = eqx.field(static=True)
    num_calls: Array
    value: Array
    params: Array
    grad: Array
    objective: Array
    key: Array
    extra: dict[str, Array]


class Spy(AbstractTransformation[SpyState]):
    """Changes nothing, and keeps in its state a digest of all that it is told.

    **Arguments:**

    - `witness`: who is told at each trace.
    - `name`: the spy's.
    - `names`: the extra arguments that are arrays or trees of them.
    """

    witness: Witness = eqx.field(static=True)
    name: str = eqx.field(static=True)
    names: tuple[str, ...] = eqx.field(static=True)

    def init_state(self, params: Any, context: Context) -> SpyState:
        value, at, grad, objective = (jnp.zeros((), FLOAT) for _ in range(4))
        key, extra = jnp.zeros(2, jnp.uint32), {name: jnp.zeros((), FLOAT) for name in self.names}
        num_calls = jnp.zeros((), jnp.int32)
        return SpyState(self.name, num_calls, value, at, grad, objective, key, extra)

    def transform(
        self, updates: Any, state: SpyState, params: Any, context: Context
    ) -> tuple[Any, SpyState]:
        value, grad, key = (context.require(x, self) for x in ("value", "grad", "key"))
        given = {name: context.require(name, self) for name in self.names}
        self.witness.sights.append(
            Sight(
                self.name,
                kinds(flatten(params)),
                kinds(flatten(updates)),
                kinds(flatten(grad)),
                kinds(flatten(given[WEIGHTS])),
                tuple(x for x in context.extra.values() if isinstance(x, str) or callable(x)),
                frozenset(context.extra),
            )
        )
        new = SpyState(
            self.name,
            state.num_calls + 1,
            jnp.asarray(value).astype(FLOAT),
            digest(flatten(params)),
            digest(flatten(grad)),
            context.require("value_fn", self)(params)[0].astype(FLOAT),
            jax.random.key_data(key),
            {name: digest(flatten(jax.tree.map(jnp.asarray, x))) for name, x in given.items()},
        )
        return updates, new


class TappedState(eqx.Module):
    name: str = eqx.field(static=True)
    before: tuple[Array | None, ...]
    after: tuple[Array | None, ...]
    inner_state: Any


class Tapped(AbstractTransformation[TappedState]):
    """Changes nothing, and keeps the updates that go in and come out."""

    inner: AbstractTransformation[Any]
    name: str = eqx.field(static=True)

    def init_state(self, params: Any, context: Context) -> TappedState:
        before, after = (_kept(jax.tree.map(jnp.zeros_like, params), params) for _ in range(2))
        return TappedState(self.name, before, after, self.inner.init_state(params, context))

    def transform(
        self, updates: Any, state: TappedState, params: Any, context: Context
    ) -> tuple[Any, TappedState]:
        out, inner_state = self.inner.transform(updates, state.inner_state, params, context)
        before, after = _kept(updates, params), _kept(out, params)
        return out, TappedState(self.name, before, after, inner_state)


def _kept(updates: Any, params: Any) -> tuple[Array | None, ...]:
    def keep(u: Any, x: Any) -> Any:
        if x is None:
            return None
        wide = jax.dtypes.canonicalize_dtype(np.complex128 if jnp.iscomplexobj(x) else np.float64)
        return jnp.zeros(x.shape, wide) if u is None else u.astype(wide)

    return tuple(keep(u, x) for u, x in zip(flatten(updates), flatten(params), strict=True))
