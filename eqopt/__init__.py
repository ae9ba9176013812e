"""Optimizers for Equinox.

Begin with an optimizer, such as `opt = eqopt.AdamW(1e-3)`. `opt.init(model)` makes its state, and
`opt.step(loss_fn, model, state, x, y)` takes one step. `eqopt.fit` is the loop over batches, and
`eqopt.minimize` minimizes to convergence. `eqopt.Chain` composes transformations.

This namespace has the names that a training script uses. Other names have their own namespaces:

- `eqopt.options`: functions and Modules to pass as arguments, such as progress bars.
- `eqopt.states`: the classes of the states.
- `eqopt.selectors`, `eqopt.projections`: subsets of the parameters, and sets of their values.
- `eqopt.matrix`: optimizers that see parameters as matrices, and their parts.
- `eqopt.control`: norms, decay, and guards that keep a run in bounds.
- `eqopt.precision`: training in half precision.
- `eqopt.linesearch`, `eqopt.quasi_newton`: the parts of methods that minimize to convergence.
- `eqopt.tree`, `eqopt.plot`: states as trees, and pictures.
- `eqopt.interop`, `eqopt.flax_optim`: optax's transformations, and the optimizers of flax.optim.
- `eqopt.writing`: classes and functions to write transformations, schedules and callbacks with.
"""

from ._base.lazy import attach

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = attach(__name__, __file__)
