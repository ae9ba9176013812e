"""Optimizers that step by orthogonal matrices, beside Muon itself.

Each is a chain for the matrices (momentum made orthogonal, a second moment, a scale by shape, decay
and rate) and another optimizer for all other parameters.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx

from .._base import checks
from .._base.converters import decay_factor, non_negative, optional
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, as_rate
from .._transform.decay import AddDecayedWeights
from .._transform.learning_rate import ScaleByLearningRate
from .._transform.matrix.dimensions import (
    AbstractDimensions,
    as_dimensions,
    HasDimensions,
    LayerDimensions,
)
from .._transform.matrix.muon import ScaleByMuon, ScaleByShape
from .._transform.matrix.second_moment import ScaleByNAMO, ScaleByNeuronRMS
from .._transform.rms import ScaleByRMS
from .._transformation.base import (
    AbstractOptimizer,
    AbstractTransformation,
    AnyTransformation,
    check_transformation,
)
from .._wrapper.chain import Chain
from .._wrapper.partition import Partition, PartitionState
from .adam import AdamW

_Part = TypeVar("_Part")
_Link = TypeVar("_Link", ScaleByMuon, ScaleByShape)


def kind(name: str, cls: type[_Part]) -> Callable[[object], _Part]:
    """Makes the converter of a part that must be of a class."""

    def convert(value: object) -> _Part:
        if not isinstance(value, cls):
            raise TypeError(f"`{name}` must be a `{cls.__name__}`; got {checks.describe(value)}")
        return value

    return convert


as_momentum = kind("muon", ScaleByMuon)
as_scale = kind("scale", ScaleByShape)


def as_rest(value: Any) -> AnyTransformation | None:
    """Takes a transformation, or `None`."""
    if value is not None:
        check_transformation("rest", value)
    return value


def with_dimensions(link: _Link, dimensions: AbstractDimensions | None) -> _Link:
    """The link with the optimizer's own choice of matrices, if it has one."""
    if dimensions is None:
        return link
    return dataclasses.replace(link, weight_dimension_numbers=dimensions)


def beside(
    *links: AnyTransformation,
    learning_rate: Any,
    weight_decay: Any,
    rest: AnyTransformation | None,
    dimensions: AbstractDimensions | None,
) -> Partition:
    """The links with decay and rate for matrices, beside another optimizer for all else."""
    rate = ScaleByLearningRate(learning_rate)
    matrices = Chain(*links, AddDecayedWeights(weight_decay), rate)
    if rest is None:
        rest = AdamW(learning_rate, b1=0.9, b2=0.95, weight_decay=weight_decay)
    chosen = HasDimensions(LayerDimensions() if dimensions is None else dimensions)
    return Partition({"muon": matrices, "rest": rest}, {chosen: "muon", ...: "rest"})


