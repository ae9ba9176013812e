"""Loss scaling, so that gradients in float16 do not underflow."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import wadler_lindig as wl
from jax import lax
from jaxtyping import Array, Bool, PyTree

from .._base import checks
from .._base.arithmetic import cast, divide, real_dtype, wider
from .._base.converters import canonicalize, Converter, module_pdoc, optional, real, steps
from .._base.trees import add_updates, all_finite, conj, increment, round_like
from .._base.types import Function, Model, Scalar, State, Steps
from .._jit import compiled_call, partition
from .._objective.objective import (
    accepted,
    AnyEvaluation,
    Context,
    Evaluation,
    FullProblem,
    Objective,
)
from .._objective.value_and_grad import value_and_grad
from .._transformation.base import AbstractTransformation, AnyTransformation, check_state

_MAX = np.finfo(np.float32).max
_TINY = np.finfo(np.float32).tiny


def _float32(name: str) -> Converter:
    # float32 even if hyper-parameters are wider: a scale is a power of two, and is kept in a state.
    convert = real(name, above=0)
    return lambda value: convert(value).astype(np.float32)


class DynamicScaleResult(NamedTuple):
    """The result of functions made by [`eqopt.precision.DynamicScale.value_and_grad`][].

    - `dynamic_scale`: the new scale.
    - `finite`: whether all gradients are finite, a boolean of shape `()`.
    - `aux`: the value, or `(value, aux)` with `has_aux`.
    - `grad`: the gradients, no longer scaled, in float32 or wider.
    """

    dynamic_scale: "DynamicScale"
    finite: Bool[Array, ""]
    aux: Any
    grad: PyTree


class ScaledStep(NamedTuple, Generic[Model, State]):
    """The result of [`eqopt.precision.DynamicScale.scaled_step`][].

    - `dynamic_scale`: the new scale.
    - `finite`: whether all gradients were finite, a boolean of shape `()`. If not, model and state
        are as they were.
    - `model`: the new model.
    - `state`: the new state.
    - `evaluation`: the [`eqopt.Evaluation`][] at the model that was given: the value as the
        objective returned it, and the gradients no longer scaled, in float32 or wider.
    """

    dynamic_scale: "DynamicScale"
    finite: Bool[Array, ""]
    model: Model
    state: State
    evaluation: AnyEvaluation


class DynamicScale(eqx.Module):
    """Scales the loss, so that its gradients do not underflow in float16, and adapts the scale.

    Numbers below $6 \\cdot 10^{-8}$ are zero in float16, and many gradients are so small. The loss
    is multiplied by a scale before it is differentiated, and the gradients divided by it
    afterwards, in float32. A scale that is too large makes some gradients overflow. Such a step
    must be skipped, and the scale is multiplied by `backoff_factor`; after more than
    `growth_interval` steps in a row without an overflow it is multiplied by `growth_factor`.

    `scaled_step` does the whole step; with `value_and_grad` you must skip the step yourself. Both
    return the new scale.

    ```python
    import equinox as eqx, eqopt, jax, jax.numpy as jnp


    def loss_fn(model, x, y):
        return jnp.mean((jax.vmap(model)(x) - y) ** 2)


    model = eqx.nn.MLP(2, 1, 8, 1, dtype=jnp.float16, key=jax.random.key(0))
    x, y = jnp.ones((4, 2), jnp.float16), jnp.ones((4, 1), jnp.float16)
    opt = eqopt.precision.MasterWeights(eqopt.AdamW(1e-3))
    state, scale = opt.init(model), eqopt.precision.DynamicScale()
    for _ in range(3):
        scale, finite, model, state, evaluation = scale.scaled_step(
            opt, loss_fn, model, state, x, y
        )
    ```

    !!! note
        bfloat16 has the range of float32, and needs no scale.

    **Arguments:**

    - `growth_factor`: the factor by which the scale grows, at least 1.
    - `backoff_factor`: the factor by which it shrinks, in $(0, 1]$.
    - `growth_interval`: the number of steps without overflow before the step at which it grows.
    - `fin_steps`: the number of steps without overflow since the last change, int32 of shape `()`.
    - `scale`: the scale, float32 of shape `()`.
    - `minimum_scale`: the smallest scale; `None` is no limit.
    """

    growth_factor: Scalar = eqx.field(converter=real("growth_factor", at_least=1), default=2.0)
    backoff_factor: Scalar = eqx.field(
        converter=real("backoff_factor", above=0, at_most=1), default=0.5
    )
    growth_interval: Steps = eqx.field(converter=steps("growth_interval"), default=2000)
    fin_steps: Steps = eqx.field(converter=steps("fin_steps"), default=0)
    scale: Scalar = eqx.field(converter=_float32("scale"), default=65536.0)
    minimum_scale: Scalar | None = eqx.field(
        converter=optional(_float32("minimum_scale")), default=_TINY
    )

    def value_and_grad(
        self,
        fun: Function,
        argnums: int | Sequence[int] = 0,
        has_aux: bool = False,
        axis_name: Hashable | None = None,
    ) -> Callable[..., DynamicScaleResult]:
        """Makes a function that computes value and gradient of `fun`, with the loss scaled.

        It is [`eqopt.value_and_grad`][] for whole models, and works like flax's method of that
        name. If the gradients are not finite, keep the parameters and the optimizer's state:

        ```python
        import equinox as eqx, eqopt, jax, jax.numpy as jnp

        opt = eqopt.SGD(0.1)
        params = jnp.ones(3, jnp.float16)
        state, scale = opt.init(params), eqopt.precision.DynamicScale()


        @jax.jit
        def train_step(scale, params, state):
            scale, finite, loss, grads = scale.value_and_grad(lambda p: jnp.sum(p**2))(params)
            updates, new_state = opt.update(grads, state, params)
            keep = lambda new, old: jnp.where(finite, new, old)
            params = jax.tree.map(keep, eqopt.apply_updates(params, updates), params)
            return scale, params, jax.tree.map(keep, new_state, state), loss
        ```

        !!! warning
            The loss is scaled in its own dtype, as in flax. If the scaled loss overflows in
            float16, the returned value is NaN, even if the loss is finite.

        **Arguments:**

        - `fun`, `argnums`, `has_aux`: as in [`eqopt.value_and_grad`][].
        - `axis_name`: the name of a `vmap` or `shard_map` axis over which the gradients are
            averaged, before the check whether they are finite; or `None`.

        **Returns:**

        A function with the arguments of `fun` that returns a
        [`DynamicScaleResult`][eqopt.precision.DynamicScaleResult], a tuple
        `(dynamic_scale, finite, value, grad)`, with `(value, aux)` for the value with `has_aux`.
        The gradients are in float32, or in their own dtype where that is wider.
        """
        return eqx.module_update_wrapper(
            _ScaledValueAndGrad(
                dynamic_scale=self, fun=fun, argnums=argnums, has_aux=has_aux, axis_name=axis_name
            )
        )

    def scaled_step(
        self,
        optimizer: AbstractTransformation[State],
        fn: Function,
        params: Model,
        state: State,
        /,
        *args: object,
        has_aux: bool = False,
        axis_name: Hashable | None = None,
        **kwargs: object,
    ) -> ScaledStep[Model, State]:
        """Does a whole step of training in one compiled program, with the loss scaled.

        If a gradient overflows, model and state are returned unchanged, and the optimizer is not
        computed. Otherwise it gets the gradients in float32.

        **Arguments:**

        - `optimizer`: the optimizer.
        - `fn`: the objective, called `fn(params, *args, **kwargs)`.
        - `params`: the model.
        - `state`: what the optimizer's `init`, or the last step, returned.
        - `*args`, `has_aux`, `**kwargs`: as in [`step`][eqopt.writing.AbstractTransformation.step].
        - `axis_name`: as in `value_and_grad`.

        **Returns:**

        A [`ScaledStep`][eqopt.precision.ScaledStep], a tuple `(dynamic_scale, finite, model, state,
        evaluation)`.
        """
        return compiled_call.call_objective(
            _scaled_step,
            fn,
            canonicalize(self),
            canonicalize(optimizer),
            params,
            state,
            partition.mark_numbers_dynamic(args),
            partition.mark_numbers_dynamic(kwargs),
            has_aux,
            axis_name,
        )

    def unscale(self, grads: PyTree, axis_name: Hashable | None = None) -> PyTree:
        """Divides gradients by the scale, in float32 or wider."""

        def divided(g: Array) -> Array:
            wide = cast(g, wider(g.dtype))
            return divide(wide, jnp.asarray(self.scale, real_dtype(wide.dtype)))

        grads = jax.tree.map(divided, grads)
        return grads if axis_name is None else lax.pmean(grads, axis_name)

    def after(self, finite: Bool[Array, ""]) -> "DynamicScale":
        """Returns the new scale after a step, given whether its gradients were finite."""
        scale = jnp.asarray(self.scale, np.float32)
        # Not `==`, as in flax: the interval may have been made shorter during training.
        grows = jnp.asarray(self.fin_steps) >= jnp.asarray(self.growth_interval)
        larger = lax.min(lax.mul(scale, jnp.asarray(self.growth_factor, np.float32)), _MAX)
        smaller = lax.mul(scale, jnp.asarray(self.backoff_factor, np.float32))
        if self.minimum_scale is not None:
            smaller = lax.max(smaller, jnp.asarray(self.minimum_scale, np.float32))
        new = jnp.where(finite, jnp.where(grows, larger, scale), smaller)
        num_steps = increment(jnp.asarray(self.fin_steps, np.int32))
        num_steps = jnp.where(grows | ~finite, 0, num_steps)
        return eqx.tree_at(lambda s: (s.scale, s.fin_steps), self, (new, num_steps))

    def __pdoc__(self, **kwargs: object) -> wl.AbstractDoc:
        return module_pdoc(self, **kwargs)

    def __repr__(self) -> str:
        return eqx.tree_pformat(self, width=120)


class _Scaled(eqx.Module):
    """A function whose value is scaled in its dtype, and whose aux also holds the value itself."""

    fun: Function
    scale: Any
    has_aux: bool = eqx.field(static=True)

    @property
    def __wrapped__(self) -> Function:
        return self.fun

    def __call__(self, /, *args: object, **kwargs: object) -> Any:
        out = self.fun(*args, **kwargs)
        if not self.has_aux:
            return _times(out, self.scale)
        if not isinstance(out, tuple | list) or len(out) != 2:
            return out  # for `value_and_grad` to refuse
        return _times(out[0], self.scale), out[1]


def _times(value: Any, scale: Any) -> Any:
    """The scaled value; unchanged if it is not a number, which a later check refuses."""
    if isinstance(value, float):
        value = jnp.asarray(value)
    if not checks.is_inexact(value) or not jnp.issubdtype(value.dtype, jnp.floating):
        return value
    return jnp.asarray(value) * jnp.asarray(scale).astype(value.dtype)


class _ScaledValueAndGrad(eqx.Module):
    dynamic_scale: DynamicScale
    fun: Function
    argnums: int | Sequence[int] = eqx.field(static=True)
    has_aux: bool = eqx.field(static=True)
    axis_name: Hashable | None = eqx.field(static=True)

    @property
    def __wrapped__(self) -> Function:
        return self.fun

    def __call__(self, /, *args: object, **kwargs: object) -> DynamicScaleResult:
        own = canonicalize(self.dynamic_scale)
        scaled = eqx.module_update_wrapper(_Scaled(self.fun, own.scale, self.has_aux))
        out, grads = value_and_grad(scaled, self.argnums, self.has_aux)(*args, **kwargs)
        value, aux = out if self.has_aux else (out, None)
        value = value / jnp.asarray(own.scale).astype(value.dtype)
        grads = own.unscale(grads, self.axis_name)
        finite = all_finite(grads)
        out = (value, aux) if self.has_aux else value
        return DynamicScaleResult(own.after(finite), finite, out, grads)


def _scaled_step(
    fn: Function,
    dynamic_scale: DynamicScale,
    optimizer: AnyTransformation,
    model: PyTree,
    state: object,
    args: tuple[object, ...],
    kwargs: dict[str, object],
    has_aux: bool,
    axis_name: Hashable | None,
) -> ScaledStep[Any, Any]:
    check_state(optimizer, state, "state")
    trained, rest = eqx.partition(model, checks.is_inexact)
    objective = Objective(fn=fn, rest=rest, args=args, kwargs=accepted(fn, kwargs), has_aux=has_aux)

    def scaled(trained: PyTree) -> tuple[Any, PyTree]:
        value, aux = objective(trained)
        return _times(value, dynamic_scale.scale), (value, aux)

    # Within `jax.shard_map`, JAX itself sums over devices, as in `step`; a mean needs each device's
    # own gradient.
    with_grad = jax.value_and_grad if axis_name is None else value_and_grad
    (_, (value, aux)), grads = with_grad(scaled, has_aux=True)(trained)
    grads = dynamic_scale.unscale(grads, axis_name)
    finite = all_finite(grads)
    evaluation = Evaluation(value, grads, aux)
    context = Context(
        value=value,
        grad=conj(round_like(grads, trained)),
        value_fn=objective,
        key=kwargs.get("key"),
        extra={name: x for name, x in kwargs.items() if name != "key"},
        whole=FullProblem(trained, objective),
    )

    def applied() -> tuple[PyTree, PyTree]:
        updates, new = optimizer.transform(conj(grads), state, trained, context)
        return add_updates(trained, round_like(updates, trained)), new

    # Selected, and never blended. A skipped step is not computed.
    trained, state = lax.cond(finite, applied, lambda: (trained, state))
    model = eqx.combine(trained, rest)
    return ScaledStep(
        dynamic_scale=dynamic_scale.after(finite),
        finite=finite,
        model=model,
        state=state,
        evaluation=evaluation,
    )
