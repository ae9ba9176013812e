"""Rules of optimizers in plain NumPy, a few lines each, in float64: one matrix, step by step."""

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
# From the gradient and the parameters to the new parameters.
Rule = Callable[[Array, Array], Array]


def norm(x: Array) -> float:
    return float(np.sqrt(np.sum(x * x)))


def adam(b1: float, b2: float, eps: float) -> Callable[[Array], Array]:
    """Adam's direction."""
    m: Any = 0.0
    v: Any = 0.0
    t = 0

    def direction(g: Array) -> Array:
        nonlocal m, v, t
        t, m, v = t + 1, b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        return m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)

    return direction


def hyperball(rate: float, radius: float | None = None, direction: Any = lambda g: g) -> Rule:
    """As the paper has it, the step multiplied by the radius."""

    def step(g: Array, w: Array) -> Array:
        nonlocal radius
        if radius is None:
            radius = norm(w)
        u = direction(g)
        moved = w * (radius / norm(w)) - rate * radius * u / norm(u)
        return moved * (radius / norm(moved))

    return step


def keep_radius(rate: float) -> Rule:
    def step(g: Array, w: Array) -> Array:
        target = norm(w) - rate * np.sum(g * w) / norm(w)
        moved = w - rate * g
        return moved * target / norm(moved)

    return step


def laprop(rate: float, b1: float, b2: float, eps: float, decay: float) -> Rule:
    m: Any = 0.0
    v: Any = 0.0
    t = 0

    def step(g: Array, w: Array) -> Array:
        nonlocal m, v, t
        t, v = t + 1, b2 * v + (1 - b2) * g * g
        m = b1 * m + (1 - b1) * g / (np.sqrt(v / (1 - b2**t)) + eps)
        return w - rate * (m / (1 - b1**t) + decay * w)

    return step


def stable_adam_w(rate: float, b1: float, b2: float, eps: float, decay: float) -> Rule:
    m: Any = 0.0
    v: Any = 0.0
    t = 0

    def step(g: Array, w: Array) -> Array:
        nonlocal m, v, t
        t, m, v = t + 1, b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        mean, square = m / (1 - b1**t), v / (1 - b2**t)
        own = rate / max(1.0, np.sqrt(np.mean(g * g / np.maximum(square, eps**2))))
        return w * (1 - own * decay) - own * mean / (np.sqrt(square) + eps)

    return step


def mars(rate: float, b1: float, b2: float, gamma: float, eps: float, decay: float) -> Rule:
    direction = adam(b1, b2, eps)
    last: Any = 0.0

    def step(g: Array, w: Array) -> Array:
        nonlocal last
        c = g + gamma * b1 / (1 - b1) * (g - last)
        last = g
        c = c / max(1.0, norm(c))
        return w - rate * (direction(c) + decay * w)

    return step


def came(rate: float, b1: float, b2: float, b3: float, eps: tuple[float, float]) -> Rule:
    rows, cols, far_rows, far_cols, m = 0.0, 0.0, 0.0, 0.0, 0.0

    def step(g: Array, w: Array) -> Array:
        nonlocal rows, cols, far_rows, far_cols, m
        square = g * g + eps[0]
        rows = b2 * rows + (1 - b2) * square.mean(1)
        cols = b2 * cols + (1 - b2) * square.mean(0)
        u = g / np.sqrt(np.outer(rows, cols) / np.mean(rows))
        u = u / max(1.0, np.sqrt(np.mean(u * u)))
        m = b1 * m + (1 - b1) * u
        far = (u - m) ** 2 + eps[1]
        far_rows = b3 * far_rows + (1 - b3) * far.mean(1)
        far_cols = b3 * far_cols + (1 - b3) * far.mean(0)
        return w - rate * m / np.sqrt(np.outer(far_rows, far_cols) / np.mean(far_rows))

    return step


def adam_c(
    rates: list[float], highest: float, b1: float, b2: float, eps: float, decay: float
) -> Rule:
    direction, rest = adam(b1, b2, eps), list(rates)

    def step(g: Array, w: Array) -> Array:
        rate = rest.pop(0)
        return w * (1 - decay * rate**2 / highest) - rate * direction(g)

    return step
