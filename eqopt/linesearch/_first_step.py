"""The first step of a line search, given the last step taken."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

Guess = Callable[[Float[Array, ""]], Float[Array, ""]]


def keep_step(learning_rate: Float[Array, ""]) -> Float[Array, ""]:
    """Begins a line search at the last step taken, which suits gradient descent.

    **Arguments:**

    - `learning_rate`: the step that was taken last, of shape `()`.
    """
    return learning_rate


def double_step(learning_rate: Float[Array, ""]) -> Float[Array, ""]:
    """Begins a line search at twice the last step taken, which suits conjugate gradients.

    **Arguments:**

    - `learning_rate`: the step that was taken last, of shape `()`.
    """
    return 2 * learning_rate


def unit_step(learning_rate: Float[Array, ""]) -> Float[Array, ""]:
    """Begins a line search at 1, which suits Newton and quasi-Newton methods.

    **Arguments:**

    - `learning_rate`: the step that was taken last, of shape `()`.
    """
    return jnp.ones_like(learning_rate)


def guess(value: object) -> Guess:
    """The converter of an `initial_guess_strategy`."""
    # The two words are optax's.
    known = {"keep": keep_step, "one": unit_step}
    if isinstance(value, str) and value in known:
        return known[value]
    if not isinstance(value, str) and callable(value):
        strategy: Any = value
        return strategy
    raise ValueError(
        "`initial_guess_strategy` must be `eqopt.linesearch.keep_step`, "
        "`eqopt.linesearch.double_step`, `eqopt.linesearch.unit_step` or another function from the "
        f"last step to the first; got {value!r}"
    )
