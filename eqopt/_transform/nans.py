"""Updates without NaN."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Inexact, PyTree

from .._base import checks
from .._base.trees import full_like
from .._base.types import Params
from .._objective.objective import Context
from .._transformation.base import AbstractLeafwise
from .._transformation.leafwise import Rule


@checks.typed
def _zero_nans(
    update: Inexact[Array, "*shape"], found_nan: Bool[Array, ""]
) -> tuple[Inexact[Array, "*shape"], Bool[Array, ""]]:
    bad = jnp.isnan(update)
    return jnp.where(bad, 0, update), jnp.any(bad)


def _no_shape(shape: tuple[int, ...]) -> tuple[tuple[int, ...] | None, ...]:
    return ((),)


@checks.typed
class ZeroNaNsState(eqx.Module):
    """The state of [`eqopt.ZeroNaNs`][].

    **Arguments:**

    - `found_nan`: a tree like the parameters, with a boolean for each: whether its last update had
        a NaN.
    """

    found_nan: PyTree


class ZeroNaNs(AbstractLeafwise[ZeroNaNsState]):
    r"""Replaces each NaN in the updates by zero, and tells in its state where there was one.

    The rest of the update is unchanged, infinity included; to skip a step that is not finite, see
    [`eqopt.ApplyIfFinite`][]. A complex number with a NaN in one part becomes zero.
    """

    def init_state(self, params: Params, context: Context) -> ZeroNaNsState:
        def nothing(x: Array) -> Array:
            # Computed like a reduction of the parameter, so that it is placed like one.
            return full_like(jnp.sum(jnp.real(x)), False, np.bool_)

        return ZeroNaNsState(jax.tree.map(nothing, params))

    def rule(self, state: ZeroNaNsState, params: Params | None, context: Context) -> Rule:
        return Rule(_zero_nans, state, trees=("found_nan",), shapes=_no_shape)
