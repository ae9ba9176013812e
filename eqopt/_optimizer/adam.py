"""Adam and its variants."""

import equinox as eqx
import numpy as np

from .._base.converters import decay_factor, flag, non_negative, optional, to_dtype
from .._base.fields import from_fields
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, as_rate
from .._transform.adam import ScaleByAdam, ScaleByAdamState
from .._transform.decay import AddDecayedWeights
from .._transform.learning_rate import ScaleByLearningRate, ScaleByLearningRateState
from .._transformation.base import AbstractOptimizer, AbstractTransformation, EmptyState
from .._wrapper.chain import Chain, ChainState
from ..selectors._selector import AbstractSelector, as_selector

_AdamState = ChainState[tuple[ScaleByAdamState, ScaleByLearningRateState]]
_AdamWState = ChainState[tuple[ScaleByAdamState, EmptyState, ScaleByLearningRateState]]


class Adam(AbstractOptimizer[_AdamState]):
    """Steps by the average gradient, divided by the root of the average squared gradient.

    It is a chain of [`eqopt.ScaleByAdam`][] and [`eqopt.ScaleByLearningRate`][].

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative.
    - `b1`: the decay of the average gradient, in $[0, 1)$.
    - `b2`: the decay of the average squared gradient, in $[0, 1)$.
    - `eps`: added to the root of the average square, not negative.
    - `eps_root`: added under that root, not negative.
    - `mu_dtype`: the dtype of the average gradient; `None` is the parameter's, and float32 for half
        precision.
    - `nesterov`: whether to look ahead, as Nesterov's momentum does.
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.999)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)
    eps_root: Scalar = eqx.field(converter=non_negative("eps_root"), default=0.0)
    mu_dtype: np.dtype | None = eqx.field(converter=to_dtype("mu_dtype"), static=True, default=None)
    nesterov: bool = eqx.field(converter=flag("nesterov"), static=True, default=False)

    def compose(self) -> AbstractTransformation[_AdamState]:
        return Chain(from_fields(ScaleByAdam, self), ScaleByLearningRate(self.learning_rate))


class AdamW(AbstractOptimizer[_AdamWState]):
    """Steps as [`eqopt.Adam`][] does, with decoupled weight decay.

    It is a chain of [`eqopt.ScaleByAdam`][], [`eqopt.AddDecayedWeights`][] and
    [`eqopt.ScaleByLearningRate`][].

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative.
    - `b1`: the decay of the average gradient, in $[0, 1)$.
    - `b2`: the decay of the average squared gradient, in $[0, 1)$.
    - `eps`: added to the root of the average square, not negative.
    - `eps_root`: added under that root, not negative.
    - `mu_dtype`: the dtype of the average gradient; `None` is the parameter's, and float32 for half
        precision.
    - `weight_decay`: the decay, in proportion to the learning rate, not negative.
    - `mask`: the parameters that decay: a selector, a function from the parameters to booleans, or
        a tree of booleans, possibly a prefix; `None` is everything.
    - `nesterov`: whether to look ahead, as Nesterov's momentum does.
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.999)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)
    eps_root: Scalar = eqx.field(converter=non_negative("eps_root"), default=0.0)
    mu_dtype: np.dtype | None = eqx.field(converter=to_dtype("mu_dtype"), static=True, default=None)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=1e-4)
    mask: AbstractSelector | None = eqx.field(converter=optional(as_selector), default=None)
    nesterov: bool = eqx.field(converter=flag("nesterov"), static=True, default=False)

    def compose(self) -> AbstractTransformation[_AdamWState]:
        return Chain(
            from_fields(ScaleByAdam, self),
            AddDecayedWeights(self.weight_decay, self.mask),
            ScaleByLearningRate(self.learning_rate),
        )


class NAdam(AbstractOptimizer[_AdamState]):
    """Steps as [`eqopt.Adam`][] does, with Nesterov's momentum.

    It is a chain of [`eqopt.ScaleByAdam`][] and [`eqopt.ScaleByLearningRate`][].

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative.
    - `b1`: the decay of the average gradient, in $[0, 1)$.
    - `b2`: the decay of the average squared gradient, in $[0, 1)$.
    - `eps`: added to the root of the average square, not negative.
    - `eps_root`: added under that root, not negative.
    - `mu_dtype`: the dtype of the average gradient; `None` is the parameter's, and float32 for half
        precision.
    - `nesterov`: whether to look ahead, as Nesterov's momentum does.
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.999)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)
    eps_root: Scalar = eqx.field(converter=non_negative("eps_root"), default=0.0)
    mu_dtype: np.dtype | None = eqx.field(converter=to_dtype("mu_dtype"), static=True, default=None)
    nesterov: bool = eqx.field(converter=flag("nesterov"), static=True, default=True)

    def compose(self) -> AbstractTransformation[_AdamState]:
        return Chain(from_fields(ScaleByAdam, self), ScaleByLearningRate(self.learning_rate))


class NAdamW(AbstractOptimizer[_AdamWState]):
    """Steps as [`eqopt.AdamW`][] does, with Nesterov's momentum.

    It is a chain of [`eqopt.ScaleByAdam`][], [`eqopt.AddDecayedWeights`][] and
    [`eqopt.ScaleByLearningRate`][].

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative.
    - `b1`: the decay of the average gradient, in $[0, 1)$.
    - `b2`: the decay of the average squared gradient, in $[0, 1)$.
    - `eps`: added to the root of the average square, not negative.
    - `eps_root`: added under that root, not negative.
    - `mu_dtype`: the dtype of the average gradient; `None` is the parameter's, and float32 for half
        precision.
    - `weight_decay`: the decay, in proportion to the learning rate, not negative.
    - `mask`: the parameters that decay: a selector, a function from the parameters to booleans, or
        a tree of booleans, possibly a prefix; `None` is everything.
    - `nesterov`: whether to look ahead, as Nesterov's momentum does.
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.999)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)
    eps_root: Scalar = eqx.field(converter=non_negative("eps_root"), default=0.0)
    mu_dtype: np.dtype | None = eqx.field(converter=to_dtype("mu_dtype"), static=True, default=None)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=1e-4)
    mask: AbstractSelector | None = eqx.field(converter=optional(as_selector), default=None)
    nesterov: bool = eqx.field(converter=flag("nesterov"), static=True, default=True)

    def compose(self) -> AbstractTransformation[_AdamWState]:
        return Chain(
            from_fields(ScaleByAdam, self),
            AddDecayedWeights(self.weight_decay, self.mask),
            ScaleByLearningRate(self.learning_rate),
        )
