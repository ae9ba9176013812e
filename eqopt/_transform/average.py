"""Running sums and averages of the updates."""

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, Inexact, PyTree

from .._base import checks
from .._base.arithmetic import divide, ema as ema_of, plus, times
from .._base.converters import decay_factor, flag, real, to_dtype
from .._base.trees import bias_correction, increment, one_minus, zero_count, zeros_like
from .._base.types import Count, Params, Scalar
from .._objective.objective import Context
from .._transformation.base import AbstractLeafwise
from .._transformation.leafwise import Rule


@checks.typed
def _trace(
    nesterov: bool,
    update: Inexact[Array, "*shape"],
    trace: Inexact[Array, "*shape"],
    decay: Float[Array, ""],
) -> tuple[Inexact[Array, "*shape"], Inexact[Array, "*shape"]]:
    trace = plus(update, times(decay, trace))
    return (plus(update, times(decay, trace)) if nesterov else trace), trace


@checks.typed
class TraceState(eqx.Module):
    """The state of [`eqopt.Trace`][].

    **Arguments:**

    - `trace`: the decaying sum, like the parameters.
    """

    trace: PyTree


class Trace(AbstractLeafwise[TraceState]):
    r"""Replaces the updates by their decaying sum, which is momentum.

    $$m_t = u_t + \mu\, m_{t-1}, \qquad u_t \leftarrow m_t \quad\text{or, with Nesterov's,}\quad
    u_t + \mu\, m_t.$$

    **Arguments:**

    - `decay`: the factor $\mu$, in $[0, 1]$.
    - `nesterov`: whether to look ahead, as Nesterov's momentum does.
    - `accumulator_dtype`: the dtype of the momentum $m$; `None` is the parameter's, and float32 for
        half precision.

    ??? cite "Reference"
        Sutskever, Martens, Dahl and Hinton, *On the importance of initialization and momentum in
        deep learning*, ICML 2013, equations 1 to 4.
    """

    decay: Scalar = eqx.field(converter=real("decay", at_least=0, at_most=1))
    nesterov: bool = eqx.field(converter=flag("nesterov"), static=True, default=False)
    accumulator_dtype: np.dtype | None = eqx.field(
        converter=to_dtype("accumulator_dtype"), static=True, default=None
    )

    def init_state(self, params: Params, context: Context) -> TraceState:
        return TraceState(zeros_like(params, self.accumulator_dtype))

    def rule(self, state: TraceState, params: Params | None, context: Context) -> Rule:
        scalars, options = (self.decay,), (self.nesterov,)
        return Rule(_trace, state, trees=("trace",), scalars=scalars, options=options)


@checks.typed
def _ema(
    debias: bool,
    update: Inexact[Array, "*shape"],
    ema: Inexact[Array, "*shape"],
    rest: Float[Array, ""],
    weight: Float[Array, ""],
) -> tuple[Inexact[Array, "*shape"], Inexact[Array, "*shape"]]:
    ema = ema_of(rest, ema, update)
    return (divide(ema, weight) if debias else ema), ema


@checks.typed
class EMAState(eqx.Module):
    """The state of [`eqopt.EMA`][].

    **Arguments:**

    - `count`: the number of steps taken, int32 of shape `()`.
    - `ema`: the average, not debiased, like the parameters.
    """

    count: Count
    ema: PyTree


class EMA(AbstractLeafwise[EMAState]):
    r"""Replaces the updates by their exponential moving average.

    $$m_t = \delta\, m_{t-1} + (1 - \delta)\, u_t, \qquad
    u_t \leftarrow m_t \quad\text{or, debiased,}\quad m_t / (1 - \delta^t).$$

    **Arguments:**

    - `decay`: the factor $\delta$, in $[0, 1)$.
    - `debias`: whether to divide by the sum of the weights, so that the average of a constant is
        that constant.
    - `accumulator_dtype`: the dtype of the average $m$; `None` is the parameter's, and float32 for
        half precision.
    """

    decay: Scalar = eqx.field(converter=decay_factor("decay"))
    debias: bool = eqx.field(converter=flag("debias"), static=True, default=True)
    accumulator_dtype: np.dtype | None = eqx.field(
        converter=to_dtype("accumulator_dtype"), static=True, default=None
    )

    def init_state(self, params: Params, context: Context) -> EMAState:
        return EMAState(zero_count(), zeros_like(params, self.accumulator_dtype))

    def rule(self, state: EMAState, params: Params | None, context: Context) -> Rule:
        count = increment(state.count)
        scalars = (one_minus(self.decay), bias_correction(self.decay, count))
        new = EMAState(count, state.ema)
        return Rule(_ema, new, trees=("ema",), scalars=scalars, options=(self.debias,))
