"""Hyper-parameters that are kept in the state."""

import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from .._base import checks
from .._base.converters import float_dtype, to_dtype
from .._base.key_data import kept, unkept
from .._base.trees import increment, owned, zero_count
from .._base.types import Count, Function, Params, Scalar, State, Steps, Updates
from .._objective.objective import Context
from .._schedule.base import AbstractSchedule, as_schedule, Constant
from .._transformation.base import AbstractTransformation, check_state, check_transformation
from .._transformation.nesting import AbstractConstrained, Requirement, requirements_within

_Answer = TypeVar("_Answer")
_NUMERIC = {*typing.get_args(Scalar), *typing.get_args(Steps)}


@jax.tree_util.register_pytree_with_keys_class
class CurrentHyperparams(dict[str, Any]):
    """Hyper-parameters by name. An assigned value is converted to an array of the old value's
    dtype."""

    def __setitem__(self, name: str, value: object) -> None:
        if name not in self:
            raise KeyError(f"no hyper-parameter `{name}`; there is " + ", ".join(self))
        old = self[name]
        new = jnp.asarray(owned(value)).astype(old.dtype)
        if new.shape != old.shape:
            raise ValueError(f"`{name}` has shape {old.shape}; got {new.shape}")
        dict.__setitem__(self, name, new)

    def update(self, *others: Any, **values: Any) -> None:
        for name, value in dict(*others, **values).items():
            self[name] = value

    def __reduce__(self) -> tuple[object, ...]:
        # Copying a dictionary fills it item by item; here every name must be present from the
        # start.
        return CurrentHyperparams, (dict(self),)

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Any]], tuple[str, ...]]:
        names = tuple(sorted(self))
        return [(jax.tree_util.DictKey(name), self[name]) for name in names], names

    def tree_flatten(self) -> tuple[list[Any], tuple[str, ...]]:
        names = tuple(sorted(self))
        return [self[name] for name in names], names

    @classmethod
    def tree_unflatten(cls, names: tuple[str, ...], values: Iterable[Any]) -> "CurrentHyperparams":
        return cls(zip(names, values, strict=True))


class InjectHyperparamsState(eqx.Module, Generic[State]):
    """The state of [`eqopt.InjectedHyperparams`][].

    **Arguments:**

    - `count`: the number of steps taken, int32 of shape `()`.
    - `hyperparams`: the values that were used in the last step, by name; in a new state, the values
        for the first step. To change a value, assign it: `state.hyperparams["learning_rate"] =
        0.1`. Assigned values are not compared with the bounds of the optimizer's fields.
    - `scheduled`: for each hyper-parameter, the last value that came from its schedule.
    - `inner_state`: the state of the inner transformation.
    """

    count: Count
    # Arrays; an assigned value may be a number.
    hyperparams: dict[str, Any]
    scheduled: dict[str, Array]
    inner_state: State


def _differs(a: Array, b: Array) -> Bool[Array, ""]:
    """Whether two values differ; NaN equals NaN."""
    return jnp.any((a != b) & ~((a != a) & (b != b)))


