"""Steps of one size in every entry."""

import equinox as eqx
import numpy as np

from .._base.converters import decay_factor, to_dtype
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, as_rate
from .._transform.average import EMA, EMAState
from .._transform.learning_rate import ScaleByLearningRate, ScaleByLearningRateState
from .._transform.sign import ScaleBySign
from .._transformation.base import AbstractOptimizer, AbstractTransformation, EmptyState
from .._wrapper.chain import Chain, ChainState

_SignState = ChainState[tuple[EmptyState, ScaleByLearningRateState]]
_SignumState = ChainState[tuple[EMAState, EmptyState, ScaleByLearningRateState]]


class SignSGD(AbstractOptimizer[_SignState]):
    """Steps by the sign of the gradient, every entry by the learning rate.

    It is a chain of [`eqopt.ScaleBySign`][] and [`eqopt.ScaleByLearningRate`][].

    **Arguments:**

    - `learning_rate`: the size of a step, a number or a schedule, not negative.
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)

    def compose(self) -> AbstractTransformation[_SignState]:
        return Chain(ScaleBySign(), ScaleByLearningRate(self.learning_rate))


class Signum(AbstractOptimizer[_SignumState]):
    """Steps by the sign of the average gradient, every entry by the learning rate.

    It is a chain of [`eqopt.EMA`][], not debiased, which would not change a sign,
    [`eqopt.ScaleBySign`][] and [`eqopt.ScaleByLearningRate`][].

    **Arguments:**

    - `learning_rate`: the size of a step, a number or a schedule, not negative.
    - `beta`: the decay of the average, in $[0, 1)$.
    - `accumulator_dtype`: the dtype of the average; `None` is the parameter's, and float32 for half
        precision.

    ??? cite "Reference"
        Bernstein, Wang, Azizzadenesheli and Anandkumar, *signSGD: Compressed Optimisation for
        Non-Convex Problems*, ICML 2018, algorithm 2 (arXiv 1802.04434).
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    beta: Scalar = eqx.field(converter=decay_factor("beta"), default=0.9)
    accumulator_dtype: np.dtype | None = eqx.field(
        converter=to_dtype("accumulator_dtype"), static=True, default=None
    )

    def compose(self) -> AbstractTransformation[_SignumState]:
        return Chain(
            EMA(self.beta, debias=False, accumulator_dtype=self.accumulator_dtype),
            ScaleBySign(),
            ScaleByLearningRate(self.learning_rate),
        )
