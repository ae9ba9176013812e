"""SGD with differential privacy."""

import equinox as eqx

from .._base.converters import flag, non_negative, optional, prng_key, real
from .._base.prng import PRNGKey
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, as_rate
from .._transform.average import Trace, TraceState
from .._transform.basic import Identity
from .._transform.learning_rate import ScaleByLearningRate, ScaleByLearningRateState
from .._transform.private import DifferentiallyPrivateAggregate, DifferentiallyPrivateAggregateState
from .._transformation.base import (
    AbstractOptimizer,
    AbstractTransformation,
    AnyTransformation,
    EmptyState,
)
from .._wrapper.chain import Chain, ChainState

_State = ChainState[
    tuple[DifferentiallyPrivateAggregateState, TraceState | EmptyState, ScaleByLearningRateState]
]


class DPSGD(AbstractOptimizer[_State]):
    """Steps by the sum of clipped per-example gradients plus noise.

    It is a chain of [`eqopt.DifferentiallyPrivateAggregate`][], [`eqopt.Trace`][] if there is
    momentum, and [`eqopt.ScaleByLearningRate`][]. Its `update` takes the gradient of each example:

    ```python
    def loss_fn(model, x, y):  # of one example
        return (model(x) - y) ** 2


    model = eqx.nn.MLP(2, "scalar", 8, 1, key=jax.random.key(0))
    x, y = jnp.ones((4, 2)), jnp.ones(4)
    opt = eqopt.DPSGD(0.1, l2_norm_clip=1.0, noise_multiplier=0.8, key=jax.random.key(1))
    state = opt.init(model)


    @eqx.filter_jit
    def train_step(model, state, x, y):
        losses, grads = eqopt.per_example_value_and_grad(loss_fn)(model, x, y)
        updates, state = opt.update(grads, state, model)
        return eqopt.apply_updates(model, updates), state


    model, state = train_step(model, state, x, y)
    ```

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative.
    - `l2_norm_clip`: the largest norm of one example's contribution, not negative.
    - `noise_multiplier`: the standard deviation of the noise over `l2_norm_clip`, not negative.
    - `key`: the PRNG key to begin with, a secret. It is kept as an [`eqopt.states.KeyData`][].
    - `momentum`: the momentum's factor, in $[0, 1]$; `None` is none.
    - `nesterov`: whether the momentum is Nesterov's.
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    l2_norm_clip: Scalar = eqx.field(converter=non_negative("l2_norm_clip"))
    noise_multiplier: Scalar = eqx.field(converter=non_negative("noise_multiplier"))
    key: PRNGKey = eqx.field(converter=prng_key("key"))
    momentum: Scalar | None = eqx.field(
        converter=optional(real("momentum", at_least=0, at_most=1)), default=None
    )
    nesterov: bool = eqx.field(converter=flag("nesterov"), static=True, default=False)

    def compose(self) -> AbstractTransformation[_State]:
        memory: AnyTransformation = (
            Identity() if self.momentum is None else Trace(self.momentum, self.nesterov)
        )
        return Chain(
            DifferentiallyPrivateAggregate(self.l2_norm_clip, self.noise_multiplier, self.key),
            memory,
            ScaleByLearningRate(self.learning_rate),
        )
