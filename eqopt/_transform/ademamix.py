"""AdEMAMix's rescaling of a mixture of two averages, and the simplified AdEMAMix."""

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, Inexact, PyTree

from .._base import checks
from .._base.arithmetic import abs_sq, divide, ema, over_root, plus, times
from .._base.converters import decay_factor, non_negative, to_dtype
from .._base.trees import (
    bias_correction,
    increment,
    moment_weights,
    one_minus,
    zero_count,
    zeros_like,
)
from .._base.types import Count, Params, Scalar
from .._objective.objective import Context
from .._schedule.base import AbstractSchedule, scheduled_real, value_at
from .._transformation.base import AbstractLeafwise
from .._transformation.leafwise import Rule


@checks.typed
def _ademamix(
    update: Inexact[Array, "*shape"],
    m1: Inexact[Array, "*shape"],
    m2: Inexact[Array, "*shape"],
    nu: Float[Array, "*shape"],
    rest1: Float[Array, ""],
    rest2: Float[Array, ""],
    rest3: Float[Array, ""],
    alpha: Float[Array, ""],
    eps: Float[Array, ""],
    eps_root: Float[Array, ""],
    m1_weight: Float[Array, ""],
    nu_weight: Float[Array, ""],
) -> tuple[
    Inexact[Array, "*shape"],
    Inexact[Array, "*shape"],
    Inexact[Array, "*shape"],
    Float[Array, "*shape"],
]:
    m1, m2 = ema(rest1, m1, update), ema(rest3, m2, update)
    nu = ema(rest2, nu, abs_sq(update))
    direction = plus(divide(m1, m1_weight), times(alpha, m2))
    return over_root(direction, divide(nu, nu_weight), eps, eps_root), m1, m2, nu


@checks.typed
class ScaleByAdEMAMixState(eqx.Module):
    """The state of [`eqopt.ScaleByAdEMAMix`][].

    **Arguments:**

    - `count`: the number of steps taken, int32 of shape `()`.
    - `m1`: the fast average of the gradients, not debiased, like the parameters.
    - `m2`: the slow average, like the parameters.
    - `nu`: the average of their squared moduli, not debiased; real, and at least float32.
    """

    count: Count
    m1: PyTree
    m2: PyTree
    nu: PyTree


class ScaleByAdEMAMix(AbstractLeafwise[ScaleByAdEMAMixState]):
    r"""Divides the sum of a fast and a slow average of the gradients by the root of the average
    squared gradient.

    $$\begin{aligned}
    m^1_t &= \beta_1 m^1_{t-1} + (1 - \beta_1) g_t, \qquad
    m^2_t = \beta_3 m^2_{t-1} + (1 - \beta_3) g_t, \\
    v_t &= \beta_2 v_{t-1} + (1 - \beta_2) |g_t|^2, \\
    u_t &= \left(\frac{m^1_t}{1 - \beta_1^t} + \alpha m^2_t\right) \bigg/
    \left(\sqrt{\frac{v_t}{1 - \beta_2^t} + \bar\epsilon} + \epsilon\right).
    \end{aligned}$$

    The slow average is not debiased, and grows slowly: with the default, gradients of 10,000 steps
    ago still have a third of their weight.

    **Arguments:**

    - `b1`: the decay $\beta_1$ of the fast average, in $[0, 1)$.
    - `b2`: the decay $\beta_2$ of the average squared gradient, in $[0, 1)$.
    - `b3`: the decay $\beta_3$ of the slow average, a number in $[0, 1)$ or a schedule.
    - `alpha`: the weight $\alpha \ge 0$ of the slow average, a number or a schedule.
    - `eps`: added to the root of the average square, $\epsilon \ge 0$.
    - `eps_root`: added under that root, $\bar\epsilon \ge 0$.
    - `mu_dtype`: the dtype of both averages; `None` is the parameter's, and float32 for half
        precision.

    !!! note
        The paper raises `alpha` from 0 along a line, and `b3` from `b1` along a curve, over the
        first steps or the whole run. With constants from the start, early steps may be unstable.

    ??? cite "Reference"
        Pagliardini, Ablin and Grangier, *The AdEMAMix Optimizer: Better, Faster, Older*, ICLR 2025,
        algorithm 1 (arXiv 2409.03137).
    """

    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.999)
    b3: Scalar | AbstractSchedule = eqx.field(
        converter=scheduled_real("b3", at_least=0, below=1), default=0.9999
    )
    alpha: Scalar | AbstractSchedule = eqx.field(
        converter=scheduled_real("alpha", at_least=0), default=6.0
    )
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)
    eps_root: Scalar = eqx.field(converter=non_negative("eps_root"), default=0.0)
    mu_dtype: np.dtype | None = eqx.field(converter=to_dtype("mu_dtype"), static=True, default=None)

    def init_state(self, params: Params, context: Context) -> ScaleByAdEMAMixState:
        return ScaleByAdEMAMixState(
            zero_count(),
            zeros_like(params, self.mu_dtype),
            zeros_like(params, self.mu_dtype),
            zeros_like(params, real=True),
        )

    def rule(self, state: ScaleByAdEMAMixState, params: Params | None, context: Context) -> Rule:
        count = increment(state.count)
        return Rule(
            _ademamix,
            ScaleByAdEMAMixState(count, state.m1, state.m2, state.nu),
            trees=("m1", "m2", "nu"),
            scalars=(
                one_minus(self.b1),
                one_minus(self.b2),
                one_minus(value_at(self.b3, state.count)),
                value_at(self.alpha, state.count),
                self.eps,
                self.eps_root,
                *moment_weights(self.b1, self.b2, count),
            ),
        )


