"""An optimizer for each group of parameters."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import PyTree

from .._base import checks
from .._base.types import Params
from .._train.override import AbstractOverridable, override
from .._transform.basic import SetToZero
from .._transformation.base import AbstractTransformation, AnyTransformation, check_transformation
from .._wrapper.partition import Partition, PartitionState
from ..selectors._selector import AbstractSelector, as_selector
from ._base import AbstractOptimizerDef


class MultiOptimizer(AbstractOptimizerDef[PartitionState], AbstractOverridable):
    """Applies a separate optimizer to each group of parameters; other parameters stay as they are.

    ```python
    from eqopt import ByPath
    from eqopt.flax_optim import Adam, Momentum, MultiOptimizer

    opt = MultiOptimizer(
        (ByPath("**.weight"), Adam(1e-3)),
        (ByPath("**.bias"), Momentum(1e-2)),
    )
    ```

    It is [`eqopt.Partition`][] with the groups' numbers as labels, and [`eqopt.SetToZero`][] for
    parameters in no group.

    !!! note
        `apply_gradient` overrides a hyper-parameter in every optimizer, and each must have it.

    **Arguments:**

    - `*groups`: pairs of a choice of parameters (a selector, a function from the parameters to
        booleans, or a tree of booleans, possibly a prefix) and an optimizer; or one dictionary of
        optimizers by selector. They must be the same at each step.

    Raises a `ValueError` that names the parameter if it is in two groups.
    """

    selectors: tuple[AbstractSelector, ...]
    optimizers: tuple[AnyTransformation, ...]

    def __init__(self, *groups: Any) -> None:
        if len(groups) == 1 and isinstance(groups[0], Mapping):
            groups = tuple(groups[0].items())
        for i, group in enumerate(groups):
            if not isinstance(group, tuple | list) or len(group) != 2:
                raise TypeError(
                    f"`groups[{i}]` must be a pair of a selector and an optimizer; got "
                    f"{checks.describe(group)}"
                )
            check_transformation(f"groups[{i}][1]", group[1])
        self.selectors = tuple(as_selector(x) for x, _ in groups)
        self.optimizers = tuple(x for _, x in groups)

    def override(self, changes: dict[str, Any]) -> AnyTransformation:
        changed = [override(x, changes) for x in self.optimizers]
        return MultiOptimizer(*zip(self.selectors, changed, strict=True))

    def compose(self) -> AbstractTransformation[PartitionState]:
        optimizers = dict(enumerate((*self.optimizers, SetToZero())))
        return Partition(optimizers, functools.partial(_groups, self.selectors))


def _groups(selectors: tuple[AbstractSelector, ...], params: Params) -> PyTree:
    """The number of each parameter's group; the next number for those in none."""
    leaves, treedef = checks.flatten(params)
    chosen = [checks.flatten(x.select(params))[0] for x in selectors]
    found = [[i for i, own in enumerate(chosen) if own[j]] for j in range(len(leaves))]
    faults = [
        f"`{name}` is in more than one group: {', '.join(map(str, own))}"
        for name, own, x in zip(checks.paths("params", params), found, leaves, strict=True)
        if x is not None and len(own) > 1
    ]
    if faults:
        raise ValueError(checks.listed(faults))
    return jax.tree.unflatten(treedef, [own[0] if own else len(selectors) for own in found])
