"""The abstract transformation, and the front door `init`, `update` and `step`."""

import abc
import dataclasses
from typing import Any, Generic, Self, TypeAlias

import equinox as eqx
import jax
import numpy as np
import wadler_lindig as wl
from jaxtyping import PyTree

from .._base import checks
from .._base.converters import canonicalize, float_dtype, module_pdoc
from .._base.models import check_places, split
from .._base.rebuilding import IdentityMap, rebuilding
from .._base.trees import conj, round_like
from .._base.types import Function, Kwargs, Model, Params, State, Tree, type_argument, Updates
from .._jit import compiled_call, partition
from .._objective.cache import evaluate
from .._objective.from_state import ValueAndGradFromState
from .._objective.objective import accepted, AnyEvaluation, Context, FullProblem, Objective
from . import leafwise
from .apply import applied
from .eval_params import LookaheadParams


class EmptyState(eqx.Module):
    """The state of a transformation that remembers nothing."""


class AbstractTransformation(eqx.Module, Generic[State]):
    """A rule that turns gradients into updates.

    Users call `init`, `update` and `step`, which take whole models. A writer defines `init_state`
    and `transform`, which see trees of arrays, with `None` for other leaves. The first three check
    and compile, and call the last two. A wrapper calls the last two of its inner transformation
    directly, so a composition is checked and compiled once.
    """

    def init(
        self,
        params: PyTree,
        *,
        value_fn: Function | None = None,
        args: tuple[object, ...] = (),
        has_aux: bool = False,
    ) -> State:
        """Makes the initial state.

        **Arguments:**

        - `params`: the model: any PyTree. Its inexact arrays are trained.
        - `value_fn`, `args`, `has_aux`: the objective, called `value_fn(params, *args)`. Only line
            searches use them, and only to make room for its aux in the state.

        **Returns:**

        The state: arrays only, on the devices of the parameters, sharing no buffer with them.
        """
        return compiled_call.call_objective(
            _init,
            value_fn,
            canonicalize(self),
            params if value_fn is not None else partition.filter_arrays(params),
            partition.mark_numbers_dynamic(args),
            has_aux,
        )

    def update(
        self,
        updates: Tree,
        state: State,
        params: PyTree = None,
        *,
        value: object = None,
        grad: PyTree = None,
        value_fn: Function | None = None,
        key: object = None,
        **extra: Any,
    ) -> tuple[Tree, State]:
        """Turns gradients into updates, to be applied by [`eqopt.apply_updates`][].

        **Arguments:**

        - `updates`: the gradients, exactly as `jax.grad` or `eqx.filter_grad` returns them, also
            for complex parameters. A leaf or a whole branch may be `None`: it gets no update.
            Gradients of half-precision parameters may be in float32.
        - `state`: what `init` or the last `update` returned.
        - `params`: the model at which the gradients were taken.
        - `value`, `grad`, `value_fn`, `key`: the objective's value and gradient at `params`, the
            objective as a function of `params`, and a PRNG key, for transformations that need them.
            - `**extra`: other arguments. They reach every transformation, also inside wrappers.

        **Returns:**

        The updates, like the gradients but in the parameters' dtypes, and the new state.

        **Raises:**

        A `ValueError` or `TypeError` that names the leaf or the argument at fault.
        """
        argnums: Any = 0
        if isinstance(value_fn, ValueAndGradFromState):
            value_fn, argnums = value_fn.fun, value_fn.argnums
        if type(value) in (int, float):
            # Strongly typed, so that a Python number and a JAX array use the same program.
            value = np.asarray(value, float_dtype())
        return compiled_call.call_objective(
            _update,
            value_fn,
            canonicalize(self),
            updates,
            state,
            params if value_fn is not None else partition.filter_arrays(params),
            value,
            grad,
            key,
            partition.mark_numbers_dynamic(extra),
            argnums,
        )

    def step(
        self,
        fn: Function,
        params: Model,
        state: State,
        /,
        *args: object,
        has_aux: bool = False,
        **kwargs: object,
    ) -> tuple[Model, State, AnyEvaluation]:
        """Evaluates the objective and its gradient, updates, and applies, in one compiled program.

        Pass data as arguments. If a closure or a global that `fn` names changes, the program is
        compiled again.

        **Arguments:**

        - `fn`: the objective, called `fn(params, *args, **kwargs)`; it returns a real number, or
            with `has_aux` a pair `(value, aux)`.
        - `params`: the model.
        - `state`: what `init` or the last step returned.
        - `*args`, `**kwargs`: for `fn`. Numbers are data, like arrays; `True`, `False`, strings,
            and numbers within a Module are static. A keyword argument that `fn` does not take still
            reaches the transformations, as `**extra` of `update`; `key` reaches both.

        **Returns:**

        The new model, the new state, and the [`eqopt.Evaluation`][] at the model that was given.
        """
        return compiled_call.call_objective(
            step,
            fn,
            canonicalize(self),
            params,
            state,
            partition.mark_numbers_dynamic(args),
            partition.mark_numbers_dynamic(kwargs),
            has_aux,
        )

    def replace(self, **changes: object) -> Self:
        """Returns a copy with other hyper-parameters: `opt.replace(learning_rate=0.1)`."""
        names = [f.name for f in dataclasses.fields(self)]
        for name in changes:
            if name not in names:
                raise TypeError(
                    f"`{type(self).__name__}` has no hyper-parameter `{name}`; it has "
                    + (", ".join(f"`{x}`" for x in names) or "none")
                )
        return dataclasses.replace(self, **changes)

    @abc.abstractmethod
    def init_state(self, params: Params, context: Context) -> State:
        """The rule's first half: makes the initial state.

        **Arguments:**

        - `params`: the parameters: inexact arrays, and `None` for other leaves.
        - `context`: the other arguments of `init`; see [`eqopt.writing.Context`][].
        """

    @abc.abstractmethod
    def transform(
        self, updates: Updates, state: State, params: Params | None, context: Context
    ) -> tuple[Updates, State]:
        """The rule's second half: from updates to updates.

        **Arguments:**

        - `updates`: the output of the transformation before this one: an array for each parameter
            that has a gradient, else `None`. Their dtype is the parameter's or wider. Complex
            updates point uphill: they are the conjugate of the gradient from `jax.grad`.
        - `state`: the state.
        - `params`: the parameters, or `None` if the user gave none.
        - `context`: the user's other arguments; see [`eqopt.writing.Context`][].
        """

    def __pdoc__(self, **kwargs: object) -> wl.AbstractDoc:
        return module_pdoc(self, **kwargs)

    def __repr__(self) -> str:
        return eqx.tree_pformat(self, width=120)


