"""Scion."""

import dataclasses
from typing import Any

import equinox as eqx

from .._base.converters import decay_factor, flag, optional, positive
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, as_rate
from .._transform.average import EMA
from .._transform.basic import Scale
from .._transform.decay import AddDecayedWeights
from .._transform.learning_rate import ScaleByLearningRate
from .._transform.matrix.dimensions import (
    AbstractDimensions,
    as_dimensions,
    HasDimensions,
    LayerDimensions,
)
from .._transform.matrix.dual import ScaleByDualNorm
from .._transform.matrix.muon import Orthogonalize, ScaleByShape
from .._transformation.base import (
    AbstractOptimizer,
    AbstractTransformation,
    AnyTransformation,
    check_transformation,
)
from .._wrapper.chain import Chain, ChainState
from .._wrapper.partition import Partition
from ..selectors._table import as_table, Table


def _step(value: Any) -> AnyTransformation:
    check_transformation("steps", value)
    return value


def _steps(value: object) -> Table[AnyTransformation]:
    return as_table("steps", "transformations", _step, value)


class Scion(AbstractOptimizer[ChainState[Any]]):
    r"""Steps to the point of a ball around zero, or around the parameters, that goes most along the
    average gradient; each kind of parameter has its own norm.

    With the step $s$ of the norm, of length $\rho$,

    $$m \leftarrow \beta m + (1 - \beta) g, \qquad w \leftarrow (1 - \eta) w - \eta\, \rho\, s(m),$$

    or without $(1 - \eta)$ if it is unconstrained. The parameters then stay within the ball of
    radius $\rho$: it is the weight decay.

    It is a chain of [`eqopt.EMA`][], an [`eqopt.Partition`][] of the steps,
    [`eqopt.AddDecayedWeights`][] and [`eqopt.ScaleByLearningRate`][].

    ```python
    import eqopt
    from eqopt import matrix

    head = eqopt.Chain(matrix.ScaleByDualNorm("sign"), eqopt.Scale(3000.0))
    opt = matrix.Scion(2**-12, steps={eqopt.ByPath("head.weight"): head})
    ```

    **Arguments:**

    - `learning_rate`: the rate $\eta$, a number or a schedule, not negative.
    - `beta`: the decay $\beta$ of the average, in $[0, 1)$. The paper's $\alpha$ is $1 - \beta$.
    - `radius`: the radius $\rho$ of the balls of `spectral` and of `"rms"`, above 0.
    - `steps`: transformations by selector, for parameters with other norms or radii; the first that
        chooses a parameter decides. Where none does, matrices step by the spectral norm, and
        vectors by the root mean square.
    - `constrained`: whether the parameters stay within the balls. Static.
    - `orthogonalize`: the [`eqopt.matrix.Orthogonalize`][] of the spectral norm.
    - `weight_dimension_numbers`: which parameters are matrices, and how, as for [`eqopt.Muon`][];
        `None` goes by the layers of `eqx.nn`.

    Raises a `TypeError` for other `steps`.

    ??? cite "Reference"
        Pethick et al., *Training Deep Learning Models with Norm-Constrained LMOs*, 2025, algorithms
        1 and 2 (arXiv 2502.07529).
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    beta: Scalar = eqx.field(converter=decay_factor("beta"))
    radius: Scalar = eqx.field(converter=positive("radius"))
    steps: Table[AnyTransformation]
    constrained: bool = eqx.field(converter=flag("constrained"), static=True)
    orthogonalize: Orthogonalize
    weight_dimension_numbers: AbstractDimensions | None = eqx.field(
        converter=optional(as_dimensions)
    )

    # Not a generated one: Equinox flattens its arguments, and JAX sorts the keys of a dictionary.
    def __init__(
        self,
        learning_rate: Any,
        beta: Any = 0.9,
        radius: Any = 50.0,
        steps: Any = None,
        constrained: bool = True,
        orthogonalize: Orthogonalize | None = None,
        weight_dimension_numbers: Any = None,
    ) -> None:
        self.learning_rate = learning_rate
        self.beta = beta
        self.radius = radius
        self.steps = _steps({} if steps is None else steps)
        self.constrained = constrained
        self.orthogonalize = Orthogonalize() if orthogonalize is None else orthogonalize
        self.weight_dimension_numbers = weight_dimension_numbers

    def compose(self) -> AbstractTransformation[ChainState[Any]]:
        dimensions = self.weight_dimension_numbers
        chosen = HasDimensions(LayerDimensions() if dimensions is None else dimensions)
        orthogonalize = self.orthogonalize
        if dimensions is not None:
            orthogonalize = dataclasses.replace(orthogonalize, weight_dimension_numbers=dimensions)
        spectral = Chain(
            orthogonalize, ScaleByShape(dimensions, mode="unit_rms"), Scale(self.radius)
        )
        steps = dict(zip(self.steps.selectors, self.steps.values, strict=True))
        other = Chain(ScaleByDualNorm("rms"), Scale(self.radius))
        return Chain(
            EMA(self.beta, debias=False),
            Partition({**steps, chosen: spectral, ...: other}),
            *([AddDecayedWeights(1.0)] if self.constrained else []),
            ScaleByLearningRate(self.learning_rate),
        )
