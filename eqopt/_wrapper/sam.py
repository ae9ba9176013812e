"""Sharpness-aware minimization."""

from collections.abc import Hashable
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from .._base import checks
from .._base.arithmetic import cast, minus, plus, wider
from .._base.converters import flag, steps
from .._base.trees import (
    add_updates,
    conj,
    copies,
    increment,
    mask_like,
    round_like,
    select,
    widened,
    zero_count,
)
from .._base.types import Count, Params, Steps, Updates
from .._objective.objective import at, Context, require_params
from .._transformation.base import AbstractTransformation, check_state, check_transformation
from .._transformation.eval_params import AbstractEvalState, check_like, known, rounded
from .._transformation.nesting import AbstractConstrained, check_nesting, Requirement

_Outer = TypeVar("_Outer", bound=eqx.Module)
_Inner = TypeVar("_Inner", bound=eqx.Module)


class SAMState(AbstractEvalState, Generic[_Outer, _Inner]):
    """The state of [`eqopt.SAM`][].

    **Arguments:**

    - `steps_since_sync`: the number of adversarial steps since the last real one, int32 of shape
        `()`.
    - `opt_state`, `adv_state`: the states of the optimizer and of its adversary.
    - `cache`: the parameters at the last real step, from which the adversary started; `None` in
        opaque mode.
    """

    steps_since_sync: Count
    opt_state: _Outer
    adv_state: _Inner
    cache: PyTree

    def eval_params(self, params: Params) -> Params:
        if self.cache is None:
            return known(params, self.opt_state)
        away = self.steps_since_sync > 0
        cache = check_like(self.cache, params, "state.cache")

        def real(x: Any, kept: Any) -> Any:
            return x if kept is None else jnp.where(away, rounded(x, kept), x)

        params = jax.tree.map(real, params, cache, is_leaf=checks.is_none)
        return eqx.combine(known(params, self.opt_state), params)


