"""Functions and small Modules to pass as arguments to optimizers, wrappers, schedules and loops.

Begin with the class that takes one: its docstring names those that fit. As in
`eqopt.ScaleByLion(mode=eqopt.options.lion_smooth)`, or
`eqopt.fit(..., progress=eqopt.options.RichProgress())`.
"""

from ._base.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
