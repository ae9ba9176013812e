"""Step sizes from a model of the objective, made of averages and bounded from below."""

from typing import TypeAlias

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, PyTree

from .._base import checks
from .._base.arithmetic import abs_sq, divide, ema, plus, safe_divide, safe_sqrt, times
from .._base.converters import decay_factor, flag, float_dtype, non_negative, positive, real
from .._base.trees import (
    bias_correction,
    copies,
    increment,
    inner,
    mask_like,
    one_minus,
    zero_count,
    zeros_like,
)
from .._base.types import Count, Params, Scalar, Updates
from .._objective.objective import Context, require_params
from .._schedule.base import AbstractSchedule, as_rate, value_at
from .._transformation import leafwise
from .._transformation.base import AbstractTransformation
from .._transformation.leafwise import Rule

_Number: TypeAlias = Float[Array, ""]

# As in optax, in every dtype.
_SMALLEST = float(np.finfo(np.float64).eps)


@checks.typed
def _average(
    update: Inexact[Array, "*shape"], exp_avg: Inexact[Array, "*shape"], rest: _Number
) -> tuple[Inexact[Array, "*shape"], Inexact[Array, "*shape"]]:
    exp_avg = ema(rest, exp_avg, update)
    return exp_avg, exp_avg


@checks.typed
def _adam(
    update: Inexact[Array, "*shape"],
    exp_avg: Inexact[Array, "*shape"],
    exp_avg_sq: Float[Array, "*shape"],
    rest1: _Number,
    rest2: _Number,
    weight2: _Number,
    eps: _Number,
) -> tuple[Inexact[Array, "*shape"], Inexact[Array, "*shape"], Float[Array, "*shape"]]:
    exp_avg = ema(rest1, exp_avg, update)
    exp_avg_sq = ema(rest2, exp_avg_sq, abs_sq(update))
    size = plus(safe_sqrt(divide(exp_avg_sq, weight2)), eps)
    return divide(exp_avg, size), exp_avg, exp_avg_sq


@checks.typed
def _proximal(
    update: Inexact[Array, "*shape"],
    param: Inexact[Array, "*shape"],
    step_size: _Number,
    decay: _Number,
) -> Inexact[Array, "*shape"]:
    return divide(
        plus(times(step_size, update), times(decay, param)), plus(decay, jnp.ones_like(decay))
    )


class _Model(eqx.Module):
    """The averages of a step, and the other numbers that determine its size.

    **Arguments:**

    - `barf`, `gamma`: the averages of the values, and of the inner products of gradient and
        parameters.
    - `product`: the inner product of the average gradient and the parameters.
    - `sq_norm`: the squared norm of the average gradient.
    - `weight`: the sum of the weights in the averages.
    - `decay`: the learning rate times the weight decay.
    """

    barf: _Number
    gamma: _Number
    product: _Number
    sq_norm: _Number
    weight: _Number
    decay: _Number

    def reset(self, bound: _Number, least: Scalar) -> _Number:
        """Lowers a bound that lies above the model."""
        growth = 1 + self.decay
        cap = growth * (self.barf - self.gamma) + self.product
        lowered = jnp.maximum(cap / (2 * self.weight * growth), least)
        return jnp.where(cap < growth * self.weight * bound, lowered, bound)

    def step_size(self, bound: _Number, rate: _Number) -> _Number:
        """The step size at which the model meets the bound, limited by the rate."""
        gap = (1 + self.decay) * (self.barf - self.weight * bound - self.gamma) + self.product
        # Not `~(sq_norm > smallest)`, which is true for NaN.
        small = self.sq_norm <= _SMALLEST
        step = safe_divide(jnp.maximum(gap, 0), self.sq_norm, zero=small)
        return jnp.minimum(rate / self.weight, step)

    def estimate(self, step_size: _Number, least: Scalar) -> _Number:
        """The next bound."""
        value = self.barf + self.product - self.gamma
        return jnp.maximum((value - step_size * self.sq_norm / 2) / self.weight, least)


def _bounded(
    model: _Model, bound: _Number, least: Scalar, rate: _Number, adapt: bool
) -> tuple[_Number, _Number]:
    """The size of the step, and the bound after it."""
    if not adapt:
        return model.step_size(bound, rate), bound
    step_size = model.step_size(model.reset(bound, least), rate)
    return step_size, model.estimate(step_size, least)


def _averaged(old: _Number, rest: _Number, new: object) -> _Number:
    return ema(rest, old, jnp.asarray(new).astype(float_dtype()))


@checks.typed
class ScaleByMoMoState(eqx.Module):
    """The state of [`eqopt.ScaleByMoMo`][].

    **Arguments:**

    - `exp_avg`: the average of the gradients, like the parameters.
    - `barf`: the average of the objective's values, of shape `()`.
    - `gamma`: the average of the inner products of gradient and parameters, of shape `()`.
    - `lb`: the lower bound of the objective, of shape `()`.
    - `count`: the number of steps taken, int32 of shape `()`.
    """

    exp_avg: PyTree
    barf: Float[Array, ""]
    gamma: Float[Array, ""]
    lb: Float[Array, ""]
    count: Count


