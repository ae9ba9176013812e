"""Adan."""

import equinox as eqx

from .._base.converters import decay_factor, non_negative, optional
from .._base.fields import from_fields
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, as_rate
from .._transform.adan import ScaleByAdan, ScaleByAdanState
from .._transform.decay import AddDecayedWeights
from .._transform.learning_rate import ScaleByLearningRate, ScaleByLearningRateState
from .._transformation.base import AbstractOptimizer, AbstractTransformation, EmptyState
from .._wrapper.chain import Chain, ChainState
from ..selectors._selector import AbstractSelector, as_selector

_State = ChainState[tuple[ScaleByAdanState, EmptyState, ScaleByLearningRateState]]


class Adan(AbstractOptimizer[_State]):
    r"""Steps by the average gradient, extrapolated by the change of gradients, at the scale of
    Adam.

    It is a chain of [`eqopt.ScaleByAdan`][], [`eqopt.AddDecayedWeights`][] and
    [`eqopt.ScaleByLearningRate`][].

    !!! note
        As in optax, the weight decay is AdamW's. In the paper the decay is proximal: after the
        step, the weights are divided by $1 + \gamma\lambda$.

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative.
    - `b1`: the decay of the average gradient, in $[0, 1)$.
    - `b2`: the decay of the average change, in $[0, 1)$; also how far to look ahead.
    - `b3`: the decay of the average square, in $[0, 1)$.
    - `eps`: added to the root of that average, not negative.
    - `eps_root`: added under that root, not negative.
    - `weight_decay`: the decay, in proportion to the learning rate, not negative.
    - `mask`: the parameters that decay: a selector, a function from the parameters to booleans, or
        a tree of booleans, possibly a prefix; `None` is everything.
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.98)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.92)
    b3: Scalar = eqx.field(converter=decay_factor("b3"), default=0.99)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)
    eps_root: Scalar = eqx.field(converter=non_negative("eps_root"), default=1e-8)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=0.0)
    mask: AbstractSelector | None = eqx.field(converter=optional(as_selector), default=None)

    def compose(self) -> AbstractTransformation[_State]:
        return Chain(
            from_fields(ScaleByAdan, self),
            AddDecayedWeights(self.weight_decay, self.mask),
            ScaleByLearningRate(self.learning_rate),
        )
