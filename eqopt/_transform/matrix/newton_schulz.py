"""Matrices whose singular values are brought near to 1: by an iteration, or exactly."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Inexact

from ..._base import checks
from ..._base.arithmetic import abs_sq, divide, norm, plus, safe_sqrt, times
from .matrices import adjoint

Preconditioning: TypeAlias = Callable[[Array, Array], Array]


# Before the iteration


def _divided(
    x: Inexact[Array, "batch m n"], by: Float[Array, "batch _ _"]
) -> Inexact[Array, "batch m n"]:
    # A zero matrix stays zero, also with an `eps` of 0.
    by = jnp.where(by == 0, jnp.ones_like(by), by)
    return divide(x, jnp.broadcast_to(by, x.shape))


def _frobenius(x: Inexact[Array, "batch m n"]) -> Float[Array, "batch 1 1"]:
    return norm(x, (-2, -1), keepdims=True)


@checks.typed
def muon_frobenius(
    x: Inexact[Array, "batch m n"], eps: Float[Array, ""]
) -> Inexact[Array, "batch m n"]:
    r"""Divides by the Frobenius norm, $X / (\|X\|_F + \epsilon)$: Muon's own.

    **Arguments:**

    - `x`: a stack of matrices with no more rows than columns.
    - `eps`: $\epsilon$.
    """
    return _divided(x, _frobenius(x) + eps)


@checks.typed
def muon_spectral(
    x: Inexact[Array, "batch m n"], eps: Float[Array, ""]
) -> Inexact[Array, "batch m n"]:
    r"""Divides by the largest singular value, $X / (\|X\|_2 + \epsilon)$.

    It takes a singular value decomposition, which costs more than Muon itself.

    **Arguments:**

    - `x`: a stack of matrices with no more rows than columns.
    - `eps`: $\epsilon$.
    """
    return _divided(x, jnp.linalg.norm(x, 2, axis=(-2, -1), keepdims=True) + eps)


@checks.typed
def muon_aol(x: Inexact[Array, "batch m n"], eps: Float[Array, ""]) -> Inexact[Array, "batch m n"]:
    r"""Divides each row by its own bound, as almost orthogonal layers do.

    $$x_i \leftarrow x_i \Big/ \sqrt{\max\Big(\sum_j |X X^H|_{ij},\, \epsilon^2\Big)}.$$

    Then no singular value is above 1, and few are much smaller. The singular vectors change.

    **Arguments:**

    - `x`: a stack of matrices with no more rows than columns.
    - `eps`: $\epsilon$.

    ??? cite "Reference"
        Boissin et al., *Turbo-Muon: Accelerating Orthogonality-Based Optimization with
        Pre-Conditioning*, 2025 (arXiv 2512.04632).
    """
    sizes = jnp.sum(safe_sqrt(abs_sq(x @ adjoint(x))), axis=-1, keepdims=True)
    return _divided(x, safe_sqrt(jnp.maximum(sizes, eps * eps)))


@checks.typed
def muon_schatten(
    x: Inexact[Array, "batch m n"], eps: Float[Array, ""]
) -> Inexact[Array, "batch m n"]:
    r"""Divides by the Schatten 4-norm, $X / \sqrt{\max(\|X X^H\|_F, \epsilon^2)}$.

    It is between the largest singular value and the Frobenius norm.

    **Arguments:**

    - `x`: a stack of matrices with no more rows than columns.
    - `eps`: $\epsilon$.

    ??? cite "Reference"
        Grishina, Smirnov and Rakhuba, *Accelerating Newton-Schulz Iteration for Orthogonalization
        via Chebyshev-type Polynomials*, 2025 (arXiv 2506.10935).
    """
    return _divided(x, safe_sqrt(jnp.maximum(_frobenius(x @ adjoint(x)), eps * eps)))


_PRECONDITIONINGS: dict[str, Preconditioning] = {
    "frobenius": muon_frobenius,
    "spectral": muon_spectral,
    "aol": muon_aol,
    "schatten": muon_schatten,
}


def preconditioning(value: object) -> Preconditioning:
    """The converter of `preconditioning`, which also accepts optax's strings."""
    if isinstance(value, str) and value in _PRECONDITIONINGS:
        return _PRECONDITIONINGS[value]
    if not isinstance(value, str) and callable(value):
        function: Any = value
        return function
    raise ValueError(
        "`preconditioning` must be a function, such as `eqopt.options.muon_frobenius`; "
        f"got {value!r}"
    )


# The iteration, and the exact form


@checks.typed
def orthogonalized(
    x: Inexact[Array, "batch m n"], table: Float[Array, "steps 3"]
) -> Inexact[Array, "batch m n"]:
    def step(x: Array, row: Array) -> tuple[Array, None]:
        square = x @ adjoint(x)
        both = plus(times(row[1], square), times(row[2], square @ square))
        return plus(times(row[0], x), both @ x), None

    # A scan, and not a `fori_loop`, which has no reverse-mode derivative.
    return lax.scan(step, x, table)[0]


@checks.typed
def polar(x: Inexact[Array, "batch m n"]) -> Inexact[Array, "batch m n"]:
    r"""The exact form, $U V^H$ of the singular value decomposition $U \Sigma V^H$.

    Singular values that are zero up to rounding stay zero, and so does a zero matrix.
    """
    u, s, vh = jnp.linalg.svd(x, full_matrices=False)
    floor = max(x.shape[-2:]) * float(jnp.finfo(s.dtype).eps) * s[..., :1]
    kept = jnp.where(s > floor, jnp.ones_like(s), jnp.zeros_like(s))
    return times(jnp.broadcast_to(kept[..., None, :], u.shape), u) @ vh
