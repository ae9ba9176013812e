"""The derivative of a minimizer with respect to everything that the objective depends on.

The objective has been traced (`Objective.traced`), so that the arrays that it reads, wherever it
reads them, are leaves. The derivative is that of the implicit function theorem: nothing is
differentiated through the steps that led to the minimizer.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PyTree

from . import _check
from ._arithmetic import is_complex, real_dtype, wider
from ._objective import Evaluation, Objective

# Up to as many unknowns the Hessian matrix is formed, and factorized. Above, conjugate gradients
# need products with it only.
MAX_DENSE = 200


@eqx.filter_custom_jvp
def attach(found: tuple[PyTree, jax.Array, PyTree], objective: Objective) -> Any:
    r"""Gives a minimizer, the value and aux there, derivatives with respect to the objective.

    At a minimizer $\nabla f(x, \theta) = 0$ for every $\theta$, so that
    $\dot x = -(\nabla^2_{xx} f)^{-1} \nabla^2_{x\theta} f\, \dot\theta$.

    **Arguments:**

    - `found`: the minimizer, and value and aux there.
    - `objective`: the objective, traced: its leaves are $\theta$.
    """
    return found


@attach.def_jvp
def _attach_jvp(primals: Any, tangents: Any) -> Any:
    _, objective = primals
    _, change = tangents
    # Attached once more. With the bare minimizer this rule would be right, and its own derivative
    # (the second) wrong: the minimizer in it would not move.
    found = attach(*primals)
    params = found[0]
    changes = jax.tree.map(lambda x: x is not None, change, is_leaf=_check.is_none)
    moving, still = eqx.partition(objective, changes, is_leaf=_check.is_none)

    def evaluate(params: PyTree, moving: Objective) -> Evaluation[Any]:
        at = eqx.combine(moving, still).evaluate(params)
        return Evaluation(at.value, at.grad, eqx.filter(at.aux, _check.is_inexact))

    _, along = jax.linearize(evaluate, params, moving)
    none = jax.tree.map(jnp.zeros_like, (params, moving))

    def product(vector: Array) -> Array:
        return _as_vector(along(_like(params, vector), none[1]).grad)

    right = -_as_vector(along(none[0], change).grad)
    solve = _dense if right.size <= MAX_DENSE else _conjugate_gradients
    # Not `solve` alone. Its own derivative is not that of the solution: that of eigenvectors is
    # infinite where two eigenvalues are equal.
    move = lax.custom_linear_solve(product, right, solve, symmetric=True)
    move = _like(params, move)
    moved = along(move, change)
    return found, (move, moved.value, moved.aux)


def _dense(product: Any, right: Float[Array, " n"]) -> Float[Array, " n"]:
    """The shortest solution of all that solve it best: the matrix may be singular.

    It is where the objective does not depend on a parameter, or only on the differences of some.
    """
    matrix = jax.vmap(product)(jnp.eye(right.size, dtype=right.dtype))
    # What is singular must not depend on the units of the parameters: the diagonal becomes 1.
    diagonal = jnp.diagonal(matrix)
    scale = jnp.where(diagonal > 0, lax.rsqrt(jnp.where(diagonal > 0, diagonal, 1)), 1)
    values, vectors = jnp.linalg.eigh(scale[:, None] * matrix * scale[None, :])
    magnitudes = jnp.abs(values)
    cutoff = right.size * float(jnp.finfo(right.dtype).eps) * jnp.max(magnitudes)
    kept = magnitudes > cutoff
    inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)
    inner = jnp.matmul(vectors.T, scale * right, precision="highest")
    return scale * jnp.matmul(vectors, inverse * inner, precision="highest")


def _conjugate_gradients(product: Any, right: Float[Array, " n"]) -> Float[Array, " n"]:
    # A parameter that nothing depends on has a row of zeros, and no solution but for a zero on the
    # right. Two random vectors tell, for one may be orthogonal to a row, as far as rounding goes.
    probes = jax.random.normal(jax.random.key(0), (2, right.size), right.dtype)
    right = jnp.where(jnp.any(jax.vmap(product)(probes) != 0, axis=0), right, 0)
    tol = float(jnp.finfo(right.dtype).eps) ** 0.75
    return jax.scipy.sparse.linalg.cg(product, right, tol=tol)[0]


def _as_vector(grad: PyTree) -> Float[Array, " n"]:
    """The gradient with respect to real and imaginary parts, at least in float32."""
    parts: list[Array] = []
    for x in jax.tree.leaves(grad):
        # JAX's gradient of complex parameters is conjugated.
        parts += [x.real, -x.imag] if is_complex(x) else [x]
    dtype = wider(*[x.dtype for x in parts])
    return lax.concatenate([x.astype(dtype).reshape(x.size) for x in parts], 0)


def _like(tree: PyTree, vector: Float[Array, " n"]) -> PyTree:
    """The tree whose real and imaginary parts are in a vector, with the dtypes of another."""
    leaves, treedef = jax.tree.flatten(tree)
    sizes = [x.size for x in leaves for _ in range(1 + is_complex(x))]
    parts = iter(jnp.split(vector, np.cumsum(sizes)[:-1]))

    def part(x: Array) -> Array:
        return next(parts).astype(real_dtype(x.dtype)).reshape(x.shape)

    made = [lax.complex(part(x), part(x)) if is_complex(x) else part(x) for x in leaves]
    return treedef.unflatten(made)
