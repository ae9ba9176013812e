"""Optimistic gradients, extrapolated by their last change."""

import equinox as eqx
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Inexact, PyTree

from .._base import checks
from .._base.arithmetic import minus, plus, times
from .._base.converters import non_negative
from .._base.trees import increment, zero_count, zeros_like
from .._base.types import Count, Params, Scalar
from .._objective.objective import Context
from .._transformation.base import AbstractLeafwise
from .._transformation.leafwise import Rule


@checks.typed
def _optimistic(
    update: Inexact[Array, "*shape"],
    previous: Inexact[Array, "*shape"],
    count: Float[Array, ""],
    alpha: Float[Array, ""],
    beta: Float[Array, ""],
) -> tuple[Inexact[Array, "*shape"], Inexact[Array, "*shape"]]:
    first = lax.eq(count, np.zeros((), count.dtype))
    change = minus(update, lax.select(first, update, previous))
    return plus(times(alpha, update), times(beta, change)), update


@checks.typed
class ScaleByOptimisticGradientState(eqx.Module):
    """The state of [`eqopt.ScaleByOptimisticGradient`][].

    **Arguments:**

    - `count`: the number of steps taken, int32 of shape `()`.
    - `previous_gradient`: the updates that came into the last step, like the parameters.
    """

    count: Count
    previous_gradient: PyTree


class ScaleByOptimisticGradient(AbstractLeafwise[ScaleByOptimisticGradientState]):
    r"""Adds to the updates their change since the last step: $u_t = \alpha g_t + \beta (g_t -
    g_{t-1})$.

    The last change predicts the next one. In a game of two players this damps the rotation of
    gradient descent around the equilibrium. In the first step the change is zero.

    **Arguments:**

    - `alpha`: the factor $\alpha \ge 0$ of the updates.
    - `beta`: the factor of its change, $\beta \ge 0$.

    ??? cite "Reference"
        Mokhtari, Ozdaglar and Pattathil, *A Unified Analysis of Extra-gradient and Optimistic
        Gradient Methods for Saddle Point Problems: Proximal Point Approach*, AISTATS 2020
        (arXiv 1901.08511).
    """

    alpha: Scalar = eqx.field(converter=non_negative("alpha"), default=1.0)
    beta: Scalar = eqx.field(converter=non_negative("beta"), default=1.0)

    def init_state(self, params: Params, context: Context) -> ScaleByOptimisticGradientState:
        return ScaleByOptimisticGradientState(zero_count(), zeros_like(params))

    def rule(
        self, state: ScaleByOptimisticGradientState, params: Params | None, context: Context
    ) -> Rule:
        return Rule(
            _optimistic,
            ScaleByOptimisticGradientState(increment(state.count), state.previous_gradient),
            trees=("previous_gradient",),
            scalars=(state.count, self.alpha, self.beta),
        )
