"""Step sizes from the distance moved and the sum of the gradients' squares."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Inexact, PyTree

from .._base import checks
from .._base.arithmetic import abs_sq, cast, minus, norm, safe_divide, safe_sqrt, times
from .._base.converters import float_dtype, non_negative, optional, positive, real, to_dtype
from .._base.norms import global_norm
from .._base.trees import copies, differences, increment, widened, zero_count
from .._base.types import Count, Params, Scalar, Updates
from .._objective.objective import Context, require_params
from .._transformation import leafwise
from .._transformation.base import AbstractLeafwise, AbstractTransformation
from .._transformation.eval_params import check_like
from .._transformation.leafwise import Rule


class AbstractInitialStep(eqx.Module):
    """How [`eqopt.ScaleByDoG`][] begins, before the parameters have moved."""

    @abc.abstractmethod
    def distance(self, params: Params) -> Float[Array, ""]:
        """Gives the initial distance.

        **Arguments:**

        - `params`: the first parameters.
        """

    @abc.abstractmethod
    def first(self, step_size: Float[Array, ""]) -> Float[Array, ""]:
        """Gives the size of the first step.

        **Arguments:**

        - `step_size`: its size by the rule.
        """


class InitialDistance(AbstractInitialStep):
    r"""Begins with a given distance, $r_0$.

    **Arguments:**

    - `value`: the distance, positive. It should be small: it is only needed to start.
    """

    value: Scalar = eqx.field(converter=positive("value"))

    def distance(self, params: Params) -> Float[Array, ""]:
        return jnp.asarray(self.value)

    def first(self, step_size: Float[Array, ""]) -> Float[Array, ""]:
        return step_size


class InitialDistanceHeuristic(AbstractInitialStep):
    r"""Begins with a small fraction of the parameters' norm, $r_0 = \alpha (1 + \|\theta_0\|)$.

    **Arguments:**

    - `value`: the fraction $\alpha$, positive. The authors advise $10^{-6}$, and $10^{-4}$ for
        models with batch normalization.
    """

    value: Scalar = eqx.field(converter=positive("value"))

    def distance(self, params: Params) -> Float[Array, ""]:
        value = jnp.asarray(self.value)
        return value * (1 + cast(global_norm(params), value.dtype))

    def first(self, step_size: Float[Array, ""]) -> Float[Array, ""]:
        return step_size


class InitialLearningRate(AbstractInitialStep):
    """Begins with a step of a given size; later steps use the distance that it moved.

    **Arguments:**

    - `value`: the size of the first step, as a factor of the gradient; positive.
    """

    value: Scalar = eqx.field(converter=positive("value"))

    def distance(self, params: Params) -> Float[Array, ""]:
        return jnp.zeros((), float_dtype())

    def first(self, step_size: Float[Array, ""]) -> Float[Array, ""]:
        return jnp.asarray(self.value)


_INITIAL_STEPS = {
    "distance": InitialDistance,
    "heuristic": InitialDistanceHeuristic,
    "learning_rate": InitialLearningRate,
}


def initial_step(value: object) -> AbstractInitialStep:
    """The converter of `init_step`. Pairs are taken for those who come from optax."""
    if isinstance(value, AbstractInitialStep):
        return value
    if isinstance(value, tuple) and len(value) == 2 and value[0] in _INITIAL_STEPS:
        return _INITIAL_STEPS[value[0]](value[1])
    raise ValueError(
        "`init_step` must be an `eqopt.writing.AbstractInitialStep`, such as "
        f"`eqopt.options.InitialDistance(1e-6)`; got {value!r}"
    )


def _scaled(updates: Updates, factor: Float[Array, ""], state: eqx.Module) -> Updates:
    return leafwise.run((Rule(times, state, scalars=(factor,)),), updates, None)[0]


def _distance(init_params: PyTree, params: Params) -> Float[Array, ""]:
    gone = differences(check_like(init_params, params, "state.init_params"), params)
    return global_norm(gone).astype(float_dtype())


@checks.typed
class ScaleByDoGState(eqx.Module):
    """The state of [`eqopt.ScaleByDoG`][].

    **Arguments:**

    - `count`: the number of steps taken, int32 of shape `()`.
    - `init_params`: the first parameters, in float32 at least.
    - `max_dist`: the largest distance from them so far.
    - `sum_sq_norm_grads`: the sum of the squared norms of the gradients.
    """

    count: Count
    init_params: PyTree
    max_dist: Float[Array, ""]
    sum_sq_norm_grads: Float[Array, ""]


class ScaleByDoG(AbstractTransformation[ScaleByDoGState]):
    r"""Multiplies the updates by the largest distance from the first parameters so far, divided by
    the root of the sum of the squared norms of all gradients.

    $$\bar r_t = \max(\bar r_{t-1}, \|\theta_t - \theta_0\|), \qquad
    G_t = G_{t-1} + \|g_t\|^2, \qquad u_t = \frac{\bar r_t}{\sqrt{G_t + \epsilon}}\, g_t$$

    with the norms over all leaves together. The sign is not flipped: to go downhill, see
    [`eqopt.DoG`][].

    **Arguments:**

    - `init_step`: how to begin: an [`eqopt.options.InitialDistance`][], an
        [`eqopt.options.InitialDistanceHeuristic`][] or an [`eqopt.options.InitialLearningRate`][].
        (The pairs `("distance", x)`, `("heuristic", x)` and `("learning_rate", x)` are accepted
        too.)
    - `eps`: added to the sum of the squared norms, $\epsilon \ge 0$.

    Raises a `ValueError` if `update` is given no parameters.

    ??? cite "Reference"
        Ivgi, Hinder and Carmon, *DoG is SGD's Best Friend: A Parameter-Free Dynamic Step Size
        Schedule*, ICML 2023 (arXiv 2302.12022).
    """

    init_step: AbstractInitialStep = eqx.field(converter=initial_step)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)

    def init_state(self, params: Params, context: Context) -> ScaleByDoGState:
        return ScaleByDoGState(
            zero_count(),
            copies(params),
            copies(self.init_step.distance(params)),
            jnp.zeros((), float_dtype()),
        )

    def transform(
        self, updates: Updates, state: ScaleByDoGState, params: Params | None, context: Context
    ) -> tuple[Updates, ScaleByDoGState]:
        params = require_params(params, self, context)
        length = jnp.maximum(state.max_dist, _distance(state.init_params, params))
        total = state.sum_sq_norm_grads + jnp.square(global_norm(updates).astype(float_dtype()))
        rate = safe_divide(length, safe_sqrt(total + self.eps))
        # Also in later steps, if the parameters have not moved yet, for example after a gradient of
        # zero.
        rate = jnp.where((state.count == 0) | (length == 0), self.init_step.first(rate), rate)
        new = ScaleByDoGState(increment(state.count), state.init_params, length, total)
        return _scaled(updates, rate, new), new


@checks.typed
class ScaleByDoWGState(eqx.Module):
    """The state of [`eqopt.ScaleByDoWG`][].

    **Arguments:**

    - `init_params`: the first parameters, in float32 at least.
    - `weighted_sq_norm_grads`: the sum of the squared norms of the gradients, each times the
        squared distance at its time.
    - `estim_sq_dist`: the largest squared distance from the first parameters so far.
    """

    init_params: PyTree
    weighted_sq_norm_grads: Float[Array, ""]
    estim_sq_dist: Float[Array, ""]


class ScaleByDoWG(AbstractTransformation[ScaleByDoWGState]):
    r"""Multiplies the updates by the largest squared distance so far, divided by the root of the
    sum of the squared norms of the gradients, weighted by that distance.

    $$\bar r_t^2 = \max(\bar r_{t-1}^2, \|\theta_t - \theta_0\|^2), \qquad
    v_t = v_{t-1} + \bar r_t^2 \|g_t\|^2, \qquad
    u_t = \frac{\bar r_t^2}{\sqrt{v_t} + \epsilon}\, g_t$$

    with the norms over all leaves together. Late gradients weigh more than in
    [`eqopt.ScaleByDoG`][], and steps may grow again. The sign is not flipped; [`eqopt.DoWG`][]
    flips it.

    **Arguments:**

    - `init_estim_sq_dist`: the squared distance to begin with, positive; `None` is `eps`.
    - `eps`: added to the root of the weighted sum, $\epsilon > 0$.

    Raises a `ValueError` if `update` is given no parameters.

    ??? cite "Reference"
        Khaled, Mishchenko and Jin, *DoWG Unleashed: An Efficient Universal Parameter-Free Gradient
        Descent Method*, NeurIPS 2023, algorithm 1 (arXiv 2305.16284).
    """

    init_estim_sq_dist: Scalar | None = eqx.field(
        converter=optional(positive("init_estim_sq_dist")), default=None
    )
    eps: Scalar = eqx.field(converter=positive("eps"), default=1e-4)

    def init_state(self, params: Params, context: Context) -> ScaleByDoWGState:
        start = self.eps if self.init_estim_sq_dist is None else self.init_estim_sq_dist
        return ScaleByDoWGState(
            copies(params), jnp.zeros((), float_dtype()), copies(jnp.asarray(start))
        )

    def transform(
        self, updates: Updates, state: ScaleByDoWGState, params: Params | None, context: Context
    ) -> tuple[Updates, ScaleByDoWGState]:
        params = require_params(params, self, context)
        gone = jnp.square(_distance(state.init_params, params))
        sq_dist = jnp.maximum(state.estim_sq_dist, gone)
        sq_norm = jnp.square(global_norm(updates).astype(float_dtype()))
        total = state.weighted_sq_norm_grads + sq_dist * sq_norm
        new = ScaleByDoWGState(state.init_params, total, sq_dist)
        return _scaled(updates, safe_divide(sq_dist, safe_sqrt(total) + self.eps), new), new


@checks.typed
def _distance_over_gradients(
    update: Inexact[Array, "*shape"],
    param: Inexact[Array, "*shape"],
    max_dist: Float[Array, ""],
    grad_sum_of_squares: Float[Array, ""],
    init_param: Inexact[Array, "*shape"],
    eps: Float[Array, ""],
    global_scale: Float[Array, ""],
) -> tuple[Inexact[Array, "*shape"], Float[Array, ""], Float[Array, ""], Inexact[Array, "*shape"]]:
    max_dist = lax.max(max_dist, norm(minus(param, init_param)))
    total = grad_sum_of_squares + jnp.sum(abs_sq(update))
    rate = global_scale * safe_divide(max_dist, safe_sqrt(total + eps))
    return times(rate, update), max_dist, total, init_param


def _shapes(shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    return (), (), shape


@checks.typed
class ScaleByDistanceOverGradientsState(eqx.Module):
    """The state of [`eqopt.ScaleByDistanceOverGradients`][].

    **Arguments:**

    - `max_dist`: for each leaf the largest distance from its first value, of shape `()`.
    - `grad_sum_of_squares`: for each leaf the sum of the squares of its gradients, of shape `()`.
    - `init_params`: the first parameters.
    """

    max_dist: PyTree
    grad_sum_of_squares: PyTree
    init_params: PyTree


class ScaleByDistanceOverGradients(AbstractLeafwise[ScaleByDistanceOverGradientsState]):
    r"""Multiplies the update of each leaf by the largest distance of this leaf from its first
    value, divided by the root of the sum of the squares of its gradients: [`eqopt.ScaleByDoG`][],
    layer by layer.

    $$\bar r_t = \max(\bar r_{t-1}, \|\theta_t - \theta_0\|), \qquad
    u_t = c\, \frac{\bar r_t}{\sqrt{\sum_{k \le t} \|g_k\|^2 + \epsilon}}\, g_t, \qquad
    \bar r_{-1} = \alpha\, (1 + \|\theta_0\|)$$

    with the norms over one leaf each, in float32 at least.

    **Arguments:**

    - `reps_rel`: the initial distance of a leaf as a fraction $\alpha > 0$ of its size; the authors
        advise $10^{-4}$ for models with batch normalization.
    - `eps`: $\epsilon \ge 0$.
    - `param_dtype`: the dtype in which the first parameters are kept; `None` is the parameter's,
        and float32 for half precision.
    - `global_scale`: the factor $c$: a negative one goes downhill.

    Raises a `ValueError` if `update` is given no parameters.

    ??? cite "Reference"
        Ivgi, Hinder and Carmon, *DoG is SGD's Best Friend: A Parameter-Free Dynamic Step Size
        Schedule*, ICML 2023, as L-DoG (arXiv 2302.12022).
    """

    reps_rel: Scalar = eqx.field(converter=positive("reps_rel"), default=1e-6)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)
    param_dtype: np.dtype | None = eqx.field(
        converter=to_dtype("param_dtype"), static=True, default=np.float32
    )
    global_scale: Scalar = eqx.field(converter=real("global_scale"), default=1.0)

    def init_state(self, params: Params, context: Context) -> ScaleByDistanceOverGradientsState:
        sizes = jax.tree.map(norm, widened(params))
        return ScaleByDistanceOverGradientsState(
            jax.tree.map(lambda x: jnp.asarray(self.reps_rel).astype(x.dtype) * (1 + x), sizes),
            jax.tree.map(jnp.zeros_like, sizes),
            copies(params, self.param_dtype),
        )

    def rule(
        self, state: ScaleByDistanceOverGradientsState, params: Params | None, context: Context
    ) -> Rule:
        require_params(params, self, context)
        return Rule(
            _distance_over_gradients,
            state,
            trees=("max_dist", "grad_sum_of_squares", "init_params"),
            scalars=(self.eps, self.global_scale),
            needs_params=True,
            shapes=_shapes,
        )