class AbstractLeafwise(AbstractTransformation[State]):
    """A transformation that does the same to every leaf, without the other leaves.

    It is written as `init_state` and `rule`. Successive links of this kind in an [`eqopt.Chain`][]
    are fused: each leaf goes through all of them in one call.
    """

    @abc.abstractmethod
    def rule(self, state: State, params: Params | None, context: Context) -> leafwise.Rule:
        """Gives the rule for each leaf in this step."""

    def transform(
        self, updates: Updates, state: State, params: Params | None, context: Context
    ) -> tuple[Updates, State]:
        updates, (state,) = leafwise.run((self.rule(state, params, context),), updates, params)
        return updates, state


# An attribute of the optimizer would become a part of its PyTree.
_compositions = IdentityMap()


class AbstractOptimizer(AbstractTransformation[State]):
    """A named composition: an optimizer that is made only of other transformations."""

    @abc.abstractmethod
    def compose(self) -> AbstractTransformation[State]:
        """Gives the composition, built from this optimizer's fields."""

    def __check_init__(self) -> None:
        _compositions.add(self, self.compose())  # with the checks of each part

    def init_state(self, params: Params, context: Context) -> State:
        return composed(self).init_state(params, context)

    def transform(
        self, updates: Updates, state: State, params: Params | None, context: Context
    ) -> tuple[Updates, State]:
        return composed(self).transform(updates, state, params, context)


class AbstractSequence(AbstractTransformation[State]):
    """Transformations one after the other."""

    @abc.abstractmethod
    def in_order(self) -> "tuple[AnyTransformation, ...]":
        """Gives the links, in the order in which they are applied."""


class AbstractPerExample(AbstractTransformation[State]):
    """Transforms per-example gradients, which have one more axis, and checks them itself."""


AnyTransformation: TypeAlias = AbstractTransformation[Any]


def composed(transformation: AbstractTransformation[State]) -> AbstractTransformation[State]:
    """The composition of an optimizer, made once; any other transformation itself."""
    while isinstance(transformation, AbstractOptimizer):
        found = _compositions.get(transformation)
        if found is None:
            with rebuilding():
                found = _compositions.add(transformation, transformation.compose())
        transformation = found
    return transformation


def children(transformation: AnyTransformation) -> dict[str, AnyTransformation]:
    """The transformations that are directly within one, by their paths."""

    def is_child(x: object) -> bool:
        return isinstance(x, AbstractTransformation) and x is not transformation

    found = jax.tree_util.tree_leaves_with_path(transformation, is_leaf=is_child)
    return {jax.tree_util.keystr(path).lstrip("."): x for path, x in found if is_child(x)}


