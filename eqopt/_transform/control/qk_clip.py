"""Limits on the logits of attention, through the matrices that make queries and keys."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ..._base import checks
from ..._base.arithmetic import cast, minus, plus, real_dtype, safe_divide, times, wider
from ..._base.converters import optional, positive, real, size
from ..._base.types import Leaves, Params, Scalar, Updates
from ..._objective.objective import Context, require_params
from ..._transformation.base import EmptyState
from ..._transformation.masking import resolved
from ..._transformation.nesting import AbstractConstrained, Requirement
from ...selectors._selector import AbstractSelector, as_selector


class QKClip(AbstractConstrained[EmptyState]):
    r"""Shrinks the matrices that make queries and keys, where the logits of attention are too
    large.

    After the step, for each head $h$ with its largest logit $S_h$,

    $$W_{q,h} \leftarrow g_h^{\alpha}\, W_{q,h}, \qquad
    W_{k,h} \leftarrow g_h^{1-\alpha}\, W_{k,h}, \qquad
    g_h = \min\left(1, \frac{\tau}{S_h}\right),$$

    so that the logits of this head become $g_h$ times as large. Put it last in a chain.

    The largest logits come from the forward pass: one number for each head, the maximum over batch,
    positions, and all devices. Return them in the objective's aux, in a dictionary, as
    `max_logits`, or pass them to `update` by this name:

    ```python
    import equinox as eqx
    import eqopt
    import jax
    import jax.numpy as jnp
    from eqopt import ByPath
    from eqopt.control import QKClip


    class Attention(eqx.Module):
        query: eqx.nn.Linear
        key: eqx.nn.Linear


    def loss(model, x):
        q, k = (jax.vmap(f)(x).reshape(len(x), 2, 4) for f in (model.query, model.key))
        logits = jnp.einsum("qhd,khd->hqk", q, k) / 2
        value = jnp.sum(jax.nn.softmax(logits)[..., 0])
        return value, {"max_logits": jnp.max(logits, axis=(1, 2))}


    keys = jax.random.split(jax.random.key(0))
    model = Attention(*(eqx.nn.Linear(8, 8, use_bias=False, key=k) for k in keys))
    opt = eqopt.Chain(
        eqopt.AdamW(1e-3),
        QKClip(ByPath("query.weight"), ByPath("key.weight"), num_heads=2),
    )
    state = opt.init(model)
    model, state, _ = opt.step(loss, model, state, jnp.ones((5, 8)), has_aux=True)
    ```

    The matrices have shape `(..., heads * head_size, in)`, as the weight of `eqx.nn.Linear` has.
    Leading axes are a stack of layers, and `max_logits` then has shape `(..., heads)`. For several
    layers that are separate in the model, `max_logits` is a sequence of such arrays, in the order
    of the layers. If queries share keys in groups, a key's matrix takes the smallest $g_h$ of its
    group. A largest logit that is not finite, or not above $\tau$, changes nothing.

    For latent attention (MLA), give the matrices of the parts without position as `query` and
    `key`, and those of the rotated queries as `rotary_query`: these shrink by $g_h$ in full,
    because the rotated key that all heads share is left alone.

    !!! note
        pytorch-optimizer shrinks queries by $g^\alpha$ and keys by $g^{1-\alpha}$ too; the paper
        has $\alpha = 1/2$. Biases of queries and keys are left alone, as there.

    **Arguments:**

    - `query`: the matrices that make queries: a selector, a function from the parameters to
        booleans, or a tree of booleans, possibly a prefix.
    - `key`: the matrices that make keys, one for each of `query`; `None` is none, for a model in
        which only the queries are to shrink.
    - `num_heads`: the number of heads of the queries, at least 1.
    - `num_key_heads`: the number of heads of the keys, at least 1; `None` is as many.
    - `max_logit`: the limit $\tau > 0$.
    - `alpha`: the share $\alpha$ of the queries, in $[0, 1]$.
    - `rotary_query`: the matrices that make rotated queries, one for each of `query`; `None` is
        none.

    Raises a `ValueError` if there are no parameters or no `max_logits`, if these do not fit the
    matrices, or if heads do not divide a matrix.

    ??? cite "Reference"
        Kimi Team, *Kimi K2: Open Agentic Intelligence*, 2025, algorithm 1 (arXiv 2507.20534).
    """

    query: AbstractSelector = eqx.field(converter=as_selector)
    key: AbstractSelector | None = eqx.field(converter=optional(as_selector))
    num_heads: int = eqx.field(converter=size("num_heads"), static=True)
    num_key_heads: int | None = eqx.field(
        converter=optional(size("num_key_heads")), static=True, default=None
    )
    max_logit: Scalar = eqx.field(converter=positive("max_logit"), default=100.0)
    alpha: Scalar = eqx.field(converter=real("alpha", at_least=0, at_most=1), default=0.5)
    rotary_query: AbstractSelector | None = eqx.field(converter=optional(as_selector), default=None)

    def __check_init__(self) -> None:
        if self.num_heads % self._num_key_heads:
            raise ValueError(
                f"`num_key_heads` must divide `num_heads`; got {self._num_key_heads} and "
                f"{self.num_heads}"
            )

    def requirements(self) -> frozenset[Requirement]:
        return frozenset({Requirement.MOVES})

    def init_state(self, params: Params, context: Context) -> EmptyState:
        self._places(params)  # so that a wrong selector raises at once
        return EmptyState()

    def transform(
        self, updates: Updates, state: EmptyState, params: Params | None, context: Context
    ) -> tuple[Updates, EmptyState]:
        params = require_params(params, self, context)
        leaves, treedef = checks.flatten(updates)
        before: Leaves = treedef.flatten_up_to(params)
        queries, keys, rotary = self._places(params)
        if not queries:
            return updates, state
        logits = self._logits(context, len(queries))
        names = checks.paths("params", params)
        for i, x in enumerate(logits):
            wide = x.astype(wider(x.dtype, self.max_logit.dtype))
            limit = jnp.asarray(self.max_logit, wide.dtype)
            over = (wide > limit) & jnp.isfinite(wide)
            share = safe_divide(jnp.broadcast_to(limit, wide.shape), wide, 1, zero=~over)
            alpha = jnp.asarray(self.alpha, wide.dtype)
            group = (*share.shape[:-1], self._num_key_heads, -1)
            smallest = jnp.min(jnp.reshape(share, group), axis=-1)
            for places, factor in (
                (queries, share**alpha),
                (keys, smallest ** (1 - alpha)),
                (rotary, share),
            ):
                if places and leaves[places[i]] is not None:
                    place = places[i]
                    leaves[place] = _clipped(leaves[place], before[place], factor, names[place])
        return treedef.unflatten(leaves), state

    @property
    def _num_key_heads(self) -> int:
        return self.num_heads if self.num_key_heads is None else self.num_key_heads

    def _places(self, params: Params) -> tuple[list[int], list[int], list[int]]:
        """Where the matrices of queries, of keys and of rotated queries stand among the leaves."""
        leaves, _ = checks.flatten(params)
        found: list[list[int]] = []
        for name, selector, num in (
            ("query", self.query, self.num_heads),
            ("key", self.key, self._num_key_heads),
            ("rotary_query", self.rotary_query, self.num_heads),
        ):
            chosen = () if selector is None else resolved(selector, params)
            places = [i for i, c in enumerate(chosen) if c]
            for i in places:
                x = leaves[i]
                if x is not None and (x.ndim < 2 or x.shape[-2] % num):
                    raise ValueError(
                        f"`{checks.paths('params', params)[i]}`, which `{name}` chooses, has shape "
                        f"{x.shape}; `QKClip` needs (..., heads * head_size, in) with {num} heads"
                    )
            if selector is not None and found and len(places) != len(found[0]):
                raise ValueError(
                    f"`query` chooses {len(found[0])} matrices, and `{name}` {len(places)}; there "
                    "must be one for each"
                )
            found.append(places)
        return found[0], found[1], found[2]

    def _logits(self, context: Context, num: int) -> list[Array]:
        """The largest logits of each matrix of queries."""
        evaluation = None if context.whole is None else context.whole.evaluation
        aux = None if evaluation is None else evaluation.aux
        given = context.extra.get("max_logits")
        if given is None and isinstance(aux, dict):
            given = aux.get("max_logits")
        if given is None:
            raise ValueError(
                "`QKClip` needs `max_logits`: return it in the objective's aux, a dictionary, with "
                "`has_aux=True`, or pass it to `update` by keyword"
            )
        several: Sequence[Any] = given if isinstance(given, list | tuple) else [given]
        if len(several) != num:
            raise ValueError(
                f"`max_logits` holds {len(several)} arrays; `query` chooses {num} matrices, and "
                "there must be one array for each"
            )
        for x in several:
            if not checks.is_inexact(x) or x.ndim == 0 or x.shape[-1] != self.num_heads:
                raise ValueError(
                    f"`max_logits` must hold real arrays of shape (..., {self.num_heads}), one "
                    f"number for each head; got {checks.describe(x)}"
                )
        return [jnp.asarray(x) for x in several]


def _clipped(update: Array, param: Array, factor: Float[Array, "..."], name: str) -> Array:
    """The update after which the parameter has been multiplied by the factor of each head."""
    if factor.shape[:-1] != param.shape[:-2]:
        raise ValueError(
            f"`max_logits` for `{name}`, of shape {param.shape}, must have shape "
            f"{(*param.shape[:-2], factor.shape[-1])}; it has {factor.shape}"
        )
    dtype = wider(update.dtype, param.dtype)
    # Repeated, and not by reshaping the matrix, which may be divided between devices.
    rows = jnp.repeat(factor, param.shape[-2] // factor.shape[-1], axis=-1)[..., None]
    rows = jnp.broadcast_to(rows.astype(real_dtype(dtype)), param.shape)
    wide = cast(update, dtype), cast(param, dtype)
    moved = minus(times(rows, plus(*wide)), wide[1])
    return lax.select(rows == 1, wide[0], moved)
