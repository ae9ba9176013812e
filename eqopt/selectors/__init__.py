"""Selectors: choices of parameters of a model.

Begin with `ByPath("**.weight")`, `ByNdim(2)`, `ByType(eqx.nn.Linear)` or `Where(lambda model:
...)`. They combine with `&`, `|` and `~`. To write one, begin with `AbstractSelector`.
"""

from .._base.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
