"""eqopt's optimizers in optimistix.

In: an optimizer. Out: a minimiser for `optimistix.minimise`, each step of which is a round of
eqopt's own loop. The way back needs no class: `minimize` takes optimistix's solvers. This file is
loaded when its class is first used, since it cannot do without optimistix.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from .._base import checks
from .._base.arithmetic import cast
from .._base.converters import non_negative
from .._base.types import ScalarLike
from .._minimize.composite import penalty_of
from .._minimize.convergence import CONVERGED, largest, MinimizeResult, Tolerances
from .._minimize.loop import advance, begin, finish, pose
from .._minimize.stationarity import projects
from .._minimize.task import MinimizeCarry, Problem
from .._objective.objective import Objective
from .._transformation.base import AnyTransformation, check_transformation

try:
    import optimistix
except ImportError as e:
    raise ImportError("this needs optimistix: `pip install 'eqopt[optimistix]'`") from e

_NO_LIMIT = np.iinfo(np.int32).max


class _MinimiserState(eqx.Module):
    """Between steps of optimistix's.

    **Arguments:**

    - `carry`: the state of eqopt's loop.
    - `is_small`: whether the last step passed optimistix's test.
    """

    carry: MinimizeCarry
    is_small: Bool[Array, ""]


class EqoptMinimiser(optimistix.AbstractMinimiser[Any, Any, _MinimiserState]):
    r"""An optimizer of eqopt's as a minimiser for `optimistix.minimise`.

    It ends after a step $s$ to a point $x$ that passes optimistix's test,

    $$\left\| \frac{s}{a + r |x|} \right\| < 1 \quad \text{and} \quad
    \left\| \frac{\Delta f}{a + r |f|} \right\| < 1,$$

    or where rounding errors hide any further decrease. A step that moves nothing, such as a failed
    search, does not pass; three failed searches in a row that rounding does not explain have the
    result `nonlinear_divergence`.

    A step of optimistix's evaluates the objective and its gradient once. With a line search at the
    end of the optimizer that is one trial; a line search elsewhere is run whole in one step, and
    products with the Hessian matrix are not counted. So `max_steps` of `optimistix.minimise` is
    about the number of evaluations.

    **Arguments:**

    - `optimizer`: any optimizer, such as [`eqopt.LBFGS`][].
    - `rtol`, `atol`: the relative tolerance $r$ and the absolute one $a$, at least 0.
    - `norm`: the norm, a function of a tree, such as `optimistix.max_norm`, the default.

    The solution's `stats` also hold `"num_evals"` and `"grad_norm"`, the largest magnitude in the
    gradient.

    Raises a `TypeError` if it is not an optimizer, and a `ValueError` for one with a penalty or a
    projection: optimistix differentiates a solution as if its gradient were zero there. It does so
    with respect to parameters that the optimizer leaves as they are, too, as in [`eqopt.Freeze`][].
    No `options` are taken.
    """

    optimizer: AnyTransformation
    rtol: Any = eqx.field(converter=non_negative("rtol"))
    atol: Any = eqx.field(converter=non_negative("atol"))
    norm: Callable[[PyTree], Array] = eqx.field(static=True)

    # Type checkers put the fields that optimistix declares before `optimizer`.
    def __init__(
        self,
        optimizer: AnyTransformation,
        rtol: ScalarLike,
        atol: ScalarLike,
        norm: Callable[[PyTree], Array] = optimistix.max_norm,
    ) -> None:
        self.optimizer = optimizer
        self.rtol = rtol
        self.atol = atol
        self.norm = norm

    def __check_init__(self) -> None:
        check_transformation("optimizer", self.optimizer)
        if penalty_of(self.optimizer) is not None or projects(self.optimizer):
            raise ValueError(
                "optimistix differentiates a solution as if its gradient were zero there, which a "
                "penalty or a projection prevents: use `eqopt.minimize`"
            )

    def init(
        self,
        fn: Callable[..., Any],
        y: PyTree,
        args: PyTree,
        options: dict[str, Any],
        f_struct: PyTree,
        aux_struct: PyTree,
        tags: frozenset[object],
    ) -> _MinimiserState:
        if options:
            raise ValueError(f"`options` must be empty; got {checks.describe(options)}")
        carry = begin(self._task(fn, y, args), y)
        return _MinimiserState(carry, jnp.asarray(False))

    def step(
        self,
        fn: Callable[..., Any],
        y: PyTree,
        args: PyTree,
        options: dict[str, Any],
        state: _MinimiserState,
        tags: frozenset[object],
    ) -> tuple[PyTree, _MinimiserState, PyTree]:
        before = state.carry
        after = advance(self._task(fn, y, args), before)
        moved = (after.num_steps > before.num_steps) & (after.progress.num_held == 0)
        x, value = after.params, after.evaluation.value
        small = self._is_small(jax.tree.map(jnp.subtract, x, before.params), x)
        small &= self._is_small(value - before.evaluation.value, value)
        return x, _MinimiserState(after, moved & small), after.evaluation.aux

    def terminate(
        self,
        fn: Callable[..., Any],
        y: PyTree,
        args: PyTree,
        options: dict[str, Any],
        state: _MinimiserState,
        tags: frozenset[object],
    ) -> tuple[Bool[Array, ""], Any]:
        ended = state.carry.result
        converged = jnp.any(jnp.stack([ended == x for x in CONVERGED]))
        failed = state.carry.done & ~converged & ~state.is_small
        results = optimistix.RESULTS
        result = results.where(failed, results.nonlinear_divergence, results.successful)
        result = results.where(ended == MinimizeResult.nonfinite, results.nonfinite, result)
        return state.is_small | state.carry.done, result

    def postprocess(
        self,
        fn: Callable[..., Any],
        y: PyTree,
        aux: PyTree,
        args: PyTree,
        options: dict[str, Any],
        state: _MinimiserState,
        tags: frozenset[object],
        result: Any,
    ) -> tuple[PyTree, PyTree, dict[str, Any]]:
        end = finish(self._task(fn, y, args), state.carry)
        found = end.evaluation
        stats = {"num_evals": end.num_evals, "grad_norm": largest(found.grad)}
        return end.params, found.aux, stats

    def _task(self, fn: Callable[..., Any], y: PyTree, args: PyTree) -> Problem:
        rest = jax.tree.map(lambda x: None, y)
        objective = Objective(fn=fn, rest=rest, args=(args,), has_aux=True)
        tolerances = Tolerances(
            gtol=0.0, ftol=0.0, xtol=0.0, max_steps=_NO_LIMIT, max_evals=_NO_LIMIT
        )
        return pose(objective, self.optimizer, y, tolerances)

    def _is_small(self, change: PyTree, at: PyTree) -> Bool[Array, ""]:
        def part(c: Array, x: Array) -> Array:
            size = jnp.abs(x)
            return jnp.abs(c) / (cast(self.atol, size.dtype) + cast(self.rtol, size.dtype) * size)

        return self.norm(jax.tree.map(part, change, at)) < 1
