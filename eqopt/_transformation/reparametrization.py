"""Transformations that see the parameters in another form, such as one long vector."""

import abc
import dataclasses

import equinox as eqx
import jax
from jaxtyping import PyTree

from .._base import checks
from .._base.trees import conj, mask_like
from .._base.types import Params, Updates
from .._objective.objective import AnyEvaluation, Context, Evaluation, FullProblem, Objective
from .base import AnyTransformation
from .eval_params import known
from .masking import is_like


class AbstractReparametrization(eqx.Module):
    """Another form of the parameters, and of trees like the parameters."""

    @abc.abstractmethod
    def pack(self, tree: PyTree) -> PyTree:
        """Converts a tree to the other form."""

    @abc.abstractmethod
    def unpack(self, packed: PyTree, like: PyTree) -> PyTree:
        """Converts back, to a tree like `like`, with `None` where `like` has `None`."""


def init_in(
    form: AbstractReparametrization,
    inner: AnyTransformation,
    params: Params,
    context: Context,
) -> PyTree:
    """The state of a transformation of parameters in another form."""
    return inner.init_state(form.pack(params), context_in(form, params, params, context))


def transform_in(
    form: AbstractReparametrization,
    inner: AnyTransformation,
    updates: Updates,
    inner_state: object,
    params: Params | None,
    context: Context,
) -> tuple[Updates, PyTree]:
    """Applies a transformation to updates in another form."""
    packed_params = None if params is None else form.pack(params)
    inside = context_in(form, updates, params, context)
    out, inner_state = inner.transform(form.pack(updates), inner_state, packed_params, inside)
    return form.unpack(out, updates), inner_state


def eval_params_in(form: AbstractReparametrization, params: Params, inner_state: object) -> Params:
    """The parameters to evaluate with that the state of a transformation in another form knows."""
    packed = form.pack(params)
    found = known(packed, inner_state)
    if not jax.tree.leaves(found):
        return jax.tree.map(lambda _: None, params)
    # A vector is known as a whole or not at all; in a pair, an unknown part stays as it is.
    return form.unpack(eqx.combine(found, packed), params)


def context_in(
    form: AbstractReparametrization,
    like: PyTree,
    params: Params | None,
    context: Context,
    packed: PyTree | None = None,
) -> Context:
    """The context in another form; `packed`, if given, is the parameters in that form."""
    extra = {
        name: form.pack(x) if is_like(x, like) and _is_inexact(x) else x
        for name, x in context.extra.items()
    }
    grad = None if context.grad is None else form.pack(context.grad)
    value_fn, whole = context.value_fn, context.whole
    if params is not None:
        outer = whole or FullProblem(params, value_fn)
        # Inside, the parameters in the other form are all parameters: a line search moves only
        # these, and the others stay where they are.
        objective = outer.objective
        if objective is not None:
            value_fn = objective = _in_form(form, objective, params, outer.params)
        evaluation = outer.evaluation
        if evaluation is not None:
            raw = _pack_raw(form, evaluation.grad, params)
            evaluation = dataclasses.replace(evaluation, grad=raw)
        whole = FullProblem(form.pack(params) if packed is None else packed, objective, evaluation)
    return Context(
        value=context.value, grad=grad, value_fn=value_fn, key=context.key, extra=extra, whole=whole
    )


def _is_inexact(tree: PyTree) -> bool:
    return all(map(checks.is_inexact, jax.tree.leaves(tree)))


def _pack_raw(form: AbstractReparametrization, grad: PyTree, shown: PyTree) -> PyTree:
    # A gradient as `jax.grad` gives it. Only its conjugate may be converted.
    return conj(form.pack(conj(mask_like(shown, grad))))


class _Formed(eqx.Module):
    """An objective, called with parameters in another form."""

    form: AbstractReparametrization
    objective: Objective
    shown: PyTree
    whole: PyTree

    def __call__(self, packed: PyTree) -> PyTree:
        value, aux = self.objective(self.model(packed))
        return value if self.objective.has_aux is False else (value, aux)

    def evaluate(self, packed: PyTree) -> AnyEvaluation:
        # The gradient is not taken through the slices: the transpose of each is as long as the
        # vector.
        found = self.objective.evaluate(self.model(packed))
        return Evaluation(found.value, _pack_raw(self.form, found.grad, self.shown), found.aux)

    def model(self, packed: PyTree) -> PyTree:
        return eqx.combine(self.form.unpack(packed, self.shown), self.whole)


def _in_form(
    form: AbstractReparametrization, objective: Objective, shown: PyTree, whole: PyTree
) -> Objective:
    formed = _Formed(form, objective, shown, whole)
    rest = jax.tree.map(lambda _: None, form.pack(shown))
    return Objective(formed, rest, has_aux=objective.has_aux, replay=formed.evaluate)
