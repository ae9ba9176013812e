"""The gradient of a loss over a batch, computed slice by slice."""

import abc
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int, PyTree

from .._base import checks
from .._base.arithmetic import cast, divide, plus, real_dtype
from .._base.converters import size
from .._base.trees import accumulator_dtype
from .._base.types import Function
from .objective import as_arrays
from .per_example import Axes, batch_axes, size_of
from .value_and_grad import value_and_grad


class AbstractAccumulator(eqx.Module):
    """How [`eqopt.micro_grad`][] combines the results of all slices into one."""

    @abc.abstractmethod
    def init(self, like: PyTree, num_slices: int) -> PyTree:
        """Gives the initial total.

        **Arguments:**

        - `like`: the shapes and dtypes of the result of one slice, as `jax.eval_shape` gives them.
        - `num_slices`: the number of slices.
        """

    @abc.abstractmethod
    def update(self, total: PyTree, result: PyTree, index: Int[Array, ""]) -> PyTree:
        """Gives the total after one more slice.

        **Arguments:**

        - `total`: the total before.
        - `result`: the result of the slice.
        - `index`: the number of slices before it, int32.
        """

    @abc.abstractmethod
    def finalize(self, total: PyTree, num_slices: int) -> PyTree:
        """Gives the result of all slices.

        **Arguments:**

        - `total`: the total after the last slice.
        - `num_slices`: the number of slices.
        """


def _zeros(like: PyTree) -> PyTree:
    """Zeros to add numbers to: floating-point zeros in float32 at least."""

    def zeros(x: Any) -> Array:
        if jnp.issubdtype(x.dtype, np.bool_):
            return jnp.zeros(x.shape, np.int32)
        inexact = jnp.issubdtype(x.dtype, np.inexact)
        return jnp.zeros(x.shape, accumulator_dtype(x.dtype) if inexact else x.dtype)

    return jax.tree.map(zeros, like)


def _added(total: PyTree, result: PyTree) -> PyTree:
    return jax.tree.map(lambda t, x: lax.add(t, cast(x, t.dtype)), total, result)


def _only_inexact(like: PyTree) -> None:
    leaves, _ = checks.flatten(like)
    for name, x in zip(checks.paths("aux", like), leaves, strict=True):
        if x is not None and not jnp.issubdtype(x.dtype, np.inexact):
            raise TypeError(
                f"`{name}` is {x.dtype}, which has no mean; "
                "`eqopt.options.SumAccumulator` and `eqopt.options.StackAccumulator` take it"
            )


class SumAccumulator(AbstractAccumulator):
    """Adds up the results of all slices, for a loss that is a sum over the batch.

    Half precision is added up in float32.
    """

    def init(self, like: PyTree, num_slices: int) -> PyTree:
        return _zeros(like)

    def update(self, total: PyTree, result: PyTree, index: Int[Array, ""]) -> PyTree:
        return _added(total, result)

    def finalize(self, total: PyTree, num_slices: int) -> PyTree:
        return total


class MeanAccumulator(AbstractAccumulator):
    """Averages the results of all slices, for a loss that is a mean over the batch.

    Half precision is added up in float32.
    """

    def init(self, like: PyTree, num_slices: int) -> PyTree:
        _only_inexact(like)
        return _zeros(like)

    def update(self, total: PyTree, result: PyTree, index: Int[Array, ""]) -> PyTree:
        return _added(total, result)

    def finalize(self, total: PyTree, num_slices: int) -> PyTree:
        return jax.tree.map(
            lambda t: divide(t, jnp.asarray(num_slices, real_dtype(t.dtype))), total
        )


