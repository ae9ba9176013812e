"""Slow parameters, which follow the fast ones."""

import dataclasses
from typing import Any, Generic

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Inexact, PyTree

from .._base import checks
from .._base.arithmetic import minus, plus, times
from .._base.converters import flag, real, steps
from .._base.trees import add_updates, copies, increment, mask_like, round_like, zero_count
from .._base.types import Count, Params, Scalar, State, Steps, Updates
from .._objective.cache import Cache
from .._objective.objective import Context, require_params
from .._transformation import leafwise
from .._transformation.base import AbstractTransformation, check_state, check_transformation
from .._transformation.eval_params import AbstractEvalState, check_like, LookaheadParams, rounded
from .._transformation.leafwise import Rule
from .._transformation.nesting import AbstractConstrained, check_nesting, Requirement


class LookaheadState(AbstractEvalState, Generic[State]):
    """The state of [`eqopt.Lookahead`][].

    **Arguments:**

    - `fast_state`: the state of the fast optimizer.
    - `steps_since_sync`: the number of steps since the slow parameters moved, int32 of shape `()`.
    - `slow`: the slow parameters; `None` where they are among the parameters.
    - `beside`: which leaves of [`eqopt.LookaheadParams`][] have slow parameters; `None` for all
        other parameters. Static.
    """

    fast_state: State
    steps_since_sync: Count
    slow: PyTree
    beside: tuple[bool, ...] | None = eqx.field(static=True)

    def eval_params(self, params: Params) -> Params:
        if self.beside is None:
            slow = check_like(self.slow, params, "state.slow")
            return jax.tree.map(rounded, params, slow, is_leaf=checks.is_none)
        fast, slow = _pair(params, self)
        leaves, treedef = checks.flatten(slow)
        kept = [x if c else None for x, c in zip(leaves, self.beside, strict=True)]
        slow = jax.tree.map(rounded, fast, treedef.unflatten(kept), is_leaf=checks.is_none)
        return LookaheadParams(slow, _nothing(fast))


@checks.typed
def _look_ahead(
    beside: bool,
    update: Inexact[Array, "*shape"],
    fast: Inexact[Array, "*shape"],
    slow: Inexact[Array, "*shape"],
    sync: Float[Array, ""],
    step_size: Float[Array, ""],
) -> tuple[Inexact[Array, "*shape"], Inexact[Array, "*shape"]]:
    """The fast parameter's update; and the new slow parameter, or its update."""
    is_sync = lax.gt(sync, np.zeros((), sync.dtype))
    change = times(step_size, minus(plus(fast, update), slow))
    change = lax.select(is_sync, change, lax.full_like(change, 0))
    new = plus(slow, change)
    return lax.select(is_sync, minus(new, fast), update), change if beside else new


class _Slow(eqx.Module):
    slow: PyTree


