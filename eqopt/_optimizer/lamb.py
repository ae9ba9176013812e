"""LAMB."""

import equinox as eqx

from .._base.converters import decay_factor, non_negative, optional
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, as_rate
from .._transform.adam import ScaleByAdam, ScaleByAdamState
from .._transform.block import ScaleByTrustRatio
from .._transform.decay import AddDecayedWeights
from .._transform.learning_rate import ScaleByLearningRate, ScaleByLearningRateState
from .._transformation.base import AbstractOptimizer, AbstractTransformation, EmptyState
from .._wrapper.chain import Chain, ChainState
from ..selectors._selector import AbstractSelector, as_selector

_State = ChainState[tuple[ScaleByAdamState, EmptyState, EmptyState, ScaleByLearningRateState]]


class LAMB(AbstractOptimizer[_State]):
    """Steps as [`eqopt.AdamW`][] does, with a length in proportion to each parameter's length.

    It is a chain of [`eqopt.ScaleByAdam`][], [`eqopt.AddDecayedWeights`][],
    [`eqopt.ScaleByTrustRatio`][] and [`eqopt.ScaleByLearningRate`][]. It is meant for large
    batches.

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative.
    - `b1`: the decay of the average gradient, in $[0, 1)$.
    - `b2`: the decay of the average squared gradient, in $[0, 1)$.
    - `eps`: added to the root of the average square, not negative.
    - `eps_root`: added under that root, not negative.
    - `weight_decay`: the decay, not negative; the decayed weights are scaled together with the
        update.
    - `mask`: the parameters that decay: a selector, a function from the parameters to booleans, or
        a tree of booleans, possibly a prefix; `None` is everything.

    ??? cite "Reference"
        You, Li, Reddi, Hseu, Kumar, Bhojanapalli, Song, Demmel, Keutzer and Hsieh, *Large Batch
        Optimization for Deep Learning: Training BERT in 76 minutes*, ICLR 2020, algorithm 2
        (arXiv 1904.00962).
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.999)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-6)
    eps_root: Scalar = eqx.field(converter=non_negative("eps_root"), default=0.0)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=0.0)
    mask: AbstractSelector | None = eqx.field(converter=optional(as_selector), default=None)

    def compose(self) -> AbstractTransformation[_State]:
        return Chain(
            ScaleByAdam(self.b1, self.b2, self.eps, self.eps_root),
            AddDecayedWeights(self.weight_decay, self.mask),
            ScaleByTrustRatio(),
            ScaleByLearningRate(self.learning_rate),
        )
