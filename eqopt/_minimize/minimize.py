"""Minimizing a deterministic objective, to convergence, in one compiled loop."""

from typing import Any, Generic, TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import wadler_lindig as wl
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from .._base import checks
from .._base.compat import Tracer
from .._base.converters import canonicalize, module_pdoc, non_negative, optional, steps
from .._base.models import split
from .._base.progress import AbstractProgress, as_progress, NoProgress
from .._base.types import Aux, Function, Model, State, Tree
from .._jit import compiled_call, partition
from .._jit.function import key_function
from .._objective.objective import Objective
from .._transformation.base import AbstractTransformation, check_transformation
from .bounds import as_arrays, BoundsOfLeaves, check_can_bound, crossing, Held, of_leaves
from .composite import own_state, penalty_of
from .convergence import CONVERGED, largest, MinimizeResult, Tolerances
from .implicit import attach, attach_composite
from .loop import descend
from .solver import check_settings, is_solver, solve

if TYPE_CHECKING:
    import optimistix


class Solution(eqx.Module, Generic[Model, State, Aux]):
    """The result of [`eqopt.minimize`][].

    **Arguments:**

    - `params`: the model with the best parameters found; with bounds they lie between them, also if
        the first ones did not.
    - `value`, `grad`, `aux`: the objective there. With a penalty, as in [`eqopt.FISTA`][], `value`
        is the sum of both, and `grad` the gradient of the objective alone.
    - `state`: the optimizer's state, to continue from.
    - `num_steps`, `num_evals`: how many steps were taken, and how many times the objective was
        evaluated with its gradient. A step of a solver of optimistix counts as one evaluation;
        its `NelderMead` makes more.
    - `result`: an [`eqopt.MinimizeResult`][], with a message.
    - `stats`: `"grad_norm"`, the largest magnitude in `grad`, with bounds in the projected
        gradient; with `history`, also `"values"`, the objective's value at the start and after each
        step, infinite after the last step.
    """

    params: Model
    value: Float[Array, ""]
    grad: PyTree
    aux: Aux
    state: State
    num_steps: Int[Array, ""]
    num_evals: Int[Array, ""]
    result: Any
    stats: dict[str, Array]

    def __pdoc__(self, **kwargs: object) -> wl.AbstractDoc:
        return module_pdoc(self, **kwargs)


