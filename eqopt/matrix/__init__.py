"""Optimizers that see parameters as matrices, and their parts.

Begin with `matrices_of(model)`, which shows the matrices of a model, and `NorMuon(0.01)`.
"""

from .._base.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
