"""Value and gradient of a function of models."""

import inspect
import operator
from collections.abc import Hashable, Sequence
from typing import Any, NoReturn

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

from .._base import checks
from .._base.compat import instantiate_zeros, pcast, Primitive, register_rules, varying
from .._base.types import Function


def value_and_grad(
    fun: Function,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Hashable | Sequence[Hashable] = (),
) -> Function:
    """Makes a function that computes both the value and the gradient of `fun`.

    It is `jax.value_and_grad` for models. A differentiated argument may be any PyTree: its inexact
    arrays are differentiated, and everything else in it (functions, integers, PRNG keys, Python
    numbers, ...) is passed to `fun` unchanged, and its gradient is `None`. An argument that is a
    single Python number is differentiated.

    ```python
    def loss_fn(model, x, y):
        return jnp.mean((jax.vmap(model)(x) - y) ** 2)


    model = eqx.nn.MLP(2, 1, 8, 1, key=jax.random.key(0))
    x, y = jnp.ones((4, 2)), jnp.ones((4, 1))
    loss, grads = eqopt.value_and_grad(loss_fn)(model, x, y)
    ```

    Keyword arguments are passed on, and never differentiated.

    !!! info "Per-example gradients, and their sum"

        Under `jax.vmap` and `jax.shard_map` there is a gradient for each example (each device),
        also for an argument that all examples share. To sum the gradients, name the axis and list
        it in `reduce_axes`. The sum is not mapped: use `out_axes=None` for it.

        ```python
        loss_and_grad = eqopt.value_and_grad(
            lambda w, x: jnp.sum(w * x) ** 2, reduce_axes=("batch",)
        )
        losses, grad = jax.vmap(
            loss_and_grad, in_axes=(None, 0), out_axes=(0, None), axis_name="batch"
        )(jnp.ones(3), jnp.ones((5, 3)))
        ```

        The rule holds leaf by leaf: a leaf that varies over the axis keeps a gradient for each
        example. If the value is the same for all examples, because nothing varies or because `fun`
        itself averages over the axis (`jax.lax.pmean`), the result is the gradient of that value.

        Within `jax.shard_map`, `jax.value_and_grad` sums over all axes. If some axes are not
        listed, `fun` is traced twice, and aux varies over the axes that the arguments are made to
        vary over.

    **Arguments:**

    - `fun`: a function of positional arguments, `argnums` among them. It returns a real scalar, or
        a pair of that and anything else with `has_aux`.
    - `argnums`: the positional argument to differentiate, or a sequence of several; negative
        numbers count from the last.
    - `has_aux`: whether `fun` returns `(value, aux)`. Leaves of aux need not be arrays.
    - `holomorphic`: whether `fun` is holomorphic: the differentiated arrays and the value must then
        be complex.
    - `allow_int`: whether to differentiate integers and Booleans too. Their gradients have the
        dtype `jax.dtypes.float0`.
    - `reduce_axes`: the names of `vmap` and `shard_map` axes over which to sum the gradients of
        leaves that do not vary over them. (`shard_map` must have `check_vma=True`, its default.)

    **Returns:**

    A function with the arguments of `fun` that returns `(value, grad)`, or `((value, aux), grad)`
    with `has_aux`. `grad` is like the argument, or a tuple if there are several `argnums`.

    **Raises:**

    A `TypeError` if an argument has nothing to differentiate, or if `fun` does not return what is
    described above; a `ValueError` if `argnums` or `reduce_axes` do not fit.
    """
    if not isinstance(argnums, Sequence | np.ndarray):
        argnums = operator.index(argnums)
    else:
        argnums = tuple(operator.index(x) for x in argnums)
        if not argnums:
            raise ValueError("`argnums` must name at least one argument; it is empty")
    if not isinstance(reduce_axes, tuple | list):
        reduce_axes = (reduce_axes,)
    axes = tuple(dict.fromkeys(reduce_axes))
    wrapper = _ValueAndGrad(
        fun=fun,
        argnums=argnums,
        has_aux=has_aux,
        holomorphic=holomorphic,
        allow_int=allow_int,
        reduce_axes=axes,
    )
    return eqx.module_update_wrapper(wrapper)


