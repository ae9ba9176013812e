"""A learning rate that is learned."""

from typing import Any, Generic

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, PyTree

from .._base import checks
from .._base.arithmetic import cast, divide, minus, real_dtype, safe_sqrt, times, wider
from .._base.checks import typed
from .._base.converters import float_dtype, non_negative, positive, size
from .._base.norms import global_norm
from .._base.trees import copies, increment, inner, mask_like, round_like, select, zero_count
from .._base.types import Count, Params, Scalar, State, Updates
from .._objective.objective import Context, require_params
from .._transformation.base import AbstractTransformation, check_state, check_transformation
from .._transformation.eval_params import check_like
from .._transformation.nesting import AbstractConstrained, check_nesting, Requirement


@typed
class MechanizeState(eqx.Module, Generic[State]):
    """The state of [`eqopt.Mechanize`][].

    **Arguments:**

    - `base_optimizer_state`: the state of the base optimizer.
    - `count`: the number of steps taken, int32 of shape `()`.
    - `r`, `m`, `v`, `s`: for each decay the reward, the largest gain, the sum of the squared gains,
        and the scale, of shape `(num_betas,)`.
    - `x0`: the parameters at the first step.
    """

    base_optimizer_state: State
    count: Count
    r: Float[Array, " betas"]
    m: Float[Array, " betas"]
    v: Float[Array, " betas"]
    s: Float[Array, " betas"]
    x0: PyTree


class Mechanize(AbstractConstrained[MechanizeState[State]], Generic[State]):
    r"""Learns the scale of a base optimizer's updates, which replaces the tuned learning rate.

    With $u_t$ the updates of the base optimizer, $\Delta_t = \Delta_{t-1} - u_t$ and
    $\theta_{t+1} = \theta_0 - \Delta_t \sum_i s_{t,i}$. The scales are learned from the gain
    $h_t = \langle g_t + \lambda \sum_i s_{t-1,i} \frac{\|g_t\|}{\|\theta_t\|} \theta_t,\,
    \Delta_{t-1} \rangle$, for each of the decays $\beta_i = 1 - 10^{-i}$:

    $$m_t = \max(\beta m_{t-1}, |h_t| + \epsilon), \quad v_t = \beta^2 v_{t-1} + h_t^2, \quad
    r_t = \beta r_{t-1} + s_{t-1}\,\mathrm{clip}(h_t, \pm m_{t-1}), \quad
    s_t = \frac{s_0 m_t / n + \max(0, r_t)}{\sqrt{v_t} + \epsilon}.$$

    A schedule of the base optimizer's learning rate keeps its shape; give it a peak of 1.

    !!! warning
        It must see the updates as they are applied: put it around the whole optimizer, or last in a
        chain. It takes any other change of the parameters for its own update.

    **Arguments:**

    - `base_optimizer`: the base optimizer.
    - `weight_decay`: the factor $\lambda \ge 0$, which is independent of the base optimizer's
        decay.
    - `eps`: $\epsilon > 0$, against division by zero.
    - `s_init`: the initial scale $s_0 > 0$.
    - `num_betas`: the number $n$ of decays, at least 1.

    ??? cite "Reference"
        Cutkosky, Defazio and Mehta, *Mechanic: a learning rate tuner*, NeurIPS 2023, algorithm 1
        (arXiv 2306.00144); with the gain clipped, as in optax.
    """

    base_optimizer: AbstractTransformation[State]
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=1e-2)
    eps: Scalar = eqx.field(converter=positive("eps"), default=1e-8)
    s_init: Scalar = eqx.field(converter=positive("s_init"), default=1e-6)
    num_betas: int = eqx.field(converter=size("num_betas"), static=True, default=6)

    def __check_init__(self) -> None:
        check_transformation("base_optimizer", self.base_optimizer)
        why = "the updates are scaled, all of them anew at each step. Put it around `Mechanize`"
        broken = {
            Requirement.MOVES: why,
            Requirement.REST: why,
            Requirement.STEP: "its updates are scaled. It needs no learning rate, learned or not",
        }
        check_nesting(self, self.base_optimizer, broken)

    def requirements(self) -> frozenset[Requirement]:
        return frozenset({Requirement.MOVES})

    def init_state(self, params: Params, context: Context) -> MechanizeState[State]:
        zeros = jnp.zeros(self.num_betas, float_dtype())
        return MechanizeState(
            base_optimizer_state=self.base_optimizer.init_state(params, context),
            count=zero_count(),
            r=zeros,
            m=jnp.zeros_like(zeros),
            v=jnp.zeros_like(zeros),
            s=jnp.full_like(zeros, jnp.asarray(self.s_init)),
            x0=copies(params),
        )

    def transform(
        self,
        updates: Updates,
        state: MechanizeState[State],
        params: Params | None,
        context: Context,
    ) -> tuple[Updates, MechanizeState[State]]:
        check_state(self.base_optimizer, state.base_optimizer_state, "state.base_optimizer_state")
        params = require_params(params, self, context)
        dtype = float_dtype()
        decay, eps, s_init = (
            jnp.asarray(x).astype(dtype) for x in (self.weight_decay, self.eps, self.s_init)
        )
        steps, base_state = self.base_optimizer.transform(
            updates, state.base_optimizer_state, params, context
        )
        # From the first step's parameters, which may differ from the parameters in `init`.
        now = round_like(params, state.x0)
        x0 = select(state.count == 0, now, check_like(state.x0, params, "state.x0"))
        # The sum of the base optimizer's updates at a scale of 1. Not stored, because it can be
        # computed from the parameters.
        total = jnp.sum(state.s)
        moved = jax.tree.map(lambda a, b: _divided(minus(a, b), total + eps), x0, now)

        norms = global_norm(updates).astype(dtype), global_norm(params).astype(dtype)
        pull = decay * total * norms[0] / (norms[1] + eps)
        gain = _gain(updates, moved) + pull * _gain(mask_like(updates, now), moved)
        betas = 1 - 0.1 ** jnp.arange(1, self.num_betas + 1, dtype=dtype)
        m = jnp.maximum(betas * state.m, jnp.abs(gain) + eps)
        v = jnp.square(betas) * state.v + jnp.square(gain)
        r = betas * state.r + jnp.clip(gain, -state.m, state.m) * state.s
        s = (s_init / self.num_betas * m + jnp.maximum(r, 0)) / (safe_sqrt(v) + eps)
        scale = jnp.sum(s)

        def step(u: Any, start: Any, x: Any, d: Any) -> Any:
            if u is None:
                return None
            own = wider(u.dtype, x.dtype)
            change = minus(cast(d, own), cast(u, own))
            target = minus(cast(start, own), times(cast(scale, real_dtype(own)), change))
            return minus(target, cast(x, own))

        out = jax.tree.map(step, steps, x0, now, moved, is_leaf=checks.is_none)
        return out, MechanizeState(
            base_optimizer_state=base_state, count=increment(state.count), r=r, m=m, v=v, s=s, x0=x0
        )


def _divided(x: Inexact[Array, "*shape"], by: Float[Array, ""]) -> Inexact[Array, "*shape"]:
    return divide(x, cast(by, real_dtype(x.dtype)))


def _gain(updates: Updates, moved: PyTree) -> Float[Array, ""]:
    return inner(updates, mask_like(updates, moved)).astype(float_dtype())
