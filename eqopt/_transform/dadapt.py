"""Adam with an estimate of the distance to the solution in place of the learning rate."""

from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, PyTree

from .._base import checks
from .._base.arithmetic import abs_sq, divide, ema, plus, safe_divide, safe_sqrt, times, wider
from .._base.converters import (
    decay_factor,
    flag,
    float_dtype,
    non_negative,
    optional,
    positive,
    real,
)
from .._base.trees import (
    bias_correction,
    copies,
    differences,
    increment,
    inner,
    mask_like,
    one_minus,
    sum_of,
    zero_count,
    zeros_like,
)
from .._base.types import Count, Params, Scalar, Updates
from .._objective.objective import Context, require_params
from .._schedule.base import AbstractSchedule, as_rate, value_at
from .._transformation import leafwise
from .._transformation.base import AbstractTransformation
from .._transformation.eval_params import check_like
from .._transformation.leafwise import Rule

_Number: TypeAlias = Float[Array, ""]
# The update, Adam's two averages, and the sums in the estimate.
_Moments: TypeAlias = tuple[
    Inexact[Array, "*shape"],
    Inexact[Array, "*shape"],
    Float[Array, "*shape"],
    Inexact[Array, "*shape"],
]


def both_betas(value: object) -> tuple[Scalar, Scalar]:
    """The converter of `betas`."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ValueError(f"`betas` must be a pair of numbers; got {value!r}")
    b1, b2 = (real(f"betas[{i}]", at_least=0, below=1)(x) for i, x in enumerate(value))
    return b1, b2


@checks.typed
def _dadapt(
    update: Inexact[Array, "*shape"],
    exp_avg: Inexact[Array, "*shape"],
    exp_avg_sq: Float[Array, "*shape"],
    grad_sum: Inexact[Array, "*shape"],
    rest1: _Number,
    rest2: _Number,
    rest3: _Number,
    rate: _Number,
    eps: _Number,
) -> _Moments:
    weighted = divide(grad_sum, plus(safe_sqrt(exp_avg_sq), eps))
    step = times(rate, update)
    return (
        weighted,
        ema(rest1, exp_avg, step),
        ema(rest2, exp_avg_sq, abs_sq(update)),
        ema(rest3, grad_sum, step),
    )


@checks.typed
def _prodigy(
    update: Inexact[Array, "*shape"],
    exp_avg: Inexact[Array, "*shape"],
    exp_avg_sq: Float[Array, "*shape"],
    grad_sum: Inexact[Array, "*shape"],
    rest1: _Number,
    rest2: _Number,
    beta3: _Number,
    distance: _Number,
    weight: _Number,
) -> _Moments:
    scaled = times(distance, update)
    return (
        update,
        ema(rest1, exp_avg, scaled),
        ema(rest2, exp_avg_sq, abs_sq(scaled)),
        plus(times(beta3, grad_sum), times(weight, update)),
    )


@checks.typed
def _adam(
    update: Inexact[Array, "*shape"],
    param: Inexact[Array, "*shape"],
    exp_avg: Inexact[Array, "*shape"],
    exp_avg_sq: Float[Array, "*shape"],
    rate: _Number,
    eps: _Number,
    decay: _Number,
) -> tuple[Inexact[Array, "*shape"], Inexact[Array, "*shape"], Float[Array, "*shape"]]:
    direction = divide(times(rate, exp_avg), plus(safe_sqrt(exp_avg_sq), eps))
    return plus(direction, times(decay, param)), exp_avg, exp_avg_sq


_ADAM = ("exp_avg", "exp_avg_sq")


def _rate(
    distance: _Number, rate: Scalar | AbstractSchedule, betas: tuple[Scalar, Scalar], count: Count
) -> _Number:
    """The distance times the learning rate, with Adam's corrections of both averages."""
    weights = [bias_correction(b, increment(count)) for b in betas]
    return (
        distance * value_at(rate, count).astype(float_dtype()) * jnp.sqrt(weights[1]) / weights[0]
    )


