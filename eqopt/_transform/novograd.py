"""NovoGrad's rescaling by one second moment per leaf."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, PyTree

from .._base import checks
from .._base.arithmetic import abs_sq, ema, over_root, plus, times
from .._base.converters import decay_factor, non_negative, to_dtype
from .._base.trees import increment, one_minus, zero_count, zeros_like
from .._base.types import Count, Params, Scalar
from .._objective.objective import Context, require_params
from .._transformation.base import AbstractLeafwise
from .._transformation.leafwise import Rule


@checks.typed
def _novograd(
    update: Inexact[Array, "*shape"],
    param: Inexact[Array, "*shape"],
    mu: Inexact[Array, "*shape"],
    nu: Float[Array, ""],
    b1: Float[Array, ""],
    rest2: Float[Array, ""],
    eps: Float[Array, ""],
    eps_root: Float[Array, ""],
    weight_decay: Float[Array, ""],
) -> tuple[Inexact[Array, "*shape"], Inexact[Array, "*shape"], Float[Array, ""]]:
    nu = ema(rest2, nu, jnp.sum(abs_sq(update)))
    decayed = plus(over_root(update, nu, eps, eps_root), times(weight_decay, param))
    mu = plus(times(b1, mu), decayed)
    return mu, mu, nu


def _shapes(shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of `mu` and `nu`."""
    return shape, ()


@checks.typed
class ScaleByNovoGradState(eqx.Module):
    """The state of [`eqopt.ScaleByNovoGrad`][].

    **Arguments:**

    - `count`: the number of steps taken, int32 of shape `()`.
    - `mu`: the momentum, like the parameters.
    - `nu`: the average of the gradient's squared norm, of shape `()` for each leaf; real, and at
        least float32.
    """

    count: Count
    mu: PyTree
    nu: PyTree


class ScaleByNovoGrad(AbstractLeafwise[ScaleByNovoGradState]):
    r"""Divides the gradient of each leaf by its typical norm, adds weight decay, and adds momentum.

    With norms over one leaf each, in float32 at least, and $v_1 = \|g_1\|^2$,

    $$v_t = \beta_2 v_{t-1} + (1 - \beta_2) \|g_t\|^2, \qquad
    u_t = \beta_1 u_{t-1} + \frac{g_t}{\sqrt{v_t + \bar\epsilon} + \epsilon} + \lambda\theta.$$

    Its state is half of Adam's: the momentum, and one number per leaf.

    **Arguments:**

    - `b1`: the momentum's factor $\beta_1$, in $[0, 1)$.
    - `b2`: the decay $\beta_2$ of the average squared norm, in $[0, 1)$.
    - `eps`: added to the root of that average, $\epsilon \ge 0$.
    - `eps_root`: added under that root, $\bar\epsilon \ge 0$.
    - `weight_decay`: the decay, which becomes part of the momentum, $\lambda \ge 0$.
    - `mu_dtype`: the dtype of the momentum; `None` is the parameter's, and float32 for half
        precision.

    Raises a `ValueError` if `update` is given no parameters.

    !!! note
        The momentum is a sum and not an average: updates, and the decay in them, grow to $1 / (1 -
        \beta_1)$ times the length of the first update.

    ??? cite "Reference"
        Ginsburg et al., *Stochastic Gradient Methods with Layer-wise Adaptive Moments for Training
        of Deep Networks*, 2019, algorithm 1 (arXiv 1905.11286).
    """

    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.25)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)
    eps_root: Scalar = eqx.field(converter=non_negative("eps_root"), default=0.0)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=0.0)
    mu_dtype: np.dtype | None = eqx.field(converter=to_dtype("mu_dtype"), static=True, default=None)

    def init_state(self, params: Params, context: Context) -> ScaleByNovoGradState:
        # Computed like sums, so that they are placed where their leaves are.
        sums = jax.tree.map(jnp.sum, params)
        return ScaleByNovoGradState(
            zero_count(), zeros_like(params, self.mu_dtype), zeros_like(sums, real=True)
        )

    def rule(self, state: ScaleByNovoGradState, params: Params | None, context: Context) -> Rule:
        require_params(params, self, context)
        return Rule(
            _novograd,
            ScaleByNovoGradState(increment(state.count), state.mu, state.nu),
            trees=("mu", "nu"),
            scalars=(
                self.b1,
                jnp.where(state.count == 0, 1, one_minus(self.b2)),
                self.eps,
                self.eps_root,
                self.weight_decay,
            ),
            needs_params=True,
            shapes=_shapes,
        )
