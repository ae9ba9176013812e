"""StableAdamW: Adam whose steps are shorter where the gradient exceeds its average."""

import dataclasses

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Inexact, PyTree

from .._base import blocks, checks
from .._base.arithmetic import abs_sq, divide, ema, over_root, plus, safe_sqrt, times
from .._base.converters import decay_factor, non_negative, optional, to_dtype
from .._base.trees import increment, moment_weights, one_minus, zero_count, zeros_like
from .._base.types import Count, Params, Scalar, Updates
from .._objective.objective import Context, require_params
from .._transformation import leafwise
from .._transformation.base import AbstractTransformation
from .._transformation.leafwise import Rule
from ..selectors._selector import AbstractSelector, as_selector


@checks.typed
def _stable(
    block_ndim: int | None,
    update: Inexact[Array, "*shape"],
    param: Inexact[Array, "*shape"],
    mu: Inexact[Array, "*shape"],
    nu: Float[Array, "*shape"],
    rest1: Float[Array, ""],
    rest2: Float[Array, ""],
    eps: Float[Array, ""],
    mu_weight: Float[Array, ""],
    nu_weight: Float[Array, ""],
    weight_decay: Float[Array, ""],
) -> tuple[Inexact[Array, "*shape"], Inexact[Array, "*shape"], Float[Array, "*shape"]]:
    square = abs_sq(update)
    mu = ema(rest1, mu, update)
    nu = ema(rest2, nu, square)
    average = divide(nu, nu_weight)
    # `eps` squared may be 0 in float32; then a square of 0 is divided by 1.
    least = jnp.maximum(lax.mul(eps, eps), jnp.finfo(square.dtype).tiny)
    excess = divide(square, lax.max(average, lax.full_like(average, least)))
    mean = blocks.sums(block_ndim, excess) / blocks.num_entries(block_ndim, update)
    rms = jnp.maximum(safe_sqrt(mean), 1)
    direction = over_root(divide(mu, mu_weight), average, eps)
    decayed = plus(direction, times(weight_decay, param))
    return divide(decayed, blocks.spread(rms, decayed)), mu, nu


@checks.typed
class ScaleByStableAdamState(eqx.Module):
    """The state of [`eqopt.control.ScaleByStableAdam`][].

    **Arguments:**

    - `count`: the number of steps taken, int32 of shape `()`.
    - `mu`: the average of the gradients, not debiased, like the parameters.
    - `nu`: the average of their squared moduli, not debiased; real, and at least float32.
    """

    count: Count
    mu: PyTree
    nu: PyTree


class ScaleByStableAdam(AbstractTransformation[ScaleByStableAdamState]):
    r"""Divides as [`eqopt.ScaleByAdam`][] does, and shortens the step of each matrix whose gradient
    exceeds its average.

    $$\begin{aligned}
    u_t &= \frac{1}{\max(1, \rho_t)} \left(\frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon}
    + \lambda \theta_t\right), \\
    \rho_t^2 &= \operatorname{mean}\left(\frac{|g_t|^2}{\max(\hat v_t, \epsilon^2)}\right)
    \end{aligned}$$

    with Adam's debiased averages $\hat m_t$ and $\hat v_t$. The average square $\hat v_t$ contains
    $g_t$ already. Where gradients suddenly grow, $\hat v_t$ is too small for them, and $\rho_t$ is
    above 1. The decay is shortened with the step, because $\rho_t$ acts as a smaller learning rate;
    this is why it is a part of this link.

    **Arguments:**

    - `b1`: the decay $\beta_1$ of the average gradient, in $[0, 1)$.
    - `b2`: the decay $\beta_2$ of the average squared gradient, in $[0, 1)$.
    - `eps`: added to the root of the average square, $\epsilon \ge 0$.
    - `mu_dtype`: the dtype of the average gradient $m$; `None` is the parameter's, and float32 for
        half precision.
    - `weight_decay`: the factor of the decay, $\lambda \ge 0$.
    - `mask`: the parameters that decay: a selector, a function from the parameters to booleans, or
        a tree of booleans, possibly a prefix; `None` is everything.
    - `block_ndim`: the number of trailing axes that one mean is over, at least 1: 2 is each matrix
        of a stack, 1 is each row, `None` the whole leaf. A leaf with fewer axes is one block.

    Raises a `ValueError` if `update` is given no parameters, or the mask does not fit them.

    !!! note
        Here and in pytorch-optimizer, $\hat v_t$ is debiased; in the paper, $\beta_2$ grows with
        $t$ instead, from 0.

    ??? cite "Reference"
        Wortsman et al., *Stable and low-precision training for large-scale vision-language models*,
        NeurIPS 2023, algorithm 2 (arXiv 2304.13013).
    """

    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.99)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)
    mu_dtype: np.dtype | None = eqx.field(converter=to_dtype("mu_dtype"), static=True, default=None)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=0.0)
    mask: AbstractSelector | None = eqx.field(converter=optional(as_selector), default=None)
    block_ndim: int | None = eqx.field(
        converter=blocks.block_size("block_ndim"), static=True, default=2
    )

    def init_state(self, params: Params, context: Context) -> ScaleByStableAdamState:
        if self.mask is not None:
            self.mask.select(params)  # so that a wrong mask raises at once
        return ScaleByStableAdamState(
            zero_count(), zeros_like(params, self.mu_dtype), zeros_like(params, real=True)
        )

    def transform(
        self,
        updates: Updates,
        state: ScaleByStableAdamState,
        params: Params | None,
        context: Context,
    ) -> tuple[Updates, ScaleByStableAdamState]:
        params = require_params(params, self, context)
        count = increment(state.count)
        weights = moment_weights(self.b1, self.b2, count)
        state = ScaleByStableAdamState(count, state.mu, state.nu)
        numbers = (one_minus(self.b1), one_minus(self.b2), self.eps, *weights)
        decays = Rule(
            _stable,
            state,
            trees=("mu", "nu"),
            scalars=(*numbers, self.weight_decay),
            needs_params=True,
            options=(self.block_ndim,),
        )
        if self.mask is None:
            out, (new,) = leafwise.run((decays,), updates, params)
            return out, new
        # Each leaf goes through the first rule or through the second.
        chosen, treedef = checks.flatten(self.mask.select(params))
        others = treedef.unflatten([not c for c in chosen])
        decays = dataclasses.replace(decays, mask=treedef.unflatten(chosen))
        out, (new,) = leafwise.run((decays,), updates, params)
        rest = dataclasses.replace(decays, state=new, scalars=(*numbers, 0.0), mask=others)
        out, (new,) = leafwise.run((rest,), out, params)
        return out, new
