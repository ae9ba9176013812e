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
from .._transformation.base import AbstractTransformation, AnyTransformation
from .._wrapper.chain import Chain, ChainState
from ._base import AbstractOptimizerDef, scale_by

_State = ChainState[tuple[Any, ...]]


class Adafactor(AbstractOptimizerDef[_State]):
    """Steps as [`eqopt.Adafactor`][] does, with the same links and flax.optim's names and defaults.

    !!! note
        The averages of float64 parameters are kept in float64; in flax.optim, in float32.

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative; with `None`, to be given at
        each step.
    - `factored`: whether to factor at all.
    - `multiply_by_parameter_scale`: whether to multiply by the root mean square of each parameter,
        and at least by `epsilon2`.
    - `beta1`: the decay of an average of the updates, in $[0, 1)$; `None` is none.
    - `decay_rate`: the exponent of the average's decay, not negative.
    - `step_offset`: the number of steps after which that decay starts again. If it is negative, the
        decay starts as if that many steps had been taken.
    - `clipping_threshold`: the largest root mean square of a leaf before the rate, not negative;
        `None` is no limit.
    - `weight_decay_rate`: the decay, not negative; `None` is none. It is not multiplied by the
        rate.
    - `min_dim_size_to_factor`: a parameter is factored if its second largest axis has at least this
        size; at least 1.
    - `epsilon1`: added to the squares, positive.
    - `epsilon2`: the smallest root mean square of a parameter that is used, not negative.
    - `dtype_momentum`: the dtype of the updates' average; `None` is the parameter's, and float32
        for half precision.
    """

    learning_rate: Scalar | AbstractSchedule | None = eqx.field(converter=maybe_rate, default=None)
    factored: bool = eqx.field(converter=flag("factored"), static=True, default=True)
    multiply_by_parameter_scale: bool = eqx.field(
        converter=flag("multiply_by_parameter_scale"), static=True, default=True
    )
    beta1: Scalar | None = eqx.field(converter=optional(decay_factor("beta1")), default=None)
    decay_rate: Scalar = eqx.field(converter=non_negative("decay_rate"), default=0.8)
    step_offset: Steps = eqx.field(converter=steps("step_offset", at_least=None), default=0)
    clipping_threshold: Scalar | None = eqx.field(
        converter=optional(non_negative("clipping_threshold")), default=1.0
    )
    weight_decay_rate: Scalar | None = eqx.field(
        converter=optional(non_negative("weight_decay_rate")), default=None
    )
    min_dim_size_to_factor: int = eqx.field(
        converter=size("min_dim_size_to_factor"), static=True, default=128
    )
    epsilon1: Scalar = eqx.field(converter=positive("epsilon1"), default=1e-30)
    epsilon2: Scalar = eqx.field(converter=non_negative("epsilon2"), default=1e-3)
    dtype_momentum: np.dtype | None = eqx.field(
        converter=to_dtype("dtype_momentum"), static=True, default=np.float32
    )

    def compose(self) -> AbstractTransformation[_State]:
        links: list[AnyTransformation] = [
            ScaleByFactoredRMS(
                factored=self.factored,
                decay_rate=self.decay_rate,
                step_offset=self.step_offset,
                min_dim_size_to_factor=self.min_dim_size_to_factor,
                epsilon=self.epsilon1,
            )
        ]
        if self.clipping_threshold is not None:
            links.append(ClipByBlockRMS(self.clipping_threshold))
        links.append(scale_by(self.learning_rate, flip_sign=False))
        if self.multiply_by_parameter_scale:
            links.append(ScaleByParamBlockRMS(self.epsilon2))
        if self.beta1 is not None:
            links.append(EMA(self.beta1, False, self.dtype_momentum))
        if self.weight_decay_rate is not None:
            links.append(AddDecayedWeights(self.weight_decay_rate))
        return Chain(*links, Scale(-1.0))
