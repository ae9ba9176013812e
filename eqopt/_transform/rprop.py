"""Resilient backpropagation: a step size for each entry, adapted by signs only."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Inexact, PyTree

from .._base import checks
from .._base.arithmetic import is_complex
from .._base.converters import non_negative, positive, real
from .._base.trees import full_like, zeros_like
from .._base.types import Params, Scalar
from .._objective.objective import Context
from .._transformation.base import AbstractLeafwise
from .._transformation.leafwise import Rule


@checks.typed
def _rprop(
    update: Inexact[Array, "*shape"],
    step_sizes: Inexact[Array, "*shape"],
    signs: Inexact[Array, "*shape"],
    eta_minus: Float[Array, ""],
    eta_plus: Float[Array, ""],
    min_step_size: Float[Array, ""],
    max_step_size: Float[Array, ""],
) -> tuple[Inexact[Array, "*shape"], Inexact[Array, "*shape"], Inexact[Array, "*shape"]]:
    if is_complex(update):
        numbers = (eta_minus, eta_plus, min_step_size, max_step_size)
        x = _rprop(lax.real(update), lax.real(step_sizes), lax.real(signs), *numbers)
        y = _rprop(lax.imag(update), lax.imag(step_sizes), lax.imag(signs), *numbers)
        return lax.complex(x[0], y[0]), lax.complex(x[1], y[1]), lax.complex(x[2], y[2])
    now = lax.sign(update)
    # A product of signs, because a product of tiny gradients is zero. Both conditions are false for
    # NaN, which passes and leaves the step size unchanged.
    agreement = lax.mul(now, signs)
    factor = jnp.where(agreement > 0, eta_plus, jnp.where(agreement < 0, eta_minus, 1))
    step_sizes = jnp.clip(lax.mul(step_sizes, factor), min_step_size, max_step_size)
    now = jnp.where(agreement < 0, 0, now)
    return lax.mul(step_sizes, now), step_sizes, now


def check_limits(least: Scalar, largest: Scalar) -> None:
    """Refuses an empty range of step sizes."""
    if isinstance(least, np.generic) and isinstance(largest, np.generic) and least > largest:
        raise ValueError(
            f"`max_step_size` must be at least `min_step_size`, which is {least:g}; got {largest:g}"
        )


@checks.typed
class ScaleByRpropState(eqx.Module):
    """The state of [`eqopt.ScaleByRprop`][].

    **Arguments:**

    - `step_sizes`: the step size of each entry, like the parameters. For a complex parameter, its
        real and imaginary part are the step sizes of these parts.
    - `signs`: the signs of the last step's updates, like the parameters.
    """

    step_sizes: PyTree
    signs: PyTree


class ScaleByRprop(AbstractLeafwise[ScaleByRpropState]):
    r"""Replaces each entry of the updates by its sign times the entry's own step size, which grows
    while the sign stays the same and shrinks when it changes.

    $$\begin{aligned}
    \Delta_t &= \operatorname{clip}(c\, \Delta_{t-1}, \Delta_{\min}, \Delta_{\max}), \qquad
    c = \begin{cases}
    \eta_+ & s_{t-1} \operatorname{sign}(g_t) > 0, \\
    \eta_- & s_{t-1} \operatorname{sign}(g_t) < 0, \\
    1 & \text{else,}
    \end{cases} \\
    s_t &= \begin{cases}
    0 & s_{t-1} \operatorname{sign}(g_t) < 0, \\
    \operatorname{sign}(g_t) & \text{else,}
    \end{cases} \qquad
    u_t = \Delta_t\, s_t.
    \end{aligned}$$

    If the sign has just changed, the entry does not move for one step. Only signs matter, and the
    signs of a mini-batch's gradient are noise, so use gradients of all data. The real and the
    imaginary part of a complex parameter have separate step sizes.

    **Arguments:**

    - `learning_rate`: the step size to begin with, $\Delta_0 > 0$. Changing it has no effect on an
        existing state.
    - `eta_minus`: the factor of a step size where the sign changes, in $(0, 1)$.
    - `eta_plus`: the factor of a step size where the sign stays the same, greater than 1.
    - `min_step_size`: the smallest step size $\Delta_{\min} \ge 0$.
    - `max_step_size`: the largest step size $\Delta_{\max} > 0$.

    !!! note
        It is torch's rule. optax 0.2.8 computes the same rule, but returns the update of the
        previous step.

    ??? cite "Reference"
        Igel and Hüsken, *Empirical evaluation of the improved Rprop learning algorithms*,
        Neurocomputing 50, 2003, iRprop-; after Riedmiller and Braun, *A direct adaptive method for
        faster backpropagation learning: the RPROP algorithm*, ICNN 1993.
    """

    learning_rate: Scalar = eqx.field(converter=positive("learning_rate"))
    eta_minus: Scalar = eqx.field(converter=real("eta_minus", above=0, below=1), default=0.5)
    eta_plus: Scalar = eqx.field(converter=real("eta_plus", above=1), default=1.2)
    min_step_size: Scalar = eqx.field(converter=non_negative("min_step_size"), default=1e-6)
    max_step_size: Scalar = eqx.field(converter=positive("max_step_size"), default=50.0)

    def __check_init__(self) -> None:
        check_limits(self.min_step_size, self.max_step_size)

    def init_state(self, params: Params, context: Context) -> ScaleByRpropState:
        def steps(x: Array) -> Array:
            size = jnp.asarray(self.learning_rate)
            return full_like(x, lax.complex(size, size) if is_complex(x) else size)

        return ScaleByRpropState(jax.tree.map(steps, params), zeros_like(params))

    def rule(self, state: ScaleByRpropState, params: Params | None, context: Context) -> Rule:
        scalars = (self.eta_minus, self.eta_plus, self.min_step_size, self.max_step_size)
        return Rule(_rprop, state, trees=("step_sizes", "signs"), scalars=scalars)
