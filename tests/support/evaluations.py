"""Counting what an objective costs: evaluations when it runs, traces when it is traced."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array


class Calls:
    """Counts. A batch of evaluations at once, under `vmap`, is one."""

    def __init__(self) -> None:
        self.evaluations = 0
        self.traces = 0

    def reset(self) -> None:
        jax.effects_barrier()
        self.evaluations = self.traces = 0

    def counted(self, x: Array) -> Array:
        """`x`. Each time the program computes it, that is counted."""
        self.traces += 1

        def call(x: Any) -> Any:
            self.evaluations += 1
            return np.asarray(x)

        @jax.custom_jvp
        def tick(x: Array) -> Array:
            shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
            return jax.pure_callback(call, shape, x, vmap_method="broadcast_all")

        @tick.defjvp
        def _(primals: Any, tangents: Any) -> Any:
            return tick(primals[0]), tangents[0]

        return tick(x)

    def of(self, run: Callable[[], Any]) -> int:
        """How many evaluations `run` makes."""
        self.reset()
        jax.block_until_ready(run())
        jax.effects_barrier()
        return self.evaluations
