"""The training loop over batches: `eqopt.fit`.

In: a loss, an optimizer, a model and batches. Out: the trained model, the optimizer's state and the
history. Each step is one compiled program that overwrites the old model and state.
It exists because it is faster than a loop around `step`: model and state stay flat between steps,
their memory is donated, and the loop does not wait for the loss.
"""

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

from .._base.converters import canonicalize, optional, prng_key, size
from .._base.key_data import kept, unkept
from .._base.norms import global_norm
from .._base.progress import AbstractProgress, as_progress
from .._base.types import Function, Leaves, Model
from .._base.xla import written_after
from .._jit import compiled_call
from .._jit.function import key_function, KeyedFunction, StaticFunction
from .._jit.partition import mark_numbers_dynamic, on_device, pack, Partitioned, StaticPart
from .._transformation.base import (
    AnyTransformation,
    check_transformation,
    step,
)
from .history import History, Metrics, Record
from .hyperparameters import learning_rate

# Seconds between two updates of the progress bar.
_REFRESH = 0.1


class Fit(eqx.Module, Generic[Model]):
    """The result of [`eqopt.fit`][].

    **Arguments:**

    - `model`: the trained model.
    - `state`: the optimizer's state. With `state` and `key`, another `fit` continues the training.
    - `history`: what happened at each step.
    - `key`: the key for the next `fit`: an [`eqopt.states.KeyData`][], whose `wrap()` is the key
        for `jax.random`, or words if `fit` was given words; `None` if it was given no key.
    - `interrupted`: whether Ctrl-C ended the loop.
    """

    model: Model
    state: eqx.Module
    history: History
    key: Any
    interrupted: bool = eqx.field(static=True)


class FitCallbackArgs(Generic[Model]):
    """The argument of a callback of [`eqopt.fit`][].

    `num_steps` is the number of steps taken so far. `loss`, `learning_rate`, `grad_norm` and `aux`
    belong to the last step; reading one waits for the device. `model` and `state` are copies, made
    when they are read: the loop overwrites its own in the next step.
    """

    def __init__(self, num_steps: int, metrics: Metrics, rebuild: Callable[[], PyTree]) -> None:
        self.num_steps = num_steps
        self._metrics = metrics
        self._rebuild = rebuild

    @property
    def loss(self) -> float:
        return self._numbers()[0]

    @property
    def learning_rate(self) -> float | None:
        numbers = self._numbers()
        return numbers[2] if len(numbers) == 3 else None

    @property
    def grad_norm(self) -> float:
        return self._numbers()[1]

    @property
    def aux(self) -> PyTree:
        return self._metrics.latest_aux()

    def _numbers(self) -> list[float]:
        return self._metrics.latest().tolist()

    @property
    def model(self) -> Model:
        return self._rebuild()[0]

    @property
    def state(self) -> PyTree:
        return self._rebuild()[1]


