"""Line searches in every dtype, what they cost, and their hyper-parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jaxtyping import Array

import eqopt
from tests.support.evaluations import Calls
from tests.support.linesearches import rosenbrock, search_along, SEARCHES, value_and_grad
from tests.support.toolbox import FLOAT, types, X64

NAMES = list(SEARCHES)


# Dtypes.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "dtype", [jnp.float32, *([jnp.float64] if X64 else [jnp.bfloat16, jnp.float16])]
)
def test_every_dtype(name: str, dtype: Any):
    def fn(x: Array) -> Array:
        wide = x.astype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)
        return jnp.sum(jnp.square(wide - 1)) + jnp.sum(wide**4)

    solver = eqopt.Chain(eqopt.SGD(1.0), SEARCHES[name]())
    x = jnp.asarray([2.0, -1.0, 0.5], dtype)
    state = solver.init(x)
    expected, kind = types(state), types(x)
    values = [float(fn(x))]
    for _ in range(15):
        x, state, _ = solver.step(fn, x, state)
        values.append(float(fn(x)))
        assert types(state) == expected
        assert types(x) == kind
    eps = float(jnp.finfo(fn(x).dtype).eps)
    rises = np.diff(values)
    assert np.all(rises <= max(1e-6, 9 * eps) * np.abs(values[:-1]))
    best = 3 * float(fn(jnp.asarray([0.58975], dtype)))
    assert values[-1] <= 1.01 * best


@pytest.mark.parametrize("name", NAMES)
def test_complex_parameters_are_pairs_of_real_ones(name: str):
    dtype = jnp.complex128 if X64 else jnp.complex64

    def real(x: Array) -> Array:
        center = jnp.asarray([[1, -0.5], [2, -1]], x.dtype)
        distance = jnp.sum(jnp.square(x - center), 0)
        return jnp.sum(distance * jnp.asarray([1, 5], x.dtype) + jnp.square(distance))

    def fn(z: Array) -> Array:
        return real(jnp.stack([z.real, z.imag]))

    solver = eqopt.Chain(eqopt.SGD(1.0), SEARCHES[name]())
    z = jnp.asarray([0.3 - 1j, 1 + 1j], dtype)
    x = jnp.stack([z.real, z.imag])
    state, real_state = solver.init(z), solver.init(x)
    expected = types(state)
    tolerance = 1e3 * float(jnp.finfo(dtype).eps)
    for _ in range(6):
        value = fn(z)
        z, state, _ = solver.step(fn, z, state)
        x, real_state, _ = solver.step(real, x, real_state)
        assert types(state) == expected
        assert float(fn(z)) < 0.9 * float(value)
        np.testing.assert_allclose(z, lax.complex(*x), rtol=tolerance, atol=tolerance)
        evaluations = [s.states[1].info.num_linesearch_steps for s in (state, real_state)]
        assert evaluations[0] == evaluations[1]


# Costs.


@pytest.mark.parametrize("name", NAMES)
def test_every_evaluation_is_reported(name: str):
    calls = Calls()

    def fn(x: Array) -> Array:
        return rosenbrock(calls.counted(x))

    search = SEARCHES[name]()
    x = jnp.asarray([-1.2, 1.0], FLOAT)
    state = search.init(x)
    seen = []
    for i in range(4):
        value, grad = value_and_grad(rosenbrock)(x)
        args: Any = {"value": value, "grad": grad, "value_fn": fn}
        calls.reset()
        updates, state = search.update(-grad, state, x, **args)
        jax.effects_barrier()
        x = eqopt.apply_updates(x, updates)
        assert calls.evaluations == int(state.info.num_linesearch_steps)
        # It is traced once, and compiled once.
        assert calls.traces <= (2 if i == 0 else 0)
        seen.append(calls.evaluations)
    assert max(seen) > 1


def _search_on_a_slope(search: Any) -> Any:
    at, along = jnp.asarray([0.5, 0.5], FLOAT), jnp.asarray([0.1, -0.1], FLOAT)
    _, state = search_along(search, rosenbrock, at, along)
    jax.effects_barrier()
    return state


@pytest.mark.parametrize("name", NAMES)
def test_verbose(name: str, capsys: pytest.CaptureFixture[str]):
    search = SEARCHES[name]().replace(verbose=True)
    state = _search_on_a_slope(search)
    out = capsys.readouterr().out
    num = int(state.info.num_linesearch_steps)
    assert out.startswith(f"{type(search).__name__}: {num} evaluations")
    assert f"step {float(state.learning_rate):.3e}" in out


def test_silent(capsys: pytest.CaptureFixture[str]):
    _search_on_a_slope(SEARCHES["zoom"]())
    assert capsys.readouterr().out == ""


# First steps, and mistakes.


@pytest.mark.parametrize(
    "search", [eqopt.ScaleByZoomLinesearch, eqopt.linesearch.ScaleByHagerZhangLinesearch]
)
@pytest.mark.parametrize(
    "strategy,expected",
    [
        (eqopt.linesearch.keep_step, 0.25),
        (eqopt.linesearch.double_step, 0.5),
        (eqopt.linesearch.unit_step, 1.0),
        ("keep", 0.25),
        ("one", 1.0),
        (lambda learning_rate: learning_rate / 2, 0.125),
    ],
)
def test_first_steps(search: Any, strategy: Any, expected: float):
    kept = search(30, initial_guess_strategy=strategy)
    assert float(kept.first_step(jnp.asarray(0.25, FLOAT))) == expected
    capped = search(30, 0.3, initial_guess_strategy=strategy)
    np.testing.assert_allclose(capped.first_step(jnp.asarray(0.25, FLOAT)), min(expected, 0.3))


def test_default_first_steps():
    step = jnp.asarray(0.25, FLOAT)
    assert float(eqopt.ScaleByZoomLinesearch(5).first_step(step)) == 0.25
    assert float(eqopt.linesearch.ScaleByHagerZhangLinesearch().first_step(step)) == 0.5
    assert float(eqopt.linesearch.ScaleByWolfeLinesearch().first_step(step)) == 1
    assert float(eqopt.ScaleByBacktrackingLinesearch(5).first_step(step)) == 0.375
    forgetful = eqopt.ScaleByBacktrackingLinesearch(5, increase_factor=np.inf, max_learning_rate=7)
    assert float(forgetful.first_step(step)) == 7


@pytest.mark.parametrize(
    "build,message",
    [
        (lambda: eqopt.ScaleByZoomLinesearch(0), "`max_linesearch_steps` must be from 1"),
        (lambda: eqopt.ScaleByZoomLinesearch(5, 0.0), "`max_learning_rate` must be above 0"),
        (lambda: eqopt.ScaleByZoomLinesearch(5, tol=-1.0), "`tol` must be at least 0"),
        (lambda: eqopt.ScaleByZoomLinesearch(5, increase_factor=1), "`increase_factor` must be"),
        (lambda: eqopt.ScaleByZoomLinesearch(5, slope_rtol=1), "`slope_rtol` must be at least 0"),
        (lambda: eqopt.ScaleByZoomLinesearch(5, curv_rtol=np.nan), "`curv_rtol` must be"),
        (lambda: eqopt.ScaleByZoomLinesearch(5, approx_dec_rtol=-1), "`approx_dec_rtol` must be"),
        (lambda: eqopt.ScaleByZoomLinesearch(5, stepsize_precision=-1), "`stepsize_precision`"),
        (
            lambda: eqopt.ScaleByZoomLinesearch(5, initial_guess_strategy="best"),
            "`initial_guess_strategy` must be .* got 'best'",
        ),
        (
            lambda: eqopt.linesearch.ScaleByHagerZhangLinesearch(0),
            "`max_linesearch_steps` must be from 1",
        ),
        (
            lambda: eqopt.linesearch.ScaleByHagerZhangLinesearch(slope_rtol=0.5),
            "`slope_rtol` must be above 0",
        ),
        (
            lambda: eqopt.linesearch.ScaleByHagerZhangLinesearch(curv_rtol=1),
            "`curv_rtol` must be above 0",
        ),
        (
            lambda: eqopt.linesearch.ScaleByHagerZhangLinesearch(initial_guess_strategy="two"),
            "`initial_guess_strategy` must be .* got 'two'",
        ),
        (
            lambda: eqopt.linesearch.ScaleByWolfeLinesearch(0),
            "`max_linesearch_steps` must be from 1",
        ),
        (
            lambda: eqopt.linesearch.ScaleByWolfeLinesearch(slope_rtol=0),
            "`slope_rtol` must be above 0",
        ),
        (lambda: eqopt.ScaleByBacktrackingLinesearch(-1), "`max_backtracking_steps` must be"),
        (lambda: eqopt.ScaleByBacktrackingLinesearch(5, decrease_factor=1), "`decrease_factor`"),
        (lambda: eqopt.ScaleByBacktrackingLinesearch(5, increase_factor=0.5), "`increase_factor`"),
        (lambda: eqopt.ScaleByBacktrackingLinesearch(5, max_learning_rate=0), "`max_learning_rate"),
    ],
)
def test_hyper_parameters_out_of_bounds(build: Callable[[], Any], message: str):
    with pytest.raises(ValueError, match=message):
        build()


def test_flags_are_flags():
    wrong: Any = ({"verbose": 1}, {"store_grad": "yes"})
    with pytest.raises(TypeError, match="`verbose` must be True or False"):
        eqopt.ScaleByZoomLinesearch(5, **wrong[0])
    with pytest.raises(TypeError, match="`store_grad` must be True or False"):
        eqopt.ScaleByBacktrackingLinesearch(5, **wrong[1])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("missing", ["value", "grad", "value_fn"])
def test_what_a_search_needs(name: str, missing: str):
    search, x = SEARCHES[name](), jnp.ones(2, FLOAT)
    args = {"value": rosenbrock(x), "grad": jax.grad(rosenbrock)(x), "value_fn": rosenbrock}
    with pytest.raises(ValueError, match=f"`{type(search).__name__}` needs `{missing}`"):
        search.update(x, search.init(x), x, **{k: v for k, v in args.items() if k != missing})
    with pytest.raises(ValueError, match="needs the parameters"):
        search.update(x, search.init(x), **args)
