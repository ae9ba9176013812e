"""The parts of quasi-Newton methods: secant rules and initial matrices."""

import abc
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from .._base.arithmetic import abs_sq, cast, real_dtype, times
from .._base.checks import typed
from .._base.converters import float_dtype
from .._base.trees import all_positive, full_like, inner, select
from .._base.types import Params
from .._objective.objective import Context

_Scalar = Float[Array, ""]


@typed
class Pair(eqx.Module):
    r"""One step and its change of the gradient, with their inner products.

    **Arguments:**

    - `s`: the difference $s$ of the points, like the parameters.
    - `y`: the difference $y$ of the gradients, like the parameters.
    - `sy`, `ss`, `yy`: the real inner products $s^T y$, $s^T s$ and $y^T y$.
    """

    s: PyTree
    y: PyTree
    sy: Float[Array, ""]
    ss: Float[Array, ""]
    yy: Float[Array, ""]


class AbstractSecant(eqx.Module):
    """Decides which change of the gradient a method uses."""

    @abc.abstractmethod
    def shift(self, pair: Pair, drop: _Scalar, slopes: _Scalar, noise: _Scalar) -> _Scalar:
        r"""The multiple of $s$ that is added to $y$.

        **Arguments:**

        - `pair`: the step.
        - `drop`: the decrease of the objective, $f - f_+$; 0 if it is not known.
        - `slopes`: the sum of the slopes along the step, $(g + g_+)^T s$.
        - `noise`: the decrease of the objective that rounding errors can cause.
        """


class PlainSecant(AbstractSecant):
    """Uses the change of the gradient itself: $B_+ s = y$."""

    def shift(self, pair: Pair, drop: _Scalar, slopes: _Scalar, noise: _Scalar) -> _Scalar:
        return jnp.zeros_like(pair.sy)


class ModifiedSecant(AbstractSecant):
    r"""Corrects the change of the gradient by the change of the objective, which contains more
    information about the curvature:

    $$\hat y = y + \frac{\theta}{s^T s} s, \qquad \theta = 6 (f - f_+) + 3 (g + g_+)^T s$$

    There is no correction if the objective fell by no more than rounding errors, or if the
    correction would remove more than half of the curvature; it adds at most twice the curvature.

    ??? cite "Reference"

        Zhang, Deng and Chen, *New quasi-Newton equation and related methods for unconstrained
        optimization*, Journal of Optimization Theory and Applications 102, 1999, equation 2.9.
    """

    def shift(self, pair: Pair, drop: _Scalar, slopes: _Scalar, noise: _Scalar) -> _Scalar:
        theta = 6 * drop + 3 * slopes
        used = (jnp.abs(drop) > noise) & (theta > -0.5 * pair.sy)
        theta = jnp.where(used, jnp.minimum(theta, 2 * jnp.abs(pair.sy)), 0)
        return theta / jnp.where(pair.ss > 0, pair.ss, 1)


MatrixState = TypeVar("MatrixState", bound=eqx.Module)


class AbstractInitialMatrix(eqx.Module, Generic[MatrixState]):
    """The inverse Hessian matrix that a limited memory starts from."""

    @abc.abstractmethod
    def init(self, params: Params) -> MatrixState:
        """Makes the initial state."""

    @abc.abstractmethod
    def update(self, state: MatrixState, pair: Pair, first: Array) -> MatrixState:
        """The state after a pair; `first` tells whether it is the first pair."""

    @abc.abstractmethod
    def apply(self, state: MatrixState, vector: PyTree) -> PyTree:
        """The matrix times a vector, which is like the parameters."""


class ScalarMatrixState(eqx.Module):
    r"""The state of [`eqopt.quasi_newton.ScalarMatrix`][] and of
    [`eqopt.quasi_newton.IdentityMatrix`][].

    **Arguments:**

    - `scale`: the factor $s^T y / y^T y$, or 1.
    """

    scale: Float[Array, ""]


