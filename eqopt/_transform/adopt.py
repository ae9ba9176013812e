"""ADOPT's rescaling by the second moment of the earlier gradients."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Inexact, PyTree

from .._base import checks
from .._base.arithmetic import abs_sq, clipped, divide, ema, safe_sqrt, where_positive
from .._base.converters import decay_factor, flag, float_dtype, non_negative, to_dtype
from .._base.trees import increment, one_minus, zero_count, zeros_like
from .._base.types import Count, Params, Scalar
from .._objective.objective import Context
from .._schedule.base import AbstractSchedule, as_schedule
from .._transformation.base import AbstractLeafwise
from .._transformation.leafwise import Rule


@checks.typed
def clip_value_pow(count: Count) -> Float[Array, ""]:
    r"""The paper's limit of rescaled gradients, $t^{1/4}$.

    **Arguments:**

    - `count`: the number of steps $t$ taken before this one.
    """
    return jnp.sqrt(jnp.sqrt(count.astype(float_dtype())))


@checks.typed
def _adopt(
    nesterov: bool,
    update: Inexact[Array, "*shape"],
    mu: Inexact[Array, "*shape"],
    nu: Float[Array, "*shape"],
    first: Float[Array, ""],
    rest1: Float[Array, ""],
    rest2: Float[Array, ""],
    eps: Float[Array, ""],
    limit: Float[Array, ""] | None = None,
) -> tuple[Inexact[Array, "*shape"], Inexact[Array, "*shape"], Float[Array, "*shape"]]:
    rescaled = divide(update, lax.max(safe_sqrt(nu), lax.broadcast(eps, nu.shape)))
    rescaled = where_positive(first, lax.full_like(update, 0), rescaled)
    if limit is not None:
        rescaled = clipped(rescaled, limit)
    mu = ema(rest1, mu, rescaled)
    direction = ema(rest1, mu, rescaled) if nesterov else mu
    return direction, mu, ema(rest2, nu, abs_sq(update))


@checks.typed
class ScaleByADOPTState(eqx.Module):
    """The state of [`eqopt.ScaleByADOPT`][].

    **Arguments:**

    - `count`: the number of steps taken, int32 of shape `()`.
    - `mu`: the average of the rescaled gradients, like the parameters.
    - `nu`: the average of the gradients' squared moduli; real, and at least float32.
    """

    count: Count
    mu: PyTree
    nu: PyTree


class ScaleByADOPT(AbstractLeafwise[ScaleByADOPTState]):
    r"""Averages the gradients, each divided by the root of the average square of the earlier
    gradients.

    The first step only sets $v_0 = |g_0|^2$, and its update is 0. Then, for $t = 1, 2, \ldots$,

    $$\begin{aligned}
    m_t &= \beta_1 m_{t-1} + (1 - \beta_1)
    \operatorname{clip}\left(\frac{g_t}{\max(\sqrt{v_{t-1}}, \epsilon)},\, c_t\right), &
    v_t &= \beta_2 v_{t-1} + (1 - \beta_2) |g_t|^2, &
    u_t &= m_t,
    \end{aligned}$$

    where $\operatorname{clip}$ limits each entry to $[-c_t, c_t]$, for complex entries the real and
    the imaginary part separately. No gradient is divided by a moment that contains it. Therefore
    the method converges with any $\beta_2$, which Adam does not.

    **Arguments:**

    - `b1`: the decay $\beta_1$ of the average, in $[0, 1)$.
    - `b2`: the decay $\beta_2$ of the average squared gradient, in $[0, 1)$.
    - `eps`: the smallest divisor $\epsilon \ge 0$.
    - `mu_dtype`: the dtype of the average gradient $m$; `None` is the parameter's, and float32 for
        half precision.
    - `nesterov`: whether the update is $\beta_1 m_t$ plus $1 - \beta_1$ times the newest term of
        the average, as in Nesterov's momentum.
    - `use_clipping`: whether each divided gradient is clipped.
    - `clip_value_fn`: the limit, $c_t \ge 0$: an [`eqopt.writing.AbstractSchedule`][], or a
        function of the count, which is static; by default [`eqopt.options.clip_value_pow`][].

    ??? cite "Reference"
        Taniguchi et al., *ADOPT: Modified Adam Can Converge with Any $\beta_2$ with the Optimal
        Rate*, NeurIPS 2024 (arXiv 2411.02853).
    """

    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.9999)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-6)
    mu_dtype: np.dtype | None = eqx.field(converter=to_dtype("mu_dtype"), static=True, default=None)
    nesterov: bool = eqx.field(converter=flag("nesterov"), static=True, default=False)
    use_clipping: bool = eqx.field(converter=flag("use_clipping"), static=True, default=True)
    clip_value_fn: AbstractSchedule = eqx.field(
        converter=lambda x: as_schedule("clip_value_fn", x), default=clip_value_pow
    )

    def init_state(self, params: Params, context: Context) -> ScaleByADOPTState:
        return ScaleByADOPTState(
            zero_count(), zeros_like(params, self.mu_dtype), zeros_like(params, real=True)
        )

    def rule(self, state: ScaleByADOPTState, params: Params | None, context: Context) -> Rule:
        first = state.count == 0
        limits = (self.clip_value_fn(state.count),) if self.use_clipping else ()
        return Rule(
            _adopt,
            ScaleByADOPTState(increment(state.count), state.mu, state.nu),
            trees=("mu", "nu"),
            scalars=(
                first,
                one_minus(self.b1),
                jnp.where(first, 1, one_minus(self.b2)),
                self.eps,
                *limits,
            ),
            options=(self.nesterov,),
        )