class SAM(AbstractConstrained[SAMState[_Outer, _Inner]], Generic[_Outer, _Inner]):
    r"""Steps by the gradient at a nearby point where the objective is worse, which favors wide
    minima.

    An adversary climbs from the parameters $\theta$ for $k - 1$ steps, its updates negated:
    $\theta' \leftarrow \theta' - a(\nabla f(\theta'))$. The optimizer then steps from $\theta$,
    with the gradient at $\theta'$. The rule of the paper, for a radius $\rho$, is
    `SAM(optimizer, Chain(Normalize(), SGD(rho)))`.

    By default a call of `update` is one evaluation: the parameters move to $\theta'$, and at every
    $k$-th call they return to $\theta$ and take the optimizer's step. In between,
    [`eqopt.eval_params`][] gives $\theta$. In opaque mode the adversary runs within each call,
    which needs the objective: use `step`, or `update(..., value_fn=...)` with the objective's other
    arguments by keyword.

    !!! warning
        Put it around everything that changes the updates: in opaque mode the adversary's gradients
        come from the objective, and pass no link before the wrapper. A line search inside would
        begin where the objective has not been evaluated.

    **Arguments:**

    - `optimizer`: the optimizer.
    - `adv_optimizer`: the adversary.
    - `sync_period`: the number $k$ of evaluations for each real step, at least 1.
    - `reset_state`: whether the adversary gets a new state after each real step.
    - `opaque_mode`: whether the adversary runs within each call.
    - `batch_axis_name`: in opaque mode, the name of a `vmap` or `shard_map` axis over which the
        gradients are averaged, or `None`.

    Raises a `ValueError` in opaque mode if there is no objective.

    ??? cite "Reference"
        Foret, Kleiner, Mobahi and Neyshabur, *Sharpness-aware minimization for efficiently
        improving generalization*, ICLR 2021, algorithm 1 (arXiv 2010.01412).
    """

    optimizer: AbstractTransformation[_Outer]
    adv_optimizer: AbstractTransformation[_Inner]
    sync_period: Steps = eqx.field(converter=steps("sync_period", at_least=1), default=2)
    reset_state: bool = eqx.field(converter=flag("reset_state"), static=True, default=True)
    opaque_mode: bool = eqx.field(converter=flag("opaque_mode"), static=True, default=False)
    batch_axis_name: Hashable | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        check_transformation("optimizer", self.optimizer)
        check_transformation("adv_optimizer", self.adv_optimizer)
        why = "the gradients are taken at the adversary's point"
        check_nesting(
            self, self.optimizer, dict.fromkeys((Requirement.OBJECTIVE, Requirement.POINT), why)
        )
        if not self.opaque_mode:
            why = "the way back from the adversary's point is rounded. Put it around"
            check_nesting(self, self.optimizer, {Requirement.EXACT: why})
        why = "the parameters do not stay at the adversary's points. It is for the optimizer"
        check_nesting(self, self.adv_optimizer, dict.fromkeys(Requirement, why))

    def requirements(self) -> frozenset[Requirement]:
        if self.opaque_mode:
            return frozenset({Requirement.OBJECTIVE, Requirement.GRADIENT, Requirement.POINT})
        return frozenset({Requirement.MOVES, Requirement.EVALUATED, Requirement.POINT})

    def init_state(self, params: Params, context: Context) -> SAMState[_Outer, _Inner]:
        return SAMState(
            zero_count(),
            self.optimizer.init_state(params, context),
            self.adv_optimizer.init_state(params, context),
            None if self.opaque_mode else copies(params),
        )

    def transform(
        self,
        updates: Updates,
        state: SAMState[_Outer, _Inner],
        params: Params | None,
        context: Context,
    ) -> tuple[Updates, SAMState[_Outer, _Inner]]:
        check_state(self.optimizer, state.opt_state, "state.opt_state")
        check_state(self.adv_optimizer, state.adv_state, "state.adv_state")
        params = require_params(params, self, context)
        run = self._opaque if self.opaque_mode else self._transparent
        return run(updates, state, params, context)

    def _transparent(
        self, updates: Updates, state: SAMState[_Outer, _Inner], params: Params, context: Context
    ) -> tuple[Updates, SAMState[_Outer, _Inner]]:
        # In float32 at least, like all state; the stored parameters are exact.
        cache = check_like(state.cache, params, "state.cache")
        cache = select(state.steps_since_sync == 0, round_like(params, cache), cache)
        start = round_like(cache, params)

        def real() -> tuple[Updates, _Outer, _Inner]:
            out, opt_state = self.optimizer.transform(
                updates, state.opt_state, start, at(context, start)
            )

            def back(u: Any, x: Any, kept: Any) -> Any:
                if u is None:
                    return None
                dtype = wider(u.dtype, x.dtype)
                return plus(minus(cast(kept, dtype), cast(x, dtype)), cast(u, dtype))

            out = jax.tree.map(back, out, params, cache, is_leaf=checks.is_none)
            return widened(out), opt_state, self._adversary_after(state, start)

        def adversarial() -> tuple[Updates, _Outer, _Inner]:
            out, adv_state = self.adv_optimizer.transform(updates, state.adv_state, params, context)
            return widened(_negative(out)), state.opt_state, adv_state

        # Not `==`: the period may have been made shorter during training.
        last = state.steps_since_sync >= jnp.asarray(self.sync_period) - 1
        updates, opt_state, adv_state = lax.cond(last, real, adversarial)
        num_steps = jnp.where(last, 0, increment(state.steps_since_sync))
        return updates, SAMState(num_steps, opt_state, adv_state, cache)

    def _opaque(
        self, updates: Updates, state: SAMState[_Outer, _Inner], params: Params, context: Context
    ) -> tuple[Updates, SAMState[_Outer, _Inner]]:
        objective = context.require("value_fn", self)

        def climb(
            _: Array, carry: tuple[Updates, _Inner, Params]
        ) -> tuple[Updates, _Inner, Params]:
            gradient, adv_state, point = carry
            out, adv_state = self.adv_optimizer.transform(
                gradient, adv_state, point, at(context, point)
            )
            point = add_updates(point, round_like(_negative(out), point))
            found = objective.evaluate(point).grad
            if self.batch_axis_name is not None:
                found = lax.pmean(found, self.batch_axis_name)
            return round_like(mask_like(gradient, conj(found)), gradient), adv_state, point

        carry = updates, state.adv_state, params
        num_climbs = jnp.asarray(self.sync_period) - 1
        gradient, adv_state, _ = lax.fori_loop(0, num_climbs, climb, carry)
        updates, opt_state = self.optimizer.transform(gradient, state.opt_state, params, context)
        if self.reset_state:
            adv_state = self._adversary_after(state, params)
        return updates, SAMState(state.steps_since_sync, opt_state, adv_state, None)

    def _adversary_after(self, state: SAMState[_Outer, _Inner], params: Params) -> _Inner:
        if not self.reset_state:
            return state.adv_state
        return self.adv_optimizer.init_state(params, Context())


def _negative(updates: Updates) -> Updates:
    return jax.tree.map(lax.neg, updates)
