"""Newton's method with products of the Hessian matrix."""

from typing import Any

import equinox as eqx

from .._objective.cache import LinesearchState
from .._transform.learning_rate import ScaleByLearningRate, ScaleByLearningRateState
from .._transformation.base import AbstractOptimizer, AbstractTransformation
from .._wrapper.chain import Chain, ChainState
from ..linesearch._base import AbstractLinesearch, LinesearchInfo
from ..linesearch._wolfe import ScaleByWolfeLinesearch
from ..quasi_newton._newton_cg import ScaleByNewtonCG, ScaleByNewtonCGState

_State = ChainState[
    tuple[ScaleByNewtonCGState, ScaleByLearningRateState, LinesearchState[LinesearchInfo]]
]


class NewtonCG(AbstractOptimizer[_State]):
    r"""Minimizes a deterministic objective by Newton's method with conjugate gradients, in a trust
    region, and a line search.

    It is a chain of [`eqopt.quasi_newton.ScaleByNewtonCG`][], a change of sign and the line search.
    It uses second derivatives: where the objective is badly scaled or curved, it needs fewer steps
    than [`eqopt.LBFGS`][], each of which costs several products with the Hessian matrix.

    **Arguments:**

    - `direction`: the transformation that gives the direction.
    - `linesearch`: the line search.

    It is used through `step`, or by [`eqopt.minimize`][], which counts a product as one evaluation.
    Its `update` needs `params`, `value`, `grad` and `value_fn`.
    """

    direction: ScaleByNewtonCG = eqx.field(default_factory=ScaleByNewtonCG)
    linesearch: AbstractLinesearch[Any] = eqx.field(default_factory=ScaleByWolfeLinesearch)

    def compose(self) -> AbstractTransformation[_State]:
        return Chain(self.direction, ScaleByLearningRate(1.0), self.linesearch)
