"""Weight decay."""

import equinox as eqx
from jaxtyping import Array, Float, Inexact

from .._base import checks
from .._base.arithmetic import plus, times
from .._base.converters import non_negative, optional
from .._base.types import Params, Scalar
from .._objective.objective import Context, require_params
from .._transformation.base import AbstractLeafwise, EmptyState
from .._transformation.leafwise import Rule
from ..selectors._selector import AbstractSelector, as_selector


@checks.typed
def _decay(
    update: Inexact[Array, "*shape"],
    param: Inexact[Array, "*shape"],
    weight_decay: Float[Array, ""],
) -> Inexact[Array, "*shape"]:
    return plus(update, times(weight_decay, param))


class AddDecayedWeights(AbstractLeafwise[EmptyState]):
    r"""Adds a multiple of the parameters to the updates: $u \leftarrow u + \lambda\theta$.

    Before the learning rate, this is the decoupled weight decay of AdamW, in proportion to the
    learning rate as in torch; before the moments, it is the gradient of an $\ell_2$ penalty.

    **Arguments:**

    - `weight_decay`: the factor of the decay, $\lambda \ge 0$.
    - `mask`: the parameters that decay: a selector, a function from the parameters to booleans, or
        a tree of booleans, possibly a prefix; `None` is everything.

    Raises a `ValueError` if `update` is given no parameters, or the mask does not fit them.

    ??? cite "Reference"
        Loshchilov and Hutter, *Decoupled Weight Decay Regularization*, ICLR 2019, algorithm 2
        (arXiv 1711.05101).
    """

    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=0.0)
    mask: AbstractSelector | None = eqx.field(converter=optional(as_selector), default=None)

    def init_state(self, params: Params, context: Context) -> EmptyState:
        if self.mask is not None:
            self.mask.select(params)  # so that a wrong mask raises at once
        return EmptyState()

    def rule(self, state: EmptyState, params: Params | None, context: Context) -> Rule:
        params = require_params(params, self, context)
        mask = None if self.mask is None else self.mask.select(params)
        return Rule(_decay, state, scalars=(self.weight_decay,), needs_params=True, mask=mask)
