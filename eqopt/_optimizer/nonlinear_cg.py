"""Nonlinear conjugate gradients with a line search."""

from typing import Any

import equinox as eqx

from .._base.converters import real
from .._base.types import Scalar
from .._objective.cache import LinesearchState
from .._transform.learning_rate import ScaleByLearningRate, ScaleByLearningRateState
from .._transformation.base import AbstractOptimizer, AbstractTransformation, check_transformation
from .._wrapper.chain import Chain, ChainState
from ..linesearch._base import AbstractLinesearch, LinesearchInfo
from ..linesearch._wolfe import ScaleByWolfeLinesearch
from ..quasi_newton._conjugate_gradient import (
    AbstractConjugacy,
    check_conjugacy,
    HagerZhang,
    ScaleByNonlinearCG,
    ScaleByNonlinearCGState,
)

_State = ChainState[
    tuple[ScaleByNonlinearCGState, ScaleByLearningRateState, LinesearchState[LinesearchInfo]]
]


def _search() -> AbstractLinesearch[Any]:
    return ScaleByWolfeLinesearch(curv_rtol=0.4)


class NonlinearCG(AbstractOptimizer[_State]):
    r"""Minimizes a deterministic objective by conjugate gradients and a line search.

    It needs less memory than [`eqopt.LBFGS`][], and more evaluations of the objective. It is a
    chain of [`eqopt.quasi_newton.ScaleByNonlinearCG`][], [`eqopt.ScaleByLearningRate`][] and the
    line search.

    **Arguments:**

    - `method`: the weight of the last direction in the next one:
        [`eqopt.quasi_newton.HagerZhang`][], [`eqopt.quasi_newton.PolakRibierePlus`][],
        [`eqopt.quasi_newton.FletcherReeves`][], [`eqopt.quasi_newton.DaiYuan`][] or another
        [`eqopt.quasi_newton.AbstractConjugacy`][].
    - `linesearch`: the line search, which should begin at 1. By default it is
        [`eqopt.linesearch.ScaleByWolfeLinesearch`][] with a `curv_rtol` of 0.4: conjugate
        directions need a more exact search than quasi-Newton directions.
    - `restart_rtol`: the overlap of two gradients at which to restart, positive; with infinity they
        may overlap.

    It is used through `step`, or by [`eqopt.minimize`][]. Its `update` needs `params`, `value`,
    `grad` and `value_fn`.
    """

    method: AbstractConjugacy = eqx.field(default_factory=HagerZhang)
    linesearch: AbstractLinesearch[Any] = eqx.field(default_factory=_search)
    restart_rtol: Scalar = eqx.field(
        converter=real("restart_rtol", above=0, finite=False), default=0.5
    )

    def __check_init__(self) -> None:
        check_conjugacy(self.method)
        check_transformation("linesearch", self.linesearch)

    def compose(self) -> AbstractTransformation[_State]:
        return Chain(
            ScaleByNonlinearCG(self.method, self.restart_rtol),
            ScaleByLearningRate(1.0),
            self.linesearch,
        )
