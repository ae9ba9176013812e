"""AdaBelief's rescaling by how far the gradient is from its average."""

import equinox as eqx
from jaxtyping import Array, Float, Inexact, PyTree

from .._base import checks
from .._base.arithmetic import abs_sq, debiased, divide, ema, minus, over_root, plus
from .._base.converters import decay_factor, flag, non_negative
from .._base.trees import increment, moment_weights, one_minus, zero_count, zeros_like
from .._base.types import Count, Params, Scalar
from .._objective.objective import Context
from .._transformation.base import AbstractLeafwise
from .._transformation.leafwise import Rule


@checks.typed
def _belief(
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
    nu = plus(ema(rest2, nu, abs_sq(minus(update, mu))), eps_root)
    direction = debiased(mu, update, rest1, mu_weight, next_mu_weight)
    return over_root(direction, divide(nu, nu_weight), eps), mu, nu


@checks.typed
class ScaleByBeliefState(eqx.Module):
    """The state of [`eqopt.ScaleByBelief`][].

    **Arguments:**

    - `count`: the number of steps taken, int32 of shape `()`.
    - `mu`: the average of the gradients, not debiased, like the parameters.
    - `nu`: the average of the squared moduli of the gradients' distances from `mu`, with `eps_root`
        added at each step, not debiased; real, and at least float32.
    """

    count: Count
    mu: PyTree
    nu: PyTree


class ScaleByBelief(AbstractLeafwise[ScaleByBeliefState]):
    r"""Divides the average gradient by the root of the average squared distance from it.

    $$\begin{aligned}
    m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, &
    s_t &= \beta_2 s_{t-1} + (1 - \beta_2) |g_t - m_t|^2 + \bar\epsilon, \\
    \hat m_t &= m_t / (1 - \beta_1^t), & \hat s_t &= s_t / (1 - \beta_2^t), \\
    u_t &= \hat m_t \big/ \left(\sqrt{\hat s_t} + \epsilon\right).
    \end{aligned}$$

    With `nesterov`,
    $\hat m_t = \beta_1 m_t / (1 - \beta_1^{t+1}) + (1 - \beta_1) g_t / (1 - \beta_1^t)$.

    A gradient that has always been zero gives an update of zero, unless $\epsilon$ and
    $\bar\epsilon$ are both 0.

    **Arguments:**

    - `b1`: the decay $\beta_1$ of the average gradient, in $[0, 1)$.
    - `b2`: the decay $\beta_2$ of the average squared distance from it, in $[0, 1)$.
    - `eps`: added to the root of that average, $\epsilon \ge 0$.
    - `eps_root`: added to that average at each step, $\bar\epsilon \ge 0$.
    - `nesterov`: whether to look ahead, as Nesterov's momentum does.

    !!! note
        $\bar\epsilon$ is part of $s_t$, and accumulates there to $\bar\epsilon / (1 - \beta_2)$.
        The paper has one number for both; here, as in optax, they are separate.

    ??? cite "Reference"
        Zhuang, Tang, Ding, Tatikonda, Dvornek, Papademetris and Duncan, *AdaBelief Optimizer:
        Adapting Stepsizes by the Belief in Observed Gradients*, NeurIPS 2020, algorithm 2
        (arXiv 2010.07468).
    """

    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.999)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-16)
    eps_root: Scalar = eqx.field(converter=non_negative("eps_root"), default=1e-16)
    nesterov: bool = eqx.field(converter=flag("nesterov"), static=True, default=False)

    def init_state(self, params: Params, context: Context) -> ScaleByBeliefState:
        return ScaleByBeliefState(zero_count(), zeros_like(params), zeros_like(params, real=True))

    def rule(self, state: ScaleByBeliefState, params: Params | None, context: Context) -> Rule:
        count = increment(state.count)
        weights = moment_weights(self.b1, self.b2, count, nesterov=self.nesterov)
        return Rule(
            _belief,
            ScaleByBeliefState(count, state.mu, state.nu),
            trees=("mu", "nu"),
            scalars=(one_minus(self.b1), one_minus(self.b2), self.eps, self.eps_root, *weights),
        )