def fit(
    fn: Function,
    optimizer: AnyTransformation,
    params: Model,
    batches: Iterable[PyTree],
    *,
    state: eqx.Module | None = None,
    has_aux: bool = False,
    steps_per_call: int = 1,
    key: object = None,
    progress: bool | AbstractProgress = False,
    callback: Callable[[FitCallbackArgs[Model]], object] | None = None,
) -> Fit[Model]:
    """Trains a model, one step for each batch.

    Each step is one compiled program that evaluates, updates and applies, and writes the new model
    and state over the old ones. The model that was given stays as it was.

    **Arguments:**

    - `fn`: the loss, called `fn(params, *batch)` where a batch is a tuple or a list, and
        `fn(params, batch)` where it is anything else, also a named tuple; with a `key`, `fn(...,
        key=key)` if it takes one. It returns a real number, or with `has_aux` a pair of it and
        anything else. During the fit, changes of a closure or a global that it reads are not seen.
    - `optimizer`: any transformation.
    - `params`: the model, any PyTree; its inexact arrays are trained.
    - `batches`: any iterable; it may be endless if `callback` ends the loop. The leaves of a batch
        are data or static as in [`eqopt.writing.AbstractTransformation.step`][]. NumPy arrays are
        copied, so their memory may be reused for the next batch.
    - `state`: the optimizer's state to continue from; `None` makes a new one.
    - `has_aux`: whether `fn` returns `(loss, aux)`.
    - `steps_per_call`: how many steps go into one compiled call. More than one saves the cost of a
        call, about a tenth of a millisecond, for small models; `callback` is then called once for
        all of them, and Ctrl-C waits for them.
    - `key`: a PRNG key, or the `key` of a [`eqopt.Fit`][]; each step gets its own, split from it.
    - `progress`: whether to show a progress bar: tqdm's or rich's where installed, else text. Or an
        [`eqopt.writing.AbstractProgress`][].
    - `callback`: called after each call with an [`eqopt.writing.FitCallbackArgs`][]; ends the loop
        by returning `True`.

    **Returns:**

    An [`eqopt.Fit`][]. Ctrl-C ends the loop and returns the model and state reached so far.

    **Raises:**

    A `ValueError` or `TypeError` that names the argument or the leaf at fault.
    """
    size("steps_per_call")(steps_per_call)
    check_transformation("optimizer", optimizer)
    key = optional(prng_key("key"))(key)
    bar = as_progress(progress)
    optimizer = canonicalize(optimizer)
    keyed = key_function(fn)
    state = optimizer.init(params) if state is None else state
    # Arrays that the function reads are constants of the program, so it is not kept for other
    # calls.
    reuse = keyed.is_reusable() and not keyed.static.has_arrays
    carry = pack((params, state, key))
    fixed = pack(on_device((optimizer, keyed.data)))
    make = _make if reuse else _make.__wrapped__
    call_one, call_many = make(carry.spec, fixed.spec, has_aux)
    # Copied, because the loop overwrites its arrays.
    loop = _Loop(_copy(carry.arrays), carry.spec)
    record = Record()
    total = len(batches) if isinstance(batches, Sized) else None
    interrupted = False
    shown = 0.0
    bar.start(total)
    try:
        with _Interrupts() as interrupts:
            for group in _groups(map(_taken, batches), steps_per_call):
                interrupts.busy = True
                length = len(group)
                try:
                    if length == 1:
                        call, rest = call_one, (group[0],)
                    else:
                        call, rest = call_many, (_stacked(group), length)
                    given = keyed.static, loop.arrays, fixed.arrays, *rest
                    new = call(*given)
                    compiled_call.learn(keyed.static, call, given, new)
                    loop.arrays, metrics = new
                    record.add(metrics, length)
                finally:
                    interrupts.release()
                if time.monotonic() - shown > _REFRESH:
                    shown = time.monotonic()
                    bar.update(record.num_steps, record.message())
                num = record.num_steps
                if callback is not None and callback(FitCallbackArgs(num, metrics, loop.copy)):
                    break
    except KeyboardInterrupt:
        interrupted = True
    finally:
        bar.update(record.num_steps, record.message())
        bar.close()
    new_model, new_state, new_key = loop.rebuild()
    return Fit(
        model=new_model,
        state=new_state,
        history=record.history(),
        key=new_key,
        interrupted=interrupted,
    )


class _Loop:
    """Model, state and key, kept flat from step to step."""

    def __init__(self, arrays: Leaves, spec: StaticPart) -> None:
        self.arrays = arrays
        self.spec = spec

    def rebuild(self) -> PyTree:
        return Partitioned(self.arrays, self.spec).unpack()

    def copy(self) -> PyTree:
        return Partitioned(_copy(self.arrays), self.spec).unpack()


@jax.jit
def _copy(arrays: Leaves) -> Leaves:
    return jax.tree.map(jnp.copy, arrays)


