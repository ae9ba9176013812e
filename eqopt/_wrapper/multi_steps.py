"""One step for several mini-batches."""

import dataclasses
from typing import Any, Generic, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Inexact, PyTree

from .._base import checks
from .._base.arithmetic import divide, minus, plus
from .._base.converters import flag, float_dtype, steps, to_dtype
from .._base.trees import all_finite, increment, inner, zero_count, zeros_like
from .._base.types import Count, Function, Params, State, Steps, Updates
from .._objective.objective import as_arrays, Context
from .._schedule.base import AbstractSchedule, as_schedule
from .._transformation.base import AbstractTransformation, check_state, check_transformation
from .._transformation.conditional import apply_when
from .._transformation.leafwise import Rule, run
from .._transformation.nesting import AbstractConstrained, check_nesting, Requirement


class ShouldSkipUpdateFunction(Protocol):
    """Tells [`eqopt.MultiSteps`][] whether to drop a mini-batch."""

    def __call__(
        self, updates: Updates, gradient_step: Count, params: Params | None, /
    ) -> tuple[bool | Bool[Array, ""], PyTree]:
        """Returns whether to drop the mini-batch, and arrays to keep in the state's `skip_state`.

        **Arguments:**

        - `updates`: the updates of the mini-batch.
        - `gradient_step`: how often the parameters have been moved, int32 of shape `()`.
        - `params`: the parameters, or `None` if the user gave none.
        """
        ...


def skip_not_finite(
    updates: Updates, gradient_step: Count, params: Params | None
) -> tuple[Bool[Array, ""], dict[str, Array]]:
    """Drops a mini-batch whose gradient holds a NaN or an infinity.

    It keeps `should_skip` and `num_not_finite`, the number of such entries.

    **Arguments:**

    - `updates`: the updates of the mini-batch.
    - `gradient_step`: how often the parameters have been moved; not used.
    - `params`: the parameters; not used.
    """
    bad = [jnp.sum(~jnp.isfinite(x), dtype=jnp.int32) for x in jax.tree.leaves(updates)]
    num_not_finite = jnp.sum(jnp.stack(bad), dtype=jnp.int32) if bad else zero_count()
    should_skip = num_not_finite > 0
    return should_skip, {"should_skip": should_skip, "num_not_finite": num_not_finite}


def skip_large_updates(
    updates: Updates, gradient_step: Count, params: Params | None, max_squared_norm: object
) -> tuple[Bool[Array, ""], dict[str, Array]]:
    r"""Drops a mini-batch whose gradient is too large, $|g|^2 \ge c$, or not finite.

    It keeps `should_skip` and `norm_squared`. Pass it to [`eqopt.MultiSteps`][] as
    `eqx.Partial(eqopt.skip_large_updates, max_squared_norm=jnp.array(42.0))`; a Python number works
    too, but is a constant of the program.

    **Arguments:**

    - `updates`: the updates of the mini-batch.
    - `gradient_step`: how often the parameters have been moved; not used.
    - `params`: the parameters; not used.
    - `max_squared_norm`: the limit $c$ of the squared 2-norm of all leaves together.
    """
    norm_squared = inner(updates, updates)
    # Not `norm_squared >= c`, which is false for a NaN.
    should_skip = ~(norm_squared < jnp.asarray(max_squared_norm, norm_squared.dtype))
    return should_skip, {"should_skip": should_skip, "norm_squared": norm_squared}


@checks.typed
def _accumulate(
    use_grad_mean: bool,
    update: Inexact[Array, "*shape"],
    acc: Inexact[Array, "*shape"],
    mini_step: Float[Array, ""],
    drops: Float[Array, ""],
    closes: Float[Array, ""],
) -> tuple[Inexact[Array, "*shape"], Inexact[Array, "*shape"]]:
    if use_grad_mean:
        # Welford's recurrence: always a mean, which cannot overflow as a sum can.
        one = jnp.ones_like(mini_step)
        mean = plus(acc, divide(minus(update, acc), plus(mini_step, one)))
        new = jnp.where(mini_step == 0, update, mean)
    else:
        new = plus(acc, update)
    new = jnp.where(drops > 0, acc, new)
    return new, jnp.where(closes > 0, jnp.zeros_like(new), new)


def _every_k(value: Any) -> Steps | AbstractSchedule:
    if isinstance(value, AbstractSchedule) or callable(value):
        return as_schedule("every_k_schedule", value)
    return steps("every_k_schedule", at_least=1)(value)


