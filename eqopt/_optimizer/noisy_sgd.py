"""Gradient descent with noise."""

from typing import Any

import equinox as eqx

from .._base.converters import non_negative, prng_key
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, as_rate
from .._transform.learning_rate import ScaleByLearningRate, ScaleByLearningRateState
from .._transform.noise import AddNoise, AddNoiseState
from .._transformation.base import AbstractOptimizer, AbstractTransformation
from .._wrapper.chain import Chain, ChainState

_State = ChainState[tuple[AddNoiseState, ScaleByLearningRateState]]


class NoisySGD(AbstractOptimizer[_State]):
    """Goes down the gradient plus noise whose variance decreases.

    It is a chain of [`eqopt.AddNoise`][] and [`eqopt.ScaleByLearningRate`][].

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative.
    - `eta`: the variance of the noise in the first step, not negative.
    - `gamma`: the exponent of its decay, not negative.
    - `key`: a PRNG key, to be given by name. It is kept as an [`eqopt.states.KeyData`][].
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    eta: Scalar = eqx.field(converter=non_negative("eta"), default=0.01)
    gamma: Scalar = eqx.field(converter=non_negative("gamma"), default=0.55)
    key: Any = eqx.field(converter=prng_key("key"), kw_only=True)

    def compose(self) -> AbstractTransformation[_State]:
        return Chain(
            AddNoise(self.eta, self.gamma, self.key), ScaleByLearningRate(self.learning_rate)
        )
