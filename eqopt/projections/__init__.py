"""Projections onto sets of parameters, and the sets: for `eqopt.Project`, or by themselves.

Begin with `NonNegative`, `Box` or `Simplex`: as the last link of a chain,
`eqopt.Project(NonNegative())`. To write one, begin with `AbstractProjection`.
"""

from .._base.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
