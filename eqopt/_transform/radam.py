"""Rectified Adam's rescaling."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, PyTree

from .._base import checks
from .._base.arithmetic import abs_sq, debiased, divide, ema, over_root, times, where_positive
from .._base.converters import decay_factor, flag, non_negative
from .._base.trees import increment, moment_weights, one_minus, zero_count, zeros_like
from .._base.types import Count, Params, Scalar
from .._objective.objective import Context
from .._transformation.base import AbstractLeafwise
from .._transformation.leafwise import Rule


@checks.typed
def _radam(
    update: Inexact[Array, "*shape"],
    mu: Inexact[Array, "*shape"],
    nu: Float[Array, "*shape"],
    rest1: Float[Array, ""],
    rest2: Float[Array, ""],
    eps: Float[Array, ""],
    eps_root: Float[Array, ""],
    factor: Float[Array, ""],
    mu_weight: Float[Array, ""],
    nu_weight: Float[Array, ""],
    next_mu_weight: Float[Array, ""] | None = None,
) -> tuple[Inexact[Array, "*shape"], Inexact[Array, "*shape"], Float[Array, "*shape"]]:
    mu = ema(rest1, mu, update)
    nu = ema(rest2, nu, abs_sq(update))
    plain = debiased(mu, update, rest1, mu_weight, next_mu_weight)
    rescaled = times(factor, over_root(plain, divide(nu, nu_weight), eps, eps_root))
    return where_positive(factor, rescaled, plain), mu, nu


# The series of 1 / (exp(y) - 1) - 1 / y + 1 / 2 in odd powers of y: Bernoulli numbers over
# factorials.
_SERIES = (1 / 12, -1 / 720, 1 / 30240, -1 / 1209600, 1 / 47900160, -691 / 1307674368000)


def _odd(y: Float[Array, ""]) -> Float[Array, ""]:
    total = jnp.zeros_like(y)
    for coefficient in reversed(_SERIES):
        total = total * y * y + coefficient
    return total * y


@checks.typed
def _lengths(b2: Float[Array, ""], count: Count) -> tuple[Float[Array, ""], Float[Array, ""]]:
    r"""How many squares the average of squares amounts to, $\rho_t$, and in the end,
    $\rho_\infty$."""
    t = count.astype(b2.dtype)
    rate = -jnp.log(b2)
    limit = (1 + b2) / one_minus(b2)
    passed = t * rate
    # At first both terms are near `2 / rate`, and cancel: with a decay of 0.9999 in float32,
    # rounding would decide whether the fifth step is rectified. There we use the series, without
    # the terms that cancel.
    late = limit - 2 * t * jnp.exp(-passed) / -jnp.expm1(-passed)
    early = t + 2 * _odd(jnp.minimum(rate, 0.5)) - 2 * t * _odd(jnp.minimum(passed, 0.5))
    return jnp.where(passed < 0.5, early, late), limit


@checks.typed
def _rectification(
    b2: Float[Array, ""], threshold: Float[Array, ""], count: Count
) -> Float[Array, ""]:
    """The factor of a rectified step; 0 if the step is not to be rectified."""
    length, limit = _lengths(b2, count)
    known = (length >= threshold) & (length > 4)
    # Guarded twice, so that the derivative is finite where the factor is not used.
    rho, rho_inf = jnp.where(known, length, 5), jnp.where(known, limit, 6)
    square = (rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)
    return jnp.where(known, jnp.sqrt(square), 0)


@checks.typed
class ScaleByRAdamState(eqx.Module):
    """The state of [`eqopt.ScaleByRAdam`][].

    **Arguments:**

    - `count`: the number of steps taken, int32 of shape `()`.
    - `mu`, `nu`: the averages, as in [`eqopt.states.ScaleByAdamState`][].
    """

    count: Count
    mu: PyTree
    nu: PyTree


class ScaleByRAdam(AbstractLeafwise[ScaleByRAdamState]):
    r"""Divides the average gradient by the root of the average squared gradient, once this average
    contains enough steps; before that, it uses the average gradient.

    With $\hat m_t$ and $\hat v_t$ as in [`eqopt.ScaleByAdam`][], and the number of squares that
    $\hat v_t$ amounts to,

    $$\rho_t = \rho_\infty - \frac{2 t \beta_2^t}{1 - \beta_2^t}, \qquad
    \rho_\infty = \frac{2}{1 - \beta_2} - 1,$$

    the update is

    $$u_t = \begin{cases} \hat m_t & \text{if } \rho_t < \rho, \\
    r_t\, \hat m_t \big/ \left(\sqrt{\hat v_t + \bar\epsilon} + \epsilon\right) & \text{else},
    \end{cases} \qquad r_t^2 = \frac{(\rho_t - 4) (\rho_t - 2) \rho_\infty}
    {(\rho_\infty - 4) (\rho_\infty - 2) \rho_t}.$$

    **Arguments:**

    - `b1`: the decay $\beta_1$ of the average gradient, in $[0, 1)$.
    - `b2`: the decay $\beta_2$ of the average squared gradient, in $[0, 1)$. Up to 0.6, no step is
        ever rescaled.
    - `eps`: added to the root of the average square, $\epsilon \ge 0$.
    - `eps_root`: added under that root, $\bar\epsilon \ge 0$.
    - `threshold`: how many squares their average must amount to, $\rho \ge 0$, for a step to be
        rescaled. Values below 4 count as 4.
    - `nesterov`: whether to look ahead, as Nesterov's momentum does.

    !!! note
        The first steps, about five, are the average gradient, not rescaled. The paper rescales
        where $\rho_t > 4$, and torch where $\rho_t > 5$; with optax, a `threshold` below 4 gives
        NaN.

    ??? cite "Reference"
        Liu, Jiang, He, Chen, Liu, Gao and Han, *On the Variance of the Adaptive Learning Rate and
        Beyond*, ICLR 2020, algorithm 2 (arXiv 1908.03265).
    """

    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.999)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)
    eps_root: Scalar = eqx.field(converter=non_negative("eps_root"), default=0.0)
    threshold: Scalar = eqx.field(converter=non_negative("threshold"), default=5.0)
    nesterov: bool = eqx.field(converter=flag("nesterov"), static=True, default=False)

    def init_state(self, params: Params, context: Context) -> ScaleByRAdamState:
        return ScaleByRAdamState(zero_count(), zeros_like(params), zeros_like(params, real=True))

    def rule(self, state: ScaleByRAdamState, params: Params | None, context: Context) -> Rule:
        count = increment(state.count)
        factor = _rectification(jnp.asarray(self.b2), jnp.asarray(self.threshold), count)
        weights = moment_weights(self.b1, self.b2, count, nesterov=self.nesterov)
        return Rule(
            _radam,
            ScaleByRAdamState(count, state.mu, state.nu),
            trees=("mu", "nu"),
            scalars=(
                one_minus(self.b1),
                one_minus(self.b2),
                self.eps,
                self.eps_root,
                factor,
                *weights,
            ),
        )
