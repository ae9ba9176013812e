"""A transformation of some parameters."""

from typing import Generic

import equinox as eqx

from .._base.converters import flag
from .._base.types import Params, State, Updates
from .._objective.objective import Context
from .._transformation.base import AbstractTransformation, check_state, check_transformation
from .._transformation.masking import check_mask, Chosen, hide, narrow, resolved, transform_part
from ..selectors._selector import AbstractSelector, as_selector


class MaskedState(eqx.Module, Generic[State]):
    """The state of [`eqopt.Masked`][].

    **Arguments:**

    - `inner_state`: the state of the inner transformation, with `None` for parameters that are
        masked out.
    - `chosen`: whether each leaf of the parameters, in order, is chosen. Static.
    """

    inner_state: State
    # Static: it decides what is computed, and the inner state has `None` where it is `False`.
    chosen: tuple[bool, ...] = eqx.field(static=True)


class Masked(AbstractTransformation[MaskedState[State]], Generic[State]):
    """Applies a transformation to some parameters; the other updates pass unchanged.

    !!! warning
        The update of a parameter that is masked out is its raw gradient; the parameter is not
        frozen.

    **Arguments:**

    - `inner`: the transformation.
    - `mask`: the parameters to transform: a selector, a function from the parameters to booleans,
        or a tree of booleans, possibly a prefix. It must choose the same parameters at each step.
    - `mask_compatible_extra_args`: whether extra arguments that are trees like the parameters are
        masked too.

    The inner transformation sees `None` for parameters that are masked out; an objective, in
    `value_fn`, is still called with all parameters.

    Raises a `ValueError` that names the leaf if the mask does not fit the parameters, or chooses
    others than it did in `init`.
    """

    inner: AbstractTransformation[State]
    mask: AbstractSelector = eqx.field(converter=as_selector)
    mask_compatible_extra_args: bool = eqx.field(
        converter=flag("mask_compatible_extra_args"), static=True, default=False
    )

    def __check_init__(self) -> None:
        check_transformation("inner", self.inner)

    def init_state(self, params: Params, context: Context) -> MaskedState[State]:
        chosen = self._chosen(params)
        inner = self.inner.init_state(hide(params, chosen), narrow(context, params, chosen))
        return MaskedState(inner, chosen)

    def transform(
        self, updates: Updates, state: MaskedState[State], params: Params | None, context: Context
    ) -> tuple[Updates, MaskedState[State]]:
        check_state(self.inner, state.inner_state, "state.inner_state")
        check_mask(self, state.chosen, self._chosen, updates, params)
        updates, inner_state = transform_part(
            self.inner,
            state.chosen,
            updates,
            state.inner_state,
            params,
            context,
            mask_extra=self.mask_compatible_extra_args,
        )
        return updates, MaskedState(inner_state, state.chosen)

    def _chosen(self, params: Params) -> Chosen:
        return resolved(self.mask, params)
