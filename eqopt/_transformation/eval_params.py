"""The parameters to evaluate with, if they differ from the trained parameters."""

import abc
from typing import Any, Generic

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._base import checks
from .._base.arithmetic import cast
from .._base.types import Model, Params, Tree
from .._jit import compiled_call, partition


class AbstractEvalState(eqx.Module):
    """The state of a transformation that has better parameters to evaluate with than the trained
    parameters, such as their average.

    [`eqopt.eval_params`][] finds it by its type, anywhere in a state.
    """

    @abc.abstractmethod
    def eval_params(self, params: Params) -> Params:
        """Gives the parameters to evaluate with.

        **Arguments:**

        - `params`: the trained parameters: inexact arrays, and `None` for other leaves.

        **Returns:**

        A tree like the parameters, with `None` for parameters to evaluate as they are.
        """


class LookaheadParams(eqx.Module, Generic[Model]):
    """Fast and slow parameters side by side, for [`eqopt.Lookahead`][].

    **Arguments:**

    - `fast`: the trained model, at which gradients are taken.
    - `slow`: the model to evaluate with.
    """

    fast: Model
    slow: Model

    @classmethod
    def init_synced(cls, params: Tree) -> "LookaheadParams[Tree]":
        """Makes both from one model, and copies its arrays.

        **Arguments:**

        - `params`: the model: any PyTree.
        """
        # Copied, so that both may be donated.
        return LookaheadParams(
            params, jax.tree.map(lambda x: x.copy() if partition.is_array(x) else x, params)
        )

    def gradient(self, tree: PyTree) -> PyTree:
        """Extends a gradient at the fast parameters by `None` for the slow parameters."""
        if tree is None or isinstance(tree, LookaheadParams):
            return tree
        return LookaheadParams(tree, None)


def eval_params(params: Model, state: PyTree) -> Model:
    """Gives the parameters to evaluate with: slow, averaged, or those of a schedule-free optimizer.

    They are found in the state by type, also deep inside wrappers. If nested transformations each
    have such parameters, the outermost decides; a masked transformation decides for its own leaves
    only. Where the state has none, the parameters are returned unchanged.

    ```python
    import equinox as eqx, eqopt, jax, jax.numpy as jnp

    model = eqx.nn.Linear(2, 1, key=jax.random.key(0))
    opt = eqopt.ParamEMA(eqopt.Adam(1e-3), decay=0.999)
    state = opt.init(model)
    averaged = eqopt.eval_params(model, state)
    y = averaged(jnp.ones(2))
    ```

    **Arguments:**

    - `params`: the model: any PyTree. In [`eqopt.LookaheadParams`][], the fast parameters are
        replaced by the slow parameters.
    - `state`: the state of the optimizer, as the last step returned it.

    **Returns:**

    A model of the same type, in the same dtypes. Replaced arrays share no buffer with the state.

    **Raises:** a `ValueError` if the state was made for other parameters, or if two transformations
    that are not nested have parameters to evaluate with for the same leaf.
    """
    states = _outermost(state)
    if not states:
        return params
    arrays, rest = eqx.partition(params, partition.is_array)
    return eqx.combine(compiled_call.call(_replaced, arrays, states), rest)


def known(params: Params, state: PyTree) -> Params:
    """The parameters to evaluate with in a state; `None` for all others."""
    leaves, treedef = checks.flatten(params)
    merged: list[object] = [None] * len(leaves)
    for found in _outermost(state):
        own, _ = checks.flatten(checks.conform_to(found.eval_params(params), params, "state"))
        twice = [i for i, (a, b) in enumerate(zip(merged, own, strict=True)) if _both(a, b)]
        if twice:
            name = checks.paths("params", params)[twice[0]]
            raise ValueError(
                f"two transformations have parameters to evaluate with for `{name}`, and neither "
                f"is within the other; the second has a `{type(found).__name__}`. Give the state "
                "of one of them"
            )
        merged = [b if a is None else a for a, b in zip(merged, own, strict=True)]
    return treedef.unflatten(merged)


def check_like(tree: PyTree, params: Params, name: str) -> PyTree:
    """Refuses a state that was made for other parameters, and names the leaf."""
    return checks.conform_to(tree, params, name, any_dtype=True)


def _both(a: object, b: object) -> bool:
    return a is not None and b is not None


def _outermost(state: PyTree) -> list[AbstractEvalState]:
    return [x for x in jax.tree.leaves(state, is_leaf=_is_eval_state) if _is_eval_state(x)]


def _is_eval_state(x: object) -> bool:
    return isinstance(x, AbstractEvalState)


def _replaced(arrays: PyTree, states: list[AbstractEvalState]) -> PyTree:
    leaves, treedef = checks.flatten(arrays)
    trained = treedef.unflatten([x if checks.is_inexact(x) else None for x in leaves])
    found, _ = checks.flatten(known(trained, states))
    # Copied: an array that a program returns unchanged keeps its buffer, which the next step may
    # donate.
    return treedef.unflatten(
        [x if y is None else jnp.copy(y) for x, y in zip(leaves, found, strict=True)]
    )


def rounded(x: Any, y: Any) -> Any:
    """`y` in the dtype of the parameter `x`, if both are there."""
    return None if x is None or y is None else cast(y, x.dtype)
