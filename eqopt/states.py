"""The classes of the states.

Begin with `eqopt.tree.get(state, eqopt.states.ScaleByAdamState)`, which finds the state of one
class within the state of an optimizer. The state of `eqopt.X` is `eqopt.states.XState`; an
optimizer is a chain, and its state a `ChainState`. `KeyData` and `Cache` are parts of states.
"""

from ._base.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
