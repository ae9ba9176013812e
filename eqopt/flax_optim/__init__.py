"""The optimizers of flax.optim, with their names, their defaults and their rules.

Begin with `Adam(learning_rate=1e-3).create(model)`, which makes an `eqopt.Optimizer`.
"""

from .._base.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