@checks.typed
def _simplified(
    update: Inexact[Array, "*shape"],
    m: Inexact[Array, "*shape"],
    n: Float[Array, "*shape"],
    b1: Float[Array, ""],
    rest2: Float[Array, ""],
    alpha: Float[Array, ""],
    eps: Float[Array, ""],
    eps_root: Float[Array, ""],
    n_weight: Float[Array, ""],
) -> tuple[Inexact[Array, "*shape"], Inexact[Array, "*shape"], Float[Array, "*shape"]]:
    m = plus(times(b1, m), update)
    n = ema(rest2, n, abs_sq(update))
    return over_root(plus(m, times(alpha, update)), divide(n, n_weight), eps, eps_root), m, n


@checks.typed
class ScaleBySimplifiedAdEMAMixState(eqx.Module):
    """The state of [`eqopt.ScaleBySimplifiedAdEMAMix`][].

    **Arguments:**

    - `count`: the number of steps taken, int32 of shape `()`.
    - `m`: the decaying sum of the gradients, like the parameters.
    - `n`: the average of their squared moduli, not debiased; real, and at least float32.
    """

    count: Count
    m: PyTree
    n: PyTree


class ScaleBySimplifiedAdEMAMix(AbstractLeafwise[ScaleBySimplifiedAdEMAMixState]):
    r"""Divides a decaying sum of the gradients, plus a multiple of the newest gradient, by the root
    of the average squared gradient.

    $$\begin{aligned}
    m_t &= \beta_1 m_{t-1} + g_t, \qquad n_t = \beta_2 n_{t-1} + (1 - \beta_2) |g_t|^2, \\
    u_t &= \left(m_t + \alpha g_t\right) \bigg/
    \left(\sqrt{\frac{n_t}{1 - \beta_2^t} + \bar\epsilon} + \epsilon\right).
    \end{aligned}$$

    It is [`eqopt.ScaleByAdEMAMix`][] with the newest gradient in place of the fast average, so that
    there is one average less in the state.

    **Arguments:**

    - `b1`: the decay $\beta_1$ of the sum of gradients, in $[0, 1)$.
    - `b2`: the decay $\beta_2$ of the average squared gradient, in $[0, 1)$.
    - `alpha`: the additional weight of the newest gradient, a number or a schedule, $\alpha \ge 0$.
    - `eps`: added to the root of the average square, $\epsilon \ge 0$.
    - `eps_root`: added under that root, $\bar\epsilon \ge 0$.

    !!! note
        $m$ is a sum and not an average. With $\alpha = 0$ the updates are the updates of
        [`eqopt.ScaleByAdam`][], not debiased and $1 / (1 - \beta_1)$ times as long: by default 100
        times. Make the learning rate smaller by this factor.

    ??? cite "Reference"
        Morwani, Vyas, Zhang and Kakade, *Connections between Schedule-Free Optimizers, AdEMAMix,
        and Accelerated SGD Variants*, 2025 (arXiv 2502.02431).
    """

    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.99)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.95)
    alpha: Scalar | AbstractSchedule = eqx.field(
        converter=scheduled_real("alpha", at_least=0), default=0.0
    )
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)
    eps_root: Scalar = eqx.field(converter=non_negative("eps_root"), default=0.0)

    def init_state(self, params: Params, context: Context) -> ScaleBySimplifiedAdEMAMixState:
        return ScaleBySimplifiedAdEMAMixState(
            zero_count(), zeros_like(params), zeros_like(params, real=True)
        )

    def rule(
        self, state: ScaleBySimplifiedAdEMAMixState, params: Params | None, context: Context
    ) -> Rule:
        count = increment(state.count)
        return Rule(
            _simplified,
            ScaleBySimplifiedAdEMAMixState(count, state.m, state.n),
            trees=("m", "n"),
            scalars=(
                self.b1,
                one_minus(self.b2),
                value_at(self.alpha, state.count),
                self.eps,
                self.eps_root,
                bias_correction(self.b2, count),
            ),
        )
