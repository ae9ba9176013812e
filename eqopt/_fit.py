"""The loop over batches."""

import contextlib
import functools
import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, Generic

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from . import _door
from ._closure import hoist, opaque
from ._hyperparameter import settle, size
from ._hyperparameters import learning_rate
from ._progress import AbstractProgress, as_progress
from ._transformation import AbstractTransformation, check_transformation, step
from ._tree import global_norm
from ._types import Function, Model, TreeDef

# Metrics wait on the device until there are this many, so that no step waits for them.
_FLUSH = 512
# Seconds between two looks at the loss.
_REFRESH = 0.1


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


class Fit(eqx.Module, Generic[Model]):
    """What [`eqopt.fit`][] returns.

    **Arguments:**

    - `model`: the trained model.
    - `state`: the optimizer's state. With `key`, it is what going on needs.
    - `history`: what happened at each step.
    - `key`: the key for the steps to come; `None` if none was given.
    - `interrupted`: whether Ctrl-C ended the loop.
    """

    model: Model
    state: eqx.Module
    history: History
    key: Any
    interrupted: bool = eqx.field(static=True)


class FitProgress(Generic[Model]):
    """What a callback of [`eqopt.fit`][] is given.

    `num_steps` is the number of steps taken so far. `loss`, `learning_rate`, `grad_norm` and `aux`
    are those of the last step; reading one waits for the device. `model` and `state` are copies,
    made when they are asked for: what the loop holds is overwritten in the next step.
    """

    def __init__(self, num_steps: int, metrics: "_Metrics", rebuild: Callable[[], Any]) -> None:
        self.num_steps = num_steps
        self._metrics = metrics
        self._rebuild = rebuild

    @property
    def loss(self) -> Array:
        return self._metrics.last.loss

    @property
    def learning_rate(self) -> Array | None:
        return self._metrics.last.learning_rate

    @property
    def grad_norm(self) -> Array:
        return self._metrics.last.grad_norm

    @property
    def aux(self) -> PyTree:
        return self._metrics.last.aux

    @property
    def model(self) -> Model:
        return self._rebuild()[0]

    @property
    def state(self) -> Any:
        return self._rebuild()[1]


class _Metrics(eqx.Module):
    """The metrics of one step, or of several, stacked."""

    loss: Array
    learning_rate: Array | None
    grad_norm: Array
    aux: PyTree

    @property
    def last(self) -> "_Metrics":
        return self if self.loss.ndim == 0 else jax.tree.map(lambda x: x[-1], self)


def fit(
    loss_fn: Function,
    optimizer: AbstractTransformation[Any],
    model: Model,
    batches: Iterable[Any],
    *,
    state: eqx.Module | None = None,
    has_aux: bool = False,
    steps_per_call: int = 1,
    key: Any = None,
    progress: bool | AbstractProgress = False,
    callback: Callable[[FitProgress[Model]], Any] | None = None,
) -> Fit[Model]:
    """Trains a model, one step for each batch.

    Each step is one compiled program that evaluates, updates and applies, and writes the new model
    and state over the old ones. The model that was given stays as it was.

    **Arguments:**

    - `loss_fn`: called `loss_fn(model, *batch)`, or `loss_fn(model, batch)` where a batch is
        neither a tuple nor a list; with a `key`, `loss_fn(..., key=key)` if it takes one. It
        returns a real number, or with `has_aux` a pair of it and a tree of arrays. What it reads
        from elsewhere (a closure, a global) is read once, when `fit` is called.
    - `optimizer`: any transformation.
    - `model`: any PyTree; its inexact arrays are trained.
    - `batches`: any iterable; it may be endless if `callback` ends the loop.
    - `state`: the optimizer's state to go on from; `None` begins anew.
    - `has_aux`: whether `loss_fn` returns `(loss, aux)`.
    - `steps_per_call`: how many steps go into one compiled call. More than one saves the cost of a
        call, about a tenth of a millisecond, for small models; `callback` is then called once for
        all of them, and Ctrl-C waits for them.
    - `key`: a PRNG key; each step gets its own, split from it.
    - `progress`: whether to show a progress bar: tqdm's or rich's where installed, else text. Or an
        [`eqopt.AbstractProgress`][].
    - `callback`: called after each call with an [`eqopt.FitProgress`][]; ends the loop by returning
        `True`.

    **Returns:**

    An [`eqopt.Fit`][]. Ctrl-C ends the loop, and returns what has been reached.

    **Raises:**

    A `ValueError` or `TypeError` that names the argument or the leaf at fault.
    """
    size("steps_per_call")(steps_per_call)
    check_transformation("optimizer", optimizer)
    bar = as_progress(progress)
    optimizer = settle(optimizer)
    hoisted = hoist(loss_fn)
    state = optimizer.init(model) if state is None else state
    carry = _door.pack((model, state, key))
    fixed = _door.pack((optimizer, hoisted))
    spec = (carry.structure, carry.statics, fixed.structure, fixed.statics, has_aux)
    try:
        make = _make.__wrapped__ if opaque(hoisted) else _make
        call_one, call_many = make(spec)
    except (TypeError, ValueError):
        _door.check_hashable((model, state, key, optimizer, hoisted))
        raise
    # Copied, for the loop overwrites what it is given.
    loop = _Loop(_copy(carry.arrays), carry)
    record = _Record()
    total = len(batches) if isinstance(batches, Sized) else None
    interrupted = False
    shown = 0.0
    bar.start(total)
    try:
        for group in _groups(iter(batches), steps_per_call):
            with _uninterrupted():
                if len(group) == 1:
                    new = call_one(loop.arrays, fixed.arrays, group[0])
                else:
                    new = call_many(loop.arrays, fixed.arrays, _stack(group))
                loop.arrays, metrics = new
                record.add(metrics, len(group))
            if time.monotonic() - shown > _REFRESH:
                shown = time.monotonic()
                bar.update(record.num_steps, record.message())
            if callback is not None and callback(FitProgress(record.num_steps, metrics, loop.copy)):
                break
    except KeyboardInterrupt:
        interrupted = True
    finally:
        bar.update(record.num_steps, record.message())
        bar.close()
    new_model, new_state, new_key = loop.rebuild()
    return Fit(new_model, new_state, record.history(), new_key, interrupted)


