"""Conversions from and to optax, which is an extra: `pip install eqopt[optax]`.

Begin with `from_optax(optax.adam(1e-3))`, or the other way with `as_optax(eqopt.Adam(1e-3))`.
"""

from .._base.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
