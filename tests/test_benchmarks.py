"""The counts that the benchmark of the front door asserts."""

import jax
import jax.numpy as jnp
import pytest

import eqopt
from benchmarks import front_door


def test_counts_of_the_front_door():
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        rows = front_door.counts(num_steps=2)
    rows += front_door.cost_of_checks(num_leaves=8)
    assert [row.name for row in rows if not row.ok] == []
    # That rows can be wrong: optax's program is another for each learning rate, and a program
    # traced without checks takes what the checks refuse.
    assert "optax 3" in str(rows[0].result)
    params = {"a": jnp.zeros(2, jnp.float32)}
    grads = {"a": jnp.zeros(2, jnp.float16)}
    optimizer = eqopt.AdamW(1e-3)
    state = optimizer.init(params)
    with front_door.unchecked():
        optimizer.update(grads, state, params)
    with pytest.raises(ValueError, match="float16"):
        front_door.lower(optimizer.update, grads, state, params)
