"""Sums of several updates."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, PyTree

from .._base import checks
from .._base.arithmetic import plus
from .._base.converters import steps
from .._base.trees import increment, zero_count, zeros_like
from .._base.types import Count, Params, Steps
from .._objective.objective import Context
from .._transformation.base import AbstractLeafwise
from .._transformation.leafwise import Rule


@checks.typed
def _apply_every(
    update: Inexact[Array, "*shape"], grad_acc: Inexact[Array, "*shape"], emits: Float[Array, ""]
) -> tuple[Inexact[Array, "*shape"], Inexact[Array, "*shape"]]:
    total = plus(grad_acc, update)
    zeros = jnp.zeros_like(total)
    return jnp.where(emits > 0, total, zeros), jnp.where(emits > 0, zeros, total)


@checks.typed
class ApplyEveryState(eqx.Module):
    """The state of [`eqopt.ApplyEvery`][].

    **Arguments:**

    - `mini_step`: the number of updates in the sum, int32 of shape `()`.
    - `grad_acc`: the sum, like the parameters.
    """

    mini_step: Count
    grad_acc: PyTree


class ApplyEvery(AbstractLeafwise[ApplyEveryState]):
    r"""Sums up $k$ updates, and returns the sum at every $k$-th step; the other updates are zero.

    !!! note
        It sums the outputs of the links before it. To give an optimizer the mean of several
        gradients, use [`eqopt.MultiSteps`][].

    **Arguments:**

    - `k`: the number $k$ of updates, at least 1.
    """

    k: Steps = eqx.field(converter=steps("k", at_least=1), default=1)

    def init_state(self, params: Params, context: Context) -> ApplyEveryState:
        return ApplyEveryState(zero_count(), zeros_like(params))

    def rule(self, state: ApplyEveryState, params: Params | None, context: Context) -> Rule:
        taken = increment(state.mini_step)
        emits = taken >= self.k
        new = ApplyEveryState(jnp.where(emits, np.int32(0), taken), state.grad_acc)
        return Rule(_apply_every, new, trees=("grad_acc",), scalars=(emits,))
