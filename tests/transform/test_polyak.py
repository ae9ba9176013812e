"""Polyak's step size: against optax, and where optax is wrong, against the formula."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqopt
from tests.support.toolbox import assert_close, finite, FLOAT, X64
from tests.support.trees import assert_near, conj, random_array, random_like, random_tree

TOLERANCE = 1e-12 if X64 else 5e-6
NUM_STEPS = 20
VARIANTS = ("sps", "sps+")
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def _hyper(rng: np.random.Generator) -> dict[str, Any]:
    numbers = {
        "f_min": rng.uniform(-1, 1),
        "max_learning_rate": 10 ** rng.uniform(-3, 0),
        "eps": 10 ** rng.uniform(-8, 1),
    }
    return {name: FLOAT(x) for name, x in numbers.items()}


def _tree(rng: np.random.Generator) -> dict[str, Any]:
    found = random_tree(rng, FLOAT)
    found["complex"] = random_array(rng, (3, 2), np.result_type(FLOAT, np.complex64))
    return jax.tree.map(jnp.asarray, found)


@every_variant
@pytest.mark.parametrize("draw", range(6))
def test_updates_equal_those_of_optax(variant: str, draw: int):
    rng = np.random.default_rng(draw)
    hyper, gradients = _hyper(rng), _tree(rng)
    ours = eqopt.ScaleByPolyak(**hyper, variant=variant)
    theirs = optax.scale_by_polyak(**hyper, variant=variant)
    # Below the least value too, where the two variants differ.
    for value in (-2.0, float(hyper["f_min"]), 0.1, 50.0):
        value = jnp.asarray(value, FLOAT)
        left, state = ours.update(gradients, ours.init(gradients), value=value)
        with jax.numpy_dtype_promotion("standard"):
            right, _ = theirs.update(conj(gradients), theirs.init(gradients), value=value)
        assert jax.tree.leaves(state) == []
        signs = [np.sign(np.real(x)) * np.sign(np.real(y)) for x, y in _pairs(left, right)]
        assert all(np.all(x >= 0) for x in signs)
        for x, y in _pairs(left, right):
            np.testing.assert_allclose(x, y, rtol=TOLERANCE, atol=0)


def _pairs(left: Any, right: Any) -> list[Any]:
    return list(zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))


@every_variant
def test_trajectories_equal_those_of_optax(variant: str):
    rng = np.random.default_rng(0)
    params = _tree(rng)
    target = jax.tree.map(jnp.asarray, random_like(rng, params))
    hyper = {"max_learning_rate": 0.4, "f_min": 0.5, "eps": 0.01, "variant": variant}

    def loss(p: Any) -> Any:
        terms = jax.tree.map(lambda a, b: jnp.sum(jnp.square(jnp.abs(a - b))), p, target)
        return sum(jax.tree.leaves(terms))

    def run(opt: Any, apply: Any, turn: Any) -> Any:
        def step(carry: Any, _: None) -> Any:
            x, state = carry
            value, gradient = jax.value_and_grad(loss)(x)
            updates, state = opt.update(turn(gradient), state, x, value=value)
            return (apply(x, updates), state), value

        return jax.lax.scan(step, (params, opt.init(params)), None, NUM_STEPS)

    (ours, _), values = run(eqopt.PolyakSGD(**hyper), eqopt.apply_updates, lambda g: g)
    with jax.numpy_dtype_promotion("standard"):
        (theirs, _), their_values = run(optax.polyak_sgd(**hyper), optax.apply_updates, conj)
    np.testing.assert_allclose(values, their_values, rtol=10 * TOLERANCE)
    assert_near(ours, theirs, 10 * TOLERANCE)


def test_a_parabola_is_halved():
    """Polyak's step is half the one to the minimum: the value is quartered, as in optax's docs."""
    opt, x = eqopt.PolyakSGD(), jnp.asarray([1.0, 2.0, 3.0], FLOAT)
    state, seen = opt.init(x), []
    for _ in range(6):
        x, state, evaluation = opt.step(lambda x: jnp.sum(x**2), x, state)
        seen.append(float(evaluation.value))
    np.testing.assert_allclose(seen, 14 * 0.25 ** np.arange(6), rtol=TOLERANCE)


@pytest.mark.parametrize("scaling", [0.25, 1.0, 1.5])
@pytest.mark.parametrize("max_learning_rate", [0.01, 10.0])
def test_scaling_multiplies_the_step(scaling: float, max_learning_rate: float):
    params, value = jnp.asarray([3.0, 4.0], FLOAT), jnp.asarray(5.0, FLOAT)
    opt = eqopt.PolyakSGD(max_learning_rate, scaling, f_min=1.0, eps=15.0)
    updates, _ = opt.update(params, opt.init(params), params, value=value)
    rate = min((5 - 1) / (25 + 15), max_learning_rate)
    assert_close(updates, -FLOAT(scaling) * FLOAT(rate) * params, 1e-6)


def test_scaling_may_follow_a_schedule():
    opt = eqopt.PolyakSGD(scaling=eqopt.Linear(1.0, 0.0, 4))
    g, value = jnp.asarray([3.0, 4.0], FLOAT), jnp.asarray(5.0, FLOAT)
    state = opt.init(g)
    for t in range(6):
        updates, state = opt.update(g, state, g, value=value)
        assert_close(updates, -FLOAT(max(1 - t / 4, 0) / 5) * g, 1e-6)


@every_variant
@pytest.mark.parametrize("eps", [0.0, 1e-20, 0.1])
def test_a_zero_gradient_is_no_step_and_has_a_derivative(variant: str, eps: float):
    opt = eqopt.ScaleByPolyak(eps=eps, variant=variant)
    zeros = jnp.zeros(3, FLOAT)

    @jax.jit
    def run(g: Any, value: Any) -> Any:
        return jnp.sum(opt.update(g, opt.init(g), value=value)[0])

    updates, _ = opt.update(zeros, opt.init(zeros), value=1.0)
    np.testing.assert_array_equal(updates, zeros)
    assert finite(jax.grad(run, (0, 1))(zeros, jnp.asarray(1.0, FLOAT)))


def test_a_gradient_that_is_next_to_nothing_is_no_step():
    # As in optax: the square of its norm is compared with 2**-52, in every dtype.
    for size, moves in ((1.4e-8, False), (1.6e-8, True)):
        g = jnp.asarray([size, 0.0], FLOAT)
        ours, _ = eqopt.ScaleByPolyak().update(g, eqopt.states.EmptyState(), value=1.0)
        theirs, _ = optax.scale_by_polyak().update(g, optax.EmptyState(), value=1.0)
        for x, y in _pairs(ours, theirs):
            np.testing.assert_allclose(x, y, rtol=TOLERANCE)
        assert bool(jnp.any(ours != 0)) is moves


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
def test_the_norm_of_half_precision_does_not_overflow(dtype: Any):
    g = jnp.full(400, 300.0, dtype)  # 3.6e7, where float16 ends at 65504
    updates, _ = eqopt.ScaleByPolyak().update(g, eqopt.states.EmptyState(), value=1.2e5)
    assert updates.dtype == dtype
    np.testing.assert_allclose(updates.astype(np.float32), 1.0, rtol=1e-2)


@pytest.mark.parametrize("cls", [eqopt.ScaleByPolyak, eqopt.PolyakSGD])
def test_mistakes_are_named(cls: Any):
    with pytest.raises(ValueError, match=r"`variant` must be 'sps' or 'sps\+'; got 'max'"):
        cls(variant="max")
    with pytest.raises(ValueError, match="`max_learning_rate` must be above 0"):
        cls(max_learning_rate=0.0)
    g = jnp.ones(2, FLOAT)
    opt = cls()
    with pytest.raises(ValueError, match="`ScaleByPolyak` needs `value`"):
        opt.update(g, opt.init(g), g)
