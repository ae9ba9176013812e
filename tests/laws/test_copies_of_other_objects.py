"""Copies, pickles and files of results, schedules, selectors and projections."""

import inspect
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqopt
from eqopt import projections
from tests.laws.table.row import KEY
from tests.support import house_rules
from tests.support.copying import assert_equal, COPIES, Layers, through_a_file
from tests.support.toolbox import FLOAT, same, values


def _noisy(params: Any, key: Any) -> Any:
    return jnp.sum((params - 1) ** 2), {"key": key, "mode": "train", "norm": jnp.max(params)}


def _fit(value: float = 0.5, seed: int = 1) -> eqopt.Fit[Any]:
    key = jax.random.key(seed)
    opt = eqopt.NoisySGD(0.1, key=key)
    start = jnp.full(3, value, FLOAT)
    return eqopt.fit(_noisy, opt, start, [()] * 5, has_aux=True, key=key)


def _solution(value: float = 0.5) -> Any:
    start = jnp.full(3, value, FLOAT)
    return eqopt.minimize(_square, eqopt.LBFGS(), start, has_aux=True, history=True, max_steps=50)


def _square(params: Any) -> Any:
    return jnp.sum((params - 2) ** 2), {"largest": jnp.max(params)}


RESULTS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "Fit": (_fit, lambda: _fit(0.25, 2)),
    "Fit, an old key": (
        lambda: eqopt.fit(_square, eqopt.SGD(0.1), jnp.ones(3), [()], has_aux=True, key=KEY),
        lambda: eqopt.fit(_square, eqopt.SGD(0.1), jnp.zeros(3), [()], has_aux=True, key=1 + KEY),
    ),
    "History": (lambda: _fit().history, lambda: _fit(0.25, 2).history),
    "Solution": (_solution, lambda: _solution(0.25)),
    "KeyData": (
        lambda: eqopt.states.KeyData(jax.random.key(3, impl="rbg")),
        lambda: eqopt.states.KeyData(jax.random.key(4, impl="rbg")),
    ),
    "DynamicScale": (lambda: eqopt.precision.DynamicScale(scale=8.0), eqopt.precision.DynamicScale),
    "LookaheadParams": (
        lambda: eqopt.LookaheadParams(values((2,), 1), values((2,), 2)),
        lambda: eqopt.LookaheadParams(values((2,), 3), values((2,), 4)),
    ),
}


@pytest.mark.parametrize("make, other", RESULTS.values(), ids=RESULTS.keys())
def test_results(make: Callable[[], Any], other: Callable[[], Any]):
    x, like = make(), other()
    assert not same(x, like)
    assert_equal(through_a_file(x, like), x)
    for make_copy in COPIES.values():
        assert_equal(make_copy(x), x)


def test_a_copied_result_goes_on():
    fit = _fit()
    opt = eqopt.NoisySGD(0.1, key=jax.random.key(1))

    def go_on(fit: Any) -> Any:
        rest = eqopt.fit(
            _noisy, opt, fit.model, [()] * 3, has_aux=True, state=fit.state, key=fit.key
        )
        return rest.model, rest.state, rest.key

    expected = go_on(fit)
    for make_copy in COPIES.values():
        assert same(go_on(make_copy(fit)), expected)
    solution = _solution()
    for make_copy in COPIES.values():
        copied = make_copy(solution)
        assert copied.result == eqopt.MinimizeResult.successful
        assert eqopt.MinimizeResult[copied.result] == eqopt.MinimizeResult[solution.result]


class Inner(Layers):
    """For `ByType`."""


def _halved(count: Any) -> Any:
    return 0.5 ** count.astype(FLOAT)


def _matrices(params: Any) -> Any:
    return jax.tree.map(lambda x: x.ndim == 2, params)


def _biases(model: Any) -> Any:
    return model.bias


