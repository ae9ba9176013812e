"""Adamax's rescaling by a decaying maximum of the gradients."""

import equinox as eqx
from jax import lax
from jaxtyping import Array, Float, Inexact, PyTree

from .._base import checks
from .._base.arithmetic import divide, ema, plus, times
from .._base.converters import decay_factor, non_negative
from .._base.trees import bias_correction, increment, one_minus, zero_count, zeros_like
from .._base.types import Count, Params, Scalar
from .._objective.objective import Context
from .._transformation.base import AbstractLeafwise
from .._transformation.leafwise import Rule


@checks.typed
def _adamax(
    update: Inexact[Array, "*shape"],
    mu: Inexact[Array, "*shape"],
    nu: Float[Array, "*shape"],
    rest1: Float[Array, ""],
    b2: Float[Array, ""],
    eps: Float[Array, ""],
    mu_weight: Float[Array, ""],
) -> tuple[Inexact[Array, "*shape"], Inexact[Array, "*shape"], Float[Array, "*shape"]]:
    mu = ema(rest1, mu, update)
    nu = lax.max(plus(lax.abs(update), eps), times(b2, nu))
    return divide(divide(mu, mu_weight), nu), mu, nu


@checks.typed
class ScaleByAdamaxState(eqx.Module):
    """The state of [`eqopt.ScaleByAdamax`][].

    **Arguments:**

    - `count`: the number of steps taken, int32 of shape `()`.
    - `mu`: the average of the gradients, not debiased, like the parameters.
    - `nu`: the decaying maximum of the moduli, entry by entry; real, and at least float32.
    """

    count: Count
    mu: PyTree
    nu: PyTree


class ScaleByAdamax(AbstractLeafwise[ScaleByAdamaxState]):
    r"""Divides the average gradient by a decaying maximum of the gradients.

    $$m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad
    n_t = \max(\beta_2 n_{t-1},\, |g_t| + \epsilon), \qquad
    u_t = \frac{m_t}{(1 - \beta_1^t)\, n_t}.$$

    It is [`eqopt.ScaleByAdam`][] with the maximum norm in place of the mean square.

    **Arguments:**

    - `b1`: the decay $\beta_1$ of the average gradient, in $[0, 1)$.
    - `b2`: the decay $\beta_2$ of the largest gradient, in $[0, 1)$.
    - `eps`: added to the modulus of each gradient, $\epsilon \ge 0$, as in torch; the paper has
        none.

    ??? cite "Reference"
        Kingma and Ba, *Adam: A Method for Stochastic Optimization*, ICLR 2015, algorithm 2
        (arXiv 1412.6980).
    """

    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.999)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)

    def init_state(self, params: Params, context: Context) -> ScaleByAdamaxState:
        return ScaleByAdamaxState(zero_count(), zeros_like(params), zeros_like(params, real=True))

    def rule(self, state: ScaleByAdamaxState, params: Params | None, context: Context) -> Rule:
        count = increment(state.count)
        return Rule(
            _adamax,
            ScaleByAdamaxState(count, state.mu, state.nu),
            trees=("mu", "nu"),
            scalars=(one_minus(self.b1), self.b2, self.eps, bias_correction(self.b1, count)),
        )
