"""Adagrad's rescaling by the root of a sum of squares."""

import equinox as eqx
from jaxtyping import Array, Float, Inexact, PyTree

from .._base import checks
from .._base.arithmetic import abs_sq, plus, safe_divide, safe_sqrt
from .._base.converters import flag, non_negative
from .._base.trees import full_like
from .._base.types import Params, Scalar
from .._objective.objective import Context
from .._transformation.base import AbstractLeafwise
from .._transformation.leafwise import Rule


@checks.typed
def _rss(
    eps_in_sqrt: bool,
    update: Inexact[Array, "*shape"],
    sum_of_squares: Float[Array, "*shape"],
    eps: Float[Array, ""],
) -> tuple[Inexact[Array, "*shape"], Float[Array, "*shape"]]:
    total = plus(sum_of_squares, abs_sq(update))
    root = safe_sqrt(plus(total, eps)) if eps_in_sqrt else plus(safe_sqrt(total), eps)
    return safe_divide(update, root, zero=total == 0), total


@checks.typed
class ScaleByRSSState(eqx.Module):
    """The state of [`eqopt.ScaleByRSS`][].

    **Arguments:**

    - `sum_of_squares`: the sum of the squared moduli; real, and at least float32.
    """

    sum_of_squares: PyTree


class ScaleByRSS(AbstractLeafwise[ScaleByRSSState]):
    r"""Divides the updates by the root of the sum of all their squares so far.

    $$G_t = G_{t-1} + |g_t|^2, \qquad
    u_t = g_t \big/ \sqrt{G_t + \epsilon} \quad\text{or}\quad g_t \big/ (\sqrt{G_t} + \epsilon),$$

    and $u_t = 0$ where $G_t = 0$: a gradient that has always been zero gives an update of zero,
    with $\epsilon = 0$ too.

    **Arguments:**

    - `initial_accumulator_value`: the sum to begin with, $G_0 \ge 0$.
    - `eps`: added to the sum under the root, $\epsilon \ge 0$.
    - `eps_in_sqrt`: whether $\epsilon$ is added under the root, as in optax, or to it, as in torch.

    ??? cite "Reference"
        Duchi, Hazan and Singer, *Adaptive Subgradient Methods for Online Learning and Stochastic
        Optimization*, JMLR 12, 2011, figure 1.
    """

    initial_accumulator_value: Scalar = eqx.field(
        converter=non_negative("initial_accumulator_value"), default=0.1
    )
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-7)
    eps_in_sqrt: bool = eqx.field(converter=flag("eps_in_sqrt"), static=True, default=True)

    def init_state(self, params: Params, context: Context) -> ScaleByRSSState:
        return ScaleByRSSState(full_like(params, self.initial_accumulator_value, real=True))

    def rule(self, state: ScaleByRSSState, params: Params | None, context: Context) -> Rule:
        scalars, options = (self.eps,), (self.eps_in_sqrt,)
        return Rule(_rss, state, trees=("sum_of_squares",), scalars=scalars, options=options)
