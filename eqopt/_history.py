"""What happens in a loop, step by step."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ._arithmetic import cast, wider

# Metrics wait on the device until there are this many, so that no step waits for them.
_FLUSH = 512


class History(eqx.Module):
    """What happened at each step of [`eqopt.fit`][].

    **Arguments:**

    - `loss`: the loss before the step's update, of shape `(num_steps,)`.
    - `learning_rate`: the learning rate of the step, of shape `(num_steps,)`; `None` if the
        optimizer has none.
    - `grad_norm`: the 2-norm of the gradient over all leaves, of shape `(num_steps,)`.
    - `aux`: what else the loss function returned, each leaf with a new first axis of `num_steps`;
        `None` without `has_aux`.
    """

    loss: np.ndarray
    learning_rate: np.ndarray | None
    grad_norm: np.ndarray
    aux: PyTree

    def __len__(self) -> int:
        return len(self.loss)


class Metrics(NamedTuple):
    """The metrics of one step, or of several, stacked.

    **Arguments:**

    - `numbers`: loss, norm of the gradient, and learning rate if there is one, along the last axis:
        one array, for what a step costs is a matter of how many come out of it.
    - `aux`: what else the loss function returned.
    """

    numbers: Array
    aux: PyTree

    @classmethod
    def of(cls, loss: Array, grad_norm: Array, rate: Array | None, aux: PyTree) -> "Metrics":
        numbers = [loss, grad_norm] if rate is None else [loss, grad_norm, rate]
        dtype = wider(*[x.dtype for x in numbers])
        return cls(jnp.stack([cast(x, dtype) for x in numbers]), aux)

    @property
    def is_one(self) -> bool:
        return self.numbers.ndim == 1

    def latest(self) -> np.ndarray:
        """The numbers of the last step; waits for the device."""
        numbers = np.asarray(self.numbers)
        return numbers if self.is_one else numbers[-1]


class Record:
    """The metrics so far: the latest on the device, the others in NumPy."""

    def __init__(self) -> None:
        self.num_steps = 0
        self._waiting: list[Metrics] = []
        self._done: list[Any] = []
        self._latest = ""

    def add(self, metrics: Metrics, num: int) -> None:
        self.num_steps += num
        self._waiting.append(metrics)
        if len(self._waiting) >= _FLUSH:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            stacked = [
                jax.tree.map(lambda x: np.asarray(x)[None], m) if m.is_one else m
                for m in jax.device_get(self._waiting)
            ]
            self._done.append(jax.tree.map(lambda *xs: np.concatenate(xs), *stacked))
            self._waiting = []

    def message(self) -> str:
        # Of what has been dispatched, the latest loss that is there already: never wait for it.
        for metrics in reversed(self._waiting):
            numbers: Any = metrics.numbers
            if numbers.is_ready():
                self._latest = f"loss {metrics.latest()[0]:.4g}"
                break
        return self._latest

    def history(self) -> History:
        self._flush()
        if not self._done:
            return History(np.zeros(0), None, np.zeros(0), None)
        joined = jax.tree.map(lambda *xs: np.concatenate(xs), *self._done)
        loss, grad_norm, *rate = np.moveaxis(joined.numbers, -1, 0).copy()
        return History(loss, rate[0] if rate else None, grad_norm, joined.aux)