def minimize(
    fn: Function,
    optimizer: "AbstractTransformation[State] | optimistix.AbstractMinimiser",
    params: Model,
    args: tuple[object, ...] = (),
    *,
    has_aux: bool = False,
    max_steps: int = 3000,
    max_evals: int | None = None,
    gtol: float | None = None,
    ftol: float = 0.0,
    xtol: float = 0.0,
    throw: bool = True,
    progress: bool | AbstractProgress = False,
    history: bool = False,
    bounds: Any = None,
) -> Solution[Model, State, Any]:
    r"""Minimizes a deterministic objective until it has converged, in one compiled loop.

    By default it ends where steps promise less than rounding errors. So the end does not depend on
    the units of the objective or of a parameter; nor do the iterates of quasi-Newton methods and
    conjugate gradients depend on those of the objective. If the optimizer ends in a line search,
    its trials and the outer steps advance together: under `vmap` no lane waits for the search of
    another lane.

    `params`, `value` and `aux` of the solution are differentiable, any number of times, with
    respect to everything that the objective reads: `args`, leaves of `params` that are not trained,
    and arrays in the closure of `fn`, in its defaults, in objects, containers and globals. The
    derivative is the minimizer's, by the implicit function theorem; the steps are not
    differentiated. With respect to the first parameters and the optimizer it is zero, except with
    respect to the numbers of a penalty.

    **Arguments:**

    - `fn`: the objective, called `fn(params, *args)`; it returns a real number, or with `has_aux`
        a pair of it and anything made of arrays and numbers.
    - `optimizer`: any transformation, with or without a line search, such as [`eqopt.LBFGS`][]; or
        a solver of optimistix, such as `optimistix.BFGS`, which ends by its own `rtol` and `atol`.
    - `params`: the model to begin with; its inexact arrays are changed.
    - `args`: the other arguments of `fn`.
    - `has_aux`: whether `fn` returns `(value, aux)`.
    - `max_steps`: the largest number of steps; at least 0.
    - `max_evals`: about the largest number of evaluations of the objective; `None` sets no limit.
    - `gtol`: the largest magnitude allowed in the gradient, in the objective's units. `None` is
        the test without units: three steps in a row each promise a decrease $|g^T s| / 2$ of at
        most $\epsilon\, (|f| + \sum_i |g_i| \max |x_i|)$, where the maximum is over all points so
        far, and either the sum is at most $\sqrt{\epsilon}\, |f|$, or $|f|$ is at most
        $10\, \epsilon$ times the sum. Two failed searches in a row serve instead of the three
        steps. Without a line search, the gradient must also be at most $\sqrt{\epsilon}$ times
        the steepest so far.
    - `ftol`: also stop when a step decreases the objective by at most `ftol` times the larger of 1
        and the objective's magnitude; 0 turns this off.
    - `xtol`: also stop when the 2-norm of a step is at most `xtol` times the larger of 1 and the
        parameters' norm; 0 turns this off.
    - `throw`: whether to raise an error if it has not converged. Inside `jit` the error is raised
        at run time.
    - `progress`: whether to show a progress bar, or an [`eqopt.writing.AbstractProgress`][].
    - `history`: whether to keep the objective's value after each step, in `stats["values"]`.
    - `bounds`: `None`, or a pair `(lower, upper)` that the parameters stay between, with an
        optimizer that keeps bounds, such as [`eqopt.LBFGSB`][]. Each is `None` for no bound, a
        number, a tree like the parameters, of numbers, arrays and `None`, or a prefix of one.
        Infinite numbers are no bounds, and equal ones fix a parameter. For bounds on some leaves,
        a dictionary of pairs by selector, where the first that chooses a leaf decides, and `...`
        stands for all others: `{eqopt.ByPath("**.rate"): (0, None)}`.

    With bounds, every point at which the objective is evaluated lies between them, to the last bit:
    they are rounded inward to each parameter's dtype. First parameters that do not are projected.
    `gtol` then limits the projected gradient $x - P(x - g)$, and a solution is differentiable with
    respect to the bounds too: a parameter on its bound moves with it.

    **Returns:**

    An [`eqopt.Solution`][]. If the optimizer has no line search, its parameters are the best of
    all points; the last ones, if these are as good up to rounding.

    **Raises:**

    A `RuntimeError` with the reason and what to try, if it has not converged and `throw`; a
    `TypeError` or `ValueError` that names the argument at fault. Traced bounds that cross, or are
    NaN, give the result `MinimizeResult.no_room`.
    """
    if is_solver(optimizer):
        check_settings(
            gtol=gtol is not None, ftol=ftol, xtol=xtol, progress=progress, history=history
        )
    else:
        check_transformation("optimizer", optimizer)
    if not isinstance(args, tuple):
        raise TypeError(f"`args` must be a tuple; got {checks.describe(args)}")
    limit = np.iinfo(np.int32).max if max_evals is None else max_evals
    tolerances = Tolerances(
        gtol=optional(non_negative("gtol"))(gtol),
        ftol=non_negative("ftol")(ftol),
        xtol=non_negative("xtol")(xtol),
        max_steps=steps("max_steps")(max_steps),
        max_evals=steps("max_evals", at_least=1)(limit),
    )
    bar = as_progress(progress)
    between = None
    if bounds is not None:
        check_can_bound(optimizer)
        between = of_leaves(bounds, split(params, "params")[0])
    keyed = key_function(fn)  # which does not keep `fn` alive
    shown = None if isinstance(bar, NoProgress) else _Show(bar)

    def run(*, keep: bool) -> Solution[Model, State, Any]:
        return compiled_call.call_objective(
            _minimize,
            keyed,
            canonicalize(optimizer),
            params,
            partition.mark_numbers_dynamic(args),
            has_aux,
            tolerances,
            shown,
            int(max_steps) if history else None,
            between,
            keep,
            reuse=keep,
        )

    bar.start(None)
    try:
        try:
            solution = run(keep=shown is None and keyed.is_reusable())
        except compiled_call.CapturedTracerError:
            solution = None
        # Not within `except`: an error in the objective would be reported together with this one.
        if solution is None:
            solution = run(keep=False)
        if shown is not None:
            jax.effects_barrier()
    finally:
        bar.close()
    return _checked(solution) if throw else solution


