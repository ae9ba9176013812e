"""The Newton-Schulz iteration, which brings the singular values of matrices near to 1."""

from collections.abc import Callable
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import wadler_lindig as wl
from jax import lax
from jaxtyping import Array, Float, Inexact

from ..._base import checks
from ..._base.arithmetic import abs_sq, divide, norm, plus, safe_sqrt, times
from ..._base.converters import real
from ..._base.types import Scalar
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


# The iteration


class Quintic(eqx.Module):
    """The polynomial of one iteration.

    **Arguments:**

    - `linear`, `cubic`, `quintic`: its coefficients.
    """

    linear: Scalar = eqx.field(converter=real("ns_coeffs"))
    cubic: Scalar = eqx.field(converter=real("ns_coeffs"))
    quintic: Scalar = eqx.field(converter=real("ns_coeffs"))

    def __pdoc__(self, **kwargs: Any) -> wl.AbstractDoc:
        return wl.pdoc((self.linear, self.cubic, self.quintic), **kwargs)


Coefficients: TypeAlias = Quintic | tuple[Quintic, ...]

STANDARD = (3.4445, -4.775, 2.0315)
_PRESETS: dict[str, Any] = {
    "standard": STANDARD,
    "dion": (
        (4.0848, -6.8946, 2.927),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
}


def coefficients(value: Any) -> Coefficients:
    """The converter of `ns_coeffs`."""
    if isinstance(value, str):
        if value not in _PRESETS:
            known = " or ".join(f"{name!r}" for name in _PRESETS)
            raise ValueError(f"`ns_coeffs` must be {known}, or numbers; got {value!r}")
        value = _PRESETS[value]
    rows = [_quintic(x) for x in value] if _is_several(value) and len(value) else []
    whole = _quintic(value)
    if whole is not None:
        return whole
    polynomials = tuple(row for row in rows if row is not None)
    if not rows or len(polynomials) < len(rows):
        raise ValueError(f"`ns_coeffs` must be three numbers, or several times three; got {value}")
    return polynomials


def _quintic(x: Any) -> Quintic | None:
    if isinstance(x, Quintic):
        return x
    if _is_several(x) and len(x) == 3 and not any(map(_is_several, x)):
        return None if any(isinstance(a, Quintic) for a in x) else Quintic(*x)
    return None


def _is_several(x: object) -> bool:
    return isinstance(x, tuple | list) or (isinstance(x, np.ndarray | jax.Array) and x.ndim > 0)


def table_of(polynomials: Coefficients, num_steps: int, dtype: np.dtype) -> Float[Array, "steps 3"]:
    """The coefficients of each step."""

    def row(x: Quintic) -> Array:
        return jnp.stack([jnp.asarray(a).astype(dtype) for a in (x.linear, x.cubic, x.quintic)])

    if isinstance(polynomials, Quintic):
        return jnp.broadcast_to(row(polynomials), (num_steps, 3))
    return jnp.stack([row(x) for x in polynomials])


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
