"""Updates made nearly orthogonal, with Muon's momentum or without, and their scale."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Inexact, PyTree

from ..._base import checks
from ..._base.arithmetic import cast, debiased, ema, plus, real_dtype, times
from ..._base.converters import (
    decay_factor,
    flag,
    non_negative,
    one_of,
    optional,
    size,
    to_dtype,
)
from ..._base.trace_sharing import map_present
from ..._base.trees import bias_correction, increment, one_minus, zero_count, zeros_like
from ..._base.types import Count, Params, Scalar, Updates
from ..._objective.objective import Context
from ..._transformation import leafwise
from ..._transformation.base import AbstractTransformation, EmptyState
from ..._transformation.leafwise import Rule
from .coefficients import Coefficients, coefficients, STANDARD, table_of
from .dimensions import AbstractDimensions, as_dimensions
from .matrices import all_forms_of, map_matrices
from .newton_schulz import muon_frobenius, orthogonalized, polar, Preconditioning, preconditioning

METHODS = ("newton_schulz", "svd")
MOMENTA = ("debiased", "ema", "heavy_ball")
MODES = ("shape", "unit_rms", "spectral")


@checks.typed
def _momentum(
    update: Inexact[Array, "*shape"],
    mu: Inexact[Array, "*shape"],
    rest: Float[Array, ""],
    weight: Float[Array, ""],
    next_weight: Float[Array, ""] | None = None,
) -> tuple[Inexact[Array, "*shape"], Inexact[Array, "*shape"]]:
    mu = ema(rest, mu, update)
    return debiased(mu, update, rest, weight, next_weight), mu


@checks.typed
def _ema(
    update: Inexact[Array, "*shape"],
    mu: Inexact[Array, "*shape"],
    rest: Float[Array, ""],
    beta: Float[Array, ""] | None = None,
) -> tuple[Inexact[Array, "*shape"], Inexact[Array, "*shape"]]:
    mu = ema(rest, mu, update)
    return mu if beta is None else ema(beta, update, mu), mu


@checks.typed
def _heavy_ball(
    update: Inexact[Array, "*shape"],
    mu: Inexact[Array, "*shape"],
    beta: Float[Array, ""],
    ahead: Float[Array, ""] | None = None,
) -> tuple[Inexact[Array, "*shape"], Inexact[Array, "*shape"]]:
    mu = plus(times(beta, mu), update)
    return mu if ahead is None else plus(times(ahead, mu), update), mu


@checks.typed
def _by_the_dual_norm(
    before: Inexact[Array, "*shape"], after: Inexact[Array, "*shape"]
) -> Inexact[Array, "*shape"]:
    product = lax.mul(jnp.conj(before), after)
    # Real up to rounding: both have the same singular vectors.
    return times(jnp.sum(jnp.real(product)), after)


class Orthogonalize(AbstractTransformation[EmptyState]):
    r"""Replaces each update, a matrix, by one with nearly the same singular vectors whose singular
    values are near 1: by the Newton-Schulz iteration of [`eqopt.ScaleByMuon`][], without momentum.

    **Arguments:**

    - `ns_coeffs`, `ns_steps`, `eps`, `preconditioning`: as in [`eqopt.ScaleByMuon`][].
    - `method`: `"newton_schulz"`, or `"svd"` for the exact $U V^H$ of the singular value
        decomposition $U \Sigma V^H$, which is slow on accelerators. Singular values that are zero
        stay zero.
    - `weight_dimension_numbers`: which axes of a parameter form a matrix, as for [`eqopt.Muon`][].

    Raises a `ValueError` that names a parameter that is not a matrix.
    """

    ns_coeffs: Coefficients = eqx.field(converter=coefficients, default=STANDARD)
    ns_steps: int = eqx.field(converter=size("ns_steps"), static=True, default=5)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)
    preconditioning: Preconditioning = eqx.field(
        converter=preconditioning, static=True, default=muon_frobenius
    )
    method: str = eqx.field(
        converter=one_of("method", METHODS), static=True, default="newton_schulz"
    )
    weight_dimension_numbers: AbstractDimensions | None = eqx.field(
        converter=optional(as_dimensions), default=None
    )

    def init_state(self, params: Params, context: Context) -> EmptyState:
        all_forms_of(params, self.weight_dimension_numbers, "params", self)
        return EmptyState()

    def transform(
        self, updates: Updates, state: EmptyState, params: Params | None, context: Context
    ) -> tuple[Updates, EmptyState]:
        forms = all_forms_of(updates, self.weight_dimension_numbers, "updates", self)
        leaves, treedef = checks.flatten(updates)
        return treedef.unflatten(map_matrices(self._orthogonal, leaves, forms)), state

    def _orthogonal(self, x: Array) -> Array:
        if self.method == "svd":
            return polar(x)
        dtype = real_dtype(x.dtype)
        x = self.preconditioning(x, cast(jnp.asarray(self.eps), dtype))
        return orthogonalized(x, table_of(self.ns_coeffs, self.ns_steps, dtype))


@checks.typed
class ScaleByMuonState(eqx.Module):
    """The state of [`eqopt.ScaleByMuon`][].

    **Arguments:**

    - `count`: the number of steps taken, int32 of shape `()`.
    - `mu`: the average of the gradients, not debiased, like the parameters.
    """

    count: Count
    mu: PyTree


class ScaleByMuon(AbstractTransformation[ScaleByMuonState]):
    r"""Replaces the updates by an average of the gradients that is made nearly orthogonal.

    Each parameter is a matrix. With $X_0$ the average, debiased and divided by its norm,

    $$m_t = \beta m_{t-1} + (1 - \beta) g_t, \qquad
    X_{k+1} = a X_k + b\, (X_k X_k^H) X_k + c\, (X_k X_k^H)^2 X_k.$$

    The iteration keeps the singular vectors, and maps each singular value $\sigma$ to
    $a\sigma + b\sigma^3 + c\sigma^5$, repeatedly. The default coefficients are made for few steps:
    values from 0.01 to 1 end up between 0.68 and 1.14, and do not converge.

    Matrices of equal size, and those of the transposed size, are stacked and go through the
    iteration together: the program does not grow with the number of parameters.

    **Arguments:**

    - `ns_coeffs`: the numbers $a$, $b$, $c$, or separate numbers for each step: `((a, b, c), (a, b,
        c), ...)`; also `"standard"`, the default, and `"dion"`, five steps with separate numbers.
        For any number of steps, [`eqopt.matrix.Quintics`][], such as those of
        [`eqopt.matrix.polar_express`][], or one of these by name: `"quintic"` (the rows of
        `"dion"`, again and again), `"polar_express"`, `"polar_express_8"` (rounded, of eight
        rows), `"cans"`, `"aol"` and `"deepseek"` (of ten rows).
    - `ns_steps`: the number of steps of the iteration, at least 1; not used if each step has its
        own numbers.
    - `beta`: the decay $\beta$ of the average, in $[0, 1)$.
    - `eps`: $\epsilon \ge 0$, added to the norm.
    - `mu_dtype`: the dtype of the average gradient $m$; `None` is the parameter's, and float32 for
        half precision.
    - `nesterov`: whether to look ahead, with
        $\beta m_t / (1 - \beta^{t+1}) + (1 - \beta) g_t / (1 - \beta^t)$ for the average.
    - `adaptive`: whether to multiply the result by the real part of $\langle \hat m_t, X \rangle$,
        nearly the sum of the average's singular values.
    - `preconditioning`: the step before, which brings the singular values below 1:
        [`eqopt.options.muon_frobenius`][], [`eqopt.options.muon_spectral`][],
        [`eqopt.options.muon_aol`][], [`eqopt.options.muon_schatten`][], or a function
        `preconditioning(x, eps)` of a stack of matrices, `(batch, m, n)` with $m \le n$.
        (`"frobenius"` and so on are accepted too.)
    - `weight_dimension_numbers`: which axes of a parameter form a matrix, as for [`eqopt.Muon`][].
    - `momentum`: `"debiased"`, the average above; `"ema"`, the same without debiasing, and
        $\beta m_t + (1 - \beta) g_t$ with `nesterov`; or `"heavy_ball"`, the sum
        $m_t = \beta m_{t-1} + g_t$, and $\beta m_t + g_t$ with `nesterov`.
    - `method`: `"newton_schulz"` or `"svd"`, as in [`eqopt.matrix.Orthogonalize`][].

    Raises a `ValueError` that names a parameter that is not a matrix; [`eqopt.Muon`][] handles
    these too.

    !!! note
        It computes in float32 for half precision, and otherwise in the parameter's dtype; torch's
        `Muon` computes in bfloat16, and differs by 5e-3. For more speed and less precision on an
        accelerator, set `jax.default_matmul_precision` to `"bfloat16"`. Neither torch nor the first
        implementation debiases the average. With `nesterov` this makes a difference in the first
        steps.

    ??? cite "Reference"
        Jordan et al., *Muon: An optimizer for hidden layers in neural networks*, 2024. For
        `adaptive`, Bernstein and Newhouse, *Old Optimizer, New Norm: An Anthology*, 2024,
        proposition 5 (arXiv 2409.20325); for `"dion"`, Ahn et al., *Dion: Distributed
        Orthonormalized Updates*, 2025 (arXiv 2504.05295).
    """

    ns_coeffs: Coefficients = eqx.field(converter=coefficients, default=STANDARD)
    ns_steps: int = eqx.field(converter=size("ns_steps"), static=True, default=5)
    beta: Scalar = eqx.field(converter=decay_factor("beta"), default=0.95)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)
    mu_dtype: np.dtype | None = eqx.field(converter=to_dtype("mu_dtype"), static=True, default=None)
    nesterov: bool = eqx.field(converter=flag("nesterov"), static=True, default=True)
    adaptive: bool = eqx.field(converter=flag("adaptive"), static=True, default=False)
    preconditioning: Preconditioning = eqx.field(
        converter=preconditioning, static=True, default=muon_frobenius
    )
    weight_dimension_numbers: AbstractDimensions | None = eqx.field(
        converter=optional(as_dimensions), default=None
    )
    momentum: str = eqx.field(
        converter=one_of("momentum", MOMENTA), static=True, default="debiased"
    )
    method: str = eqx.field(
        converter=one_of("method", METHODS), static=True, default="newton_schulz"
    )

    def init_state(self, params: Params, context: Context) -> ScaleByMuonState:
        all_forms_of(params, self.weight_dimension_numbers, "params", self)
        return ScaleByMuonState(zero_count(), zeros_like(params, self.mu_dtype))

    def transform(
        self, updates: Updates, state: ScaleByMuonState, params: Params | None, context: Context
    ) -> tuple[Updates, ScaleByMuonState]:
        averages, after = self.averaged(updates, state, params)
        orthogonal, _ = self.orthogonalize().transform(averages, EmptyState(), params, context)
        if not self.adaptive:
            return orthogonal, after
        before, treedef = checks.flatten(averages)
        out, _ = checks.flatten(orthogonal)
        return treedef.unflatten(map_present(_by_the_dual_norm, before, out)), after

    def averaged(
        self, updates: Updates, state: ScaleByMuonState, params: Params | None
    ) -> tuple[Updates, ScaleByMuonState]:
        """The average of the gradients, and the state with it."""
        count, beta = increment(state.count), jnp.asarray(self.beta)
        if self.momentum == "debiased":
            kernel, scalars = _momentum, (one_minus(self.beta), bias_correction(self.beta, count))
            if self.nesterov:
                # The average's own weight is one step ahead.
                scalars = (*scalars, bias_correction(self.beta, increment(count)))
        else:
            heavy = self.momentum == "heavy_ball"
            kernel, scalars = (_heavy_ball, (beta,)) if heavy else (_ema, (one_minus(beta),))
            scalars = (*scalars, beta) if self.nesterov else scalars
        rule = Rule(kernel, ScaleByMuonState(count, state.mu), trees=("mu",), scalars=scalars)
        averages, (after,) = leafwise.run((rule,), updates, params)
        return averages, after

    def orthogonalize(self) -> Orthogonalize:
        """The link that makes the average orthogonal."""
        return Orthogonalize(
            ns_coeffs=self.ns_coeffs,
            ns_steps=self.ns_steps,
            eps=self.eps,
            preconditioning=self.preconditioning,
            method=self.method,
            weight_dimension_numbers=self.weight_dimension_numbers,
        )


class ScaleByShape(AbstractTransformation[EmptyState]):
    r"""Multiplies the updates by a factor that depends on the parameter's shape.

    With $d_\mathrm{in}$ and $d_\mathrm{out}$ the sizes of the reduction axes and the output axes,
    the factor is by `mode`

    | `mode` | factor |
    | --- | --- |
    | `"shape"` | $\sqrt{\max(1, d_\mathrm{out} / d_\mathrm{in})}$ |
    | `"unit_rms"` | $\sqrt{d_\mathrm{out} / d_\mathrm{in}}$ |
    | `"spectral"` | $\sqrt{\max(d_\mathrm{in}, d_\mathrm{out})}$ |

    or with `consistent_rms` $\rho$

    $$\rho \sqrt{\max(d_\mathrm{in}, d_\mathrm{out})},$$

    which makes $\rho$ the root mean square of an orthogonal matrix's entries.

    !!! note
        One name has two meanings in the field. `"spectral"` is Nvidia's; dion's `spectral_norm` is
        `"unit_rms"`, and its `rms_norm` is `consistent_rms=0.2`.

    **Arguments:**

    - `weight_dimension_numbers`: which axes of a parameter form a matrix, as for
        [`eqopt.Muon`][].
    - `consistent_rms`: the root mean square $\rho \ge 0$, or `None`. For Adam's updates it is about
        0.2.
    - `mode`: which factor, if `consistent_rms` is `None`.

    Raises a `ValueError` that names a parameter that is not a matrix.

    ??? cite "Reference"
        Liu et al., *Muon is Scalable for LLM Training*, 2025, section 2.2 (arXiv 2502.16982), for
        `consistent_rms`.
    """

    weight_dimension_numbers: AbstractDimensions | None = eqx.field(
        converter=optional(as_dimensions), default=None
    )
    consistent_rms: Scalar | None = eqx.field(
        converter=optional(non_negative("consistent_rms")), default=None
    )
    mode: str = eqx.field(converter=one_of("mode", MODES), static=True, default="shape")

    def init_state(self, params: Params, context: Context) -> EmptyState:
        all_forms_of(params, self.weight_dimension_numbers, "params", self)
        return EmptyState()

    def transform(
        self, updates: Updates, state: EmptyState, params: Params | None, context: Context
    ) -> tuple[Updates, EmptyState]:
        forms = all_forms_of(updates, self.weight_dimension_numbers, "updates", self)
        _, treedef = checks.flatten(updates)
        factors = [None if x is None else self._factor(*x.sizes[1:]) for x in forms]
        # A rule for each factor; each leaf has one factor, so this is still one pass.
        rules = [
            Rule(
                times,
                state,
                scalars=(self._rate(factor),),
                mask=treedef.unflatten([x == factor for x in factors]),
            )
            for factor in dict.fromkeys(factors)
            if factor is not None
        ]
        return leafwise.run(rules, updates, params)[0], state

    def _factor(self, fan_in: int, fan_out: int) -> float:
        mode = "spectral" if self.consistent_rms is not None else self.mode
        ratio = fan_out / max(fan_in, 1)
        squares = {"shape": max(1, ratio), "unit_rms": ratio, "spectral": max(fan_in, fan_out)}
        return float(np.sqrt(squares[mode]))

    def _rate(self, factor: float) -> Array:
        own = jnp.asarray(1.0 if self.consistent_rms is None else self.consistent_rms)
        return factor * own
