"""The size of an update against the size of its parameter."""

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Inexact

from ..._base import blocks, checks
from ..._base.arithmetic import minus, safe_divide, within
from ..._base.converters import non_negative, real
from ..._base.types import Params, Scalar
from ..._objective.objective import Context, require_params
from ..._transformation.base import AbstractLeafwise, EmptyState
from ..._transformation.leafwise import Rule


@checks.typed
def _relative(
    block_ndim: int | None,
    update: Inexact[Array, "*shape"],
    param: Inexact[Array, "*shape"],
) -> Inexact[Array, "*shape"]:
    unit, _ = blocks.units(block_ndim, update)
    size = blocks.norms(block_ndim, param)
    return blocks.selected(size == 0, update, blocks.multiplied(size, unit))


class RelativeUpdate(AbstractLeafwise[EmptyState]):
    r"""Makes the update of each matrix as long as the matrix: $u \leftarrow u\, \|W\| / \|u\|$.

    A learning rate after it is the relative change of a parameter in one step. An update without a
    direction, because its norm is 0 or not finite, becomes zero. The update of a matrix that is 0
    stays as it is: otherwise the matrix would never move.

    !!! note
        [`eqopt.ScaleByTrustRatio`][] does the same for whole leaves, with more choices. In
        emerging-optimizers, a matrix that is 0 stays 0.

    **Arguments:**

    - `block_ndim`: the number of trailing axes that one norm is over, at least 1: 2 is each matrix
        of a stack, 1 is each row, `None` the whole leaf. A leaf with fewer axes is one block.

    Raises a `ValueError` if `update` is given no parameters.

    ??? cite "Reference"
        Bernstein, Vahdat, Yue and Liu, *On the distance between two neural networks and the
        stability of learning*, NeurIPS 2020, section 4 (arXiv 2002.03432).
    """

    block_ndim: int | None = eqx.field(
        converter=blocks.block_size("block_ndim"), static=True, default=2
    )

    def init_state(self, params: Params, context: Context) -> EmptyState:
        return EmptyState()

    def rule(self, state: EmptyState, params: Params | None, context: Context) -> Rule:
        require_params(params, self, context)
        return Rule(_relative, state, needs_params=True, options=(self.block_ndim,))


@checks.typed
def _floor(
    block_ndim: int | None,
    update: Inexact[Array, "*shape"],
    param: Inexact[Array, "*shape"],
    floor: Float[Array, ""],
    exponent: Float[Array, ""],
) -> Inexact[Array, "*shape"]:
    size = blocks.norms(block_ndim, update)
    least = lax.mul(jnp.broadcast_to(floor, size.shape), blocks.norms(block_ndim, param))
    grows = blocks.has_direction(size) & (size < least)
    factor = safe_divide(least, size, 1, zero=~grows) ** exponent
    return blocks.selected(grows, blocks.multiplied(factor, update), update)


class UpdateFloor(AbstractLeafwise[EmptyState]):
    r"""Makes short updates longer, in proportion to their parameters:
    $u \leftarrow u \max\left(1, t\, \|W\| / \|u\|\right)^\rho$.

    The norms are those of one matrix, or with `block_ndim=1` of one row, which is the weights of
    one unit of an `eqx.nn.Linear`. Put it before the learning rate. An update whose norm is 0 or
    not finite stays as it is.

    **Arguments:**

    - `floor`: the least ratio $t \ge 0$ of the norms.
    - `block_ndim`: the number of trailing axes that one norm is over, at least 1: 2 is each matrix
        of a stack, 1 is each row, `None` the whole leaf. A leaf with fewer axes is one block.
    - `exponent`: the exponent $\rho \ge 0$ of the factor: with less than 1, short updates
        come only a part of the way.

    Raises a `ValueError` if `update` is given no parameters.

    ??? cite "Reference"
        Jordan et al., *modded-nanogpt*, 2026, records 9 and, by rows, 46 of the track on
        optimization (github.com/KellerJordan/modded-nanogpt).
    """

    floor: Scalar = eqx.field(converter=non_negative("floor"))
    block_ndim: int | None = eqx.field(
        converter=blocks.block_size("block_ndim"), static=True, default=2
    )
    exponent: Scalar = eqx.field(converter=non_negative("exponent"), default=1.0)

    def init_state(self, params: Params, context: Context) -> EmptyState:
        return EmptyState()

    def rule(self, state: EmptyState, params: Params | None, context: Context) -> Rule:
        require_params(params, self, context)
        return Rule(
            _floor,
            state,
            scalars=(self.floor, self.exponent),
            needs_params=True,
            options=(self.block_ndim,),
        )