class NorMuon(AbstractOptimizer[PartitionState]):
    r"""Steps by orthogonal matrices whose rows are divided by the size that they have had.

    It is a chain of [`eqopt.ScaleByMuon`][], [`eqopt.matrix.ScaleByNeuronRMS`][],
    [`eqopt.matrix.ScaleByShape`][], [`eqopt.AddDecayedWeights`][] and
    [`eqopt.ScaleByLearningRate`][] for matrices, in a [`eqopt.Partition`][] with another optimizer
    for all other parameters.

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative.
    - `b2`: the decay of the average of squares, in $[0, 1)$.
    - `eps`: the least that average is taken for, not negative.
    - `weight_decay`: the decay of matrices, and of the default `rest`, in proportion to the
        learning rate, not negative.
    - `muon`: the [`eqopt.ScaleByMuon`][] of the matrices: momentum, coefficients, steps.
    - `scale`: the [`eqopt.matrix.ScaleByShape`][] of the matrices.
    - `rest`: the optimizer of the parameters that are not matrices; `None` is
        `AdamW(learning_rate, b1=0.9, b2=0.95, weight_decay=weight_decay)`.
    - `weight_dimension_numbers`: which parameters are matrices, and how, as for [`eqopt.Muon`][];
        `None` goes by the layers of `eqx.nn`. It stands for that of `muon` and `scale`.

    Raises a `TypeError` if `muon`, `scale` or `rest` is of another kind.

    ??? cite "Reference"
        Li et al., *NorMuon: Making Muon more efficient and scalable*, 2025 (arXiv 2510.05491).
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.95)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=0.0)
    muon: ScaleByMuon = eqx.field(
        default_factory=lambda: ScaleByMuon(momentum="ema", nesterov=False), converter=as_momentum
    )
    scale: ScaleByShape = eqx.field(
        default_factory=lambda: ScaleByShape(consistent_rms=0.2), converter=as_scale
    )
    rest: AbstractTransformation | None = eqx.field(converter=as_rest, default=None)
    weight_dimension_numbers: AbstractDimensions | None = eqx.field(
        converter=optional(as_dimensions), default=None
    )

    def compose(self) -> AbstractTransformation[PartitionState]:
        dimensions = self.weight_dimension_numbers
        muon = with_dimensions(self.muon, dimensions)
        return beside(
            muon,
            ScaleByNeuronRMS(self.b2, self.eps, weight_dimension_numbers=dimensions),
            with_dimensions(self.scale, dimensions),
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            rest=self.rest,
            dimensions=dimensions,
        )


class AdaMuon(AbstractOptimizer[PartitionState]):
    r"""Steps by orthogonal matrices whose entries are divided by the size that they have had.

    It is a chain of [`eqopt.ScaleByMuon`][], [`eqopt.ScaleByRMS`][],
    [`eqopt.matrix.ScaleByShape`][], [`eqopt.AddDecayedWeights`][] and
    [`eqopt.ScaleByLearningRate`][] for matrices, in a [`eqopt.Partition`][] with another optimizer
    for all other parameters.

    !!! note
        This is the rule of emerging-optimizers. The paper also takes the sign of the momentum
        first, and rescales the step to a root mean square of 0.2.

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative.
    - `b2`: the decay of the average of squares, in $[0, 1)$.
    - `eps`: added to the denominator, not negative.
    - `weight_decay`: the decay of matrices, and of the default `rest`, in proportion to the
        learning rate, not negative.
    - `muon`: the [`eqopt.ScaleByMuon`][] of the matrices: momentum, coefficients, steps.
    - `scale`: the [`eqopt.matrix.ScaleByShape`][] of the matrices.
    - `rest`: the optimizer of the parameters that are not matrices; `None` is
        `AdamW(learning_rate, b1=0.9, b2=0.95, weight_decay=weight_decay)`.
    - `weight_dimension_numbers`: which parameters are matrices, and how, as for [`eqopt.Muon`][];
        `None` goes by the layers of `eqx.nn`. It stands for that of `muon` and `scale`.

    Raises a `TypeError` if `muon`, `scale` or `rest` is of another kind.

    ??? cite "Reference"
        Si, Zhang and Shen, *AdaMuon: Adaptive Muon Optimizer*, 2025 (arXiv 2507.11005).
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.95)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=0.0)
    muon: ScaleByMuon = eqx.field(
        default_factory=lambda: ScaleByMuon(momentum="ema", nesterov=False), converter=as_momentum
    )
    scale: ScaleByShape = eqx.field(
        default_factory=lambda: ScaleByShape(consistent_rms=0.2), converter=as_scale
    )
    rest: AbstractTransformation | None = eqx.field(converter=as_rest, default=None)
    weight_dimension_numbers: AbstractDimensions | None = eqx.field(
        converter=optional(as_dimensions), default=None
    )

    def compose(self) -> AbstractTransformation[PartitionState]:
        dimensions = self.weight_dimension_numbers
        muon = with_dimensions(self.muon, dimensions)
        return beside(
            muon,
            ScaleByRMS(self.b2, self.eps, eps_in_sqrt=False),
            with_dimensions(self.scale, dimensions),
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            rest=self.rest,
            dimensions=dimensions,
        )


