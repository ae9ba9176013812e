"""The bounds that a user gives to `minimize`, as bounds of each parameter.

In: numbers, trees, prefixes of trees, or numbers by selector. Out: a lower and an upper bound for
each leaf, checked; then arrays of the parameters' shapes and dtypes, rounded inward.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from .._base import checks
from .._base.arithmetic import is_complex
from .._base.compat import Tracer
from .._base.types import Leaves, Params
from .._objective.bounds import Bounds
from .._objective.objective import AnyEvaluation, Evaluation
from .._transformation.base import AnyTransformation, composed
from .._wrapper.chain import Chain
from ..projections._base import inward, spreadable
from ..quasi_newton._lbfgsb import ScaleByLBFGSB
from ..selectors._table import first_choices, only_selectors
from .search_chain import last_search


class BoundsOfLeaves(NamedTuple):
    """A number, an array or `None` for each leaf of the parameters, in order."""

    lower: Leaves
    upper: Leaves


def check_can_bound(optimizer: Any) -> None:
    """Refuses optimizers that would leave the bounds."""
    links = _links(optimizer)
    if last_search(optimizer) is None or not any(isinstance(x, ScaleByLBFGSB) for x in links):
        raise TypeError(
            "`bounds` need an optimizer that keeps them: `eqopt.LBFGSB()`, or a chain of "
            "`eqopt.quasi_newton.ScaleByLBFGSB` that ends in a line search with gradients; got "
            f"{checks.describe(optimizer)}. An optimizer without a line search keeps them by "
            "`eqopt.Chain(optimizer, eqopt.Project(eqopt.projections.Box(lower, upper)))`, and "
            "`minimize` then takes no `bounds`"
        )


def _links(optimizer: AnyTransformation) -> list[AnyTransformation]:
    optimizer = composed(optimizer)
    if not isinstance(optimizer, Chain):
        return [optimizer]
    return [x for link in optimizer.links for x in _links(link)]


# What the user gives


def of_leaves(bounds: Any, params: Params) -> BoundsOfLeaves:
    """The bounds of each leaf; an error names the leaf that they do not fit.

    **Arguments:**

    - `bounds`: a pair of bounds, or pairs by selector.
    - `params`: the parameters, with `None` for leaves that are not trained.
    """
    leaves, _ = checks.flatten(params)
    if isinstance(bounds, Mapping):
        pairs = _by_selector(bounds, params)
    else:
        lower, upper = _pair(bounds, "bounds")
        low, high = _spread(lower, "bounds[0]", params), _spread(upper, "bounds[1]", params)
        pairs = [*zip(low, high, strict=True)]
    paths = checks.paths("params", params)
    for x, pair, path in zip(leaves, pairs, paths, strict=True):
        if x is not None:
            _check(x, *pair, path)
    trained = [
        pair if x is not None else (None, None) for x, pair in zip(leaves, pairs, strict=True)
    ]
    return BoundsOfLeaves([low for low, _ in trained], [high for _, high in trained])


def _pair(bounds: Any, name: str) -> tuple[Any, Any]:
    sequence = isinstance(bounds, tuple | list)
    if not sequence or len(bounds) != 2:
        got = f"{len(bounds)} entries" if sequence else checks.describe(bounds)
        raise TypeError(f"`{name}` must be a pair `(lower, upper)`; got {got}")
    return bounds[0], bounds[1]


def _by_selector(bounds: Mapping[Any, Any], params: Params) -> Leaves:
    only_selectors("`bounds`", bounds)
    pairs: dict[Any, tuple[Any, Any]] = {}
    for selector, pair in bounds.items():
        name = f"bounds[{'...' if selector is ... else selector}]"
        lower, upper = _pair(pair, name)
        pairs[selector] = _number(lower, f"{name}[0]"), _number(upper, f"{name}[1]")
    rest = pairs.pop(..., (None, None))
    found = (*pairs.values(), rest)
    return [found[i] for i in first_choices([*pairs], params)]


def _number(value: Any, name: str) -> Any:
    if value is None:
        return None
    found = spreadable(name, finite=False)(value)
    if not checks.is_array(found):
        raise TypeError(f"`{name}` must be a number or an array; got {checks.describe(value)}")
    return found


def _spread(value: Any, name: str, params: Params) -> Leaves:
    found = None if value is None else spreadable(name, finite=False)(value)
    return checks.spread_prefix(found, params, name)


def _check(x: Array, lower: Any, upper: Any, path: str) -> None:
    if is_complex(x):
        raise TypeError(f"`bounds` are for real parameters; `{path}` is {checks.describe(x)}")
    known = [b for b in (lower, upper) if b is not None]
    for bound in known:
        if np.shape(bound) not in ((), x.shape):
            raise ValueError(
                f"a bound of `{path}` has shape {np.shape(bound)}; the parameter has {x.shape}"
            )
        if not isinstance(bound, Tracer) and np.any(np.isnan(np.asarray(bound))):
            raise ValueError(f"a bound of `{path}` is NaN")
    if len(known) == 2 and not any(isinstance(b, Tracer) for b in known):
        if np.any(np.asarray(lower) > np.asarray(upper)):
            raise ValueError(f"the lower bound of `{path}` is above its upper bound")


# Arrays


def as_arrays(bounds: BoundsOfLeaves, params: Params) -> Bounds:
    """The bounds as trees like the parameters.

    Numbers that a parameter's dtype cannot represent are rounded inward.
    """
    leaves, treedef = checks.flatten(params)
    paths = checks.paths("params", params)

    def array(x: Array | None, bound: Any, path: str, *, up: bool) -> Array | None:
        if x is None:
            return None
        outside = jnp.asarray(-np.inf if up else np.inf, jnp.finfo(x.dtype).dtype)
        return inward(x, outside if bound is None else bound, up=up, name=path)

    low = [array(*y, up=True) for y in zip(leaves, bounds.lower, paths, strict=True)]
    high = [array(*y, up=False) for y in zip(leaves, bounds.upper, paths, strict=True)]
    # If a dtype has no number between the bounds, the rounded bounds have crossed.
    low = [None if a is None else jnp.minimum(a, b) for a, b in zip(low, high, strict=True)]
    return Bounds(treedef.unflatten(low), treedef.unflatten(high))


def crossing(bounds: BoundsOfLeaves) -> Bool[Array, ""]:
    """Whether a lower bound is above an upper one, or a bound is NaN."""
    wrong = [jnp.asarray(False)]
    for low, high in zip(*bounds, strict=True):
        wrong += [jnp.any(jnp.isnan(x)) for x in (low, high) if x is not None]
        if low is not None and high is not None:
            wrong.append(jnp.any(low > high))
    return jnp.any(jnp.stack(wrong))


# At the solution


class Held(eqx.Module):
    """The objective as a function of the parameters between their bounds alone.

    Those on a bound are that bound. So the gradient is zero at a solution, and the derivatives of
    the solution follow as without bounds, those with respect to the bounds too.

    **Arguments:**

    - `evaluate`: the objective's evaluation, as a function of all parameters.
    - `bounds`: the bounds.
    - `on_lower`, `on_upper`: trees of booleans: which parameters are on a bound.
    """

    evaluate: Callable[[PyTree], AnyEvaluation]
    bounds: Bounds
    on_lower: PyTree
    on_upper: PyTree

    def __init__(
        self, evaluate: Callable[[PyTree], AnyEvaluation], bounds: Bounds, params: Params
    ) -> None:
        self.evaluate, self.bounds = evaluate, bounds
        self.on_lower = jax.tree.map(lambda x, low: x == low, params, bounds.lower)
        self.on_upper = jax.tree.map(lambda x, high: x == high, params, bounds.upper)

    def place(self, params: Params) -> Params:
        """The parameters, with those on a bound replaced by it."""

        def put(x: Array, low: Array, high: Array, is_low: Array, is_high: Array) -> Array:
            return jnp.where(is_low, low, jnp.where(is_high, high, x))

        bounds = self.bounds.lower, self.bounds.upper
        return jax.tree.map(put, params, *bounds, self.on_lower, self.on_upper)

    def __call__(self, params: Params) -> AnyEvaluation:
        found = self.evaluate(self.place(params))
        grad = jax.tree.map(
            lambda g, is_low, is_high: jnp.where(is_low | is_high, 0, g),
            found.grad,
            self.on_lower,
            self.on_upper,
        )
        return Evaluation(found.value, grad, found.aux)