class _Show:
    """Shows a step on a progress bar; called from within the compiled loop."""

    def __init__(self, bar: AbstractProgress) -> None:
        self.bar = bar

    def __call__(self, show: Any, num_steps: Any, value: Any, grad_norm: Any) -> None:
        if show:
            self.bar.update(int(num_steps), f"value {value:.6g}  gradient {grad_norm:.2e}")


def _checked(solution: Solution[Any, Any, Any]) -> Solution[Any, Any, Any]:
    """Raises if the solution has not converged; at run time if it is traced."""
    result = solution.result
    converged = [result == item for item in CONVERGED]
    failed = ~jnp.any(jnp.stack(converged), axis=0)
    if isinstance(failed, Tracer):
        # Without PRNG keys, which the callback that raises cannot take.
        arrays, rest = eqx.partition(solution, checks.is_array)
        return eqx.combine(result.error_if(arrays, failed), rest)
    if not failed:
        return solution
    raise RuntimeError(
        f"`minimize` has not converged: {MinimizeResult[result]}\n"
        f"It ended after {solution.num_steps} steps with the value {solution.value:.6g}. With "
        "`throw=False` it returns what it has reached"
    )


def _constant(tree: Tree) -> Tree:
    return jax.tree.map(lambda x: lax.stop_gradient(x) if isinstance(x, checks.ARRAYS) else x, tree)


def _minimize(
    fn: Function,
    optimizer: AbstractTransformation[State],
    model: Model,
    args: tuple[object, ...],
    has_aux: bool,
    tolerances: Tolerances,
    show: object,
    history: int | None,
    between: BoundsOfLeaves | None,
    keep: bool,
) -> Solution[Model, State, Any]:
    trained, rest = split(model, "params")
    if not jax.tree.leaves(trained):
        raise ValueError("`params` has no inexact array, so there is nothing to minimize over")
    # Traced, so that every array that `fn` reads is a leaf: also one in a dictionary, an object, a
    # global or a jitted function, which is a tracer under `grad` or `vmap`.
    objective, _ = Objective(fn=fn, rest=rest, args=args, kwargs={}, has_aux=has_aux).traced(
        trained
    )
    if not compiled_call.is_inside_trace():
        if keep and compiled_call.captures(objective, trained):
            raise compiled_call.CapturedTracerError
    evaluate: Any = objective.replay
    bounds, fixed, start, crossed = None, None, _constant(trained), None
    if between is not None:
        bounds, crossed = as_arrays(between, trained), crossing(between)
        fixed = _constant(bounds)
        start = fixed.project(start)
        # There is nothing to search between them.
        tolerances = tolerances._replace(max_steps=jnp.where(crossed, 0, tolerances.max_steps))
    task = _constant(objective), _constant(optimizer), start, tolerances
    end = solve(*task) if is_solver(optimizer) else descend(*task, show, history, fixed)
    found, result, grad = end.evaluation, end.result, end.evaluation.grad
    if bounds is not None and fixed is not None and crossed is not None:
        evaluate = Held(evaluate, bounds, end.params)
        grad = fixed.residual(end.params, grad)
        result = MinimizeResult.where(crossed, MinimizeResult.no_room, result)
    minimizer, proximal = (end.params, found.value, found.aux), own_state(end.state)
    if proximal is None:
        params, value, aux = attach(minimizer, evaluate)
    else:
        penalty, step = penalty_of(optimizer), proximal.search.learning_rate
        params, value, aux = attach_composite(minimizer, evaluate, penalty, step)
    if isinstance(evaluate, Held):
        params = evaluate.place(params)
    stats = {"grad_norm": largest(grad)}
    if end.values is not None:
        stats["values"] = end.values
    return Solution(
        params=eqx.combine(params, rest),
        value=value,
        grad=found.grad,
        aux=aux,
        state=end.state,
        num_steps=end.num_steps,
        num_evals=end.num_evals,
        result=result,
        stats=stats,
    )
