"""Polyak's step size, computed from the smallest value that the objective can have."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact

from .._base import checks
from .._base.arithmetic import cast, safe_divide, times
from .._base.converters import non_negative, positive, real
from .._base.norms import global_norm
from .._base.types import Params, Scalar, Updates
from .._objective.objective import Context
from .._transformation import leafwise
from .._transformation.base import AbstractTransformation, EmptyState
from .._transformation.leafwise import Rule

_VARIANTS = ("sps", "sps+")

# As in optax, in every dtype.
_SMALLEST = float(np.finfo(np.float64).eps)


def variant(value: str) -> str:
    """The converter of Polyak's `variant`."""
    if value not in _VARIANTS:
        raise ValueError(f"`variant` must be 'sps' or 'sps+'; got {value!r}")
    return value


@checks.typed
def _scale(update: Inexact[Array, "*shape"], factor: Float[Array, ""]) -> Inexact[Array, "*shape"]:
    return times(factor, update)


class ScaleByPolyak(AbstractTransformation[EmptyState]):
    r"""Multiplies the updates by Polyak's step size, which needs no tuning where the least value of
    the objective is known.

    $$u \leftarrow \gamma u, \qquad
    \gamma = \min\left(\frac{f - f_\star}{\|u\|^2 + \epsilon},\; \gamma_{\max}\right)$$

    with $f$ the objective's value at the parameters and the norm over all leaves together. Where
    the denominator is at most $2^{-52}$, the step size is 0. The sign is not flipped: to go
    downhill, see [`eqopt.PolyakSGD`][].

    **Arguments:**

    - `f_min`: the least value of the objective $f_\star$, or a guess of it. It is 0 for models that
        can fit all their data.
    - `max_learning_rate`: the largest step size $\gamma_{\max}$, positive.
    - `eps`: added to the denominator, $\epsilon \ge 0$.
    - `variant`: `"sps"`, or `"sps+"` for a step size of 0 where $f < f_\star$; with `"sps"` it is
        negative there.

    Its `update` needs `value`; `step` passes it.

    Raises a `ValueError` for another `variant`.

    ??? cite "Reference"
        Polyak, *Introduction to Optimization*, 1987, section 5.3; Loizou, Vaswani, Laradji and
        Lacoste-Julien, *Stochastic Polyak step-size for SGD: an adaptive learning rate for fast
        convergence*, AISTATS 2021, equation 3 with c = 1 (arXiv 2002.10542); for `"sps+"`,
        Garrigos, Gower and Schaipp, *Function value learning*, 2023 (arXiv 2307.14528).
    """

    f_min: Scalar = eqx.field(converter=real("f_min"), default=0.0)
    max_learning_rate: Scalar = eqx.field(converter=positive("max_learning_rate"), default=1.0)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=0.0)
    variant: str = eqx.field(converter=variant, static=True, default="sps")

    def init_state(self, params: Params, context: Context) -> EmptyState:
        return EmptyState()

    def transform(
        self, updates: Updates, state: EmptyState, params: Params | None, context: Context
    ) -> tuple[Updates, EmptyState]:
        norm = global_norm(updates)
        dtype = norm.dtype
        gap = cast(jnp.asarray(context.require("value", self)), dtype) - self.f_min.astype(dtype)
        if self.variant == "sps+":
            gap = jnp.maximum(gap, 0)
        size = norm * norm + self.eps.astype(dtype)
        # Not `~(size > smallest)`, which is true for NaN.
        step = safe_divide(gap, size, zero=size <= _SMALLEST)
        step = jnp.minimum(step, self.max_learning_rate.astype(dtype))
        rule = Rule(_scale, state, scalars=(step,))
        updates, _ = leafwise.run((rule,), updates, params)
        return updates, state