class NAMO(AbstractOptimizer[PartitionState]):
    r"""Steps by orthogonal matrices, shorter where gradients disagree.

    It is a chain of [`eqopt.matrix.ScaleByNAMO`][], [`eqopt.matrix.ScaleByShape`][],
    [`eqopt.AddDecayedWeights`][] and [`eqopt.ScaleByLearningRate`][] for matrices, in a
    [`eqopt.Partition`][] with another optimizer for all other parameters.

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative.
    - `b2`: the decay of the average of squared norms, in $[0, 1)$.
    - `eps`: added to the root of that average, not negative.
    - `weight_decay`: the decay of matrices, and of the default `rest`, in proportion to the
        learning rate, not negative.
    - `muon`: the [`eqopt.ScaleByMuon`][] of the matrices: momentum, coefficients, steps.
    - `scale`: the [`eqopt.matrix.ScaleByShape`][] of the matrices.
    - `rest`: the optimizer of the parameters that are not matrices; `None` is
        `AdamW(learning_rate, b1=0.9, b2=0.95, weight_decay=weight_decay)`.
    - `weight_dimension_numbers`: which parameters are matrices, and how, as for [`eqopt.Muon`][];
        `None` goes by the layers of `eqx.nn`. It stands for that of `muon` and `scale`.

    Raises a `TypeError` if `muon`, `scale` or `rest` is of another kind.

    ??? cite "Reference"
        Zhang et al., *Adam Improves Muon: Adaptive Moment Estimation with Orthogonalized Momentum*,
        2026 (arXiv 2602.17080).
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.95)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=0.0)
    muon: ScaleByMuon = eqx.field(
        default_factory=lambda: ScaleByMuon(momentum="ema", nesterov=False), converter=as_momentum
    )
    scale: ScaleByShape = eqx.field(
        default_factory=lambda: ScaleByShape(consistent_rms=0.2), converter=as_scale
    )
    rest: AbstractTransformation | None = eqx.field(converter=as_rest, default=None)
    weight_dimension_numbers: AbstractDimensions | None = eqx.field(
        converter=optional(as_dimensions), default=None
    )

    def compose(self) -> AbstractTransformation[PartitionState]:
        dimensions = self.weight_dimension_numbers
        muon = with_dimensions(self.muon, dimensions)
        return beside(
            ScaleByNAMO(muon, self.b2, self.eps),
            with_dimensions(self.scale, dimensions),
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            rest=self.rest,
            dimensions=dimensions,
        )


class PolarGrad(AbstractOptimizer[PartitionState]):
    r"""Steps by orthogonal matrices, each times the nuclear norm of its momentum.

    It is a chain of [`eqopt.ScaleByMuon`][] with `adaptive`, [`eqopt.AddDecayedWeights`][] and
    [`eqopt.ScaleByLearningRate`][] for matrices, in a [`eqopt.Partition`][] with another optimizer
    for all other parameters. So steps become short where gradients do. With `method="svd"` of
    `muon` the nuclear norm is exact.

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative.
    - `weight_decay`: the decay of matrices, and of the default `rest`, in proportion to the
        learning rate, not negative.
    - `muon`: the [`eqopt.ScaleByMuon`][] of the matrices: momentum, coefficients, steps.
    - `rest`: the optimizer of the parameters that are not matrices; `None` is
        `AdamW(learning_rate, b1=0.9, b2=0.95, weight_decay=weight_decay)`.
    - `weight_dimension_numbers`: which parameters are matrices, and how, as for [`eqopt.Muon`][];
        `None` goes by the layers of `eqx.nn`. It stands for that of `muon` and `scale`.

    Raises a `TypeError` if `muon` or `rest` is of another kind.

    ??? cite "Reference"
        Lau, Long and Su, *PolarGrad: A Class of Matrix-Gradient Optimizers from a Unifying
        Preconditioning Perspective*, 2025 (arXiv 2505.21799).
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=0.0)
    muon: ScaleByMuon = eqx.field(
        default_factory=lambda: ScaleByMuon(momentum="ema", nesterov=False, adaptive=True),
        converter=as_momentum,
    )
    rest: AbstractTransformation | None = eqx.field(converter=as_rest, default=None)
    weight_dimension_numbers: AbstractDimensions | None = eqx.field(
        converter=optional(as_dimensions), default=None
    )

    def compose(self) -> AbstractTransformation[PartitionState]:
        dimensions = self.weight_dimension_numbers
        muon = with_dimensions(self.muon, dimensions)
        return beside(
            muon,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            rest=self.rest,
            dimensions=dimensions,
        )
