"""Lion: the sign of an average."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, PyTree

from .._base import checks
from .._base.arithmetic import ema, times
from .._base.converters import decay_factor, positive, to_dtype
from .._base.trees import increment, one_minus, zero_count, zeros_like
from .._base.types import Count, Params, Scalar
from .._objective.objective import Context
from .._transformation.base import AbstractLeafwise
from .._transformation.leafwise import Rule


@checks.typed
def lion_hard(x: Inexact[Array, "*shape"], beta: Float[Array, ""]) -> Inexact[Array, "*shape"]:
    r"""The sign, $x / |x|$, and 0 at 0, as in the paper.

    **Arguments:**

    - `x`: the average.
    - `beta`: not used.
    """
    return jnp.sign(x)


@checks.typed
def lion_smooth(x: Inexact[Array, "*shape"], beta: Float[Array, ""]) -> Inexact[Array, "*shape"]:
    r"""A smooth sign, $\tanh(\beta x)$.

    **Arguments:**

    - `x`: the average.
    - `beta`: the slope $\beta$ at 0.
    """
    return jnp.tanh(times(beta, x))


@checks.typed
def lion_refined(x: Inexact[Array, "*shape"], beta: Float[Array, ""]) -> Inexact[Array, "*shape"]:
    r"""A clipped sign: $x$ where $|x| < 1$, else $x / |x|$.

    **Arguments:**

    - `x`: the average.
    - `beta`: not used.
    """
    return jnp.where(jnp.abs(x) < 1, x, jnp.sign(x))


_MODES: dict[str, Callable[[Array, Array], Array]] = {
    "hard": lion_hard,
    "smooth": lion_smooth,
    "refined": lion_refined,
}


def _mode(value: object) -> Callable[[Array, Array], Array]:
    # optax's strings are accepted too.
    if isinstance(value, str) and value in _MODES:
        return _MODES[value]
    if not isinstance(value, str) and callable(value):
        mode: Any = value
        return mode
    raise ValueError(f"`mode` must be a function, such as `eqopt.options.lion_hard`; got {value!r}")


@checks.typed
def _lion(
    mode: Callable[[Array, Array], Array],
    update: Inexact[Array, "*shape"],
    mu: Inexact[Array, "*shape"],
    rest1: Float[Array, ""],
    rest2: Float[Array, ""],
    beta: Float[Array, ""],
) -> tuple[Inexact[Array, "*shape"], Inexact[Array, "*shape"]]:
    direction = mode(ema(rest1, mu, update), beta)
    return direction, ema(rest2, mu, update)


@checks.typed
class ScaleByLionState(eqx.Module):
    """The state of [`eqopt.ScaleByLion`][].

    **Arguments:**

    - `count`: the number of steps taken, int32 of shape `()`.
    - `mu`: the average of the gradients, like the parameters.
    """

    count: Count
    mu: PyTree


class ScaleByLion(AbstractLeafwise[ScaleByLionState]):
    r"""Replaces the updates by the sign of an average of the gradients.

    $$u_t = \operatorname{sign}\left(\beta_1 m_{t-1} + (1 - \beta_1) g_t\right), \qquad
    m_t = \beta_2 m_{t-1} + (1 - \beta_2) g_t.$$

    **Arguments:**

    - `b1`: the weight $\beta_1$ of the average in the update, in $[0, 1)$.
    - `b2`: the decay $\beta_2$ of the average, in $[0, 1)$.
    - `mu_dtype`: the dtype of the average $m$; `None` is the parameter's, and float32 for half
        precision.
    - `mode`: the sign function: [`eqopt.options.lion_hard`][], [`eqopt.options.lion_smooth`][],
        [`eqopt.options.lion_refined`][], or a function `mode(x, beta)`. (`"hard"`, `"smooth"` and
        `"refined"` are accepted too.)
    - `smooth_beta`: the second argument of `mode`, positive.

    ??? cite "Reference"
        Chen et al., *Symbolic Discovery of Optimization Algorithms*, NeurIPS 2023, algorithm 2
        (arXiv 2302.06675).
    """

    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.99)
    mu_dtype: np.dtype | None = eqx.field(converter=to_dtype("mu_dtype"), static=True, default=None)
    mode: Callable[[Array, Array], Array] = eqx.field(
        converter=_mode, static=True, default=lion_hard
    )
    smooth_beta: Scalar = eqx.field(converter=positive("smooth_beta"), default=1.0)

    def init_state(self, params: Params, context: Context) -> ScaleByLionState:
        return ScaleByLionState(zero_count(), zeros_like(params, self.mu_dtype))

    def rule(self, state: ScaleByLionState, params: Params | None, context: Context) -> Rule:
        new = ScaleByLionState(increment(state.count), state.mu)
        scalars = (one_minus(self.b1), one_minus(self.b2), self.smooth_beta)
        return Rule(_lion, new, trees=("mu",), scalars=scalars, options=(self.mode,))
