"""Muon with a limit on the logits of attention."""

import equinox as eqx

from .._base.converters import non_negative, optional
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, as_rate
from .._transform.control.qk_clip import QKClip
from .._transform.matrix.dimensions import AbstractDimensions, as_dimensions
from .._transform.matrix.muon import ScaleByMuon, ScaleByShape
from .._transformation.base import AbstractOptimizer, AbstractTransformation, EmptyState
from .._wrapper.chain import Chain, ChainState
from .._wrapper.partition import PartitionState
from .muon_kin import as_momentum, as_rest, as_scale, beside, kind, with_dimensions

_State = ChainState[tuple[PartitionState, EmptyState]]


class MuonClip(AbstractOptimizer[_State]):
    r"""Steps by orthogonal matrices, and shrinks queries and keys whose logits are too large.

    It is the chain of [`eqopt.ScaleByMuon`][], [`eqopt.matrix.ScaleByShape`][],
    [`eqopt.AddDecayedWeights`][] and [`eqopt.ScaleByLearningRate`][] for matrices, in a
    [`eqopt.Partition`][] with another optimizer for all other parameters, followed by
    [`eqopt.control.QKClip`][].

    ```python
    from eqopt import ByPath
    from eqopt.control import QKClip
    from eqopt.matrix import MuonClip

    clip = QKClip(ByPath("**.query.weight"), ByPath("**.key.weight"), num_heads=8)
    opt = MuonClip(2e-4, clip)
    ```

    It needs the largest logits of each step: see [`eqopt.control.QKClip`][].

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative.
    - `clip`: the [`eqopt.control.QKClip`][], which says where queries and keys are.
    - `weight_decay`: the decay of matrices, and of the default `rest`, in proportion to the
        learning rate, not negative.
    - `muon`: the [`eqopt.ScaleByMuon`][] of the matrices: momentum, coefficients, steps.
    - `scale`: the [`eqopt.matrix.ScaleByShape`][] of the matrices.
    - `rest`: the optimizer of the parameters that are not matrices; `None` is
        `AdamW(learning_rate, b1=0.9, b2=0.95, weight_decay=weight_decay)`.
    - `weight_dimension_numbers`: which parameters are matrices, and how, as for [`eqopt.Muon`][];
        `None` goes by the layers of `eqx.nn`. It stands for that of `muon` and `scale`.

    Raises a `TypeError` if `clip`, `muon`, `scale` or `rest` is of another kind.

    ??? cite "Reference"
        Kimi Team, *Kimi K2: Open Agentic Intelligence*, 2025, algorithm 1 (arXiv 2507.20534).
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    clip: QKClip = eqx.field(converter=kind("clip", QKClip))
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=0.1)
    muon: ScaleByMuon = eqx.field(
        default_factory=lambda: ScaleByMuon(momentum="heavy_ball", nesterov=False),
        converter=as_momentum,
    )
    scale: ScaleByShape = eqx.field(
        default_factory=lambda: ScaleByShape(consistent_rms=0.2), converter=as_scale
    )
    rest: AbstractTransformation | None = eqx.field(converter=as_rest, default=None)
    weight_dimension_numbers: AbstractDimensions | None = eqx.field(
        converter=optional(as_dimensions), default=None
    )

    def compose(self) -> AbstractTransformation[_State]:
        dimensions = self.weight_dimension_numbers
        step = beside(
            with_dimensions(self.muon, dimensions),
            with_dimensions(self.scale, dimensions),
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            rest=self.rest,
            dimensions=dimensions,
        )
        return Chain(step, self.clip)
