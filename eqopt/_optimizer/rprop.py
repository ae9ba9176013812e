"""Rprop."""

import equinox as eqx

from .._base.converters import non_negative, positive, real
from .._base.fields import from_fields
from .._base.types import Scalar
from .._transform.basic import Scale
from .._transform.rprop import check_limits, ScaleByRprop, ScaleByRpropState
from .._transformation.base import AbstractOptimizer, AbstractTransformation, EmptyState
from .._wrapper.chain import Chain, ChainState

_State = ChainState[tuple[ScaleByRpropState, EmptyState]]


class Rprop(AbstractOptimizer[_State]):
    """Steps by the sign of the gradient, each entry with a step size that adapts to sign changes.

    It is a chain of [`eqopt.ScaleByRprop`][] and [`eqopt.Scale`][] by -1. It is for gradients
    without noise, computed from all data.

    **Arguments:**

    - `learning_rate`: the step size to begin with, positive. Changing it has no effect on an
        existing state.
    - `eta_minus`: the factor of a step size where the sign changes, in $(0, 1)$.
    - `eta_plus`: the factor of a step size where the sign stays the same, greater than 1.
    - `min_step_size`: the smallest step size, not negative.
    - `max_step_size`: the largest step size, positive.
    """

    learning_rate: Scalar = eqx.field(converter=positive("learning_rate"))
    eta_minus: Scalar = eqx.field(converter=real("eta_minus", above=0, below=1), default=0.5)
    eta_plus: Scalar = eqx.field(converter=real("eta_plus", above=1), default=1.2)
    min_step_size: Scalar = eqx.field(converter=non_negative("min_step_size"), default=1e-6)
    max_step_size: Scalar = eqx.field(converter=positive("max_step_size"), default=50.0)

    def __check_init__(self) -> None:
        check_limits(self.min_step_size, self.max_step_size)

    def compose(self) -> AbstractTransformation[_State]:
        return Chain(from_fields(ScaleByRprop, self), Scale(-1.0))
