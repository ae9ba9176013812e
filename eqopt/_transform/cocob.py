"""Coin betting, which needs no learning rate."""

import equinox as eqx
from jax import lax
from jaxtyping import Array, Float, Inexact, PyTree

from .._base import checks
from .._base.arithmetic import divide, is_complex, minus, plus, times
from .._base.converters import non_negative, positive
from .._base.trees import copies, full_like, zeros_like
from .._base.types import Params, Scalar
from .._objective.objective import Context, require_params
from .._transformation.base import AbstractLeafwise
from .._transformation.leafwise import Rule


@checks.typed
def _cocob(
    update: Inexact[Array, "*shape"],
    param: Inexact[Array, "*shape"],
    init_particles: Inexact[Array, "*shape"],
    cumulative_gradients: Inexact[Array, "*shape"],
    scale: Float[Array, "*shape"],
    subgradients: Float[Array, "*shape"],
    reward: Float[Array, "*shape"],
    alpha: Float[Array, ""],
) -> tuple[
    Inexact[Array, "*shape"],
    Inexact[Array, "*shape"],
    Inexact[Array, "*shape"],
    Float[Array, "*shape"],
    Float[Array, "*shape"],
    Float[Array, "*shape"],
]:
    size = lax.abs(update)
    moved = minus(param, init_particles)
    scale = lax.max(scale, size)
    subgradients = plus(subgradients, size)
    reward = lax.max(minus(reward, _real_product(update, moved)), lax.full_like(reward, 0))
    cumulative_gradients = minus(cumulative_gradients, update)
    limit = lax.max(plus(subgradients, scale), times(alpha, scale))
    # Divided twice: the product of the denominators underflows where gradients are tiny.
    fraction = divide(divide(cumulative_gradients, scale), limit)
    bet = times(fraction, plus(scale, reward))
    # Not `(start + bet) - param`, which rounds to the digits of the parameter.
    return (minus(bet, moved), init_particles, cumulative_gradients, scale, subgradients, reward)


def _real_product(x: Array, y: Array) -> Array:
    """The real part of `conj(x) * y`: the reward along `x`."""
    if is_complex(x):
        return lax.add(lax.mul(lax.real(x), lax.real(y)), lax.mul(lax.imag(x), lax.imag(y)))
    return lax.mul(x, y)


@checks.typed
class ScaleByCOCOBState(eqx.Module):
    """The state of [`eqopt.ScaleByCOCOB`][].

    **Arguments:**

    - `init_particles`: the first parameters, in float32 at least.
    - `cumulative_gradients`: minus the sum of the gradients, like the parameters.
    - `scale`: the largest modulus of a gradient so far, for each entry; this one and the next two
        are real, and at least float32.
    - `subgradients`: the sum of the moduli of the gradients.
    - `reward`: the rewards of the bets so far.
    """

    init_particles: PyTree
    cumulative_gradients: PyTree
    scale: PyTree
    subgradients: PyTree
    reward: PyTree


class ScaleByCOCOB(AbstractLeafwise[ScaleByCOCOBState]):
    r"""Moves each parameter by coin betting: a gambler bets on the signs of its gradients.

    $$\begin{aligned}
    L_t &= \max(L_{t-1}, |g_t|), & G_t &= G_{t-1} + |g_t|, \\
    R_t &= \max\left(R_{t-1} - g_t (\theta_t - \theta_0), 0\right), & C_t &= C_{t-1} - g_t, \\
    \theta_{t+1} &= \theta_0 + \frac{C_t}{L_t \max(G_t + L_t, \alpha L_t)}\, (L_t + R_t)
    \end{aligned}$$

    with $L_0 = \epsilon$. The updates are the differences $\theta_{t+1} - \theta_t$: they go
    downhill, and must be applied unchanged. For complex parameters, each entry is one bet, with the
    real inner product for $g_t (\theta_t - \theta_0)$.

    !!! warning
        The next point is computed from the first parameters. Any other change of the parameters is
        undone at the next step, and scaling these updates does not make the bets smaller. To make
        them smaller, scale the gradients, as [`eqopt.COCOB`][] does.

    **Arguments:**

    - `alpha`: keeps the first bets small, $\alpha \ge 0$: at first, a parameter moves by about `1 /
        alpha` a step.
    - `eps`: the smallest scale of the gradients, $\epsilon > 0$.

    Raises a `ValueError` if `update` is given no parameters.

    ??? cite "Reference"
        Orabona and Tommasi, *Training Deep Networks without Learning Rates Through Coin Betting*,
        NIPS 2017, algorithm 2 (arXiv 1705.07795).
    """

    alpha: Scalar = eqx.field(converter=non_negative("alpha"), default=100.0)
    eps: Scalar = eqx.field(converter=positive("eps"), default=1e-8)

    def init_state(self, params: Params, context: Context) -> ScaleByCOCOBState:
        return ScaleByCOCOBState(
            init_particles=copies(params),
            cumulative_gradients=zeros_like(params),
            scale=full_like(params, self.eps, real=True),
            subgradients=zeros_like(params, real=True),
            reward=zeros_like(params, real=True),
        )

    def rule(self, state: ScaleByCOCOBState, params: Params | None, context: Context) -> Rule:
        require_params(params, self, context)
        trees = ("init_particles", "cumulative_gradients", "scale", "subgradients", "reward")
        return Rule(_cocob, state, trees=trees, scalars=(self.alpha,), needs_params=True)
