"""The evaluation that a line search keeps in its state, and when it may be used again.

In: an objective, parameters, and a state that may hold the evaluation at those parameters. Out:
value, gradient and aux, evaluated only if the state does not hold them.
It exists because a line search ends at a point where it has evaluated already, and the next step
begins there. `fingerprint.py` tells whether the objective is still the same.
"""

from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._base.converters import float_dtype
from .._base.trees import all_finite, zeros_exactly_like
from .._base.xla import changing
from .._jit.function import is_unknown
from .fingerprint import fingerprint, Key, same_bits
from .objective import AnyEvaluation, as_arrays, Evaluation, FullProblem, Objective

_Info = TypeVar("_Info", bound=eqx.Module)


class Cache(eqx.Module):
    """The objective's evaluation at one point, and a key of the objective.

    **Arguments:**

    - `valid`: whether it holds anything that may be used.
    - `key`: the fingerprint of the objective and of its other arguments.
    - `point`: the parameters.
    - `evaluation`: value, gradient and aux there. The value is in JAX's default float dtype.
    - `has_aux`: whether aux is kept. Static.
    """

    valid: Bool[Array, ""]
    key: Key
    point: PyTree
    evaluation: AnyEvaluation
    has_aux: bool = eqx.field(static=True)


class LinesearchState(eqx.Module, Generic[_Info]):
    """The state of every line search.

    **Arguments:**

    - `learning_rate`: the last step taken; after a failed search, the last step tried.
    - `scale`: the largest magnitude of the objective's values at the points visited.
    - `cache`: the objective at the point that the search has chosen, or `None` if the search keeps
        no gradient.
    - `info`: how the search went.
    """

    learning_rate: Float[Array, ""]
    scale: Float[Array, ""]
    cache: Cache | None
    info: _Info


def empty_cache(whole: FullProblem) -> Cache:
    """A cache that holds nothing yet, for the parameters and the aux of an objective."""
    objective, aux = whole.objective, None
    has_aux = objective is not None and bool(objective.has_aux)
    if objective is not None and has_aux:
        aux = jax.eval_shape(lambda p: as_arrays(objective.evaluate(p).aux), whole.params)
        aux = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), aux)
    value = jnp.full((), np.inf, float_dtype())
    evaluation = Evaluation(value, zeros_exactly_like(whole.params), aux)
    nothing = fingerprint(None)
    return Cache(
        valid=jnp.asarray(False),
        key=nothing,
        point=zeros_exactly_like(whole.params),
        evaluation=evaluation,
        has_aux=has_aux,
    )


def filled(
    cache: Cache, objective: Objective, point: PyTree, evaluation: AnyEvaluation, known: Any
) -> Cache:
    """A cache with `evaluation`; it is valid if the evaluation is `known` for certain and is
    finite."""
    finite = jnp.isfinite(evaluation.value) & all_finite(evaluation.grad)
    value = evaluation.value.astype(float_dtype())
    evaluation = Evaluation(value, evaluation.grad, evaluation.aux)
    return Cache(
        valid=finite & known,
        key=key_of(objective),
        point=point,
        evaluation=evaluation,
        has_aux=cache.has_aux,
    )


def key_of(objective: Objective) -> Key:
    return fingerprint(objective.arguments(), fresh=is_unknown(objective.fn))


def searches(state: PyTree) -> list[LinesearchState[Any]]:
    """The states of all line searches within a state."""
    found = jax.tree.leaves(state, is_leaf=_is_search)
    return [x for x in found if _is_search(x)]


def _is_search(x: object) -> bool:
    return isinstance(x, LinesearchState)


def evaluate(
    objective: Objective, params: PyTree, state: PyTree
) -> tuple[AnyEvaluation, Objective, Int[Array, ""]]:
    """The objective at `params`, from the one cache in `state` if it holds that evaluation.

    It also returns the objective, already traced where possible, and the number of evaluations: 1
    or 0.
    """
    found = searches(state)
    cache = found[0].cache if len(found) == 1 else None
    if cache is None:
        return objective.evaluate(params), objective, jnp.ones((), np.int32)
    return recall(objective, params, cache)


def recall(
    objective: Objective, params: PyTree, cache: Cache
) -> tuple[AnyEvaluation, Objective, Int[Array, ""]]:
    """The objective at `params`, which is evaluated only if the cache does not hold it."""
    check_aux(objective, cache)
    if not _alike(params, cache.point):
        return objective.evaluate(params), objective, jnp.ones((), np.int32)
    traced, shapes = objective.traced(params)
    check_aux_fits(shapes.aux, cache)
    hit = cache.valid & jnp.all(cache.key == key_of(objective)) & same_bits(params, cache.point)
    kept = cache.evaluation
    kept = Evaluation(kept.value.astype(shapes.value.dtype), kept.grad, kept.aux)

    # A loop of at most one trip, and not a `cond`: `vmap` would run both branches of a `cond`. The
    # condition has two variables; see `going_on`.
    def going(carry: tuple[Any, Any, AnyEvaluation, PyTree]) -> Any:
        hit, trips, _, _ = carry
        return ~hit & (trips < 1)

    def body(
        carry: tuple[Any, Any, AnyEvaluation, PyTree],
    ) -> tuple[Any, Any, AnyEvaluation, PyTree]:
        hit, trips, _, point = carry
        evaluation = traced.evaluate(point)
        return hit, trips + 1, evaluation, changing(point, evaluation.value)

    start = hit, jnp.zeros((), np.int32), kept, params
    _, num_evals, evaluation, _ = lax.while_loop(going, body, start)
    return evaluation, traced, num_evals


_NO_PLACE = (
    "the line search's state has no place for the objective's aux: make it by "
    "`init(params, value_fn=fn, args=args, has_aux=True)`"
)


def check_aux(objective: Objective, cache: Cache) -> None:
    """Refuses an objective with aux if the state has no place for aux, and the reverse."""
    if objective.has_aux and not cache.has_aux:
        raise ValueError(_NO_PLACE)
    if objective.has_aux is False and cache.has_aux:
        raise ValueError(
            "the line search's state was made for an objective with aux; pass `has_aux=True` here "
            "too, or make it anew by `init(params)`"
        )


def check_aux_fits(aux: PyTree, cache: Cache) -> None:
    """Refuses aux whose structure, shapes or dtypes differ from the aux in `init`."""
    if not cache.has_aux and jax.tree.leaves(aux):
        raise ValueError(_NO_PLACE)
    if not _alike(aux, cache.evaluation.aux):
        raise ValueError(
            "the objective's aux differs from the aux that it returned in `init`.\n"
            f"init: {_kinds(cache.evaluation.aux)}\nnow: {_kinds(aux)}"
        )


def _kinds(tree: PyTree) -> str:
    return eqx.tree_pformat(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree))


def _alike(a: PyTree, b: PyTree) -> bool:
    """Whether two trees have the same structure, and leaf by leaf the same shape and dtype."""
    leaves, treedef = jax.tree.flatten(a)
    others, other_treedef = jax.tree.flatten(b)
    return treedef == other_treedef and all(
        x.shape == y.shape and x.dtype == y.dtype for x, y in zip(leaves, others, strict=True)
    )
