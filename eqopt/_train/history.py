"""The metrics of a training loop, recorded at each step."""

import itertools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .._base import checks
from .._base.arithmetic import cast, wider
from .._base.key_data import is_kept, kept, unkept
from .._jit.partition import pack, Partitioned

# Metrics stay on the device until there are this many, so that no step waits for a copy.
_FLUSH = 512


class History(eqx.Module):
    """The record of each step of [`eqopt.fit`][].

    **Arguments:**

    - `loss`: the loss before the step's update, of shape `(num_steps,)`.
    - `learning_rate`: the learning rate of the step, of shape `(num_steps,)`; `None` if the
        optimizer has none.
    - `grad_norm`: the 2-norm of the gradient over all leaves, of shape `(num_steps,)`.
    - `aux`: the second value that the loss function returned; `None` without `has_aux`. A leaf that
        is a number, or an array with the same shape and dtype at every step, has a new first axis
        of `num_steps`; PRNG keys become one [`eqopt.states.KeyData`][] with that axis. A leaf that
        is not an array, such as a string or a function, and is the same at every step, is kept as
        returned. Any other leaf is a list of its values at each step, for example an array as long
        as the batch if the last batch is shorter. If the structure of `aux` changes, `aux` is a
        list of its values.
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

    - `numbers`: loss, norm of the gradient, and learning rate if there is one, along the last axis.
        It is one array, because the cost of a step depends on the number of its outputs.
    - `aux`: the second value that the loss function returned, with keys as their words.
    """

    numbers: Array
    aux: Partitioned

    @classmethod
    def of(cls, loss: Array, grad_norm: Array, rate: Array | None, aux: PyTree) -> "Metrics":
        numbers = [loss, grad_norm] if rate is None else [loss, grad_norm, rate]
        dtype = wider(*[x.dtype for x in numbers])
        return cls(jnp.stack([cast(x, dtype) for x in numbers]), _taken(aux))

    @property
    def is_one(self) -> bool:
        return self.numbers.ndim == 1

    def latest(self) -> np.ndarray:
        """The numbers of the last step; waits for the device."""
        numbers = np.asarray(self.numbers)
        return numbers if self.is_one else numbers[-1]

    def latest_aux(self) -> PyTree:
        """The aux of the last step, with keys as they were returned."""
        return unkept(self.aux.unpack() if self.is_one else _at(self.aux, -1))


class Record:
    """The metrics so far: the latest on the device, the others in NumPy."""

    def __init__(self) -> None:
        self.num_steps = 0
        self._waiting: list[Metrics] = []
        self._done: list[Metrics] = []
        self._latest = ""

    def add(self, metrics: Metrics, num: int) -> None:
        self.num_steps += num
        self._waiting.append(metrics)
        if len(self._waiting) >= _FLUSH:
            self._flush()

    def _flush(self) -> None:
        for _, alike in itertools.groupby(jax.device_get(self._waiting), _kind):
            group = list(alike)
            join = np.stack if group[0].is_one else np.concatenate
            self._done.append(jax.tree.map(lambda *xs, join=join: join(xs), *group))
        self._waiting = []

    def message(self) -> str:
        # The latest loss that is ready: never wait for a loss that is still being computed.
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
        numbers = np.concatenate([x.numbers for x in self._done])
        loss, grad_norm, *rate = np.moveaxis(numbers, -1, 0).copy()
        return History(loss, rate[0] if rate else None, grad_norm, _joined(self._done))


def _taken(aux: PyTree) -> Partitioned:
    """Splits aux into arrays, also for its numbers and keys, and a static part."""
    numbers = bool | int | float | complex
    arrays = jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, numbers) else x, aux)
    try:
        return pack(kept(arrays))
    except TypeError:
        for name, x in zip(checks.paths("aux", aux), checks.flatten(aux)[0], strict=True):
            if not (isinstance(x, checks.ARRAYS) or _is_hashable(x)):
                raise TypeError(
                    f"`{name}` is {checks.describe(x)}, which is neither an array nor hashable; "
                    "return arrays"
                ) from None
        raise


def _is_hashable(x: object) -> bool:
    # By trying: a tuple's class has `__hash__`, even if an element cannot be hashed.
    try:
        hash(x)
    except TypeError:
        return False
    return True


def _kind(metrics: Metrics) -> Any:
    """A key that is equal for metrics that can be stacked."""
    first = 0 if metrics.is_one else 1
    arrays = [None if x is None else (x.shape[first:], x.dtype) for x in metrics.aux.arrays]
    return metrics.is_one, metrics.aux.spec, arrays


def _at(aux: Partitioned, step: int) -> PyTree:
    """The aux of one of several steps."""
    return jax.tree.map(lambda x: x[step], aux).unpack()


def _joined(blocks: list[Metrics]) -> PyTree:
    """The aux of all steps."""
    lengths = [len(x.numbers) for x in blocks]
    structure = blocks[0].aux.spec.structure
    if any(x.aux.spec.structure != structure for x in blocks):
        return [_at(x.aux, i) for x, num in zip(blocks, lengths, strict=True) for i in range(num)]
    columns = zip(*[x.aux.leaves() for x in blocks], strict=True)
    joined = structure.unflatten([_column(list(xs), lengths) for xs in columns])
    return jax.tree.map(_one_by_one, joined, is_leaf=is_kept)


def _one_by_one(x: Any) -> Any:
    """Splits a `KeyData` with stacked words into a list of keys."""
    if not (is_kept(x) and isinstance(x.words, list)):
        return x
    return [kept(jax.random.wrap_key_data(words, impl=x.impl)) for words in x.words]


def _column(found: list[object], lengths: list[int]) -> Any:
    """One leaf of the aux of all steps."""
    arrays = [x for x in found if isinstance(x, np.ndarray)]
    if len(arrays) == len(found) and len({(x.shape[1:], x.dtype) for x in arrays}) == 1:
        return np.concatenate(arrays)
    if not arrays and all(type(x) is type(found[0]) and x == found[0] for x in found):
        return found[0]
    return [
        y
        for x, num in zip(found, lengths, strict=True)
        for y in (x if isinstance(x, np.ndarray) else [x] * num)
    ]
