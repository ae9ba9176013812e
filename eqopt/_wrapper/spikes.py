"""Skipping steps whose loss or gradient is far above the recent ones."""

from typing import Generic

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from .._base.arithmetic import norm
from .._base.checks import typed
from .._base.converters import flag, float_dtype, non_negative, optional, size
from .._base.norms import global_norm
from .._base.trees import increment, zero_count
from .._base.types import Count, Params, Scalar, State, Updates
from .._objective.objective import Context
from .._transformation.base import AbstractTransformation, check_state, check_transformation
from .._transformation.conditional import apply_when


class SkipSpikesState(eqx.Module, Generic[State]):
    """The state of [`eqopt.control.SkipSpikes`][].

    **Arguments:**

    - `num_known`: how many steps are remembered, at most the size of the window; int32 of shape
        `()`.
    - `place`: where in the window the next step goes, int32 of shape `()`.
    - `losses`: the last losses, of shape `(window,)`; `None` if losses are not judged.
    - `norms`: the last norms of gradients, of shape `(window,)`; `None` if they are not judged.
    - `last_skipped`: whether the last step was skipped, a boolean of shape `()`.
    - `total_skipped`: how many steps were skipped in all, int32 of shape `()`.
    - `inner_state`: the state of the inner transformation.
    """

    num_known: Int[Array, ""]
    place: Int[Array, ""]
    losses: Float[Array, " window"] | None
    norms: Float[Array, " window"] | None
    last_skipped: Bool[Array, ""]
    total_skipped: Count
    inner_state: State


@typed
def _exceeds(
    number: Float[Array, ""],
    known: Float[Array, " window"],
    num_known: Int[Array, ""],
    sigmas: Float[Array, ""],
    min_std: Float[Array, ""],
) -> Bool[Array, ""]:
    """Whether a number is above the mean of the first numbers by that many deviations."""
    counts = jnp.arange(known.size, dtype=jnp.int32) < num_known
    weight = jnp.maximum(num_known, 1).astype(known.dtype)
    # Divided before they are added, so that the sum does not overflow.
    mean = jnp.sum(jnp.where(counts, known / weight, 0))
    std = norm(jnp.where(counts, known - mean, 0)) / jnp.sqrt(weight)
    return ~(number <= mean + sigmas * jnp.maximum(std, min_std))