class ScalarMatrix(AbstractInitialMatrix[ScalarMatrixState]):
    r"""A multiple of the identity, $H_0 = \frac{s^T y}{y^T y} I$, by the last step.

    ??? cite "Reference"

        Nocedal and Wright, *Numerical Optimization*, 2nd edition, 2006, equation 7.20.
    """

    def init(self, params: Params) -> ScalarMatrixState:
        return ScalarMatrixState(jnp.ones((), float_dtype()))

    def update(self, state: ScalarMatrixState, pair: Pair, first: Array) -> ScalarMatrixState:
        return ScalarMatrixState(pair.sy / pair.yy)

    def apply(self, state: ScalarMatrixState, vector: PyTree) -> PyTree:
        return jax.tree.map(lambda v: times(v, cast(state.scale, real_dtype(v.dtype))), vector)


class IdentityMatrix(AbstractInitialMatrix[ScalarMatrixState]):
    """The identity, independent of the steps."""

    def init(self, params: Params) -> ScalarMatrixState:
        return ScalarMatrixState(jnp.ones((), float_dtype()))

    def update(self, state: ScalarMatrixState, pair: Pair, first: Array) -> ScalarMatrixState:
        return state

    def apply(self, state: ScalarMatrixState, vector: PyTree) -> PyTree:
        return vector


class DiagonalMatrixState(eqx.Module):
    r"""The state of [`eqopt.quasi_newton.DiagonalMatrix`][].

    **Arguments:**

    - `diagonal`: the diagonal $D$, real, like the parameters.
    - `scale`: the factor $s^T y / y^T D y$.
    """

    diagonal: PyTree
    scale: Float[Array, ""]


class DiagonalMatrix(AbstractInitialMatrix[DiagonalMatrixState]):
    r"""A diagonal matrix that learns the curvature along each coordinate.

    It starts as $\frac{s^T y}{y^T y} I$, and each step replaces $D$ by

    $$D_+ = \left(\frac{t}{D} + \frac{y^2}{s^T y}
        - \frac{t\,(s / D)^2}{s^T D^{-1} s}\right)^{-1}, \qquad t = \frac{y^T D y}{s^T y}$$

    elementwise, unless an entry would not be finite and positive. It is used as
    $H_0 = \frac{s^T y}{y^T D_+ y} D_+$.

    ??? cite "Reference"

        Gilbert and Lemarechal, *Some numerical experiments with variable-storage quasi-Newton
        algorithms*, Mathematical Programming 45, 1989, equation 4.9.
    """

    def init(self, params: Params) -> DiagonalMatrixState:
        diagonal = full_like(params, 1, real=True)
        return DiagonalMatrixState(diagonal, jnp.ones((), float_dtype()))

    def update(self, state: DiagonalMatrixState, pair: Pair, first: Array) -> DiagonalMatrixState:
        gamma = pair.sy / pair.yy
        old = jax.tree.map(lambda d: jnp.where(first, cast(gamma, d.dtype), d), state.diagonal)
        t = inner(pair.y, jax.tree.map(times, old, pair.y)) / pair.sy
        inverse = jax.tree.map(lambda d: 1 / d, old)
        weight = t / inner(pair.s, jax.tree.map(times, inverse, pair.s))

        def entry(d: Array, s: Array, y: Array) -> Array:
            a, b, c = (cast(x, d.dtype) for x in (t, pair.sy, weight))
            return 1 / (a / d + abs_sq(y) / b - c * abs_sq(s) / jnp.square(d))

        new = jax.tree.map(entry, old, pair.s, pair.y)
        diagonal = select(all_positive(new), new, old)
        scale = pair.sy / inner(pair.y, jax.tree.map(times, diagonal, pair.y))
        return DiagonalMatrixState(diagonal, scale)

    def apply(self, state: DiagonalMatrixState, vector: PyTree) -> PyTree:
        return jax.tree.map(
            lambda d, v: times(v, times(d, cast(state.scale, d.dtype))), state.diagonal, vector
        )


