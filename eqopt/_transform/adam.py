"""Adam's rescaling by the first two moments."""

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, Inexact, PyTree

from .._base import checks
from .._base.arithmetic import abs_sq, debiased, divide, ema, over_root
from .._base.converters import decay_factor, flag, non_negative, to_dtype
from .._base.trees import increment, moment_weights, one_minus, zero_count, zeros_like
from .._base.types import Count, Params, Scalar
from .._objective.objective import Context
from .._transformation.base import AbstractLeafwise
from .._transformation.leafwise import Rule


@checks.typed
def _adam(
    update: Inexact[Array, "*shape"],
    mu: Inexact[Array, "*shape"],
    nu: Float[Array, "*shape"],
    rest1: Float[Array, ""],
    rest2: Float[Array, ""],
    eps: Float[Array, ""],
    eps_root: Float[Array, ""],
    mu_weight: Float[Array, ""],
    nu_weight: Float[Array, ""],
    next_mu_weight: Float[Array, ""] | None = None,
) -> tuple[Inexact[Array, "*shape"], Inexact[Array, "*shape"], Float[Array, "*shape"]]:
    mu = ema(rest1, mu, update)
    nu = ema(rest2, nu, abs_sq(update))
    direction = debiased(mu, update, rest1, mu_weight, next_mu_weight)
    return over_root(direction, divide(nu, nu_weight), eps, eps_root), mu, nu


@checks.typed
class ScaleByAdamState(eqx.Module):
    """The state of [`eqopt.ScaleByAdam`][].

    **Arguments:**

    - `count`: the number of steps taken, int32 of shape `()`.
    - `mu`: the average of the gradients, not debiased, like the parameters.
    - `nu`: the average of their squared moduli, not debiased; real, and at least float32.
    """

    count: Count
    mu: PyTree
    nu: PyTree


class ScaleByAdam(AbstractLeafwise[ScaleByAdamState]):
    r"""Divides the average gradient by the root of the average squared gradient.

    $$\begin{aligned}
    m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, &
    v_t &= \beta_2 v_{t-1} + (1 - \beta_2) |g_t|^2, \\
    \hat m_t &= m_t / (1 - \beta_1^t), & \hat v_t &= v_t / (1 - \beta_2^t), \\
    u_t &= \hat m_t \big/ \left(\sqrt{\hat v_t + \bar\epsilon} + \epsilon\right).
    \end{aligned}$$

    With `nesterov`,
    $\hat m_t = \beta_1 m_t / (1 - \beta_1^{t+1}) + (1 - \beta_1) g_t / (1 - \beta_1^t)$.

    **Arguments:**

    - `b1`: the decay $\beta_1$ of the average gradient, in $[0, 1)$.
    - `b2`: the decay $\beta_2$ of the average squared gradient, in $[0, 1)$.
    - `eps`: added to the root of the average square, $\epsilon \ge 0$.
    - `eps_root`: added under that root, $\bar\epsilon \ge 0$.
    - `mu_dtype`: the dtype of the average gradient $m$; `None` is the parameter's, and float32 for
        half precision.
    - `nesterov`: whether to look ahead, as Nesterov's momentum does.

    !!! note
        `nesterov` follows Dozat's report without its momentum schedule; torch's `NAdam` has the
        schedule, and differs by as much as 17 %.

    ??? cite "Reference"
        Kingma and Ba, *Adam: A Method for Stochastic Optimization*, ICLR 2015, algorithm 1
        (arXiv 1412.6980). Dozat, *Incorporating Nesterov Momentum into Adam*, ICLR workshop 2016.
    """

    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.999)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)
    eps_root: Scalar = eqx.field(converter=non_negative("eps_root"), default=0.0)
    mu_dtype: np.dtype | None = eqx.field(converter=to_dtype("mu_dtype"), static=True, default=None)
    nesterov: bool = eqx.field(converter=flag("nesterov"), static=True, default=False)

    def init_state(self, params: Params, context: Context) -> ScaleByAdamState:
        return ScaleByAdamState(
            zero_count(), zeros_like(params, self.mu_dtype), zeros_like(params, real=True)
        )

    def rule(self, state: ScaleByAdamState, params: Params | None, context: Context) -> Rule:
        count = increment(state.count)
        weights = moment_weights(self.b1, self.b2, count, nesterov=self.nesterov)
        return Rule(
            _adam,
            ScaleByAdamState(count, state.mu, state.nu),
            trees=("mu", "nu"),
            scalars=(one_minus(self.b1), one_minus(self.b2), self.eps, self.eps_root, *weights),
        )
