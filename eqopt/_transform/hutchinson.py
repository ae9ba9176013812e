"""Hutchinson's estimate of the Hessian's diagonal, and Sophia's steps, which use one."""

from typing import Any, Generic

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Inexact, PyTree

from .._base import checks
from .._base.arithmetic import cast, divide, ema, is_complex, times, wider
from .._base.converters import decay_factor, optional, positive, prng_key, steps, to_dtype
from .._base.prng import advance, KeyWords, PRNGKey, signs_like, words_of
from .._base.trees import (
    bias_correction,
    conj,
    increment,
    one_minus,
    zero_count,
    zeros_exactly_like,
    zeros_like,
)
from .._base.types import Count, Params, Scalar, State, Steps, Updates
from .._objective.objective import Context, require_params
from .._transformation import leafwise
from .._transformation.base import AbstractTransformation, check_state, check_transformation
from .._transformation.leafwise import Rule


@checks.typed
def _by_parts(x: Inexact[Array, "*shape"], y: Inexact[Array, "*shape"]) -> Inexact[Array, "*shape"]:
    dtype = wider(x.dtype)
    x, y = cast(x, dtype), cast(y, dtype)
    if is_complex(x):
        real, imag = lax.mul(lax.real(x), lax.real(y)), lax.mul(lax.imag(x), lax.imag(y))
        return lax.complex(real, imag)
    return lax.mul(x, y)


def _probe(key: Any, x: Array) -> Array:
    if is_complex(x):
        real, imag = jax.random.split(key)
        return lax.complex(signs_like(real, lax.real(x)), signs_like(imag, lax.imag(x)))
    return signs_like(key, x)


@checks.typed
class HutchinsonEstimatorDiagHessianState(eqx.Module):
    """The state of [`eqopt.HutchinsonEstimatorDiagHessian`][].

    **Arguments:**

    - `key`: the words of the key of the next step, uint32.
    """

    key: KeyWords


class HutchinsonEstimatorDiagHessian(AbstractTransformation[HutchinsonEstimatorDiagHessianState]):
    r"""Replaces the updates by a random estimate of the diagonal of the objective's Hessian.

    $$\hat h = v \odot \nabla^2 f(\theta)\, v, \qquad v_i = \pm 1 \text{ at random,}$$

    The mean is the diagonal. If the Hessian is diagonal, the estimate is exact. It costs about as
    much as two gradients, and the memory of one gradient and its derivative along $v$. The real and
    the imaginary part of complex parameters are two parameters, and the two parts of $\hat h$ are
    their curvatures.

    [`eqopt.ScaleBySophia`][] uses it every few steps. The gradient's values do not matter, but a
    parameter without a gradient has no estimate.

    **Arguments:**

    - `key`: the PRNG key to begin with; each step makes a new one. It is kept as an
        [`eqopt.states.KeyData`][]. `None` is `jax.random.key(0)`.

    Its `update` needs `value_fn`, and the parameters; `step` passes both. The objective must have
    a second derivative, forward over reverse.

    !!! note
        The objective is `value_fn`, as for line searches; optax calls it `obj_fn`. Within a wrapper
        that shows only some parameters, it is the Hessian with respect to these.

    ??? cite "Reference"
        Hutchinson, *A Stochastic Estimator of the Trace of the Influence Matrix for Laplacian
        Smoothing Splines*, Communications in Statistics, 1989; for the diagonal, Bekas,
        Kokiopoulou and Saad, *An estimator for the diagonal of a matrix*, Applied Numerical
        Mathematics, 2007.
    """

    key: PRNGKey | None = eqx.field(converter=optional(prng_key("key")), default=None)

    def init_state(self, params: Params, context: Context) -> HutchinsonEstimatorDiagHessianState:
        return HutchinsonEstimatorDiagHessianState(words_of(self.key))

    def transform(
        self,
        updates: Updates,
        state: HutchinsonEstimatorDiagHessianState,
        params: Params | None,
        context: Context,
    ) -> tuple[Updates, HutchinsonEstimatorDiagHessianState]:
        params = require_params(params, self, context)
        objective = context.require("value_fn", self)
        words, key = advance(state.key, self.key)
        leaves, treedef = checks.flatten(params)
        given = [u is not None for u in treedef.flatten_up_to(updates)]
        probes = [
            _probe(jax.random.fold_in(key, i), x)
            if asked
            else x
            if x is None
            else zeros_exactly_like(x)
            for i, (x, asked) in enumerate(zip(leaves, given, strict=True))
        ]
        # Forward over reverse: the memory of one gradient and its tangent.
        _, products = jax.jvp(
            lambda x: objective.evaluate(x).grad, (params,), (treedef.unflatten(probes),)
        )
        # Like the updates, complex estimates point uphill.
        curved = treedef.flatten_up_to(conj(products))
        diagonal = [
            None if v is None or not asked else _by_parts(h, v)
            for h, v, asked in zip(curved, probes, given, strict=True)
        ]
        return treedef.unflatten(diagonal), HutchinsonEstimatorDiagHessianState(words)