class RunningMeanAccumulator(AbstractAccumulator):
    r"""Averages the results of all slices by a running mean: $m_i = m_{i-1} + (x_i - m_{i-1}) / i$.

    The mean never exceeds the largest result, while a sum might overflow.
    """

    def init(self, like: PyTree, num_slices: int) -> PyTree:
        _only_inexact(like)
        return _zeros(like)

    def update(self, total: PyTree, result: PyTree, index: Int[Array, ""]) -> PyTree:
        def step(t: Array, x: Array) -> Array:
            num = lax.add(index, np.int32(1)).astype(real_dtype(t.dtype))
            return plus(t, divide(lax.sub(cast(x, t.dtype), t), num))

        return jax.tree.map(step, total, result)

    def finalize(self, total: PyTree, num_slices: int) -> PyTree:
        return total


class StackAccumulator(AbstractAccumulator):
    """Keeps the result of each slice, along a new first axis."""

    def init(self, like: PyTree, num_slices: int) -> PyTree:
        return jax.tree.map(lambda x: jnp.zeros((num_slices, *x.shape), x.dtype), like)

    def update(self, total: PyTree, result: PyTree, index: Int[Array, ""]) -> PyTree:
        def put(t: Array, x: Array) -> Array:
            return lax.dynamic_update_index_in_dim(t, x, index, 0)

        return jax.tree.map(put, total, result)

    def finalize(self, total: PyTree, num_slices: int) -> PyTree:
        return total


_MEAN, _STACK = MeanAccumulator(), StackAccumulator()


def micro_grad(
    fun: Function,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    microbatch_size: int,
    in_axes: int | Sequence[int | None] = 0,
    accumulator: AbstractAccumulator = _MEAN,
    aux_accumulator: AbstractAccumulator = _STACK,
) -> Function:
    """Makes a function that computes the value and the gradient of `fun`, slice by slice.

    It returns what [`eqopt.value_and_grad`][] returns, up to rounding, but needs the memory of one
    slice instead of the whole batch. `fun` is traced once.

    ```python
    def loss_fn(model, x, y):  # a mean over the batch
        return jnp.mean((jax.vmap(model)(x) - y) ** 2)


    model = eqx.nn.MLP(2, 1, 8, 1, key=jax.random.key(0))
    x, y = jnp.ones((32, 2)), jnp.ones((32, 1))
    loss_and_grad = eqx.filter_jit(eqopt.micro_grad(loss_fn, microbatch_size=8))
    loss, grads = loss_and_grad(model, x, y)
    ```

    !!! note
        With 6 examples in 3 slices, the first slice has the examples 0 and 3: every third. So if a
        batch is divided between devices, each slice is divided between all of them too.

    **Arguments:**

    - `fun`: a function of a batch of any size. It returns a real scalar, or with `has_aux` a pair
        `(value, aux)`.
    - `argnums`: the positional argument to differentiate, or a sequence of several.
    - `has_aux`: whether `fun` returns `(value, aux)`. Its aux consists of arrays and numbers.
    - `microbatch_size`: the number of examples in a slice, at least 1. It must divide their number.
    - `in_axes`: the axis of examples in all positional arguments that are not differentiated; or a
        sequence with an axis for each positional argument, and `None` for an argument that is not a
        batch.
    - `accumulator`: combines the slices' values and gradients: [`eqopt.options.MeanAccumulator`][]
        for a loss that is a mean over the batch, [`eqopt.options.SumAccumulator`][] for a sum,
        [`eqopt.options.RunningMeanAccumulator`][], or an [`eqopt.writing.AbstractAccumulator`][] of
        your own.
    - `aux_accumulator`: combines the slices' aux; by default [`eqopt.options.StackAccumulator`][],
        with an axis of slices in front.

    Keyword arguments are the same for all slices, also a PRNG key. For one key per example, pass an
    array of keys by position.

    **Raises:**

    A `ValueError` if the number of examples is not a multiple of `microbatch_size`, or not the same
    in all arrays, which it names.
    """
    for name, x in (("accumulator", accumulator), ("aux_accumulator", aux_accumulator)):
        if not isinstance(x, AbstractAccumulator):
            raise TypeError(
                f"`{name}` must be an accumulator, such as `eqopt.options.MeanAccumulator()`; "
                f"got {x!r}"
            )
    wrapper = _MicroGrad(
        with_grad=value_and_grad(fun, argnums, has_aux),
        accumulator=accumulator,
        aux_accumulator=aux_accumulator,
        argnums=argnums if isinstance(argnums, int) else tuple(argnums),
        has_aux=has_aux,
        size=size("microbatch_size")(microbatch_size),
        in_axes=in_axes if isinstance(in_axes, int) else tuple(in_axes),
    )
    return eqx.module_update_wrapper(wrapper)


