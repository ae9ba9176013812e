"""The derivative of a minimizer with respect to what the objective depends on."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

from ._objective import Objective

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
    - `objective`: the objective, with all its arguments.
    """
    return found


@attach.def_jvp
def _attach_jvp(primals: Any, tangents: Any) -> Any:
    (params, value, aux), objective = primals
    _, change = tangents

    def gradient(params: PyTree, objective: Objective) -> PyTree:
        return jax.grad(lambda p: objective(p)[0])(params)

    _, mixed = eqx.filter_jvp(gradient, (params, objective), (_none(params), change))
    reals, rebuild = _as_reals(params)

    def real_gradient(reals: PyTree) -> PyTree:
        return jax.grad(lambda r: objective(rebuild(r))[0])(reals)

    right, _ = _as_reals(jax.tree.map(lambda x: -x.conj(), mixed))
    move = rebuild(_solve(real_gradient, reals, right))

    def both(params: PyTree, objective: Objective) -> Any:
        found, aux = objective(params)
        return found.astype(value.dtype), aux if jax.tree.leaves(primals[0][2]) else None

    _, (value_change, aux_change) = eqx.filter_jvp(both, (params, objective), (move, change))
    return (params, value, aux), (move, value_change, aux_change)


def _solve(gradient: Any, at: PyTree, right: PyTree) -> PyTree:
    """Solves with the Hessian matrix of a function of real parameters."""
    flat, unravel = ravel_pytree(right)

    def product(vector: jax.Array) -> jax.Array:
        _, out = jax.jvp(gradient, (at,), (unravel(vector),))
        return ravel_pytree(out)[0]

    if flat.size <= MAX_DENSE:
        hessian = jax.vmap(product)(jnp.eye(flat.size, dtype=flat.dtype))
        return unravel(jnp.linalg.solve(hessian, flat))
    tol = float(jnp.finfo(flat.dtype).eps) ** 0.75

    def conjugate_gradients(product: Any, right: jax.Array) -> jax.Array:
        return jax.scipy.sparse.linalg.cg(product, right, tol=tol)[0]

    # Not `cg` alone: in it the right-hand side and what is constant go through one operation, and
    # reverse mode takes both for unknown.
    return unravel(jax.lax.custom_linear_solve(product, flat, conjugate_gradients, symmetric=True))


def _as_reals(tree: PyTree) -> tuple[list[Any], Any]:
    """A tree as a list of real arrays, and the way back."""
    leaves, treedef = jax.tree.flatten(tree)
    is_complex = [jnp.iscomplexobj(x) for x in leaves]
    reals = [(x.real, x.imag) if c else (x,) for x, c in zip(leaves, is_complex, strict=True)]

    def rebuild(reals: list[Any]) -> PyTree:
        return treedef.unflatten([jax.lax.complex(*x) if len(x) == 2 else x[0] for x in reals])

    return reals, rebuild


def _none(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: None, tree)