class MultiStepsState(eqx.Module, Generic[State]):
    """The state of [`eqopt.MultiSteps`][].

    **Arguments:**

    - `mini_step`: the number of mini-batches in the present window, int32 of shape `()`.
    - `gradient_step`: how often the parameters have been moved, int32 of shape `()`.
    - `inner_opt_state`: the state of the inner optimizer.
    - `acc_grads`: the mean, or the sum, of the window's gradients, like the parameters.
    - `skip_state`: the last arrays from `should_skip_update_fn`, zeros at first; `()` without one.
    - `updated`: whether the last call moved the parameters, a boolean of shape `()`.
    - `acc_value`: the mean, or the sum, of the window's values of the objective, of shape `()`; 0
        if none was given.
    """

    mini_step: Count
    gradient_step: Count
    inner_opt_state: State
    acc_grads: PyTree
    skip_state: PyTree
    updated: Bool[Array, ""]
    acc_value: Float[Array, ""]


class MultiSteps(AbstractConstrained[MultiStepsState[State]], Generic[State]):
    r"""Collects the gradients of $k$ mini-batches (a window), and then takes one step.

    $$\bar g = \frac 1 k \sum_{i=1}^k g_i \quad\text{or}\quad \sum_{i=1}^k g_i$$

    is the input of the inner optimizer, in the dtype of the accumulator and not rounded. The inner
    optimizer is computed once per window; the updates of the other calls are zero.

    If a gradient is not finite, its whole window is skipped by default: neither the parameters nor
    the inner state change. With [`eqopt.skip_not_finite`][] only the mini-batch is dropped.

    !!! note
        The inner optimizer gets the mean (or the sum) of the window's values as `value`. It gets
        the other arguments of the call that closes the window.

    **Arguments:**

    - `opt`: the inner optimizer.
    - `every_k_schedule`: the number $k$ of mini-batches, at least 1; or a schedule, or a function,
        of the number of steps taken (`gradient_step`), rounded to a whole number.
    - `use_grad_mean`: whether to take the mean, not the sum.
    - `should_skip_update_fn`: whether to drop a mini-batch: [`eqopt.skip_not_finite`][],
        [`eqopt.skip_large_updates`][], or any [`eqopt.options.ShouldSkipUpdateFunction`][]; `None`
        drops none.
    - `accumulator_dtype`: the dtype in which the gradients are collected; `None` is the
        parameter's, and float32 for half precision.

    Raises a `TypeError` if `should_skip_update_fn` does not return a boolean and a tree of arrays.
    """

    opt: AbstractTransformation[State]
    every_k_schedule: Steps | AbstractSchedule = eqx.field(converter=_every_k)
    use_grad_mean: bool = eqx.field(converter=flag("use_grad_mean"), static=True, default=True)
    should_skip_update_fn: ShouldSkipUpdateFunction | None = None
    accumulator_dtype: np.dtype | None = eqx.field(
        converter=to_dtype("accumulator_dtype"), static=True, default=None
    )

    def __check_init__(self) -> None:
        check_transformation("opt", self.opt)
        why = "`value_fn` is the last mini-batch's, and the gradient the mean of all"
        check_nesting(self, self.opt, {Requirement.OBJECTIVE: why})
        fn = self.should_skip_update_fn
        if fn is not None and (not callable(fn) or isinstance(fn, type)):
            raise TypeError(f"`should_skip_update_fn` must be a function or None; got {fn!r}")

    def requirements(self) -> frozenset[Requirement]:
        return frozenset({Requirement.REST})

    def init_state(self, params: Params, context: Context) -> MultiStepsState[State]:
        # From shapes only: the function may return a parameter itself, which must not be shared.
        skip_state = jax.eval_shape(lambda p: self._skips(p, zero_count(), p)[1], params)
        return MultiStepsState(
            mini_step=zero_count(),
            gradient_step=zero_count(),
            inner_opt_state=self.opt.init_state(params, context),
            acc_grads=zeros_like(params, self.accumulator_dtype),
            skip_state=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), skip_state),
            updated=jnp.zeros((), bool),
            acc_value=jnp.zeros((), float_dtype()),
        )

    def transform(
        self,
        updates: Updates,
        state: MultiStepsState[State],
        params: Params | None,
        context: Context,
    ) -> tuple[Updates, MultiStepsState[State]]:
        check_state(self.opt, state.inner_opt_state, "state.inner_opt_state")
        # A negative number asks for a flush: see there.
        flushes = state.mini_step < 0
        mini_step = jnp.where(flushes, ~state.mini_step, state.mini_step)
        skips, skip_state = self._skips(updates, state.gradient_step, params)
        if jax.tree.structure(skip_state) != jax.tree.structure(state.skip_state):
            raise checks.structure_error(
                skip_state, state.skip_state, "skip_state", "state.skip_state"
            )
        drops = flushes | skips
        taken = jnp.where(drops, mini_step, increment(mini_step))
        closes = jnp.where(flushes, mini_step > 0, ~skips & (taken >= self._k(state.gradient_step)))

        new = MultiStepsState(
            mini_step=jnp.where(closes, 0, taken),
            gradient_step=state.gradient_step,
            inner_opt_state=state.inner_opt_state,
            acc_grads=state.acc_grads,
            skip_state=jax.tree.map(
                lambda x, old: jnp.where(flushes, old, x.astype(old.dtype)),
                skip_state,
                state.skip_state,
            ),
            updated=state.updated,
            acc_value=state.acc_value,
        )
        scalars, options = (mini_step, drops, closes), (self.use_grad_mean,)
        rule = Rule(_accumulate, new, trees=("acc_grads",), scalars=scalars, options=options)
        collected, (new,) = run((rule,), updates, params)
        if context.value is not None:
            context, acc_value = self._with_mean_value(context, state, mini_step, drops)
            new = dataclasses.replace(new, acc_value=jnp.where(closes, 0, acc_value))
        emits = closes & all_finite(collected)
        updates, inner_opt_state = apply_when(
            emits, self.opt, collected, state.inner_opt_state, params, context
        )
        gradient_step = jnp.where(emits, increment(state.gradient_step), state.gradient_step)
        return updates, dataclasses.replace(
            new, gradient_step=gradient_step, inner_opt_state=inner_opt_state, updated=emits
        )

    def has_updated(self, state: MultiStepsState[Any]) -> Bool[Array, ""]:
        """Returns whether the call that returned this state moved the parameters.

        **Arguments:**

        - `state`: the state from `init`, `update` or `flush`.
        """
        check_state(self, state, "state")
        return state.updated

    def flush(
        self,
        state: MultiStepsState[State],
        params: PyTree = None,
        *,
        value: object = None,
        grad: PyTree = None,
        value_fn: Function | None = None,
        key: object = None,
        **extra: object,
    ) -> tuple[PyTree, MultiStepsState[State]]:
        """Closes the window early, for example when the data end before the last window is full.

        The step is taken with the mean, or the sum, of the gradients in the window. If there are
        none, the updates are zero and the state stays as it is.

        **Arguments:**

        - `state`: what the last `update` returned.
        - `params`, `grad`, `value_fn`, `key`, `**extra`: as in `update`.
        - `value`: any number, if `update` was given values; their mean is used.

        **Returns:**

        The updates, for every parameter, and the new state.
        """
        check_state(self, state, "state")
        # Uses the compiled program of `update`: a negative number of mini-steps tells it to close
        # the window without a gradient, so any tree of the right kind may be passed.
        asked = dataclasses.replace(state, mini_step=~state.mini_step)
        unused = state.acc_grads if params is None else eqx.filter(params, checks.is_inexact)
        return self.update(
            unused, asked, params, value=value, grad=grad, value_fn=value_fn, key=key, **extra
        )

    def _with_mean_value(
        self, context: Context, state: MultiStepsState[Any], mini_step: Count, drops: Array
    ) -> tuple[Context, Float[Array, ""]]:
        """The context with the value of the whole window, which matches the gradient."""
        value = jnp.asarray(context.value)
        new, _ = _accumulate(
            self.use_grad_mean,
            value.astype(float_dtype()),
            state.acc_value,
            *(jnp.asarray(x, float_dtype()) for x in (mini_step, drops, False)),
        )
        return dataclasses.replace(context, value=new.astype(value.dtype)), new

    def _k(self, gradient_step: Count) -> Count:
        if not isinstance(self.every_k_schedule, AbstractSchedule):
            return jnp.asarray(self.every_k_schedule)
        # A window has at least one mini-batch: the first mini-batch closes a smaller one.
        return jnp.round(self.every_k_schedule(gradient_step)).astype(np.int32)

    def _skips(
        self, updates: Updates, gradient_step: Count, params: Params | None
    ) -> tuple[Bool[Array, ""], PyTree]:
        if self.should_skip_update_fn is None:
            return jnp.asarray(False), ()
        name = "`should_skip_update_fn`"
        answer: Any = checks.call_traced(
            name, self.should_skip_update_fn, updates, gradient_step, params
        )
        # A boolean alone is accepted too.
        pair: Any = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, ())
        skips, kept = pair
        if isinstance(skips, bool):
            skips = jnp.asarray(skips)
        if not checks.is_array(skips) or skips.dtype != bool or skips.shape != ():
            raise TypeError(
                "`should_skip_update_fn` must return one boolean, and a tree of arrays; it "
                f"returned {checks.describe(skips)}"
            )
        return jnp.asarray(skips), as_arrays(kept)
