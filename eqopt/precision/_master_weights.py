"""Float32 copies of half-precision parameters."""

from typing import Generic

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from .._base import checks
from .._base.arithmetic import cast, is_half
from .._base.trees import add, copies, narrowed, widened
from .._base.types import Params, State, Updates
from .._objective.objective import Context, require_params
from .._transformation.base import AbstractTransformation, check_state, check_transformation
from .._transformation.eval_params import check_like
from .._transformation.nesting import AbstractConstrained, Requirement
from .._transformation.reparametrization import AbstractReparametrization, context_in


class _Wide(AbstractReparametrization):
    """Half-precision leaves in float32."""

    def pack(self, tree: PyTree) -> PyTree:
        return widened(tree)

    def unpack(self, packed: PyTree, like: PyTree) -> PyTree:
        return jax.tree.map(
            lambda x, y: None if x is None else narrowed(y, x.dtype),
            like,
            packed,
            is_leaf=checks.is_none,
        )


class MasterWeightsState(eqx.Module, Generic[State]):
    """The state of [`eqopt.precision.MasterWeights`][].

    **Arguments:**

    - `masters`: the parameters in float32, for those in half precision; `None` for all others.
    - `inner_state`: the state of the inner transformation.
    """

    masters: PyTree
    inner_state: State


@jax.jit
@checks.typed
def _follow(
    param: Float[Array, "*shape"], master: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    return jnp.where(narrowed(master, param.dtype) == param, master, cast(param, master.dtype))


@jax.jit
@checks.typed
def _move(
    update: Float[Array, "*shape"], param: Float[Array, "*shape"], master: Float[Array, "*shape"]
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    wide = cast(param, master.dtype)
    new = lax.add(master, cast(update, master.dtype))
    target = narrowed(new, param.dtype)
    # By Sterbenz' lemma the difference of two parameters is exact if they differ by at most a
    # factor of two. Otherwise it may be rounded, so that the sum misses its target. The intended
    # update is tried next; if it misses too, the master takes the parameter's value.
    exact = narrowed(lax.sub(cast(target, wide.dtype), wide), param.dtype)
    meant = narrowed(lax.sub(new, wide), param.dtype)
    update = lax.select(lax.eq(add(param, exact), target), exact, meant)
    missed = lax.ne(add(param, update), target)
    return update, lax.select(missed, lax.add(wide, cast(update, wide.dtype)), new)


class MasterWeights(AbstractConstrained[MasterWeightsState[State]], Generic[State]):
    r"""Trains half-precision parameters through a float32 copy.

    Neighboring numbers in bfloat16 are 0.4 to 0.8 % apart, and an update of less than half of that
    is lost when it is added to a parameter. The masters $m$ collect the inner transformation's
    updates, and the parameters are the rounded masters, to the last bit:

    $$m_{t+1} = m_t + u(m_t), \qquad \theta_{t+1} = \operatorname{round}(m_{t+1}).$$

    The inner transformation sees gradients and parameters in float32. An objective is evaluated at
    the rounded parameters. Parameters in float32 or wider, and complex ones, are their own masters.

    If a parameter has been changed from outside, so that it is no longer its rounded master (by a
    projection, or a restored checkpoint), it becomes the new master.

    !!! note
        The updates are in the parameters' dtype. If a parameter more than doubles, or becomes less
        than half of its value, in a single step, such an update cannot always reach the target
        exactly. The master then follows the parameter, and takes this one update rounded to half
        precision: with an error of at most 0.4 % in bfloat16, and 0.05 % in float16.

    !!! warning
        It must see the updates as they are applied: put it around the whole optimizer, or last in a
        chain.

    **Arguments:**

    - `inner`: the transformation.

    ??? cite "Reference"
        Micikevicius, Narang, Alben et al., *Mixed precision training*, ICLR 2018, section 3.1
        (arXiv 1710.03740).
    """

    inner: AbstractTransformation[State]

    def __check_init__(self) -> None:
        check_transformation("inner", self.inner)

    def requirements(self) -> frozenset[Requirement]:
        return frozenset({Requirement.MOVES, Requirement.EXACT})

    def init_state(self, params: Params, context: Context) -> MasterWeightsState[State]:
        wide = widened(params)
        inside = context_in(_Wide(), params, params, context, wide)
        masters = jax.tree.map(lambda x: copies(x) if is_half(x) else None, params)
        return MasterWeightsState(masters, self.inner.init_state(wide, inside))

    def transform(
        self,
        updates: Updates,
        state: MasterWeightsState[State],
        params: Params | None,
        context: Context,
    ) -> tuple[Updates, MasterWeightsState[State]]:
        check_state(self.inner, state.inner_state, "state.inner_state")
        params = require_params(params, self, context)
        leaves, treedef = checks.flatten(params)
        masters, _ = checks.flatten(check_like(state.masters, params, "state.masters"))
        pairs = zip(leaves, masters, strict=True)
        masters = [None if m is None else _follow(x, m) for x, m in pairs]
        pairs = zip(leaves, masters, strict=True)
        wide = treedef.unflatten([x if m is None else m for x, m in pairs])
        inside = context_in(_Wide(), updates, params, context, wide)
        out, inner_state = self.inner.transform(widened(updates), state.inner_state, wide, inside)
        changes: list[object] = treedef.flatten_up_to(out)
        for i, (x, m) in enumerate(zip(leaves, masters, strict=True)):
            if m is not None and changes[i] is not None:
                changes[i], masters[i] = _move(changes[i], x, m)
        new = MasterWeightsState(treedef.unflatten(masters), inner_state)
        return treedef.unflatten(changes), new
