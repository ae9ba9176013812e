"""Factors by path: one for each parameter, from a table of selectors."""

from collections.abc import Mapping
from typing import Any

from ..._base.converters import non_negative
from ..._base.types import Params, Scalar, ScalarLike, Updates
from ..._objective.objective import Context
from ..._transformation import leafwise
from ..._transformation.base import AbstractTransformation, EmptyState
from ..._transformation.leafwise import Rule
from ...selectors._table import as_table, Table
from ..basic import scale


def as_factors(factors: object) -> Table[Scalar]:
    """Takes a dictionary of factors by selector; 1 is that of the parameters without one."""
    table = as_table("factors", "numbers", non_negative("factors"), factors, rest=True)
    if len(table.values) > len(table.selectors):
        return table
    return Table(table.selectors, (*table.values, non_negative("factors")(1.0)))


class Multiply(AbstractTransformation[EmptyState]):
    r"""Multiplies the update of each parameter by its factor: $u_i \leftarrow c_i\, u_i$.

    The factors are a table of selectors, of which the first that chooses a parameter decides:

    ```python
    import eqopt
    from eqopt import ByPath
    from eqopt.control import Multiply

    table = {ByPath("embedding.**"): 10.0, ByPath("layers.**.weight"): 0.25}
    opt = eqopt.Chain(eqopt.AdamW(1e-3), Multiply(table))
    ```

    Last in a chain it is a learning rate by path, for the decay too, as with the groups of torch;
    after [`eqopt.ScaleByAdam`][] and before [`eqopt.AddDecayedWeights`][], for the step alone. All
    parameters share one optimizer, one state and one count; a [`eqopt.Partition`][] has one of each
    for every group. For decay by path, [`eqopt.control.DecayWeights`][] takes such a table.

    The maximal update parametrization (muP) of a network that is $k$ times as wide as a tuned one
    needs no more: with Adam, the factor $1/k$ for the matrices between hidden layers.

    **Arguments:**

    - `factors`: the factors $c_i \ge 0$, a dictionary of numbers by selector, with `...` for
        parameters that no selector chooses; without `...` these have the factor 1.

    Raises a `ValueError` if a selector matches nothing.

    ??? cite "Reference"
        Yang et al., *Tensor Programs V: Tuning Large Neural Networks via Zero-Shot Hyperparameter
        Transfer*, NeurIPS 2021, table 8 (arXiv 2203.03466).
    """

    factors: Table[Scalar]

    # Not a generated one: Equinox flattens its arguments, and JAX sorts the keys of a dictionary.
    def __init__(self, factors: Mapping[Any, ScalarLike] | Table[Scalar]) -> None:
        self.factors = as_factors(factors)

    def init_state(self, params: Params, context: Context) -> EmptyState:
        tuple(self.factors.groups(params))  # so that a wrong selector raises at once
        return EmptyState()

    def transform(
        self, updates: Updates, state: EmptyState, params: Params | None, context: Context
    ) -> tuple[Updates, EmptyState]:
        table = self.factors.groups(updates if params is None else params)
        rules = [Rule(scale, state, scalars=(c,), mask=mask) for c, mask in table]
        return leafwise.run(rules, updates, params)[0], state
