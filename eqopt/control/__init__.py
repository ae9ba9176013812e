"""Keeping a run in bounds: norms of parameters and updates, decay, and guards against spikes.

Begin with `Hyperball`, in the place of the learning rate, for parameters of a constant norm;
`SkipSpikes`, around an optimizer, for runs whose loss jumps; or `Multiply`, for learning rates by
path. The optimizers here, such as `AdamH`, are made of these links.
"""

from .._base.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
