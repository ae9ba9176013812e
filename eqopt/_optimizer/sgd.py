"""Stochastic gradient descent."""

import equinox as eqx
import numpy as np

from .._base.converters import flag, optional, real, to_dtype
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, as_rate
from .._transform.average import Trace, TraceState
from .._transform.basic import Identity
from .._transform.learning_rate import ScaleByLearningRate, ScaleByLearningRateState
from .._transformation.base import (
    AbstractOptimizer,
    AbstractTransformation,
    AnyTransformation,
    EmptyState,
)
from .._wrapper.chain import Chain, ChainState

_State = ChainState[tuple[TraceState | EmptyState, ScaleByLearningRateState]]


class SGD(AbstractOptimizer[_State]):
    r"""Goes down the gradient, with or without momentum:
    $\theta_{t+1} = \theta_t - \gamma_t\, m_t$ with $m_t = g_t + \mu m_{t-1}$.

    It is a chain of [`eqopt.Trace`][] (if there is momentum) and [`eqopt.ScaleByLearningRate`][].

    **Arguments:**

    - `learning_rate`: the rate $\gamma_t$, a number or a schedule, not negative.
    - `momentum`: the factor $\mu$, in $[0, 1]$; `None` is none, and needs no memory.
    - `nesterov`: whether to look ahead, as Nesterov's momentum does.
    - `accumulator_dtype`: the dtype of the momentum; `None` is the parameter's, and float32 for
        half precision.
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    momentum: Scalar | None = eqx.field(
        converter=optional(real("momentum", at_least=0, at_most=1)), default=None
    )
    nesterov: bool = eqx.field(converter=flag("nesterov"), static=True, default=False)
    accumulator_dtype: np.dtype | None = eqx.field(
        converter=to_dtype("accumulator_dtype"), static=True, default=None
    )

    def compose(self) -> AbstractTransformation[_State]:
        memory: AnyTransformation = (
            Identity()
            if self.momentum is None
            else Trace(self.momentum, self.nesterov, self.accumulator_dtype)
        )
        return Chain(memory, ScaleByLearningRate(self.learning_rate))
