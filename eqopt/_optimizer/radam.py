"""Rectified Adam."""

import equinox as eqx

from .._base.converters import decay_factor, flag, non_negative
from .._base.fields import from_fields
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, as_rate
from .._transform.learning_rate import ScaleByLearningRate, ScaleByLearningRateState
from .._transform.radam import ScaleByRAdam, ScaleByRAdamState
from .._transformation.base import AbstractOptimizer, AbstractTransformation
from .._wrapper.chain import Chain, ChainState

_State = ChainState[tuple[ScaleByRAdamState, ScaleByLearningRateState]]


class RAdam(AbstractOptimizer[_State]):
    """Steps as [`eqopt.Adam`][] does, once the average of squares contains enough steps.

    It is a chain of [`eqopt.ScaleByRAdam`][] and [`eqopt.ScaleByLearningRate`][].

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative.
    - `b1`: the decay of the average gradient, in $[0, 1)$.
    - `b2`: the decay of the average squared gradient, in $[0, 1)$. Up to 0.6, no step is ever
        rescaled.
    - `eps`: added to the root of the average square, not negative.
    - `eps_root`: added under that root, not negative.
    - `threshold`: how many squares their average must amount to, not negative, for a step to be
        rescaled. Values below 4 count as 4.
    - `nesterov`: whether to look ahead, as Nesterov's momentum does.
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.999)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)
    eps_root: Scalar = eqx.field(converter=non_negative("eps_root"), default=0.0)
    threshold: Scalar = eqx.field(converter=non_negative("threshold"), default=5.0)
    nesterov: bool = eqx.field(converter=flag("nesterov"), static=True, default=False)

    def compose(self) -> AbstractTransformation[_State]:
        return Chain(from_fields(ScaleByRAdam, self), ScaleByLearningRate(self.learning_rate))
