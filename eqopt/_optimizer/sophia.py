"""Sophia."""

from typing import Any

import equinox as eqx
import numpy as np

from .._base.converters import decay_factor, non_negative, optional, positive, steps, to_dtype
from .._base.fields import from_fields
from .._base.types import Scalar, Steps
from .._schedule.base import AbstractSchedule, as_rate
from .._transform.decay import AddDecayedWeights
from .._transform.hutchinson import (
    HutchinsonEstimatorDiagHessian,
    ScaleBySophia,
    ScaleBySophiaState,
)
from .._transform.learning_rate import ScaleByLearningRate, ScaleByLearningRateState
from .._transformation.base import (
    AbstractOptimizer,
    AbstractTransformation,
    AnyTransformation,
    check_transformation,
    EmptyState,
)
from .._wrapper.chain import Chain, ChainState
from ..selectors._selector import AbstractSelector, as_selector

_State = ChainState[tuple[ScaleBySophiaState[Any], EmptyState, ScaleByLearningRateState]]


class Sophia(AbstractOptimizer[_State]):
    """Steps by the average gradient over the curvature of the objective, within a limit.

    It is a chain of [`eqopt.ScaleBySophia`][], [`eqopt.AddDecayedWeights`][] and
    [`eqopt.ScaleByLearningRate`][]. Its `update` needs `value_fn`; `step` and `fit` pass it. With
    your own key: `Sophia(1e-4, hessian_diagonal_fn=HutchinsonEstimatorDiagHessian(key))`.

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative.
    - `b1`: the decay of the average gradient, in $[0, 1)$.
    - `b2`: the decay of the average curvature, in $[0, 1)$, for each estimate.
    - `eps`: the smallest denominator, positive.
    - `weight_decay`: the decay, in proportion to the learning rate, not negative.
    - `weight_decay_mask`: the parameters that decay: a selector, a function from the parameters to
        booleans, or a tree of booleans; `None` is everything.
    - `gamma`: the factor of the curvature, positive. With a larger `gamma`, more entries stay
        within the limit; the paper advises that between a tenth and a half of them do.
    - `clip_threshold`: the limit, positive; `None` is no limit, and then a step is as large as `1 /
        eps` wherever no positive curvature has been seen.
    - `update_interval`: the number of steps between estimates of the curvature, at least 1.
    - `hessian_diagonal_fn`: makes the estimates: a transformation that replaces the updates by
        them, given the gradient and the arguments of `update`; by default
        [`eqopt.HutchinsonEstimatorDiagHessian`][]. It is not computed in the steps between.
    - `mu_dtype`: the dtype of the average gradient; `None` is the parameter's, and float32 for half
        precision.
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.965)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.99)
    eps: Scalar = eqx.field(converter=positive("eps"), default=1e-8)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=1e-4)
    weight_decay_mask: AbstractSelector | None = eqx.field(
        converter=optional(as_selector), default=None
    )
    gamma: Scalar = eqx.field(converter=positive("gamma"), default=0.01)
    clip_threshold: Scalar | None = eqx.field(
        converter=optional(positive("clip_threshold")), default=1.0
    )
    update_interval: Steps = eqx.field(converter=steps("update_interval", at_least=1), default=10)
    hessian_diagonal_fn: AnyTransformation = eqx.field(
        default_factory=HutchinsonEstimatorDiagHessian
    )
    mu_dtype: np.dtype | None = eqx.field(converter=to_dtype("mu_dtype"), static=True, default=None)

    def __check_init__(self) -> None:
        check_transformation("hessian_diagonal_fn", self.hessian_diagonal_fn)

    def compose(self) -> AbstractTransformation[_State]:
        scaling = from_fields(ScaleBySophia, self)
        return Chain(
            scaling,
            AddDecayedWeights(self.weight_decay, self.weight_decay_mask),
            ScaleByLearningRate(self.learning_rate),
        )