class _MicroGrad(eqx.Module):
    with_grad: Function
    accumulator: AbstractAccumulator
    aux_accumulator: AbstractAccumulator
    argnums: int | tuple[int, ...] = eqx.field(static=True)
    has_aux: bool = eqx.field(static=True)
    size: int = eqx.field(static=True)
    in_axes: int | Axes = eqx.field(static=True)

    @property
    def __wrapped__(self) -> Function:
        return self.with_grad

    def __call__(self, /, *args: object, **kwargs: object) -> Any:
        axes = batch_axes(args, self.argnums, self.in_axes)
        num_examples = size_of(args, axes)
        num, rest = divmod(num_examples, self.size)
        if rest or not num:
            raise ValueError(
                f"there are {num_examples} examples, and `microbatch_size` is {self.size}; the "
                "number of examples must be a multiple of it"
            )
        batches = [
            x if axis is None else _fold(x, axis, num) for x, axis in zip(args, axes, strict=True)
        ]

        def of_slice(index: Array) -> tuple[tuple[PyTree, PyTree], PyTree]:
            given = [
                x if axis is None else _take(x, axis, index)
                for x, axis in zip(batches, axes, strict=True)
            ]
            out, grad = self.with_grad(*given, **kwargs)
            value, aux = out if self.has_aux else (out, None)
            return (as_arrays(value, "value"), as_arrays(grad, "grad")), as_arrays(aux)

        # Traced once, for the shapes of the results and for the loop.
        traced = eqx.filter_closure_convert(of_slice, jnp.zeros((), np.int32))
        like, aux_like = jax.eval_shape(lambda i: traced(i), jnp.zeros((), np.int32))
        hows = self.accumulator, self.aux_accumulator

        def body(totals: tuple[PyTree, PyTree], index: Array) -> tuple[PyTree, None]:
            results = traced(index)
            new = [h.update(t, x, index) for h, t, x in zip(hows, totals, results, strict=True)]
            return tuple(new), None

        start = hows[0].init(like, num), hows[1].init(aux_like, num)
        totals, _ = lax.scan(body, start, jnp.arange(num, dtype=np.int32))
        found, aux = (h.finalize(t, num) for h, t in zip(hows, totals, strict=True))
        value, grad = jax.tree.map(lambda x, s: cast(x, s.dtype), found, like)
        return ((value, aux) if self.has_aux else value), grad


def _fold(batch: PyTree, axis: int, num: int) -> PyTree:
    """Puts an axis of slices behind the axis of examples."""

    def fold(x: Any) -> Any:
        if not eqx.is_array(x):
            return x
        at = axis % x.ndim
        return jnp.reshape(x, (*x.shape[:at], x.shape[at] // num, num, *x.shape[at + 1 :]))

    return jax.tree.map(fold, batch)


def _take(batch: PyTree, axis: int, index: Array) -> PyTree:
    """One slice of a folded batch."""

    def take(x: Any) -> Any:
        if not eqx.is_array(x):
            return x
        # A negative axis counted from the end before there was one more.
        at = axis + 1 if axis >= 0 else x.ndim + axis
        return lax.dynamic_index_in_dim(x, index, at, keepdims=False)

    return jax.tree.map(take, batch)
