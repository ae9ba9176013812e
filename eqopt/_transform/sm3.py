"""SM3: for each index of each axis, the largest sum of squares."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Inexact, PyTree

from .._base import checks
from .._base.arithmetic import abs_sq, cast, ema, plus, real_dtype, times, wider
from .._base.converters import decay_factor, non_negative, real
from .._base.trees import one_minus, zeros_like
from .._base.types import Leaves, Params, Scalar, Updates
from .._objective.objective import Context
from .._transformation.base import AbstractTransformation


def _others(ndim: int, axis: int) -> tuple[int, ...]:
    return tuple(i for i in range(ndim) if i != axis)


@jax.jit
@checks.typed
def _sm3(
    update: Inexact[Array, "*shape"],
    mu: Inexact[Array, "*shape"],
    nu: tuple[Float[Array, "..."], ...],
    scalars: tuple[Float[Array, ""], ...],
) -> tuple[Inexact[Array, "*shape"], Inexact[Array, "*shape"], tuple[Float[Array, "..."], ...]]:
    dtype = wider(update.dtype, mu.dtype)
    rest, decay, weight, eps = [cast(x, real_dtype(dtype)) for x in scalars]
    ndim, wide = update.ndim, cast(update, dtype)
    sums = [cast(x, real_dtype(dtype)) for x in nu]
    bounds = [lax.expand_dims(x, _others(ndim, i)) for i, x in enumerate(sums)] if ndim else sums
    total = plus(times(weight, abs_sq(wide)), times(decay, functools.reduce(jnp.minimum, bounds)))
    # The root is guarded twice, so that the derivative is finite where the root is not used.
    positive = total > 0
    root = lax.rsqrt(jnp.where(positive, total, 1) + eps)
    mean = ema(rest, cast(mu, dtype), times(wide, jnp.where(positive, root, 0)))
    # The smallest value is 0, also for an empty leaf.
    highest = [jnp.max(total, axis=_others(ndim, i), initial=0) for i in range(ndim)]
    largest = highest if ndim else [total]
    after = tuple(cast(new, x.dtype) for new, x in zip(largest, nu, strict=True))
    return mean, cast(mean, mu.dtype), after


@checks.typed
class ScaleBySM3State(eqx.Module):
    """The state of [`eqopt.ScaleBySM3`][].

    **Arguments:**

    - `mu`: the average of the rescaled updates, like the parameters.
    - `nu`: for each axis, a tree like the parameters. It has a vector along this axis for each
        parameter with the axis: bounds on the sums of squared moduli, real, and at least float32. A
        parameter of shape `()` has one number, in the first tree.
    """

    mu: PyTree
    nu: tuple[PyTree, ...]


class ScaleBySM3(AbstractTransformation[ScaleBySM3State]):
    r"""Divides the updates by the root of bounds on the sums of their squares, and averages them.

    The state stores one number for each row and each column, or for each index of each axis. For a
    matrix,

    $$\begin{aligned}
    \nu_{ij} &= \beta_2 \min(r_i, c_j) + w |g_{ij}|^2, &
    r_i &\leftarrow \max_j \nu_{ij}, & c_j &\leftarrow \max_i \nu_{ij}, \\
    m &\leftarrow \beta_1 m + (1 - \beta_1)\, g / \sqrt{\nu + \epsilon}, & u &\leftarrow m,
    \end{aligned}$$

    with $w = 1 - \beta_2$, or 1 for $\beta_2 = 1$, which replaces the average by a sum, and with $0
    / \sqrt{0} = 0$. A vector keeps all of its squares, as in [`eqopt.ScaleByRSS`][], and so does a
    parameter of shape `()`.

    **Arguments:**

    - `b1`: the decay $\beta_1$ of the average of the rescaled updates, in $[0, 1)$.
    - `b2`: the decay $\beta_2$ of the squares, in $[0, 1]$.
    - `eps`: $\epsilon \ge 0$, added under the root.

    !!! note
        Complex updates are measured by their moduli; optax refuses complex updates and parameters
        of shape `()`.

    ??? cite "Reference"
        Anil, Gupta, Koren and Singer, *Memory-Efficient Adaptive Optimization*, NeurIPS 2019,
        algorithm SM3-II (arXiv 1901.11150).
    """

    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    b2: Scalar = eqx.field(converter=real("b2", at_least=0, at_most=1), default=1.0)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)

    def init_state(self, params: Params, context: Context) -> ScaleBySM3State:
        def along(axis: int) -> PyTree:
            def zeros(x: Array) -> Array | None:
                if axis >= max(x.ndim, 1):
                    return None
                # Computed like a sum, so that it is placed like the axis.
                return zeros_like(jnp.sum(x, axis=_others(x.ndim, axis)), real=True)

            return jax.tree.map(zeros, params)

        num_axes = max([x.ndim for x in jax.tree.leaves(params)], default=1)
        nu = tuple(along(axis) for axis in range(max(num_axes, 1)))
        return ScaleBySM3State(zeros_like(params), nu)

    def transform(
        self, updates: Updates, state: ScaleBySM3State, params: Params | None, context: Context
    ) -> tuple[Updates, ScaleBySM3State]:
        leaves, treedef = checks.flatten(updates)
        mu = _leaves(state.mu, "state.mu", updates)
        nu = [_leaves(tree, f"state.nu[{i}]", updates) for i, tree in enumerate(state.nu)]
        decay = jnp.asarray(self.b2)
        weight = jnp.where(decay == 1, 1, one_minus(decay))
        scalars = (one_minus(self.b1), decay, weight, jnp.asarray(self.eps))
        for i, update in enumerate(leaves):
            if update is not None:
                own = tuple(column[i] for column in nu[: max(update.ndim, 1)])
                leaves[i], mu[i], after = _sm3(update, mu[i], own, scalars)
                for column, x in zip(nu, after, strict=False):
                    column[i] = x
        new = ScaleBySM3State(treedef.unflatten(mu), tuple(map(treedef.unflatten, nu)))
        return treedef.unflatten(leaves), new


def _leaves(tree: PyTree, name: str, updates: PyTree) -> Leaves:
    """The leaves of one of the state's trees, in the order of the updates' leaves."""
    leaves, own = checks.flatten(tree)
    if own != checks.flatten(updates)[1]:
        raise checks.structure_error(tree, updates, name, "updates")
    return leaves
