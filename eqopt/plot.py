"""Pictures, by matplotlib: `pip install eqopt[plot]`.

Begin with `history(fit.history)`, where `fit` is the result of `eqopt.fit`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from ._schedule.base import AbstractSchedule, as_schedule
from ._train.fit import History

__all__ = ["history", "schedule"]


def __dir__() -> list[str]:
    return __all__


def history(history: History, axes: Any = None) -> Any:
    """Draws the loss, the gradient's norm and the learning rate over the steps of [`eqopt.fit`][].

    **Arguments:**

    - `history`: the history.
    - `axes`: a sequence of matplotlib's axes, one for each curve there is; `None` makes a figure.

    **Returns:**

    The figure.
    """
    curves = [("loss", history.loss), ("gradient norm", history.grad_norm)]
    if history.learning_rate is not None:
        curves.append(("learning rate", history.learning_rate))
    if axes is None:
        size = (6.4, 2.0 * len(curves) + 0.6)
        _, axes = _pyplot().subplots(
            len(curves), 1, sharex=True, figsize=size, layout="constrained"
        )
    axes = np.ravel(axes)
    if len(axes) < len(curves):
        raise ValueError(f"`axes` must hold {len(curves)} axes; it holds {len(axes)}")
    for i, (ax, (name, values)) in enumerate(zip(axes, curves, strict=False)):
        ax.plot(np.arange(len(values)), values, color=f"C{i}", linewidth=1.2)
        ax.set_ylabel(name)
        ax.grid(alpha=0.3)
        if name != "learning rate" and len(values) and np.all(values > 0):
            ax.set_yscale("log")
    axes[len(curves) - 1].set_xlabel("step")
    return axes[0].figure


def schedule(
    schedule: AbstractSchedule | Callable[..., Any], num_steps: int, ax: Any = None
) -> Any:
    """Draws a schedule over its first steps.

    **Arguments:**

    - `schedule`: the schedule, or a function of the count.
    - `num_steps`: how many steps to draw.
    - `ax`: matplotlib's axes; `None` makes a figure.

    **Returns:**

    The figure.
    """
    if ax is None:
        _, ax = _pyplot().subplots(figsize=(6.4, 2.6), layout="constrained")
    counts = np.arange(num_steps)
    ax.plot(counts, np.asarray(as_schedule("schedule", schedule)(counts)), linewidth=1.5)
    ax.set_xlabel("step")
    ax.set_ylabel("value")
    ax.grid(alpha=0.3)
    return ax.figure


def _pyplot() -> Any:
    # Imported on use: `import eqopt` must neither need matplotlib nor be slowed by it.
    try:
        import matplotlib.pyplot as plt
    except ImportError as e:
        raise ImportError("`eqopt.plot` draws with matplotlib: `pip install eqopt[plot]`") from e
    return plt
