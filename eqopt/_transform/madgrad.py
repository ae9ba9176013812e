"""MADGRAD's dual averaging."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Inexact, PyTree

from .._base import checks
from .._base.arithmetic import abs_sq, cast, divide, minus, plus, times
from .._base.converters import decay_factor, non_negative
from .._base.trees import copies, increment, one_minus, zero_count, zeros_like
from .._base.types import Count, Params, Scalar
from .._objective.objective import Context, require_params
from .._schedule.base import AbstractSchedule, as_rate, value_at
from .._transformation.base import AbstractLeafwise
from .._transformation.leafwise import Rule


@checks.typed
def _madgrad(
    update: Inexact[Array, "*shape"],
    param: Inexact[Array, "*shape"],
    grad_sum_sq: Float[Array, "*shape"],
    s: Inexact[Array, "*shape"],
    x0: Inexact[Array, "*shape"],
    weight: Float[Array, ""],
    rest: Float[Array, ""],
    eps: Float[Array, ""],
) -> tuple[
    Inexact[Array, "*shape"],
    Float[Array, "*shape"],
    Inexact[Array, "*shape"],
    Inexact[Array, "*shape"],
]:
    grad_sum_sq = plus(grad_sum_sq, times(weight, abs_sq(update)))
    s = plus(s, times(weight, update))
    size = plus(_safe_cbrt(grad_sum_sq), eps)
    # Without `eps`, where there was no gradient. Written this way, so that a NaN does not count as
    # zero.
    nothing = lax.eq(size, lax.full_like(size, 0))
    average = divide(s, lax.select(nothing, lax.full_like(size, 1), size))
    # The mean of the difference only: a mean with the parameter itself rounds to the parameter's
    # digits.
    return times(rest, minus(minus(x0, param), average)), grad_sum_sq, s, x0


def _safe_cbrt(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The cube root of a number that is not negative, with a finite derivative, 1, at 0."""
    positive = lax.gt(x, np.zeros((), x.dtype))
    return lax.select(positive, lax.cbrt(lax.select(positive, x, lax.full_like(x, 1))), x)


@checks.typed
class ScaleByMADGRADState(eqx.Module):
    """The state of [`eqopt.ScaleByMADGRAD`][].

    **Arguments:**

    - `count`: the number of steps taken, int32 of shape `()`.
    - `grad_sum_sq`: the weighted sum of the squared moduli of the gradients; real, and at least
        float32.
    - `s`: the weighted sum of the gradients, like the parameters.
    - `x0`: the first parameters, in float32 at least.
    """

    count: Count
    grad_sum_sq: PyTree
    s: PyTree
    x0: PyTree


class ScaleByMADGRAD(AbstractLeafwise[ScaleByMADGRADState]):
    r"""Steps towards the first parameters minus the weighted sum of all gradients, divided by the
    cube root of the sum of their squares.

    $$\begin{aligned}
    \lambda_t &= (\gamma_t + \epsilon) \sqrt{t + 1}, &
    \nu_t &= \nu_{t-1} + \lambda_t |g_t|^2, \\
    s_t &= s_{t-1} + \lambda_t g_t, &
    z_t &= \theta_0 - s_t \big/ \left(\sqrt[3]{\nu_t} + \epsilon\right), \\
    \theta_{t+1} &= \mu\, \theta_t + (1 - \mu)\, z_t
    \end{aligned}$$

    with $t$ the number of steps taken before. The updates are the differences $\theta_{t+1} -
    \theta_t$: they go downhill, and must be applied unchanged.

    !!! note
        $\gamma_t$ is the permanent weight of its step's gradient: if it falls, later gradients
        count less, but the steps do not become shorter. With $\gamma_t = 0$ the weight is still
        $\epsilon$.

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, $\gamma_t \ge 0$.
    - `momentum`: the weight of the old parameters in each step, in $[0, 1)$.
    - `eps`: added to the cube root and to the rate, $\epsilon \ge 0$.

    Raises a `ValueError` if `update` is given no parameters.

    ??? cite "Reference"
        Defazio and Jelassi, *Adaptivity without Compromise: A Momentumized, Adaptive, Dual Averaged
        Gradient Method for Stochastic Optimization*, JMLR 23, 2022, algorithm 1 (arXiv 2101.11075).
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    momentum: Scalar = eqx.field(converter=decay_factor("momentum"), default=0.9)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-6)

    def init_state(self, params: Params, context: Context) -> ScaleByMADGRADState:
        return ScaleByMADGRADState(
            zero_count(), zeros_like(params, real=True), zeros_like(params), copies(params)
        )

    def rule(self, state: ScaleByMADGRADState, params: Params | None, context: Context) -> Rule:
        require_params(params, self, context)
        count = increment(state.count)
        eps = jnp.asarray(self.eps)
        rate = value_at(self.learning_rate, state.count)
        weight = (cast(rate, eps.dtype) + eps) * jnp.sqrt(cast(count, eps.dtype))
        return Rule(
            _madgrad,
            ScaleByMADGRADState(count, state.grad_sum_sq, state.s, state.x0),
            trees=("grad_sum_sq", "s", "x0"),
            scalars=(weight, one_minus(self.momentum), eps),
            needs_params=True,
        )