def _estimate(numerator: _Number, grad_sum: PyTree, factor: _Number) -> _Number:
    """The numerator over the sum of the moduli, times a factor; 0 before any gradient."""
    terms = [_sum_abs(x).astype(float_dtype()) for x in jax.tree.leaves(grad_sum)]
    size = factor * sum_of(terms) if terms else jnp.zeros_like(numerator)
    # Not NaN, which would persist: a warm-up begins with a rate of 0.
    return safe_divide(numerator, size)


@jax.jit
def _sum_abs(x: Inexact[Array, "*shape"]) -> _Number:
    return jnp.sum(jnp.abs(x.astype(wider(x.dtype))))


@checks.typed
class ScaleByDAdaptAdamState(eqx.Module):
    """The state of [`eqopt.ScaleByDAdaptAdam`][].

    **Arguments:**

    - `exp_avg`: the average of the gradients, each times the rate at its time; like the parameters.
    - `exp_avg_sq`: the average of their squared moduli; real, and at least float32.
    - `grad_sum`: a slower average of the gradients, each times the rate at its time.
    - `estim_lr`: the estimate of the distance, of shape `()`.
    - `numerator_weighted`: the average in the estimate's numerator, of shape `()`.
    - `count`: the number of steps taken, int32 of shape `()`.
    """

    exp_avg: PyTree
    exp_avg_sq: PyTree
    grad_sum: PyTree
    estim_lr: Float[Array, ""]
    numerator_weighted: Float[Array, ""]
    count: Count


