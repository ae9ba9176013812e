"""The derivative of a minimizer with respect to everything that the objective depends on.

It follows from the implicit function theorem. Nothing is differentiated through the steps that led
to the minimizer.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from .._base import checks
from .._base.ravel import from_real_vector, real_vector
from .._base.trees import conj
from .._objective.objective import AnyEvaluation, Evaluation
from ..projections._base import AbstractPenalty
from .composite import residual, with_penalty

# Up to this number of unknowns, the Hessian matrix is formed and factorized. Above it, conjugate
# gradients need only products with the matrix.
MAX_DENSE = 200


@eqx.filter_custom_jvp
def attach(
    found: tuple[PyTree, jax.Array, PyTree], evaluate: Callable[[PyTree], AnyEvaluation]
) -> PyTree:
    r"""Gives a minimizer, and the value and aux there, derivatives of every order.

    At a minimizer $\nabla f(x, \theta) = 0$ for every $\theta$, so that
    $\dot x = -(\nabla^2_{xx} f)^{-1} \nabla^2_{x\theta} f\, \dot\theta$.

    **Arguments:**

    - `found`: the minimizer, and value and aux there.
    - `evaluate`: the objective's value, gradient and aux, as a function of the parameters, traced
        (see `Objective.traced`): its leaves are $\theta$.
    """
    return found


@attach.def_jvp
def _attach_jvp(primals: Any, tangents: Any) -> PyTree:
    _, evaluate = primals
    _, change = tangents
    # The rule itself is differentiated for a second derivative. Therefore it must see a minimizer
    # that has a derivative: with the bare one the first derivative is right, and the second wrong.
    found = attach(*primals)
    params = found[0]
    changes = jax.tree.map(lambda x: x is not None, change, is_leaf=checks.is_none)
    moving, still = eqx.partition(evaluate, changes, is_leaf=checks.is_none)

    def at(params: PyTree, moving: PyTree) -> AnyEvaluation:
        evaluation = eqx.combine(moving, still)(params)
        aux = eqx.filter(evaluation.aux, checks.is_inexact)
        return Evaluation(evaluation.value, evaluation.grad, aux)

    _, derivative = jax.linearize(at, params, moving)
    no_move, no_change = jax.tree.map(jnp.zeros_like, (params, moving))

    def product(vector: Float[Array, " n"]) -> Float[Array, " n"]:
        """The product with the Hessian matrix."""
        return _as_vector(derivative(from_real_vector(vector, params), no_change).grad)

    right = -_as_vector(derivative(no_move, change).grad)
    solve = _dense if right.size <= MAX_DENSE else _conjugate_gradients
    # Not `solve` alone: a second derivative would differentiate `solve` itself, and the derivative
    # of eigenvectors is not finite where two eigenvalues are equal.
    move = lax.custom_linear_solve(product, right, solve, symmetric=True)
    move = from_real_vector(move, params)
    moved = derivative(move, change)
    return found, (move, moved.value, moved.aux)


@eqx.filter_custom_jvp
def attach_composite(
    found: tuple[PyTree, jax.Array, PyTree],
    evaluate: Callable[[PyTree], AnyEvaluation],
    penalty: AbstractPenalty,
    step: Float[Array, ""],
) -> PyTree:
    r"""The same for the minimizer of an objective with a penalty, a fixed point of its proximal
    steps.

    At a minimizer $r(x, \theta) = x - \operatorname{prox}(x - t \nabla f(x, \theta)) = 0$, so that
    $\dot x = -(\partial_x r)^{-1} \partial_\theta r\, \dot\theta$. The penalty's numbers are a
    part of $\theta$.

    **Arguments:**

    - `found`, `evaluate`: as in `attach`; the value is that of the sum.
    - `penalty`: the penalty.
    - `step`: the step $t$, which changes nothing but the rounding.
    """
    return found


@attach_composite.def_jvp
def _attach_composite_jvp(primals: Any, tangents: Any) -> PyTree:
    _, evaluate, penalty, step = primals
    _, *change, _ = tangents
    found = attach_composite(*primals)
    params = found[0]
    theta = evaluate, penalty
    change = tuple(change)
    changes = jax.tree.map(lambda x: x is not None, change, is_leaf=checks.is_none)
    moving, still = eqx.partition(theta, changes, is_leaf=checks.is_none)
    step = lax.stop_gradient(step)

    def at(params: PyTree, moving: PyTree) -> tuple[PyTree, Array, PyTree]:
        evaluate, penalty = eqx.combine(moving, still)
        evaluation = with_penalty(penalty, params, evaluate(params))
        left = residual(penalty, params, evaluation.grad, step)
        return left, evaluation.value, eqx.filter(evaluation.aux, checks.is_inexact)

    _, derivative = jax.linearize(at, params, moving)
    no_move, no_change = jax.tree.map(jnp.zeros_like, (params, moving))

    def product(vector: Float[Array, " n"]) -> Float[Array, " n"]:
        return _as_vector(derivative(from_real_vector(vector, params), no_change)[0])

    right = -_as_vector(derivative(no_move, change)[0])
    solve = _least_squares if right.size <= MAX_DENSE else _gmres
    move = lax.custom_linear_solve(product, right, solve, solve)
    move = from_real_vector(move, params)
    # The value does not change with the minimizer, whichever side of a kink that is on.
    _, value, _ = derivative(no_move, change)
    return found, (move, value, derivative(move, change)[2])


def _least_squares(
    product: Callable[[Array], Array], right: Float[Array, " n"]
) -> Float[Array, " n"]:
    """Solves with the matrix itself, which may be singular."""
    matrix = jax.vmap(product, out_axes=1)(jnp.eye(right.size, dtype=right.dtype))
    return jnp.linalg.lstsq(matrix, right)[0]


def _gmres(product: Callable[[Array], Array], right: Float[Array, " n"]) -> Float[Array, " n"]:
    tol = float(jnp.finfo(right.dtype).eps) ** 0.75
    return jax.scipy.sparse.linalg.gmres(product, right, tol=tol, restart=50)[0]


def _dense(product: Callable[[Array], Array], right: Float[Array, " n"]) -> Float[Array, " n"]:
    """Solves with the matrix itself, which may be singular; then without its null space.

    It is singular if the objective does not depend on a parameter, or only on the differences of
    some, as on the biases before a softmax.
    """
    matrix = jax.vmap(product)(jnp.eye(right.size, dtype=right.dtype))
    # Scaled to a diagonal of ones: the units of the parameters must not decide what is singular.
    diagonal = jnp.diagonal(matrix)
    scale = jnp.where(diagonal > 0, lax.rsqrt(jnp.where(diagonal > 0, diagonal, 1)), 1)
    values, vectors = jnp.linalg.eigh(scale[:, None] * matrix * scale[None, :])
    sizes = jnp.abs(values)
    kept = sizes > float(jnp.finfo(right.dtype).eps) * jnp.max(sizes)
    inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)
    inner = jnp.matmul(vectors.T, scale * right, precision="highest")
    return scale * jnp.matmul(vectors, inverse * inner, precision="highest")


def _conjugate_gradients(
    product: Callable[[Array], Array], right: Float[Array, " n"]
) -> Float[Array, " n"]:
    # A parameter on which nothing depends has a row of zeros in the matrix. There is a solution
    # only if it has a zero in `right` too. Two random vectors find these rows: the product of a row
    # with one of them may round to zero by chance.
    probes = jax.random.normal(jax.random.key(0), (2, right.size), right.dtype)
    right = jnp.where(jnp.any(jax.vmap(product)(probes) != 0, axis=0), right, 0)
    tol = float(jnp.finfo(right.dtype).eps) ** 0.75
    return jax.scipy.sparse.linalg.cg(product, right, tol=tol)[0]


def _as_vector(grad: PyTree) -> Float[Array, " n"]:
    """The gradient with respect to real and imaginary parts."""
    return real_vector(conj(grad))  # JAX's gradient of complex parameters is conjugated
