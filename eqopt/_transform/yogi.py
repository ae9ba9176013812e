"""Yogi's rescaling by a second moment with limited changes."""

import equinox as eqx
from jax import lax
from jaxtyping import Array, Float, Inexact, PyTree

from .._base import checks
from .._base.arithmetic import abs_sq, divide, ema, minus, over_root, times
from .._base.converters import decay_factor, non_negative
from .._base.trees import full_like, increment, moment_weights, one_minus, zero_count
from .._base.types import Count, Params, Scalar
from .._objective.objective import Context
from .._transformation.base import AbstractLeafwise
from .._transformation.leafwise import Rule


@checks.typed
def _yogi(
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
    square = abs_sq(update)
    mu = ema(rest1, mu, update)
    nu = minus(nu, times(rest2, times(lax.sign(minus(nu, square)), square)))
    return over_root(divide(mu, mu_weight), divide(nu, nu_weight), eps, eps_root), mu, nu


@checks.typed
class ScaleByYogiState(eqx.Module):
    """The state of [`eqopt.ScaleByYogi`][].

    **Arguments:**

    - `count`: the number of steps taken, int32 of shape `()`.
    - `mu`: the average of the gradients, not debiased, like the parameters.
    - `nu`: the estimate of their squared moduli, not debiased; real, and at least float32.
    """

    count: Count
    mu: PyTree
    nu: PyTree


class ScaleByYogi(AbstractLeafwise[ScaleByYogiState]):
    r"""Divides the average gradient by the root of an estimate of the squared gradients, which
    changes by at most each square.

    $$\begin{aligned}
    m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, &
    v_t &= v_{t-1} - (1 - \beta_2) \operatorname{sign}\left(v_{t-1} - |g_t|^2\right) |g_t|^2, \\
    \hat m_t &= m_t / (1 - \beta_1^t), & \hat v_t &= v_t / (1 - \beta_2^t), \\
    u_t &= \hat m_t \big/ \left(\sqrt{\hat v_t + \bar\epsilon} + \epsilon\right).
    \end{aligned}$$

    When gradients have become small, Adam forgets the earlier large ones at a rate of $1 -
    \beta_2$, and its steps grow. Yogi forgets them more slowly: the smaller the gradients, the
    slower.

    **Arguments:**

    - `b1`: the decay $\beta_1$ of the average gradient, in $[0, 1)$.
    - `b2`: one minus the rate at which the estimate follows the squares, $\beta_2$, in $[0, 1)$.
    - `eps`: added to the root of the estimate, $\epsilon \ge 0$.
    - `eps_root`: $\bar\epsilon \ge 0$, added under the root.
    - `initial_accumulator_value`: $v_0 \ge 0$, and also every entry of $m_0$.

    !!! note
        A nonzero $m_0$ is optax's choice. By default it adds $9 \cdot 10^{-6}$ to $\hat m_1$, and
        less later. The paper debiases neither average.

    ??? cite "Reference"
        Zaheer, Reddi, Sachan, Kale and Kumar, *Adaptive Methods for Nonconvex Optimization*,
        NeurIPS 2018, algorithm 2.
    """

    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.999)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-3)
    eps_root: Scalar = eqx.field(converter=non_negative("eps_root"), default=0.0)
    initial_accumulator_value: Scalar = eqx.field(
        converter=non_negative("initial_accumulator_value"), default=1e-6
    )

    def init_state(self, params: Params, context: Context) -> ScaleByYogiState:
        start = self.initial_accumulator_value
        return ScaleByYogiState(
            zero_count(), full_like(params, start), full_like(params, start, real=True)
        )

    def rule(self, state: ScaleByYogiState, params: Params | None, context: Context) -> Rule:
        count = increment(state.count)
        weights = moment_weights(self.b1, self.b2, count)
        return Rule(
            _yogi,
            ScaleByYogiState(count, state.mu, state.nu),
            trees=("mu", "nu"),
            scalars=(one_minus(self.b1), one_minus(self.b2), self.eps, self.eps_root, *weights),
        )
