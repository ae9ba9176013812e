"""Abstract classes and building blocks for writing transformations and other parts.

Begin with `AbstractTransformation`, which has two methods to write, or with `AbstractLeafwise` for
a rule that is the same for every leaf. `AbstractOptimizer` names a composition. The page "Writing a
transformation" has an example of each kind.
"""

from ._base.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
