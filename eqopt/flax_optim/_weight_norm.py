"""Weight normalization."""

from typing import Any

import equinox as eqx

from .._base.converters import non_negative, positive
from .._base.types import Scalar
from .._transformation.base import AbstractTransformation, AnyTransformation
from .._wrapper.weight_norm import WeightNorm as _WeightNorm, WeightNormState
from ._base import AbstractOptimizerDef

_State = WeightNormState[Any]


class WeightNorm(AbstractOptimizerDef[_State]):
    """Applies an optimizer to the directions and the lengths of the weights.

    It is [`eqopt.WeightNorm`][] with outputs along the last axis, as in Flax's layers. In Equinox's
    layers they are along the first axis: use [`eqopt.WeightNorm`][] itself.

    !!! note
        In `apply_gradient`, the names `wn_decay` and `wn_eps` override its own fields, and the
        other names those of the inner optimizer.

    **Arguments:**

    - `wrapped_optimizer`: the optimizer.
    - `wn_decay`: the decay of the directions, not negative.
    - `wn_eps`: added to the squared norms under the root, positive.
    """

    wrapped_optimizer: AnyTransformation
    wn_decay: Scalar = eqx.field(converter=non_negative("wn_decay"), default=0.0)
    wn_eps: Scalar = eqx.field(converter=positive("wn_eps"), default=1e-8)

    def compose(self) -> AbstractTransformation[_State]:
        return _WeightNorm(self.wrapped_optimizer, self.wn_decay, self.wn_eps, -1)
