"""A contraction of the parameters, in proportion to the learning rate."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from .._base import checks
from .._base.arithmetic import divide, plus, times
from .._base.trees import increment, zero_count
from .._base.types import Count, Params, Scalar
from .._objective.objective import Context, require_params
from .._schedule.base import AbstractSchedule, as_rate, value_at
from .._transformation.base import AbstractLeafwise
from .._transformation.leafwise import Rule


@checks.typed
def _contract(
    update: Inexact[Array, "*shape"],
    param: Inexact[Array, "*shape"],
    length: Float[Array, ""],
    change: Float[Array, ""],
) -> Inexact[Array, "*shape"]:
    return plus(divide(update, length), times(change, param))


@checks.typed
class ContractByLearningRateState(eqx.Module):
    """The state of [`eqopt.control.ContractByLearningRate`][].

    **Arguments:**

    - `count`: the number of steps taken, int32 of shape `()`.
    """

    count: Count


class ContractByLearningRate(AbstractLeafwise[ContractByLearningRateState]):
    r"""Makes the new parameters shorter:
    $\theta + u \leftarrow (\theta + u) / \sqrt{1 + \gamma_t^2}$.

    A step of length $\gamma_t \|\theta\|$ orthogonal to the parameters makes them longer by exactly
    this factor. It is the last link of [`eqopt.Fromage`][].

    **Arguments:**

    - `learning_rate`: the rate $\gamma_t \ge 0$ of the link before, a number or a schedule.

    Raises a `ValueError` if `update` is given no parameters.

    ??? cite "Reference"
        Bernstein, Vahdat, Yue and Liu, *On the distance between two neural networks and the
        stability of learning*, NeurIPS 2020, algorithm 1 (arXiv 2002.03432).
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)

    def init_state(self, params: Params, context: Context) -> ContractByLearningRateState:
        return ContractByLearningRateState(zero_count())

    def rule(
        self, state: ContractByLearningRateState, params: Params | None, context: Context
    ) -> Rule:
        require_params(params, self, context)
        rate = value_at(self.learning_rate, state.count)
        length = jnp.sqrt(1 + rate * rate)
        # Not `1 / length - 1`, which cancels: for a rate of 1e-3, it has one digit in float32.
        change = -rate * rate / (length * (1 + length))
        new = ContractByLearningRateState(increment(state.count))
        return Rule(_contract, new, scalars=(length, change), needs_params=True)
