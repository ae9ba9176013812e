"""Aggregation of per-example gradients with differential privacy."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Inexact

from .._base import checks
from .._base.arithmetic import cast, divide, is_complex, plus, real_dtype, times
from .._base.converters import non_negative, prng_key
from .._base.prng import advance, KeyWords, normal_like, PRNGKey, words_of
from .._base.types import Params, Scalar, Updates
from .._objective.objective import Context, require_params
from .._objective.per_example import per_example_global_norm_clip
from .._transformation.base import AbstractPerExample


@checks.typed
class DifferentiallyPrivateAggregateState(eqx.Module):
    """The state of [`eqopt.DifferentiallyPrivateAggregate`][].

    **Arguments:**

    - `key`: the words of the key of the next step, uint32.
    """

    key: KeyWords


class DifferentiallyPrivateAggregate(AbstractPerExample[DifferentiallyPrivateAggregateState]):
    r"""Replaces the gradients of the examples in a batch by one noisy mean that hides each example.

    $$u = \frac{1}{n} \left(\sum_{i=1}^n g_i \min(1, C / \|g_i\|) + \sigma C z\right), \qquad
    z \sim \mathcal N(0, 1) \text{ for each entry,}$$

    with the norm over all leaves together. A gradient whose norm is not finite is left out of the
    sum, but counts in $n$. Clipping, sum and noise are in float32 at least.

    It takes the gradient of **each example**: each leaf with one more axis in front, of the same
    size $n$ in all leaves, as [`eqopt.per_example_value_and_grad`][] gives them. So it must be the
    first link of a chain or an optimizer, or be used alone. `step` and `fit` cannot be used,
    because they compute one gradient of the whole batch.

    **Arguments:**

    - `l2_norm_clip`: the largest norm $C \ge 0$ of one example's contribution.
    - `noise_multiplier`: $\sigma \ge 0$, the standard deviation of the noise over $C$.
    - `key`: the PRNG key to begin with, a secret; each step makes a new one. It has no default,
        because noise from a known key can be subtracted. It is kept as an
        [`eqopt.states.KeyData`][].

    Raises a `ValueError` if `update` is given no parameters, or gradients without an axis of
    examples in front of the parameters' shapes.

    !!! warning
        The privacy guarantee also depends on how batches are drawn and on the number of steps; use
        a privacy accountant to compute it. Other results computed from the examples have no noise,
        such as a loss that is published or that decides when to stop.

    !!! note
        For complex parameters, the real and the imaginary part each have noise of that deviation.
        In optax it is too small by a factor of $\sqrt{2}$.

    ??? cite "Reference"
        Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar and Zhang, *Deep Learning with Differential
        Privacy*, CCS 2016, algorithm 1 (arXiv 1607.00133).
    """

    l2_norm_clip: Scalar = eqx.field(converter=non_negative("l2_norm_clip"))
    noise_multiplier: Scalar = eqx.field(converter=non_negative("noise_multiplier"))
    key: PRNGKey = eqx.field(converter=prng_key("key"))

    def init_state(self, params: Params, context: Context) -> DifferentiallyPrivateAggregateState:
        return DifferentiallyPrivateAggregateState(words_of(self.key))

    def transform(
        self,
        updates: Updates,
        state: DifferentiallyPrivateAggregateState,
        params: Params | None,
        context: Context,
    ) -> tuple[Updates, DifferentiallyPrivateAggregateState]:
        num = checks.num_examples(updates, require_params(params, self, context), self)
        total, _ = per_example_global_norm_clip(updates, self.l2_norm_clip)
        words, key = advance(state.key, self.key)
        deviation = jnp.asarray(self.l2_norm_clip) * jnp.asarray(self.noise_multiplier)
        leaves, treedef = checks.flatten(total)
        noisy = [
            None if x is None else _noised(x, jax.random.fold_in(key, i), deviation, num)
            for i, x in enumerate(leaves)
        ]
        return treedef.unflatten(noisy), DifferentiallyPrivateAggregateState(words)


def _noised(
    total: Inexact[Array, "*shape"], key: Any, deviation: Float[Array, ""], num: int
) -> Inexact[Array, "*shape"]:
    dtype = real_dtype(total.dtype)
    if is_complex(total):
        keys = jax.random.split(key)
        noise = lax.complex(*map(normal_like, keys, (lax.real(total), lax.imag(total))))
    else:
        noise = normal_like(key, total)
    return divide(plus(total, times(cast(deviation, dtype), noise)), jnp.asarray(num, dtype))
