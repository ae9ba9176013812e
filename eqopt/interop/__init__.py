"""Bridges to optax and optimistix, which are extras: `pip install eqopt[optax,optimistix]`.

Begin with `from_optax(optax.adam(1e-3))`, or the other way with `as_optax(eqopt.Adam(1e-3))`; and
with `optimistix.minimise(fn, EqoptMinimiser(eqopt.LBFGS(), rtol=1e-6, atol=1e-6), y0)`.
"""

from .._base.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
