"""One object: a transformation, its state, and the model that it trains."""

from typing import Any, Generic, Literal, overload, TypeVar

import equinox as eqx
import wadler_lindig as wl
from jaxtyping import Array, PyTree

from .._base.converters import canonicalize
from .._base.types import Function, Model, State
from .._jit import compiled_call
from .._jit.partition import filter_arrays, Flat, mark_numbers_dynamic, on_device
from .._objective.objective import AnyEvaluation
from .._transformation.base import (
    AbstractTransformation,
    AnyTransformation,
    check_state,
    check_transformation,
)
from .._transformation.eval_params import eval_params
from .._wrapper.freeze import SelectiveTransformState
from ..selectors._selector import AbstractSelector, as_selector
from .focus import apply_gradient, check_focus, focused, gradient, out_of_focus, take_step
from .hyperparameters import hyperparameters
from .override import override

_Model = TypeVar("_Model")
_State = TypeVar("_State", bound=eqx.Module)
_MISSING: Any = object()


class Optimizer(eqx.Module, Generic[Model, State]):
    """Holds a transformation, its state, and the model that it trains.

    `create` makes it, and each method that changes it returns a new one:

    ```python
    import equinox as eqx, eqopt, jax, jax.numpy as jnp


    def loss_fn(model, x, y):
        return jnp.mean((jax.vmap(model)(x) - y) ** 2)


    model = eqx.nn.MLP(3, 1, 8, 2, key=jax.random.key(0))
    x, y = jnp.ones((4, 3)), jnp.ones((4, 1))

    optimizer = eqopt.Optimizer.create(eqopt.AdamW(1e-3), model)
    optimizer, evaluation = optimizer.step(loss_fn, x, y)
    model = optimizer.target
    ```

    **Arguments:**

    - `transformation`: the transformation.
    - `state`: its state; with a `focus`, the state of an [`eqopt.SelectiveTransform`][] around it.
    - `target`: the model.
    - `focus`: which parameters are trained; `None` trains all.
    """

    # The transformation and the focus; the target and the state. Between steps only the compiled
    # program uses them, so they stay flat.
    _rule: Flat
    _flat: Flat

    def __init__(
        self,
        transformation: AnyTransformation,
        state: State = _MISSING,
        target: Model = _MISSING,
        focus: AbstractSelector | None = None,
    ) -> None:
        check_transformation("transformation", transformation)
        if target is _MISSING:
            raise TypeError(
                "`Optimizer` takes a transformation, its state and a target. "
                "`Optimizer.create(transformation, target)` makes the state"
            )
        check_state(focused(transformation, focus), state, "state")
        self._rule = Flat.of(on_device((canonicalize(transformation), focus)))
        self._flat = Flat.of((target, state))

    # Plain Python methods: Equinox makes a method a PyTree, and looks at every leaf at each access.
    def __getattribute__(self, name: str) -> Any:
        return object.__getattribute__(self, name)

    @property
    def transformation(self) -> AnyTransformation:
        return self._rule.whole()[0]

    @property
    def focus(self) -> AbstractSelector | None:
        return self._rule.whole()[1]

    @property
    def target(self) -> Model:
        return self._flat.whole()[0]

    @property
    def state(self) -> State:
        return self._flat.whole()[1]

    @overload
    @classmethod
    def create(
        cls,
        transformation: AbstractTransformation[_State],
        target: _Model,
        focus: None = None,
        *,
        value_fn: Function | None = None,
        args: tuple[object, ...] = (),
        has_aux: bool = False,
    ) -> "Optimizer[_Model, _State]": ...
    @overload
    @classmethod
    def create(
        cls,
        transformation: AbstractTransformation[_State],
        target: _Model,
        focus: AbstractSelector | Function | PyTree[bool],
        *,
        value_fn: Function | None = None,
        args: tuple[object, ...] = (),
        has_aux: bool = False,
    ) -> "Optimizer[_Model, SelectiveTransformState[_State]]": ...
    @classmethod
    def create(
        cls,
        transformation: AnyTransformation,
        target: object,
        focus: object = None,
        *,
        value_fn: Function | None = None,
        args: tuple[object, ...] = (),
        has_aux: bool = False,
    ) -> "Optimizer[Any, Any]":
        """Makes an optimizer, with the state to begin with.

        **Arguments:**

        - `transformation`: any transformation. For groups of parameters, [`eqopt.Partition`][].
        - `target`: the model: any PyTree.
        - `focus`: which parameters are trained: a selector, a function from the parameters to
            booleans, or a tree of booleans, possibly a prefix. The others stay as they are, and
            have no state. `None` trains all.
        - `value_fn`, `args`, `has_aux`: the objective, called `value_fn(target, *args)`. Only line
            searches use them, and only to make room for its aux in the state.

        **Returns:**

        The optimizer.

        **Raises:**

        A `ValueError` if `focus` chooses no parameter.
        """
        check_transformation("transformation", transformation)
        selector = None if focus is None else as_selector(focus)
        if selector is not None:
            check_focus(selector, target)
        whole = focused(transformation, selector)
        state = whole.init(target, value_fn=value_fn, args=args, has_aux=has_aux)
        return Optimizer(transformation, state, target, selector)

    def apply_gradient(self, grads: PyTree, **overrides: object) -> "Optimizer[Model, State]":
        """Takes a step with the gradients given.

        **Arguments:**

        - `grads`: the gradients at `target`, exactly as `compute_gradient`, `jax.grad` or
            `eqx.filter_grad` gives them. A leaf or a whole branch may be `None`: its parameters
            stay.
        - `**overrides`: hyper-parameters for this step only, such as `learning_rate=0.1`: numbers,
            or arrays of shape `()`, also in place of a schedule. A new value never recompiles. The
            names are the keys of `hyperparameters()`; the last part of a name is enough if it is
            unique: in a chain, `max_norm` for `links[0].max_norm`.

        **Returns:**

        The optimizer after the step.

        **Raises:**

        A `ValueError` or `TypeError` that names the leaf or the argument at fault.
        """
        kept = _rule(self, overrides), self._flat
        flat, _ = compiled_call.advance(apply_gradient, kept, filter_arrays(grads))
        return _after(self, flat)

    @overload
    def compute_gradient(
        self, fn: Function, /, *args: object, has_aux: Literal[False] = False, **kwargs: object
    ) -> tuple[Array, Model]: ...
    @overload
    def compute_gradient(
        self, fn: Function, /, *args: object, has_aux: Literal[True], **kwargs: object
    ) -> tuple[Array, Any, Model]: ...
    @overload
    def compute_gradient(
        self, fn: Function, /, *args: object, has_aux: bool, **kwargs: object
    ) -> tuple[Any, ...]: ...
    def compute_gradient(
        self, fn: Function, /, *args: object, has_aux: bool = False, **kwargs: object
    ) -> tuple[Any, ...]:
        """Evaluates a loss and its gradient at `target`.

        **Arguments:**

        - `fn`: called `fn(target, *args, **kwargs)`; it returns a real number, or with `has_aux` a
            pair `(value, aux)`.
        - `*args`, `has_aux`, `**kwargs`: as for `step`.

        **Returns:**

        `(value, grads)`, or with `has_aux` `(value, aux, grads)`. The gradients are like `target`,
        with `None` for leaves that are not trained.
        """
        target, state = self._flat.whole()
        evaluation = compiled_call.call_objective(
            gradient,
            fn,
            target,
            mark_numbers_dynamic(args),
            mark_numbers_dynamic(kwargs),
            has_aux,
            out_of_focus(state, self.focus),
        )
        aux = (evaluation.aux,) if has_aux else ()
        return evaluation.value, *aux, evaluation.grad

    @overload
    def optimize(
        self, fn: Function, /, *args: object, has_aux: Literal[False] = False, **overrides: object
    ) -> "tuple[Optimizer[Model, State], Array]": ...
    @overload
    def optimize(
        self, fn: Function, /, *args: object, has_aux: Literal[True], **overrides: object
    ) -> "tuple[Optimizer[Model, State], Array, Any]": ...
    @overload
    def optimize(
        self, fn: Function, /, *args: object, has_aux: bool, **overrides: object
    ) -> tuple[Any, ...]: ...
    def optimize(
        self, fn: Function, /, *args: object, has_aux: bool = False, **overrides: object
    ) -> tuple[Any, ...]:
        """Takes a step down a loss, with other hyper-parameters for this step only.

        **Arguments:**

        - `fn`: called `fn(target, *args)`; it returns a real number, or with `has_aux` a pair
            `(value, aux)`.
        - `*args`, `has_aux`: as for `step`.
        - `**overrides`: as for `apply_gradient`.

        **Returns:**

        `(optimizer, value)`, or with `has_aux` `(optimizer, value, aux)`; the value is the loss
        before the step.
        """
        optimizer, evaluation = _stepped(self, overrides, fn, args, {}, has_aux)
        aux = (evaluation.aux,) if has_aux else ()
        return optimizer, evaluation.value, *aux

    def step(
        self, fn: Function, /, *args: object, has_aux: bool = False, **kwargs: object
    ) -> "tuple[Optimizer[Model, State], AnyEvaluation]":
        """Evaluates a loss and its gradient, and takes a step, in one compiled program.

        **Arguments:**

        - `fn`: called `fn(target, *args, **kwargs)`; it returns a real number, or with `has_aux` a
            pair `(value, aux)`.
        - `*args`, `**kwargs`: for `fn`, and for the transformations, as in
            [`eqopt.writing.AbstractTransformation.step`][].
        - `has_aux`: whether `fn` returns `(value, aux)`.

        **Returns:**

        The optimizer after the step, and the [`eqopt.Evaluation`][] at the target before the step.
        Its gradient is `None` for leaves that are not trained.
        """
        return _stepped(self, {}, fn, args, kwargs, has_aux)

    @property
    def eval_target(self) -> Model:
        """The model to evaluate with: slow, averaged, or as it is; see [`eqopt.eval_params`][]."""
        return eval_params(*self._flat.whole())

    def hyperparameters(self) -> dict[str, Array]:
        """Gives the numeric hyper-parameters that the next step will use, for logging.

        **Returns:**

        The values by name, as [`eqopt.hyperparameters`][] gives them.
        """
        state: Any = self.state
        inner = state if self.focus is None else state.inner_state
        return hyperparameters(self.transformation, inner)

    def replace(self, **changes: Any) -> "Optimizer[Model, State]":
        """Returns a copy with another `target`, `state` or `transformation`, or with other
        hyper-parameters for all later steps, by the names that `apply_gradient` takes.

        **Arguments:**

        - `**changes`: the new values by name.
        """
        target, state = self._flat.whole()
        target, state = changes.pop("target", target), changes.pop("state", state)
        transformation = changes.pop("transformation", self.transformation)
        return Optimizer(override(transformation, changes), state, target, self.focus)

    def __pdoc__(self, **kwargs: Any) -> wl.AbstractDoc:
        # The transformation in full, because it is short; a summary of the others.
        shown = [("transformation", self.transformation)]
        if self.focus is not None:
            shown += [("focus", self.focus)]
        kinds = (("state", type(self.state).__name__), ("target", type(self.target).__name__))
        return wl.bracketed(
            begin=wl.TextDoc("Optimizer("),
            docs=[
                *wl.named_objs(shown, **kwargs),
                *(wl.TextDoc(f"{name}={kind}(...)") for name, kind in kinds),
            ],
            sep=wl.comma,
            end=wl.TextDoc(")"),
            indent=kwargs["indent"],
        )

    def __repr__(self) -> str:
        return eqx.tree_pformat(self, width=120)


def _rule(optimizer: Optimizer[Any, Any], overrides: dict[str, object]) -> Flat:
    if not overrides:
        return optimizer._rule
    transformation, focus = optimizer._rule.whole()
    return Flat.of((override(transformation, overrides), focus))


def _after(optimizer: Optimizer[Model, State], flat: Flat) -> Optimizer[Model, State]:
    # As Equinox unflattens a Module: calling the class would run its checks and converters.
    after: Optimizer[Model, State] = object.__new__(Optimizer)
    object.__setattr__(after, "_rule", optimizer._rule)
    object.__setattr__(after, "_flat", flat)
    return after


def _stepped(
    optimizer: Optimizer[Model, State],
    overrides: dict[str, object],
    fn: Function,
    args: tuple[object, ...],
    kwargs: dict[str, object],
    has_aux: bool,
) -> tuple[Optimizer[Model, State], AnyEvaluation]:
    flat, evaluation = compiled_call.advance(
        take_step,
        (_rule(optimizer, overrides), optimizer._flat),
        mark_numbers_dynamic(args),
        mark_numbers_dynamic(kwargs),
        has_aux,
        fn=fn,
    )
    return _after(optimizer, flat), evaluation