@checks.typed
def _brake(
    block_ndim: int | None,
    update: Inexact[Array, "*shape"],
    param: Inexact[Array, "*shape"],
    outward: Float[Array, ""],
    inward: Float[Array, ""],
) -> Inexact[Array, "*shape"]:
    unit, _ = blocks.units(block_ndim, param)
    # The update is subtracted: where its radial part is negative, the step goes outward.
    radial = blocks.products(block_ndim, unit, update)
    removed = (1 - jnp.where(radial < 0, outward, inward)) * radial
    return minus(update, blocks.multiplied(removed, unit))


class RadialBrake(AbstractLeafwise[EmptyState]):
    r"""Shortens the part of an update that makes the norm of its parameter grow.

    For each matrix $W$, with its update $u$, uphill,

    $$u \leftarrow u - (1 - b)\, c\, W, \qquad
    c = \frac{\langle u, W \rangle}{\|W\|^2}, \qquad
    b = \begin{cases} b_o & c < 0 \\ b_i & c \ge 0. \end{cases}$$

    The update is subtracted: its radial part $cW$ makes the norm grow if $c < 0$. Put it before the
    learning rate. A matrix that is 0 has no radial direction, and its update stays as it is.

    A step along the tangent makes the norm grow too, by the square of the step, and is left as it
    is. modded-nanogpt takes that growth out after the step: [`eqopt.control.KeepRadius`][], after
    the learning rate.

    !!! note
        The hook of emerging-optimizers acts after the step instead: it scales the change of the
        norm, the growth along the tangent included.

    **Arguments:**

    - `outward`: the factor $b_o$ of a radial part that goes outward, in $[0, 1]$; 0 takes it out.
    - `inward`: the factor $b_i$ of a radial part that goes inward, in $[0, 1]$.
    - `block_ndim`: the number of trailing axes that one norm is over, at least 1: 2 is each matrix
        of a stack, 1 is each row, `None` the whole leaf. A leaf with fewer axes is one block.

    Raises a `ValueError` if `update` is given no parameters.

    ??? cite "Reference"
        Jordan et al., *modded-nanogpt*, 2026, record 29 of the track on optimization
        (github.com/KellerJordan/modded-nanogpt).
    """

    outward: Scalar = eqx.field(converter=real("outward", at_least=0, at_most=1), default=0.5)
    inward: Scalar = eqx.field(converter=real("inward", at_least=0, at_most=1), default=1.0)
    block_ndim: int | None = eqx.field(
        converter=blocks.block_size("block_ndim"), static=True, default=2
    )

    def init_state(self, params: Params, context: Context) -> EmptyState:
        return EmptyState()

    def rule(self, state: EmptyState, params: Params | None, context: Context) -> Rule:
        require_params(params, self, context)
        return Rule(
            _brake,
            state,
            scalars=(self.outward, self.inward),
            needs_params=True,
            options=(self.block_ndim,),
        )


@checks.typed
def _clip_rms(
    block_ndim: int | None, update: Inexact[Array, "*shape"], max_rms: Float[Array, ""]
) -> Inexact[Array, "*shape"]:
    root = float(blocks.num_entries(block_ndim, update)) ** 0.5
    factor = within(blocks.norms(block_ndim, update) / root, max_rms)
    limited = blocks.multiplied(factor, update)
    return blocks.selected(factor > 0, limited, jnp.zeros_like(update))


class ClipUpdateRMS(AbstractLeafwise[EmptyState]):
    r"""Shrinks the update of each matrix if its root mean square exceeds a limit:
    $u \leftarrow u \min(1, c \sqrt{n} / \|u\|)$.

    The norm is over one matrix, of $n$ entries, in float32 at least. An update whose norm is not
    finite has no direction, and becomes zero.

    !!! note
        [`eqopt.ClipByBlockRMS`][] is the same for whole leaves.

    **Arguments:**

    - `max_rms`: the limit $c \ge 0$.
    - `block_ndim`: the number of trailing axes that one norm is over, at least 1: 2 is each matrix
        of a stack, 1 is each row, `None` the whole leaf. A leaf with fewer axes is one block.

    ??? cite "Reference"
        Shazeer and Stern, *Adafactor: Adaptive Learning Rates with Sublinear Memory Cost*, ICML
        2018, section 6 (arXiv 1804.04235).
    """

    max_rms: Scalar = eqx.field(converter=non_negative("max_rms"), default=1.0)
    block_ndim: int | None = eqx.field(
        converter=blocks.block_size("block_ndim"), static=True, default=2
    )

    def init_state(self, params: Params, context: Context) -> EmptyState:
        return EmptyState()

    def rule(self, state: EmptyState, params: Params | None, context: Context) -> Rule:
        return Rule(_clip_rms, state, scalars=(self.max_rms,), options=(self.block_ndim,))
