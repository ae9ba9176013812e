"""Adan's rescaling, with an average of how the gradients change."""

import equinox as eqx
from jax import lax
from jaxtyping import Array, Float, Inexact, PyTree

from .._base import checks
from .._base.arithmetic import abs_sq, divide, ema, minus, over_root, plus, times, where_positive
from .._base.converters import decay_factor, non_negative
from .._base.trees import bias_correction, increment, one_minus, zero_count, zeros_like
from .._base.types import Count, Params, Scalar
from .._objective.objective import Context
from .._transformation.base import AbstractLeafwise
from .._transformation.leafwise import Rule


@checks.typed
def _adan(
    update: Inexact[Array, "*shape"],
    m: Inexact[Array, "*shape"],
    v: Inexact[Array, "*shape"],
    n: Float[Array, "*shape"],
    g: Inexact[Array, "*shape"],
    first: Float[Array, ""],
    rest1: Float[Array, ""],
    rest2: Float[Array, ""],
    rest3: Float[Array, ""],
    b2: Float[Array, ""],
    eps: Float[Array, ""],
    eps_root: Float[Array, ""],
    m_weight: Float[Array, ""],
    v_weight: Float[Array, ""],
    n_weight: Float[Array, ""],
) -> tuple[
    Inexact[Array, "*shape"],
    Inexact[Array, "*shape"],
    Inexact[Array, "*shape"],
    Float[Array, "*shape"],
    Inexact[Array, "*shape"],
]:
    change = where_positive(first, lax.full_like(update, 0), minus(update, g))
    m = ema(rest1, m, update)
    v = ema(rest2, v, change)
    n = ema(rest3, n, abs_sq(plus(update, times(b2, change))))
    direction = plus(divide(m, m_weight), times(b2, divide(v, v_weight)))
    return over_root(direction, divide(n, n_weight), eps, eps_root), m, v, n, update


@checks.typed
class ScaleByAdanState(eqx.Module):
    """The state of [`eqopt.ScaleByAdan`][].

    **Arguments:**

    - `count`: the number of steps taken, int32 of shape `()`.
    - `m`: the average of the gradients, like the parameters.
    - `v`: the average of their changes, like the parameters.
    - `n`: the average of the squared moduli of the extrapolated gradients; real.
    - `g`: the last gradient, like the parameters.

    The averages are not debiased, and all four are at least float32.
    """

    count: Count
    m: PyTree
    v: PyTree
    n: PyTree
    g: PyTree


class ScaleByAdan(AbstractLeafwise[ScaleByAdanState]):
    r"""Divides the average gradient, extrapolated by the average change of gradients, by the root
    of the average square.

    With $\Delta_t = g_t - g_{t-1}$, which is 0 in the first step,

    $$\begin{aligned}
    m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad
    v_t = \beta_2 v_{t-1} + (1 - \beta_2) \Delta_t, \\
    n_t &= \beta_3 n_{t-1} + (1 - \beta_3) |g_t + \beta_2 \Delta_t|^2, \\
    u_t &= \left(\hat m_t + \beta_2 \hat v_t\right) \big/
    \left(\sqrt{\hat n_t + \bar\epsilon} + \epsilon\right),
    \end{aligned}$$

    where hats debias: $\hat m_t = m_t / (1 - \beta_1^t)$, and so on.

    **Arguments:**

    - `b1`: the decay $\beta_1$ of the average gradient, in $[0, 1)$.
    - `b2`: the decay $\beta_2$ of the average change, in $[0, 1)$; also how far to look ahead.
    - `b3`: the decay $\beta_3$ of the average square, in $[0, 1)$.
    - `eps`: added to the root of that average, $\epsilon \ge 0$.
    - `eps_root`: added under that root, $\bar\epsilon \ge 0$.

    !!! note
        The paper's $\beta_i$ are one minus these, so its factor $1 - \beta_2$ is $\beta_2$ here.
        optax kept the factor but changed the meaning of the decays, so it looks ahead by 0.08 and
        not by 0.92. The authors' code agrees with eqopt.

    ??? cite "Reference"
        Xie, Zhou, Li, Lin and Yan, *Adan: Adaptive Nesterov Momentum Algorithm for Faster
        Optimizing Deep Models*, 2022, algorithm 1 (arXiv 2208.06677).
    """

    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.98)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.92)
    b3: Scalar = eqx.field(converter=decay_factor("b3"), default=0.99)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)
    eps_root: Scalar = eqx.field(converter=non_negative("eps_root"), default=0.0)

    def init_state(self, params: Params, context: Context) -> ScaleByAdanState:
        return ScaleByAdanState(
            count=zero_count(),
            m=zeros_like(params),
            v=zeros_like(params),
            n=zeros_like(params, real=True),
            g=zeros_like(params),
        )

    def rule(self, state: ScaleByAdanState, params: Params | None, context: Context) -> Rule:
        count = increment(state.count)
        decays = (self.b1, self.b2, self.b3)
        return Rule(
            _adan,
            ScaleByAdanState(count=count, m=state.m, v=state.v, n=state.n, g=state.g),
            trees=("m", "v", "n", "g"),
            scalars=(
                state.count == 0,
                *[one_minus(decay) for decay in decays],
                self.b2,
                self.eps,
                self.eps_root,
                *[bias_correction(decay, count) for decay in decays],
            ),
        )