class _ValueAndGrad(eqx.Module):
    # A Module, so that `eqx.filter_jit` sees the arrays of a `fun` that is a method of a model.
    fun: Function
    argnums: int | tuple[int, ...] = eqx.field(static=True)
    has_aux: bool = eqx.field(static=True)
    holomorphic: bool = eqx.field(static=True)
    allow_int: bool = eqx.field(static=True)
    reduce_axes: tuple[Hashable, ...] = eqx.field(static=True)

    @property
    def __wrapped__(self) -> Function:
        return self.fun

    def __get__(self, instance: object, owner: object) -> Function:
        return self if instance is None else eqx.Partial(self, instance)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        places = self._places(len(args))
        parts = [self._partition(args[i]) for i in places]
        trained, rest = tuple(x for x, _ in parts), [x for _, x in parts]
        for i, tree in zip(places, trained, strict=True):
            self._check_argument(i, args[i], tree)

        def fun(trained: tuple[PyTree, ...]) -> tuple[Any, PyTree]:
            given = list(args)
            for i, tree, other in zip(places, trained, rest, strict=True):
                given[i] = eqx.combine(tree, other)
            return self._outputs(self.fun(*given, **kwargs))

        mapped = _check_axes(self.reduce_axes)
        trained = _makevarying(fun, trained, self.reduce_axes)
        with_grad = jax.value_and_grad(
            fun, has_aux=True, holomorphic=self.holomorphic, allow_int=self.allow_int
        )
        (value, aux), grads = with_grad(trained)
        if mapped:
            indices = [lax.axis_index(x) for x in mapped]
            grads = jax.tree.map(
                lambda x, g: _sum_over(mapped, indices, x, value, g), trained, grads
            )
        grad = grads[0] if isinstance(self.argnums, int) else grads
        return ((value, aux) if self.has_aux else value), grad

    def _places(self, num: int) -> list[int]:
        argnums = [self.argnums] if isinstance(self.argnums, int) else list(self.argnums)
        for i in argnums:
            if not -num <= i < num:
                raise ValueError(
                    f"`argnums` names argument {i}, and {num} were given by position (what is "
                    "differentiated is not to be given by keyword)"
                )
        places = [i % num for i in argnums]
        if len(set(places)) < len(places):
            raise ValueError(f"`argnums` names an argument twice: {self.argnums}")
        return places

    def _partition(self, arg: object) -> tuple[PyTree, PyTree]:
        numbers = (int, float, complex) if self.allow_int else (float, complex)
        if isinstance(arg, numbers) and (self.allow_int or not isinstance(arg, bool)):
            return arg, None
        return eqx.partition(arg, _is_number if self.allow_int else checks.is_inexact)

    def _check_argument(self, i: int, arg: object, trained: PyTree) -> None:
        leaves = jax.tree.leaves(trained)
        if not leaves:
            expected = "array" if self.allow_int else "floating-point or complex array"
            raise TypeError(
                f"`{_name(self.fun, i)}` has no {expected} to differentiate; it is "
                f"{checks.describe(arg)}"
            )
        if self.holomorphic and not all(map(jnp.iscomplexobj, leaves)):
            flat, _ = jax.tree_util.tree_flatten_with_path(trained)
            name = _name(self.fun, i)
            faults = [
                f"`{name}{checks.keystr(path)}` is {checks.describe(x)}; with `holomorphic=True` "
                "all that is differentiated must be complex"
                for path, x in flat
                if not jnp.iscomplexobj(x)
            ]
            raise TypeError(checks.listed(faults))

    def _outputs(self, out: object) -> tuple[Any, PyTree]:
        value, aux = out, None
        if self.has_aux:
            if not isinstance(out, tuple | list) or len(out) != 2:
                raise TypeError(
                    "with `has_aux=True`, `fun` must return a pair `(value, aux)`; it returned "
                    + _describe(out)
                )
            value, aux = out
        elif isinstance(out, tuple | list):
            raise TypeError(
                f"`fun` must return one number; it returned {_describe(out)}. To return "
                "`(value, aux)`, pass `has_aux=True`"
            )
        kind = np.complexfloating if self.holomorphic else np.floating
        if (
            not isinstance(value, (*checks.ARRAYS, float, complex))
            or np.shape(value)
            or not jnp.issubdtype(_dtype(value), kind)
        ):
            expected = "complex" if self.holomorphic else "real floating-point"
            hint = ""
            if not self.holomorphic and isinstance(value, checks.ARRAYS):
                if jnp.issubdtype(value.dtype, np.complexfloating):
                    hint = " (`holomorphic=True` differentiates holomorphic functions)"
            raise TypeError(
                f"`fun` must return one {expected} number, of shape (); it returned "
                f"{checks.describe(value)}{hint}"
            )
        return value, aux


def _is_number(x: object) -> bool:
    return isinstance(x, checks.ARRAYS) and any(
        jnp.issubdtype(x.dtype, kind) for kind in (np.number, np.bool_)
    )


def _dtype(value: object) -> np.dtype | type:
    return value.dtype if isinstance(value, checks.ARRAYS) else type(value)


def _describe(out: object) -> str:
    if isinstance(out, tuple | list):
        return f"a {type(out).__name__} of {len(out)}"
    return checks.describe(out)


def _name(fun: Function, i: int) -> str:
    """The name of a positional argument, for messages."""
    try:
        parameters = list(inspect.signature(fun).parameters.values())
    except (TypeError, ValueError):  # not every callable has a signature
        return f"args[{i}]"
    positional = [x for x in parameters if x.kind in (x.POSITIONAL_ONLY, x.POSITIONAL_OR_KEYWORD)]
    if i < len(positional):
        return positional[i].name
    names = [x.name for x in parameters if x.kind is x.VAR_POSITIONAL]
    return f"{names[0]}[{i - len(positional)}]" if names else f"args[{i}]"


