"""Averaged parameters, kept beside an optimizer."""

from typing import Generic

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, Inexact, PyTree

from .._base import checks
from .._base.arithmetic import cast, minus, plus, times
from .._base.converters import decay_factor, flag, to_dtype
from .._base.trees import add, bias_correction, copies, increment, one_minus, zero_count
from .._base.types import Count, Params, Scalar, State, Updates
from .._objective.objective import Context, require_params
from .._transformation.base import AbstractTransformation, check_state, check_transformation
from .._transformation.eval_params import AbstractEvalState, check_like, rounded
from .._transformation.nesting import AbstractConstrained, check_nesting, Requirement


class ParamEMAState(AbstractEvalState, Generic[State]):
    """The state of [`eqopt.ParamEMA`][].

    **Arguments:**

    - `count`: the number of steps taken, int32 of shape `()`.
    - `ema`: the average, debiased with `debias`, like the parameters.
    - `inner_state`: the state of the inner transformation.
    """

    count: Count
    ema: PyTree
    inner_state: State

    def eval_params(self, params: Params) -> Params:
        ema = check_like(self.ema, params, "state.ema")
        return jax.tree.map(rounded, params, ema, is_leaf=checks.is_none)


@jax.jit
@checks.typed
def _average(
    ema: Inexact[Array, "*shape"],
    param: Inexact[Array, "*shape"],
    update: Inexact[Array, "*shape"],
    weight: Float[Array, ""],
) -> Inexact[Array, "*shape"]:
    # Averages the parameters that the user will have, with the same rounding.
    param = cast(add(param, cast(update, param.dtype)), ema.dtype)
    weight = cast(weight, np.dtype(ema.real.dtype))
    return plus(ema, times(weight, minus(param, ema)))


class ParamEMA(AbstractConstrained[ParamEMAState[State]], Generic[State]):
    r"""Keeps an exponential moving average of the parameters, to evaluate with.

    The updates are those of the inner transformation. The average $a_t$, which
    [`eqopt.eval_params`][] gives, is of the parameters $\theta_t$ after each step:

    $$a_t = a_{t-1} + w_t\, (\theta_t - a_{t-1}), \qquad
    w_t = 1 - \delta \quad\text{or, debiased,}\quad \frac{1 - \delta}{1 - \delta^t},$$

    and $a_0 = \theta_0$. Debiased, it is the average of $\theta_1, \dots, \theta_t$ alone, with
    weights in proportion to $\delta^{t-i}$; else the initial parameters have the weight
    $\delta^t$.

    !!! warning
        It must see the updates as they are applied: put it around the whole optimizer, or last in a
        chain.

    **Arguments:**

    - `inner`: the transformation.
    - `decay`: the factor $\delta$, in $[0, 1)$.
    - `debias`: whether to leave the initial parameters out of the average.
    - `accumulator_dtype`: the dtype of the average; `None` is the parameter's, and float32 for half
        precision.

    ??? cite "Reference"
        Polyak and Juditsky, *Acceleration of stochastic approximation by averaging*, SIAM J.
        Control and Optimization 30, 1992; exponential, as in Kingma and Ba, *Adam: a method for
        stochastic optimization*, ICLR 2015, section 7.2.
    """

    inner: AbstractTransformation[State]
    decay: Scalar = eqx.field(converter=decay_factor("decay"))
    debias: bool = eqx.field(converter=flag("debias"), static=True, default=True)
    accumulator_dtype: np.dtype | None = eqx.field(
        converter=to_dtype("accumulator_dtype"), static=True, default=None
    )

    def __check_init__(self) -> None:
        check_transformation("inner", self.inner)
        why = "they would be averaged, or hidden by the average. Put it around, or leave one out"
        check_nesting(self, self.inner, {Requirement.EVALUATED: why})

    def requirements(self) -> frozenset[Requirement]:
        return frozenset({Requirement.MOVES, Requirement.EVALUATED})

    def init_state(self, params: Params, context: Context) -> ParamEMAState[State]:
        inner_state = self.inner.init_state(params, context)
        return ParamEMAState(zero_count(), copies(params, self.accumulator_dtype), inner_state)

    def transform(
        self, updates: Updates, state: ParamEMAState[State], params: Params | None, context: Context
    ) -> tuple[Updates, ParamEMAState[State]]:
        check_state(self.inner, state.inner_state, "state.inner_state")
        params = require_params(params, self, context)
        updates, inner_state = self.inner.transform(updates, state.inner_state, params, context)
        count = increment(state.count)
        weight = one_minus(self.decay)
        if self.debias:
            weight = weight / bias_correction(self.decay, count)
        # A parameter without a gradient does not move, and its average stays as it is.
        ema = jax.tree.map(
            lambda u, x, a: a if u is None else _average(a, x, u, weight),
            updates,
            params,
            check_like(state.ema, params, "state.ema"),
            is_leaf=checks.is_none,
        )
        return updates, ParamEMAState(count, ema, inner_state)
