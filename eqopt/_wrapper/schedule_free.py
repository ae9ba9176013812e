"""Averaging in place of a schedule."""

from typing import Generic

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, PyTree

from .._base import checks
from .._base.arithmetic import cast, minus, plus, real_dtype, safe_divide, times, wider
from .._base.converters import decay_factor, non_negative, to_dtype
from .._base.trees import increment, zero_count, zeros_like
from .._base.types import Count, Params, Scalar, State, Updates
from .._objective.objective import Context
from .._schedule.base import AbstractSchedule, as_rate, as_real, value_at
from .._transformation import leafwise
from .._transformation.base import AbstractTransformation, check_state, check_transformation
from .._transformation.eval_params import AbstractEvalState, check_like
from .._transformation.leafwise import Rule
from .._transformation.nesting import AbstractConstrained, check_nesting, Requirement

# The rule has three points: y, the parameters; z, the base optimizer's point; x, the average of z.
# Each follows from the other two. optax stores z, and x = (y - (1 - b1) z) / b1, which is not
# defined for b1 = 0. We store the gap d = x - z: then z = y - b1 d and x = y + (1 - b1) d, without
# division, and without cancellation for any b1. If something else moves y, x and z move too.


class ScheduleFreeState(AbstractEvalState, Generic[State]):
    r"""The state of [`eqopt.ScheduleFree`][].

    **Arguments:**

    - `count`: the number of steps taken, int32 of shape `()`.
    - `b1`: the $\beta$ of the last step, of shape `()`.
    - `weight_sum`: the sum of the weights $w$, of shape `()`.
    - `max_lr`: the largest learning rate so far, of shape `()`.
    - `base_optimizer_state`: the state of the base optimizer.
    - `gap`: the difference $d = x - z$, like the parameters.
    """

    count: Count
    b1: Float[Array, ""]
    weight_sum: Float[Array, ""]
    max_lr: Float[Array, ""]
    base_optimizer_state: State
    gap: PyTree

    def eval_params(self, params: Params) -> Params:
        gap, rest = check_like(self.gap, params, "state.gap"), 1 - self.b1
        return jax.tree.map(
            lambda y, d: None if y is None or d is None else _averaged(y, d, rest),
            params,
            gap,
            is_leaf=checks.is_none,
        )


@jax.jit
@checks.typed
def _averaged(
    y: Inexact[Array, "*shape"], gap: Inexact[Array, "*shape"], rest: Float[Array, ""]
) -> Inexact[Array, "*shape"]:
    dtype = wider(y.dtype, gap.dtype)
    x = plus(cast(y, dtype), times(cast(rest, real_dtype(dtype)), cast(gap, dtype)))
    return cast(x, y.dtype)


@checks.typed
def _average(
    update: Inexact[Array, "*shape"],
    gap: Inexact[Array, "*shape"],
    rest: Float[Array, ""],
    old_b1: Float[Array, ""],
    b1: Float[Array, ""],
) -> tuple[Inexact[Array, "*shape"], Inexact[Array, "*shape"]]:
    new = times(rest, minus(gap, update))
    return plus(update, minus(times(b1, new), times(old_b1, gap))), new


class ScheduleFree(AbstractConstrained[ScheduleFreeState[State]], Generic[State]):
    r"""Averages the points of a base optimizer instead of decreasing its learning rate, and
    replaces its momentum by an interpolation.

    The parameters are $y$, at which gradients are taken. The base optimizer's updates $u$ move $z$,
    and $x$ is the average:

    $$z_{t+1} = z_t + u_t, \qquad x_{t+1} = (1 - c_t)\, x_t + c_t\, z_{t+1}, \qquad
    y_{t+1} = (1 - \beta)\, z_{t+1} + \beta\, x_{t+1},$$

    with $c_t = w_t / \sum_{s \le t} w_s$ and $w_t = (\max_{s \le t} \gamma_s)^r$. To evaluate, use
    $x$, which [`eqopt.eval_params`][] gives.

    !!! note
        $\gamma_t$ is the base optimizer's learning rate at the same step, as in the authors' code.
        optax uses the rate of the next step.

    **Arguments:**

    - `base_optimizer`: the optimizer that gives $u$, without momentum of its own: `SGD`, or `Adam`
        with a `b1` of 0.
    - `learning_rate`: the rate $\gamma_t \ge 0$ of the base optimizer, a number or a schedule
        (constant except for a warmup); here it is used only for the weights.
    - `b1`: the part $\beta$ of the average in the point at which gradients are taken, in $[0, 1)$.
    - `weight_lr_power`: the power $r$ of the learning rate in the weights of the average, not
        negative.
    - `state_dtype`: the dtype of the memory; `None` is the parameter's, and float32 for half
        precision.

    ??? cite "Reference"
        Defazio, Yang, Mehta, Mishchenko, Khaled and Cutkosky, *The road less scheduled*, NeurIPS
        2024, equations 3 to 5 and, for the weights, 23 (arXiv 2405.15682).
    """

    base_optimizer: AbstractTransformation[State]
    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    weight_lr_power: Scalar = eqx.field(converter=non_negative("weight_lr_power"), default=2.0)
    state_dtype: np.dtype | None = eqx.field(
        converter=to_dtype("state_dtype"), static=True, default=None
    )

    def __check_init__(self) -> None:
        check_transformation("base_optimizer", self.base_optimizer)
        why = "its updates move what is averaged, and the parameters move at every step"
        check_nesting(
            self,
            self.base_optimizer,
            dict.fromkeys((Requirement.MOVES, Requirement.REST, Requirement.STEP), why),
        )

    def requirements(self) -> frozenset[Requirement]:
        return frozenset({Requirement.MOVES, Requirement.EVALUATED})

    def init_state(self, params: Params, context: Context) -> ScheduleFreeState[State]:
        return ScheduleFreeState(
            count=zero_count(),
            # Made by an operation: a compiled program may return its input buffer.
            b1=jnp.copy(as_real(self.b1)),
            weight_sum=jnp.zeros_like(as_real(self.b1)),
            max_lr=jnp.zeros_like(as_real(self.b1)),
            base_optimizer_state=self.base_optimizer.init_state(params, context),
            gap=zeros_like(params, self.state_dtype),
        )

    def transform(
        self,
        updates: Updates,
        state: ScheduleFreeState[State],
        params: Params | None,
        context: Context,
    ) -> tuple[Updates, ScheduleFreeState[State]]:
        check_state(self.base_optimizer, state.base_optimizer_state, "state.base_optimizer_state")
        updates, base_state = self.base_optimizer.transform(
            updates, state.base_optimizer_state, params, context
        )
        max_lr = jnp.maximum(state.max_lr, value_at(self.learning_rate, state.count))
        weight = max_lr ** as_real(self.weight_lr_power)
        weight_sum = state.weight_sum + weight
        # `1 - c`: exactly 0 at the first step; 1 while the rate is 0, so that nothing is averaged.
        rest = safe_divide(state.weight_sum, weight_sum, 1, zero=~(weight_sum > 0))
        b1 = jnp.copy(as_real(self.b1))
        new = ScheduleFreeState(
            count=increment(state.count),
            b1=b1,
            weight_sum=weight_sum,
            max_lr=max_lr,
            base_optimizer_state=base_state,
            gap=state.gap,
        )
        rule = Rule(_average, new, trees=("gap",), scalars=(rest, state.b1, b1))
        updates, (new,) = leafwise.run((rule,), updates, params)
        return updates, new
