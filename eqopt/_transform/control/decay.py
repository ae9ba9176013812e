"""Decay of the parameters apart from the update."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Int, PyTree

from ..._base import checks
from ..._base.arithmetic import minus, plus, times
from ..._base.converters import flag, non_negative, optional, positive
from ..._base.trees import increment, zero_count
from ..._base.types import Count, Params, Scalar, ScalarLike, Updates
from ..._objective.objective import Context, require_params
from ..._schedule.base import AbstractSchedule, as_rate, as_real, scheduled_real, value_at
from ..._transformation import leafwise
from ..._transformation.base import AbstractTransformation, EmptyState
from ..._transformation.leafwise import Rule
from ...selectors._selector import AbstractSelector, as_selector
from ...selectors._table import Table
from .multiply import as_factors


class DecayByRate(AbstractSchedule):
    r"""The share by which weights decay in one step, from the learning rate $\gamma_t$.

    $$\delta_t = \lambda \gamma_t, \qquad \text{or with } \gamma_{\max}, \qquad
    \delta_t = \lambda\, \frac{\gamma_t^2}{\gamma_{\max}}.$$

    The second is the corrected decay of AdamC: parameters that are followed by a normalization then
    keep a steady ratio of gradient and norm while the rate falls. With $\gamma_{\max} = 1$ it is
    the decay $\lambda \gamma_t^2$ of PaLM.

    **Arguments:**

    - `weight_decay`: the factor $\lambda \ge 0$.
    - `learning_rate`: the rate $\gamma_t$, a number or a schedule, not negative.
    - `max_learning_rate`: the highest rate $\gamma_{\max} > 0$; `None` is the first formula.

    ??? cite "Reference"
        Defazio, *Why Gradients Rapidly Increase Near the End of Training*, 2025, algorithm 1 (arXiv
        2506.02285). Chowdhery et al., *PaLM*, 2022, section 5 (arXiv 2204.02311).
    """

    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"))
    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    max_learning_rate: Scalar | None = eqx.field(
        converter=optional(positive("max_learning_rate")), default=None
    )

    def at(self, count: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
        rate = jnp.broadcast_to(as_real(value_at(self.learning_rate, count)), count.shape)
        share = as_real(self.weight_decay) * rate
        if self.max_learning_rate is None:
            return share
        return share * (rate / as_real(self.max_learning_rate))


@checks.typed
def _decay(
    after_step: bool,
    update: Inexact[Array, "*shape"],
    param: Inexact[Array, "*shape"],
    decay: Float[Array, ""],
    factor: Float[Array, ""],
) -> Inexact[Array, "*shape"]:
    decays = plus(param, update) if after_step else param
    return minus(update, times(decay * factor, decays))


@checks.typed
class DecayWeightsState(eqx.Module):
    """The state of [`eqopt.control.DecayWeights`][].

    **Arguments:**

    - `count`: the number of steps taken, int32 of shape `()`.
    """

    count: Count


class DecayWeights(AbstractTransformation[DecayWeightsState]):
    r"""Shrinks the parameters by a share of their own: $\theta \leftarrow (1 - c_i \delta_t)\,
    \theta + u$.

    Put it after the learning rate, which does not change the decay. The share $\delta_t$ says which
    decay it is:

    | decay | link |
    | --- | --- |
    | independent of the rate | `DecayWeights(1e-4)` |
    | in proportion to it, as in torch | `DecayWeights(DecayByRate(0.1, rate))` |
    | to its square, as in PaLM | `DecayWeights(DecayByRate(0.1, rate, 1.0))` |
    | corrected, as in AdamC | `DecayWeights(DecayByRate(0.1, rate, max_rate))` |
    | the gradient of an $\ell_2$ penalty | `eqopt.AddDecayedWeights(0.1)` before the moments |

    With `after_step`, it is the parameters after the step that shrink: $\theta \leftarrow
    (1 - c_i \delta_t)(\theta + u)$.

    !!! note
        Implementations differ in the order: the decay comes before the step in torch, in dion and
        in emerging-optimizers, and in most of pytorch-optimizer; after it in LaProp and SOAP of
        pytorch-optimizer (`after_step=True`).

    **Arguments:**

    - `decay`: the share $\delta_t$ of the parameters that is lost in a step, a number in $[0, 1]$
        or a schedule.
    - `mask`: the parameters that decay: a selector, a function from the parameters to booleans, or
        a tree of booleans, possibly a prefix; `None` is everything.
    - `factors`: the factors $c_i \ge 0$, a dictionary of numbers by selector as for
        [`eqopt.control.Multiply`][]; `None` is 1 for all parameters.
    - `after_step`: whether the parameters after the step shrink, and not those before it.

    Raises a `ValueError` if `update` is given no parameters, or the mask does not fit them.
    """

    decay: Scalar | AbstractSchedule = eqx.field(
        converter=scheduled_real("decay", at_least=0, at_most=1)
    )
    mask: AbstractSelector | None = eqx.field(converter=optional(as_selector))
    factors: Table[Scalar] | None
    after_step: bool = eqx.field(converter=flag("after_step"), static=True)

    # Not a generated one: Equinox flattens its arguments, and JAX sorts the keys of a dictionary.
    def __init__(
        self,
        decay: Any,
        mask: PyTree = None,
        factors: Mapping[Any, ScalarLike] | Table[Scalar] | None = None,
        after_step: bool = False,
    ) -> None:
        self.decay = decay
        self.mask = mask
        self.factors = None if factors is None else as_factors(factors)
        self.after_step = after_step

    def init_state(self, params: Params, context: Context) -> DecayWeightsState:
        self._rules(params, jnp.zeros(()))  # so that a wrong selector raises at once
        return DecayWeightsState(zero_count())

    def transform(
        self, updates: Updates, state: DecayWeightsState, params: Params | None, context: Context
    ) -> tuple[Updates, DecayWeightsState]:
        params = require_params(params, self, context)
        rules = self._rules(params, value_at(self.decay, state.count))
        return (
            leafwise.run(rules, updates, params)[0],
            DecayWeightsState(increment(state.count)),
        )

    def _rules(self, params: Params, decay: Float[Array, ""]) -> list[Rule]:
        factors = as_factors({}) if self.factors is None else self.factors
        chosen = None if self.mask is None else checks.flatten(self.mask.select(params))[0]
        rules: list[Rule] = []
        for factor, mask in factors.groups(params):
            own, treedef = checks.flatten(mask)
            both = own if chosen is None else [a and b for a, b in zip(own, chosen, strict=True)]
            rules.append(
                Rule(
                    _decay,
                    EmptyState(),
                    scalars=(decay, factor),
                    needs_params=True,
                    options=(self.after_step,),
                    mask=treedef.unflatten(both),
                )
            )
        return rules
