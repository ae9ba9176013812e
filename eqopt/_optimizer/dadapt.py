"""AdamW without a learning rate: D-Adaptation and Prodigy."""

import equinox as eqx

from .._base.converters import decay_factor, flag, non_negative, optional, positive
from .._base.fields import from_fields
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, as_rate
from .._transform.basic import Scale
from .._transform.dadapt import (
    both_betas,
    ScaleByDAdaptAdam,
    ScaleByDAdaptAdamState,
    ScaleByProdigy,
    ScaleByProdigyState,
)
from .._transformation.base import AbstractOptimizer, AbstractTransformation, EmptyState
from .._wrapper.chain import Chain, ChainState

_DAdaptState = ChainState[tuple[ScaleByDAdaptAdamState, EmptyState]]
_ProdigyState = ChainState[tuple[ScaleByProdigyState, EmptyState]]


class DAdaptAdamW(AbstractOptimizer[_DAdaptState]):
    """Steps as [`eqopt.AdamW`][] does, at a rate that it finds by itself.

    It is a chain of [`eqopt.ScaleByDAdaptAdam`][] and [`eqopt.Scale`][] by -1.

    **Arguments:**

    - `learning_rate`: a factor of the rate that is found, a number or a schedule, not negative. A
        schedule should have its peak at 1.
    - `betas`: the decays of the average gradient and of the average squared gradient, a pair, each
        in $[0, 1)$.
    - `eps`: added to the root of the average square, positive.
    - `estim_lr0`: the rate to begin with, positive, better too small than too large.
    - `weight_decay`: the decay, in proportion to the rate that is found, not negative.
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate, default=1.0)
    betas: tuple[Scalar, Scalar] = eqx.field(converter=both_betas, default=(0.9, 0.999))
    eps: Scalar = eqx.field(converter=positive("eps"), default=1e-8)
    estim_lr0: Scalar = eqx.field(converter=positive("estim_lr0"), default=1e-6)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=0.0)

    def compose(self) -> AbstractTransformation[_DAdaptState]:
        adapted = from_fields(ScaleByDAdaptAdam, self)
        return Chain(adapted, Scale(-1.0))


class Prodigy(AbstractOptimizer[_ProdigyState]):
    """Steps as [`eqopt.AdamW`][] does, at a rate that it finds sooner than
    [`eqopt.DAdaptAdamW`][].

    It is a chain of [`eqopt.ScaleByProdigy`][] and [`eqopt.Scale`][] by -1.

    **Arguments:**

    - `learning_rate`: a factor of the rate that is found, a number or a schedule, not negative. A
        schedule should have its peak at 1.
    - `betas`: the decays of the average gradient and of the average squared gradient, a pair, each
        in $[0, 1)$.
    - `beta3`: the decay of the sums in the estimate, in $[0, 1)$; `None` is the root of the second
        of `betas`.
    - `eps`: added to the root of the average square, times the estimate; positive.
    - `estim_lr0`: the rate to begin with, positive, better too small than too large.
    - `estim_lr_coef`: a factor of the estimates, positive. If you tune anything, tune this.
    - `weight_decay`: the decay, in proportion to the rate that is found, not negative.
    - `safeguard_warmup`: whether a long warm-up is kept from making the estimate too large.
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate, default=1.0)
    betas: tuple[Scalar, Scalar] = eqx.field(converter=both_betas, default=(0.9, 0.999))
    beta3: Scalar | None = eqx.field(converter=optional(decay_factor("beta3")), default=None)
    eps: Scalar = eqx.field(converter=positive("eps"), default=1e-8)
    estim_lr0: Scalar = eqx.field(converter=positive("estim_lr0"), default=1e-6)
    estim_lr_coef: Scalar = eqx.field(converter=positive("estim_lr_coef"), default=1.0)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=0.0)
    safeguard_warmup: bool = eqx.field(
        converter=flag("safeguard_warmup"), static=True, default=False
    )

    def compose(self) -> AbstractTransformation[_ProdigyState]:
        adapted = from_fields(ScaleByProdigy, self)
        return Chain(adapted, Scale(-1.0))
