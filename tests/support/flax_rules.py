"""The rules of flax.optim, one leaf at a time, in NumPy: as its source had them, in float64.

Each is `rule(t, p, g, state, **hyper)`, `t` the number of steps before this one, `state` a
dictionary that is empty at first; it gives the new parameter, and changes the state.
"""

from typing import Any

import numpy as np


def _average(state: dict[str, Any], name: str, decay: float, new: Any) -> Any:
    state[name] = decay * state.get(name, np.zeros_like(new)) + (1 - decay) * new
    return state[name]


def _momentum(state: dict[str, Any], beta: float, new: Any, nesterov: bool) -> Any:
    state["momentum"] = beta * state.get("momentum", np.zeros_like(new)) + new
    return new + beta * state["momentum"] if nesterov else state["momentum"]


def _adam(t: int, g: Any, state: Any, beta1: float, beta2: float, eps: float) -> Any:
    m = _average(state, "grad_ema", beta1, g) / (1 - beta1 ** (t + 1))
    v = _average(state, "grad_sq_ema", beta2, g**2) / (1 - beta2 ** (t + 1))
    return m / (np.sqrt(v) + eps)


def _gradient_descent(t: int, p: Any, g: Any, state: Any, *, learning_rate: float) -> Any:
    return p - learning_rate * g


def _momentum_rule(
    t: int,
    p: Any,
    g: Any,
    state: Any,
    *,
    learning_rate: float,
    beta: float = 0.9,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> Any:
    return p - learning_rate * _momentum(state, beta, g + weight_decay * p, nesterov)


def _adam_rule(
    t: int,
    p: Any,
    g: Any,
    state: Any,
    *,
    learning_rate: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Any:
    direction = _adam(t, g, state, beta1, beta2, eps)
    return p - learning_rate * direction - learning_rate * weight_decay * p


def _adabelief(
    t: int,
    p: Any,
    g: Any,
    state: Any,
    *,
    learning_rate: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-16,
    weight_decay: float = 0.0,
) -> Any:
    m = _average(state, "grad_ema", beta1, g)
    s = _average(state, "grad_sq_ema", beta2, (g - m) ** 2) + eps
    state["grad_sq_ema"] = s
    root = np.sqrt(s / (1 - beta2 ** (t + 1))) + eps
    direction = m / (1 - beta1 ** (t + 1)) / root
    return p - learning_rate * direction - learning_rate * weight_decay * p


def _adadelta(
    t: int,
    p: Any,
    g: Any,
    state: Any,
    *,
    learning_rate: float,
    rho: float = 0.9,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
) -> Any:
    square = _average(state, "sq_avg", rho, g**2)
    steps = state.get("acc_delta", np.zeros_like(p))
    delta = np.sqrt(steps + eps) / np.sqrt(square + eps) * g
    _average(state, "acc_delta", rho, delta**2)
    return p - learning_rate * delta - learning_rate * weight_decay * p


def _adagrad(t: int, p: Any, g: Any, state: Any, *, learning_rate: float, eps: float = 1e-8) -> Any:
    state["G"] = state.get("G", np.zeros_like(p)) + g**2
    return p - learning_rate * g / (np.sqrt(state["G"]) + eps)


def _rmsprop(
    t: int,
    p: Any,
    g: Any,
    state: Any,
    *,
    learning_rate: float,
    beta2: float = 0.9,
    eps: float = 1e-8,
    centered: bool = False,
) -> Any:
    v = _average(state, "v", beta2, g**2)
    if centered:
        v = v - _average(state, "mg", beta2, g) ** 2
    return p - learning_rate * g / (np.sqrt(v) + eps)


def _lamb(
    t: int,
    p: Any,
    g: Any,
    state: Any,
    *,
    learning_rate: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    weight_decay: float = 0.0,
    eps: float = 1e-6,
) -> Any:
    u = _adam(t, g, state, beta1, beta2, eps) + weight_decay * p
    size = np.linalg.norm(u)
    # Where the update is zero, flax.optim has `inf * 0`, which is NaN. Here it stays zero.
    return p if size == 0 else p - np.linalg.norm(p) / size * learning_rate * u


def _lars(
    t: int,
    p: Any,
    g: Any,
    state: Any,
    *,
    learning_rate: float,
    beta: float = 0.9,
    weight_decay: float = 0.0,
    trust_coefficient: float = 1e-3,
    eps: float = 0.0,
    nesterov: bool = False,
) -> Any:
    size, length = np.linalg.norm(p), np.linalg.norm(g)
    known = size > 0 and length > 0
    ratio = trust_coefficient * size / (length + weight_decay * size + eps) if known else 1.0
    return p - _momentum(state, beta, learning_rate * ratio * (g + weight_decay * p), nesterov)


def _adafactor(
    t: int,
    p: Any,
    g: Any,
    state: Any,
    *,
    learning_rate: float,
    factored: bool = True,
    multiply_by_parameter_scale: bool = True,
    beta1: float | None = None,
    decay_rate: float = 0.8,
    step_offset: int = 0,
    clipping_threshold: float | None = 1.0,
    weight_decay_rate: float | None = None,
    min_dim_size_to_factor: int = 128,
    epsilon1: float = 1e-30,
    epsilon2: float = 1e-3,
) -> Any:
    decay = 1 - (t - step_offset + 1) ** -decay_rate
    square = g**2 + epsilon1
    *_, d1, d0 = (0, 0, *np.argsort(p.shape, kind="stable"))
    if factored and p.ndim >= 2 and p.shape[d1] >= min_dim_size_to_factor:
        row = _average(state, "v_row", decay, square.mean(d0, keepdims=True))
        col = _average(state, "v_col", decay, square.mean(d1, keepdims=True))
        y = g / np.sqrt(row / row.mean(d1, keepdims=True)) / np.sqrt(col)
    else:
        y = g / np.sqrt(_average(state, "v", decay, square))
    if clipping_threshold is not None:
        y = y / max(1.0, np.sqrt(np.mean(y**2)) / clipping_threshold)
    size = max(np.sqrt(np.mean(p**2)), epsilon2) if multiply_by_parameter_scale else 1.0
    y = learning_rate * size * y
    if beta1 is not None:
        y = _average(state, "m", beta1, y)
    return (1 - (weight_decay_rate or 0.0)) * p - y


RULES = {
    "GradientDescent": _gradient_descent,
    "Momentum": _momentum_rule,
    "Adam": _adam_rule,
    "AdaBelief": _adabelief,
    "Adadelta": _adadelta,
    "Adagrad": _adagrad,
    "RMSProp": _rmsprop,
    "LAMB": _lamb,
    "LARS": _lars,
    "Adafactor": _adafactor,
}


def weight_norm(
    p: Any, gradients: Any, learning_rate: float, beta: float, decay: float, eps: float
) -> Any:
    """A matrix after each step of momentum on directions and lengths, by its last axis.

    With the derivatives by hand: of $w = s v / n$, $n^2 = |v|^2 + eps$, by $s$ and by $v$.
    """
    s = np.sqrt((p**2).sum(0) + eps)
    v = p / s
    of_v, of_s = np.zeros_like(v), np.zeros_like(s)
    found = []
    for g in gradients:
        n = np.sqrt((v**2).sum(0) + eps)
        by_s = (g * v).sum(0) / n
        by_v = s / n * g - s / n**3 * (g * v).sum(0) * v
        of_v = beta * of_v + by_v + decay * v
        of_s = beta * of_s + by_s
        v, s = v - learning_rate * of_v, s - learning_rate * of_s
        found.append(s * v / np.sqrt((v**2).sum(0) + eps))
    return np.stack(found)
