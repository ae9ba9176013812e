"""GaLore: any rule, on gradients of low rank."""

import equinox as eqx

from .._base.converters import non_negative, optional, size, steps
from .._base.fields import from_fields
from .._base.types import Scalar, Steps
from .._schedule.base import AbstractSchedule, as_rate
from .._transform.decay import AddDecayedWeights
from .._transform.learning_rate import ScaleByLearningRate, ScaleByLearningRateState
from .._transform.matrix.dimensions import AbstractDimensions, as_dimensions
from .._transform.matrix.galore import as_base_optimizer, ScaleByGaLore, ScaleByGaLoreState
from .._transformation.base import (
    AbstractOptimizer,
    AbstractTransformation,
    AnyTransformation,
    EmptyState,
)
from .._wrapper.chain import Chain, ChainState
from ..selectors._selector import AbstractSelector, as_selector

_State = ChainState[tuple[ScaleByGaLoreState, EmptyState, ScaleByLearningRateState]]


class GaLore(AbstractOptimizer[_State]):
    """Steps as Adam does, or another rule, on gradients that are projected on few directions.

    It is a chain of [`eqopt.ScaleByGaLore`][], [`eqopt.AddDecayedWeights`][] and
    [`eqopt.ScaleByLearningRate`][]. The decay applies to the whole weights, not only to their
    projection.

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative. For a base optimizer that has
        one of its own, see [`eqopt.ScaleByGaLore`][].
    - `rank`: the number of directions, at least 1; a smaller matrix keeps all its directions.
    - `update_proj_gap`: the number of steps from one projector to the next, at least 1.
    - `scale`: the factor of the updates of matrices, not negative.
    - `base_optimizer`: the rule, any transformation whose updates point uphill; `None` is
        [`eqopt.ScaleByAdam`][].
    - `weight_decay`: the decay, in proportion to the learning rate, not negative.
    - `mask`: the parameters that decay: a selector, a function from the parameters to booleans, or
        a tree of booleans, possibly a prefix; `None` is everything.
    - `weight_dimension_numbers`: which parameters are matrices, and how, as for [`eqopt.Muon`][].
        Each index of the batch axes has its own projector.
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    rank: int = eqx.field(converter=size("rank"), static=True, default=128)
    update_proj_gap: Steps = eqx.field(converter=steps("update_proj_gap", at_least=1), default=200)
    scale: Scalar = eqx.field(converter=non_negative("scale"), default=1.0)
    base_optimizer: AnyTransformation | None = eqx.field(
        converter=optional(as_base_optimizer), default=None
    )
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=0.0)
    mask: AbstractSelector | None = eqx.field(converter=optional(as_selector), default=None)
    weight_dimension_numbers: AbstractDimensions | None = eqx.field(
        converter=optional(as_dimensions), default=None
    )

    def __check_init__(self) -> None:
        if isinstance(self.base_optimizer, AbstractOptimizer):
            name = type(self.base_optimizer).__name__
            raise TypeError(
                f"`base_optimizer` must leave rate and sign to `GaLore`; `{name}` has its own. Use "
                "a part of it, such as `eqopt.ScaleByAdam`, or `eqopt.ScaleByGaLore` around it"
            )

    def compose(self) -> AbstractTransformation[_State]:
        return Chain(
            from_fields(ScaleByGaLore, self),
            AddDecayedWeights(self.weight_decay, self.mask),
            ScaleByLearningRate(self.learning_rate),
        )
