"""What is zero at a solution: the gradient, unless a constraint keeps it from being zero.

In: an optimizer, parameters, the objective's gradient there. Out: a tree like the gradient, of the
objective's units. It exists because at a solution on the border of a set the gradient is not zero,
and no test of the gradient itself would ever end there.
"""

import jax
from jaxtyping import PyTree

from .._base import checks
from .._base.trees import conj
from .._base.types import Params
from .._transform.project import Project
from .._transformation.base import AnyTransformation, children, composed
from .._transformation.masking import hide, resolved
from .._wrapper.chain import Chain
from .._wrapper.masked import Masked
from ..projections._base import nearest


def residual(optimizer: AnyTransformation, params: Params, grad: PyTree) -> PyTree:
    r"""The gradient $g$, or with a projection $P$ of the parameters $x - P(x - g)$.

    **Arguments:**

    - `optimizer`: the optimizer, which may contain [`eqopt.Project`][].
    - `params`: the parameters $x$.
    - `grad`: the gradient there, as `jax.grad` gives it.
    """
    optimizer = composed(optimizer)
    if isinstance(optimizer, Chain):
        for link in optimizer.links:
            grad = residual(link, params, grad)
        return grad
    if isinstance(optimizer, Masked):
        chosen = resolved(optimizer.mask, params)
        part = residual(optimizer.inner, hide(params, chosen), hide(grad, chosen))
        return jax.tree.map(lambda p, g: g if p is None else p, part, grad, is_leaf=checks.is_none)
    if isinstance(optimizer, Project):
        target = jax.tree.map(lambda x, g: x - g, params, conj(grad))
        kept = nearest(optimizer.projection, target)
        return conj(jax.tree.map(lambda x, y: x - y, params, kept))
    return grad


def projects(optimizer: AnyTransformation) -> bool:
    """Whether an optimizer holds a projection of the parameters, at any depth."""
    optimizer = composed(optimizer)
    return isinstance(optimizer, Project) or any(map(projects, children(optimizer).values()))
