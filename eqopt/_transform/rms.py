"""Rescaling by the root of an average of squares."""

import equinox as eqx
from jaxtyping import Array, Float, Inexact, PyTree

from .._base import checks
from .._base.arithmetic import abs_sq, divide, ema, minus, plus, safe_sqrt
from .._base.converters import decay_factor, flag, non_negative
from .._base.trees import bias_correction, full_like, increment, one_minus, zero_count, zeros_like
from .._base.types import Count, Params, Scalar
from .._objective.objective import Context
from .._transformation.base import AbstractLeafwise
from .._transformation.leafwise import Rule


def _divide(
    eps_in_sqrt: bool, x: Array, square: Float[Array, "*shape"], eps: Float[Array, ""]
) -> Array:
    if eps_in_sqrt:
        return divide(x, safe_sqrt(plus(square, eps)))
    return divide(x, plus(safe_sqrt(square), eps))


@checks.typed
def _rms(
    eps_in_sqrt: bool,
    debias: bool,
    update: Inexact[Array, "*shape"],
    nu: Float[Array, "*shape"],
    rest: Float[Array, ""],
    eps: Float[Array, ""],
    weight: Float[Array, ""],
) -> tuple[Inexact[Array, "*shape"], Float[Array, "*shape"]]:
    nu = ema(rest, nu, abs_sq(update))
    return _divide(eps_in_sqrt, update, divide(nu, weight) if debias else nu, eps), nu


@checks.typed
class ScaleByRMSState(eqx.Module):
    """The state of [`eqopt.ScaleByRMS`][].

    **Arguments:**

    - `count`: the number of steps taken, int32 of shape `()`.
    - `nu`: the average of the squared moduli, not debiased; real, and at least float32.
    """

    count: Count
    nu: PyTree


class ScaleByRMS(AbstractLeafwise[ScaleByRMSState]):
    r"""Divides the updates by the root of the average of their squares.

    $$v_t = \delta\, v_{t-1} + (1 - \delta) |g_t|^2, \qquad
    u_t = g_t \big/ \sqrt{v_t + \epsilon} \quad\text{or}\quad g_t \big/ (\sqrt{v_t} + \epsilon).$$

    **Arguments:**

    - `decay`: the decay $\delta$ of the average of squares, in $[0, 1)$.
    - `eps`: added to the denominator, $\epsilon \ge 0$.
    - `initial_scale`: the average of squares to begin with, $v_0 \ge 0$.
    - `eps_in_sqrt`: whether `eps` is added under the root, or to it, as torch does.
    - `bias_correction`: whether the averages are debiased.

    ??? cite "Reference"
        Hinton, *Neural Networks for Machine Learning*, lecture 6e, 2012.
    """

    decay: Scalar = eqx.field(converter=decay_factor("decay"), default=0.9)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)
    initial_scale: Scalar = eqx.field(converter=non_negative("initial_scale"), default=0.0)
    eps_in_sqrt: bool = eqx.field(converter=flag("eps_in_sqrt"), static=True, default=True)
    bias_correction: bool = eqx.field(converter=flag("bias_correction"), static=True, default=False)

    def init_state(self, params: Params, context: Context) -> ScaleByRMSState:
        return ScaleByRMSState(zero_count(), full_like(params, self.initial_scale, real=True))

    def rule(self, state: ScaleByRMSState, params: Params | None, context: Context) -> Rule:
        count = increment(state.count)
        return Rule(
            _rms,
            ScaleByRMSState(count, state.nu),
            trees=("nu",),
            scalars=(one_minus(self.decay), self.eps, bias_correction(self.decay, count)),
            options=(self.eps_in_sqrt, self.bias_correction),
        )


@checks.typed
def _stddev(
    eps_in_sqrt: bool,
    debias: bool,
    update: Inexact[Array, "*shape"],
    mu: Inexact[Array, "*shape"],
    nu: Float[Array, "*shape"],
    rest: Float[Array, ""],
    eps: Float[Array, ""],
    weight: Float[Array, ""],
) -> tuple[Inexact[Array, "*shape"], Inexact[Array, "*shape"], Float[Array, "*shape"]]:
    mu = ema(rest, mu, update)
    nu = ema(rest, nu, abs_sq(update))
    mean, square = (divide(mu, weight), divide(nu, weight)) if debias else (mu, nu)
    # The variance of a constant is 0, but may round to a negative number.
    variance = minus(square, abs_sq(mean)).clip(0)
    return _divide(eps_in_sqrt, update, variance, eps), mu, nu


@checks.typed
class ScaleByStddevState(eqx.Module):
    """The state of [`eqopt.ScaleByStddev`][].

    **Arguments:**

    - `count`: the number of steps taken, int32 of shape `()`.
    - `mu`: the average of the updates, not debiased, like the parameters.
    - `nu`: the average of their squared moduli, not debiased; real, and at least float32.
    """

    count: Count
    mu: PyTree
    nu: PyTree


class ScaleByStddev(AbstractLeafwise[ScaleByStddevState]):
    r"""Divides the updates by their running standard deviation.

    $$\begin{aligned}
    m_t &= \delta\, m_{t-1} + (1 - \delta)\, g_t, \qquad
    v_t = \delta\, v_{t-1} + (1 - \delta) |g_t|^2, \\
    u_t &= g_t \big/ \sqrt{v_t - |m_t|^2 + \epsilon} \quad\text{or}\quad
    g_t \big/ \left(\sqrt{v_t - |m_t|^2} + \epsilon\right).
    \end{aligned}$$

    **Arguments:**

    - `decay`: the decay $\delta$ of the averages, in $[0, 1)$.
    - `eps`: added to the denominator, $\epsilon \ge 0$.
    - `initial_scale`: the average of squares to begin with, $v_0 \ge 0$.
    - `eps_in_sqrt`: whether `eps` is added under the root, or to it, as torch does.
    - `bias_correction`: whether the averages are debiased.

    ??? cite "Reference"
        Graves, *Generating Sequences With Recurrent Neural Networks*, 2013, equations 38 to 41
        (arXiv 1308.0850).
    """

    decay: Scalar = eqx.field(converter=decay_factor("decay"), default=0.9)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)
    initial_scale: Scalar = eqx.field(converter=non_negative("initial_scale"), default=0.0)
    eps_in_sqrt: bool = eqx.field(converter=flag("eps_in_sqrt"), static=True, default=True)
    bias_correction: bool = eqx.field(converter=flag("bias_correction"), static=True, default=False)

    def init_state(self, params: Params, context: Context) -> ScaleByStddevState:
        nu = full_like(params, self.initial_scale, real=True)
        return ScaleByStddevState(zero_count(), zeros_like(params), nu)

    def rule(self, state: ScaleByStddevState, params: Params | None, context: Context) -> Rule:
        count = increment(state.count)
        return Rule(
            _stddev,
            ScaleByStddevState(count, state.mu, state.nu),
            trees=("mu", "nu"),
            scalars=(one_minus(self.decay), self.eps, bias_correction(self.decay, count)),
            options=(self.eps_in_sqrt, self.bias_correction),
        )
