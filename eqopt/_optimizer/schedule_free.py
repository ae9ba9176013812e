"""Optimizers that average in place of a schedule."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._base.converters import decay_factor, non_negative, optional, steps, to_dtype
from .._base.types import Scalar, Steps
from .._schedule.base import AbstractSchedule, as_real, as_steps
from .._transform.basic import Identity
from .._transform.decay import AddDecayedWeights
from .._transform.learning_rate import ScaleByLearningRate, ScaleByLearningRateState
from .._transform.rms import ScaleByRMS, ScaleByRMSState
from .._transformation.base import AbstractOptimizer, AbstractTransformation, EmptyState
from .._wrapper.chain import Chain, ChainState
from .._wrapper.schedule_free import ScheduleFree, ScheduleFreeState

_SGDState = ScheduleFreeState[ChainState[tuple[EmptyState, ScaleByLearningRateState]]]
_AdamWState = ScheduleFreeState[
    ChainState[tuple[ScaleByRMSState, EmptyState, ScaleByLearningRateState]]
]


class _Warmup(AbstractSchedule):
    """The rate times `min((count + 1) / warmup_steps, 1)`: the first step already has a rate."""

    learning_rate: Scalar
    warmup_steps: Steps

    def at(self, count: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
        num_steps = as_real(jnp.maximum(as_steps(self.warmup_steps), 1))
        return as_real(self.learning_rate) * jnp.minimum(as_real(count + 1) / num_steps, 1)


def _rate(learning_rate: Scalar, warmup_steps: Steps | None) -> Scalar | AbstractSchedule:
    return learning_rate if warmup_steps is None else _Warmup(learning_rate, warmup_steps)


class ScheduleFreeSGD(AbstractOptimizer[_SGDState]):
    r"""Steps as [`eqopt.SGD`][] does, and averages in place of a schedule.

    It is [`eqopt.ScheduleFree`][] around a chain of [`eqopt.AddDecayedWeights`][] (if there is
    decay) and [`eqopt.ScaleByLearningRate`][]. To evaluate, use [`eqopt.eval_params`][].

    !!! note
        With a warmup of $W$ steps the rate at the count $t$ is $\gamma \min((t + 1) / W, 1)$, as in
        the authors' own code. In optax the first step has a rate of 0.

    **Arguments:**

    - `learning_rate`: the rate $\gamma$, not negative.
    - `warmup_steps`: the number of steps $W$ in which the rate rises; `None` is none.
    - `b1`: the part of the average in the point at which gradients are taken, in $[0, 1)$.
    - `weight_decay`: the decay, in proportion to the learning rate, not negative; `None` is none.
    - `weight_lr_power`: the power of the learning rate in the weights of the average, not negative.
    - `state_dtype`: the dtype of the memory; `None` is the parameter's, and float32 for half
        precision.
    """

    learning_rate: Scalar = eqx.field(converter=non_negative("learning_rate"), default=1.0)
    warmup_steps: Steps | None = eqx.field(converter=optional(steps("warmup_steps")), default=None)
    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    weight_decay: Scalar | None = eqx.field(
        converter=optional(non_negative("weight_decay")), default=None
    )
    weight_lr_power: Scalar = eqx.field(converter=non_negative("weight_lr_power"), default=2.0)
    state_dtype: np.dtype | None = eqx.field(
        converter=to_dtype("state_dtype"), static=True, default=None
    )

    def compose(self) -> AbstractTransformation[_SGDState]:
        rate = _rate(self.learning_rate, self.warmup_steps)
        decay: AbstractTransformation[EmptyState] = (
            Identity() if self.weight_decay is None else AddDecayedWeights(self.weight_decay)
        )
        base = Chain(decay, ScaleByLearningRate(rate))
        return ScheduleFree(
            base_optimizer=base,
            learning_rate=rate,
            b1=self.b1,
            weight_lr_power=self.weight_lr_power,
            state_dtype=self.state_dtype,
        )


class ScheduleFreeAdamW(AbstractOptimizer[_AdamWState]):
    r"""Steps as [`eqopt.AdamW`][] does without momentum, and averages in place of a schedule.

    It is [`eqopt.ScheduleFree`][] around a chain of [`eqopt.ScaleByRMS`][],
    [`eqopt.AddDecayedWeights`][] and [`eqopt.ScaleByLearningRate`][]. To evaluate, use
    [`eqopt.eval_params`][].

    !!! note
        With a warmup of $W$ steps the rate at the count $t$ is $\gamma \min((t + 1) / W, 1)$, as in
        the authors' own code. In optax the first step has a rate of 0.

    **Arguments:**

    - `learning_rate`: the rate $\gamma$, not negative.
    - `warmup_steps`: the number of steps $W$ in which the rate rises; `None` is none.
    - `b1`: the part of the average in the point at which gradients are taken, in $[0, 1)$.
    - `b2`: the decay of the average squared gradient, in $[0, 1)$.
    - `eps`: added to the denominator, not negative.
    - `weight_decay`: the decay, in proportion to the learning rate, not negative.
    - `weight_lr_power`: the power of the learning rate in the weights of the average, not negative.
    - `state_dtype`: the dtype of the memory; `None` is the parameter's, and float32 for half
        precision.
    """

    learning_rate: Scalar = eqx.field(converter=non_negative("learning_rate"), default=0.0025)
    warmup_steps: Steps | None = eqx.field(converter=optional(steps("warmup_steps")), default=None)
    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.999)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=0.0)
    weight_lr_power: Scalar = eqx.field(converter=non_negative("weight_lr_power"), default=2.0)
    state_dtype: np.dtype | None = eqx.field(
        converter=to_dtype("state_dtype"), static=True, default=None
    )

    def compose(self) -> AbstractTransformation[_AdamWState]:
        rate = _rate(self.learning_rate, self.warmup_steps)
        base = Chain(
            ScaleByRMS(self.b2, self.eps, eps_in_sqrt=False, bias_correction=True),
            AddDecayedWeights(self.weight_decay),
            ScaleByLearningRate(rate),
        )
        return ScheduleFree(
            base_optimizer=base,
            learning_rate=rate,
            b1=self.b1,
            weight_lr_power=self.weight_lr_power,
            state_dtype=self.state_dtype,
        )
