"""Fromage."""

import equinox as eqx

from .._base.converters import non_negative
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, as_rate
from .._transform.block import ScaleByTrustRatio
from .._transform.contract import ContractByLearningRate, ContractByLearningRateState
from .._transform.learning_rate import ScaleByLearningRate, ScaleByLearningRateState
from .._transformation.base import AbstractOptimizer, AbstractTransformation, EmptyState
from .._wrapper.chain import Chain, ChainState

_State = ChainState[tuple[EmptyState, ScaleByLearningRateState, ContractByLearningRateState]]


class Fromage(AbstractOptimizer[_State]):
    """Steps by the gradient, each leaf by the same fraction of its length, and bounds that length.

    It is a chain of [`eqopt.ScaleByTrustRatio`][], [`eqopt.ScaleByLearningRate`][] and
    [`eqopt.control.ContractByLearningRate`][].

    **Arguments:**

    - `learning_rate`: the ratio of a step's length to the parameter's length, a number or a
        schedule, not negative. A hundredth is a good beginning.
    - `min_norm`: the least norm, of gradient and parameter, that the ratio is taken of; not
        negative. Parameters that are zero begin to move by it.
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    min_norm: Scalar = eqx.field(converter=non_negative("min_norm"), default=1e-6)

    def compose(self) -> AbstractTransformation[_State]:
        return Chain(
            ScaleByTrustRatio(self.min_norm),
            ScaleByLearningRate(self.learning_rate),
            ContractByLearningRate(self.learning_rate),
        )