class ScaleByMoMo(AbstractTransformation[ScaleByMoMoState]):
    r"""Steps along the average gradient to where a model of the objective meets its lower bound.

    With $\bar f_t$, $d_t$ and $\gamma_t$ the averages of the values $f_t$, the gradients $g_t$ and
    the products $\langle g_t, \theta_t \rangle$, each begun with its first term,

    $$\tau_t = \min\left(\eta_t,\; \frac{\max\left((1 + \eta_t \lambda)
    (\bar f_t - f_\star - \gamma_t) + \langle d_t, \theta_t \rangle,\, 0\right)}{\|d_t\|^2}\right),
    \qquad u_t = \frac{\tau_t d_t + \eta_t \lambda\, \theta_t}{1 + \eta_t \lambda}$$

    with products and norm over all leaves together; where $\|d_t\|^2 \le 2^{-52}$, $\tau_t = 0$.
    The sign is not flipped: [`eqopt.MoMo`][] flips it.

    With `adapt_lower_bound`, $f_\star$ is estimated. Where the model's value
    $c = \bar f_t - \gamma_t + \langle d_t, \theta_t \rangle / (1 + \eta_t \lambda)$ is below it, it
    first becomes $\max(c / 2, f_0)$; and after the step
    $\max(\bar f_t + \langle d_t, \theta_t \rangle - \gamma_t - \tau_t \|d_t\|^2 / 2, \, f_0)$.

    !!! note
        $\theta_t - u_t$ is the point with the least value of the model plus
        $\|\theta - \theta_t\|^2 / 2 \eta_t + \lambda \|\theta\|^2 / 2$. With weight decay, optax
        does not divide $\tau_t d_t$, and goes beyond it.

    **Arguments:**

    - `learning_rate`: the largest step size, a number or a schedule, $\eta_t \ge 0$; better too
        large than too small.
    - `beta`: the decay of the averages, in $[0, 1)$.
    - `lower_bound`: the least value $f_0$ that the objective can have, or a bound below it. If the
        objective falls below it, the steps become zero.
    - `weight_decay`: the decay, in proportion to the learning rate, $\lambda \ge 0$.
    - `adapt_lower_bound`: whether to estimate a better bound $f_\star \ge f_0$ on the way.

    Its `update` needs `value`; `step` passes it. Raises a `ValueError` without a value or without
    parameters.

    !!! warning
        It must see the gradient of that value: after a link that clips or scales, the model would
        describe another function.

    ??? cite "Reference"
        Schaipp, Ohana, Eickenberg, Defazio and Gower, *MoMo: Momentum Models for Adaptive Learning
        Rates*, ICML 2024 (arXiv 2305.07583).
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate, default=1.0)
    beta: Scalar = eqx.field(converter=decay_factor("beta"), default=0.9)
    lower_bound: Scalar = eqx.field(converter=real("lower_bound"), default=0.0)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=0.0)
    adapt_lower_bound: bool = eqx.field(
        converter=flag("adapt_lower_bound"), static=True, default=False
    )

    def init_state(self, params: Params, context: Context) -> ScaleByMoMoState:
        zero = jnp.zeros((), float_dtype())
        bound = copies(jnp.asarray(self.lower_bound))
        return ScaleByMoMoState(
            exp_avg=zeros_like(params),
            barf=zero,
            gamma=jnp.zeros_like(zero),
            lb=bound,
            count=zero_count(),
        )

    def transform(
        self, updates: Updates, state: ScaleByMoMoState, params: Params | None, context: Context
    ) -> tuple[Updates, ScaleByMoMoState]:
        params = require_params(params, self, context)
        value = context.require("value", self)
        own = mask_like(updates, params)
        # Each average begins with its first term.
        rest = jnp.where(state.count == 0, 1, one_minus(self.beta))
        barf = _averaged(state.barf, rest, value)
        gamma = _averaged(state.gamma, rest, inner(updates, own))
        average = Rule(_average, state, trees=("exp_avg",), scalars=(rest,))
        direction, (new,) = leafwise.run((average,), updates, params)
        rate = value_at(self.learning_rate, state.count).astype(float_dtype())
        decay = rate * self.weight_decay
        model = _Model(
            barf=barf,
            gamma=gamma,
            product=inner(direction, own),
            sq_norm=inner(direction, direction),
            weight=jnp.ones_like(rate),
            decay=decay,
        )
        step_size, bound = _bounded(model, state.lb, self.lower_bound, rate, self.adapt_lower_bound)
        new = ScaleByMoMoState(
            exp_avg=new.exp_avg, barf=barf, gamma=gamma, lb=bound, count=increment(state.count)
        )
        step = Rule(_proximal, new, scalars=(step_size, decay), needs_params=True)
        out, _ = leafwise.run((step,), direction, params)
        return out, new


@checks.typed
class ScaleByMoMoAdamState(eqx.Module):
    """The state of [`eqopt.ScaleByMoMoAdam`][].

    **Arguments:**

    - `exp_avg`: the average of the gradients, like the parameters; no average here is debiased.
    - `exp_avg_sq`: the average of their squared moduli; real, and at least float32.
    - `barf`: the average of the objective's values, of shape `()`.
    - `gamma`: the average of the inner products of gradient and parameters, of shape `()`.
    - `lb`: the lower bound of the objective, of shape `()`.
    - `count`: the number of steps taken, int32 of shape `()`.
    """

    exp_avg: PyTree
    exp_avg_sq: PyTree
    barf: Float[Array, ""]
    gamma: Float[Array, ""]
    lb: Float[Array, ""]
    count: Count


class ScaleByMoMoAdam(AbstractTransformation[ScaleByMoMoAdamState]):
    r"""Steps as [`eqopt.ScaleByMoMo`][] does, with distances scaled by Adam's average of squares.

    With averages that begin with zero, their weight $\rho_t = 1 - \beta_1^t$ and the diagonal
    $D_t = \sqrt{v_t / (1 - \beta_2^t)} + \epsilon$,

    $$\tau_t = \min\left(\frac{\eta_t}{\rho_t},\; \frac{\max\left((1 + \eta_t \lambda)
    (\bar f_t - \rho_t f_\star - \gamma_t) + \langle d_t, \theta_t \rangle,\, 0\right)}
    {\langle d_t, D_t^{-1} d_t \rangle}\right), \qquad
    u_t = \frac{\tau_t D_t^{-1} d_t + \eta_t \lambda\, \theta_t}{1 + \eta_t \lambda}.$$

    With `adapt_lower_bound`, the estimates are compared with $\rho_t f_\star$, and divided by
    $\rho_t$.

    **Arguments:**

    - `learning_rate`: the largest step size, a number or a schedule, $\eta_t \ge 0$; better too
        large than too small.
    - `b1`: the decay $\beta_1$ of the averages of gradients, values and products, in $[0, 1)$.
    - `b2`: the decay $\beta_2$ of the average squared gradient, in $[0, 1)$.
    - `eps`: added to the root of the average square, $\epsilon > 0$.
    - `lower_bound`: the least value that the objective can have, or a bound below it.
    - `weight_decay`: the decay, in proportion to the learning rate, $\lambda \ge 0$.
    - `adapt_lower_bound`: whether to estimate a better bound on the way.

    Its `update` needs `value` and the parameters, like [`eqopt.ScaleByMoMo`][].

    ??? cite "Reference"
        Schaipp, Ohana, Eickenberg, Defazio and Gower, *MoMo: Momentum Models for Adaptive Learning
        Rates*, ICML 2024, MoMo-Adam (arXiv 2305.07583).
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate, default=1e-2)
    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.999)
    eps: Scalar = eqx.field(converter=positive("eps"), default=1e-8)
    lower_bound: Scalar = eqx.field(converter=real("lower_bound"), default=0.0)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=0.0)
    adapt_lower_bound: bool = eqx.field(
        converter=flag("adapt_lower_bound"), static=True, default=False
    )

    def init_state(self, params: Params, context: Context) -> ScaleByMoMoAdamState:
        zero = jnp.zeros((), float_dtype())
        return ScaleByMoMoAdamState(
            exp_avg=zeros_like(params),
            exp_avg_sq=zeros_like(params, real=True),
            barf=zero,
            gamma=jnp.zeros_like(zero),
            lb=copies(jnp.asarray(self.lower_bound)),
            count=zero_count(),
        )

    def transform(
        self, updates: Updates, state: ScaleByMoMoAdamState, params: Params | None, context: Context
    ) -> tuple[Updates, ScaleByMoMoAdamState]:
        params = require_params(params, self, context)
        value = context.require("value", self)
        own = mask_like(updates, params)
        count = increment(state.count)
        rest1, rest2 = one_minus(self.b1), one_minus(self.b2)
        barf = _averaged(state.barf, rest1, value)
        gamma = _averaged(state.gamma, rest1, inner(updates, own))
        weight1, weight2 = bias_correction(self.b1, count), bias_correction(self.b2, count)
        trees, scalars = ("exp_avg", "exp_avg_sq"), (rest1, rest2, weight2, self.eps)
        moments = Rule(_adam, state, trees=trees, scalars=scalars)
        direction, (new,) = leafwise.run((moments,), updates, params)
        average = mask_like(updates, new.exp_avg)
        rate = value_at(self.learning_rate, state.count).astype(float_dtype())
        decay = rate * self.weight_decay
        model = _Model(
            barf=barf,
            gamma=gamma,
            product=inner(average, own),
            sq_norm=inner(average, direction),
            weight=weight1,
            decay=decay,
        )
        step_size, bound = _bounded(model, state.lb, self.lower_bound, rate, self.adapt_lower_bound)
        new = ScaleByMoMoAdamState(
            exp_avg=new.exp_avg,
            exp_avg_sq=new.exp_avg_sq,
            barf=barf,
            gamma=gamma,
            lb=bound,
            count=count,
        )
        step = Rule(_proximal, new, scalars=(step_size, decay), needs_params=True)
        out, _ = leafwise.run((step,), direction, params)
        return out, new