class InjectedHyperparams(AbstractConstrained[InjectHyperparamsState[State]], Generic[State]):
    r"""Keeps the hyper-parameters of a transformation in the state, where they may be changed.

    [`eqopt.InjectHyperparams`][] makes it. At each step the inner transformation is built, during
    tracing, from the values in the state. The values follow their schedules, unless they have been
    changed by hand: with $h$ the value in the state, $s$ the last value there that came from the
    schedule, and $\eta_t$ the schedule,

    $$h \leftarrow \eta_t, \quad s \leftarrow \eta_t \qquad \text{if } h = s,$$

    and otherwise both stay as they are. So a changed value stays in force until `hyperparams` is
    given the value in `scheduled` again; then the schedule continues from the present count. A
    change never recompiles.

    !!! note
        Assign a number or an array; with `eqx.tree_at`, use an array. A value that equals the
        schedule's last value, to the last bit, is not a change.

    **Arguments:**

    - `inner_factory`: builds the inner transformation. Static.
    - `hyperparams`: the schedules of the numbers by name; a number becomes an
        [`eqopt.Constant`][].
    - `arguments`: the factory's other arguments that may hold arrays, by name.
    - `static_arguments`: the remaining arguments, in pairs of name and value. Static.
    - `hyperparam_dtype`: the dtype of the numbers in the state; `None` is JAX's default. Static.
    """

    inner_factory: Callable[..., AbstractTransformation[State]] = eqx.field(static=True)
    hyperparams: dict[str, AbstractSchedule]
    arguments: dict[str, Any] = eqx.field(default_factory=dict)
    static_arguments: tuple[tuple[str, Any], ...] = eqx.field(static=True, default=())
    hyperparam_dtype: np.dtype | None = eqx.field(
        converter=to_dtype("hyperparam_dtype"), static=True, default=None
    )

    def __check_init__(self) -> None:
        # Abstractly: evaluating a schedule would start a backend.
        self._traced(lambda inner: check_transformation("inner_factory(...)", inner))

    def requirements(self) -> frozenset[Requirement]:
        return self._traced(requirements_within)

    def init_state(self, params: Params, context: Context) -> InjectHyperparamsState[State]:
        count = zero_count()
        values = {name: self._scheduled(name, count) for name in self.hyperparams}
        # No two leaves of a state share a buffer.
        scheduled = {name: jnp.copy(x) for name, x in values.items()}
        inner_state = self._build(values).init_state(params, context)
        return InjectHyperparamsState(count, CurrentHyperparams(values), scheduled, inner_state)

    def transform(
        self,
        updates: Updates,
        state: InjectHyperparamsState[State],
        params: Params | None,
        context: Context,
    ) -> tuple[Updates, InjectHyperparamsState[State]]:
        values, scheduled = self._next(state)
        inner = self._build(values)
        check_state(inner, state.inner_state, "state.inner_state")
        updates, inner_state = inner.transform(updates, state.inner_state, params, context)
        count = increment(state.count)
        return updates, InjectHyperparamsState(
            count, CurrentHyperparams(values), scheduled, inner_state
        )

    def at(self, state: InjectHyperparamsState[State]) -> AbstractTransformation[State]:
        """Gives the inner transformation as it is at the step after the given state."""
        return self._build(self._next(state)[0])

    def _next(
        self, state: InjectHyperparamsState[State]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        if state.hyperparams.keys() != self.hyperparams.keys():
            raise ValueError(
                f"`state.hyperparams` has {_listed(state.hyperparams)}; the optimizer has "
                f"{_listed(self.hyperparams)}"
            )
        values: dict[str, Array] = {}
        scheduled: dict[str, Array] = {}
        for name, given in state.hyperparams.items():
            own, before = self._scheduled(name, state.count), state.scheduled[name]
            value = jnp.asarray(given).astype(own.dtype)
            edited = _differs(value, before)
            values[name] = jnp.where(edited, value, own)
            # A value changed by hand is not taken for the schedule's if the schedule reaches it
            # later.
            scheduled[name] = jnp.where(edited, before, own)
        return values, scheduled

    def _scheduled(self, name: str, count: Count) -> Array:
        value = self.hyperparams[name](count)
        return value.astype(self.hyperparam_dtype or float_dtype())

    def _build(self, values: dict[str, Any]) -> AbstractTransformation[State]:
        arguments = {**dict(self.static_arguments), **unkept(self.arguments), **values}
        return _called(self.inner_factory, arguments)

    def _traced(self, question: Callable[[AbstractTransformation[State]], _Answer]) -> _Answer:
        """Calls a function of the inner transformation, in which scheduled values are traced."""
        numbers, later = {}, {}
        for name, x in self.hyperparams.items():
            if isinstance(x, Constant):
                numbers[name] = x.value
            else:
                later[name] = jax.ShapeDtypeStruct((), float_dtype())
        answers: list[_Answer] = []

        def build(values: dict[str, object]) -> None:
            answers.append(question(self._build({**numbers, **values})))

        jax.eval_shape(build, later)
        return answers[0]


class InjectHyperparams(eqx.Module, Generic[State]):
    """Makes a transformation that keeps its hyper-parameters in the state.

    Call it with the arguments of the factory; each number may also be a schedule:

    ```python
    import eqopt, jax.numpy as jnp

    opt = eqopt.InjectHyperparams(eqopt.AdamW)(eqopt.Linear(0.1, 0.0, 100), weight_decay=0.01)
    params = jnp.ones(3)
    state = opt.init(params)
    updates, state = opt.update(params, state, params)
    state.hyperparams["weight_decay"] = 0.02
    assert jnp.isclose(eqopt.hyperparameters(opt, state)["weight_decay"], 0.02)
    ```

    [`eqopt.InjectedHyperparams`][] describes the result. If the numbers need not be in the state,
    use [`eqopt.Scheduled`][] to give one a schedule, or `opt.replace(b1=0.8)` to change one.

    Real numbers, schedules and functions of the count are injected. Everything else is passed on
    unchanged: flags, dtypes, `None`, strings, selectors, transformations. If the factory is a
    class, its fields tell which numbers and functions cannot be injected, such as a size, or a
    function that is a mask. If it is a function, `static_args` must name the sizes, and the
    functions that are not schedules.

    **Arguments:**

    - `inner_factory`: a class of transformations, or a function that returns one.
    - `static_args`: the name of an argument that is not injected, or several.
    - `hyperparam_dtype`: the dtype of the numbers in the state; `None` is JAX's default. Within the
        inner transformation they are in the default dtype.

    Raises a `ValueError` if `static_args` names no argument of the factory.
    """

    inner_factory: Callable[..., AbstractTransformation[State]] = eqx.field(static=True)
    static_args: tuple[str, ...] = eqx.field(
        converter=lambda names: (names,) if isinstance(names, str) else tuple(names),
        static=True,
        default=(),
    )
    hyperparam_dtype: np.dtype | None = eqx.field(
        converter=to_dtype("hyperparam_dtype"), static=True, default=None
    )

    def __check_init__(self) -> None:
        if not callable(self.inner_factory):
            raise TypeError(
                "`inner_factory` must be a class or a function; got "
                f"{checks.describe(self.inner_factory)}"
            )
        if isinstance(self.inner_factory, AbstractTransformation):
            raise TypeError("`inner_factory` must be the class of a transformation, not one")
        parameters = inspect.signature(self.inner_factory).parameters
        unknown = [x for x in self.static_args if x not in parameters]
        if unknown and all(x.kind is not x.VAR_KEYWORD for x in parameters.values()):
            raise ValueError(
                f"`static_args` names {_listed(unknown)}; the factory has {_listed(parameters)}"
            )

    def __call__(self, *args: Any, **kwargs: Any) -> InjectedHyperparams[State]:
        """Gives the transformation.

        **Arguments:**

        - `*args`, `**kwargs`: the arguments of the factory.
        """
        signature = inspect.signature(self.inner_factory)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        numeric = _numeric_fields(self.inner_factory)
        hyperparams: dict[str, Any] = {}
        arguments: dict[str, Any] = {}
        for name, x in _flat(signature, bound.arguments).items():
            injected = name not in self.static_args and numeric.get(name, True)
            if injected and (isinstance(x, AbstractSchedule) or checks.is_function(x)):
                hyperparams[name] = as_schedule(name, x)
            elif injected and _is_number(x):
                hyperparams[name] = Constant(x)
            else:
                arguments[name] = x
        static = {name: x for name, x in arguments.items() if _is_static(x)}
        rest = {
            name: kept(jax.tree.map(owned, x))
            for name, x in arguments.items()
            if name not in static
        }
        return InjectedHyperparams(
            inner_factory=self.inner_factory,
            hyperparams=hyperparams,
            arguments=rest,
            static_arguments=tuple(static.items()),
            hyperparam_dtype=self.hyperparam_dtype,
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{x}`" for x in names) or "none"


def _flat(signature: inspect.Signature, arguments: dict[str, Any]) -> dict[str, Any]:
    """All arguments by name; variadic positional arguments in a tuple, keyword ones by their own
    names."""
    found: dict[str, Any] = {}
    for name, x in arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            found |= x
        else:
            found[name] = x
    return found


def _called(factory: Function, arguments: dict[str, Any]) -> Any:
    """The factory's result; not every argument can be given by its name."""
    rest, args = dict(arguments), []
    for name, x in inspect.signature(factory).parameters.items():
        if x.kind is x.POSITIONAL_ONLY:
            args.append(rest.pop(name))
        elif x.kind is x.VAR_POSITIONAL:
            # The arguments before it must be given by position too.
            before = [y.name for y in inspect.signature(factory).parameters.values()]
            named = [y for y in before[: before.index(name)] if y in rest]
            args += [rest.pop(y) for y in named] + list(rest.pop(name, ()))
    return factory(*args, **rest)


def _numeric_fields(factory: Function) -> dict[str, bool]:
    """The fields of a class that hold a number, as far as their converters tell."""
    if not isinstance(factory, type) or not issubclass(factory, eqx.Module):
        return {}
    fields = {f.name: f for f in dataclasses.fields(factory) if f.init}
    return {
        name: not (f.metadata.get("static", False) or _NUMERIC.isdisjoint(typing.get_args(f.type)))
        for name, f in fields.items()
    }


def _is_number(x: object) -> bool:
    if isinstance(x, bool | np.bool_) or not isinstance(x, (*checks.ARRAYS, int, float)):
        return False
    if isinstance(x, int | float):
        return True
    real = jnp.issubdtype(x.dtype, np.integer) or jnp.issubdtype(x.dtype, np.floating)
    return x.shape == () and real


def _is_static(x: object) -> bool:
    """Whether an argument must not be a leaf."""
    kinds = bool | int | float | str | type | np.dtype
    return x is None or isinstance(x, kinds) or checks.is_function(x)
