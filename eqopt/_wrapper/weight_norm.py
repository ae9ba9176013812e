"""Weights as directions and lengths."""

import functools
from typing import Any, Generic

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Inexact, PyTree

from .._base import checks
from .._base.arithmetic import (
    abs_sq,
    cast,
    is_complex,
    minus,
    plus,
    real_dtype,
    safe_sqrt,
    times,
    wider,
)
from .._base.converters import non_negative, optional, positive
from .._base.trees import add_updates, conj, round_like
from .._base.types import Params, Scalar, State, Updates
from .._objective.objective import Context, FullProblem, Objective, require_params
from .._transformation.base import AbstractTransformation, check_state, check_transformation
from .._transformation.eval_params import AbstractEvalState
from .._transformation.masking import check_mask, Chosen, resolved
from .._transformation.nesting import (
    AbstractConstrained,
    check_nesting,
    refuse_selectors,
    Requirement,
)
from ..selectors._selector import AbstractSelector, as_selector


def _axis(value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"`axis` must be an int; got {value!r}")
    return int(value)


def _scaled(x: Array, factor: Float[Array, "..."]) -> Array:
    # Not `times`, because the factor has size 1 along some axes.
    if is_complex(x):
        return lax.complex(x.real * factor, x.imag * factor)
    return x * factor


def _length(axes: tuple[int, ...], x: Inexact[Array, "..."], eps: Float[Array, ""]) -> Array:
    return safe_sqrt(plus(jnp.sum(abs_sq(x), axes, keepdims=True), eps))


@functools.partial(jax.jit, static_argnums=0)
@checks.typed
def _taken_apart(
    axes: tuple[int, ...], weight: Inexact[Array, "*shape"], eps: Float[Array, ""]
) -> tuple[Inexact[Array, "*shape"], Float[Array, "..."]]:
    """The direction and the length of a weight."""
    length = _length(axes, weight, eps)
    return _scaled(weight, 1 / length), length


@functools.partial(jax.jit, static_argnums=0)
@checks.typed
def _put_together(
    axes: tuple[int, ...],
    direction: Inexact[Array, "*shape"],
    scale: Float[Array, "..."],
    eps: Float[Array, ""],
) -> Inexact[Array, "*shape"]:
    """The weight from its direction, whose length need not be 1."""
    return _scaled(direction, scale / _length(axes, direction, eps))


@functools.partial(jax.jit, static_argnums=0)
@checks.typed
def _pulled_back(
    axes: tuple[int, ...],
    update: Inexact[Array, "*shape"],
    direction: Inexact[Array, "*shape"],
    scale: Float[Array, "..."],
    eps: Float[Array, ""],
    decay: Float[Array, ""],
) -> tuple[Inexact[Array, "*shape"], Float[Array, "..."]]:
    """The gradients by direction and length, from the gradient by the weight."""
    _, pull = jax.vjp(lambda d, s: _put_together(axes, d, s, eps), direction, scale)
    by_direction, by_scale = conj(pull(conj(update)))
    return plus(by_direction, times(decay, direction)), by_scale


class _Weights(eqx.Module):
    """The parameters, some of them split into a direction and a length."""

    direction: PyTree
    scale: PyTree


class WeightNormState(AbstractEvalState, Generic[State]):
    """The state of [`eqopt.WeightNorm`][].

    **Arguments:**

    - `inner_state`: the state of the inner transformation, which sees directions and lengths.
    - `direction`: the direction of each weight, like the weight, but at least float32; `None` for
        parameters that are not split.
    - `scale`: its lengths: real, of size 1 along all axes but one, and at least float32.
    """

    inner_state: State
    direction: PyTree
    scale: PyTree

    def eval_params(self, params: Params) -> Params:
        # Transformations with their own parameters to evaluate with are refused inside. The inner
        # states are about directions and lengths, so they must not be searched.
        return jax.tree.map(lambda _: None, params)


