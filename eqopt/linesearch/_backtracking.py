"""Backtracking: shorter and shorter steps, until the objective decreases enough."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._base.converters import decay_factor, flag, non_negative, positive, real, steps
from .._base.types import Scalar, Steps
from ._base import AbstractLinesearch, ACCEPT, Answer, FAIL, Origin, Trial, TRY


class _Backtracking(eqx.Module):
    origin: Origin
    num_trials: Int[Array, ""]


class ScaleByBacktrackingLinesearch(AbstractLinesearch[_Backtracking]):
    r"""Scales the updates by a step, shortened until the objective decreases enough.

    With $\phi(\alpha)$ the objective at `params + alpha * updates`, the step $\alpha$ is accepted
    if

    $$\phi(\alpha) \le (1 + \rho)\, \phi(0) + c\, \alpha\, \phi'(0) + \epsilon$$

    The first step tried is `increase_factor` times the last one taken, but at most
    `max_learning_rate`; each next one is `decrease_factor` times the one before.

    If no step is accepted, the updates are zero, and `state.info.result` says why. The next search
    begins at the last step tried.

    **Arguments:**

    - `max_backtracking_steps`: how many times the step may be decreased; at least 0.
    - `slope_rtol`: the required fraction $c$ of the decrease predicted by the slope; in $[0, 1)$.
    - `decrease_factor`: the factor of the step while it is too long; in $(0, 1)$.
    - `increase_factor`: the ratio of the first step tried to the last step taken; at least 1. With
        infinity, every search begins at `max_learning_rate`.
    - `max_learning_rate`: the longest step; positive.
    - `atol`, `rtol`: the increases $\epsilon$, absolute, and $\rho$, relative, that are tolerated.
    - `store_grad`: whether trials are evaluated with their gradients, so that the next step reads
        value and gradient from the state and does not evaluate them.
    - `verbose`: whether each search is printed.

    Its `update` needs `params`, `value`, `grad` and `value_fn`; pass the other arguments of
    `value_fn` to `update` by keyword. `step` passes all of these.

    ??? cite "Reference"

        Armijo, *Minimization of functions having Lipschitz continuous first partial derivatives*,
        Pacific Journal of Mathematics 16, 1966; Nocedal and Wright, *Numerical Optimization*, 2nd
        edition, 2006, algorithm 3.1.
    """

    max_backtracking_steps: Steps = eqx.field(converter=steps("max_backtracking_steps"))
    slope_rtol: Scalar = eqx.field(converter=decay_factor("slope_rtol"), default=1e-4)
    decrease_factor: Scalar = eqx.field(
        converter=real("decrease_factor", above=0, below=1), default=0.8
    )
    increase_factor: Scalar = eqx.field(
        converter=real("increase_factor", at_least=1, finite=False), default=1.5
    )
    max_learning_rate: Scalar = eqx.field(converter=positive("max_learning_rate"), default=1.0)
    atol: Scalar = eqx.field(converter=non_negative("atol"), default=0.0)
    rtol: Scalar = eqx.field(converter=non_negative("rtol"), default=0.0)
    store_grad: bool = eqx.field(converter=flag("store_grad"), static=True, default=False)
    verbose: bool = eqx.field(converter=flag("verbose"), static=True, default=False)

    @property
    def keeps_grad(self) -> bool:
        return self.store_grad

    @property
    def may_return_to_best(self) -> bool:
        return False

    @property
    def is_verbose(self) -> bool:
        return self.verbose

    def first_step(self, learning_rate: Float[Array, ""]) -> Float[Array, ""]:
        longer = jnp.asarray(self.increase_factor) * learning_rate
        return jnp.minimum(longer, jnp.asarray(self.max_learning_rate))

    def start(self, origin: Origin) -> _Backtracking:
        return _Backtracking(origin, jnp.zeros((), jnp.int32))

    def tell(self, search: _Backtracking, trial: Trial) -> tuple[_Backtracking, Answer]:
        origin, step = search.origin, trial.step
        # Not `value - bound`: if the bound is rounded to the first value, steps that change nothing
        # would pass.
        excess = trial.value - (1 + jnp.asarray(self.rtol)) * origin.value
        error = jnp.maximum(excess - jnp.asarray(self.slope_rtol) * step * origin.slope, 0)
        error = jnp.where(jnp.isfinite(trial.value), error, jnp.inf)
        num_trials = search.num_trials + 1
        accepted = error <= jnp.asarray(self.atol)
        last = num_trials > jnp.asarray(self.max_backtracking_steps)
        verdict = jnp.where(accepted, ACCEPT, jnp.where(last, FAIL, TRY))
        shorter = jnp.asarray(self.decrease_factor) * step
        # A step so small that it could hardly be increased again is not remembered.
        restart = jnp.where(shorter > origin.eps, shorter, 1)
        fine = trial.value <= origin.value
        never = jnp.asarray(False)
        answer = Answer(
            verdict,
            jnp.where(accepted, step, jnp.where(last, restart, shorter)),
            keep=never,
            not_worse=fine,
            decrease_error=error,
            curvature_error=jnp.zeros_like(error),
        )
        return _Backtracking(origin, num_trials), answer
