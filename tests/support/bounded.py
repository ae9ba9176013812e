"""What the tests of bounds share: objectives, and how to minimize them."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import eqopt
from tests.support.toolbox import FLOAT, X64

TIGHT = 1e-8 if X64 else 1e-3
INF = np.inf


def rosenbrock(x: Array) -> Array:
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def coupled(x: Array) -> Array:
    """Convex, with a Hessian matrix that is far from diagonal."""
    differences = x[1:] - x[:-1]
    return jnp.sum(jnp.exp(x) - 2 * x) + 5 * jnp.sum(jnp.square(differences)) + jnp.sum(x) ** 2


def squares(x: Array, center: Any) -> Array:
    return jnp.sum(jnp.square(x - center))


def found(fn: Any, start: Any, bounds: Any, *args: Any, **kwargs: Any) -> Any:
    x = jnp.asarray(start, FLOAT)
    kwargs = {"gtol": TIGHT} | kwargs
    return eqopt.minimize(fn, eqopt.LBFGSB(), x, args, bounds=bounds, **kwargs)
