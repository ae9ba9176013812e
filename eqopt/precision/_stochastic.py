"""Stochastic rounding of half-precision parameters."""

from typing import Any, Generic

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PyTree

from .._base import checks
from .._base.arithmetic import cast, is_half, wider
from .._base.converters import prng_key
from .._base.key_data import unkept
from .._base.trees import add, narrowed, placed_like
from .._base.types import Model, Params, State, Updates
from .._jit import compiled_call, partition
from .._objective.objective import Context, require_params
from .._transformation.apply import arrays_of, merged
from .._transformation.base import AbstractTransformation, check_state, check_transformation
from .._transformation.nesting import AbstractConstrained, check_nesting, Requirement


@jax.jit
@checks.typed
def _land(
    param: Float[Array, "*shape"], update: Float[Array, "*shape"], key: Any
) -> Float[Array, "*shape"]:
    """The sum, rounded at random to one of its two neighbors in the parameter's dtype."""
    dtype = wider(param.dtype, update.dtype)
    total = lax.add(cast(param, dtype), cast(update, dtype))
    nearest = narrowed(total, param.dtype)
    rest = lax.sub(total, cast(nearest, dtype))
    infinity = jnp.full_like(nearest, np.inf)
    toward = lax.select(lax.gt(rest, lax.full_like(rest, 0)), infinity, lax.neg(infinity))
    other = lax.nextafter(nearest, toward)
    # Beyond the largest number the gap is infinite, and the probability 0.
    chance = lax.div(rest, lax.sub(cast(other, dtype), cast(nearest, dtype)))
    draw = placed_like(jax.random.uniform(key, param.shape, dtype), param)
    return lax.select(lax.lt(draw, chance) & jnp.isfinite(nearest), other, nearest)


class StochasticRoundingState(eqx.Module, Generic[State]):
    """The state of [`eqopt.precision.StochasticRounding`][].

    **Arguments:**

    - `inner_state`: the state of the inner transformation.
    """

    inner_state: State


class StochasticRounding(AbstractConstrained[StochasticRoundingState[State]], Generic[State]):
    r"""Rounds half-precision parameters at random, so that the updates are correct on average.

    The sum $s = \theta + u$ of parameter and update is between two neighbors $a \le s < b$ in the
    parameter's dtype. The parameter becomes

    $$b \text{ with probability } \frac{s - a}{b - a}, \quad\text{else } a,$$

    whose expectation is $s$. With rounding to nearest, an update of less than half the distance
    would be lost every time. It costs no memory, and adds noise to the parameters.

    `update` must be given a PRNG `key`, a new one at each step. `fit(..., key=key)` does this;
    `step(..., key=key)` also passes the key to the objective, if it takes one. Parameters in
    float32 or wider are rounded to nearest, and need no key.

    !!! note
        The updates are in the parameters' dtype. If a parameter more than doubles, or becomes less
        than half of its value, in a single step, the update itself is rounded to nearest.

    !!! warning
        It must see the updates as they are applied: put it around the whole optimizer, or last in a
        chain.

    **Arguments:**

    - `inner`: the transformation.

    Raises a `ValueError` if there are half-precision parameters and no `key`.

    ??? cite "Reference"
        Gupta, Agrawal, Gopalakrishnan and Narayanan, *Deep learning with limited numerical
        precision*, ICML 2015, section 3.1 (arXiv 1502.02551); with bfloat16, Zamirai et al.,
        *Revisiting bfloat16 training*, 2020, algorithm 2 (arXiv 2010.06192).
    """

    inner: AbstractTransformation[State]

    def __check_init__(self) -> None:
        check_transformation("inner", self.inner)
        check_nesting(
            self, self.inner, {Requirement.LANDS: "they are rounded to one side of it at random"}
        )

    def requirements(self) -> frozenset[Requirement]:
        return frozenset({Requirement.MOVES, Requirement.EXACT})

    def init_state(self, params: Params, context: Context) -> StochasticRoundingState[State]:
        return StochasticRoundingState(self.inner.init_state(params, context))

    def transform(
        self,
        updates: Updates,
        state: StochasticRoundingState[State],
        params: Params | None,
        context: Context,
    ) -> tuple[Updates, StochasticRoundingState[State]]:
        check_state(self.inner, state.inner_state, "state.inner_state")
        params = require_params(params, self, context)
        out, inner_state = self.inner.transform(updates, state.inner_state, params, context)
        leaves, treedef = checks.flatten(params)
        changes: list[object] = treedef.flatten_up_to(out)
        # The objective and the inner transformation may have used the key itself.
        keys = _Keys(context, self)
        for i, (x, u) in enumerate(zip(leaves, changes, strict=True)):
            if u is not None and is_half(x):
                dtype = wider(x.dtype)
                target = cast(_land(x, u, keys.of(i)), dtype)
                changes[i] = narrowed(lax.sub(target, cast(x, dtype)), x.dtype)
        return treedef.unflatten(changes), StochasticRoundingState(inner_state)


class _Keys:
    """A key for each leaf, from the user's key; raises only when a key is needed."""

    def __init__(self, context: Context, owner: object) -> None:
        self.context, self.owner = context, owner

    def of(self, index: int) -> Any:
        key = jax.random.fold_in(self.context.require("key", self.owner), 0x5EED)
        return jax.random.fold_in(key, index)


def apply_updates_stochastically(params: Model, updates: PyTree, key: object) -> Model:
    """Adds updates to a model, each sum rounded at random to a number of the parameter's dtype.

    For half-precision parameters the sum is correct on average (see
    [`eqopt.precision.StochasticRounding`][]); for all others it is [`eqopt.apply_updates`][].

    **Arguments:**

    - `params`: the model: any PyTree.
    - `updates`: like the model, with an array of the parameter's shape for each inexact array to be
        changed, and `None` for everything that is to stay as it is.
    - `key`: a PRNG key, a new one for each call.

    **Returns:**

    The new model, of the same type.

    **Raises:** a `ValueError` or `TypeError` that names the leaf that does not fit.
    """
    key = unkept(prng_key("key")(key))
    return merged(
        params, compiled_call.call(_apply, *map(partition.filter_arrays, (params, updates)), key)
    )


def _apply(model: PyTree, updates: PyTree, key: Any) -> PyTree:
    model = arrays_of(model, updates)
    leaves, treedef = checks.flatten(model)
    trained = treedef.unflatten([x if checks.is_inexact(x) else None for x in leaves])
    changes, _ = checks.flatten(checks.conform_to(updates, trained, "updates", any_dtype=True))
    for i, u in enumerate(changes):
        if u is not None:
            x = leaves[i]
            leaves[i] = _land(x, u, jax.random.fold_in(key, i)) if is_half(x) else add(x, u)
    return treedef.unflatten(leaves)