class WeightNorm(AbstractConstrained[WeightNormState[State]], Generic[State]):
    r"""Applies a transformation to the directions and the lengths of the weights.

    A weight is $w = s\, v \big/ \sqrt{\|v\|^2 + \epsilon}$, with one length $s$ and one norm for
    each output: over all axes except one. For `inner` the parameters are $v$ and $s$ (and the
    parameters that are not split), and the gradient is by $v$ and $s$. At the start
    $s = \sqrt{\|w\|^2 + \epsilon}$ and $v = w / s$.

    Only parameters with more than one number for each output are split: no biases or scalars.

    !!! warning
        $v$ and $s$ are in the state, and each step sets the weights to the values that they give.
        Any other change of the weights is undone, so put the wrapper around the whole optimizer, or
        last in a chain.

    A line search inside works, but its cache is about directions and lengths, and `step` evaluates
    the objective again.

    **Arguments:**

    - `inner`: the transformation.
    - `decay`: the decay of the directions, not negative: `decay` times $v$ is added to the gradient
        by $v$.
    - `eps`: $\epsilon > 0$.
    - `axis`: the axis of the outputs, negative from the end: 0 in Equinox's layers, and -1 in
        Flax's.
    - `mask`: the weights to split: a selector, a function from the parameters to booleans, or a
        tree of booleans, possibly a prefix; `None` is everything. It must choose the same
        parameters at each step.

    Raises a `ValueError` if `update` is given no parameters, or the mask does not fit them.

    ??? cite "Reference"
        Salimans and Kingma, *Weight Normalization: A Simple Reparameterization to Accelerate
        Training of Deep Neural Networks*, NeurIPS 2016, equations 2 and 3 (arXiv 1602.07868).
    """

    inner: AbstractTransformation[State]
    decay: Scalar = eqx.field(converter=non_negative("decay"), default=0.0)
    eps: Scalar = eqx.field(converter=positive("eps"), default=1e-8)
    axis: int = eqx.field(converter=_axis, static=True, default=0)
    mask: AbstractSelector | None = eqx.field(converter=optional(as_selector), default=None)

    def __check_init__(self) -> None:
        check_transformation("inner", self.inner)
        why = "here they are directions and lengths. Put it around"
        refuse_selectors(self, self.inner, why)
        check_nesting(self, self.inner, {Requirement.EVALUATED: why, Requirement.MOVES: why})

    def requirements(self) -> frozenset[Requirement]:
        return frozenset({Requirement.MOVES})

    def init_state(self, params: Params, context: Context) -> WeightNormState[State]:
        leaves, treedef = checks.flatten(params)
        chosen = self._chosen(params)
        parts: list[Any] = [(None, None)] * len(leaves)
        for i, x in enumerate(leaves):
            if not chosen[i]:
                continue
            wide = cast(x, wider(x.dtype))
            parts[i] = _taken_apart(self._over(x), wide, _cast(self.eps, wide))
        direction, scale = (treedef.unflatten([part[i] for part in parts]) for i in range(2))
        packed = _Weights(eqx.combine(direction, params), scale)
        inside = self._inside(packed, params, context, context.grad)
        return WeightNormState(self.inner.init_state(packed, inside), direction, scale)

    def transform(
        self,
        updates: Updates,
        state: WeightNormState[State],
        params: Params | None,
        context: Context,
    ) -> tuple[Updates, WeightNormState[State]]:
        check_state(self.inner, state.inner_state, "state.inner_state")
        params = require_params(params, self, context)
        for name, tree in (("direction", state.direction), ("scale", state.scale)):
            if checks.flatten(tree)[1] != checks.flatten(updates)[1]:
                raise checks.structure_error(tree, updates, f"state.{name}", "updates")
        before = tuple(x is not None for x in checks.flatten(state.direction)[0])
        check_mask(self, before, self._chosen, updates, params)
        packed = _Weights(eqx.combine(state.direction, params), state.scale)
        grad = None if context.grad is None else self._gradient(context.grad, state, 0.0)
        inside = self._inside(packed, params, context, grad)
        own = self._gradient(updates, state, self.decay)
        out, inner_state = self.inner.transform(own, state.inner_state, packed, inside)

        direction = add_updates(state.direction, out.direction)
        scale = add_updates(state.scale, out.scale)

        def step(u: Any, d: Any, s: Any, x: Any) -> Any:
            if u is None or d is None:
                return u
            target = _put_together(self._over(d), d, s, _cast(self.eps, d))
            return minus(target, cast(x, d.dtype))

        out = jax.tree.map(step, out.direction, direction, scale, params, is_leaf=checks.is_none)
        return out, WeightNormState(inner_state, direction, scale)

    def _chosen(self, params: Params) -> Chosen:
        leaves, _ = checks.flatten(params)
        mask = (True,) * len(leaves) if self.mask is None else resolved(self.mask, params)
        return tuple(
            m and x is not None and self._has_length(x) for x, m in zip(leaves, mask, strict=True)
        )

    def _has_length(self, x: Array) -> bool:
        return -x.ndim <= self.axis < x.ndim and x.size > x.shape[self.axis]

    def _over(self, x: Array) -> tuple[int, ...]:
        return tuple(i for i in range(x.ndim) if i != self.axis % x.ndim)

    def _gradient(self, updates: Updates, state: WeightNormState[State], decay: object) -> _Weights:
        """The gradient by directions and lengths."""
        leaves, treedef = checks.flatten(updates)
        directions = treedef.flatten_up_to(state.direction)
        scales = treedef.flatten_up_to(state.scale)
        parts: list[Any] = [(u, None) for u in leaves]
        for i, (u, d, s) in enumerate(zip(leaves, directions, scales, strict=True)):
            if u is not None and d is not None:
                dtype = wider(u.dtype, d.dtype)
                u, d, s = cast(u, dtype), cast(d, dtype), cast(s, real_dtype(dtype))
                numbers = _cast(self.eps, d), _cast(decay, d)
                parts[i] = _pulled_back(self._over(d), u, d, s, *numbers)
        return _Weights(*(treedef.unflatten([part[i] for part in parts]) for i in range(2)))

    def _inside(self, packed: _Weights, params: Params, context: Context, grad: object) -> Context:
        """The context for `inner`."""
        outer = context.whole or FullProblem(params, context.value_fn)
        objective = outer.objective
        if objective is not None:
            formed = _Formed(self, objective, params, outer.params)
            rest = jax.tree.map(lambda _: None, packed)
            objective = Objective(formed, rest, has_aux=objective.has_aux)
        value_fn = None if context.value_fn is None else objective
        whole = FullProblem(packed, objective)
        return Context(
            value=context.value,
            grad=grad,
            value_fn=value_fn,
            key=context.key,
            extra=context.extra,
            whole=whole,
        )

    def put_together(self, packed: PyTree, like: Params) -> Params:
        """The parameters from directions and lengths, in their own dtypes."""

        def weight(d: Any, s: Any) -> Any:
            return d if s is None else _put_together(self._over(d), d, s, _cast(self.eps, d))

        weights = jax.tree.map(weight, packed.direction, packed.scale, is_leaf=checks.is_none)
        return round_like(weights, like)


class _Formed(eqx.Module):
    """An objective, called with directions and lengths."""

    form: WeightNorm[Any]
    objective: Objective
    shown: PyTree
    whole: PyTree

    def __call__(self, packed: PyTree) -> Any:
        weights = self.form.put_together(packed, self.shown)
        value, aux = self.objective(eqx.combine(weights, self.whole))
        return value if self.objective.has_aux is False else (value, aux)


def _cast(number: object, like: Array) -> Float[Array, ""]:
    return jnp.asarray(number).astype(real_dtype(like.dtype))
