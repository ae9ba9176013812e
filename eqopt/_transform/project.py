"""Parameters that stay in a set."""

from .._base import checks
from .._base.trees import add_updates, mask_like
from .._base.types import Params, Updates
from .._objective.objective import Context, require_params
from .._transformation.base import EmptyState
from .._transformation.nesting import AbstractConstrained, Requirement
from ..projections._base import AbstractProjection, nearest
from ..projections._updates import updates_toward


class Project(AbstractConstrained[EmptyState]):
    r"""Changes the updates so that the parameters end in a set: at the set's point nearest to the
    unconstrained new parameters.

    With $P$ the projection,

    $$u \leftarrow P(\theta + u) - \theta.$$

    It must be last in a chain, after the learning rate. After gradient descent, this is projected
    gradient descent.

    The result of [`eqopt.apply_updates`][] is in the set: exactly, in every dtype, for
    [`eqopt.projections.NonNegative`][] and the other sets of bounds; up to the rounding of the
    parameters for all other sets.

    For a set of only some parameters, put it into [`eqopt.Masked`][]. Parameters without a gradient
    stay where they are, and the others are projected as if these were all parameters.

    !!! note
        Project the first parameters too: `model = projection(model)`. If a parameter starts far
        outside of narrow bounds, the first update may be too coarse a number to reach a point
        between them.

    !!! warning
        It must see the updates as they are applied. Around it, [`eqopt.precision.MasterWeights`][]
        keeps the masters in the set; the model's parameters are these, rounded.

    **Arguments:**

    - `projection`: an [`eqopt.projections.AbstractProjection`][].

    ??? cite "Reference"
        Bertsekas, *On the Goldstein-Levitin-Polyak gradient projection method*, IEEE Transactions
        on Automatic Control 21, 1976.
    """

    projection: AbstractProjection

    def __check_init__(self) -> None:
        if not isinstance(self.projection, AbstractProjection):
            raise TypeError(
                "`projection` must be an `eqopt.projections.AbstractProjection`; got "
                f"{checks.describe(self.projection)}"
            )

    def requirements(self) -> frozenset[Requirement]:
        return frozenset({Requirement.MOVES, Requirement.EXACT, Requirement.LANDS})

    def init_state(self, params: Params, context: Context) -> EmptyState:
        return EmptyState()

    def transform(
        self, updates: Updates, state: EmptyState, params: Params | None, context: Context
    ) -> tuple[Updates, EmptyState]:
        params = mask_like(updates, require_params(params, self, context))
        target = nearest(self.projection, add_updates(params, updates))
        return updates_toward(self.projection, params, target), state
