"""Line searches: how far to go along a direction.

Begin with `ScaleByZoomLinesearch`, the last link of a chain or the argument `linesearch` of
`eqopt.LBFGS`. To write a search, begin with `AbstractLinesearch`: it takes an `Origin` and
`Trial`s, and returns an `Answer` with a verdict, `TRY`, `ACCEPT`, `RETURN` or `FAIL`.
"""

from .._base.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
