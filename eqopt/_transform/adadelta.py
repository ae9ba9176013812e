"""Adadelta's rescaling by the ratio of two averages."""

import equinox as eqx
from jaxtyping import Array, Float, Inexact, PyTree

from .._base import checks
from .._base.arithmetic import abs_sq, divide, ema, plus, safe_sqrt, times
from .._base.converters import decay_factor, positive
from .._base.trees import one_minus, zeros_like
from .._base.types import Params, Scalar
from .._objective.objective import Context
from .._transformation.base import AbstractLeafwise
from .._transformation.leafwise import Rule


@checks.typed
def _adadelta(
    update: Inexact[Array, "*shape"],
    e_g: Float[Array, "*shape"],
    e_x: Float[Array, "*shape"],
    rest: Float[Array, ""],
    eps: Float[Array, ""],
) -> tuple[Inexact[Array, "*shape"], Float[Array, "*shape"], Float[Array, "*shape"]]:
    e_g = ema(rest, e_g, abs_sq(update))
    ratio = divide(safe_sqrt(plus(e_x, eps)), safe_sqrt(plus(e_g, eps)))
    update = times(ratio, update)
    return update, e_g, ema(rest, e_x, abs_sq(update))


@checks.typed
class ScaleByAdadeltaState(eqx.Module):
    """The state of [`eqopt.ScaleByAdadelta`][].

    **Arguments:**

    - `e_g`: the average of the gradients' squared moduli; real, and at least float32.
    - `e_x`: the average of the squared moduli of the updates; real, and at least float32.
    """

    e_g: PyTree
    e_x: PyTree


class ScaleByAdadelta(AbstractLeafwise[ScaleByAdadeltaState]):
    r"""Multiplies the updates by the ratio of the typical past step to the typical gradient.

    $$\begin{aligned}
    G_t &= \rho\, G_{t-1} + (1 - \rho) |g_t|^2, \qquad
    u_t = \frac{\sqrt{X_{t-1} + \epsilon}}{\sqrt{G_t + \epsilon}}\, g_t, \\
    X_t &= \rho\, X_{t-1} + (1 - \rho) |u_t|^2.
    \end{aligned}$$

    The sign is not flipped: to go downhill, see [`eqopt.Adadelta`][]. A gradient of zero gives an
    update of zero.

    **Arguments:**

    - `rho`: the decay $\rho$ of both averages, in $[0, 1)$.
    - `eps`: added to both averages under the root, $\epsilon > 0$. It sets the length of the first
        steps, which would be 0 without it.

    !!! note
        For complex gradients the squared modulus is averaged, as in every other transformation;
        optax averages the complex square.

    ??? cite "Reference"
        Zeiler, *ADADELTA: An Adaptive Learning Rate Method*, 2012, algorithm 1 (arXiv 1212.5701).
    """

    rho: Scalar = eqx.field(converter=decay_factor("rho"), default=0.9)
    eps: Scalar = eqx.field(converter=positive("eps"), default=1e-6)

    def init_state(self, params: Params, context: Context) -> ScaleByAdadeltaState:
        return ScaleByAdadeltaState(zeros_like(params, real=True), zeros_like(params, real=True))

    def rule(self, state: ScaleByAdadeltaState, params: Params | None, context: Context) -> Rule:
        return Rule(_adadelta, state, trees=("e_g", "e_x"), scalars=(one_minus(self.rho), self.eps))
