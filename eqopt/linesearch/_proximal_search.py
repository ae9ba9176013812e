"""The search for the length of a proximal step: its trials, and what is made of them."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._base.arithmetic import cast, minus, real_dtype, times, wider
from .._base.trees import add_updates, all_finite, conj, inner, mask_like, narrowed, select
from .._base.types import Params, Updates
from .._base.xla import going_on
from .._objective.objective import AnyEvaluation
from ..projections._base import AbstractPenalty
from ..projections._updates import updates_toward
from ._base import ACCEPT, FAIL, TRY

# Values that differ by less than this number of roundings decide nothing.
_NOISE = 100


class Start(eqx.Module):
    """The point $y$ from which a step goes: the objective there, and the updates to it from $x$."""

    value: Float[Array, ""]
    grad: Updates
    ahead: Updates

    def is_finite(self) -> Bool[Array, ""]:
        return jnp.isfinite(self.value) & all_finite(self.grad)


class ProximalLine(eqx.Module):
    """A search under way.

    **Arguments:**

    - `verdict`, `step`: its last answer.
    - `is_start`: whether the next evaluation is the one at $y$.
    - `updates`: the updates to the point that is evaluated next, from $x$.
    - `start`: where the steps begin.
    - `trial`: the objective at the last trial.
    - `decrease`, `curvature`: the decrease that this trial promised, and the curvature along it.
    - `num_evals`, `num_trials`: the numbers of evaluations, and of steps tried.
    """

    verdict: Int[Array, ""]
    is_start: Bool[Array, ""]
    step: Float[Array, ""]
    updates: Updates
    start: Start
    trial: AnyEvaluation
    decrease: Float[Array, ""]
    curvature: Float[Array, ""]
    num_evals: Int[Array, ""]
    num_trials: Int[Array, ""]


def searching(line: ProximalLine) -> Bool[Array, ""]:
    return going_on(line.verdict == TRY, line.num_evals)


class ProximalSearch(eqx.Module):
    """What stays the same in a search."""

    penalty: AbstractPenalty
    shorter: Float[Array, ""]
    limit: Int[Array, ""]
    params: Params
    eps: float = eqx.field(static=True)

    def begun(self, line: ProximalLine, start: Start) -> ProximalLine:
        """The search before its first trial, with the evaluation at $y$ if it was made."""
        return dataclasses.replace(
            line,
            is_start=jnp.asarray(False),
            start=start,
            updates=proximal_updates(self.penalty, self.params, start.ahead, start.grad, line.step),
            num_evals=line.num_evals + line.is_start.astype(np.int32),
        )

    def judged(self, line: ProximalLine, found: AnyEvaluation) -> ProximalLine:
        """The search after a trial."""
        start, step = line.start, line.step
        # Between the points that were evaluated, and not between their updates, which are finer.
        d = change_of(*(add_updates(self.params, u) for u in (line.updates, start.ahead)))
        grad = mask_like(d, conj(found.grad))
        length_sq, slope = inner(d, d), inner(start.grad, d)
        curvature = inner(grad, d) - slope
        decrease = length_sq / (2 * step)
        excess = found.value - start.value - slope
        noise = self.eps * jnp.maximum(jnp.abs(found.value), jnp.abs(start.value))
        enough = jnp.where(decrease > _NOISE * noise, excess <= decrease, curvature <= 2 * decrease)
        # A step within the rounding of the parameters decides nothing.
        spacings = [float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(self.params)]
        eps = max(spacings, default=0.0)
        rounding = 4 * eps * jnp.sqrt(inner(self.params, self.params))
        enough = enough | (jnp.sqrt(length_sq) <= rounding)
        finite = jnp.isfinite(found.value) & all_finite(found.grad)
        last = line.num_trials >= self.limit
        verdict = jnp.where(finite & enough, ACCEPT, jnp.where(last, FAIL, TRY))
        measured = jnp.where(length_sq > 0, curvature / jnp.where(length_sq > 0, length_sq, 1), 0)
        shorter = self.shorter * step
        bent = finite & (measured > 0)
        shorter = jnp.where(bent, jnp.minimum(shorter, 1 / jnp.where(bent, measured, 1)), shorter)
        step = jnp.where(verdict == ACCEPT, step, shorter)
        again = proximal_updates(self.penalty, self.params, start.ahead, start.grad, step)
        return dataclasses.replace(
            line,
            verdict=verdict,
            step=step,
            updates=select(verdict == ACCEPT, line.updates, again),
            trial=found,
            decrease=decrease,
            curvature=measured,
            num_evals=line.num_evals + 1,
            num_trials=line.num_trials + 1,
        )


def proximal_updates(
    penalty: AbstractPenalty, params: Params, ahead: Updates, grad: Updates, step: Float[Array, ""]
) -> Updates:
    """The updates of a proximal gradient step from a point ahead of the parameters."""

    def forward(x: Array, a: Array, g: Array) -> Array:
        dtype = wider(x.dtype, g.dtype)
        near = cast(x, dtype) + cast(a, dtype)
        return narrowed(minus(near, times(cast(g, dtype), cast(step, real_dtype(dtype)))), x.dtype)

    target = penalty.prox(jax.tree.map(forward, params, ahead, grad), step)
    target = jax.tree.map(lambda x, z: narrowed(z, x.dtype), params, target)
    return updates_toward(penalty, params, target)


def change_of(new: PyTree, old: PyTree) -> PyTree:
    """The difference, in a dtype to compute in."""

    def change(x: Array, y: Array) -> Array:
        dtype = wider(x.dtype, y.dtype)
        return minus(cast(x, dtype), cast(y, dtype))

    return jax.tree.map(change, new, old)
