"""Steps of an optimizer that trains all of a model, or a part."""

from typing import Any

import equinox as eqx
from jaxtyping import PyTree

from .._base import checks
from .._base.types import Function
from .._jit.partition import Flat
from .._objective.objective import AnyEvaluation, Evaluation, Objective
from .._transformation.apply import apply_updates
from .._transformation.base import AnyTransformation, step, takes_examples
from .._transformation.eval_params import LookaheadParams
from .._transformation.masking import Chosen, hide, others
from .._wrapper.freeze import SelectiveTransform
from ..selectors._selector import AbstractSelector


def focused(transformation: AnyTransformation, focus: AbstractSelector | None) -> AnyTransformation:
    """The transformation, applied only to the parameters in focus."""
    return transformation if focus is None else SelectiveTransform(transformation, ~focus)


def check_focus(focus: AbstractSelector, target: PyTree) -> None:
    """Refuses a focus that chooses no parameter."""
    trained, _ = eqx.partition(target, checks.is_inexact)
    leaves, _ = checks.flatten(trained)
    chosen, _ = checks.flatten(focus.select(trained))
    if any(c and x is not None for c, x in zip(chosen, leaves, strict=True)):
        return
    names = checks.paths("target", trained)
    there = [f"`{name}`" for name, x in zip(names, leaves, strict=True) if x is not None]
    raise ValueError(
        f"`focus` chooses no parameter: {focus!r}. The parameters are:\n" + checks.listed(there)
    )


# The bodies of the compiled programs. Parameters out of focus are untouched: adding a zero update
# would turn -0.0 into 0.0.


def out_of_focus(state: Any, focus: AbstractSelector | None) -> Chosen | None:
    """Which parameters are not trained, if there is a focus."""
    return None if focus is None else state.frozen


def _unpacked(rule: Flat, state: object) -> tuple[AnyTransformation, Chosen | None]:
    transformation, focus = rule.whole()
    return focused(transformation, focus), out_of_focus(state, focus)


def apply_gradient(rule: Flat, flat: Flat, grads: PyTree) -> tuple[Flat, None]:
    target, state = flat.whole()
    transformation, frozen = _unpacked(rule, state)
    trained, _ = eqx.partition(target, checks.is_inexact)
    if isinstance(trained, LookaheadParams):
        grads = trained.gradient(grads)
    examples = takes_examples(transformation)
    grads = checks.conform_to(grads, trained, "grads", any_shape=examples, reference_name="target")
    updates, state = transformation.update(grads, state, target)
    if frozen is not None:
        updates = hide(updates, others(frozen))
    return Flat.of((apply_updates(target, updates), state)), None


def gradient(
    fn: Function,
    target: PyTree,
    args: tuple[object, ...],
    kwargs: dict[str, object],
    has_aux: bool,
    frozen: Chosen | None,
) -> AnyEvaluation:
    trained, rest = eqx.partition(target, checks.is_inexact)
    if frozen is not None:
        rest = eqx.combine(hide(trained, frozen, name="target"), rest)
        trained = hide(trained, others(frozen))
    return Objective(fn=fn, rest=rest, args=args, kwargs=kwargs, has_aux=has_aux).evaluate(trained)


def take_step(
    rule: Flat,
    flat: Flat,
    fn: Function,
    args: tuple[object, ...],
    kwargs: dict[str, object],
    has_aux: bool,
) -> tuple[Flat, AnyEvaluation]:
    target, state = flat.whole()
    transformation, frozen = _unpacked(rule, state)
    moved, state, evaluation = step(fn, transformation, target, state, args, kwargs, has_aux)
    if frozen is not None:
        trained, _ = eqx.partition(target, checks.is_inexact)
        moved = eqx.combine(hide(trained, frozen, name="target"), moved)
        grad = hide(evaluation.grad, others(frozen), name="grads")
        evaluation = Evaluation(evaluation.value, grad, evaluation.aux)
    return Flat.of((moved, state)), evaluation
