"""Training in half precision: master weights, compensation, rounding, loss scaling.

Begin with `MasterWeights(eqopt.AdamW(1e-3))`, which trains a model whose parameters are in bfloat16
or float16. `DynamicScale` scales the loss, for gradients in float16.
"""

from .._base.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
