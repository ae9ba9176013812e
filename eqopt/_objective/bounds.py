"""Bounds on the parameters, as searches and directions see them.

In: parameters, directions, gradients. Out: the same, as far as the bounds let them be.
It exists because bounds are a part of the problem: the direction, the search along it and the test
of convergence must all know them.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._base import checks
from .._base.types import Params, Updates


class Bounds(eqx.Module):
    r"""The set $\{x : l \le x \le u\}$.

    **Arguments:**

    - `lower`, `upper`: trees like the parameters, of arrays of their shapes and dtypes, with
        infinities where there is no bound.
    """

    lower: PyTree
    upper: PyTree

    def project(self, params: Params) -> Params:
        r"""Gives the nearest point $P(x)$ in the set, exactly.

        **Arguments:**

        - `params`: the point.
        """
        return _map(
            lambda x, low, high: jnp.where(x < low, low, jnp.where(x > high, high, x)),
            params,
            self.lower,
            self.upper,
        )

    def residual(self, params: Params, grad: PyTree) -> PyTree:
        r"""Gives the projected gradient $x - P(x - g)$, which is zero at a solution.

        It is the gradient where that is shorter than the way to the bound.

        **Arguments:**

        - `params`: a point in the set.
        - `grad`: the gradient there.
        """
        # Not by the formula above, which rounds a small gradient to the precision of a large
        # parameter.
        return _map(
            lambda g, x, low, high: jnp.minimum(jnp.maximum(g, x - high), x - low),
            grad,
            params,
            self.lower,
            self.upper,
        )

    def unblocked(self, direction: Updates, params: Params) -> Updates:
        """Gives the direction without the entries that leave the set at once.

        **Arguments:**

        - `direction`: the direction.
        - `params`: a point in the set.
        """
        return _map(
            lambda d, x, low, high: jnp.where(
                ((x <= low) & (d < 0)) | ((x >= high) & (d > 0)), jnp.zeros_like(d), d
            ),
            direction,
            params,
            self.lower,
            self.upper,
        )


def _map(kernel: Callable[..., Array], tree: PyTree, *others: Any) -> PyTree:
    """Maps over the leaves of a tree, in which leaves may be missing."""
    return jax.tree.map(
        lambda x, *rest: None if x is None else kernel(x, *rest),
        tree,
        *others,
        is_leaf=checks.is_none,
    )