@checks.typed
def _step(
    update: Inexact[Array, "*shape"],
    mu: Inexact[Array, "*shape"],
    nu: Inexact[Array, "*shape"],
    rest: Float[Array, ""],
    weight: Float[Array, ""],
    gamma: Float[Array, ""],
    eps: Float[Array, ""],
    limit: Float[Array, ""] | None = None,
) -> tuple[Inexact[Array, "*shape"], Inexact[Array, "*shape"], Inexact[Array, "*shape"]]:
    mu = ema(rest, mu, update)
    return _newton(divide(mu, weight), nu, gamma, eps, limit), mu, nu


def _newton(
    direction: Inexact[Array, "*shape"],
    nu: Inexact[Array, "*shape"],
    gamma: Float[Array, ""],
    eps: Float[Array, ""],
    limit: Float[Array, ""] | None,
) -> Inexact[Array, "*shape"]:
    if is_complex(direction):
        real = _newton(lax.real(direction), lax.real(nu), gamma, eps, limit)
        return lax.complex(real, _newton(lax.imag(direction), lax.imag(nu), gamma, eps, limit))
    step = divide(direction, jnp.maximum(times(gamma, nu), eps))
    return step if limit is None else jnp.clip(step, -limit, limit)


@checks.typed
def _average(
    curvature: Inexact[Array, "*shape"], nu: Inexact[Array, "*shape"], rest: Float[Array, ""]
) -> tuple[Inexact[Array, "*shape"], Inexact[Array, "*shape"]]:
    return curvature, ema(rest, nu, curvature)


@checks.typed
class ScaleBySophiaState(eqx.Module, Generic[State]):
    """The state of [`eqopt.ScaleBySophia`][].

    **Arguments:**

    - `count`: the number of steps taken, int32 of shape `()`.
    - `mu`: the average of the gradients, not debiased, like the parameters.
    - `nu`: the average of the estimates of the Hessian's diagonal, not debiased, like the
        parameters.
    - `hessian_fn_state`: the state of the transformation that makes these estimates.
    """

    count: Count
    mu: PyTree
    nu: PyTree
    hessian_fn_state: State


