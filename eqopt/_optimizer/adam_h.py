"""AdamH: Adam on the sphere."""

from typing import Any

import equinox as eqx
import numpy as np

from .._base import blocks
from .._base.converters import decay_factor, flag, non_negative, optional, positive, to_dtype
from .._base.fields import from_fields
from .._base.types import Scalar
from .._schedule.base import AbstractSchedule, as_rate, scheduled_real
from .._transform.adam import ScaleByAdam
from .._transform.control.hyperball import Hyperball
from .._transform.decay import AddDecayedWeights
from .._transform.learning_rate import ScaleByLearningRate
from .._transformation.base import AbstractOptimizer, AbstractTransformation
from .._wrapper.chain import Chain, ChainState
from .._wrapper.partition import Partition
from ..selectors._selector import AbstractSelector, as_selector, ByNdim

_State = ChainState[tuple[Any, ...]]


class AdamH(AbstractOptimizer[_State]):
    r"""Steps in Adam's direction; matrices keep their norm.

    For each matrix $W$ of norm $R$ at the start, with Adam's direction $u$,

    $$W \leftarrow R\, \frac{W'}{\|W'\|}, \qquad
    W' = \frac{W}{\|W\|} - \gamma_t\, \frac{u}{\|u\|}.$$

    Other parameters step as with [`eqopt.AdamW`][]. It is a chain of [`eqopt.ScaleByAdam`][] and an
    [`eqopt.Partition`][] of [`eqopt.control.Hyperball`][] and of [`eqopt.AddDecayedWeights`][] with
    [`eqopt.ScaleByLearningRate`][], labeled `True` and `False`. It keeps 8 bytes for each
    parameter in float32.

    ```python
    import equinox as eqx
    import eqopt

    matrices = eqopt.ByNdim(2) & ~eqopt.selectors.ByType(eqx.nn.Embedding)
    opt = eqopt.control.AdamH(0.01, matrices=matrices, adam_learning_rate=1e-3)
    ```

    A matrix that is 0 in `init` has no sphere: it takes the plain step $-\gamma_t u$.

    **Arguments:**

    - `learning_rate`: the rate of matrices, a number or a schedule, not negative: the relative
        change of a matrix in one step.
    - `b1`: the decay of the average gradient, in $[0, 1)$.
    - `b2`: the decay of the average squared gradient, in $[0, 1)$.
    - `eps`: added to the root of the average square, not negative.
    - `eps_root`: added under that root, not negative.
    - `mu_dtype`: the dtype of the average gradient; `None` is the parameter's, and float32 for half
        precision.
    - `nesterov`: whether to look ahead, as Nesterov's momentum does.
    - `radius`: the radius of every block, positive; `None` is the norm of each block.
    - `fixed`: whether that norm is the norm in `init`, which is kept in the state; otherwise it is
        read before each step. Not used if `radius` is given.
    - `block_ndim`: the number of trailing axes that one norm is over, at least 1: 2 is each matrix
        of a stack, 1 is each row, `None` the whole leaf. A leaf with fewer axes is one block.
    - `matrices`: the parameters that keep their norm: a selector, a function from the parameters to
        booleans, or a tree of booleans, possibly a prefix; by default all with two axes or more.
    - `adam_learning_rate`: the rate of the other parameters, a number or a schedule, not negative;
        `None` is `learning_rate`.
    - `adam_weight_decay`: the decay of the other parameters, not negative.

    ??? cite "Reference"
        Wen et al., *Fantastic Pretraining Optimizers and Where to Find Them 2.1: Hyperball
        Optimization*, 2026 (arXiv 2606.16899).
    """

    learning_rate: Scalar | AbstractSchedule = eqx.field(converter=as_rate)
    b1: Scalar = eqx.field(converter=decay_factor("b1"), default=0.9)
    b2: Scalar = eqx.field(converter=decay_factor("b2"), default=0.999)
    eps: Scalar = eqx.field(converter=non_negative("eps"), default=1e-8)
    eps_root: Scalar = eqx.field(converter=non_negative("eps_root"), default=0.0)
    mu_dtype: np.dtype | None = eqx.field(converter=to_dtype("mu_dtype"), static=True, default=None)
    nesterov: bool = eqx.field(converter=flag("nesterov"), static=True, default=False)
    radius: Scalar | None = eqx.field(converter=optional(positive("radius")), default=None)
    fixed: bool = eqx.field(converter=flag("fixed"), static=True, default=True)
    block_ndim: int | None = eqx.field(
        converter=blocks.block_size("block_ndim"), static=True, default=2
    )
    matrices: AbstractSelector = eqx.field(converter=as_selector, default=ByNdim(2))
    adam_learning_rate: Scalar | AbstractSchedule | None = eqx.field(
        converter=optional(scheduled_real("adam_learning_rate", at_least=0)), default=None
    )
    adam_weight_decay: Scalar = eqx.field(converter=non_negative("adam_weight_decay"), default=0.0)

    def compose(self) -> AbstractTransformation[_State]:
        rate = self.learning_rate if self.adam_learning_rate is None else self.adam_learning_rate
        plain = Chain(AddDecayedWeights(self.adam_weight_decay), ScaleByLearningRate(rate))
        return Chain(
            from_fields(ScaleByAdam, self),
            Partition({True: from_fields(Hyperball, self), False: plain}, self.matrices),
        )
