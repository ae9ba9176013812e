"""Rescaling of each leaf, a *block*, by the size of its parameter."""

import equinox as eqx
from jax import lax
from jaxtyping import Array, Float, Inexact

from .._base import checks
from .._base.arithmetic import norm, plus, rms, safe_divide, times
from .._base.converters import flag, non_negative, optional
from .._base.types import Params, Scalar
from .._objective.objective import Context, require_params
from .._transformation.base import AbstractLeafwise, EmptyState
from .._transformation.leafwise import Rule


@checks.typed
def _trust_ratio(
    zeros_move: bool,
    update: Inexact[Array, "*shape"],
    param: Inexact[Array, "*shape"],
    min_norm: Float[Array, ""],
    trust_coefficient: Float[Array, ""],
    eps: Float[Array, ""],
    weight_decay: Float[Array, ""] | None = None,
) -> Inexact[Array, "*shape"]:
    param_norm = lax.max(norm(param), min_norm)
    update_norm = lax.max(norm(update), min_norm)
    zero = update_norm == 0
    if zeros_move:
        zero = zero | (param_norm == 0)
    length = update_norm + eps
    if weight_decay is not None:
        update = plus(update, times(weight_decay, param))
        length = length + weight_decay * param_norm
    return times(safe_divide(trust_coefficient * param_norm, length, 1, zero=zero), update)


class ScaleByTrustRatio(AbstractLeafwise[EmptyState]):
    r"""Makes the update of each leaf as long as its parameter, times a factor.

    $$u \leftarrow \eta\, \frac{\max(\|\theta\|, n)}{\max(\|u\|, n) + \epsilon}\; u$$

    with the norms over one leaf each, in float32 at least. Where a norm is 0, the ratio is 1, and
    $\eta$ is not used: otherwise parameters that start at zero would never move. An update of zero
    stays zero.

    With `weight_decay`, the update contains gradient and decay, and the ratio uses the sum of their
    norms, as in the paper:

    $$u \leftarrow \eta\, \frac{\max(\|\theta\|, n)}
    {\max(\|u\|, n) + \lambda \max(\|\theta\|, n) + \epsilon}\; (u + \lambda \theta).$$

    **Arguments:**

    - `min_norm`: the smallest norm $n \ge 0$.
    - `trust_coefficient`: the factor $\eta \ge 0$.
    - `eps`: added to the norm of the update, $\epsilon \ge 0$.
    - `weight_decay`: the decay $\lambda \ge 0$; `None` is no decay. (With
        [`eqopt.AddDecayedWeights`][] before this link, the ratio uses the norm of the sum, as in
        optax.)
    - `zeros_move`: whether a parameter whose norm is 0 has the ratio 1; otherwise it has the ratio
        0, and stays zero.

    Raises a `ValueError` if `update` is given no parameters.

    ??? cite "Reference"
        You, Gitman and Ginsburg, *Large Batch Training of Convolutional Networks*, 2017, equation 6
        (arXiv 1708.03888).
    """

    min_norm: Scalar = eqx.field(converter=non_negative("min_norm"), default=0.0)
    trust_coefficient: Scalar = eqx.field(converter=non_negative("trust_coefficient"), default=1.0)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=0.0)
    weight_decay: Scalar | None = eqx.field(
        converter=optional(non_negative("weight_decay")), default=None
    )
    zeros_move: bool = eqx.field(converter=flag("zeros_move"), static=True, default=True)

    def init_state(self, params: Params, context: Context) -> EmptyState:
        return EmptyState()

    def rule(self, state: EmptyState, params: Params | None, context: Context) -> Rule:
        require_params(params, self, context)
        scalars = (self.min_norm, self.trust_coefficient, self.eps)
        if self.weight_decay is not None:
            scalars = (*scalars, self.weight_decay)
        options = (self.zeros_move,)
        return Rule(_trust_ratio, state, scalars=scalars, needs_params=True, options=options)


@checks.typed
def _by_norm(
    update: Inexact[Array, "*shape"], param: Inexact[Array, "*shape"], min_scale: Float[Array, ""]
) -> Inexact[Array, "*shape"]:
    return times(lax.max(norm(param), min_scale), update)


class ScaleByParamBlockNorm(AbstractLeafwise[EmptyState]):
    r"""Multiplies the update of each leaf by the norm of its parameter:
    $u \leftarrow \max(\|\theta\|, c)\, u$.

    The norm is over one leaf, in float32 at least.

    **Arguments:**

    - `min_scale`: the least factor $c \ge 0$. With 0, parameters that are all zero stay so.

    Raises a `ValueError` if `update` is given no parameters.
    """

    min_scale: Scalar = eqx.field(converter=non_negative("min_scale"), default=1e-3)

    def init_state(self, params: Params, context: Context) -> EmptyState:
        return EmptyState()

    def rule(self, state: EmptyState, params: Params | None, context: Context) -> Rule:
        require_params(params, self, context)
        return Rule(_by_norm, state, scalars=(self.min_scale,), needs_params=True)


@checks.typed
def _by_rms(
    update: Inexact[Array, "*shape"], param: Inexact[Array, "*shape"], min_scale: Float[Array, ""]
) -> Inexact[Array, "*shape"]:
    return times(lax.max(rms(param), min_scale), update)


class ScaleByParamBlockRMS(AbstractLeafwise[EmptyState]):
    r"""Multiplies the update of each leaf by the root mean square of its parameter:
    $u \leftarrow \max(\|\theta\| / \sqrt{n}, c)\, u$.

    The norm is over one leaf, of $n$ entries, in float32 at least.

    **Arguments:**

    - `min_scale`: the least factor $c \ge 0$. With 0, parameters that are all zero stay so.

    Raises a `ValueError` if `update` is given no parameters.

    ??? cite "Reference"
        Shazeer and Stern, *Adafactor: Adaptive Learning Rates with Sublinear Memory Cost*, ICML
        2018, section 8 (arXiv 1804.04235).
    """

    min_scale: Scalar = eqx.field(converter=non_negative("min_scale"), default=1e-3)

    def init_state(self, params: Params, context: Context) -> EmptyState:
        return EmptyState()

    def rule(self, state: EmptyState, params: Params | None, context: Context) -> Rule:
        require_params(params, self, context)
        return Rule(_by_rms, state, scalars=(self.min_scale,), needs_params=True)
