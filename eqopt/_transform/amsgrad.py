"""AMSGrad's rescaling by the largest second moment so far."""

import equinox as eqx
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Inexact, PyTree

from .._base import checks
from .._base.arithmetic import abs_sq, divide, ema, over_root
from .._base.converters import decay_factor, flag, non_negative, to_dtype
from .._base.trees import bias_correction, increment, one_minus, zero_count, zeros_like
from .._base.types import Count, Params, Scalar
from .._objective.objective import Context
from .._transformation.base import AbstractLeafwise
from .._transformation.leafwise import Rule


@checks.typed
def _amsgrad(
    update: Inexact[Array, "*shape"],
    mu: Inexact[Array, "*shape"],
    nu: Float[Array, "*shape"],
    nu_max: Float[Array, "*shape"],
    rest1: Float[Array, ""],
    rest2: Float[Array, ""],
    eps: Float[Array, ""],
    eps_root: Float[Array, ""],
    mu_weight: Float[Array, ""],
    nu_weight: Float[Array, ""],
) -> tuple[
    Inexact[Array, "*shape"],
    Inexact[Array, "*shape"],
    Float[Array, "*shape"],
    Float[Array, "*shape"],
]:
    mu = ema(rest1, mu, update)
    nu = ema(rest2, nu, abs_sq(update))
    nu_max = lax.max(nu_max, divide(nu, nu_weight))
    return over_root(divide(mu, mu_weight), nu_max, eps, eps_root), mu, nu, nu_max


@checks.typed
class ScaleByAMSGradState(eqx.Module):
    """The state of [`eqopt.ScaleByAMSGrad`][].

    **Arguments:**

    - `count`: the number of steps taken, int32 of shape `()`.
    - `mu`: the average of the gradients, not debiased, like the parameters.
    - `nu`: the average of their squared moduli, not debiased; real, and at least float32.
    - `nu_max`: the largest `nu` so far, entry by entry, debiased with `bias_correction_nu`; like
        `nu`.
    """

    count: Count
    mu: PyTree
    nu: PyTree
    nu_max: PyTree


class ScaleByAMSGrad(AbstractLeafwise[ScaleByAMSGradState]):
    r"""Divides the average gradient by the root of the largest average squared gradient so far.

    With the averages $m_t$ and $v_t$ of [`eqopt.ScaleByAdam`][], debiased to $\hat m_t$ and
    $\hat v_t$,

    $$\bar v_t = \max(\bar v_{t-1}, \hat v_t), \qquad
    u_t = \hat m_t \big/ \left(\sqrt{\bar v_t + \bar\epsilon} + \epsilon\right),$$

    so that the step size of an entry never grows.

    **Arguments:**

    - `b1`: the decay $\beta_1$ of the average gradient, in $[0, 1)$.
    - `b2`: the decay $\beta_2$ of the average squared gradient, in $[0, 1)$.
    - `eps`: added to the root of the largest average square, $\epsilon \ge 0$.
    - `eps_root`: added under that root, $\bar\epsilon \ge 0$.
    - `mu_dtype`: the dtype of the average gradient $m$; `None` is the parameter's, and float32 for
        half precision.
    - `bias_correction_mu`: whether the average gradient $m_t$ is debiased.
    - `bias_correction_nu`: whether the average squared gradient $v_t$ is debiased, before the
        maximum is taken.

    !!! note
        The paper debiases neither. The rule here is optax's. torch's `Adam(amsgrad=True)` debiases
        the maximum of $v_t$: its steps are longer, and much longer if the first gradient was much
        larger than the later ones.

    ??? cite "Reference"
        Reddi, Kale and Kumar, *On the Convergence of Adam and Beyond*, ICLR 2018, algorithm 2
        (arXiv 1904.09237).
    """

    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.999)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)
    eps_root: Scalar = eqx.field(converter=non_negative("eps_root"), default=0.0)
    mu_dtype: np.dtype | None = eqx.field(converter=to_dtype("mu_dtype"), static=True, default=None)
    bias_correction_mu: bool = eqx.field(
        converter=flag("bias_correction_mu"), static=True, default=True
    )
    bias_correction_nu: bool = eqx.field(
        converter=flag("bias_correction_nu"), static=True, default=True
    )

    def init_state(self, params: Params, context: Context) -> ScaleByAMSGradState:
        return ScaleByAMSGradState(
            zero_count(),
            zeros_like(params, self.mu_dtype),
            zeros_like(params, real=True),
            zeros_like(params, real=True),
        )

    def rule(self, state: ScaleByAMSGradState, params: Params | None, context: Context) -> Rule:
        count, one = increment(state.count), np.ones((), np.float32)
        weights = (
            bias_correction(self.b1, count) if self.bias_correction_mu else one,
            bias_correction(self.b2, count) if self.bias_correction_nu else one,
        )
        return Rule(
            _amsgrad,
            ScaleByAMSGradState(count, state.mu, state.nu, state.nu_max),
            trees=("mu", "nu", "nu_max"),
            scalars=(one_minus(self.b1), one_minus(self.b2), self.eps, self.eps_root, *weights),
        )
