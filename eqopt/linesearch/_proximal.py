"""Proximal gradient steps, whose length is found by backtracking.

In: parameters, the gradient of the smooth objective, a penalty. Out: the updates to the next point,
and the objective's evaluation there. A step goes along a curve, not along a direction, so it is not
a machine over scalars like the other searches.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, PyTree

from .._base import checks
from .._base.converters import flag, float_dtype, real, steps
from .._base.trees import (
    add_updates,
    conj,
    fill_missing,
    increment,
    inner,
    mask_like,
    select,
    zero_count,
    zeros_exactly_like,
    zeros_like,
)
from .._base.types import Count, Params, Scalar, Steps, Updates
from .._objective.cache import check_aux_fits, empty_cache, filled, LinesearchState
from .._objective.fingerprint import same_bits
from .._objective.objective import Context, Evaluation, FullProblem, require_params
from .._transformation.nesting import AbstractConstrained, Requirement
from ..projections._base import AbstractPenalty
from ._base import FAIL, LinesearchInfo, LinesearchResult, scaled, TRY
from ._proximal_search import change_of, ProximalLine, ProximalSearch, searching, Start


class ScaleByProximalLinesearchState(eqx.Module):
    r"""The state of [`eqopt.linesearch.ScaleByProximalLinesearch`][].

    **Arguments:**

    - `count`: the number of steps taken.
    - `previous`: the parameters before the last step; `None` without acceleration.
    - `momentum`: the number $\theta$ of the acceleration; 1 after a restart.
    - `decrease`: the decrease $\|d\|^2 / (2t)$ that the last step promised.
    - `search`: the step $t$, and the objective at the point reached.
    """

    count: Count
    previous: PyTree
    momentum: Float[Array, ""]
    decrease: Float[Array, ""]
    search: LinesearchState[LinesearchInfo]


class ScaleByProximalLinesearch(AbstractConstrained[ScaleByProximalLinesearchState]):
    r"""Replaces the updates by a proximal gradient step, for the sum of an objective $f$ and a
    penalty $h$:

    $$u \leftarrow \operatorname{prox}_{t h}(y - t \nabla f(y)) - x$$

    Without acceleration, $y$ is the point $x$. With it,

    $$y = x + \frac{\theta_{k-1} - 1}{\theta_k} (x - x_{k-1}), \qquad
    \theta_k = \frac{1 + \sqrt{1 + 4 \theta_{k-1}^2}}{2},$$

    and $\theta$ is 1 again after a step $x_+$ with $\langle y - x_+, x_+ - x \rangle > 0$, which
    shows that the momentum has led uphill.

    With $d = x_+ - y$, a step $t$ is accepted if

    $$f(x_+) \le f(y) + \langle \nabla f(y), d \rangle + \frac{\|d\|^2}{2t}.$$

    If rounding hides the difference of the values, it is accepted if $\langle \nabla f(x_+) -
    \nabla f(y), d \rangle \le \|d\|^2 / t$, which is the same for a quadratic objective. Otherwise
    the next $t$ is the inverse of the curvature just seen, and at most `decrease_factor` times the
    last. The first step tried is at most $\max(1, \|x\|/100)$ long; each search begins at
    `increase_factor` times the last step.

    It evaluates the objective once for each step tried, and with acceleration once more, at $y$. It
    takes its gradient from `grad`: links before it have no effect.

    **Arguments:**

    - `penalty`: the penalty $h$, or a set: [`eqopt.projections.L1`][],
        [`eqopt.projections.NonNegative`][] or another [`eqopt.projections.AbstractPenalty`][].
    - `accelerated`: whether it is accelerated. Static.
    - `max_backtracking_steps`: how many times the step may be decreased; at least 0.
    - `decrease_factor`: the largest factor of the step while it is too long; in $(0, 1)$.
    - `increase_factor`: the ratio of the first step tried to the last step; at least 1.

    Its `update` needs `params`, `value`, `grad` and `value_fn`, as that of line searches. If no
    step is accepted, the updates are zero, and `state.search.info.result` says why.

    Raises a `TypeError` if `penalty` is not such a Module.

    ??? cite "Reference"

        Beck and Teboulle, *A fast iterative shrinkage-thresholding algorithm for linear inverse
        problems*, SIAM Journal on Imaging Sciences 2, 2009, section 4, with backtracking;
        O'Donoghue and Candès, *Adaptive restart for accelerated gradient schemes*, Foundations of
        Computational Mathematics 15, 2015, equation 13.
    """

    penalty: AbstractPenalty
    accelerated: bool = eqx.field(converter=flag("accelerated"), static=True, default=False)
    max_backtracking_steps: Steps = eqx.field(converter=steps("max_backtracking_steps"), default=50)
    decrease_factor: Scalar = eqx.field(
        converter=real("decrease_factor", above=0, below=1), default=0.5
    )
    increase_factor: Scalar = eqx.field(converter=real("increase_factor", at_least=1), default=1.1)

    def __check_init__(self) -> None:
        check_penalty(self.penalty)

    def requirements(self) -> frozenset[Requirement]:
        return frozenset(
            {
                Requirement.MOVES,
                Requirement.EXACT,
                Requirement.LANDS,
                Requirement.OBJECTIVE,
                Requirement.STEP,
            }
        )

    def init_state(self, params: Params, context: Context) -> ScaleByProximalLinesearchState:
        whole, dtype = context.whole or FullProblem(params, context.value_fn), float_dtype()
        info = LinesearchInfo(
            jnp.zeros((), np.int32),
            jnp.full((), np.inf, dtype),
            jnp.full((), np.inf, dtype),
            jax.tree.map(jnp.asarray, LinesearchResult.successful),
        )
        return ScaleByProximalLinesearchState(
            count=zero_count(),
            previous=zeros_like(params) if self.accelerated else None,
            momentum=jnp.ones((), dtype),
            decrease=jnp.full((), np.inf, dtype),
            search=LinesearchState(
                jnp.ones((), dtype), jnp.zeros((), dtype), empty_cache(whole), info
            ),
        )

    def transform(
        self,
        updates: Updates,
        state: ScaleByProximalLinesearchState,
        params: Params | None,
        context: Context,
    ) -> tuple[Updates, ScaleByProximalLinesearchState]:
        params = mask_like(updates, require_params(params, self, context))
        value, grad = context.require("value", self), context.require("grad", self)
        whole = context.whole or FullProblem(params, context.value_fn)
        objective = whole.objective or context.require("value_fn", self)
        cache: Any = state.search.cache
        value = jnp.asarray(value)
        search = ProximalSearch(
            penalty=self.penalty,
            shorter=jnp.asarray(self.decrease_factor),
            limit=jnp.asarray(self.max_backtracking_steps),
            params=params,
            eps=float(jnp.finfo(value.dtype).eps),
        )
        here = Start(value.astype(float_dtype()), mask_like(updates, grad), _no_move(params))
        ahead, going, momentum = self._ahead(state, params, whole)
        aux = cache.evaluation.aux
        line = ProximalLine(
            verdict=jnp.where(here.is_finite(), TRY, FAIL),
            is_start=going,
            step=self._first_step(state, params, here.grad),
            updates=ahead,
            start=Start(here.value, here.grad, ahead),
            trial=Evaluation(here.value, zeros_exactly_like(whole.params), aux),
            decrease=jnp.full((), np.inf, float_dtype()),
            curvature=jnp.zeros((), float_dtype()),
            num_evals=jnp.zeros((), np.int32),
            num_trials=jnp.zeros((), np.int32),
        )
        line = select(going, line, search.begun(line, here))

        def body(line: ProximalLine) -> ProximalLine:
            found = objective.evaluate(add_updates(whole.params, line.updates))
            check_aux_fits(found.aux, cache)
            found = Evaluation(found.value.astype(float_dtype()), found.grad, found.aux)
            start = Start(found.value, mask_like(updates, conj(found.grad)), line.start.ahead)
            begun = search.begun(line, select(start.is_finite(), start, here))
            return select(line.is_start, begun, search.judged(line, found))

        line = lax.while_loop(searching, body, line)
        line = dataclasses.replace(
            line, updates=select(line.verdict == FAIL, _no_move(params), line.updates)
        )
        return line.updates, self._ended(state, params, whole, search, line, momentum)

    def _ahead(
        self, state: ScaleByProximalLinesearchState, params: Params, whole: FullProblem
    ) -> tuple[Updates, Bool[Array, ""], Float[Array, ""]]:
        """The updates to $y$, whether it differs from $x$, and the next momentum."""
        momentum = (1 + jnp.sqrt(1 + 4 * jnp.square(state.momentum))) / 2
        if not self.accelerated:
            return _no_move(params), jnp.asarray(False), momentum
        # Momentum belongs to the point that this search has reached, and to no other.
        cache: Any = state.search.cache
        going = cache.valid & same_bits(whole.params, cache.point) & (state.momentum > 1)
        last = change_of(params, mask_like(params, state.previous))
        ahead = scaled(last, (state.momentum - 1) / momentum, params)
        return select(going, ahead, _no_move(params)), going, momentum

    def _first_step(
        self, state: ScaleByProximalLinesearchState, params: Params, grad: Updates
    ) -> Float[Array, ""]:
        size, length = (jnp.sqrt(inner(x, x)) for x in (grad, params))
        known = (size > 0) & jnp.isfinite(size)
        first = jnp.where(known, jnp.maximum(1, length / 100) / jnp.where(known, size, 1), 1)
        longer = state.search.learning_rate * jnp.asarray(self.increase_factor)
        return jnp.where(state.count == 0, first, longer).astype(float_dtype())

    def _ended(
        self,
        state: ScaleByProximalLinesearchState,
        params: Params,
        whole: FullProblem,
        search: "ProximalSearch",
        line: "ProximalLine",
        momentum: Float[Array, ""],
    ) -> ScaleByProximalLinesearchState:
        """The state after a search."""
        failed = line.verdict == FAIL
        point = add_updates(whole.params, line.updates)
        cache, objective = state.search.cache, whole.objective
        if cache is not None and objective is not None:
            cache = filled(cache, objective, point, line.trial, ~failed)
        result = LinesearchResult.where(
            jnp.isfinite(line.trial.value), LinesearchResult.no_decrease, LinesearchResult.nonfinite
        )
        start = LinesearchResult.where(
            line.num_trials == 0, LinesearchResult.nonfinite_start, result
        )
        info = LinesearchInfo(
            line.num_evals,
            jnp.zeros_like(line.step),
            jnp.maximum(line.curvature * line.step - 1, 0),
            LinesearchResult.where(failed, start, LinesearchResult.successful),
        )
        # The first step is a guess; the curvature along it is known now.
        longer = jnp.clip(1 / line.curvature, line.step, 1e3 * line.step)
        step = jnp.where((state.count == 0) & (line.curvature > 0), longer, line.step)
        step = jnp.where(failed & ~((step > 0) & jnp.isfinite(step)), 1, step)
        size = jnp.where(failed, 0, jnp.abs(line.trial.value))
        previous = None
        if self.accelerated:
            back = change_of(line.start.ahead, line.updates)
            uphill = inner(back, line.updates) > 0
            momentum = jnp.where(uphill | failed, 1, momentum)
            previous = fill_missing(params, state.previous)
        return ScaleByProximalLinesearchState(
            count=increment(state.count),
            previous=previous,
            momentum=momentum,
            decrease=jnp.where(failed, state.decrease, line.decrease),
            search=LinesearchState(step, jnp.maximum(state.search.scale, size), cache, info),
        )


def _no_move(params: Params) -> Updates:
    return zeros_exactly_like(params)


def check_penalty(penalty: object) -> None:
    """Refuses anything but a penalty."""
    if not isinstance(penalty, AbstractPenalty):
        raise TypeError(
            "`penalty` must be an `eqopt.projections.AbstractPenalty`, such as "
            f"`eqopt.projections.L1(0.1)`; got {checks.describe(penalty)}"
        )
