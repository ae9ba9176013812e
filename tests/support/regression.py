"""Linear regressions, for methods that minimize an objective with a penalty."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from tests.support.toolbox import FLOAT


def problem(num: int, size: int, condition: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Inputs whose columns have different sizes, and targets that few of them explain."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(num, size)) * np.logspace(0, -np.log10(condition) / 2, size)
    weights = rng.normal(size=size) * (rng.random(size) < 0.3)
    targets = inputs @ weights + 0.1 * rng.normal(size=num)
    return inputs.astype(FLOAT), targets.astype(FLOAT)


def misfit(x: Array, inputs: Array, targets: Array, scale: Any = 1.0) -> Array:
    return scale * jnp.mean((inputs @ x - targets) ** 2) / 2
