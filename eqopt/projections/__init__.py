"""Projections onto sets of parameters, and penalties with kinks.

Begin with `NonNegative`, `Box` or `Simplex`: as the last link of a chain,
`eqopt.Project(NonNegative())`. To write one, begin with `AbstractProjection`. The penalties, such
as `L1`, and every projection are for `eqopt.FISTA(L1(0.1))`; there, begin with `AbstractPenalty`.
"""

from .._base.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