class _Loop:
    """Model, state and key, kept flat from step to step."""

    def __init__(self, arrays: list[Any], packed: _door.Packed) -> None:
        self.arrays = arrays
        self.packed = packed

    def rebuild(self) -> Any:
        return _door.Packed(self.arrays, self.packed.statics, self.packed.structure).unpack()

    def copy(self) -> Any:
        copied = _copy(self.arrays)
        return _door.Packed(copied, self.packed.statics, self.packed.structure).unpack()


@jax.jit
def _copy(arrays: list[Any]) -> list[Any]:
    return jax.tree.map(jnp.copy, arrays)


_Spec = tuple[TreeDef, tuple[Any, ...], TreeDef, tuple[Any, ...], bool]


@functools.lru_cache(maxsize=64)
def _make(spec: _Spec) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The compiled step, and the compiled sequence of steps."""
    structure, statics, fixed_structure, fixed_statics, has_aux = spec

    def one(arrays: list[Any], fixed: list[Any], batch: Any) -> tuple[list[Any], _Metrics]:
        model, state, key = _door.Packed(arrays, statics, structure).unpack()
        optimizer, fn = _door.Packed(fixed, fixed_statics, fixed_structure).unpack()
        kwargs = {}
        if key is not None:
            key, kwargs["key"] = jax.random.split(key)
        rate = learning_rate(optimizer, state)
        args = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
        model, state, evaluation = step(optimizer, fn, model, state, args, kwargs, has_aux)
        metrics = _Metrics(evaluation.value, rate, global_norm(evaluation.grad), evaluation.aux)
        return _door.pack((model, state, key)).arrays, metrics

    def many(arrays: list[Any], fixed: list[Any], batches: Any) -> tuple[list[Any], _Metrics]:
        return jax.lax.scan(lambda carry, batch: one(carry, fixed, batch), arrays, batches)

    return jax.jit(one, donate_argnums=0), jax.jit(many, donate_argnums=0)


def _groups(batches: Iterator[Any], num: int) -> Iterator[list[Any]]:
    """Puts up to `num` batches of the same shapes together."""
    for _, alike in itertools.groupby(batches, _kind) if num > 1 else ():
        while group := list(itertools.islice(alike, num)):
            yield group
    for batch in batches if num == 1 else ():
        yield [batch]


def _kind(batch: Any) -> Any:
    leaves, treedef = jax.tree.flatten(batch)
    return treedef, [(np.shape(x), jnp.result_type(x)) for x in leaves]


def _stack(group: list[Any]) -> Any:
    def stack(*xs: Any) -> Any:
        on_device = any(isinstance(x, jax.Array) for x in xs)
        return jnp.stack(xs) if on_device else np.stack(xs)

    return jax.tree.map(stack, *group)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Holds a Ctrl-C back until the block is done: half-way through it, nobody owns the model."""
    handler = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    if not main or not callable(handler):  # nobody is to be interrupted here
        yield
        return
    held: list[Any] = []
    signal.signal(signal.SIGINT, lambda *args: held.append(args))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    for args in held:
        handler(*args)


class _Record:
    """The metrics so far: the latest on the device, the others in NumPy."""

    def __init__(self) -> None:
        self.num_steps = 0
        self.waiting: list[_Metrics] = []
        self.done: list[_Metrics] = []
        self.latest = ""

    def add(self, metrics: _Metrics, num: int) -> None:
        self.num_steps += num
        self.waiting.append(metrics)
        if len(self.waiting) >= _FLUSH:
            self._flush()

    def _flush(self) -> None:
        if self.waiting:
            fetched = jax.device_get(self.waiting)
            stacked = [
                jax.tree.map(lambda x: np.asarray(x)[None], m) if m.loss.ndim == 0 else m
                for m in fetched
            ]
            self.done.append(jax.tree.map(lambda *xs: np.concatenate(xs), *stacked))
            self.waiting = []

    def message(self) -> str:
        # Of what has been dispatched, the latest loss that is there already: never wait for it.
        for metrics in reversed(self.waiting):
            loss: Any = metrics.loss
            if loss.is_ready():
                self.latest = f"loss {np.ravel(loss)[-1]:.4g}"
                break
        return self.latest

    def history(self) -> History:
        self._flush()
        if not self.done:
            return History(np.zeros(0), None, np.zeros(0), None)
        joined = jax.tree.map(lambda *xs: np.concatenate(xs), *self.done)
        return History(joined.loss, joined.learning_rate, joined.grad_norm, joined.aux)
