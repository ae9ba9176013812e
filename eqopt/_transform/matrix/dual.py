"""The longest steps in balls of norms that are simpler than the spectral norm."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from ..._base import checks
from ..._base.arithmetic import cast, divide, norm, real_dtype, times
from ..._base.converters import non_negative, one_of, optional
from ..._base.types import Params, Scalar, Updates
from ..._objective.objective import Context
from ..._transformation.base import AbstractTransformation, EmptyState
from .dimensions import AbstractDimensions, as_dimensions
from .matrices import all_forms_of, Form

NORMS = ("sign", "column", "row", "rms")


class ScaleByDualNorm(AbstractTransformation[EmptyState]):
    r"""Replaces each update $g$ by the longest step in a ball around zero that goes along with it.

    With $d_\mathrm{out}$ rows and $d_\mathrm{in}$ columns, as in a layer of `eqx.nn`, and $d$
    entries in all,

    | `norm` | step | for |
    | --- | --- | --- |
    | `"sign"` | $\operatorname{sign}(g) / d_\mathrm{in}$ | the last layer |
    | `"column"` | each column over $\|g_j\|\, d_\mathrm{out}^{-1/2} + \epsilon$ | the first layer |
    | `"row"` | each row over $\|g_i\| \, d_\mathrm{in}^{1/2} + \epsilon$ | the last layer |
    | `"rms"` | $g$ over $\|g\| \, d^{-1/2} + \epsilon$ | biases and other vectors |

    The step of the spectral norm is made by [`eqopt.matrix.Orthogonalize`][] and
    `eqopt.matrix.ScaleByShape(mode="unit_rms")`.

    **Arguments:**

    - `norm`: which norm.
    - `eps`: $\epsilon \ge 0$.
    - `weight_dimension_numbers`: which axes of a parameter form a matrix, as for
        [`eqopt.Muon`][]; not used by `"rms"`.

    Raises a `ValueError` for another norm, and one that names a parameter that is not a matrix,
    unless `norm` is `"rms"`.

    ??? cite "Reference"
        Pethick et al., *Training Deep Learning Models with Norm-Constrained LMOs*, 2025, tables 2
        to 4 (arXiv 2502.07529).
    """

    norm: str = eqx.field(converter=one_of("norm", NORMS), static=True)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)
    weight_dimension_numbers: AbstractDimensions | None = eqx.field(
        converter=optional(as_dimensions), default=None
    )

    def init_state(self, params: Params, context: Context) -> EmptyState:
        self._forms(params, "params")
        return EmptyState()

    def transform(
        self, updates: Updates, state: EmptyState, params: Params | None, context: Context
    ) -> tuple[Updates, EmptyState]:
        forms = self._forms(updates, "updates")
        leaves, treedef = checks.flatten(updates)
        return treedef.unflatten(map(self._step, leaves, forms)), state

    def _forms(self, tree: Updates, name: str) -> list[Form | None]:
        dimensions = self.weight_dimension_numbers
        if self.norm == "rms":
            return [None] * len(checks.flatten(tree)[0])
        return all_forms_of(tree, dimensions, name, self, turned=False)

    def _step(self, x: Array | None, form: Form | None) -> Array | None:
        if x is None or not x.size:
            return x
        if form is None:
            return self._over(x, norm(x), x.size**-0.5)
        matrices = form.matrices(x)  # (batch, in, out)
        _, fan_in, fan_out = form.sizes
        if self.norm == "sign":
            size = jnp.asarray(1 / fan_in, real_dtype(x.dtype))
            return form.back(times(size, jnp.sign(matrices)), x)
        axis, factor = (2, fan_out**-0.5) if self.norm == "column" else (1, fan_in**0.5)
        return form.back(self._over(matrices, norm(matrices, (axis,), keepdims=True), factor), x)

    def _over(self, x: Array, size: Array, factor: float) -> Array:
        size = factor * size + cast(jnp.asarray(self.eps), size.dtype)
        size = jnp.where(size == 0, jnp.ones_like(size), size)  # zero stays zero
        return divide(x, jnp.broadcast_to(size, x.shape))
