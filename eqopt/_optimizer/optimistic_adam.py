"""Optimistic Adam."""

import equinox as eqx
import numpy as np

from .._base.converters import decay_factor, flag, non_negative, to_dtype
from .._base.fields import from_fields
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, as_rate
from .._transform.adam import ScaleByAdam, ScaleByAdamState
from .._transform.learning_rate import ScaleByLearningRate, ScaleByLearningRateState
from .._transform.optimistic import ScaleByOptimisticGradient, ScaleByOptimisticGradientState
from .._transformation.base import AbstractOptimizer, AbstractTransformation
from .._wrapper.chain import Chain, ChainState

_State = ChainState[
    tuple[ScaleByAdamState, ScaleByOptimisticGradientState, ScaleByLearningRateState]
]


class OptimisticAdamV2(AbstractOptimizer[_State]):
    """Steps as [`eqopt.Adam`][] does, plus the last change of its steps, for games.

    It is a chain of [`eqopt.ScaleByAdam`][], [`eqopt.ScaleByOptimisticGradient`][] and
    [`eqopt.ScaleByLearningRate`][].

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative.
    - `alpha`: the factor of Adam's step, not negative.
    - `beta`: the factor of its change, not negative.
    - `b1`: the decay of the average gradient, in $[0, 1)$.
    - `b2`: the decay of the average squared gradient, in $[0, 1)$.
    - `eps`: added to the root of the average square, not negative.
    - `eps_root`: added under that root, not negative.
    - `mu_dtype`: the dtype of the average gradient; `None` is the parameter's, and float32 for half
        precision.
    - `nesterov`: whether to look ahead, as Nesterov's momentum does.

    ??? cite "Reference"
        Daskalakis, Ilyas, Syrgkanis and Zeng, *Training GANs with Optimism*, ICLR 2018,
        algorithm 1 (arXiv 1711.00141), where both factors are 1.
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    alpha: Scalar = eqx.field(converter=non_negative("alpha"), default=1.0)
    beta: Scalar = eqx.field(converter=non_negative("beta"), default=1.0)
    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.999)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)
    eps_root: Scalar = eqx.field(converter=non_negative("eps_root"), default=0.0)
    mu_dtype: np.dtype | None = eqx.field(converter=to_dtype("mu_dtype"), static=True, default=None)
    nesterov: bool = eqx.field(converter=flag("nesterov"), static=True, default=True)

    def compose(self) -> AbstractTransformation[_State]:
        return Chain(
            from_fields(ScaleByAdam, self),
            ScaleByOptimisticGradient(self.alpha, self.beta),
            ScaleByLearningRate(self.learning_rate),
        )
