"""Updates and decay where the signs agree."""

import functools
from collections.abc import Callable
from typing import Any, Generic

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Inexact, PyTree

from ..._base import blocks, checks
from ..._base.arithmetic import cast, minus, plus, real_dtype, times, wider
from ..._base.converters import flag, optional
from ..._base.trees import increment, zero_count
from ..._base.types import Count, Params, Scalar, State, Updates
from ..._objective.objective import Context, require_params
from ..._schedule.base import AbstractSchedule, scheduled_real, value_at
from ..._transformation.base import (
    AbstractLeafwise,
    AbstractTransformation,
    check_state,
    check_transformation,
)
from ..._transformation.leafwise import Rule
from ..._transformation.nesting import check_nesting, parts_of, Requirement
from ...selectors._selector import AbstractSelector, as_selector
from ..learning_rate import ScaleByLearningRate


def _agreement(x: Array, y: Array) -> Array:
    """Positive where the signs agree; for complex entries, where the angle is below 90 degrees."""
    # Not the product of the numbers, which underflows.
    return jnp.real(times(jnp.sign(x), jnp.conj(jnp.sign(y))))


# The factors by which the entries that are kept make up for the others.


def over_mean(kept: Float[Array, "..."], size: int) -> Float[Array, "..."]:
    r"""The factor $n / \max(k, n / 1000)$ of $k$ kept entries of $n$, as in the paper.

    **Arguments:**

    - `kept`: the number $k$ of entries that are kept.
    - `size`: the number $n$ of all.
    """
    return size / jnp.maximum(kept, size * 1e-3)


def over_count(kept: Float[Array, "..."], size: int) -> Float[Array, "..."]:
    r"""The factor $n / \max(k, 1)$ of $k$ kept entries of $n$, as in heavyball.

    **Arguments:**

    - `kept`: the number $k$ of entries that are kept.
    - `size`: the number $n$ of all.
    """
    return size / jnp.maximum(kept, 1)


def over_next_count(kept: Float[Array, "..."], size: int) -> Float[Array, "..."]:
    r"""The factor $n / (k + 1)$ of $k$ kept entries of $n$, as in pytorch-optimizer.

    **Arguments:**

    - `kept`: the number $k$ of entries that are kept.
    - `size`: the number $n$ of all.
    """
    return size / (kept + 1)


