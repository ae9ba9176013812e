"""The limited-memory BFGS method between bounds.

In: a gradient, parameters within bounds, the last steps. Out: the way to the minimizer of a
quadratic model between the bounds. It exists because the two loops of L-BFGS give a direction for
free parameters only: here the estimate itself is needed, and its inverse over any set of them.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from .._base.converters import non_negative, size
from .._base.ravel import from_real_vector, real_vector
from .._base.trees import fill_missing, mask_like, zeros_like
from .._base.types import Params, Scalar, Updates
from .._objective.objective import Context, require_params
from .._transformation.base import AbstractTransformation
from ._base import (
    AbstractInitialMatrix,
    AbstractSecant,
    DiagonalMatrix,
    first_scale,
    ModifiedSecant,
)
from ._lbfgs import forget, ScaleByLBFGS, ScaleByLBFGSState

_Vector = Float[Array, " n"]


class ScaleByLBFGSB(AbstractTransformation[ScaleByLBFGSState]):
    r"""Replaces the gradient by the way to the minimizer of a quadratic model between bounds.

    The model at the parameters $x$ is $q(z) = g^T z + \frac12 z^T B z$, where $B$ is the estimate
    of the Hessian matrix that [`eqopt.ScaleByLBFGS`][] would invert:

    $$B = D - W M W^T, \qquad W = [Y, D S], \qquad
        M^{-1} = \begin{bmatrix} -C & L^T \\ L & S^T D S \end{bmatrix}$$

    with the last differences of parameters in $S$ and of gradients in $Y$, the inverse $D$ of
    `init_matrix`, and $C$ the diagonal of $S^T Y$, $L$ its part below. Two steps follow:

    1. The generalized Cauchy point, the first minimizer of $q$ along $P(x - t g)$, $t \ge 0$, where
       $P$ is the projection onto the bounds, says which parameters stay on a bound.
    2. Over the others, $q$ is minimized without bounds from there. The minimizer is projected onto
       the bounds; if it then points uphill, the way to it is cut off at the first bound.

    The updates are $x$ minus that point, which is between the bounds. While the memory is empty
    they are $x - P(x - \alpha g)$, with the length of the step limited to $\max(1, r |x|)$.

    The bounds are those of [`eqopt.minimize`][]; without them there are none. Complex parameters
    can have no bounds.

    **Arguments:**

    - `memory_size`: the number of steps remembered; at least 1.
    - `first_step_rtol`: the length $r$ of the first step relative to that of the parameters; at
        least 0.
    - `init_matrix`: the inverse $D^{-1}$, a diagonal matrix:
        [`eqopt.quasi_newton.DiagonalMatrix`][] or [`eqopt.quasi_newton.ScalarMatrix`][].
    - `secant`: which change of the gradient is used: [`eqopt.quasi_newton.ModifiedSecant`][], which
        uses the objective's `value` if `update` is given it, or
        [`eqopt.quasi_newton.PlainSecant`][].

    Its `update` needs `params`. The state is that of [`eqopt.ScaleByLBFGS`][]. A step takes time
    proportional to $m^2 n + n \log n$ for $n$ parameters and a memory of $m$.

    ??? cite "Reference"

        Byrd, Lu, Nocedal and Zhu, *A limited memory algorithm for bound constrained optimization*,
        SIAM Journal on Scientific Computing 16, 1995, equation 3.2, algorithm CP and section 5.1;
        Morales and Nocedal, *Remark on Algorithm 778: L-BFGS-B*, ACM Transactions on Mathematical
        Software 38, 2011.
    """

    memory_size: int = eqx.field(converter=size("memory_size"), static=True, default=10)
    first_step_rtol: Scalar = eqx.field(
        converter=non_negative("first_step_rtol"), default=0.01, kw_only=True
    )
    init_matrix: AbstractInitialMatrix[Any] = eqx.field(
        default_factory=DiagonalMatrix, kw_only=True
    )
    secant: AbstractSecant = eqx.field(default_factory=ModifiedSecant, kw_only=True)

    def init_state(self, params: Params, context: Context) -> ScaleByLBFGSState:
        return self._memory().init_state(params, context)

    def transform(
        self, updates: Updates, state: ScaleByLBFGSState, params: Params | None, context: Context
    ) -> tuple[Updates, ScaleByLBFGSState]:
        params = require_params(params, self, context)
        grad = fill_missing(updates, zeros_like(params))
        latest = fill_missing(updates, state.updates)
        state = self._memory().remember(latest, state, params, context)
        x, g = real_vector(params), real_vector(grad)
        bounds = None if context.whole is None else context.whole.bounds
        low, high = lax.full_like(x, -np.inf), lax.full_like(x, np.inf)
        if bounds is not None:
            low, high = (
                real_vector(mask_like(params, b)).astype(x.dtype)
                for b in (bounds.lower, bounds.upper)
            )
        # How far each parameter may go, relative to the gradient, until it meets its bound.
        room = jnp.where(g > 0, x - low, x - high)
        breaks = jnp.where(g == 0, np.inf, room / jnp.where(g == 0, 1, g))
        breaks = jnp.where(low < high, breaks, 0)

        ones = from_real_vector(jnp.ones_like(x), grad)
        inverse = real_vector(self.init_matrix.apply(state.init_matrix, ones))
        model = _model(1 / inverse.astype(x.dtype), state)
        cauchy, offset, free = _cauchy(model, g, room, breaks)
        step = _subspace(model, g, cauchy, offset, free, (low - x, high - x))

        factor = first_scale(jnp.where(breaks > 0, g, 0), x, self.first_step_rtol, True)
        plain = jnp.clip(-factor.astype(x.dtype) * g, low - x, high - x)
        moved = jnp.where(step == 0, 0, g)
        noise = 50 * jnp.finfo(x.dtype).eps * _norm(moved) * _norm(step)
        used = (state.num_pairs > 0) & (-_dot(g, step) > noise)
        found = from_real_vector(-jnp.where(used, step, plain), grad)
        return mask_like(updates, found), forget(state, ~used)

    def _memory(self) -> ScaleByLBFGS:
        return ScaleByLBFGS(self.memory_size, init_matrix=self.init_matrix, secant=self.secant)


class _Model(NamedTuple):
    """The matrix $B$. Each pair is divided by the root of its curvature."""

    diagonal: _Vector
    s: Float[Array, "memory n"]
    y: Float[Array, "memory n"]
    known: Bool[Array, " memory"]
    later: Bool[Array, "memory memory"]  # whether the row's pair is later than the column's
    middle: Float[Array, "both both"]

    def wide(self, vector: _Vector) -> Float[Array, " both"]:
        """$W^T v$."""
        return jnp.concatenate([_dot(self.y, vector), _dot(self.s, self.diagonal * vector)])

    def tall(self, vector: Float[Array, " both"]) -> _Vector:
        """$W v$."""
        first, second = jnp.split(vector, 2)
        return _dot(first, self.y) + self.diagonal * _dot(second, self.s)

    def row(self, i: Int[Array, ""]) -> Float[Array, " both"]:
        """The row of $W$ of one parameter."""
        return jnp.concatenate([self.y[:, i], self.diagonal[i] * self.s[:, i]])


def _model(diagonal: _Vector, state: ScaleByLBFGSState) -> _Model:
    root = jnp.sqrt(state.weights_memory).astype(diagonal.dtype)
    known = root > 0

    def rows(memory: Any) -> Float[Array, "memory n"]:
        matrix = jax.vmap(real_vector)(memory).astype(diagonal.dtype)
        return jnp.where(known[:, None], root[:, None] * matrix, 0)

    s, y = rows(state.diff_params_memory), rows(state.diff_updates_memory)
    num = root.size
    age = jnp.mod(jnp.arange(num, dtype=np.int32) - state.num_pairs, num)
    later = age[:, None] > age[None, :]
    lower = jnp.where(later, _dot(s, y.T), 0)
    eye = jnp.eye(num, dtype=s.dtype)
    # A missing pair has a row of zeros, with a one on the diagonal.
    core = (
        _dot(s * diagonal[None, :], s.T) + _dot(lower, lower.T) + jnp.where(known[None, :], 0, eye)
    )
    factor = jax.scipy.linalg.cho_factor(core)
    inverse = jax.scipy.linalg.cho_solve(factor, eye)
    mixed = _dot(inverse, lower)
    middle = jnp.block([[_dot(lower.T, mixed) - eye, mixed.T], [mixed, inverse]])
    return _Model(diagonal=diagonal, s=s, y=y, known=known, later=later, middle=middle)


class _Path(NamedTuple):
    """A corner of the projected gradient path."""

    next: Int[Array, ""]  # how many parameters have met their bounds
    time: Float[Array, ""]
    slope: Float[Array, ""]
    curvature: Float[Array, ""]
    direction: Float[Array, " both"]  # times W^T
    offset: Float[Array, " both"]  # from the parameters, times W^T


def _cauchy(
    model: _Model, grad: _Vector, room: _Vector, breaks: _Vector
) -> tuple[_Vector, Float[Array, " both"], Bool[Array, " n"]]:
    """The generalized Cauchy point from the parameters, the same times W^T, and what is free."""
    order = jnp.argsort(breaks)
    direction = jnp.where(breaks > 0, -grad, 0)
    projected = model.wide(direction)
    downhill = _dot(direction, direction)
    diagonal = _dot(model.diagonal * direction, direction)
    tiny = jnp.finfo(grad.dtype).eps * diagonal
    start = _Path(
        # Those at their bounds already are passed at once.
        next=jnp.sum(breaks <= 0, dtype=np.int32),
        time=jnp.zeros_like(downhill),
        slope=-downhill,
        curvature=diagonal - _dot(projected, _dot(model.middle, projected)),
        direction=projected,
        offset=jnp.zeros_like(projected),
    )

    def to_minimizer(at: _Path) -> Float[Array, ""]:
        return jnp.maximum(-at.slope / jnp.maximum(at.curvature, tiny), 0)

    def until(at: _Path) -> Float[Array, ""]:
        return breaks[order[jnp.minimum(at.next, order.size - 1)]]

    def going(at: _Path) -> Bool[Array, ""]:
        corner = until(at)
        ahead = (at.slope < 0) & (at.time + to_minimizer(at) >= corner)
        return (at.next < order.size) & jnp.isfinite(corner) & ahead

    def turn(at: _Path) -> _Path:
        time, i = until(at), order[at.next]
        passed, g, row, d = time - at.time, grad[i], model.row(i), model.diagonal[i]
        offset = at.offset + passed * at.direction
        by_row = _dot(model.middle, row)
        slope = at.slope + passed * at.curvature + g * g * (1 - d * time) - g * _dot(by_row, offset)
        curvature = at.curvature - g * (d * g + _dot(by_row, 2 * at.direction + g * row))
        return _Path(
            next=at.next + 1,
            time=time,
            slope=slope,
            curvature=curvature,
            direction=at.direction + g * row,
            offset=offset,
        )

    # Without parameters that can still move there is no minimizer ahead.
    end = lax.while_loop(going, turn, start)
    rest = jnp.where(end.next < order.size, to_minimizer(end), 0)
    time = end.time + rest
    free = breaks > time
    return jnp.where(free, -time * grad, -room), end.offset + rest * end.direction, free


def _subspace(
    model: _Model,
    grad: _Vector,
    cauchy: _Vector,
    offset: Float[Array, " both"],
    free: Bool[Array, " n"],
    limits: tuple[_Vector, _Vector],
) -> _Vector:
    """The minimizer over the free parameters, from the Cauchy point, brought between the limits."""
    slope = grad + model.diagonal * cauchy - model.tall(_dot(model.middle, offset))
    slope = jnp.where(free, slope, 0)
    inverse = jnp.where(free, 1 / model.diagonal, 0)
    held_s = jnp.where(free[None, :], 0, model.s)
    held_sy, free_sy = _dot(held_s, model.y.T), _dot(model.s - held_s, model.y.T)
    # The inverse of the part of B of the free parameters, by the formula of Sherman, Morrison and
    # Woodbury. Each block is a sum of terms that do not cancel.
    eye = jnp.eye(held_sy.shape[0], dtype=grad.dtype)
    upper = -eye - _dot(model.y * inverse[None, :], model.y.T)
    mixed = jnp.where(model.later, held_sy, -free_sy)
    lower = _dot(held_s * model.diagonal[None, :], held_s.T) + jnp.where(
        model.known[None, :], 0, eye
    )
    core = jnp.block([[upper, mixed.T], [mixed, lower]])
    weights = jnp.linalg.solve(core, model.wide(inverse * slope))
    move = -inverse * (slope + model.tall(weights))
    low, high = limits
    whole = jnp.clip(cauchy + move, low, high)
    ways = jnp.where(move < 0, low - cauchy, high - cauchy)
    fits = jnp.where(move == 0, np.inf, ways / jnp.where(move == 0, 1, move))
    cut = cauchy + jnp.clip(jnp.min(fits, initial=1), 0, 1) * move
    return jnp.where(_dot(grad, whole) < 0, whole, cut)


def _dot(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")


def _norm(x: _Vector) -> Float[Array, ""]:
    return jnp.sqrt(_dot(x, x))
