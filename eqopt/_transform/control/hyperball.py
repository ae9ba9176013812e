"""Steps on the sphere: parameters of a constant norm."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, PyTree

from ..._base import blocks, checks
from ..._base.arithmetic import minus, plus, times
from ..._base.converters import flag, optional, positive
from ..._base.trees import accumulator_dtype, increment, zero_count
from ..._base.types import Count, Params, Scalar
from ..._objective.objective import Context, require_params
from ..._schedule.base import AbstractSchedule, as_rate, value_at
from ..._transformation.base import AbstractLeafwise, EmptyState
from ..._transformation.leafwise import Rule
from ..._transformation.nesting import AbstractConstrained, Requirement


@checks.typed
def _on_sphere(
    block_ndim: int | None,
    update: Inexact[Array, "*shape"],
    param: Inexact[Array, "*shape"],
    first: Float[Array, "..."] | None,
    rate: Float[Array, ""],
    given: Float[Array, ""] | None = None,
) -> tuple[Inexact[Array, "*shape"], Float[Array, "..."] | None]:
    place, size = blocks.units(block_ndim, param)
    radius = size
    if first is not None:
        radius = blocks.per_block(first, param)
    elif given is not None:
        radius = jnp.broadcast_to(given, radius.shape)
    direction, length = blocks.units(block_ndim, update)
    target, moved = blocks.units(block_ndim, minus(place, times(rate, direction)))
    # A step of rate 1 straight to the center has no direction; the parameter stays.
    target = blocks.selected(blocks.has_direction(moved), target, place)
    along = minus(blocks.multiplied(radius, target), param)
    finite = blocks.selected(jnp.isfinite(length), update, jnp.zeros_like(update))
    return blocks.selected(radius == 0, times(-rate, finite), along), first


def _radii(
    block_ndim: int | None, kept: bool, shape: tuple[int, ...]
) -> tuple[tuple[int, ...] | None]:
    return (blocks.lead(block_ndim, shape) if kept else None,)


@checks.typed
class HyperballState(eqx.Module):
    """The state of [`eqopt.control.Hyperball`][].

    **Arguments:**

    - `count`: the number of steps taken, int32 of shape `()`.
    - `radius`: the norm of each block in `init`, one array for each parameter, at least float32;
        `None` if the radius is given, or read anew in each step.
    """

    count: Count
    radius: PyTree


class Hyperball(AbstractLeafwise[HyperballState], AbstractConstrained[HyperballState]):
    r"""Steps along the sphere on which the parameters lie: their norm stays.

    For each matrix $W$, with its update $u$, uphill, the rate $\gamma_t$ and the radius $R$,

    $$W \leftarrow R\, \frac{W'}{\|W'\|}, \qquad
    W' = \frac{W}{\|W\|} - \gamma_t\, \frac{u}{\|u\|}.$$

    It takes the place of [`eqopt.ScaleByLearningRate`][], last in a chain. The rate is the relative
    change of a parameter in one step; the length of the update does not matter. Weight decay has no
    other effect than a smaller rate; [`eqopt.AddDecayedWeights`][] before it turns the direction.

    The norm of the result of [`eqopt.apply_updates`][] is $R$ up to rounding, also after many
    steps: each step returns to the same $R$. An update without a direction, because its norm is 0
    or not finite, only returns the parameter to its radius.

    A matrix that is 0 in `init` has no sphere: it takes the plain step $-\gamma_t u$, in every
    step. A given `radius` takes it to its sphere in the first step.

    Use it for the matrices of a network, and Adam for embeddings, norms and biases:
    `eqopt.Partition({matrices: Hyperball(0.01), ...: eqopt.ScaleByLearningRate(1e-3)})`.
    [`eqopt.control.AdamH`][] is made in this way.

    !!! warning
        It must see the updates as they are applied. For half-precision parameters, put
        [`eqopt.precision.MasterWeights`][] around it: then the norm of the masters stays, and the
        model's parameters are these, rounded.

    !!! note
        Implementations differ in $R$. It is the norm at the start in the paper, in rollfast and in
        heavyball, and here; Levanter and emerging-optimizers read the norm again before each step
        (`fixed=False`), which drifts by rounding. They do not divide $W$ by its norm first, but
        multiply the step by $R$; that is the same on the sphere, and here a given radius holds from
        the first step on. Where the norm of an update is 0, emerging-optimizers divides by 1e-8,
        and heavyball by 1e-12. A matrix that is 0 stays 0 in heavyball, and is refused in
        emerging-optimizers.

    **Arguments:**

    - `learning_rate`: the rate $\gamma_t$, a number or a schedule, not negative.
    - `radius`: the radius of every block, $R > 0$; `None` is the norm of each block.
    - `fixed`: whether that norm is the norm in `init`, which is kept in the state; otherwise it is
        read before each step. Not used if `radius` is given.
    - `block_ndim`: the number of trailing axes that one norm is over, at least 1: 2 is each matrix
        of a stack, 1 is each row, `None` the whole leaf. A leaf with fewer axes is one block.

    Raises a `ValueError` if `update` is given no parameters.

    ??? cite "Reference"
        Wen et al., *Fantastic Pretraining Optimizers and Where to Find Them 2.1: Hyperball
        Optimization*, 2026 (arXiv 2606.16899).
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    radius: Scalar | None = eqx.field(converter=optional(positive("radius")), default=None)
    fixed: bool = eqx.field(converter=flag("fixed"), static=True, default=True)
    block_ndim: int | None = eqx.field(
        converter=blocks.block_size("block_ndim"), static=True, default=2
    )

    def requirements(self) -> frozenset[Requirement]:
        return frozenset({Requirement.MOVES, Requirement.EXACT, Requirement.LANDS})

    def init_state(self, params: Params, context: Context) -> HyperballState:
        def radius(x: Array) -> Array | None:
            if not self._keeps:
                return None
            wide = x.astype(accumulator_dtype(x.dtype))
            return jnp.reshape(
                blocks.norms(self.block_ndim, wide), blocks.lead(self.block_ndim, x.shape)
            )

        return HyperballState(zero_count(), jax.tree.map(radius, params))

    def rule(self, state: HyperballState, params: Params | None, context: Context) -> Rule:
        require_params(params, self, context)
        rate = value_at(self.learning_rate, state.count)
        return Rule(
            _on_sphere,
            HyperballState(increment(state.count), state.radius),
            trees=("radius",),
            scalars=(rate,) if self.radius is None else (rate, self.radius),
            needs_params=True,
            options=(self.block_ndim,),
            shapes=functools.partial(_radii, self.block_ndim, self._keeps),
        )

    @property
    def _keeps(self) -> bool:
        return self.radius is None and self.fixed