class Lookahead(AbstractConstrained[LookaheadState[State]], Generic[State]):
    r"""Lets slow parameters $\phi$ follow the parameters $\theta$ of a fast optimizer, which then
    continues from the slow parameters.

    Every $k$ steps, after the fast optimizer's update $u$,

    $$\phi \leftarrow \phi + \alpha\, (\theta + u - \phi), \qquad \theta \leftarrow \phi;$$

    at all other steps $\theta \leftarrow \theta + u$, and $\phi$ stays. Evaluate with the slow
    parameters: they are in the state, and [`eqopt.eval_params`][] gives them.

    As in optax, the parameters may also be [`eqopt.LookaheadParams`][], which hold the slow
    parameters too. Gradients are then taken at `params.fast` (or at both, and the slow gradient is
    not used), and `value_fn` is a function of the pair.

    !!! warning
        It must see the updates as they are applied: put it around the whole optimizer, or last in a
        chain.

    **Arguments:**

    - `fast_optimizer`: the fast optimizer.
    - `sync_period`: the number of steps $k$ from one synchronization to the next, at least 1.
    - `slow_step_size`: the fraction $\alpha$ of the way that the slow parameters move, in $[0, 1]$.
    - `reset_state`: whether the fast optimizer gets a new state at each synchronization.

    ??? cite "Reference"
        Zhang, Lucas, Hinton and Ba, *Lookahead optimizer: k steps forward, 1 step back*, NeurIPS
        2019, algorithm 1 (arXiv 1907.08610).
    """

    fast_optimizer: AbstractTransformation[State]
    sync_period: Steps = eqx.field(converter=steps("sync_period", at_least=1))
    slow_step_size: Scalar = eqx.field(converter=real("slow_step_size", at_least=0, at_most=1))
    reset_state: bool = eqx.field(converter=flag("reset_state"), static=True, default=False)

    def __check_init__(self) -> None:
        check_transformation("fast_optimizer", self.fast_optimizer)
        why = "at each synchronization the parameters go elsewhere. Put it around `Lookahead`"
        check_nesting(
            self, self.fast_optimizer, {Requirement.EVALUATED: why, Requirement.MOVES: why}
        )

    def requirements(self) -> frozenset[Requirement]:
        return frozenset({Requirement.MOVES})

    def init_state(self, params: Params, context: Context) -> LookaheadState[State]:
        beside = None
        # A pair without slow parameters comes from an outer lookahead, which has hidden them.
        if isinstance(params, LookaheadParams) and jax.tree.leaves(params.slow):
            leaves, _ = checks.flatten(params.slow)
            beside = tuple([x is not None for x in leaves])
            params, context = _fast_only(params), _of_fast(context, params)
        fast_state = self.fast_optimizer.init_state(params, context)
        slow = copies(params) if beside is None else None
        return LookaheadState(fast_state, zero_count(), slow, beside)

    def transform(
        self,
        updates: Updates,
        state: LookaheadState[State],
        params: Params | None,
        context: Context,
    ) -> tuple[Updates, LookaheadState[State]]:
        check_state(self.fast_optimizer, state.fast_state, "state.fast_state")
        params = require_params(params, self, context)
        beside, pair = state.beside is not None, None
        if beside:
            pair = _pair(params, state)
            context = _of_fast(context, params)
            updates, params = _fast_only(updates), _fast_only(params)
        updates, fast_state = self.fast_optimizer.transform(
            updates, state.fast_state, params, context
        )
        # Not `==`: the period may have been made shorter during training.
        sync = state.steps_since_sync >= jnp.asarray(self.sync_period) - 1
        scalars, options = (sync.astype(np.float32), self.slow_step_size), (beside,)
        if pair is None:
            held = _Slow(check_like(state.slow, params, "state.slow"))
            rule = Rule(
                kernel=_look_ahead,
                state=held,
                trees=("slow",),
                scalars=scalars,
                needs_params=True,
                options=options,
            )
            updates, (held,) = leafwise.run((rule,), updates, params)
            slow = held.slow
        else:
            slow = None
            rule = Rule(
                kernel=_look_ahead,
                state=_Slow(pair[1]),
                trees=("slow",),
                scalars=scalars,
                needs_params=True,
                options=options,
            )
            fast, (change,) = leafwise.run((rule,), updates.fast, pair[0])
            updates = LookaheadParams(fast, mask_like(fast, change.slow))
        if self.reset_state:
            fast_updates = updates if pair is None else _fast_only(updates)
            point = add_updates(params, round_like(fast_updates, params))
            fast_state = self._reset(sync, fast_state, point, context)
        num_steps = jnp.where(sync, 0, increment(state.steps_since_sync))
        return updates, LookaheadState(fast_state, num_steps, slow, state.beside)

    def _reset(self, sync: Bool[Array, ""], state: State, point: Params, context: Context) -> State:
        whole = context.whole
        if whole is not None:
            whole = dataclasses.replace(whole, objective=None, evaluation=None)

        def anew() -> State:
            initial = self.fast_optimizer.init_state(point, Context(whole=whole))
            # A line search's cache stays valid, and has a place for the objective's aux.
            return jax.tree.map(
                lambda new, old: old if _is_cache(new) else new, initial, state, is_leaf=_is_cache
            )

        return lax.cond(sync, anew, lambda: state)


def _is_cache(x: object) -> bool:
    return isinstance(x, Cache)


def _nothing(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda _: None, tree)


def _pair(params: Params, state: LookaheadState[Any]) -> tuple[PyTree, PyTree]:
    if not isinstance(params, LookaheadParams):
        raise ValueError(
            "`state` was made for `LookaheadParams`; `params` is " + checks.describe(params)
        )
    return params.fast, params.slow


# The fast optimizer sees the pair, with `None` for the slow parameters, as if they were masked out.
# So the objective can still be called with all parameters.


def _fast_only(tree: Any) -> LookaheadParams[Any]:
    return LookaheadParams(tree.fast, _nothing(tree.slow))


def _of_fast(context: Context, params: Any) -> Context:
    grad, objective = context.grad, context.value_fn
    if grad is not None:
        grad = _fast_only(grad)
    if objective is not None:
        slow = LookaheadParams(_nothing(params.fast), params.slow)
        objective = dataclasses.replace(objective, rest=eqx.combine(slow, objective.rest))
    return dataclasses.replace(context, grad=grad, value_fn=objective)
