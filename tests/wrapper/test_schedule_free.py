"""Schedule-free optimizers: optax's trajectories without a warmup, the authors' rule with one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from optax import contrib

import eqopt
from tests.support.toolbox import assert_close, FLOAT, same, tree, types, X64
from tests.support.trees import assert_near, conj, random_run

NUM_STEPS = 60
TOLERANCE = 1e-12 if X64 else 5e-6


def _run(tx: Any, apply: Any, evaluate: Any, params: Any, grads: Any) -> Any:
    """The points at which gradients are taken, and those to evaluate at."""

    def step(carry: Any, grad: Any) -> Any:
        params, state = carry
        updates, state = tx.update(grad, state, params)
        params = apply(params, updates)
        return (params, state), (params, evaluate(params, state))

    return lax.scan(step, (params, tx.init(params)), grads)[1]


def _ours(opt: Any) -> Callable[[Any, Any], Any]:
    return jax.jit(lambda *args: _run(opt, eqopt.apply_updates, eqopt.eval_params, *args))


# Without a warmup, optax.

_PAIRS = {
    "sgd": (
        lambda: eqopt.ScheduleFreeSGD(0.3, b1=0.8),
        lambda: contrib.schedule_free_sgd(0.3, b1=0.8),
    ),
    "sgd-decay": (
        lambda: eqopt.ScheduleFreeSGD(0.3, weight_decay=0.1, weight_lr_power=0.0),
        lambda: contrib.schedule_free_sgd(0.3, weight_decay=0.1, weight_lr_power=0.0),
    ),
    # Not `b2=0.999`: in float32 optax's `1 - b2**count` is 1e-5 off.
    "adamw": (
        lambda: eqopt.ScheduleFreeAdamW(0.05, None, 0.9, 0.9, 1e-6, 0.1, 1.5),
        lambda: contrib.schedule_free_adamw(0.05, None, 0.9, 0.9, 1e-6, 0.1, 1.5),
    ),
    "wrapper": (
        lambda: eqopt.ScheduleFree(eqopt.Lion(0.02), 0.1, 0.7, 3.0),
        lambda: contrib.schedule_free(optax.lion(0.02), 0.1, 0.7, 3.0),
    ),
}


@pytest.mark.parametrize("name", _PAIRS)
def test_trajectories_equal_those_of_optax(name: str):
    ours, theirs = (make() for make in _PAIRS[name])

    def evaluate(params: Any, state: Any) -> Any:
        return contrib.schedule_free_eval_params(state, params)

    @jax.jit
    def run_theirs(params: Any, grads: Any) -> Any:
        return _run(theirs, optax.apply_updates, evaluate, params, conj(grads))

    params, grads = random_run(0, NUM_STEPS, FLOAT)
    if name == "adamw" or name == "wrapper":
        # optax's state is real or complex, as the first of the leaves is.
        del params["complex"], grads["complex"]
    with jax.numpy_dtype_promotion("standard"):
        expected = run_theirs(params, grads)
    assert_near(_ours(ours)(params, grads), expected, TOLERANCE)


# With one, the authors' own code, written out.


def _reference(
    y: np.ndarray,
    grads: np.ndarray,
    lr: float,
    warmup_steps: int,
    b1: float,
    weight_decay: float,
    power: float,
    adam: tuple[float, float] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """`sgd_schedulefree.py` and `adamw_schedulefree.py` of facebookresearch/schedule_free.

    Where they divide by `b1` to evaluate, the average is kept here beside the rest.
    """
    x, z, nu = y.copy(), y.copy(), np.zeros_like(y)
    weight_sum, lr_max, ys, xs = 0.0, 0.0, [], []
    for k, raw in enumerate(grads):
        rate = lr * ((k + 1) / warmup_steps if k < warmup_steps else 1.0)
        lr_max = max(rate, lr_max)
        weight = lr_max**power
        weight_sum += weight
        ckp1 = weight / weight_sum if weight_sum else 0.0
        grad = raw
        if adam is not None:
            b2, eps = adam
            nu = b2 * nu + (1 - b2) * raw**2
            grad = raw / (np.sqrt(nu / (1 - b2 ** (k + 1))) + eps)
        grad = grad + weight_decay * y
        y = y + ckp1 * (z - y)
        y = y + rate * (b1 * (1 - ckp1) - 1) * grad
        z = z - rate * grad
        x = (1 - ckp1) * x + ckp1 * z
        ys, xs = [*ys, y], [*xs, x]
    return np.stack(ys), np.stack(xs)


@pytest.mark.parametrize("warmup_steps", [0, 1, 7, 100])
@pytest.mark.parametrize("b1", [0.0, 0.9, 0.98])
@pytest.mark.parametrize("adam", [False, True])
def test_the_warmup_is_that_of_the_authors(adam: bool, b1: float, warmup_steps: int):
    """optax takes the rate of the next step for the weights, and begins with a rate of 0."""
    rng = np.random.default_rng(warmup_steps)
    y, grads = rng.standard_normal(4), rng.standard_normal((NUM_STEPS, 4))
    if adam:
        opt: Any = eqopt.ScheduleFreeAdamW(0.05, warmup_steps, b1, 0.95, 1e-6, 0.1)
        expected = _reference(y, grads, 0.05, warmup_steps, b1, 0.1, 2.0, (0.95, 1e-6))
    else:
        opt = eqopt.ScheduleFreeSGD(0.3, warmup_steps, b1, 0.05, 1.5)
        expected = _reference(y, grads, 0.3, warmup_steps, b1, 0.05, 1.5)
    found = _run_sweep(opt, y.astype(FLOAT), grads.astype(FLOAT))
    assert_near(found, jax.tree.map(lambda v: v.astype(FLOAT), expected), TOLERANCE)


@jax.jit
def _run_sweep(opt: Any, params: Any, grads: Any) -> Any:
    return _run(opt, eqopt.apply_updates, eqopt.eval_params, params, grads)


def test_the_reference_is_kept_to_by_a_schedule_of_ones_own():
    """The rate for the weights is the base optimizer's at the same count."""
    rng = np.random.default_rng(0)
    y, grads = rng.standard_normal(4), rng.standard_normal((NUM_STEPS, 4))
    rate = eqopt.Linear(0.03, 0.3, 9)  # 0.3 * (k + 1) / 10
    opt = eqopt.ScheduleFree(eqopt.SGD(rate), rate)
    expected = _reference(y, grads, 0.3, 10, 0.9, 0.0, 2.0)
    found = _run_sweep(opt, y.astype(FLOAT), grads.astype(FLOAT))
    assert_near(found, jax.tree.map(lambda v: v.astype(FLOAT), expected), TOLERANCE)