class ScaleByDAdaptAdam(AbstractTransformation[ScaleByDAdaptAdamState]):
    r"""Makes Adam's step, with a length that D-Adaptation estimates.

    $$\begin{aligned}
    \gamma_t &= d_t\, \eta_t \sqrt{1 - \beta_2^t} \big/ (1 - \beta_1^t), &
    h_t &= \left\langle g_t,\, s_{t-1} \big/ (\sqrt{v_{t-1}} + \epsilon) \right\rangle, \\
    m_t &= \beta_1 m_{t-1} + (1 - \beta_1) \gamma_t g_t, &
    v_t &= \beta_2 v_{t-1} + (1 - \beta_2) |g_t|^2, \\
    s_t &= \sqrt{\beta_2}\, s_{t-1} + (1 - \sqrt{\beta_2}) \gamma_t g_t, &
    r_t &= \sqrt{\beta_2}\, r_{t-1} + (1 - \sqrt{\beta_2}) \gamma_t h_t, \\
    d_{t+1} &= \max\left(d_t,\, \frac{r_t}{(1 - \sqrt{\beta_2}) \|s_t\|_1}\right), &
    u_t &= m_t \big/ (\sqrt{v_t} + \epsilon) + \lambda \gamma_t \theta_t
    \end{aligned}$$

    with inner product and norm over all leaves together. While $s_t = 0$, the estimate does not
    change. The sign is not flipped; [`eqopt.DAdaptAdamW`][] flips it.

    **Arguments:**

    - `learning_rate`: a factor of the rate that is found, a number or a schedule, $\eta_t \ge 0$. A
        schedule should have its peak at 1.
    - `betas`: the decays of the average gradient and of the average squared gradient, a pair, each
        in $[0, 1)$.
    - `eps`: added to the root of the average square, $\epsilon > 0$.
    - `estim_lr0`: the rate to begin with, $d_1 > 0$, better too small than too large.
    - `weight_decay`: the decay, in proportion to the rate that is found, $\lambda \ge 0$.

    Raises a `ValueError` if `update` is given no parameters.

    ??? cite "Reference"
        Defazio and Mishchenko, *Learning-Rate-Free Learning by D-Adaptation*, ICML 2023, the
        variant of Adam (arXiv 2301.07733).
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate, default=1.0)
    betas: tuple[Scalar, Scalar] = eqx.field(converter=both_betas, default=(0.9, 0.999))
    eps: Scalar = eqx.field(converter=positive("eps"), default=1e-8)
    estim_lr0: Scalar = eqx.field(converter=positive("estim_lr0"), default=1e-6)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=0.0)

    def init_state(self, params: Params, context: Context) -> ScaleByDAdaptAdamState:
        return ScaleByDAdaptAdamState(
            exp_avg=zeros_like(params),
            exp_avg_sq=zeros_like(params, real=True),
            grad_sum=zeros_like(params),
            estim_lr=copies(jnp.asarray(self.estim_lr0)),
            numerator_weighted=jnp.zeros((), float_dtype()),
            count=zero_count(),
        )

    def transform(
        self,
        updates: Updates,
        state: ScaleByDAdaptAdamState,
        params: Params | None,
        context: Context,
    ) -> tuple[Updates, ScaleByDAdaptAdamState]:
        params = require_params(params, self, context)
        rate = _rate(state.estim_lr, self.learning_rate, self.betas, state.count)
        rest1, rest2 = (one_minus(b) for b in self.betas)
        beta3 = jnp.sqrt(jnp.asarray(self.betas[1]))
        # Not `1 - beta3`, which cancels.
        rest3 = rest2 / (1 + beta3)
        moments = Rule(
            _dadapt,
            state,
            trees=(*_ADAM, "grad_sum"),
            scalars=(rest1, rest2, rest3, rate, self.eps),
        )
        weighted, (new,) = leafwise.run((moments,), updates, params)
        gain = inner(updates, weighted)
        numerator = beta3 * state.numerator_weighted + rest3 * rate * gain
        estimate = _estimate(numerator, mask_like(updates, new.grad_sum), rest3)
        new = ScaleByDAdaptAdamState(
            exp_avg=new.exp_avg,
            exp_avg_sq=new.exp_avg_sq,
            grad_sum=new.grad_sum,
            estim_lr=jnp.maximum(state.estim_lr, estimate),
            numerator_weighted=numerator,
            count=increment(state.count),
        )
        scalars = (jnp.ones_like(rate), self.eps, rate * self.weight_decay)
        step = Rule(_adam, new, trees=_ADAM, scalars=scalars, needs_params=True)
        out, _ = leafwise.run((step,), weighted, params)
        return out, new


@checks.typed
class ScaleByProdigyState(eqx.Module):
    """The state of [`eqopt.ScaleByProdigy`][].

    **Arguments:**

    - `exp_avg`: the average of the gradients, each times the estimate at its time; like the
        parameters.
    - `exp_avg_sq`: the average of the squared moduli of the same; real, and at least float32.
    - `grad_sum`: the decaying sum of the weighted gradients, like the parameters.
    - `params0`: the first parameters, in float32 at least.
    - `estim_lr`: the estimate of the distance, of shape `()`.
    - `numerator_weighted`: the decaying sum in the estimate's numerator, of shape `()`.
    - `count`: the number of steps taken, int32 of shape `()`.
    """

    exp_avg: PyTree
    exp_avg_sq: PyTree
    grad_sum: PyTree
    params0: PyTree
    estim_lr: Float[Array, ""]
    numerator_weighted: Float[Array, ""]
    count: Count


class ScaleByProdigy(AbstractTransformation[ScaleByProdigyState]):
    r"""Makes Adam's step, with a length that Prodigy estimates.

    $$\begin{aligned}
    \gamma_t &= d_t\, \eta_t \sqrt{1 - \beta_2^t} \big/ (1 - \beta_1^t), \\
    m_t &= \beta_1 m_{t-1} + (1 - \beta_1)\, d_t g_t, &
    v_t &= \beta_2 v_{t-1} + (1 - \beta_2)\, |d_t g_t|^2, \\
    r_t &= \beta_3 r_{t-1} + \frac{d_t}{d_1} \gamma_t \langle g_t,\, \theta_0 - \theta_t \rangle, &
    s_t &= \beta_3 s_{t-1} + \frac{d_t}{d_1} \gamma_t\, g_t, \\
    d_{t+1} &= \max\left(d_t,\, c\, r_t / \|s_t\|_1\right), &
    u_t &= \gamma_t \left(\frac{m_t}{\sqrt{v_t} + d_{t+1} \epsilon} + \lambda \theta_t\right)
    \end{aligned}$$

    with inner product and norm over all leaves together. With `safeguard_warmup`, $s_t$ is made
    with $d_t$ in place of $\gamma_t$. While $s_t = 0$, for example at the start of a warm-up from
    0, the estimate does not change. The sign is not flipped: [`eqopt.Prodigy`][] flips it.

    **Arguments:**

    - `learning_rate`: a factor of the rate that is found, a number or a schedule, $\eta_t \ge 0$. A
        schedule should have its peak at 1.
    - `betas`: the decays of the average gradient and of the average squared gradient, a pair, each
        in $[0, 1)$.
    - `beta3`: the decay $\beta_3$ of the sums in the estimate, in $[0, 1)$; `None` is the root of
        the second of `betas`.
    - `eps`: added to the root of the average square, times the estimate; positive.
    - `estim_lr0`: the rate to begin with, $d_1 > 0$, better too small than too large.
    - `estim_lr_coef`: a factor of the estimates, $c > 0$. If you tune anything, tune this.
    - `weight_decay`: the decay, in proportion to the rate that is found, $\lambda \ge 0$.
    - `safeguard_warmup`: whether a long warm-up is kept from making the estimate too large.

    Raises a `ValueError` if `update` is given no parameters.

    ??? cite "Reference"
        Mishchenko and Defazio, *Prodigy: An Expeditiously Adaptive Parameter-Free Learner*, ICML
        2024, the variant of Adam, with its corrections of bias (arXiv 2306.06101).
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate, default=1.0)
    betas: tuple[Scalar, Scalar] = eqx.field(converter=both_betas, default=(0.9, 0.999))
    beta3: Scalar | None = eqx.field(converter=optional(decay_factor("beta3")), default=None)
    eps: Scalar = eqx.field(converter=positive("eps"), default=1e-8)
    estim_lr0: Scalar = eqx.field(converter=positive("estim_lr0"), default=1e-6)
    estim_lr_coef: Scalar = eqx.field(converter=positive("estim_lr_coef"), default=1.0)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=0.0)
    safeguard_warmup: bool = eqx.field(
        converter=flag("safeguard_warmup"), static=True, default=False
    )

    def init_state(self, params: Params, context: Context) -> ScaleByProdigyState:
        return ScaleByProdigyState(
            exp_avg=zeros_like(params),
            exp_avg_sq=zeros_like(params, real=True),
            grad_sum=zeros_like(params),
            params0=copies(params),
            estim_lr=copies(jnp.asarray(self.estim_lr0)),
            numerator_weighted=jnp.zeros((), float_dtype()),
            count=zero_count(),
        )

    def transform(
        self, updates: Updates, state: ScaleByProdigyState, params: Params | None, context: Context
    ) -> tuple[Updates, ScaleByProdigyState]:
        params = require_params(params, self, context)
        distance = state.estim_lr
        rate = _rate(distance, self.learning_rate, self.betas, state.count)
        beta3 = jnp.sqrt(self.betas[1]) if self.beta3 is None else jnp.asarray(self.beta3)
        growth = distance / self.estim_lr0
        weight = growth * (distance if self.safeguard_warmup else rate)
        moments = Rule(
            _prodigy,
            state,
            trees=(*_ADAM, "grad_sum"),
            scalars=(*(one_minus(b) for b in self.betas), beta3, distance, weight),
        )
        wide, (new,) = leafwise.run((moments,), updates, params)
        back = differences(check_like(state.params0, params, "state.params0"), params)
        gain = inner(updates, mask_like(updates, back))
        numerator = beta3 * state.numerator_weighted + growth * rate * gain
        estimate = self.estim_lr_coef * _estimate(
            numerator, mask_like(updates, new.grad_sum), jnp.ones_like(rate)
        )
        new = ScaleByProdigyState(
            exp_avg=new.exp_avg,
            exp_avg_sq=new.exp_avg_sq,
            grad_sum=new.grad_sum,
            params0=state.params0,
            estim_lr=jnp.maximum(distance, estimate),
            numerator_weighted=numerator,
            count=increment(state.count),
        )
        scalars = (rate, new.estim_lr * self.eps, rate * self.weight_decay)
        step = Rule(_adam, new, trees=_ADAM, scalars=scalars, needs_params=True)
        out, _ = leafwise.run((step,), wide, params)
        return out, new
