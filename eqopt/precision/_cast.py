"""Models in another precision."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._base import checks
from .._base.arithmetic import cast
from .._base.converters import to_dtype
from .._base.types import Model
from ..selectors._selector import AbstractSelector, as_selector


def cast_floating(params: Model, dtype: object, where: AbstractSelector | PyTree = None) -> Model:
    """Casts the floating-point arrays of a model to another dtype.

    Complex arrays, integers, PRNG keys, functions and all else stay as they are. It can be
    differentiated: the gradient of a float32 model that is cast within the loss is in float32.

    ```python
    import equinox as eqx, eqopt, jax, jax.numpy as jnp

    model = eqx.nn.MLP(2, 1, 8, 1, key=jax.random.key(0))
    half = eqopt.precision.cast_floating(model, jnp.bfloat16)
    weights = eqopt.precision.cast_floating(model, jnp.bfloat16, eqopt.ByNdim(2))  # the biases stay
    ```

    **Arguments:**

    - `params`: the model, any PyTree.
    - `dtype`: a real floating-point dtype.
    - `where`: which arrays to cast: a selector, a function from the model's floating-point arrays
        to booleans, or a tree of booleans; `None` is all.

    **Returns:**

    A model of the same type.

    **Raises:** a `TypeError` if `dtype` is not real and floating-point.
    """
    new = to_dtype("dtype")(dtype)
    if new is None or not jnp.issubdtype(new, jnp.floating):
        raise TypeError(f"`dtype` must be a real floating-point dtype; got {dtype!r}")
    floating, rest = eqx.partition(params, _is_floating)
    if where is None:
        return eqx.combine(jax.tree.map(lambda x: cast(x, new), floating), rest)
    chosen = as_selector(where).select(floating)
    chosen = jax.tree.map(
        lambda x, mine: cast(x, new) if x is not None and mine else x,
        floating,
        chosen,
        is_leaf=checks.is_none,
    )
    return eqx.combine(chosen, rest)


def _is_floating(x: Any) -> bool:
    return checks.is_array(x) and jnp.issubdtype(x.dtype, jnp.floating)
