"""Hager and Zhang's line search against a plain account of it."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

import eqopt
from tests.support.toolbox import X64


class _Over(Exception):
    pass


def _cg_descent(
    phi: Callable[[float], tuple[float, float]],
    step: float,
    delta: float,
    sigma: float,
    max_learning_rate: float,
    max_trials: int,
) -> list[float]:
    """The steps that the search tries, the last of which it accepts unless there are too many."""
    f0, g0 = phi(0)
    limit = f0 + 1e-6 * abs(f0)
    trials, slopes = [], {0.0: g0}

    def at(x: float) -> tuple[float, float]:
        f, g = phi(x)
        trials.append(x)
        slopes[x] = g
        wolfe = f - f0 <= delta * x * g0 and g >= sigma * g0
        approximate = f <= limit and (2 * delta - 1) * g0 >= g >= sigma * g0
        if wolfe or approximate or len(trials) == max_trials:
            raise _Over
        return f, g

    def contract(a: float, b: float) -> tuple[float, float]:
        while True:
            d = 0.5 * a + 0.5 * b
            f, g = at(d)
            if g >= 0:
                return a, d
            a, b = (d, b) if f <= limit else (a, d)

    def update(a: float, b: float, c: float) -> tuple[float, float]:
        if not a < c < b:
            return a, b
        f, g = at(c)
        if g >= 0:
            return a, c
        return (c, b) if f <= limit else contract(a, c)

    def secant(a: float, b: float) -> float:
        if slopes[a] == slopes[b]:
            return float("nan")
        return (a * slopes[b] - b * slopes[a]) / (slopes[b] - slopes[a])

    def bracket(c: float) -> tuple[float, float]:
        a = 0.0
        while True:
            f, g = at(c)
            if g >= 0:
                return a, c
            if not f <= limit:
                # As CG_DESCENT does it; the paper would begin at 0 again.
                return contract(a, c)
            if c >= max_learning_rate:
                raise _Over
            a, c = c, min(5 * c, max_learning_rate)

    try:
        a, b = bracket(step)
        while True:
            c = secant(a, b)
            new_a, new_b = update(a, b, c)
            if c == new_b:
                new_a, new_b = update(new_a, new_b, secant(b, new_b))
            elif c == new_a:
                new_a, new_b = update(new_a, new_b, secant(a, new_a))
            if new_b - new_a > 0.66 * (b - a):
                new_a, new_b = update(new_a, new_b, (new_a + new_b) / 2)
            a, b = new_a, new_b
    except _Over:
        return trials


def _random_line(seed: int) -> Callable[[float], tuple[float, float]]:
    rng = np.random.default_rng(seed)
    a, w, p = rng.uniform(-1, 1, 4), rng.uniform(0.3, 4, 4), rng.uniform(0, 6, 4)
    curvature, wall = rng.uniform(0, 0.3), rng.uniform(2, 40)
    uphill = np.sum(a * w * np.cos(p)) > 0

    def phi(x: float) -> tuple[float, float]:
        x = -x if uphill else x
        if abs(x) > wall and seed % 3 == 0:
            return float("nan"), float("nan")
        value = np.sum(a * np.sin(w * x + p)) + curvature * x**2 / 2
        slope = np.sum(a * w * np.cos(w * x + p)) + curvature * x
        return float(value), float(-slope if uphill else slope)

    return phi


@pytest.mark.skipif(not X64, reason="the paper's algorithm is told in float64")
@pytest.mark.parametrize("delta,sigma", [(0.1, 0.9), (0.4, 0.41), (0.49, 0.5)])
def test_hager_zhang_tries_what_the_paper_does(delta: float, sigma: float):
    search = eqopt.linesearch.ScaleByHagerZhangLinesearch(
        20, 30.0, slope_rtol=delta, curv_rtol=sigma
    )
    tell = eqx.filter_jit(search.tell)
    lengths = []
    for seed in range(150):
        phi = _random_line(seed)
        step = 10 ** np.random.default_rng(seed + 1000).uniform(-2, 1)
        expected = _cg_descent(phi, step, delta, sigma, 30.0, 20)
        value, slope = map(jnp.asarray, phi(0))
        machine = search.start(eqopt.linesearch.Origin(value, slope, jnp.abs(value), 2**-52))
        trials, verdict, step = [], 0, jnp.asarray(step)
        while verdict == 0:
            trials.append(float(step))
            trial = eqopt.linesearch.Trial(step, *map(jnp.asarray, phi(trials[-1])))
            machine, answer = tell(machine, trial)
            verdict, step = int(answer.verdict), answer.step
        np.testing.assert_allclose(trials, expected, rtol=1e-9)
        lengths.append(len(trials))
    assert max(lengths) >= 4
