"""`minimize`: one loop, to convergence, that says how it ended."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jaxtyping import Array

import eqopt
from eqopt import MinimizeResult
from tests.support.evaluations import Calls
from tests.support.toolbox import assert_close, FLOAT, X64

CALLS = Calls()
TIGHT = 1e-8 if X64 else 1e-3


def rosenbrock(x: Array) -> Array:
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def counted(x: Array) -> Array:
    return rosenbrock(CALLS.counted(x))


def quadratic(x: Array, scale: Array, center: Array) -> Array:
    return jnp.sum(scale * jnp.square(x - center)) / 2


SCALE = np.array([1.0, 10.0, 100.0], FLOAT)
CENTER = np.array([1.0, -2.0, 3.0], FLOAT)
START = np.full(4, -1.0, FLOAT)


def backtracking(**kwargs: Any) -> Any:
    return eqopt.Chain(eqopt.SGD(1.0), eqopt.ScaleByBacktrackingLinesearch(30, **kwargs))


OPTIMIZERS = {
    "L-BFGS": eqopt.LBFGS,
    "BFGS": eqopt.BFGS,
    "CG": lambda: eqopt.NonlinearCG(),
    "backtracking": lambda: backtracking(store_grad=True),
    "backtracking-values": backtracking,
    "zoom": lambda: eqopt.LBFGS(linesearch=eqopt.ScaleByZoomLinesearch(20)),
    "Hager-Zhang": lambda: eqopt.LBFGS(linesearch=eqopt.linesearch.ScaleByHagerZhangLinesearch()),
    "masked": lambda: eqopt.Masked(eqopt.LBFGS(), eqopt.ByPath("**")),
    "Adam": lambda: eqopt.Adam(0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_kind_of_optimizer_converges_on_a_quadratic(name: str):
    x = jnp.zeros(3, FLOAT)
    solution = eqopt.minimize(quadratic, OPTIMIZERS[name](), x, (SCALE, CENTER), gtol=1e-3)
    assert solution.result == MinimizeResult.successful
    np.testing.assert_allclose(solution.params, CENTER, atol=2e-3)
    np.testing.assert_allclose(solution.grad, SCALE * (solution.params - CENTER), atol=1e-4)
    assert solution.stats["grad_norm"] == jnp.max(jnp.abs(solution.grad)) <= 1e-3
    assert solution.value.dtype == FLOAT and solution.num_steps.dtype == np.int32


@pytest.mark.parametrize("name", ["L-BFGS", "BFGS", "zoom", "Hager-Zhang"])
def test_rosenbrock_as_scipy_finds_it(name: str):
    both = jax.jit(jax.value_and_grad(rosenbrock))
    reference = scipy.optimize.minimize(
        lambda x: [np.asarray(y, np.float64) for y in both(jnp.asarray(x, FLOAT))],
        START,
        jac=True,
        tol=1e-10,
    )
    solution = eqopt.minimize(rosenbrock, OPTIMIZERS[name](), jnp.asarray(START), gtol=TIGHT)
    np.testing.assert_allclose(solution.params, reference.x, atol=1e-5 if X64 else 1e-2)


def test_the_objective_is_traced_once_and_then_never():
    CALLS.reset()
    data = jnp.asarray(START)
    for i in range(3):
        eqopt.minimize(lambda x, s: counted(x - s), eqopt.LBFGS(), data, (data + i,), throw=False)
        assert CALLS.traces == 1
    for rate in (0.1, 0.2):
        eqopt.minimize(counted, eqopt.LBFGS(rate), data, max_steps=3, gtol=rate, throw=False)
    assert CALLS.traces == 2


def test_with_aux_the_objective_is_traced_once_too():
    def objective(x: Array) -> Any:
        return counted(x), {"twice": 2 * x, "number": 3}

    CALLS.reset()
    solution = eqopt.minimize(objective, eqopt.LBFGS(), jnp.asarray(START), has_aux=True)
    assert CALLS.traces == 1
    assert_close(solution.aux["twice"], 2 * solution.params, 0)
    assert solution.aux["number"] == 3


@pytest.mark.parametrize("name", ["L-BFGS", "BFGS", "backtracking", "masked"])
def test_evaluations_are_counted(name: str):
    x = jnp.asarray(START)
    CALLS.reset()
    solution = eqopt.minimize(counted, OPTIMIZERS[name](), x, max_steps=20, throw=False)
    jax.effects_barrier()
    assert CALLS.evaluations == solution.num_evals > solution.num_steps > 3


def test_256_starts_wait_for_nobody():
    starts = jax.random.uniform(jax.random.key(0), (256, 10), FLOAT, -2, 2)

    def run(x: Array) -> Any:
        return eqopt.minimize(counted, eqopt.LBFGS(), x, gtol=1e-3, throw=False)

    CALLS.reset()
    together = jax.jit(jax.vmap(run))(starts)
    jax.block_until_ready(together.params)
    jax.effects_barrier()
    assert CALLS.evaluations == jnp.max(together.num_evals)
    # Alone each lane takes the same path, but for rounding, which a long path magnifies.
    alone = jax.jit(run)
    differ = 0
    for i in range(0, 256, 16):
        one = alone(starts[i])
        evals, others = int(one.num_evals), int(together.num_evals[i])
        differ += abs(evals - others) > 0.2 * evals
    assert differ <= 4
    solved = together.result == MinimizeResult.successful
    assert jnp.mean(solved.astype(FLOAT)) > 0.9
    assert jnp.all(together.stats["grad_norm"][solved] <= 1e-3)


def test_the_state_goes_on():
    opt, x = eqopt.LBFGS(), jnp.asarray(START)
    first = eqopt.minimize(counted, opt, x, max_steps=5, throw=False)
    jax.effects_barrier()
    before = CALLS.evaluations
    x, state, evaluation = opt.step(counted, first.params, first.state)
    jax.effects_barrier()
    search = state.states[2]
    assert isinstance(search, eqopt.states.LinesearchState)
    assert CALLS.evaluations - before == search.info.num_linesearch_steps
    assert evaluation.value == first.value
    assert rosenbrock(x) < first.value


def test_it_takes_the_steps_that_step_takes():
    opt, x = eqopt.LBFGS(), jnp.asarray(START)
    solution = eqopt.minimize(rosenbrock, opt, x, max_steps=8, history=True, throw=False)
    state, values = opt.init(x), []
    for _ in range(8):
        x, state, evaluation = opt.step(rosenbrock, x, state)
        values.append(evaluation.value)
    rtol = 1e-8 if X64 else 1e-2
    np.testing.assert_allclose(solution.stats["values"][:8], values, rtol=rtol)
    np.testing.assert_allclose(solution.params, x, rtol=rtol)
    assert solution.stats["values"][8] == solution.value


def test_whole_models():
    x = jnp.linspace(-1, 1, 20, dtype=FLOAT)[:, None]
    model = eqx.nn.MLP(1, 1, 6, 1, dtype=FLOAT, key=jax.random.key(0))

    def loss(model: eqx.nn.MLP, x: Array, y: Array) -> Array:
        return jnp.mean(jnp.square(jax.vmap(model)(x) - y))

    y = jnp.sin(3 * x)
    solution = eqopt.minimize(loss, eqopt.LBFGS(), model, (x, y), max_steps=100, throw=False)
    assert type(solution.params) is eqx.nn.MLP
    assert solution.params.activation is model.activation
    assert loss(solution.params, x, y) == pytest.approx(float(solution.value), rel=1e-4)
    assert solution.value < 0.05 * loss(model, x, y)


# How it ends.


def _end(fn: Any, x: Any, optimizer: Any = None, **kwargs: Any) -> str:
    """The message of the result."""
    opt = eqopt.LBFGS() if optimizer is None else optimizer
    solution = eqopt.minimize(fn, opt, jnp.asarray(x, FLOAT), throw=False, **kwargs)
    return MinimizeResult[solution.result]


@jax.custom_jvp
def wrong(x: Array) -> Array:
    return jnp.sum(jnp.square(x)) + 1


@wrong.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return wrong(*primals), -2 * jnp.sum(primals[0] * tangents[0])


def test_reasons():
    assert _end(rosenbrock, START) == MinimizeResult[MinimizeResult.successful]
    assert _end(rosenbrock, np.ones(4)) == MinimizeResult[MinimizeResult.successful]
    assert _end(rosenbrock, START, max_steps=3) == MinimizeResult[MinimizeResult.max_steps]
    assert _end(rosenbrock, START, max_evals=3) == MinimizeResult[MinimizeResult.max_evals]
    assert (
        _end(rosenbrock, START, ftol=0.5, gtol=0.0) == MinimizeResult[MinimizeResult.small_decrease]
    )
    assert _end(rosenbrock, START, xtol=0.5, gtol=0.0) == MinimizeResult[MinimizeResult.small_step]
    assert (
        _end(lambda x: jnp.sum(jnp.log(x)), -np.ones(3)) == MinimizeResult[MinimizeResult.nonfinite]
    )
    assert _end(wrong, np.ones(3)) == MinimizeResult[MinimizeResult.no_decrease]


@pytest.mark.parametrize("name", ["L-BFGS", "CG"])
def test_a_gradient_that_is_nowhere_zero_in_floating_point(name: str):
    # The minimum is half way between two neighbours, and no number lies there.
    low = np.full(4, 1000, FLOAT)
    high = np.nextafter(low, FLOAT(2000))

    def between(x: Array) -> Array:
        return jnp.sum(jnp.square(x - low) + jnp.square(x - high))

    end = _end(between, START, OPTIMIZERS[name](), gtol=0.0)
    assert end == MinimizeResult[MinimizeResult.precision]


@pytest.mark.parametrize("name", ["L-BFGS", "CG"])
def test_a_gradient_that_rounding_does_not_let_vanish(name: str):
    # The value is so large that its digits end long before the gradient is as small as asked.
    def lifted(x: Array) -> Array:
        return 1 + 1e-3 * rosenbrock(x)

    # An end by precision is none that `minimize` raises.
    solution = eqopt.minimize(lifted, OPTIMIZERS[name](), jnp.full(10, -1.2, FLOAT), gtol=0.0)
    assert solution.num_steps < 1500
    assert solution.value <= 1 + 1e-5


def test_max_steps_of_zero_evaluates_once():
    solution = eqopt.minimize(
        rosenbrock, eqopt.LBFGS(), jnp.asarray(START), max_steps=0, throw=False
    )
    assert solution.num_evals == 1 and solution.num_steps == 0
    np.testing.assert_allclose(solution.value, rosenbrock(jnp.asarray(START)), rtol=1e-6)


def test_failures_raise_and_say_what_to_try():
    x = jnp.asarray(START)
    with pytest.raises(RuntimeError, match=r"(?s)max_steps.*Allow more.*throw=False") as caught:
        eqopt.minimize(rosenbrock, eqopt.LBFGS(), x, max_steps=3)
    assert len(str(caught.value).splitlines()) <= 10
    with pytest.raises(Exception, match="max_steps"):
        jax.jit(lambda x: eqopt.minimize(rosenbrock, eqopt.LBFGS(), x, max_steps=3).params)(x)
    with pytest.raises(Exception, match="max_steps"):
        starts = jnp.stack([jnp.ones(4, FLOAT), x])
        eqx.filter_vmap(lambda x: eqopt.minimize(rosenbrock, eqopt.LBFGS(), x, max_steps=3))(starts)


def test_mistakes_are_named():
    x, opt = jnp.asarray(START), eqopt.LBFGS()
    not_a_tuple: Any = SCALE
    not_an_optimizer: Any = "L-BFGS"
    with pytest.raises(TypeError, match="`args` must be a tuple"):
        eqopt.minimize(quadratic, opt, x, not_a_tuple)
    with pytest.raises(ValueError, match="no inexact array"):
        eqopt.minimize(rosenbrock, opt, jnp.arange(3))
    with pytest.raises(TypeError, match="`optimizer` must be a transformation"):
        eqopt.minimize(rosenbrock, not_an_optimizer, x)
    with pytest.raises(ValueError, match="`gtol` must be at least 0"):
        eqopt.minimize(rosenbrock, opt, x, gtol=-1.0)
    with pytest.raises(ValueError, match="`max_steps`"):
        eqopt.minimize(rosenbrock, opt, x, max_steps=-1)
    with pytest.raises(TypeError, match="has_aux"):
        eqopt.minimize(lambda x: (rosenbrock(x), x), opt, x)
    with pytest.raises(TypeError, match="one real floating-point number"):
        eqopt.minimize(lambda x: x, opt, x)


def test_progress_is_shown():
    class Bar(eqopt.writing.AbstractProgress):
        def __init__(self) -> None:
            self.seen: list[tuple[int, str]] = []

        def start(self, total: int | None) -> None:
            self.seen.append((-1, ""))

        def update(self, steps: int, message: str) -> None:
            self.seen.append((steps, message))

        def close(self) -> None:
            self.seen.append((-2, ""))

    bar = Bar()
    x = jnp.zeros(3, FLOAT)
    solution = eqopt.minimize(quadratic, eqopt.LBFGS(), x, (SCALE, CENTER), progress=bar)
    steps = [step for step, _ in bar.seen]
    assert steps[0] == -1 and steps[-1] == -2
    assert sorted(steps[1:-1]) == list(range(int(solution.num_steps) + 1))
    assert "value" in bar.seen[1][1]


def test_bfloat16_parameters_and_a_float32_objective():
    x = jnp.zeros(3, jnp.bfloat16)

    def objective(x: Array) -> Array:
        return jnp.sum(jnp.square(x.astype(np.float32) - jnp.asarray([1.0, 2.0, 3.0], np.float32)))

    solution = eqopt.minimize(objective, eqopt.LBFGS(), x, gtol=1e-2, throw=False)
    assert solution.params.dtype == jnp.bfloat16 and solution.value.dtype == np.float32
    np.testing.assert_allclose(solution.params.astype(np.float32), [1, 2, 3], atol=0.02)
    assert objective(solution.params) == solution.value
