"""Noise on the updates."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from .._base import checks
from .._base.arithmetic import cast, plus, real_dtype, safe_sqrt, times, wider
from .._base.converters import non_negative, prng_key
from .._base.prng import advance, KeyWords, PRNGKey, words_of
from .._base.trace_sharing import map_leaves
from .._base.trees import increment, placed_like, zero_count
from .._base.types import Count, Params, Scalar, Updates
from .._objective.objective import Context
from .._transformation.base import AbstractTransformation


@jax.jit
@checks.typed
def _noisy(
    update: Inexact[Array, "*shape"], key: Any, deviation: Float[Array, ""]
) -> Inexact[Array, "*shape"]:
    dtype = wider(update.dtype)
    noise = placed_like(jax.random.normal(key, update.shape, dtype), update)
    return plus(cast(update, dtype), times(cast(deviation, real_dtype(dtype)), noise))


@checks.typed
class AddNoiseState(eqx.Module):
    """The state of [`eqopt.AddNoise`][].

    **Arguments:**

    - `count`: the number of steps taken, int32 of shape `()`.
    - `key`: the key of the next step, as its words, uint32.
    """

    count: Count
    key: KeyWords


class AddNoise(AbstractTransformation[AddNoiseState]):
    r"""Adds normally distributed noise to the updates, with a decreasing variance.

    $$u_t \leftarrow u_t + \sigma_t z_t, \qquad z_t \sim \mathcal N(0, I), \qquad
    \sigma_t^2 = \eta / (1 + t)^\gamma$$

    where $t$ is the number of steps taken before this one. The noise is drawn anew for each step
    and each leaf. For complex updates, the real and the imaginary part have half of the variance
    each.

    **Arguments:**

    - `eta`: the variance of the noise in the first step, $\eta \ge 0$.
    - `gamma`: the exponent of its decay, $\gamma \ge 0$.
    - `key`: a PRNG key, such as `jax.random.key(0)`, also an old-style one. It is kept as an
        [`eqopt.states.KeyData`][]. Only `init` uses it: changing it has no effect on an existing
        state.

    ??? cite "Reference"
        Neelakantan, Vilnis, Le, Sutskever, Kaiser, Kurach and Martens, *Adding Gradient Noise
        Improves Learning for Very Deep Networks*, 2015, section 3 (arXiv 1511.06807).
    """

    eta: Scalar = eqx.field(converter=non_negative("eta"))
    gamma: Scalar = eqx.field(converter=non_negative("gamma"))
    key: PRNGKey = eqx.field(converter=prng_key("key"))

    def init_state(self, params: Params, context: Context) -> AddNoiseState:
        return AddNoiseState(zero_count(), words_of(self.key))

    def transform(
        self, updates: Updates, state: AddNoiseState, params: Params | None, context: Context
    ) -> tuple[Updates, AddNoiseState]:
        count = increment(state.count)
        exponent = jnp.asarray(self.gamma)
        decay = jnp.power(count.astype(exponent.dtype), -exponent / 2)
        deviation = safe_sqrt(jnp.asarray(self.eta)) * decay
        words, own = advance(state.key, self.key)
        leaves, treedef = jax.tree.flatten(updates)
        keys = jax.random.split(own, max(len(leaves), 1))
        columns = (leaves, [keys[i] for i in range(len(leaves))], [deviation] * len(leaves))
        noisy = treedef.unflatten(map_leaves(_noisy, *columns))
        return noisy, AddNoiseState(count, words)