class ScaleBySophia(AbstractTransformation[ScaleBySophiaState[State]], Generic[State]):
    r"""Divides the average gradient by the average curvature, and limits the quotient.

    $$\begin{aligned}
    m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad
    u_t = \operatorname{clip}_\rho\left(
        \frac{m_t / (1 - \beta_1^t)}{\max(\gamma h_{t-1}, \epsilon)}\right), \\
    h_t &= \begin{cases}
        \beta_2 h_{t-1} + (1 - \beta_2)\, \hat h_t & \text{every } k \text{ steps, from the first
        on,} \\ h_{t-1} & \text{else,}
    \end{cases}
    \end{aligned}$$

    with $\hat h_t$ an estimate of the diagonal of the objective's Hessian. Where the curvature is
    negative, or still unknown as in the first step, the step has size $\rho$, against the sign of
    the gradient. The real and the imaginary part of complex parameters are treated separately.

    **Arguments:**

    - `b1`: the decay $\beta_1$ of the average gradient, in $[0, 1)$.
    - `b2`: the decay $\beta_2$ of the average curvature, in $[0, 1)$, for each estimate.
    - `eps`: the smallest denominator $\epsilon$, positive.
    - `gamma`: the factor $\gamma$ of the curvature, positive. With a larger `gamma`, more entries
        stay within the limit; the paper advises that between a tenth and a half of them do.
    - `clip_threshold`: the limit $\rho$, positive; `None` is no limit, and then a step is as large
        as `1 / eps` wherever no positive curvature has been seen.
    - `update_interval`: the number of steps between estimates of the curvature, at least 1.
    - `hessian_diagonal_fn`: makes the estimates: a transformation that replaces the updates by
        them, given the gradient and the arguments of `update`; by default
        [`eqopt.HutchinsonEstimatorDiagHessian`][]. It is not computed in the steps between.
    - `mu_dtype`: the dtype of the average gradient $m$; `None` is the parameter's, and float32 for
        half precision.

    Raises a `ValueError` if `update` is given no parameters, or no `value_fn`, which the estimate
    needs; `step` passes it.

    !!! note
        As in optax, and not as in the paper, $m$ is debiased, and an estimate is used from the next
        step on. Nothing is printed. $\beta_2$ is a decay per estimate, and not per step.

    ??? cite "Reference"
        Liu, Li, Hall, Liang and Ma, *Sophia: A Scalable Stochastic Second-order Optimizer for
        Language Model Pre-training*, ICLR 2024, algorithm 3 (arXiv 2305.14342).
    """

    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.965)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.99)
    eps: Scalar = eqx.field(converter=positive("eps"), default=1e-8)
    gamma: Scalar = eqx.field(converter=positive("gamma"), default=0.01)
    clip_threshold: Scalar | None = eqx.field(
        converter=optional(positive("clip_threshold")), default=1.0
    )
    update_interval: Steps = eqx.field(converter=steps("update_interval", at_least=1), default=10)
    hessian_diagonal_fn: AbstractTransformation[State] = eqx.field(
        default_factory=HutchinsonEstimatorDiagHessian
    )
    mu_dtype: np.dtype | None = eqx.field(converter=to_dtype("mu_dtype"), static=True, default=None)

    def __check_init__(self) -> None:
        check_transformation("hessian_diagonal_fn", self.hessian_diagonal_fn)

    def init_state(self, params: Params, context: Context) -> ScaleBySophiaState[State]:
        mu, nu = zeros_like(params, self.mu_dtype), zeros_like(params)
        estimates = self.hessian_diagonal_fn.init_state(params, context)
        return ScaleBySophiaState(zero_count(), mu, nu, estimates)

    def transform(
        self,
        updates: Updates,
        state: ScaleBySophiaState[State],
        params: Params | None,
        context: Context,
    ) -> tuple[Updates, ScaleBySophiaState[State]]:
        params = require_params(params, self, context)
        check_state(self.hessian_diagonal_fn, state.hessian_fn_state, "state.hessian_fn_state")
        count = increment(state.count)
        limit = () if self.clip_threshold is None else (self.clip_threshold,)
        weight = bias_correction(self.b1, count)
        scalars = (one_minus(self.b1), weight, self.gamma, self.eps, *limit)
        rule = Rule(_step, state, trees=("mu", "nu"), scalars=scalars)
        out, (after,) = leafwise.run((rule,), updates, params)

        def estimate(held: Any) -> Any:
            curvature, estimates = self.hessian_diagonal_fn.transform(
                updates, held.hessian_fn_state, params, context
            )
            new = ScaleBySophiaState(held.count, held.mu, held.nu, estimates)
            average = Rule(_average, new, trees=("nu",), scalars=(one_minus(self.b2),))
            return leafwise.run((average,), curvature, params)[1][0]

        due = lax.eq(lax.rem(state.count, jnp.asarray(self.update_interval)), np.int32(0))
        after = lax.cond(due, estimate, lambda held: held, after)
        return out, ScaleBySophiaState(count, after.mu, after.nu, after.hessian_fn_state)
