"""Updates without their mean."""

import jax.numpy as jnp
from jaxtyping import Array, Inexact

from .._base import checks
from .._base.types import Params
from .._objective.objective import Context
from .._transformation.base import AbstractLeafwise, EmptyState
from .._transformation.leafwise import Rule


@checks.typed
def _centralize(update: Inexact[Array, "*shape"]) -> Inexact[Array, "*shape"]:
    if update.ndim < 2:
        return update
    return update - jnp.mean(update, axis=tuple(range(1, update.ndim)), keepdims=True)


class Centralize(AbstractLeafwise[EmptyState]):
    r"""Subtracts from each slice of an update its mean:
    $u_{i \cdots} \leftarrow u_{i \cdots} - \overline{u_{i \cdots}}$.

    A slice has one index along the first axis. Updates with fewer than two axes are unchanged.

    !!! note
        The paper's slice is the weights of one unit of the output. The output is the first axis in
        Equinox's linear layers and convolutions. Where it is the last, as in Flax, this rule
        differs from the paper's.

    ??? cite "Reference"
        Yong, Huang, Hua and Zhang, *Gradient Centralization: A New Optimization Technique for Deep
        Neural Networks*, ECCV 2020, equation 1 (arXiv 2004.01461).
    """

    def init_state(self, params: Params, context: Context) -> EmptyState:
        return EmptyState()

    def rule(self, state: EmptyState, params: Params | None, context: Context) -> Rule:
        return Rule(_centralize, state)
