"""The parameters to evaluate with, where they are not those that are trained."""

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
    """The state of a transformation that knows better parameters to evaluate with than those that
    it trains, such as their average.

    [`eqopt.eval_params`][] finds it by its type, wherever in a state it is.
    """

    @abc.abstractmethod
    def eval_params(self, params: Params) -> Params:
        """Gives the parameters to evaluate with.

        **Arguments:**

        - `params`: the parameters that are trained: inexact arrays, and `None` for all else.

        **Returns:**

        A tree like the parameters, with `None` for those that are to be evaluated as they are.
        """


class LookaheadParams(eqx.Module, Generic[Model]):
    """Fast and slow parameters side by side, for [`eqopt.Lookahead`][].

    **Arguments:**

    - `fast`: the model that is trained, at which gradients are taken.
    - `slow`: the model to evaluate with.
    """

    fast: Model
    slow: Model

    @classmethod
    def init_synced(cls, params: Tree) -> "LookaheadParams[Tree]":
        """Gives a model twice, its arrays copied.

        **Arguments:**

        - `params`: the model: any PyTree.
        """
        # Copied, so that both may be donated.
        return LookaheadParams(
            params, jax.tree.map(lambda x: x.copy() if partition.is_array(x) else x, params)
        )

    def gradient(self, tree: PyTree) -> PyTree:
        """Takes a gradient at the fast parameters for one that says nothing of the slow ones."""
        if tree is None or isinstance(tree, LookaheadParams):
            return tree
        return LookaheadParams(tree, None)


def eval_params(params: Model, state: PyTree) -> Model:
    """Gives the parameters to evaluate with: slow, averaged, or those of a schedule-free optimizer.

    They are found in the state by type, however deep within wrappers. Of transformations within
    one another, each of which has some, the outermost decides; one that is masked does so for its
    own leaves only. Where the state knows of none, the parameters are given back as they are.

    ```python
    import equinox as eqx, eqopt, jax, jax.numpy as jnp

    model = eqx.nn.Linear(2, 1, key=jax.random.key(0))
    opt = eqopt.ParamEMA(eqopt.Adam(1e-3), decay=0.999)
    state = opt.init(model)
    averaged = eqopt.eval_params(model, state)
    y = averaged(jnp.ones(2))
    ```

    **Arguments:**

    - `params`: the model: any PyTree. Of [`eqopt.LookaheadParams`][], the fast parameters are
        replaced by the slow ones.
    - `state`: the state of the optimizer, as the last step returned it.

    **Returns:**

    A model of the same type, in the same dtypes. What has been replaced shares no buffer with the
    state.

    **Raises:** a `ValueError` if the state was made for other parameters, or if two transformations
    that are not within one another have parameters to evaluate with for one leaf.
    """
    states = _outermost(state)
    if not states:
        return params
    arrays, rest = eqx.partition(params, partition.is_array)
    return eqx.combine(compiled_call.call(_replaced, arrays, states), rest)


def known(params: Params, state: PyTree) -> Params:
    """The parameters to evaluate with that a state knows of; `None` for all others."""
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
    """Refuses what a state remembers of other parameters, by the name of the leaf."""
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
    # Copied: what a program merely passes on keeps its buffer, which the next step may donate.
    return treedef.unflatten(
        [x if y is None else jnp.copy(y) for x, y in zip(leaves, found, strict=True)]
    )


def rounded(x: Any, y: Any) -> Any:
    """`y` in the dtype of the parameter `x`, if both are there."""
    return None if x is None or y is None else cast(y, x.dtype)
