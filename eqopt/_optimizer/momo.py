"""MoMo: momentum with a step size from a model of the objective."""

import equinox as eqx

from .._base.converters import decay_factor, flag, non_negative, positive, real
from .._base.fields import from_fields
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, as_rate
from .._transform.basic import Scale
from .._transform.momo import ScaleByMoMo, ScaleByMoMoAdam, ScaleByMoMoAdamState, ScaleByMoMoState
from .._transformation.base import AbstractOptimizer, AbstractTransformation, EmptyState
from .._wrapper.chain import Chain, ChainState

_MoMoState = ChainState[tuple[ScaleByMoMoState, EmptyState]]
_MoMoAdamState = ChainState[tuple[ScaleByMoMoAdamState, EmptyState]]


class MoMo(AbstractOptimizer[_MoMoState]):
    """Goes along the average gradient, no further than the objective can fall.

    It is a chain of [`eqopt.ScaleByMoMo`][] and [`eqopt.Scale`][] by -1.

    **Arguments:**

    - `learning_rate`: the largest step size, a number or a schedule, not negative; better too large
        than too small.
    - `beta`: the decay of the averages, in $[0, 1)$.
    - `lower_bound`: the least value that the objective can have, or a bound below it. If the
        objective falls below it, the steps become zero.
    - `weight_decay`: the decay, in proportion to the learning rate, not negative.
    - `adapt_lower_bound`: whether to estimate a better bound on the way.

    Its `update` needs `value`; `step` passes it.
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate, default=1.0)
    beta: Scalar = eqx.field(converter=decay_factor("beta"), default=0.9)
    lower_bound: Scalar = eqx.field(converter=real("lower_bound"), default=0.0)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=0.0)
    adapt_lower_bound: bool = eqx.field(
        converter=flag("adapt_lower_bound"), static=True, default=False
    )

    def compose(self) -> AbstractTransformation[_MoMoState]:
        momo = from_fields(ScaleByMoMo, self)
        return Chain(momo, Scale(-1.0))


class MoMoAdam(AbstractOptimizer[_MoMoAdamState]):
    """Steps as [`eqopt.AdamW`][] does, no further than the objective can fall.

    It is a chain of [`eqopt.ScaleByMoMoAdam`][] and [`eqopt.Scale`][] by -1.

    **Arguments:**

    - `learning_rate`: the largest step size, a number or a schedule, not negative; better too large
        than too small.
    - `b1`: the decay of the averages of gradients, values and products, in $[0, 1)$.
    - `b2`: the decay of the average squared gradient, in $[0, 1)$.
    - `eps`: added to the root of the average square, positive.
    - `lower_bound`: the least value that the objective can have, or a bound below it.
    - `weight_decay`: the decay, in proportion to the learning rate, not negative.
    - `adapt_lower_bound`: whether to estimate a better bound on the way.

    Its `update` needs `value`; `step` passes it.
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate, default=1e-2)
    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.999)
    eps: Scalar = eqx.field(converter=positive("eps"), default=1e-8)
    lower_bound: Scalar = eqx.field(converter=real("lower_bound"), default=0.0)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=0.0)
    adapt_lower_bound: bool = eqx.field(
        converter=flag("adapt_lower_bound"), static=True, default=False
    )

    def compose(self) -> AbstractTransformation[_MoMoAdamState]:
        momo = from_fields(ScaleByMoMoAdam, self)
        return Chain(momo, Scale(-1.0))