class SkipSpikes(AbstractTransformation[SkipSpikesState[State]], Generic[State]):
    r"""Skips every step whose loss or gradient norm is far above those of the last steps.

    A step is skipped if the objective's value $x$, or the norm $x$ of all incoming updates
    together, is above

    $$\mu + k \max(\sigma, \sigma_{\min})$$

    with the mean $\mu$ and the standard deviation $\sigma$ of the last steps, at most a window of
    them. The inner transformation is then not computed: the updates are zero, and the inner state,
    with its counts, stays as it is.

    The number of a skipped step is remembered too. So a lasting change of level is accepted after a
    few steps: with $k = 6$, after 4 in a window of 128. A step whose loss or norm is not finite is
    skipped from the first step on, and not remembered.

    !!! note
        Implementations differ in $\sigma$: it is that of the population here and in Levanter, with
        $\sigma_{\min} = 10^{-6}$, and divided by one number less in OLMo-core and MaxText. Levanter
        judges from one step later on. All three remember a loss that is NaN, and then skip every
        step until it has left the window.

    !!! warning
        Put it around the whole optimizer. Links before it in a chain, such as a clip by the norm,
        hide the gradient's norm.

    **Arguments:**

    - `inner`: the transformation.
    - `window`: how many of the last steps are remembered, at least 2.
    - `sigmas`: the number $k \ge 0$ of standard deviations.
    - `loss`: whether to judge the objective's value, which `step` passes on, and `update` takes as
        `value`.
    - `grad_norm`: whether to judge the norm of the incoming updates.
    - `min_count`: the first steps are not judged; this is the number of the first one that is, at
        least 2; `None` is half of the window.
    - `min_std`: the least standard deviation $\sigma_{\min} \ge 0$, in the unit of the loss and of
        the norm.

    Raises a `ValueError` if losses are judged and `value` is not given.

    ??? cite "Reference"
        OLMo Team, *2 OLMo 2 Furious*, 2025, section 3 (arXiv 2501.00656); the rule is that of
        `SkipStepOptimizer` in OLMo-core (github.com/allenai/OLMo-core).
    """

    inner: AbstractTransformation[State]
    window: int = eqx.field(converter=size("window", at_least=2), static=True, default=128)
    sigmas: Scalar = eqx.field(converter=non_negative("sigmas"), default=6.0)
    loss: bool = eqx.field(converter=flag("loss"), static=True, default=True)
    grad_norm: bool = eqx.field(converter=flag("grad_norm"), static=True, default=True)
    min_count: int | None = eqx.field(
        converter=optional(size("min_count", at_least=2)), static=True, default=None
    )
    min_std: Scalar = eqx.field(converter=non_negative("min_std"), default=1e-6)

    def __check_init__(self) -> None:
        check_transformation("inner", self.inner)
        if not (self.loss or self.grad_norm):
            raise ValueError("`SkipSpikes` judges nothing: `loss` and `grad_norm` are both False")
        if self.min_count is not None and self.min_count > self.window + 1:
            raise ValueError(
                f"`min_count` must be at most `window` + 1, or no step is ever judged; got "
                f"{self.min_count}, with a window of {self.window}"
            )

    def init_state(self, params: Params, context: Context) -> SkipSpikesState[State]:
        def zeros(judged: bool) -> Array | None:
            return jnp.zeros(self.window, float_dtype()) if judged else None

        return SkipSpikesState(
            num_known=zero_count(),
            place=zero_count(),
            losses=zeros(self.loss),
            norms=zeros(self.grad_norm),
            last_skipped=jnp.zeros((), bool),
            total_skipped=zero_count(),
            inner_state=self.inner.init_state(params, context),
        )

    def transform(
        self,
        updates: Updates,
        state: SkipSpikesState[State],
        params: Params | None,
        context: Context,
    ) -> tuple[Updates, SkipSpikesState[State]]:
        check_state(self.inner, state.inner_state, "state.inner_state")
        numbers = (
            jnp.asarray(context.require("value", self)) if self.loss else None,
            global_norm(updates) if self.grad_norm else None,
        )
        judged = [
            (x.astype(known.dtype), known)
            for x, known in zip(numbers, (state.losses, state.norms), strict=True)
            if x is not None and known is not None
        ]
        finite = jnp.all(jnp.stack([jnp.isfinite(x) for x, _ in judged]))
        limits = tuple(jnp.asarray(x, float_dtype()) for x in (self.sigmas, self.min_std))
        exceeds = jnp.stack([_exceeds(x, known, state.num_known, *limits) for x, known in judged])
        least = max(self.window // 2, 2) if self.min_count is None else self.min_count
        spike = jnp.any(exceeds) & (state.num_known >= least - 1)
        skips = spike | ~finite

        last = jnp.int32(self.window - 1)
        num_known = lax.min(state.num_known, last) + 1
        place = jnp.where(state.place >= last, 0, lax.min(state.place, last) + 1)

        def remembered(x: Array | None, known: Array | None) -> Array | None:
            if x is None or known is None:
                return None
            here = jnp.arange(self.window, dtype=jnp.int32) == state.place
            return jnp.where(finite & here, x.astype(known.dtype), known)

        out, inner_state = apply_when(
            ~skips, self.inner, updates, state.inner_state, params, context
        )
        new = SkipSpikesState(
            num_known=jnp.where(finite, num_known, state.num_known),
            place=jnp.where(finite, place, state.place),
            losses=remembered(numbers[0], state.losses),
            norms=remembered(numbers[1], state.norms),
            last_skipped=skips,
            total_skipped=jnp.where(skips, increment(state.total_skipped), state.total_skipped),
            inner_state=inner_state,
        )
        return out, new
