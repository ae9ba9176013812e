"""Kahan summation: the rounding error of each update is added to the next one."""

from typing import Generic

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact, PyTree

from .._base import checks
from .._base.arithmetic import cast, minus, plus, wider
from .._base.trees import add, narrowed, zeros_exactly_like
from .._base.types import Params, State, Updates
from .._objective.objective import Context, require_params
from .._transformation.base import AbstractTransformation, check_state, check_transformation
from .._transformation.eval_params import check_like
from .._transformation.nesting import AbstractConstrained, check_nesting, Requirement


class CompensatedState(eqx.Module, Generic[State]):
    """The state of [`eqopt.precision.Compensated`][].

    **Arguments:**

    - `compensation`: the rounding error of the parameters, like the parameters and in their dtypes.
    - `inner_state`: the state of the inner transformation.
    """

    compensation: PyTree
    inner_state: State


@jax.jit
@checks.typed
def _compensate(
    update: Inexact[Array, "*shape"],
    param: Inexact[Array, "*shape"],
    compensation: Inexact[Array, "*shape"],
) -> tuple[Inexact[Array, "*shape"], Inexact[Array, "*shape"]]:
    dtype = wider(param.dtype, update.dtype)
    wanted = plus(cast(update, dtype), cast(compensation, dtype))
    update = narrowed(wanted, param.dtype)
    # The parameter that the user will have, bit for bit.
    x, reached = cast(param, dtype), cast(add(param, update), dtype)
    gone = minus(reached, x)
    # The second term is the rounding error of the subtraction itself: 0 unless the parameter is
    # moved by more than its own size.
    rest = plus(minus(wanted, gone), minus(x, minus(reached, gone)))
    # After a step to infinity the error is 0.
    rest = jnp.where(jnp.isfinite(rest), rest, np.zeros((), dtype))
    return update, narrowed(rest, param.dtype)


class Compensated(AbstractConstrained[CompensatedState[State]], Generic[State]):
    r"""Stores the rounding error of each update, and adds it to the next update.

    This is Kahan's summation. With $u_t$ the inner transformation's updates and $c_t$ the
    compensation,

    $$\theta_{t+1} = \operatorname{round}(\theta_t + u_t + c_t), \qquad
    c_{t+1} = (\theta_t + u_t + c_t) - \theta_{t+1},$$

    and $c_0 = 0$. Parameter and compensation together have twice the digits of the parameter's
    dtype. The gradients are those at the parameter alone.

    It costs as many bytes as the parameter has: half as many as [`eqopt.precision.MasterWeights`][]
    in bfloat16. It helps float32 parameters too, where updates are smaller than a part in $10^7$.

    !!! warning
        It must see the updates as they are applied: put it around the whole optimizer, or last in a
        chain.

    **Arguments:**

    - `inner`: the transformation.

    ??? cite "Reference"
        Kahan, *Further remarks on reducing truncation errors*, Communications of the ACM 8, 1965;
        for training, Zamirai, Zhang, Aberger and De Sa, *Revisiting bfloat16 training*, 2020,
        algorithm 3 (arXiv 2010.06192).
    """

    inner: AbstractTransformation[State]

    def __check_init__(self) -> None:
        check_transformation("inner", self.inner)
        check_nesting(
            self,
            self.inner,
            {Requirement.LANDS: "they are moved on by what was rounded away before"},
        )

    def requirements(self) -> frozenset[Requirement]:
        return frozenset({Requirement.MOVES, Requirement.EXACT})

    def init_state(self, params: Params, context: Context) -> CompensatedState[State]:
        return CompensatedState(zeros_exactly_like(params), self.inner.init_state(params, context))

    def transform(
        self,
        updates: Updates,
        state: CompensatedState[State],
        params: Params | None,
        context: Context,
    ) -> tuple[Updates, CompensatedState[State]]:
        check_state(self.inner, state.inner_state, "state.inner_state")
        params = require_params(params, self, context)
        out, inner_state = self.inner.transform(updates, state.inner_state, params, context)
        leaves, treedef = checks.flatten(params)
        kept, _ = checks.flatten(check_like(state.compensation, params, "state.compensation"))
        changes: list[object] = treedef.flatten_up_to(out)
        for i, (x, c) in enumerate(zip(leaves, kept, strict=True)):
            if changes[i] is not None:
                changes[i], kept[i] = _compensate(changes[i], x, c)
        return treedef.unflatten(changes), CompensatedState(treedef.unflatten(kept), inner_state)
