"""Quasi-Newton methods with line searches."""

from typing import Any

import equinox as eqx

from .._base.converters import flag, size
from .._base.types import Scalar
from .._objective.cache import LinesearchState
from .._schedule.base import AbstractSchedule, maybe_rate
from .._transform.basic import Identity
from .._transform.learning_rate import ScaleByLearningRate, ScaleByLearningRateState
from .._transformation.base import AbstractOptimizer, AbstractTransformation, EmptyState
from .._wrapper.chain import Chain, ChainState
from ..linesearch._base import AbstractLinesearch, LinesearchInfo
from ..linesearch._wolfe import ScaleByWolfeLinesearch
from ..quasi_newton._bfgs import ScaleByBFGS, ScaleByBFGSState
from ..quasi_newton._broyden import AbstractBroydenUpdate, BFGSUpdate
from ..quasi_newton._lbfgs import ScaleByLBFGS, ScaleByLBFGSState
from ..quasi_newton._lbfgsb import ScaleByLBFGSB

_LBFGSState = ChainState[
    tuple[ScaleByLBFGSState, ScaleByLearningRateState, LinesearchState[LinesearchInfo] | EmptyState]
]


class LBFGS(AbstractOptimizer[_LBFGSState]):
    r"""Minimizes a deterministic objective by the limited-memory BFGS method and a line search.

    It is a chain of [`eqopt.ScaleByLBFGS`][], [`eqopt.ScaleByLearningRate`][] and the line search.

    **Arguments:**

    - `learning_rate`: a factor of the updates before the line search, a number or a schedule;
        `None` is 1.
    - `memory_size`: the number of steps remembered; at least 1.
    - `scale_init_precond`: whether the first step is shortened.
    - `linesearch`: the line search, or `None` to take the updates as they are.
    - `direction`: the transformation that gives the direction, instead of
        `ScaleByLBFGS(memory_size, scale_init_precond)`; with it, these two arguments are not used.

    It is used through `step`, or by [`eqopt.minimize`][]. Its `update` needs `params`, `value`,
    `grad` and `value_fn`.
    """

    learning_rate: Scalar | AbstractSchedule | None = eqx.field(converter=maybe_rate, default=None)
    memory_size: int = eqx.field(converter=size("memory_size"), static=True, default=10)
    scale_init_precond: bool = eqx.field(
        converter=flag("scale_init_precond"), static=True, default=True
    )
    linesearch: AbstractLinesearch[Any] | None = eqx.field(default_factory=ScaleByWolfeLinesearch)
    direction: ScaleByLBFGS | None = None

    def compose(self) -> AbstractTransformation[_LBFGSState]:
        rate = 1.0 if self.learning_rate is None else self.learning_rate
        return Chain(
            self.direction or ScaleByLBFGS(self.memory_size, self.scale_init_precond),
            ScaleByLearningRate(rate),
            Identity() if self.linesearch is None else self.linesearch,
        )


class LBFGSB(AbstractOptimizer[_LBFGSState]):
    r"""Minimizes a deterministic objective between bounds by the limited-memory BFGS method and a
    line search along the projected direction.

    It is a chain of [`eqopt.quasi_newton.ScaleByLBFGSB`][], [`eqopt.ScaleByLearningRate`][] with a
    rate of 1, and the line search. With the bounds $l$ and $u$, and their projection $P$, a step is

    $$\theta \leftarrow P(\theta + \alpha d), \qquad d = \bar\theta - \theta,$$

    where $\bar\theta$ nearly minimizes a quadratic model of the objective between the bounds, and
    the line search finds $\alpha$.

    ```python
    def fn(x):
        return (x[0] - 2) ** 2 + (x[1] + x[0] - 1) ** 2


    solution = eqopt.minimize(fn, eqopt.LBFGSB(), jnp.zeros(2), bounds=(0, 1))
    assert jnp.allclose(solution.params, jnp.array([1.0, 0.0]))
    ```

    **Arguments:**

    - `memory_size`: the number of steps remembered; at least 1.
    - `linesearch`: the line search, which must keep gradients.

    Bounds are an argument of [`eqopt.minimize`][]. Without them, and in `step`, it is like
    [`eqopt.LBFGS`][], which then costs less. Its `update` needs `params`, `value`, `grad` and
    `value_fn`.

    ??? cite "Reference"

        Byrd, Lu, Nocedal and Zhu, *A limited memory algorithm for bound constrained optimization*,
        SIAM Journal on Scientific Computing 16, 1995; Morales and Nocedal, *Remark on Algorithm
        778: L-BFGS-B*, ACM Transactions on Mathematical Software 38, 2011; Ferry, Gill, Wong and
        Zhang, *A class of projected-search methods for bound-constrained optimization*, 2021, for
        the search.
    """

    memory_size: int = eqx.field(converter=size("memory_size"), static=True, default=10)
    linesearch: AbstractLinesearch[Any] = eqx.field(default_factory=ScaleByWolfeLinesearch)

    def compose(self) -> AbstractTransformation[_LBFGSState]:
        return Chain(ScaleByLBFGSB(self.memory_size), ScaleByLearningRate(1.0), self.linesearch)


_BFGSState = ChainState[
    tuple[ScaleByBFGSState, ScaleByLearningRateState, LinesearchState[LinesearchInfo] | EmptyState]
]


class BFGS(AbstractOptimizer[_BFGSState]):
    r"""Minimizes a deterministic objective of few parameters by the BFGS method and a line search.

    It is a chain of [`eqopt.quasi_newton.ScaleByBFGS`][], [`eqopt.ScaleByLearningRate`][] and the
    line search.

    **Arguments:**

    - `learning_rate`: a factor of the updates before the line search, a number or a schedule;
        `None` is 1.
    - `scale_init_precond`: whether the first step is shortened.
    - `linesearch`: the line search, or `None` to take the updates as they are.
    - `update_rule`: which matrix of Broyden's family: [`eqopt.quasi_newton.BFGSUpdate`][],
        [`eqopt.quasi_newton.SelfScaledBFGS`][], [`eqopt.quasi_newton.SelfScaledBroyden`][] or
        another [`eqopt.quasi_newton.AbstractBroydenUpdate`][].

    For physics-informed networks, take `eqopt.BFGS(update_rule=SelfScaledBroyden())`.

    It is used through `step`, or by [`eqopt.minimize`][]. Its `update` needs `params`, `value`,
    `grad` and `value_fn`.
    """

    learning_rate: Scalar | AbstractSchedule | None = eqx.field(converter=maybe_rate, default=None)
    scale_init_precond: bool = eqx.field(
        converter=flag("scale_init_precond"), static=True, default=True
    )
    linesearch: AbstractLinesearch[Any] | None = eqx.field(default_factory=ScaleByWolfeLinesearch)
    update_rule: AbstractBroydenUpdate = eqx.field(default_factory=BFGSUpdate)

    def compose(self) -> AbstractTransformation[_BFGSState]:
        return Chain(
            ScaleByBFGS(self.scale_init_precond, update_rule=self.update_rule),
            ScaleByLearningRate(1.0 if self.learning_rate is None else self.learning_rate),
            Identity() if self.linesearch is None else self.linesearch,
        )
