"""Limits on the size of the updates."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Inexact

from .._base import checks
from .._base.arithmetic import clipped, over_where, rms, times, within
from .._base.converters import non_negative, real
from .._base.norms import global_norm
from .._base.types import Params, Scalar, Updates
from .._objective.objective import Context
from .._transformation import leafwise
from .._transformation.base import AbstractLeafwise, AbstractTransformation, EmptyState
from .._transformation.leafwise import Rule


@checks.typed
def _clip(
    update: Inexact[Array, "*shape"], max_delta: Float[Array, ""]
) -> Inexact[Array, "*shape"]:
    return clipped(update, max_delta)


class Clip(AbstractLeafwise[EmptyState]):
    r"""Limits each entry of the updates: $u \leftarrow \min(\max(u, -\Delta), \Delta)$.

    The real and the imaginary part of complex updates are limited separately.

    **Arguments:**

    - `max_delta`: the limit $\Delta \ge 0$.
    """

    max_delta: Scalar = eqx.field(converter=non_negative("max_delta"))

    def init_state(self, params: Params, context: Context) -> EmptyState:
        return EmptyState()

    def rule(self, state: EmptyState, params: Params | None, context: Context) -> Rule:
        return Rule(_clip, state, scalars=(self.max_delta,))


@checks.typed
def _shrink(update: Inexact[Array, "*shape"], factor: Float[Array, ""]) -> Inexact[Array, "*shape"]:
    # Selected, because `0 * inf` is NaN. (Not by `jnp.where`, which adds a nested program for each
    # leaf.)
    some = lax.ne(factor, np.zeros((), factor.dtype))
    return lax.select(some, times(factor, update), lax.full_like(update, 0))


@checks.typed
def _clip_rms(
    update: Inexact[Array, "*shape"], threshold: Float[Array, ""]
) -> Inexact[Array, "*shape"]:
    return _shrink(update, within(rms(update), threshold))


class ClipByBlockRMS(AbstractLeafwise[EmptyState]):
    r"""Shrinks the update of each leaf if its root mean square exceeds a limit:
    $u \leftarrow u \min(1, c \sqrt{n} / \|u\|)$.

    The norm is over one leaf, of $n$ entries, in float32 at least. An update whose norm is not
    finite has no direction, and becomes zero.

    **Arguments:**

    - `threshold`: the limit $c \ge 0$.

    ??? cite "Reference"
        Shazeer and Stern, *Adafactor: Adaptive Learning Rates with Sublinear Memory Cost*, ICML
        2018, section 6 (arXiv 1804.04235).
    """

    threshold: Scalar = eqx.field(converter=non_negative("threshold"))

    def init_state(self, params: Params, context: Context) -> EmptyState:
        return EmptyState()

    def rule(self, state: EmptyState, params: Params | None, context: Context) -> Rule:
        return Rule(_clip_rms, state, scalars=(self.threshold,))


def _scaled(
    factor: Float[Array, ""], updates: Updates, state: EmptyState, params: Params | None
) -> tuple[Updates, EmptyState]:
    rule = Rule(_shrink, state, scalars=(factor,))
    return leafwise.run((rule,), updates, params)[0], state


class ClipByGlobalNorm(AbstractTransformation[EmptyState]):
    r"""Shrinks the updates if their norm, over all leaves together, exceeds a limit:
    $u \leftarrow u \min(1, c / \|u\|)$.

    The norm is taken in float32 at least. Updates whose norm is not finite have no direction, and
    become zero. To skip such a step, or to detect it, use [`eqopt.ApplyIfFinite`][].

    **Arguments:**

    - `max_norm`: the limit $c \ge 0$.

    ??? cite "Reference"
        Pascanu, Mikolov and Bengio, *On the difficulty of training recurrent neural networks*,
        ICML 2013, algorithm 1 (arXiv 1211.5063).
    """

    max_norm: Scalar = eqx.field(converter=non_negative("max_norm"))

    def init_state(self, params: Params, context: Context) -> EmptyState:
        return EmptyState()

    def transform(
        self, updates: Updates, state: EmptyState, params: Params | None, context: Context
    ) -> tuple[Updates, EmptyState]:
        norm = global_norm(updates)
        factor = within(norm, jnp.asarray(self.max_norm).astype(norm.dtype))
        return _scaled(factor, updates, state, params)


def _of_length(
    size: object, eps: object, updates: Updates, state: EmptyState, params: Params | None
) -> tuple[Updates, EmptyState]:
    """Updates whose norm is `size`, up to `eps`; zero if they have no direction."""
    norm = global_norm(updates)
    size, eps = (jnp.asarray(x).astype(norm.dtype) for x in (size, eps))
    some = (norm > 0) & jnp.isfinite(norm)
    factor = over_where(some, jnp.where(some, size, 0), norm + eps)
    return _scaled(factor, updates, state, params)


class Normalize(AbstractTransformation[EmptyState]):
    r"""Divides the updates by their norm, over all leaves together: $u \leftarrow u / \|u\|$.

    The norm is taken in float32 at least. Updates that are all zero stay so, and updates whose norm
    is not finite become zero.
    """

    def init_state(self, params: Params, context: Context) -> EmptyState:
        return EmptyState()

    def transform(
        self, updates: Updates, state: EmptyState, params: Params | None, context: Context
    ) -> tuple[Updates, EmptyState]:
        return _of_length(1.0, 0.0, updates, state, params)


class NormalizeByUpdateNorm(AbstractTransformation[EmptyState]):
    r"""Scales the updates to a given length, over all leaves together: $u \leftarrow s\, u / (\|u\|
    + \epsilon)$.

    It is [`eqopt.Normalize`][] where $s = 1$ and $\epsilon = 0$, with the same exceptions.

    **Arguments:**

    - `scale_factor`: the length $s$, any real number; a negative length flips the sign, downhill.
    - `eps`: $\epsilon \ge 0$, added to the norm, so that tiny updates stay tiny.
    """

    scale_factor: Scalar = eqx.field(converter=real("scale_factor"), default=1.0)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-6)

    def init_state(self, params: Params, context: Context) -> EmptyState:
        return EmptyState()

    def transform(
        self, updates: Updates, state: EmptyState, params: Params | None, context: Context
    ) -> tuple[Updates, EmptyState]:
        return _of_length(self.scale_factor, self.eps, updates, state, params)
