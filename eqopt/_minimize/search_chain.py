"""The parts of an optimizer that ends in a line search."""

from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Int, PyTree

from .._base import checks
from .._base.ravel import Ravel, Raveled
from .._base.types import Params, Updates
from .._objective.cache import LinesearchState
from .._objective.objective import AnyEvaluation, Context, Evaluation, Objective
from .._transform.average import Trace
from .._transform.basic import Identity, Scale
from .._transform.clip import ClipByGlobalNorm
from .._transform.learning_rate import ScaleByLearningRate
from .._transformation.base import AnyTransformation, composed
from .._transformation.sequence import transform_links
from .._wrapper.chain import Chain, ChainState
from ..linesearch._base import AbstractLinesearch
from ..quasi_newton._conjugate_gradient import ScaleByNonlinearCG
from ..quasi_newton._lbfgs import ScaleByLBFGS
from ..quasi_newton._lbfgsb import ScaleByLBFGSB
from ..quasi_newton._newton_cg import ScaleByNewtonCG, ScaleByNewtonCGState


def commutes_with_ravel(optimizer: AnyTransformation) -> bool:
    """Whether an optimizer treats one long vector exactly as it treats the leaves in it."""
    optimizer = composed(optimizer)
    if isinstance(optimizer, Chain):
        return all(map(commutes_with_ravel, optimizer.links))
    if isinstance(optimizer, AbstractLinesearch):
        return optimizer.keeps_grad  # other transformations evaluate in their own way
    return isinstance(optimizer, _VECTORWISE)


def raveled(objective: Objective, ravel: Ravel) -> Objective:
    """The objective as a function of bundles."""

    def evaluate(bundle: Raveled) -> AnyEvaluation:
        # The gradient is not taken through the slices: the transpose of each is as long as the
        # vector.
        found = objective.evaluate(ravel.unpack(bundle))
        return Evaluation(found.value, ravel.pack(found.grad), found.aux)

    return eqx.tree_at(lambda o: o.replay, objective, evaluate, is_leaf=checks.is_none)


_VECTORWISE = (
    ClipByGlobalNorm,
    Identity,
    Scale,
    ScaleByLBFGS,
    ScaleByLBFGSB,
    ScaleByLearningRate,
    ScaleByNewtonCG,
    ScaleByNonlinearCG,
    Trace,
)


def last_search(optimizer: AnyTransformation) -> AbstractLinesearch[Any] | None:
    """The line search at the end of an optimizer, or `None`."""
    optimizer = composed(optimizer)
    if isinstance(optimizer, Chain) and optimizer.links:
        return last_search(optimizer.links[-1])
    if isinstance(optimizer, AbstractLinesearch) and optimizer.keeps_grad:
        return optimizer
    return None


def own_state(state: PyTree) -> LinesearchState[Any]:
    """The state of that line search."""
    while isinstance(state, ChainState):
        state = state.states[-1]
    return state


def states_of_links(state: PyTree) -> list[Any]:
    """The states of the links of a chain, and of those within them, in order."""
    if not isinstance(state, ChainState):
        return [state]
    found: list[Any] = []
    for x in state.states:
        found += states_of_links(x) if isinstance(x, ChainState) else [x]
    return found


def num_products(state: PyTree) -> Int[Array, ""] | int:
    """How many products with the Hessian matrix the last step of a chain needed."""
    total: Any = 0
    for x in state.states if isinstance(state, ChainState) else (state,):
        if isinstance(x, ChainState):
            total = total + num_products(x)
        elif isinstance(x, ScaleByNewtonCGState):
            total = total + x.num_products
    return total


def num_products_anywhere(state: PyTree) -> Int[Array, ""] | int:
    """The same for a state of any wrapper."""

    def multiplies(x: object) -> bool:
        return isinstance(x, ScaleByNewtonCGState)

    return sum(map(num_products, jax.tree.leaves(state, is_leaf=multiplies)))


def transform_until_search(
    optimizer: AnyTransformation,
    updates: Updates,
    state: PyTree,
    params: Params,
    context: Context,
) -> tuple[Updates, PyTree]:
    """The step of all links except that line search."""
    optimizer = composed(optimizer)
    if isinstance(optimizer, Chain):
        *links, last = optimizer.links
        *states, last_state = state.states
        names = [f"state.states[{i}]" for i in range(len(links))]
        updates, states = transform_links(links, states, names, updates, params, context)
        updates, last_state = transform_until_search(last, updates, last_state, params, context)
        return updates, ChainState((*states, last_state))
    return updates, state
