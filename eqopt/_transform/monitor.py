"""Measurements of the updates, kept in the state."""

import abc
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._base import checks
from .._base.converters import decay_factor, flag, to_dtype
from .._base.trees import widened, zeros_exactly_like
from .._base.types import Params, Scalar, State, Updates
from .._objective.objective import as_arrays, Context
from .._transformation.base import AbstractTransformation, AnyTransformation, EmptyState
from .average import EMA, EMAState

Measure = Callable[[Updates], PyTree]


class AbstractMeasure(eqx.Module, Generic[State]):
    """A measurement of the updates, which may keep a state."""

    @abc.abstractmethod
    def init(self, updates: Updates) -> State:
        """Makes the initial state; only the shapes and dtypes of the updates are used."""

    @abc.abstractmethod
    def take(
        self, updates: Updates, state: State, params: Params | None, context: Context
    ) -> tuple[PyTree, State]:
        """Returns the measurement and the new state; the arguments are those of `transform`."""


AnyMeasure: TypeAlias = AbstractMeasure[Any]


class MeasureWithEMA(AbstractMeasure[EMAState]):
    r"""Averages a measurement exponentially, for [`eqopt.Monitor`][].

    $$m_t = \delta\, m_{t-1} + (1 - \delta)\, f(u_t), \qquad
    \text{measured:}\quad m_t \quad\text{or, debiased,}\quad m_t / (1 - \delta^t)$$

    **Arguments:**

    - `measure`: the function $f$ of the updates; it returns numbers, Booleans or arrays of them.
    - `decay`: the factor $\delta$, in $[0, 1)$.
    - `debias`: whether to divide by the sum of the weights, so that the average of a constant is
        that constant.
    - `accumulator_dtype`: the dtype of $m$; `None` is the measurement's, and at least float32.
    """

    measure: Measure
    decay: Scalar = eqx.field(converter=decay_factor("decay"))
    debias: bool = eqx.field(converter=flag("debias"), static=True, default=True)
    accumulator_dtype: np.dtype | None = eqx.field(
        converter=to_dtype("accumulator_dtype"), static=True, default=None
    )

    def __check_init__(self) -> None:
        _check_measure("measure", self.measure)

    def init(self, updates: Updates) -> EMAState:
        return self._average().init_state(self._measured(updates), Context())

    def take(
        self, updates: Updates, state: EMAState, params: Params | None, context: Context
    ) -> tuple[PyTree, EMAState]:
        return self._average().transform(self._measured(updates), state, None, context)

    def _average(self) -> EMA:
        return EMA(self.decay, self.debias, self.accumulator_dtype)

    def _measured(self, updates: Updates) -> PyTree:
        def number(x: Any) -> Any:
            return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(np.float32)

        return jax.tree.map(number, as_arrays(self.measure(updates), "measure(updates)"))


class _Plain(AbstractMeasure[EmptyState]):
    measure: Measure

    def init(self, updates: Updates) -> EmptyState:
        return EmptyState()

    def take(
        self, updates: Updates, state: EmptyState, params: Params | None, context: Context
    ) -> tuple[PyTree, EmptyState]:
        return as_arrays(self.measure(updates), "measure(updates)"), state


class _ByTransformation(AbstractMeasure[Any]):
    transformation: AnyTransformation

    def init(self, updates: Updates) -> PyTree:
        return self.transformation.init_state(updates, Context())

    def take(
        self, updates: Updates, state: object, params: Params | None, context: Context
    ) -> tuple[PyTree, PyTree]:
        return self.transformation.transform(updates, state, params, context)


class MonitorState(eqx.Module):
    """The state of [`eqopt.Monitor`][] and [`eqopt.Snapshot`][].

    **Arguments:**

    - `measurements`: the last measurements, by name; zeros before the first step.
    - `measure_states`: the states of the measures, by name.
    """

    measurements: dict[str, PyTree]
    measure_states: dict[str, Any]


