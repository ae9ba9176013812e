"""Hutchinson's estimate, and Sophia's steps."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import eqopt
from eqopt import HutchinsonEstimatorDiagHessian
from eqopt.states import EmptyState
from eqopt.writing import AbstractTransformation, Context
from tests.support.parity import falling
from tests.support.toolbox import assert_close, FLOAT, same, Tally, tree, values, X64, Zoo, zoo_loss
from tests.support.trees import assert_near, is_matrix, random_like, random_tree

NUM_STEPS, NUM_DRAWS = (50, 3) if X64 else (12, 1)
RTOL = 1e-12 if X64 else 1e-5
KEY = np.asarray([0, 7], np.uint32)


def quadratic(params: Any, curvature: Any) -> Any:
    """Whose Hessian is diagonal, and of either sign."""
    parts = jax.tree.map(lambda x, h: jnp.sum(h * x * x) / 2, params, curvature)
    return sum(jax.tree.leaves(parts))


def estimate(opt: Any, params: Any, value_fn: Any, **extra: Any) -> Any:
    return opt.update(params, opt.init(params), params, value_fn=value_fn, **extra)[0]


# Hutchinson's estimate


@pytest.mark.parametrize("seed", range(3))
def test_a_diagonal_is_found_in_every_draw(seed: int):
    rng = np.random.default_rng(seed)
    params = random_tree(rng, FLOAT)
    curvature = random_like(rng, params)
    opt = HutchinsonEstimatorDiagHessian(jax.random.key(seed))
    found = estimate(opt, params, quadratic, curvature=curvature)
    assert_close(found, curvature, RTOL)


def test_of_a_dense_hessian_the_mean_is_the_diagonal():
    rng = np.random.default_rng(0)
    half = rng.standard_normal((6, 6)).astype(FLOAT)
    hessian = half + half.T
    params = {"a": values((2, 2), 0), "b": values((2,), 1)}

    def objective(params: Any, hessian: Any) -> Any:
        x = jnp.concatenate([params["a"].reshape(-1), params["b"]])
        return x @ hessian @ x / 2

    opt, num = HutchinsonEstimatorDiagHessian(jax.random.key(0)), 20_000

    def draw(state: Any, _: Any) -> Any:
        out, state = opt.update(params, state, params, value_fn=objective, hessian=hessian)
        return state, jnp.concatenate([out["a"].reshape(-1), out["b"]])

    _, draws = jax.jit(lambda: lax.scan(draw, opt.init(params), None, num))()
    off = hessian - np.diag(np.diag(hessian))
    deviation = np.sqrt(np.sum(off**2, 1) / num)
    assert np.all(np.abs(np.mean(draws, 0) - np.diag(hessian)) < 5 * deviation)
    # Each draw is another one, and none of them the diagonal.
    variance = np.var(np.asarray(draws), 0)
    np.testing.assert_allclose(variance, np.sum(off**2, 1), rtol=0.1)
    lagged = np.asarray(draws[1:] - draws[:-1])
    np.testing.assert_allclose(np.var(lagged, 0), 2 * np.sum(off**2, 1), rtol=0.1)


def test_complex_parameters_have_two_curvatures():
    dtype = np.complex128 if X64 else np.complex64
    z = values((3,), 0, dtype)
    real, imag = np.asarray([1.0, -2, 3], FLOAT), np.asarray([4.0, 5, -6], FLOAT)

    def objective(z: Any) -> Any:
        return jnp.sum(real * jnp.real(z) ** 2 + imag * jnp.imag(z) ** 2) / 2

    for seed in range(3):
        found = estimate(HutchinsonEstimatorDiagHessian(jax.random.key(seed)), z, objective)
        assert_close(found, jnp.asarray((real + 1j * imag).astype(dtype)), RTOL)


def test_within_a_mask_the_hessian_is_of_that_part():
    def objective(params: Any) -> Any:
        # Coupled: with both, a draw would not be the diagonal.
        return jnp.sum(params["a"] ** 2) + 5 * jnp.sum(params["a"]) * jnp.sum(params["b"])

    params = {"a": values((1,), 0), "b": values((1,), 1)}
    opt = eqopt.Masked(HutchinsonEstimatorDiagHessian(KEY), eqopt.ByPath("a"))
    found = estimate(opt, params, objective)
    np.testing.assert_allclose(found["a"], 2.0, rtol=1e-6)
    assert same(found["b"], params["b"])


def test_what_has_no_gradient_is_not_probed():
    def objective(params: Any) -> Any:
        return jnp.sum(params["a"] ** 2) + 5 * jnp.sum(params["a"]) * jnp.sum(params["b"])

    params = {"a": values((1,), 0), "b": values((1,), 1)}
    opt = HutchinsonEstimatorDiagHessian(KEY)
    given = {"a": params["a"], "b": None}
    found, _ = opt.update(given, opt.init(params), params, value_fn=objective)
    assert found["b"] is None
    np.testing.assert_allclose(found["a"], 2.0, rtol=1e-6)


def test_whole_models_have_curvature():
    model, x = Zoo(), values((2,), 5)
    opt = HutchinsonEstimatorDiagHessian()
    grads = eqx.filter_grad(zoo_loss)(model, x)
    found, _ = opt.update(grads, opt.init(model), model, value_fn=zoo_loss, x=x)
    assert jax.tree.structure(found) == jax.tree.structure(grads)
    assert all(bool(jnp.all(jnp.isfinite(h))) for h in jax.tree.leaves(found))


@pytest.mark.parametrize("opt", [HutchinsonEstimatorDiagHessian(), eqopt.Sophia(0.1)])
def test_what_it_lacks_is_named(opt: AbstractTransformation[Any]):
    params = tree()
    with pytest.raises(ValueError, match="`HutchinsonEstimatorDiagHessian` needs `value_fn`"):
        opt.update(params, opt.init(params), params)
    with pytest.raises(ValueError, match="needs the parameters"):
        opt.update(params, opt.init(params), value_fn=lambda p: jnp.sum(p["a"]))


def test_a_key_must_be_one():
    with pytest.raises(TypeError, match="`key` must be a PRNG key"):
        HutchinsonEstimatorDiagHessian(0)
    with pytest.raises(TypeError, match="`hessian_diagonal_fn` must be a transformation"):
        other: Any = optax.contrib.hutchinson_estimator_diag_hessian()
        eqopt.Sophia(0.1, hessian_diagonal_fn=other)
    with pytest.raises(ValueError, match="`update_interval` must be from 1"):
        eqopt.Sophia(0.1, update_interval=0)


# Sophia


class Given(AbstractTransformation[EmptyState]):
    """Says what the curvature is, and counts how often it is asked."""

    tally: Tally = eqx.field(static=True)

    def init_state(self, params: Any, context: Context) -> EmptyState:
        return EmptyState()

    def transform(
        self, updates: Any, state: EmptyState, params: Any, context: Context
    ) -> tuple[Any, EmptyState]:
        def count() -> None:
            self.tally.num += 1

        jax.debug.callback(count)
        return context.require("curvature", self), state


@pytest.mark.parametrize("limit", [None, 0.7])
def test_the_recursion(limit: float | None):
    b1, b2, eps, gamma, interval = 0.8, 0.6, 0.05, 0.3, 3
    tally, params = Tally(), values((4,), 0)
    opt = eqopt.ScaleBySophia(b1, b2, eps, gamma, limit, interval, Given(tally))
    state = opt.init(params)
    m, h = np.zeros(4), np.zeros(4)
    for t in range(1, 9):
        gradient, curvature = values((4,), 10 + t), values((4,), 30 + t)
        updates, state = opt.update(gradient, state, params, curvature=curvature)
        m = b1 * m + (1 - b1) * np.asarray(gradient, np.float64)
        expected = m / (1 - b1**t) / np.maximum(gamma * h, eps)
        if limit is not None:
            expected = np.clip(expected, -limit, limit)
        if (t - 1) % interval == 0:
            h = b2 * h + (1 - b2) * np.asarray(curvature, np.float64)
        np.testing.assert_allclose(updates, expected, rtol=1e-12 if X64 else 1e-5)
        np.testing.assert_allclose(state.nu, h, rtol=1e-12 if X64 else 1e-5)
    jax.effects_barrier()
    assert tally.num == 3  # in steps 1, 4 and 7


@pytest.mark.parametrize("which", ["defaults", "all"])
def test_trajectories_equal_those_of_optax(which: str):
    # Where the Hessian is diagonal, the draws do not matter.
    def ours(h: Any) -> Any:
        if which == "defaults":
            return eqopt.Sophia(h["learning_rate"])
        options = {**h, "learning_rate": falling(h["learning_rate"])}
        half = jnp.bfloat16
        return eqopt.Sophia(
            **options, weight_decay_mask=eqopt.ByNdim(2), update_interval=3, mu_dtype=half
        )

    def theirs(h: Any) -> Any:
        if which == "defaults":
            return optax.contrib.sophia(h["learning_rate"])
        options = {**h, "learning_rate": falling(h["learning_rate"])}
        half = jnp.bfloat16
        return optax.contrib.sophia(
            **options, weight_decay_mask=is_matrix, update_interval=3, mu_dtype=half
        )

    def run(make: Any, name: str, h: Any, params: Any, data: Any) -> Any:
        opt = make(h)

        def step(carry: Any, x: Any) -> Any:
            params, state = carry
            gradient, curvature = x

            def objective(p: Any) -> Any:
                return quadratic(p, curvature)

            updates, state = opt.update(gradient, state, params, **{name: objective})
            params = optax.apply_updates(params, updates)
            return (params, state), (updates, params)

        return lax.scan(step, (params, opt.init(params)), data)[1]

    for draw in range(NUM_DRAWS):
        rng = np.random.default_rng(draw)
        params = random_tree(rng, FLOAT)
        data = tuple(random_like(rng, params, leading=(NUM_STEPS,)) for _ in range(2))
        hyper = {
            "learning_rate": rng.uniform(1e-3, 0.3),
            "b1": rng.uniform(0.5, 0.99),
            "b2": rng.uniform(0.3, 0.99),
            "eps": 10 ** rng.uniform(-8, -2),
            "weight_decay": rng.uniform(1e-3, 0.1),
            "gamma": rng.uniform(0.1, 2),
            "clip_threshold": rng.uniform(0.3, 3),
        }
        h = {name: np.asarray(x, FLOAT) for name, x in hyper.items()}
        left = jax.jit(lambda *x: run(ours, "value_fn", *x))(h, params, data)
        with jax.numpy_dtype_promotion("standard"):
            right = jax.jit(lambda *x: run(theirs, "obj_fn", *x))(h, params, data)
        assert_near(left[1], right[1], 1e-12 if X64 else 2e-5)


def test_an_optimizer_is_its_links():
    params, gradient = tree(), tree(7)
    opt = eqopt.Sophia(0.1, 0.8, 0.7, 0.01, 0.02, eqopt.ByNdim(2), 0.6, None, 2)
    chain = eqopt.Chain(
        eqopt.ScaleBySophia(0.8, 0.7, 0.01, 0.6, None, 2),
        eqopt.AddDecayedWeights(0.02, eqopt.ByNdim(2)),
        eqopt.ScaleByLearningRate(0.1),
    )
    given = {"value_fn": lambda p: quadratic(p, gradient)}
    expected = chain.update(gradient, chain.init(params), params, **given)
    assert same(opt.update(gradient, opt.init(params), params, **given), expected)


def test_it_goes_down_by_step():
    hessian = np.diag(np.asarray([1.0, 10, 100], FLOAT)) + FLOAT(0.5)

    def objective(x: Any) -> Any:
        return x @ hessian @ x / 2

    opt = eqopt.Sophia(0.1, b1=0.5, b2=0.5, weight_decay=0.0, gamma=1.0, update_interval=2)
    x = jnp.ones(3, FLOAT)
    state = opt.init(x)
    for _ in range(100):
        x, state, _ = opt.step(objective, x, state)
    # Newton's step is as good for all three: the last direction alone would need a rate of 0.01.
    assert float(objective(x)) < 1e-6


def test_the_real_and_the_imaginary_part_are_two_parameters():
    dtype = np.complex128 if X64 else np.complex64
    z = values((3,), 0, dtype)
    pair = {"re": jnp.real(z), "im": jnp.imag(z)}

    def split_loss(p: Any) -> Any:
        return jnp.sum(2 * p["re"] ** 2 + 3 * p["im"] ** 4)

    def loss(z: Any) -> Any:
        return split_loss({"re": jnp.real(z), "im": jnp.imag(z)})

    opt = eqopt.Sophia(0.1, 0.8, 0.7, 0.01, 0.02, None, 0.6, 4.0, 2)
    state, split_state = opt.init(z), opt.init(pair)
    for _ in range(4):
        z, state, _ = opt.step(loss, z, state)
        pair, split_state, _ = opt.step(split_loss, pair, split_state)
        assert_close(z, lax.complex(pair["re"], pair["im"]), 1e-12 if X64 else 1e-5)
