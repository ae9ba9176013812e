"""Code that the optimizers of flax.optim share."""

from typing import Any, overload, TypeVar

from jaxtyping import Array, PyTree

from .._base.types import Function, Scalar, State
from .._schedule.base import AbstractSchedule
from .._train.optimizer import Optimizer
from .._transform.learning_rate import ScaleByLearningRate
from .._transformation.base import AbstractOptimizer
from .._wrapper.freeze import SelectiveTransformState
from ..selectors._selector import AbstractSelector

_Model = TypeVar("_Model")


class AbstractOptimizerDef(AbstractOptimizer[State]):
    """An optimizer with the names, the defaults and the rule that it had in flax.optim.

    It is a transformation like any other, and also has `create`.
    """

    @overload
    def create(self, target: _Model, focus: None = None) -> Optimizer[_Model, State]: ...
    @overload
    def create(
        self, target: _Model, focus: AbstractSelector | Function | PyTree[bool]
    ) -> Optimizer[_Model, SelectiveTransformState[State]]: ...
    def create(self, target: object, focus: object = None) -> Optimizer[Any, Any]:
        """Makes one object of the optimizer, its state and a model: an [`eqopt.Optimizer`][].

        **Arguments:**

        - `target`: the model: any PyTree.
        - `focus`: the parameters to train: a selector, a function from the parameters to booleans,
            or a tree of booleans, possibly a prefix; `None` is everything.

        **Raises:**

        A `ValueError` if `focus` chooses no parameter.
        """
        return Optimizer.create(self, target, focus)


def scale_by(
    learning_rate: Scalar | AbstractSchedule | None, *, flip_sign: bool = True
) -> ScaleByLearningRate:
    """The link of the learning rate. Without a rate it has a state, but raises when it is
    applied."""
    return ScaleByLearningRate(_missing if learning_rate is None else learning_rate, flip_sign)


def _missing(count: Array) -> Array:
    raise ValueError(
        "there is no learning rate: give one when the optimizer is built, or to `apply_gradient`, "
        "as `learning_rate`"
    )
