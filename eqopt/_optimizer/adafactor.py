"""Adafactor."""

from typing import Any

import equinox as eqx
import numpy as np

from .._base.converters import (
    decay_factor,
    flag,
    non_negative,
    optional,
    positive,
    size,
    steps,
    to_dtype,
)
from .._base.types import Scalar, Steps
from .._schedule.base import AbstractSchedule, maybe_rate
from .._transform.average import EMA
from .._transform.basic import Scale
from .._transform.block import ScaleByParamBlockRMS
from .._transform.clip import ClipByBlockRMS
from .._transform.decay import AddDecayedWeights
from .._transform.factored import ScaleByFactoredRMS
from .._transform.learning_rate import ScaleByLearningRate
from .._transformation.base import AbstractOptimizer, AbstractTransformation, AnyTransformation
from .._wrapper.chain import Chain, ChainState
from ..selectors._selector import AbstractSelector, as_selector

_State = ChainState[tuple[Any, ...]]


class Adafactor(AbstractOptimizer[_State]):
    """Divides the gradient by the root of its average squares, stored as means of rows and columns:
    a matrix needs the memory of two vectors.

    It is a chain of [`eqopt.ScaleByFactoredRMS`][], [`eqopt.ClipByBlockRMS`][],
    [`eqopt.ScaleByLearningRate`][], [`eqopt.ScaleByParamBlockRMS`][], [`eqopt.EMA`][],
    [`eqopt.AddDecayedWeights`][] and [`eqopt.Scale`][], without those that are turned off.

    !!! note
        The rate is in proportion to the parameter, unless `multiply_by_parameter_scale` is
        `False`: 1e-2 changes a leaf by about 1 % in each step.

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative; `None` is 1.
    - `min_dim_size_to_factor`: a parameter is factored if its second largest axis has at least this
        size; at least 1.
    - `decay_rate`: the exponent of the average's decay, not negative.
    - `decay_offset`: the number of steps after which that decay begins anew, not negative.
    - `multiply_by_parameter_scale`: whether to multiply by the root mean square of each parameter,
        and at least by 1e-3.
    - `clipping_threshold`: the largest root mean square of a leaf before the rate, not negative;
        `None` is no limit.
    - `momentum`: the decay of an average of the updates, in $[0, 1)$; `None` is none.
    - `dtype_momentum`: the dtype of that average; `None` is the parameter's, and float32 for half
        precision.
    - `weight_decay_rate`: the decay, not negative; `None` is none. It is not multiplied by the
        rate.
    - `eps`: added to the squares, positive.
    - `factored`: whether to factor at all.
    - `weight_decay_mask`: the parameters that decay: a selector, a function from the parameters to
        booleans, or a tree of booleans; `None` is everything.

    ??? cite "Reference"
        Shazeer and Stern, *Adafactor: Adaptive Learning Rates with Sublinear Memory Cost*, ICML
        2018, algorithm 4 (arXiv 1804.04235).
    """

    learning_rate: Scalar | AbstractSchedule | None = eqx.field(converter=maybe_rate, default=None)
    min_dim_size_to_factor: int = eqx.field(
        converter=size("min_dim_size_to_factor"), static=True, default=128
    )
    decay_rate: Scalar = eqx.field(converter=non_negative("decay_rate"), default=0.8)
    decay_offset: Steps = eqx.field(converter=steps("decay_offset"), default=0)
    multiply_by_parameter_scale: bool = eqx.field(
        converter=flag("multiply_by_parameter_scale"), static=True, default=True
    )
    clipping_threshold: Scalar | None = eqx.field(
        converter=optional(non_negative("clipping_threshold")), default=1.0
    )
    momentum: Scalar | None = eqx.field(converter=optional(decay_factor("momentum")), default=None)
    dtype_momentum: np.dtype | None = eqx.field(
        converter=to_dtype("dtype_momentum"), static=True, default=np.float32
    )
    weight_decay_rate: Scalar | None = eqx.field(
        converter=optional(non_negative("weight_decay_rate")), default=None
    )
    eps: Scalar = eqx.field(converter=positive("eps"), default=1e-30)
    factored: bool = eqx.field(converter=flag("factored"), static=True, default=True)
    weight_decay_mask: AbstractSelector | None = eqx.field(
        converter=optional(as_selector), default=None
    )

    def compose(self) -> AbstractTransformation[_State]:
        links: list[AnyTransformation] = [
            ScaleByFactoredRMS(
                factored=self.factored,
                decay_rate=self.decay_rate,
                step_offset=self.decay_offset,
                min_dim_size_to_factor=self.min_dim_size_to_factor,
                epsilon=self.eps,
            )
        ]
        if self.clipping_threshold is not None:
            links.append(ClipByBlockRMS(self.clipping_threshold))
        if self.learning_rate is not None:
            links.append(ScaleByLearningRate(self.learning_rate, flip_sign=False))
        if self.multiply_by_parameter_scale:
            links.append(ScaleByParamBlockRMS())
        if self.momentum is not None:
            links.append(EMA(self.momentum, False, self.dtype_momentum))
        if self.weight_decay_rate is not None:
            links.append(AddDecayedWeights(self.weight_decay_rate, self.weight_decay_mask))
        return Chain(*links, Scale(-1.0))
