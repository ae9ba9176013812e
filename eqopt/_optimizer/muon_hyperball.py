"""Muon on the sphere."""

import equinox as eqx

from .._base.converters import flag, optional, positive
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, as_rate, scheduled_real
from .._transform.control.hyperball import Hyperball
from .._transform.matrix.dimensions import (
    AbstractDimensions,
    as_dimensions,
    HasDimensions,
    LayerDimensions,
)
from .._transform.matrix.muon import ScaleByMuon
from .._transformation.base import AbstractOptimizer, AbstractTransformation
from .._wrapper.chain import Chain
from .._wrapper.partition import Partition, PartitionState
from .adam import AdamW
from .muon_kin import as_momentum, as_rest, with_dimensions


class MuonHyperball(AbstractOptimizer[PartitionState]):
    r"""Steps in Muon's direction; matrices keep their norm.

    It is a chain of [`eqopt.ScaleByMuon`][] and [`eqopt.control.Hyperball`][] for matrices, in a
    [`eqopt.Partition`][] with another optimizer for all other parameters. The rate is the relative
    change of a matrix in one step, so neither a scale by shape nor weight decay is needed.

    **Arguments:**

    - `learning_rate`: the rate of matrices, a number or a schedule, not negative.
    - `adam_learning_rate`: the rate of the default `rest`, a number or a schedule, not negative;
        `None` is `learning_rate`.
    - `radius`: the norm of every matrix, above 0; `None` is the norm of each.
    - `fixed`: whether that is the norm in `init`, which is kept in the state; otherwise it is read
        before each step. Static.
    - `muon`: the [`eqopt.ScaleByMuon`][] of the matrices.
    - `rest`: the optimizer of the parameters that are not matrices; `None` is
        `AdamW(adam_learning_rate, b1=0.9, b2=0.95)`.
    - `weight_dimension_numbers`: which parameters are matrices, and how, as for [`eqopt.Muon`][];
        `None` goes by the layers of `eqx.nn`.

    Raises a `TypeError` if `muon` or `rest` is of another kind.

    ??? cite "Reference"
        Wen et al., *Fantastic Pretraining Optimizers and Where to Find Them 2.1: Hyperball
        Optimization*, 2026 (arXiv 2606.16899).
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    adam_learning_rate: Scalar | AbstractSchedule | None = eqx.field(
        converter=optional(scheduled_real("adam_learning_rate", at_least=0)), default=None
    )
    radius: Scalar | None = eqx.field(converter=optional(positive("radius")), default=None)
    fixed: bool = eqx.field(converter=flag("fixed"), static=True, default=True)
    muon: ScaleByMuon = eqx.field(
        default_factory=lambda: ScaleByMuon(momentum="ema"), converter=as_momentum
    )
    rest: AbstractTransformation | None = eqx.field(converter=as_rest, default=None)
    weight_dimension_numbers: AbstractDimensions | None = eqx.field(
        converter=optional(as_dimensions), default=None
    )

    def compose(self) -> AbstractTransformation[PartitionState]:
        dimensions, rest = self.weight_dimension_numbers, self.rest
        if rest is None:
            own = self.adam_learning_rate
            rest = AdamW(self.learning_rate if own is None else own, b1=0.9, b2=0.95)
        matrices = Chain(
            with_dimensions(self.muon, dimensions),
            Hyperball(self.learning_rate, self.radius, self.fixed),
        )
        chosen = HasDimensions(LayerDimensions() if dimensions is None else dimensions)
        return Partition({"muon": matrices, "rest": rest}, {chosen: "muon", ...: "rest"})