def takes_examples(transformation: AnyTransformation) -> bool:
    """Whether a transformation, or the first one inside it, takes per-example gradients."""
    transformation = composed(transformation)
    if isinstance(transformation, AbstractSequence):
        return any(map(takes_examples, transformation.in_order()[:1]))
    return isinstance(transformation, AbstractPerExample)


def check_transformation(name: str, x: object) -> None:
    """Refuses an argument that is not a transformation, and names it."""
    if not isinstance(x, AbstractTransformation):
        raise TypeError(checks.no_transformation(name, x))


def state_type(transformation: AnyTransformation) -> type[Any]:
    """The class of a transformation's state, read from `AbstractTransformation[ItsState]`."""
    return type_argument(type(composed(transformation)), AbstractTransformation, State)


def check_state(transformation: AnyTransformation, state: object, name: str) -> None:
    """Refuses the state of another transformation."""
    expected = state_type(transformation)
    if checks.enabled() and not isinstance(state, expected):
        raise TypeError(
            f"`{name}` is a `{type(state).__name__}`; `{type(transformation).__name__}` has a "
            f"`{expected.__name__}`, from its `init`"
        )


# The bodies of the compiled programs: they run during tracing, and cost a step nothing.


def _init(
    fn: Function | None,
    transformation: AbstractTransformation[State],
    params: PyTree,
    args: tuple[object, ...],
    has_aux: bool,
) -> State:
    trained, rest = split(params, "params")
    objective = None if fn is None else Objective(fn, rest, args, kwargs={}, has_aux=has_aux)
    context = Context(value_fn=objective, whole=FullProblem(trained, objective))
    return transformation.init_state(trained, context)


def _update(
    fn: Function | None,
    transformation: AbstractTransformation[State],
    updates: PyTree,
    state: State,
    params: PyTree,
    value: Any,
    grad: PyTree,
    key: Any,
    extra: Kwargs,
    argnums: int | tuple[int, ...],
) -> tuple[PyTree, State]:
    check_state(transformation, state, "state")
    trained, rest = split(params, "params")
    if params is not None:
        check_places(updates, params, "params")
    objective = None
    if fn is not None:
        objective = Objective(fn, rest, (), accepted(fn, extra), has_aux=None, argnums=argnums)
    if value is not None and not (checks.is_array(value) and value.shape == ()):
        shape = f"shape {value.shape}" if checks.is_array(value) else checks.describe(value)
        raise ValueError(f"`value` must be one number; got {shape}")
    given = None if params is None else trained
    if isinstance(given, LookaheadParams):
        updates, grad = given.gradient(updates), given.gradient(grad)
    if grad is not None:
        grad = conj(checks.conform_to(grad, given, "grad"))
    whole = None if given is None else FullProblem(given, objective)
    context = Context(value=value, grad=grad, value_fn=objective, key=key, extra=extra, whole=whole)
    return _transform(transformation, updates, state, given, context)


def _transform(
    transformation: AbstractTransformation[State],
    updates: PyTree,
    state: State,
    params: PyTree | None,
    context: Context,
) -> tuple[PyTree, State]:
    examples = takes_examples(transformation)
    fitted = checks.conform_to(updates, params, "updates", any_shape=examples)
    # `jax.grad` gives the conjugate of the direction of ascent. Conjugated here, once, for all
    # rules.
    out, state = transformation.transform(conj(fitted), state, params, context)
    return round_like(out, fitted if params is None else params), state


def step(
    fn: Function,
    transformation: AbstractTransformation[State],
    model: Model,
    state: State,
    args: tuple[object, ...],
    kwargs: dict[str, object],
    has_aux: bool,
) -> tuple[Model, State, AnyEvaluation]:
    """The whole step, uncompiled: for loops that compile it in a larger program."""
    check_state(transformation, state, "state")
    trained, rest = split(model, "params")
    objective = Objective(fn, rest, args, kwargs=accepted(fn, kwargs), has_aux=has_aux)
    evaluation, traced, _ = evaluate(objective, trained, state)
    context = Context(
        value=evaluation.value,
        grad=conj(evaluation.grad),
        value_fn=objective,
        key=kwargs.get("key"),
        extra={name: x for name, x in kwargs.items() if name != "key"},
        whole=FullProblem(trained, traced, evaluation),
    )
    updates, state = _transform(transformation, evaluation.grad, state, trained, context)
    return eqx.combine(applied(trained, updates), rest), state, evaluation
