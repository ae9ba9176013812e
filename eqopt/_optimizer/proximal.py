"""Proximal gradient methods, for objectives with a penalty that has kinks."""

import equinox as eqx

from .._base.converters import real, steps
from .._base.types import Scalar, Steps
from .._transformation.base import AbstractOptimizer, AbstractTransformation
from ..linesearch._proximal import (
    check_penalty,
    ScaleByProximalLinesearch,
    ScaleByProximalLinesearchState,
)
from ..projections._base import AbstractPenalty


class ProximalGradient(AbstractOptimizer[ScaleByProximalLinesearchState]):
    r"""Minimizes the sum of a smooth deterministic objective $f$ and a penalty $h$ that may have
    kinks:

    $$x \leftarrow \operatorname{prox}_{t h}(x - t \nabla f(x)),$$

    with a step $t$ found by backtracking. [`eqopt.FISTA`][] needs fewer evaluations.

    **Arguments:**

    - `penalty`: the penalty $h$, or a set: [`eqopt.projections.L1`][],
        [`eqopt.projections.NonNegative`][] or another [`eqopt.projections.AbstractPenalty`][].
    - `max_backtracking_steps`: how many times the step may be decreased; at least 0.
    - `decrease_factor`: the largest factor of the step while it is too long; in $(0, 1)$.
    - `increase_factor`: the ratio of the first step tried to the last step; at least 1.
    """

    penalty: AbstractPenalty
    max_backtracking_steps: Steps = eqx.field(converter=steps("max_backtracking_steps"), default=50)
    decrease_factor: Scalar = eqx.field(
        converter=real("decrease_factor", above=0, below=1), default=0.5
    )
    increase_factor: Scalar = eqx.field(converter=real("increase_factor", at_least=1), default=1.1)

    def compose(self) -> AbstractTransformation[ScaleByProximalLinesearchState]:
        return ScaleByProximalLinesearch(
            self.penalty,
            False,
            self.max_backtracking_steps,
            self.decrease_factor,
            self.increase_factor,
        )


class FISTA(AbstractOptimizer[ScaleByProximalLinesearchState]):
    penalty: AbstractPenalty
    max_backtracking_steps: Steps = eqx.field(converter=steps("max_backtracking_steps"), default=50)
    decrease_factor: Scalar = eqx.field(
        converter=real("decrease_factor", above=0, below=1), default=0.5
    )
    increase_factor: Scalar = eqx.field(converter=real("increase_factor", at_least=1), default=1.1)

    def compose(self) -> AbstractTransformation[ScaleByProximalLinesearchState]:
        return ScaleByProximalLinesearch(
            self.penalty,
            True,
            self.max_backtracking_steps,
            self.decrease_factor,
            self.increase_factor,
        )
