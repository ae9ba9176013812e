"""Yogi."""

import equinox as eqx

from .._base.converters import decay_factor, non_negative
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, as_rate
from .._transform.learning_rate import ScaleByLearningRate, ScaleByLearningRateState
from .._transform.yogi import ScaleByYogi, ScaleByYogiState
from .._transformation.base import AbstractOptimizer, AbstractTransformation
from .._wrapper.chain import Chain, ChainState

_State = ChainState[tuple[ScaleByYogiState, ScaleByLearningRateState]]


class Yogi(AbstractOptimizer[_State]):
    """Steps as [`eqopt.Adam`][] does, but is slow to forget large gradients after small ones.

    It is a chain of [`eqopt.ScaleByYogi`][] and [`eqopt.ScaleByLearningRate`][].

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative.
    - `b1`: the decay of the average gradient, in $[0, 1)$.
    - `b2`: one minus the rate at which the estimate follows the squares, in $[0, 1)$.
    - `eps`: added to the root of the estimate, not negative.
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.999)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-3)

    def compose(self) -> AbstractTransformation[_State]:
        return Chain(
            ScaleByYogi(self.b1, self.b2, self.eps), ScaleByLearningRate(self.learning_rate)
        )