def secant_pair(
    secant: AbstractSecant,
    points: tuple[PyTree, PyTree],
    grads: tuple[PyTree, PyTree],
    values: tuple[_Scalar, _Scalar],
    eps: float,
) -> tuple[Pair, Bool[Array, ""]]:
    """The pair of a step, and whether its curvature is usable.

    **Arguments:**

    - `secant`: the secant rule.
    - `points`, `grads`, `values`: before and after the step.
    - `eps`: the precision of the values.
    """
    s = jax.tree.map(lambda old, x: cast(x, old.dtype) - old, *points)
    y = jax.tree.map(lambda old, g: cast(g, old.dtype) - old, *grads)
    pair = Pair(s=s, y=y, sy=inner(s, y), ss=inner(s, s), yy=inner(y, y))
    slopes = inner(grads[0], s) + inner(grads[1], s)
    known = jnp.isfinite(values[0]) & jnp.isfinite(values[1])
    before, after = (jnp.where(known, x, 0) for x in values)
    noise = np.sqrt(eps) * jnp.abs(before)
    c = secant.shift(pair, before - after, slopes, noise)
    y = jax.tree.map(lambda s, y: y + scaled(s, c, y), s, y)
    yy = pair.yy + 2 * c * pair.sy + jnp.square(c) * pair.ss
    pair = Pair(s=s, y=y, sy=pair.sy + c * pair.ss, ss=pair.ss, yy=yy)
    # Not by an absolute bound, nor by a bound relative to `y`: these refuse good steps.
    noise = 0.5 * jnp.finfo(float_dtype()).eps * jnp.sqrt(pair.ss) * jnp.sqrt(pair.yy)
    return pair, (pair.sy > noise) & jnp.isfinite(pair.yy)


def first_scale(grad: PyTree, params: Params, relative: Any, normalize: bool) -> Float[Array, ""]:
    """The factor of the first step, while the curvature is unknown.

    The step's length does not depend on the units of the objective. If `relative` is 0, optax's
    rule applies, by which it does.
    """
    norm = jnp.sqrt(inner(grad, grad))
    if not normalize:
        return jnp.ones_like(norm)
    relative = jnp.asarray(relative)
    length = jnp.maximum(1, relative * jnp.sqrt(inner(params, params)))
    scale = length / jnp.where(norm > 0, norm, 1)
    return jnp.where(relative > 0, scale, jnp.minimum(1, scale))


def safeguarded(
    grad: PyTree, direction: PyTree, first: _Scalar, known: Bool[Array, ""]
) -> tuple[PyTree, Bool[Array, ""]]:
    """The direction, or `first` times the gradient if it does not descend; and whether it descends.

    Rounding, or an objective with wrong gradients, may make it point the wrong way.
    """
    slope, sizes = inner(grad, direction), (inner(grad, grad), inner(direction, direction))
    bound = 50 * jnp.finfo(float_dtype()).eps * jnp.sqrt(sizes[0]) * jnp.sqrt(sizes[1])
    used = known & (slope > bound)
    plain = jax.tree.map(lambda g: scaled(g, first, g), grad)
    return select(used, direction, plain), used


def scaled(x: Array, scalar: _Scalar, like: Array) -> Array:
    """A scalar times `x`, in the dtype of `like`."""
    return times(cast(x, like.dtype), cast(scalar, real_dtype(like.dtype)))


def value_of(context: Context) -> tuple[_Scalar, float]:
    """The objective's value, infinite if it is not given, and its precision."""
    # Not NaN: a NaN in a state stops every program under `jax_debug_nans`.
    if context.value is None:
        return jnp.full((), np.inf, float_dtype()), 0.0
    eps = float(jnp.finfo(jnp.result_type(context.value)).eps)
    return jnp.asarray(context.value).astype(float_dtype()), eps
