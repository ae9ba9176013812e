"""The signs of the updates."""

import jax.numpy as jnp
from jaxtyping import Array, Inexact

from .._base import checks
from .._base.types import Params
from .._objective.objective import Context
from .._transformation.base import AbstractLeafwise, EmptyState
from .._transformation.leafwise import Rule


@checks.typed
def _sign(update: Inexact[Array, "*shape"]) -> Inexact[Array, "*shape"]:
    return jnp.sign(update)


class ScaleBySign(AbstractLeafwise[EmptyState]):
    r"""Replaces each entry of the updates by its sign: $u \leftarrow u / |u|$, and 0 where $u = 0$.

    The sign of a complex number has modulus 1 and the same direction.

    ??? cite "Reference"
        Bernstein, Wang, Azizzadenesheli and Anandkumar, *signSGD: Compressed Optimisation for
        Non-Convex Problems*, ICML 2018 (arXiv 1802.04434).
    """

    def init_state(self, params: Params, context: Context) -> EmptyState:
        return EmptyState()

    def rule(self, state: EmptyState, params: Params | None, context: Context) -> Rule:
        return Rule(_sign, state)