@functools.lru_cache(maxsize=64)
def _make(spec: StaticPart, fixed_spec: StaticPart, has_aux: bool) -> tuple[Function, Function]:
    """The compiled step, and the compiled sequence of steps."""

    def one(
        static: StaticFunction, arrays: Leaves, fixed: Leaves, batch: Partitioned
    ) -> tuple[Leaves, Metrics]:
        model, state, key = Partitioned(arrays, spec).unpack()
        optimizer, data = Partitioned(fixed, fixed_spec).unpack()
        fn = KeyedFunction(static, *data)
        kwargs = {}
        if key is not None:
            after, kwargs["key"] = jax.random.split(unkept(key))
            key = kept(after)
        rate = learning_rate(optimizer, state)
        args = batch.unpack()
        model, state, evaluation = step(fn, optimizer, model, state, args, kwargs, has_aux)
        # A barrier: otherwise XLA shares these squares with the optimizer and keeps them alive.
        norm = global_norm(jax.lax.optimization_barrier(evaluation.grad))
        model = written_after(norm, model)
        metrics = Metrics.of(evaluation.value, norm, rate, evaluation.aux)
        return pack((model, state, key)).arrays, metrics

    def many(
        static: StaticFunction,
        arrays: Leaves,
        fixed: Leaves,
        batches: Partitioned,
        num: int,
    ) -> tuple[Leaves, Metrics]:
        def body(carry: Leaves, batch: Partitioned) -> tuple[Leaves, Metrics]:
            return one(static, carry, fixed, batch)

        # `length` is needed, because a batch may have no array.
        return jax.lax.scan(body, arrays, batches, length=num)

    first = jax.jit(one, static_argnums=0, donate_argnums=1)
    return first, jax.jit(many, static_argnums=(0, 4), donate_argnums=1)


def _taken(batch: PyTree) -> Partitioned:
    """The arguments of `fn` in a batch, split; NumPy arrays are copied."""
    several = type(batch) in (tuple, list)
    return pack(mark_numbers_dynamic(tuple(batch) if several else (batch,)))


def _groups(batches: Iterator[Partitioned], num: int) -> Iterator[list[Partitioned]]:
    """Puts up to `num` batches of the same shapes together."""
    for _, alike in itertools.groupby(batches, _kind) if num > 1 else ():
        while group := list(itertools.islice(alike, num)):
            yield group
    for batch in batches if num == 1 else ():
        yield [batch]


def _kind(batch: Partitioned) -> object:
    return batch.spec, [None if x is None else jax.typeof(x) for x in batch.arrays]


def _stacked(group: list[Partitioned]) -> Partitioned:
    def stack(xs: tuple[Any, ...]) -> Any:
        if xs[0] is None:
            return None
        on_host = all(isinstance(x, np.ndarray | np.generic) for x in xs)
        return np.stack(xs) if on_host else _stack(xs)

    columns = zip(*[x.arrays for x in group], strict=True)
    return Partitioned([stack(xs) for xs in columns], group[0].spec)


@jax.jit
def _stack(xs: tuple[Array, ...]) -> Array:
    # A Python number stays weakly typed.
    return jnp.stack(xs)


class _Interrupts:
    """Delays Ctrl-C until a step is complete: during a step, the old model is already donated."""

    def __init__(self) -> None:
        self.busy = False
        self._held: list[tuple[object, ...]] = []
        self._handler: Any = None

    def __enter__(self) -> "_Interrupts":
        handler = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is threading.main_thread() and callable(handler):
            self._handler = handler
            signal.signal(signal.SIGINT, self._handle)
        return self

    def _handle(self, *args: object) -> None:
        if self.busy:
            self._held.append(args)
        else:
            self._handler(*args)

    def release(self) -> None:
        """Ends the step."""
        self.busy = False
        while self._held:
            self._handler(*self._held.pop())

    def __exit__(self, *args: object) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
