"""Quasi-Newton directions and conjugate gradients, and the parts that they are made of.

Begin with `eqopt.LBFGS`, `eqopt.BFGS` and `eqopt.NonlinearCG`. Their directions are
`ScaleByLBFGS`, `ScaleByBFGS` and `ScaleByNonlinearCG`, which take an initial matrix, a secant rule,
an update rule and a conjugacy formula as arguments.
"""

from .._base.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