SCHEDULES: list[Any] = [
    eqopt.Constant(0.1),
    eqopt.Linear(1.0, 0.1, 10),
    eqopt.control.DecayByRate(0.1, eqopt.Linear(1.0, 0.1, 10), 2.0),
    eqopt.Polynomial(1.0, 0.1, 2.0, 10, 2),
    eqopt.CosineDecay(1.0, 10, 0.1, 2.0),
    eqopt.ExponentialDecay(1.0, 5, 0.5, 2, True, 0.1),
    eqopt.PiecewiseConstant(1.0, {3: 0.5, 6: 0.1}),
    eqopt.PiecewiseInterpolate("cosine", 1.0, {3: 0.5, 6: 0.1}),
    eqopt.Join((1.0, eqopt.Linear(1.0, 0.1, 3), _halved), (4, 6)),
    eqopt.CosineOneCycle(10, 1.0),
    eqopt.LinearOneCycle(10, 1.0),
    eqopt.WarmupConstant(init_value=0.1, peak_value=1.0, warmup_steps=3),
    eqopt.WarmupCosineDecay(peak_value=1.0, warmup_steps=3, decay_steps=9),
    eqopt.WarmupExponentialDecay(
        peak_value=1.0, warmup_steps=3, transition_steps=5, decay_rate=0.5
    ),
    eqopt.SGDR([{"peak_value": 1.0, "warmup_steps": 1, "decay_steps": 5}]),
    eqopt.FunctionSchedule(_halved),
]
SELECTORS: list[Any] = [
    eqopt.ByPath("**.bias"),
    eqopt.ByPath(re.compile("bias")),
    eqopt.selectors.ByType(Inner),
    eqopt.ByNdim(2, 2),
    eqopt.selectors.Where(_biases),
    eqopt.ByNdim(1) & eqopt.ByPath("**.bias"),
    eqopt.ByPath("weight") | eqopt.ByPath("bias"),
    ~eqopt.ByNdim(1),
    eqopt.selectors.FunctionSelector(_matrices),
    eqopt.selectors.TreeSelector(Layers(True, False, Inner(True, None))),
]
NORMAL = Layers(values((3, 2), 4), values((2,), 5), Inner(values((2, 2), 6), None))
SETS: list[Any] = [
    projections.NonNegative(),
    projections.Box(-0.3, 0.2),
    projections.Box(jax.tree.map(lambda x: -abs(x), NORMAL), jax.tree.map(abs, NORMAL)),
    projections.Hypercube(0.5),
    projections.Simplex(2.0),
    projections.L1Sphere(2.0),
    projections.L1Ball(2.0),
    projections.L2Sphere(0.5),
    projections.L2Ball(0.5),
    projections.LInfBall(0.5),
    projections.Hyperplane(NORMAL, 0.5),
    projections.Halfspace(NORMAL, -0.5),
    projections.Line(NORMAL),
]
LAYERS = Layers(values((3, 2), 1), values((2,), 2), Inner(values((2, 2), 3), None))


def test_the_lists_are_complete():
    bases = (
        eqopt.writing.AbstractSchedule,
        eqopt.selectors.AbstractSelector,
        projections.AbstractProjection,
    )
    concrete = {
        x
        for x in house_rules.public(eqopt).values()
        if isinstance(x, type) and issubclass(x, bases) and not inspect.isabstract(x)
    }
    assert concrete <= {type(x) for x in (*SCHEDULES, *SELECTORS, *SETS)}


def _copies(part: Any) -> list[Any]:
    """All copies of a part, one of them read into another of its kind."""
    like = jax.tree.map(lambda x: x * 0, part)
    copies = [through_a_file(part, like), *(make_copy(part) for make_copy in COPIES.values())]
    for x in copies:
        assert_equal(x, part)
        assert repr(x) == repr(part)
        assert hash(jax.tree.structure(x)) == hash(jax.tree.structure(part))
    return copies


def _name(x: Any) -> str:
    return type(x).__name__


@pytest.mark.parametrize("schedule", SCHEDULES, ids=_name)
def test_schedules(schedule: Any):
    counts = np.arange(12)
    expected = schedule(counts)
    for x in _copies(schedule):
        assert same(x(counts), expected)


@pytest.mark.parametrize("selector", SELECTORS, ids=_name)
def test_selectors(selector: Any):
    expected = selector.select(LAYERS)
    assert jax.tree.leaves(expected).count(True) in (1, 2, 3)
    for x in _copies(selector):
        found = x.select(LAYERS)
        assert jax.tree.leaves(found) == jax.tree.leaves(expected)
        assert jax.tree.structure(found) == jax.tree.structure(expected)


@pytest.mark.parametrize("projection", SETS, ids=_name)
def test_projections(projection: Any):
    expected = projection(LAYERS)
    assert not same(expected, LAYERS)
    for x in _copies(projection):
        assert same(x(LAYERS), expected)