# Axes of `shard_map`. An array's type says over which axes it varies.


def _manual_axes() -> tuple[Hashable, ...]:
    return tuple(jax.sharding.get_abstract_mesh().manual_axes)


def _check_axes(names: tuple[Hashable, ...]) -> tuple[Hashable, ...]:
    """Returns the axes in a list that belong to a `vmap`."""
    mapped = []
    for name in names:
        try:
            index = lax.axis_index(name)
        except NameError:
            raise ValueError(
                f"`reduce_axes` names {name!r}, which is no axis of a surrounding `vmap` "
                "or `shard_map`"
            ) from None
        if name in varying(index):
            continue
        if name in _manual_axes():
            raise ValueError(_unseen(name))
        mapped.append(name)
    return tuple(mapped)


def _unseen(name: Hashable) -> str:
    return (
        f"`reduce_axes` names {name!r}: what varies over an axis is known for `vmap`, and for "
        "`shard_map` with `check_vma=True`"
    )


def _makevarying(fun: Function, trained: PyTree, reduce_axes: tuple[Hashable, ...]) -> PyTree:
    """Returns each device's own gradient, where JAX would sum it over the devices."""
    names = [x for x in _manual_axes() if x not in reduce_axes]
    if not any(name in varying(lax.axis_index(name)) for name in names):
        return trained
    seen: list[frozenset[Hashable]] = []

    def look(trained: PyTree) -> object:
        value, _ = fun(trained)
        seen.append(varying(value))
        return value

    # Over axes where the value does not vary, there is one value and not one for each device.
    # Making the arguments vary over these axes would make the value vary too.
    jax.eval_shape(look, trained)

    def cast(x: object) -> object:
        missing = tuple(a for a in names if a in seen[0] and a not in varying(x))
        return pcast(x, missing) if missing else x

    return jax.tree.map(cast, trained)


# Axes of `vmap`. Within `jit`, what varies over them is unknown until the whole compiled function
# is batched. So the batching rule of a primitive decides.


def _sum_over(
    names: tuple[Hashable, ...], indices: list[Array], x: Array, value: Array, grad: Any
) -> Any:
    """Sums a leaf's gradient over the axes that the leaf does not vary over."""
    if grad.dtype == jax.dtypes.float0:
        return grad
    seen = [lax.stop_gradient(y) for y in (x, value)]
    return _sum_p.bind(grad, *seen, *indices, names=names)


# Operands: the array to sum, the argument, the value, and the indices of all axes, so that no axis
# is missed. It is linear in the first operand, and its own transpose, like `psum` and `pmean` over
# an axis of `vmap`.
_sum_p = Primitive("eqopt_sum_over")


@_sum_p.def_abstract_eval
def _abstract(total: object, *seen: object, names: tuple[Hashable, ...]) -> object:
    return total


@_sum_p.def_impl
def _unresolved(*operands: object, names: tuple[Hashable, ...]) -> NoReturn:
    raise ValueError(_unseen(names[0]))


def _lower(context: object, *operands: object, names: tuple[Hashable, ...]) -> NoReturn:
    raise ValueError(_unseen(names[0]))


def _batch(
    axis: Any, operands: Sequence[Array], dims: Sequence[int | None], *, names: tuple[Hashable, ...]
) -> tuple[Array, int | None]:
    total, *seen = operands
    dim, argument, value, *_ = dims
    if axis.name in names:
        names = tuple(x for x in names if x != axis.name)
        if argument is None and value is not None:
            # Equal terms, as of a bias, are not batched.
            size = jnp.asarray(axis.size, total.dtype)
            total, dim = (total * size if dim is None else jnp.sum(total, dim)), None
        elif argument is None and dim is not None:
            # One value: for `psum` within a `vmap`, JAX gives the derivative of the sum of all
            # examples' values, which is too large by the number of examples.
            total, dim = jnp.mean(total, dim), None
    return (_sum_p.bind(total, *seen, names=names) if names else total), dim


def _jvp(
    primals: Sequence[Array], tangents: Sequence[object], *, names: tuple[Hashable, ...]
) -> tuple[Array, Array]:
    out = _sum_p.bind(*primals, names=names)
    tangent = instantiate_zeros(tangents[0])
    return out, _sum_p.bind(tangent, *primals[1:], names=names)


def _transpose(
    cotangent: object, _: object, *seen: object, names: tuple[Hashable, ...]
) -> list[Array | None]:
    total = _sum_p.bind(instantiate_zeros(cotangent), *seen, names=names)
    return [total, *[None for _ in seen]]


register_rules(_sum_p, lower=_lower, batch=_batch, jvp=_jvp, transpose=_transpose)
