"""LARS."""

import equinox as eqx

from .._base.converters import flag, non_negative, optional, real
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, as_rate
from .._transform.average import Trace, TraceState
from .._transform.block import ScaleByTrustRatio
from .._transform.decay import AddDecayedWeights
from .._transform.learning_rate import ScaleByLearningRate, ScaleByLearningRateState
from .._transformation.base import (
    AbstractOptimizer,
    AbstractTransformation,
    AnyTransformation,
    EmptyState,
)
from .._wrapper.chain import Chain, ChainState
from .._wrapper.masked import Masked, MaskedState
from ..selectors._selector import AbstractSelector, as_selector

_Ratio = EmptyState | MaskedState[EmptyState]
_State = ChainState[tuple[EmptyState, _Ratio, ScaleByLearningRateState, TraceState]]


class LARS(AbstractOptimizer[_State]):
    """Steps by the gradient, with a length in proportion to each parameter's length, with momentum.

    It is a chain of [`eqopt.AddDecayedWeights`][], [`eqopt.ScaleByTrustRatio`][] (in
    [`eqopt.Masked`][], if there is a mask), [`eqopt.ScaleByLearningRate`][] and [`eqopt.Trace`][].

    !!! note
        As in optax, the ratio is to the norm of gradient and decay together; in the paper, to the
        sum of their norms. The momentum comes after the learning rate, as in the paper.

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative.
    - `weight_decay`: the decay, not negative. It is added to the gradient.
    - `weight_decay_mask`: the parameters that decay: a selector, a function from the parameters to
        booleans, or a tree of booleans; `None` is everything.
    - `trust_coefficient`: the ratio of a step's length to the parameter's length at a rate of 1;
        not negative.
    - `eps`: added to the norm of the update, not negative.
    - `trust_ratio_mask`: the parameters whose steps are scaled in this way, as for
        `weight_decay_mask`. The others, often biases and the weights of normalization, step by the
        plain gradient.
    - `momentum`: the momentum's factor, in $[0, 1]$.
    - `nesterov`: whether to look ahead, as Nesterov's momentum does.

    ??? cite "Reference"
        You, Gitman and Ginsburg, *Large Batch Training of Convolutional Networks*, 2017,
        algorithm 1 (arXiv 1708.03888).
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=0.0)
    weight_decay_mask: AbstractSelector | None = eqx.field(
        converter=optional(as_selector), default=None
    )
    trust_coefficient: Scalar = eqx.field(converter=non_negative("trust_coefficient"), default=1e-3)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=0.0)
    trust_ratio_mask: AbstractSelector | None = eqx.field(
        converter=optional(as_selector), default=None
    )
    momentum: Scalar = eqx.field(converter=real("momentum", at_least=0, at_most=1), default=0.9)
    nesterov: bool = eqx.field(converter=flag("nesterov"), static=True, default=False)

    def compose(self) -> AbstractTransformation[_State]:
        scaling = ScaleByTrustRatio(trust_coefficient=self.trust_coefficient, eps=self.eps)
        ratio: AnyTransformation = (
            scaling if self.trust_ratio_mask is None else Masked(scaling, self.trust_ratio_mask)
        )
        return Chain(
            AddDecayedWeights(self.weight_decay, self.weight_decay_mask),
            ratio,
            ScaleByLearningRate(self.learning_rate),
            Trace(self.momentum, self.nesterov),
        )