@checks.typed
def _keep_radius(
    block_ndim: int | None,
    update: Inexact[Array, "*shape"],
    param: Inexact[Array, "*shape"],
) -> Inexact[Array, "*shape"]:
    unit, radius = blocks.units(block_ndim, param)
    target = radius + blocks.products(block_ndim, unit, update)
    moved, size = blocks.units(block_ndim, plus(param, update))
    kept = minus(blocks.multiplied(target, moved), param)
    some = blocks.has_direction(radius) & blocks.has_direction(size) & (target > 0)
    return blocks.selected(some, kept, update)


class KeepRadius(AbstractLeafwise[EmptyState]):
    r"""Takes out of a step the growth of the norm that comes from its tangential part.

    A step along the tangent of a sphere leaves the sphere: the norm grows by the square of the
    step. For each matrix $W$, with its update $u$, downhill,

    $$W \leftarrow r\, \frac{W + u}{\|W + u\|}, \qquad
    r = \|W\| + \frac{\langle W, u \rangle}{\|W\|}.$$

    So the norm changes as the radial part of the update says, and by nothing else. Put it after the
    learning rate. Decay that is not to be counted as a part of the step comes after it:
    [`eqopt.control.DecayWeights`][].

    A matrix that is 0, or would become 0 or turn round, takes the update as it is.

    **Arguments:**

    - `block_ndim`: the number of trailing axes that one norm is over, at least 1: 2 is each matrix
        of a stack, 1 is each row, `None` the whole leaf. A leaf with fewer axes is one block.

    Raises a `ValueError` if `update` is given no parameters.

    ??? cite "Reference"
        Jordan et al., *modded-nanogpt*, 2026, record 29 of the track on optimization
        (github.com/KellerJordan/modded-nanogpt).
    """

    block_ndim: int | None = eqx.field(
        converter=blocks.block_size("block_ndim"), static=True, default=2
    )

    def init_state(self, params: Params, context: Context) -> EmptyState:
        return EmptyState()

    def rule(self, state: EmptyState, params: Params | None, context: Context) -> Rule:
        require_params(params, self, context)
        return Rule(_keep_radius, state, needs_params=True, options=(self.block_ndim,))