def _rescaling(value: object) -> Callable[[Array, int], Array] | None:
    if value is None or (callable(value) and not isinstance(value, type)):
        found: Any = value
        return found
    raise TypeError(
        "`rescale` must be `eqopt.control.over_mean`, `eqopt.control.over_count`, "
        "`eqopt.control.over_next_count`, another function of a number of entries that are kept "
        f"and the number of all, or `None`; got {checks.describe(value)}"
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
@checks.typed
def _cautious(
    block_ndim: int | None,
    rescale: Callable[[Array, int], Array] | None,
    update: Inexact[Array, "*shape"],
    gradient: Inexact[Array, "*shape"],
) -> Inexact[Array, "*shape"]:
    agrees = _agreement(update, gradient) > 0
    masked = lax.select(agrees, update, lax.full_like(update, 0))
    if rescale is None:
        return masked
    real = jnp.real(update).dtype
    kept = blocks.sums(block_ndim, agrees.astype(real))
    return blocks.multiplied(rescale(kept, blocks.num_entries(block_ndim, update)), masked)


class CautiousUpdatesState(eqx.Module, Generic[State]):
    """The state of [`eqopt.control.CautiousUpdates`][].

    **Arguments:**

    - `inner_state`: the state of the inner transformation.
    """

    inner_state: State


class CautiousUpdates(AbstractTransformation[CautiousUpdatesState[State]], Generic[State]):
    r"""Keeps the entries of an update whose sign is that of the gradient of this step.

    With the gradient $g$ that it is given, and the direction $d$ that the inner transformation
    makes of it, in each matrix of $n$ entries,

    $$u = s\, d\, [d g > 0], \qquad
    s = \frac{n}{\max\left(\sum\, [d g > 0],\ n / 1000\right)}.$$

    Complex entries are kept if update and gradient are less than 90 degrees apart.

    The inner transformation gives a direction before the learning rate, and before weight decay:
    `eqopt.Chain(CautiousUpdates(eqopt.ScaleByAdam()), eqopt.AddDecayedWeights(0.1),
    eqopt.ScaleByLearningRate(1e-3))`. A transformation that turns the sign, such as a whole
    optimizer, is refused.

    !!! note
        Implementations differ in $s$: [`eqopt.control.over_mean`][] is that of the paper,
        [`eqopt.control.over_count`][] that of heavyball, and
        [`eqopt.control.over_next_count`][] that of pytorch-optimizer. heavyball compares the signs'
        bits, so that zero agrees with positive numbers.

    **Arguments:**

    - `inner`: the transformation.
    - `rescale`: the factor $s$: a function of the number of entries that are kept, an array, and
        the number of all, an int; `None` is no factor. It is static.
    - `block_ndim`: the number of trailing axes over which entries are counted, at least 1: 2 is
        each matrix of a stack, 1 is each row, `None` the whole leaf. A leaf with fewer axes is one
        block.

    ??? cite "Reference"
        Liang, Chen, Liu and Liu, *Cautious Optimizers: Improving Training with One Line of Code*,
        2024, algorithm 1 (arXiv 2411.16085).
    """

    inner: AbstractTransformation[State]
    rescale: Callable[[Array, int], Array] | None = eqx.field(
        converter=_rescaling, static=True, default=over_mean
    )
    block_ndim: int | None = eqx.field(
        converter=blocks.block_size("block_ndim"), static=True, default=2
    )

    def __check_init__(self) -> None:
        check_transformation("inner", self.inner)
        why = "entries of its update are set to zero"
        check_nesting(self, self.inner, {Requirement.MOVES: why, Requirement.STEP: why})
        for part in parts_of(self.inner):
            if isinstance(part, ScaleByLearningRate) and part.flip_sign:
                raise ValueError(
                    "`ScaleByLearningRate` within `CautiousUpdates` makes no sense: it turns the "
                    "sign of the update, which is compared with that of the gradient. Put "
                    "`CautiousUpdates` around the links before the learning rate"
                )

    def init_state(self, params: Params, context: Context) -> CautiousUpdatesState[State]:
        return CautiousUpdatesState(self.inner.init_state(params, context))

    def transform(
        self,
        updates: Updates,
        state: CautiousUpdatesState[State],
        params: Params | None,
        context: Context,
    ) -> tuple[Updates, CautiousUpdatesState[State]]:
        check_state(self.inner, state.inner_state, "state.inner_state")
        out, inner_state = self.inner.transform(updates, state.inner_state, params, context)

        def mask(u: Array | None, g: Array | None) -> Array | None:
            if u is None or g is None:
                return u
            dtype = wider(u.dtype, g.dtype)
            return _cautious(self.block_ndim, self.rescale, cast(u, dtype), cast(g, dtype))

        new = jax.tree.map(mask, out, updates, is_leaf=checks.is_none)
        return new, CautiousUpdatesState(inner_state)


@checks.typed
def _cautious_decay(
    zeros_decay: bool,
    update: Inexact[Array, "*shape"],
    param: Inexact[Array, "*shape"],
    weight_decay: Float[Array, ""],
) -> Inexact[Array, "*shape"]:
    agreement = _agreement(update, param)
    decays: Bool[Array, "*shape"] = agreement >= 0 if zeros_decay else agreement > 0
    decayed = plus(update, times(weight_decay, param))
    return lax.select(decays, decayed, cast(update, decayed.dtype))


@checks.typed
class AddCautiousDecayedWeightsState(eqx.Module):
    """The state of [`eqopt.control.AddCautiousDecayedWeights`][].

    **Arguments:**

    - `count`: the number of steps taken, int32 of shape `()`.
    """

    count: Count


class AddCautiousDecayedWeights(AbstractLeafwise[AddCautiousDecayedWeightsState]):
    r"""Adds a multiple of the parameters to the updates, where both have the same sign.

    $$u \leftarrow u + \lambda_t \theta\, [u \theta \ge 0]$$

    The update is uphill, and subtracted: so only the entries decay that the update moves toward
    zero anyway. Put it before the learning rate; the decay is in proportion to the rate, as with
    [`eqopt.AddDecayedWeights`][]. For a decay in proportion to the square of the rate, give
    `weight_decay` a schedule in proportion to the rate: [`eqopt.control.DecayByRate`][].

    !!! note
        Implementations differ where the update is 0: the parameter decays in the paper, in dion and
        for the matrices of modded-nanogpt; it does not for the parameters that modded-nanogpt
        trains by Adam (`zeros_decay=False`). heavyball compares the signs' bits.

    **Arguments:**

    - `weight_decay`: the factor of the decay, $\lambda_t \ge 0$, a number or a schedule.
    - `mask`: the parameters that decay: a selector, a function from the parameters to booleans, or
        a tree of booleans, possibly a prefix; `None` is everything.
    - `zeros_decay`: whether a parameter decays where its update is 0.

    Raises a `ValueError` if `update` is given no parameters, or the mask does not fit them.

    ??? cite "Reference"
        Chen et al., *Cautious Weight Decay*, 2025, algorithm 1 (arXiv 2510.12402).
    """

    weight_decay: Scalar | AbstractSchedule = eqx.field(
        converter=scheduled_real("weight_decay", at_least=0)
    )
    mask: AbstractSelector | None = eqx.field(converter=optional(as_selector), default=None)
    zeros_decay: bool = eqx.field(converter=flag("zeros_decay"), static=True, default=True)

    def init_state(self, params: Params, context: Context) -> AddCautiousDecayedWeightsState:
        if self.mask is not None:
            self.mask.select(params)  # so that a wrong mask raises at once
        return AddCautiousDecayedWeightsState(zero_count())

    def rule(
        self, state: AddCautiousDecayedWeightsState, params: Params | None, context: Context
    ) -> Rule:
        params = require_params(params, self, context)
        return Rule(
            _cautious_decay,
            AddCautiousDecayedWeightsState(increment(state.count)),
            scalars=(value_at(self.weight_decay, state.count),),
            needs_params=True,
            options=(self.zeros_decay,),
            mask=None if self.mask is None else self.mask.select(params),
        )


# Decay after a step


@checks.typed
def _decay_moved(
    zeros_decay: bool,
    step: Inexact[Array, "*shape"],
    update: Inexact[Array, "*shape"],
    param: Inexact[Array, "*shape"],
    decay: Float[Array, ""],
) -> Inexact[Array, "*shape"]:
    agreement = _agreement(update, param)
    decays: Bool[Array, "*shape"] = agreement >= 0 if zeros_decay else agreement > 0
    decayed = minus(step, times(decay, plus(param, step)))
    return lax.select(decays, decayed, cast(step, decayed.dtype))


@checks.typed
class CautiousDecayState(eqx.Module, Generic[State]):
    """The state of [`eqopt.control.CautiousDecay`][].

    **Arguments:**

    - `inner_state`: the state of the inner transformation.
    - `count`: the number of steps taken, int32 of shape `()`.
    """

    inner_state: State
    count: Count


class CautiousDecay(AbstractTransformation[CautiousDecayState[State]], Generic[State]):
    r"""Shrinks the parameters after a step, where the update had their sign.

    With the update $u$ that it is given, uphill, and the step $s$ that the inner transformation
    makes of it, downhill,

    $$\theta \leftarrow (1 - \delta_t [u \theta > 0])\, (\theta + s).$$

    So a step that keeps a norm, as with [`eqopt.control.KeepRadius`][] after the learning rate,
    does not undo the decay. For other steps [`eqopt.control.AddCautiousDecayedWeights`][] is
    simpler.

    **Arguments:**

    - `inner`: the transformation, with the learning rate.
    - `decay`: the share $\delta_t$ of the parameters that is lost in a step, a number in $[0, 1]$
        or a schedule, such as [`eqopt.control.DecayByRate`][].
    - `mask`: the parameters that decay: a selector, a function from the parameters to booleans, or
        a tree of booleans, possibly a prefix; `None` is everything.
    - `zeros_decay`: whether a parameter decays where its update is 0.

    Raises a `ValueError` if `update` is given no parameters, or the mask does not fit them.

    ??? cite "Reference"
        Chen et al., *Cautious Weight Decay*, 2025 (arXiv 2510.12402); after the step in Jordan et
        al., *modded-nanogpt*, 2026, record 46 of the track on optimization
        (github.com/KellerJordan/modded-nanogpt).
    """

    inner: AbstractTransformation[State]
    decay: Scalar | AbstractSchedule = eqx.field(
        converter=scheduled_real("decay", at_least=0, at_most=1)
    )
    mask: AbstractSelector | None = eqx.field(converter=optional(as_selector), default=None)
    zeros_decay: bool = eqx.field(converter=flag("zeros_decay"), static=True, default=False)

    def __check_init__(self) -> None:
        check_transformation("inner", self.inner)
        why = "parameters shrink after its step"
        check_nesting(self, self.inner, {Requirement.MOVES: why, Requirement.STEP: why})

    def init_state(self, params: Params, context: Context) -> CautiousDecayState[State]:
        self._chosen(params)  # so that a wrong mask raises at once
        return CautiousDecayState(self.inner.init_state(params, context), zero_count())

    def transform(
        self,
        updates: Updates,
        state: CautiousDecayState[State],
        params: Params | None,
        context: Context,
    ) -> tuple[Updates, CautiousDecayState[State]]:
        params = require_params(params, self, context)
        check_state(self.inner, state.inner_state, "state.inner_state")
        steps, inner_state = self.inner.transform(updates, state.inner_state, params, context)
        decay = value_at(self.decay, state.count)

        def decayed(
            s: Array | None, u: Array | None, p: Array | None, chosen: bool
        ) -> Array | None:
            if s is None or u is None or p is None or not chosen:
                return s
            dtype = wider(s.dtype, u.dtype, p.dtype)
            s, u, p = (cast(x, dtype) for x in (s, u, p))
            return _decay_moved(self.zeros_decay, s, u, p, cast(decay, real_dtype(dtype)))

        new = jax.tree.map(
            decayed, steps, updates, params, self._chosen(params), is_leaf=checks.is_none
        )
        return new, CautiousDecayState(inner_state, increment(state.count))

    def _chosen(self, params: Params) -> PyTree[bool]:
        if self.mask is None:
            return jax.tree.map(lambda _: True, params, is_leaf=checks.is_none)
        return self.mask.select(params)
