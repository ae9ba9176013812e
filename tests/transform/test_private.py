"""Gradients of single examples, clipped, added up and hidden in noise."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqopt
from eqopt import Chain, DifferentiallyPrivateAggregate, DPSGD, NamedChain
from tests.support.per_example import a_model, clipped_sum, examples, square_loss
from tests.support.toolbox import assert_close, FLOAT, same, tree, values, X64, Zoo
from tests.support.trees import assert_near, conj, random_like

KEY = np.asarray([0, 7], np.uint32)
RTOL = 1e-12 if X64 else 5e-6


# DP-SGD


def their_dpsgd(
    learning_rate: float,
    l2_norm_clip: float,
    momentum: float | None = None,
    nesterov: bool = False,
) -> Any:
    """`optax.contrib.dpsgd`, which still wants a seed, and warns of it."""
    return optax.chain(
        optax.contrib.differentially_private_aggregate(l2_norm_clip, 0.0, jax.random.key(0)),
        optax.identity() if momentum is None else optax.trace(momentum, nesterov),
        optax.scale_by_learning_rate(learning_rate),
    )


@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.7}, {"momentum": 0.9, "nesterov": True}], ids=str
)
def test_without_noise_it_takes_the_steps_of_optax(options: dict[str, Any]):
    options = {"learning_rate": 0.3, "l2_norm_clip": 0.8, **options}
    ours = DPSGD(noise_multiplier=0.0, key=KEY, **options)
    with jax.numpy_dtype_promotion("standard"):
        theirs = their_dpsgd(**options)
        params, _ = examples(real=False)
        state, their_state = ours.init(params), theirs.init(params)
        their_update = jax.jit(theirs.update)
        for seed in range(5):
            grads = random_like(np.random.default_rng(seed), params, leading=(4,))
            updates, state = ours.update(grads, state, params)
            expected, their_state = their_update(conj(grads), their_state, params)
            assert_near(updates, expected, 1e-12 if X64 else 2e-5)


def test_it_steps_by_the_mean_of_what_is_clipped():
    params, grads = examples(real=False)
    opt = DifferentiallyPrivateAggregate(0.5, 0.0, KEY)
    updates, _ = opt.update(grads, opt.init(params), params)
    expected = jax.tree.map(lambda x: (np.conj(x) / 5).astype(x.dtype), clipped_sum(grads, 0.5))
    assert_near(updates, expected, RTOL)


@pytest.mark.parametrize("dtype", [FLOAT, jnp.bfloat16, np.complex64])
def test_the_noise_has_the_deviation_that_is_promised(dtype: Any):
    num, limit, sigma = 4, 0.5, 3.0
    params = {"a": jnp.zeros((200, 150), dtype), "b": jnp.zeros(20_000, dtype)}
    zeros = jax.tree.map(lambda x: jnp.zeros((num, *x.shape), dtype), params)
    opt = DifferentiallyPrivateAggregate(limit, sigma, jax.random.key(5))
    first, state = opt.update(zeros, opt.init(params), params)
    second, _ = opt.update(zeros, state, params)
    draws = []
    for x in (*first.values(), *second.values()):
        x = np.asarray(x).astype(np.complex128 if dtype is np.complex64 else np.float64).ravel()
        draws += [x.real, x.imag] if dtype is np.complex64 else [x]
    expected = limit * sigma / num
    for x in draws:
        # Of n draws the mean has the deviation s/sqrt(n), and their deviation s/sqrt(2n): five of
        # each, and of bfloat16 its rounding.
        assert abs(x.mean()) < 5 * expected / np.sqrt(x.size)
        assert abs(x.std() - expected) < 5 * expected / np.sqrt(2 * x.size)
        # The fourth moment of a normal distribution is three, with a deviation of sqrt(96/n).
        assert abs(np.mean((x / expected) ** 4) - 3) < 5 * np.sqrt(96 / x.size)
    # Another draw for each leaf, each part and each step.
    for i, x in enumerate(draws):
        for y in draws[:i]:
            n = min(x.size, y.size)
            assert abs(np.corrcoef(x[:n], y[:n])[0, 1]) < 5 / np.sqrt(n)


def test_a_key_decides_the_noise():
    params = values((2, 3), 0)

    def updates(key: Any) -> Any:
        opt = DifferentiallyPrivateAggregate(0.5, 1.0, key)
        return opt.update(params[None], opt.init(params), params)[0]

    typed, old = updates(jax.random.key(3)), updates(jax.random.PRNGKey(3))
    assert same(typed, old) and not same(typed, updates(jax.random.key(4)))
    assert same(updates(jax.random.key(3, impl="rbg")), updates(jax.random.key(3, impl="rbg")))
    several = eqx.filter_vmap(lambda key: updates(key))(jax.random.split(jax.random.key(0), 2))
    assert not same(several[0], several[1])


def test_what_has_no_gradient_does_not_change_the_rest():
    params, grads = examples()
    # A limit that is never met: else the others would be longer without it.
    opt = DifferentiallyPrivateAggregate(1e4, 1e-4, KEY)
    state = opt.init(params)
    expected, _ = opt.update(grads, state, params)
    updates, _ = opt.update({**grads, "kernel": None}, state, params)
    assert updates["kernel"] is None
    assert_close(updates["layers"], expected["layers"], RTOL)


# What may be given to it


def _links() -> dict[str, Callable[[Any], Any]]:
    aggregate = functools.partial(DifferentiallyPrivateAggregate, 0.5, 0.0)
    rate = eqopt.ScaleByLearningRate(0.1)
    return {
        "alone": aggregate,
        "optimizer": lambda key: DPSGD(0.1, 0.5, 0.0, key),
        "chain": lambda key: Chain(aggregate(key), rate),
        "named": lambda key: NamedChain(("private", aggregate(key)), ("a", rate)),
        "nested": lambda key: Chain(Chain(DPSGD(0.1, 0.5, 0.0, key), eqopt.Clip(1.0)), rate),
    }


LINKS = _links()


@pytest.mark.parametrize("where", LINKS)
def test_the_first_link_may_take_single_examples(where: str):
    opt = LINKS[where](KEY)
    model, x, y = a_model(), values((4, 3), 0), values((4,), 1)
    _, grads = eqopt.per_example_value_and_grad(square_loss)(model, x, y)
    updates, _ = opt.update(grads, opt.init(model), model)
    bundle = eqopt.Optimizer.create(opt, model).apply_gradient(grads)
    moved = eqopt.apply_updates(model, updates)
    assert_close(
        eqx.filter(bundle.target, eqx.is_inexact_array),
        eqx.filter(moved, eqx.is_inexact_array),
        RTOL,
    )


@pytest.mark.parametrize("where", LINKS)
def test_the_gradient_of_a_batch_is_refused(where: str):
    opt, params = LINKS[where](KEY), tree()
    state = opt.init(params)
    words = r"(?s)gradient of each example.*`updates\['a'\]` has shape \(2, 3\); expected \(num_ex"
    with pytest.raises(ValueError, match=words):
        opt.update(tree(7), state, params)
    with pytest.raises(ValueError, match=words):
        opt.step(lambda p: jnp.sum(p["a"]) + jnp.sum(p["branch"]["w"]), params, state)
    with pytest.raises(ValueError, match=words):
        eqopt.Optimizer.create(opt, params).apply_gradient(tree(7))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda opt: eqopt.ApplyIfFinite(opt, 2),
        lambda opt: eqopt.MultiSteps(opt, 2),
        lambda opt: eqopt.Masked(opt, eqopt.ByPath("**")),
        lambda opt: Chain(eqopt.Identity(), opt),
        lambda opt: Chain(eqopt.Clip(1.0), opt),
    ],
    ids=["ApplyIfFinite", "MultiSteps", "Masked", "second", "after-clip"],
)
def test_within_what_has_the_gradient_of_a_batch_it_is_refused(wrap: Any):
    opt, params = wrap(DPSGD(0.1, 0.5, 0.0, KEY)), tree()
    with pytest.raises(ValueError, match="must come first of all"):
        opt.update(tree(7), opt.init(params), params)
    # And so is what it would have wanted, by what is in front of it.
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), tree(7))
    with pytest.raises(ValueError, match=r"has shape \(2, 2, 3\); the parameter has \(2, 3\)"):
        opt.update(stacked, opt.init(params), params)


def test_other_gradients_that_do_not_fit_are_named():
    opt, params = DPSGD(0.1, 0.5, 0.0, KEY), tree()
    state, stacked = opt.init(params), jax.tree.map(lambda x: jnp.stack([x, x]), tree(7))

    def refuses(grads: Any, error: type[Exception], words: str) -> None:
        with pytest.raises(error, match=words):
            opt.update(grads, state, params)

    refuses({**stacked, "a": stacked["a"][:1]}, ValueError, r"\['b'\]` is of 2 examples; .* of 1")
    refuses(jax.tree.map(lambda x: x[:0], stacked), ValueError, "of no examples")
    refuses({**stacked, "a": jnp.ones((2, 3, 2), FLOAT)}, ValueError, r"expected \(num_examples, 2")
    refuses({**stacked, "a": jnp.ones((2, 2, 3), np.int32)}, TypeError, "is int32")
    complex_a = stacked["a"].astype(jnp.complex64)
    refuses({**stacked, "a": complex_a}, ValueError, "has dtype complex64")
    refuses({"a": stacked["a"]}, ValueError, r"missing.*`updates\['branch'\]`")
    with pytest.raises(ValueError, match="needs the parameters"):
        opt.update(stacked, state)
    nothing, _ = opt.update(None, state, params)
    assert jax.tree.leaves(nothing) == []


def test_whole_models_are_trained():
    model, opt = Zoo(), DPSGD(0.1, 0.5, 0.1, KEY, 0.9)

    def loss(model: Zoo, x: Any) -> Any:
        return jnp.sum(jnp.square(model(x)))

    _, grads = eqopt.per_example_value_and_grad(loss)(model, values((3, 2), 1))
    updates, _ = opt.update(grads, opt.init(model), model)
    moved = eqopt.apply_updates(model, updates)
    assert type(moved) is Zoo and moved.activation is model.activation
    assert not same(moved.weight, model.weight)


@pytest.mark.parametrize("key", [0, 1.5, None, "key", jnp.ones(2, FLOAT)])
def test_a_key_must_be_one(key: Any):
    with pytest.raises(TypeError, match="`key` must be a PRNG key"):
        DPSGD(0.1, 0.5, 1.0, key)


def test_several_keys_are_not_one():
    with pytest.raises(ValueError, match="`key` must be one PRNG key"):
        DPSGD(0.1, 0.5, 1.0, jax.random.split(jax.random.key(0), 3))


def test_its_numbers_are_leaves():
    params, grads = examples()
    opts: list[Any] = [DPSGD(0.1, 0.5, 0.0, KEY), DifferentiallyPrivateAggregate(0.5, 0.0, KEY)]
    for opt in opts:
        state = opt.init(params)
        assert opt.replace(l2_norm_clip=0.25).l2_norm_clip == 0.25
        half, _ = opt.replace(l2_norm_clip=1e-3).update(grads, state, params)
        quarter, _ = eqx.tree_at(lambda o: o.l2_norm_clip, opt, 5e-4).update(grads, state, params)
        # Every gradient is longer than the limit, and the sum in proportion to it.
        assert_close(half, jax.tree.map(lambda x: 2 * x, quarter), 1e-12 if X64 else 1e-5)
    with pytest.raises(ValueError, match="`l2_norm_clip` must be at least 0"):
        DPSGD(0.1, -1.0, 1.0, KEY)
    with pytest.raises(ValueError, match="`noise_multiplier` must be at least 0"):
        DifferentiallyPrivateAggregate(1.0, -1.0, KEY)
