"""ACProp's rescaling by the distance of earlier gradients from their average."""

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Inexact, PyTree

from .._base import checks
from .._base.arithmetic import abs_sq, divide, ema, minus, over_root, plus, where_positive
from .._base.converters import decay_factor, non_negative
from .._base.trees import bias_correction, increment, one_minus, zero_count, zeros_like
from .._base.types import Count, Params, Scalar
from .._objective.objective import Context
from .._transformation.base import AbstractLeafwise
from .._transformation.leafwise import Rule


@checks.typed
def _acprop(
    update: Inexact[Array, "*shape"],
    mu: Inexact[Array, "*shape"],
    nu: Float[Array, "*shape"],
    first: Float[Array, ""],
    rest1: Float[Array, ""],
    rest2: Float[Array, ""],
    eps: Float[Array, ""],
    eps_root: Float[Array, ""],
    nu_weight: Float[Array, ""],
) -> tuple[Inexact[Array, "*shape"], Inexact[Array, "*shape"], Float[Array, "*shape"]]:
    square = where_positive(first, lax.full_like(nu, 1), divide(nu, nu_weight))
    nu = plus(ema(rest2, nu, abs_sq(minus(update, mu))), eps_root)
    return over_root(update, square, eps), ema(rest1, mu, update), nu


@checks.typed
class ScaleByACPropState(eqx.Module):
    """The state of [`eqopt.ScaleByACProp`][].

    **Arguments:**

    - `count`: the number of steps taken, int32 of shape `()`.
    - `mu`: the average of the gradients, not debiased, like the parameters.
    - `nu`: the average of the squared moduli of each gradient's distance from the average before
        it, with `eps_root` added at each step, not debiased; real, and at least float32.
    """

    count: Count
    mu: PyTree
    nu: PyTree


class ScaleByACProp(AbstractLeafwise[ScaleByACPropState]):
    r"""Divides the gradient by the root of the average squared distance of earlier gradients from
    their average.

    With $\hat s_0 = 1$ and $\hat s_t = s_t / (1 - \beta_2^t)$,

    $$\begin{aligned}
    u_t &= g_t \big/ \left(\sqrt{\hat s_{t-1}} + \epsilon\right), \\
    s_t &= \beta_2 s_{t-1} + (1 - \beta_2) |g_t - m_{t-1}|^2 + \bar\epsilon, \qquad
    m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t.
    \end{aligned}$$

    Numerator and denominator belong to different steps, so that a gradient does not shorten its own
    step. There is no momentum: $m$ is only the center.

    **Arguments:**

    - `b1`: the decay $\beta_1$ of the average gradient, in $[0, 1)$.
    - `b2`: the decay $\beta_2$ of the average squared distance from it, in $[0, 1)$.
    - `eps`: added to the root of that average, $\epsilon \ge 0$.
    - `eps_root`: added to that average at each step, $\bar\epsilon \ge 0$.

    !!! note
        The distance is from $m_{t-1}$, as in optax's code; in its formula, and in
        [`eqopt.ScaleByBelief`][], it is from $m_t$, which is shorter by a factor of $\beta_1$. The
        first step is the plain gradient.

    ??? cite "Reference"
        Zhuang, Ding, Tang, Dvornek, Tatikonda and Duncan, *Momentum Centering and Asynchronous
        Update for Adaptive Gradient Methods*, NeurIPS 2021 (arXiv 2110.05454).
    """

    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.999)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-16)
    eps_root: Scalar = eqx.field(converter=non_negative("eps_root"), default=1e-16)

    def init_state(self, params: Params, context: Context) -> ScaleByACPropState:
        return ScaleByACPropState(zero_count(), zeros_like(params), zeros_like(params, real=True))

    def rule(self, state: ScaleByACPropState, params: Params | None, context: Context) -> Rule:
        return Rule(
            _acprop,
            ScaleByACPropState(increment(state.count), state.mu, state.nu),
            trees=("mu", "nu"),
            scalars=(
                state.count == 0,
                one_minus(self.b1),
                one_minus(self.b2),
                self.eps,
                self.eps_root,
                # The bias correction of the earlier steps; 1 step in the first, where it is not
                # used.
                bias_correction(self.b2, jnp.maximum(state.count, 1)),
            ),
        )
