"""LaProp: the gradient is normalized before it is averaged."""

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, Inexact, PyTree

from .._base import checks
from .._base.arithmetic import abs_sq, divide, ema, over_root
from .._base.converters import decay_factor, non_negative, to_dtype
from .._base.trees import increment, moment_weights, one_minus, zero_count, zeros_like
from .._base.types import Count, Params, Scalar
from .._objective.objective import Context
from .._transformation.base import (
    AbstractLeafwise,
)
from .._transformation.leafwise import Rule


@checks.typed
def _laprop(
    update: Inexact[Array, "*shape"],
    mu: Inexact[Array, "*shape"],
    nu: Float[Array, "*shape"],
    rest1: Float[Array, ""],
    rest2: Float[Array, ""],
    eps: Float[Array, ""],
    eps_root: Float[Array, ""],
    mu_weight: Float[Array, ""],
    nu_weight: Float[Array, ""],
) -> tuple[Inexact[Array, "*shape"], Inexact[Array, "*shape"], Float[Array, "*shape"]]:
    nu = ema(rest2, nu, abs_sq(update))
    mu = ema(rest1, mu, over_root(update, divide(nu, nu_weight), eps, eps_root))
    return divide(mu, mu_weight), mu, nu


@checks.typed
class ScaleByLaPropState(eqx.Module):
    """The state of [`eqopt.control.ScaleByLaProp`][].

    **Arguments:**

    - `count`: the number of steps taken, int32 of shape `()`.
    - `mu`: the average of the normalized gradients, not debiased, like the parameters.
    - `nu`: the average of the gradients' squared moduli, not debiased; real, and at least float32.
    """

    count: Count
    mu: PyTree
    nu: PyTree


class ScaleByLaProp(AbstractLeafwise[ScaleByLaPropState]):
    r"""Averages the gradient divided by the root of the average squared gradient.

    $$\begin{aligned}
    v_t &= \beta_2 v_{t-1} + (1 - \beta_2) |g_t|^2, \qquad
    \hat v_t = v_t / (1 - \beta_2^t), \\
    m_t &= \beta_1 m_{t-1} + (1 - \beta_1)\, g_t \big/
    \left(\sqrt{\hat v_t + \bar\epsilon} + \epsilon\right), \qquad
    u_t = m_t / (1 - \beta_1^t).
    \end{aligned}$$

    Adam divides the average by the root; here each gradient is divided by the root of its own step,
    so that $\beta_1$ and $\beta_2$ can be chosen apart from each other.

    **Arguments:**

    - `b1`: the decay $\beta_1$ of the average normalized gradient, in $[0, 1)$.
    - `b2`: the decay $\beta_2$ of the average squared gradient, in $[0, 1)$.
    - `eps`: added to the root of the average square, $\epsilon \ge 0$.
    - `eps_root`: added under that root, $\bar\epsilon \ge 0$.
    - `mu_dtype`: the dtype of the average $m$; `None` is the parameter's, and float32 for half
        precision.

    !!! note
        The average in pytorch-optimizer and in the authors' code contains the learning rate: under
        a schedule, past gradients there keep the rate of their own step. Here the rate is a link
        after it, as in emerging-optimizers.

    ??? cite "Reference"
        Ziyin, Wang and Ueda, *LaProp: Separating Momentum and Adaptivity in Adam*, 2020, algorithm
        1 (arXiv 2002.04839).
    """

    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.999)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-15)
    eps_root: Scalar = eqx.field(converter=non_negative("eps_root"), default=0.0)
    mu_dtype: np.dtype | None = eqx.field(converter=to_dtype("mu_dtype"), static=True, default=None)

    def init_state(self, params: Params, context: Context) -> ScaleByLaPropState:
        return ScaleByLaPropState(
            zero_count(), zeros_like(params, self.mu_dtype), zeros_like(params, real=True)
        )

    def rule(self, state: ScaleByLaPropState, params: Params | None, context: Context) -> Rule:
        count = increment(state.count)
        weights = moment_weights(self.b1, self.b2, count)
        return Rule(
            _laprop,
            ScaleByLaPropState(count, state.mu, state.nu),
            trees=("mu", "nu"),
            scalars=(one_minus(self.b1), one_minus(self.b2), self.eps, self.eps_root, *weights),
        )