class Monitor(AbstractTransformation[MonitorState]):
    """Measures the updates that pass, and leaves them as they are.

    [`eqopt.measurements`][] reads the measurements. The updates are measured at this place of the
    chain: the links before it have been applied. Half precision is measured in float32. Complex
    updates are the conjugate of the gradient from `jax.grad`.

    **Arguments:**

    - `measures`: by name, functions of the updates (trees of arrays, with `None` for leaves that
        are not trained), which return arrays and numbers; [`eqopt.MeasureWithEMA`][]; or
        transformations, whose output is measured.

    ```python
    opt = eqopt.Chain(
        eqopt.Monitor(
            {
                "norm": eqopt.global_norm,
                "clipped": eqopt.MeasureWithEMA(lambda u: eqopt.global_norm(u) > 1.0, 0.9),
            }
        ),
        eqopt.ClipByGlobalNorm(1.0),
        eqopt.SGD(0.1),
    )
    params = jnp.array([3.0, 4.0])
    _, state = opt.update(params, opt.init(params))
    found = eqopt.measurements(state)
    assert found["norm"] == 5.0 and abs(found["clipped"] - 1) < 1e-6
    ```

    Raises a `TypeError` for a measure that is none of these.
    """

    measures: dict[str, Any]

    def __init__(self, measures: Mapping[str, object]) -> None:
        self.measures = dict(measures)
        for name, measure in self.measures.items():
            if not isinstance(measure, AbstractMeasure | AbstractTransformation):
                _check_measure(f"measures[{name!r}]", measure)

    def init_state(self, params: Params, context: Context) -> MonitorState:
        # So that the dtypes of measurements do not depend on the place in the chain.
        updates = widened(params)
        states = {name: m.init(updates) for name, m in self._measures().items()}
        taken = {
            name: m.take(updates, states[name], params, context)[0]
            for name, m in self._measures().items()
        }
        return MonitorState(zeros_exactly_like(taken), states)

    def transform(
        self, updates: Updates, state: MonitorState, params: Params | None, context: Context
    ) -> tuple[Updates, MonitorState]:
        seen = widened(updates)
        taken, states = {}, {}
        for name, measure in self._measures().items():
            found, states[name] = measure.take(seen, state.measure_states[name], params, context)
            taken[name] = _like_before(name, found, state.measurements[name])
        return updates, MonitorState(taken, states)

    def _measures(self) -> dict[str, AnyMeasure]:
        return {name: _as_measure(measure) for name, measure in self.measures.items()}


class Snapshot(AbstractTransformation[MonitorState]):
    """Keeps the result of a function of the updates, and leaves the updates as they are.

    It is [`eqopt.Monitor`][] with one measure, and is read by [`eqopt.measurements`][] too.

    **Arguments:**

    - `measure_name`: the name of the measurement.
    - `measure`: the function of the updates.
    """

    measure_name: str = eqx.field(static=True)
    measure: Measure

    def __check_init__(self) -> None:
        _check_measure("measure", self.measure)

    def init_state(self, params: Params, context: Context) -> MonitorState:
        return self._monitor().init_state(params, context)

    def transform(
        self, updates: Updates, state: MonitorState, params: Params | None, context: Context
    ) -> tuple[Updates, MonitorState]:
        return self._monitor().transform(updates, state, params, context)

    def _monitor(self) -> Monitor:
        return Monitor({self.measure_name: self.measure})


def measurements(state: PyTree) -> dict[str, PyTree]:
    """Returns everything that [`eqopt.Monitor`][] and [`eqopt.Snapshot`][] have measured, by name.

    **Arguments:**

    - `state`: any state that contains their states.

    **Raises:**

    A `ValueError` if two measurements have the same name.
    """
    found: dict[str, PyTree] = {}
    for x in jax.tree.leaves(state, is_leaf=_is_monitor):
        for name, value in x.measurements.items() if _is_monitor(x) else ():
            if name in found:
                raise ValueError(f"two measurements in `state` are called {name!r}")
            found[name] = value
    return found


def _is_monitor(x: object) -> bool:
    return isinstance(x, MonitorState)


def _as_measure(measure: Any) -> AnyMeasure:
    if isinstance(measure, AbstractMeasure):
        return measure
    if isinstance(measure, AbstractTransformation):
        return _ByTransformation(measure)
    return _Plain(measure)


def _check_measure(name: str, measure: object) -> None:
    if not callable(measure):
        raise TypeError(
            f"`{name}` must be a function of the updates; got {checks.describe(measure)}"
        )


def _like_before(name: str, found: PyTree, before: PyTree) -> PyTree:
    kinds = [jax.tree.map(lambda x: x.shape, tree) for tree in (before, found)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"what `{name}` measures has not the shapes that it had of the parameters, in `init`.\n"
            f"init: {kinds[0]}\nnow: {kinds[1]}"
        )
    return jax.tree.map(lambda x, old: x.astype(old.dtype), found, before)
