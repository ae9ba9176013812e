"""Muon."""

import equinox as eqx
import numpy as np

from .._base.converters import decay_factor, flag, non_negative, optional, size, to_dtype
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, as_rate, scheduled_real
from .._transform.adam import ScaleByAdam
from .._transform.decay import AddDecayedWeights
from .._transform.learning_rate import ScaleByLearningRate
from .._transform.matrix.coefficients import Coefficients, coefficients, STANDARD
from .._transform.matrix.dimensions import (
    AbstractDimensions,
    as_dimensions,
    HasDimensions,
    LayerDimensions,
)
from .._transform.matrix.muon import ScaleByMuon, ScaleByShape
from .._transform.matrix.newton_schulz import muon_frobenius, Preconditioning, preconditioning
from .._transformation.base import AbstractOptimizer, AbstractTransformation
from .._wrapper.chain import Chain
from .._wrapper.partition import Partition, PartitionState
from ..selectors._selector import AbstractSelector, as_selector


class Muon(AbstractOptimizer[PartitionState]):
    """Steps by orthogonal matrices; parameters that are not matrices step as Adam does.

    Matrices go through a chain of [`eqopt.ScaleByMuon`][], [`eqopt.matrix.ScaleByShape`][],
    [`eqopt.AddDecayedWeights`][] and [`eqopt.ScaleByLearningRate`][], and other parameters through
    the chain of [`eqopt.AdamW`][]. It is an [`eqopt.Partition`][] of the two, labeled `"muon"` and
    `"adam"`.

    !!! note
        The last layer of a language model or of a classifier is a matrix too, but is trained better
        by Adam: `muon_weight_dimension_numbers=~eqopt.ByPath("head.weight")`.
        [`eqopt.matrix.matrices_of`][] shows what goes where.

    **Arguments:**

    - `learning_rate`: the rate, a number or a schedule, not negative.
    - `ns_coeffs`: the coefficients of the iteration, three numbers, or three for each step, or
        `"dion"`.
    - `ns_steps`: the number of steps of the iteration, at least 1; not used if each step has its
        own numbers.
    - `beta`: the decay of the average gradient of matrices, in $[0, 1)$.
    - `eps`: added to the norm of a matrix, and to Adam's root, not negative.
    - `weight_decay`: the decay of matrices, in proportion to the learning rate, not negative.
    - `weight_decay_mask`: which of the matrices decay: a selector, a function from the parameters
        to booleans, or a tree of booleans; `None` is all of them.
    - `mu_dtype`: the dtype of the average gradient; `None` is the parameter's, and float32 for half
        precision.
    - `nesterov`: whether to look ahead, as Nesterov's momentum does; Adam too.
    - `adaptive`: whether to multiply by the dual norm of the average gradient.
    - `preconditioning`: the step before the iteration: [`eqopt.options.muon_frobenius`][],
        [`eqopt.options.muon_spectral`][], [`eqopt.options.muon_aol`][],
        [`eqopt.options.muon_schatten`][], or a function.
    - `adam_b1`: the decay of Adam's average gradient, in $[0, 1)$.
    - `adam_b2`: the decay of Adam's average squared gradient, in $[0, 1)$.
    - `adam_eps_root`: added under Adam's root, not negative.
    - `adam_weight_decay`: the decay of parameters that are not matrices, not negative.
    - `adam_learning_rate`: Adam's rate, a number or a schedule, not negative; `None` is
        `learning_rate`.
    - `muon_weight_dimension_numbers`: which parameters are matrices, and how: a selector, a tree of
        [`eqopt.options.MuonDimensionNumbers`][] and `None`, possibly a prefix, or a function from
        the parameters to one. `None` and a selector go by the layers of `eqx.nn`: the weights of
        linear layers, convolutions and recurrent cells are matrices, one for each index of the axes
        before them, and embeddings are none. Outside these layers a parameter with two axes is a
        matrix of shape `(in, out)`.
    - `consistent_rms`: the root mean square that the steps are to have before the learning rate,
        not negative; `None` scales them as [`eqopt.matrix.ScaleByShape`][] does by default.
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    ns_coeffs: Coefficients = eqx.field(converter=coefficients, default=STANDARD)
    ns_steps: int = eqx.field(converter=size("ns_steps"), static=True, default=5)
    beta: Scalar = eqx.field(converter=decay_factor("beta"), default=0.95)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)
    weight_decay: Scalar = eqx.field(converter=non_negative("weight_decay"), default=0.0)
    weight_decay_mask: AbstractSelector | None = eqx.field(
        converter=optional(as_selector), default=None
    )
    mu_dtype: np.dtype | None = eqx.field(converter=to_dtype("mu_dtype"), static=True, default=None)
    nesterov: bool = eqx.field(converter=flag("nesterov"), static=True, default=True)
    adaptive: bool = eqx.field(converter=flag("adaptive"), static=True, default=False)
    preconditioning: Preconditioning = eqx.field(
        converter=preconditioning, static=True, default=muon_frobenius
    )
    adam_b1: Scalar = eqx.field(converter=decay_factor("adam_b1"), default=0.9)
    adam_b2: Scalar = eqx.field(converter=decay_factor("adam_b2"), default=0.999)
    adam_eps_root: Scalar = eqx.field(converter=non_negative("adam_eps_root"), default=0.0)
    adam_weight_decay: Scalar = eqx.field(converter=non_negative("adam_weight_decay"), default=0.0)
    adam_learning_rate: Scalar | AbstractSchedule | None = eqx.field(
        converter=optional(scheduled_real("adam_learning_rate", at_least=0)), default=None
    )
    muon_weight_dimension_numbers: AbstractDimensions | None = eqx.field(
        converter=optional(as_dimensions), default=None
    )
    consistent_rms: Scalar | None = eqx.field(
        converter=optional(non_negative("consistent_rms")), default=None
    )

    def compose(self) -> AbstractTransformation[PartitionState]:
        dimensions, adam_rate = self.muon_weight_dimension_numbers, self.adam_learning_rate
        matrices = HasDimensions(LayerDimensions() if dimensions is None else dimensions)
        muon = Chain(
            ScaleByMuon(
                ns_coeffs=self.ns_coeffs,
                ns_steps=self.ns_steps,
                beta=self.beta,
                eps=self.eps,
                mu_dtype=self.mu_dtype,
                nesterov=self.nesterov,
                adaptive=self.adaptive,
                preconditioning=self.preconditioning,
                weight_dimension_numbers=dimensions,
            ),
            ScaleByShape(dimensions, self.consistent_rms),
            AddDecayedWeights(self.weight_decay, self.weight_decay_mask),
            ScaleByLearningRate(self.learning_rate),
        )
        adam = Chain(
            ScaleByAdam(
                b1=self.adam_b1,
                b2=self.adam_b2,
                eps=self.eps,
                eps_root=self.adam_eps_root,
                mu_dtype=self.mu_dtype,
                nesterov=self.nesterov,
            ),
            AddDecayedWeights(self.adam_weight_decay),
            ScaleByLearningRate(self.learning_rate if adam_rate is None else adam_rate),
        )
        return Partition({"muon": muon, "adam": adam}, {matrices: "muon", ...: "adam"})