# What optax cannot.


def test_without_interpolation_it_is_the_mean_of_the_iterates():
    """With `b1=0` optax divides by 0."""
    params, grads = random_run(1, NUM_STEPS, FLOAT)
    found, averages = _ours(eqopt.ScheduleFreeSGD(0.1, b1=0.0))(params, grads)
    plain = jax.tree.map(
        lambda p, g: p[None] - np.asarray(0.1, FLOAT) * np.cumsum(np.conj(g), 0), params, grads
    )
    assert_near(found, plain, TOLERANCE)
    steps = np.arange(1, NUM_STEPS + 1)
    means = jax.tree.map(
        lambda p: np.cumsum(p, 0) / steps.astype(FLOAT).reshape(-1, *[1] * (p.ndim - 1)), plain
    )
    assert_near(averages, means, TOLERANCE)


def test_a_rate_of_zero_averages_nothing():
    rate = eqopt.Linear(0.0, 0.5, 2)
    opt = eqopt.ScheduleFree(eqopt.SGD(rate), rate)
    params = jnp.ones(2, FLOAT)
    updates, state = opt.update(jnp.ones(2, FLOAT), opt.init(params), params)
    assert same(updates, jnp.zeros(2, FLOAT) * -1) or same(updates, jnp.zeros(2, FLOAT))
    assert same(eqopt.eval_params(params, state), params)
    updates, state = opt.update(jnp.ones(2, FLOAT), state, params)
    np.testing.assert_allclose(eqopt.eval_params(params + updates, state), 0.75, rtol=1e-6)


def test_the_average_moves_along_with_parameters_that_are_moved():
    opt = eqopt.ScheduleFreeSGD(0.3, b1=0.8)
    params = tree()
    state = opt.init(params)
    for seed in range(3):
        updates, state = opt.update(tree(seed + 7), state, params)
        params = eqopt.apply_updates(params, updates)
    away = jax.tree.map(lambda x: x + 1, params)
    expected = jax.tree.map(lambda x: x + 1, eqopt.eval_params(params, state))
    assert_close(eqopt.eval_params(away, state), expected)


def test_another_b1_keeps_the_points():
    """What moves is `y`, to between the same `z` and `x`."""
    params, before = jnp.zeros((), FLOAT), eqopt.ScheduleFreeSGD(1.0, b1=0.5)
    state = before.init(params)
    for gradient in (-1.0, -1.0):  # z = 2, x = 1.5, y = 1.75
        updates, state = before.update(jnp.asarray(gradient, FLOAT), state, params)
        params = params + updates
    assert params == 1.75 and eqopt.eval_params(params, state) == 1.5
    updates, state = before.replace(b1=0.25).update(jnp.asarray(-1.0, FLOAT), state, params)
    params = params + updates  # z = 3, x = 2, y = 2.75
    np.testing.assert_allclose((params, eqopt.eval_params(params, state)), (2.75, 2), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_memory_of_half_precision_is_what_is_asked_for(dtype: Any):
    params = tree(0, dtype)
    for asked, kept in ((None, jnp.float32), (jnp.bfloat16, jnp.bfloat16)):
        opt = eqopt.ScheduleFreeSGD(0.3, state_dtype=asked)
        state = opt.init(params)
        assert all(x.dtype == kept for x in jax.tree.leaves(state.gap))
        _, new = opt.update(tree(7, dtype), state, params)
        assert types(new) == types(state)
        assert types(eqopt.eval_params(params, new)) == types(params)


def test_mistakes():
    with pytest.raises(ValueError, match="`b1` must be at least 0 and below 1"):
        eqopt.ScheduleFree(eqopt.SGD(0.1), 0.1, 1.0)
    with pytest.raises(ValueError, match="`weight_lr_power` must be at least 0"):
        eqopt.ScheduleFreeSGD(0.1, weight_lr_power=-1.0)
    not_one: Any = optax.sgd(0.1)
    with pytest.raises(TypeError, match="`base_optimizer` must be a transformation"):
        eqopt.ScheduleFree(not_one, 0.1)
