"""Orthogonal updates, divided by the average size of earlier ones."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..._base import checks
from ..._base.arithmetic import abs_sq, cast, ema, norm, real_dtype, safe_sqrt, times, wider
from ..._base.converters import decay_factor, non_negative, one_of, optional
from ..._base.trees import one_minus
from ..._base.types import Params, Scalar, Updates
from ..._objective.objective import Context
from ..._transformation.base import AbstractTransformation, EmptyState
from .dimensions import AbstractDimensions, as_dimensions
from .matrices import all_forms_of, Form
from .muon import ScaleByMuon, ScaleByMuonState

PLACES = ("clamp", "outside")
AXES = ("shorter", "input")


class ScaleByNeuronRMSState(eqx.Module):
    """The state of [`eqopt.matrix.ScaleByNeuronRMS`][].

    **Arguments:**

    - `nu`: for each parameter the average $v$, of shape `(matrices, entries)`, in float32 or wider.
    """

    nu: PyTree


class ScaleByNeuronRMS(AbstractTransformation[ScaleByNeuronRMSState]):
    r"""Divides each row of a matrix by the root mean square that it has had, and keeps the norm of
    the matrix:

    $$v \leftarrow \beta_2 v + (1 - \beta_2) \operatorname{mean}_j O_{ij}^2, \qquad
    O'_{ij} = O_{ij} / \sqrt{\max(v_i, \epsilon)}, \qquad
    U = \frac{\|O\|_F}{\max(\|O'\|_F, \epsilon)}\, O'.$$

    It stands after [`eqopt.ScaleByMuon`][], whose rows differ in size, and before
    [`eqopt.matrix.ScaleByShape`][]. The average is not debiased: the norm that is kept makes that
    unnecessary. There is a $v_i$ for each row of each matrix of a stack.

    **Arguments:**

    - `b2`: the decay $\beta_2$ of the average, in $[0, 1)$.
    - `eps`: $\epsilon \ge 0$.
    - `axis`: over which axes of the matrix the mean is taken: `"shorter"`, those of the shorter
        side (if both are equal, those of the input), or `"input"`, for an average of its own for
        each output neuron.
    - `eps_place`: where $\epsilon$ stands: `"clamp"` as above, or `"outside"`, for
        $O_{ij} / (\sqrt{v_i} + \epsilon)$.
    - `weight_dimension_numbers`: which axes of a parameter form a matrix, as for
        [`eqopt.Muon`][].

    Raises a `ValueError` that names a parameter that is not a matrix.

    !!! note
        Implementations differ. The defaults are those of emerging-optimizers (whose comment says
        the longer side; its code takes the shorter one) and of modded-nanogpt's records; dion takes
        `axis="input"` and `eps_place="outside"`.

    ??? cite "Reference"
        Li et al., *NorMuon: Making Muon more efficient and scalable*, 2025, algorithm 1 (arXiv
        2510.05491).
    """

    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.95)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)
    axis: str = eqx.field(converter=one_of("axis", AXES), static=True, default="shorter")
    eps_place: str = eqx.field(converter=one_of("eps_place", PLACES), static=True, default="clamp")
    weight_dimension_numbers: AbstractDimensions | None = eqx.field(
        converter=optional(as_dimensions), default=None
    )

    def init_state(self, params: Params, context: Context) -> ScaleByNeuronRMSState:
        forms = all_forms_of(params, self.weight_dimension_numbers, "params", self)
        leaves, treedef = checks.flatten(params)
        nu = [
            None if form is None else jnp.zeros(self._shape(form), real_dtype(wider(x.dtype)))
            for x, form in zip(leaves, forms, strict=True)
        ]
        return ScaleByNeuronRMSState(treedef.unflatten(nu))

    def transform(
        self,
        updates: Updates,
        state: ScaleByNeuronRMSState,
        params: Params | None,
        context: Context,
    ) -> tuple[Updates, ScaleByNeuronRMSState]:
        forms = all_forms_of(updates, self.weight_dimension_numbers, "updates", self)
        leaves, treedef = checks.flatten(updates)
        averages = treedef.flatten_up_to(state.nu)
        out, nu = list(leaves), list(averages)
        for i, (x, v, form) in enumerate(zip(leaves, averages, forms, strict=True)):
            if form is not None and x.size:
                scaled, nu[i] = self._scaled(form.matrices(x), v, self._axis(form))
                out[i] = form.back(scaled, x)
        return treedef.unflatten(out), ScaleByNeuronRMSState(treedef.unflatten(nu))

    def _axis(self, form: Form) -> int:
        # No matrix has more rows than columns; those of the input are the rows, unless turned.
        return 2 if self.axis == "input" and form.turned else 1

    def _shape(self, form: Form) -> tuple[int, int]:
        batch, *sides = form.sizes
        return batch, sorted(sides)[0 if self._axis(form) == 2 else 1]

    def _scaled(self, x: Array, v: Array, axis: int) -> tuple[Array, Array]:
        squares = jnp.mean(abs_sq(cast(x, wider(x.dtype))), axis=axis)
        v = ema(cast(one_minus(self.b2), v.dtype), v, squares)
        eps = cast(jnp.asarray(self.eps), v.dtype)
        clamp = self.eps_place == "clamp"
        size = safe_sqrt(jnp.maximum(v, eps)) if clamp else safe_sqrt(v) + eps
        out = _times(cast(1 / _nonzero(jnp.expand_dims(size, axis)), real_dtype(x.dtype)), x)
        before, after = (norm(y, (-2, -1), keepdims=True) for y in (x, out))
        return _times(before / _nonzero(jnp.maximum(after, cast(eps, after.dtype))), out), v


class ScaleByNAMOState(eqx.Module):
    """The state of [`eqopt.matrix.ScaleByNAMO`][].

    **Arguments:**

    - `muon`: the state of the momentum.
    - `nu`: for each parameter the average $v$ of the squared norm of each matrix's gradient, of
        shape `(matrices,)`, in float32 or wider.
    """

    muon: ScaleByMuonState
    nu: PyTree


class ScaleByNAMO(AbstractTransformation[ScaleByNAMOState]):
    r"""Muon's orthogonal momentum, times the momentum's norm over that of the gradients:

    $$v \leftarrow \beta_2 v + (1 - \beta_2) \|g\|_F^2, \qquad
    U = \frac{\|m\|_F}{\sqrt v + \epsilon} \operatorname{orth}(m).$$

    So steps are short where gradients disagree. $m$ is the average that is made orthogonal, with
    `nesterov` the one ahead; there is a $v$ for each matrix of a stack. $v$ is not debiased.

    **Arguments:**

    - `muon`: the [`eqopt.ScaleByMuon`][] that makes $m$ and $\operatorname{orth}(m)$.
    - `b2`: the decay $\beta_2$ of the average, in $[0, 1)$.
    - `eps`: $\epsilon \ge 0$.

    Raises a `ValueError` that names a parameter that is not a matrix.

    ??? cite "Reference"
        Zhang et al., *Adam Improves Muon: Adaptive Moment Estimation with Orthogonalized Momentum*,
        2026 (arXiv 2602.17080).
    """

    muon: ScaleByMuon = eqx.field(default_factory=ScaleByMuon)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.95)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)

    def __check_init__(self) -> None:
        if not isinstance(self.muon, ScaleByMuon):
            raise TypeError(f"`muon` must be a `ScaleByMuon`; got {checks.describe(self.muon)}")

    def init_state(self, params: Params, context: Context) -> ScaleByNAMOState:
        forms = self._forms(params, "params")
        leaves, treedef = checks.flatten(params)
        nu = [
            None if form is None else jnp.zeros(form.sizes[0], real_dtype(wider(x.dtype)))
            for x, form in zip(leaves, forms, strict=True)
        ]
        return ScaleByNAMOState(self.muon.init_state(params, context), treedef.unflatten(nu))

    def transform(
        self, updates: Updates, state: ScaleByNAMOState, params: Params | None, context: Context
    ) -> tuple[Updates, ScaleByNAMOState]:
        averages, muon = self.muon.averaged(updates, state.muon, params)
        orthogonal, _ = self.muon.orthogonalize().transform(averages, EmptyState(), params, context)
        forms = self._forms(updates, "updates")
        leaves, treedef = checks.flatten(updates)
        before, after, nu = (
            list(treedef.flatten_up_to(t)) for t in (averages, orthogonal, state.nu)
        )
        for i, (g, form) in enumerate(zip(leaves, forms, strict=True)):
            if form is not None:
                factor, nu[i] = self._factor(form.matrices(g), form.matrices(before[i]), nu[i])
                after[i] = form.back(_times(factor, form.matrices(after[i])), after[i])
        return treedef.unflatten(after), ScaleByNAMOState(muon, treedef.unflatten(nu))

    def _forms(self, tree: PyTree, name: str) -> list[Form | None]:
        return all_forms_of(tree, self.muon.weight_dimension_numbers, name, self)

    def _factor(self, gradient: Array, average: Array, v: Array) -> tuple[Array, Array]:
        size = norm(cast(gradient, wider(gradient.dtype)), (-2, -1), keepdims=False)
        v = ema(cast(one_minus(self.b2), v.dtype), v, cast(size * size, v.dtype))
        own = norm(average, (-2, -1), keepdims=False)
        size = safe_sqrt(v) + cast(jnp.asarray(self.eps), v.dtype)
        factor = cast(own, v.dtype) / _nonzero(size)
        return cast(factor, own.dtype)[:, None, None], v


def _times(factor: Array, x: Array) -> Array:
    """Each matrix, or each row, times its own number."""
    return times(jnp.broadcast_to(factor, x.shape), x)


def _nonzero(x: Array) -> Array:
    # Zero updates stay zero, with an `eps` of 0 too.
    return jnp.where(x == 0, jnp.ones_like(x), x)
