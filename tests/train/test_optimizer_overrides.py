"""Hyper-parameters for one step: by which names, at what cost, and which are refused."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import eqopt
from eqopt import ByPath, Optimizer
from eqopt._base.converters import canonicalize
from tests.support.evaluations import Calls
from tests.support.toolbox import assert_close, complaint, FLOAT, same, Tally, Traced, tree

SCHEDULE = eqopt.Linear(init_value=0.1, end_value=0.01, transition_steps=5)


def quadratic(params: Any) -> Array:
    return sum((jnp.sum(x**2 + x) for x in jax.tree.leaves(params)), start=jnp.zeros((), FLOAT))


def test_an_override_is_for_one_step():
    opt = eqopt.AdamW(0.1)
    optimizer = Optimizer.create(opt, tree())
    _, grads = optimizer.compute_gradient(quadratic)
    once = optimizer.apply_gradient(grads, learning_rate=0.5, b1=0.3)
    as_replaced = Optimizer(
        opt.replace(learning_rate=0.5, b1=0.3), optimizer.state, tree()
    ).apply_gradient(grads)
    assert same((once.target, once.state), (as_replaced.target, as_replaced.state))
    assert not same(once.target, optimizer.apply_gradient(grads).target)
    assert same(once.transformation, opt)
    twice = once.apply_gradient(grads)
    expected = Optimizer(opt, once.state, once.target).apply_gradient(grads)
    assert same(twice.target, expected.target)


def test_optimize_takes_overrides():
    optimizer = Optimizer.create(eqopt.SGD(0.1), tree())
    value, grads = optimizer.compute_gradient(quadratic)
    after, found = optimizer.optimize(quadratic, learning_rate=0.7)
    given = optimizer.apply_gradient(grads, learning_rate=0.7)
    assert_close(after.target, given.target)
    assert_close(found, value)


def test_a_new_learning_rate_never_recompiles():
    tally = Tally()
    opt = eqopt.Chain(Traced(tally), eqopt.SGD(1.0))
    params = jnp.zeros(2, FLOAT)
    optimizer = Optimizer.create(opt, params)
    rates = [0.001 * (i + 1) for i in range(100)]
    for i, rate in enumerate(rates):
        kinds = (rate, np.float64(rate), jnp.asarray(rate), np.asarray(rate, np.float32))
        optimizer = optimizer.apply_gradient(jnp.ones(2, FLOAT), learning_rate=kinds[i % 4])
    assert tally.num == 1
    np.testing.assert_allclose(optimizer.target, -sum(rates), rtol=1e-5)
    optimizer = optimizer.apply_gradient(jnp.ones(2, FLOAT))
    assert tally.num == 1


def test_a_new_learning_rate_never_recompiles_a_loss():
    calls = Calls()

    def fn(params: Array) -> Array:
        return calls.counted(jnp.sum(params**2))

    optimizer = Optimizer.create(eqopt.SGD(1.0), jnp.ones(2, FLOAT))
    for i in range(20):
        optimizer, _ = optimizer.optimize(fn, learning_rate=0.001 * i)
    assert calls.traces == 1


def test_a_number_in_place_of_a_schedule():
    tally = Tally()
    opt = eqopt.Chain(Traced(tally), eqopt.SGD(SCHEDULE))
    optimizer = Optimizer.create(opt, jnp.zeros(2, FLOAT))
    moved: list[float] = []
    for rate in (None, 0.5, None, 0.25, 0.125, None):
        before = optimizer.target
        given = {} if rate is None else {"learning_rate": rate}
        optimizer = optimizer.apply_gradient(jnp.ones(2, FLOAT), **given)
        moved.append(float((before - optimizer.target)[0]))
    # The schedule's count goes on: 0, 2 and 5 steps have been taken before its turns.
    expected = [float(SCHEDULE(0)), 0.5, float(SCHEDULE(2)), 0.25, 0.125, float(SCHEDULE(5))]
    np.testing.assert_allclose(moved, expected, rtol=1e-5)
    assert tally.num == 2


def test_an_override_has_the_last_word_over_scheduled():
    def decay(count: Array) -> Array:
        return 0.5 * jnp.ones(())

    plain = eqopt.AdamW(0.1)
    scheduled = eqopt.Scheduled(plain, lambda opt: opt.weight_decay, decay)
    nested = eqopt.Scheduled(scheduled, lambda opt: opt.inner.b1, lambda count: 0.2)
    expected = Optimizer.create(plain.replace(weight_decay=0.25, b1=0.75), tree())
    expected = expected.apply_gradient(tree(5)).target
    optimizer = Optimizer.create(eqopt.Chain(nested), tree())
    found = optimizer.apply_gradient(tree(5), weight_decay=0.25, b1=0.75).target
    assert_close(found, expected)
    assert (
        float(jnp.max(jnp.abs(optimizer.apply_gradient(tree(5)).target["a"] - found["a"]))) > 0.01
    )
    within = eqopt.Scheduled(
        eqopt.SGD(SCHEDULE), lambda opt: opt.learning_rate.init_value, lambda count: 0.5
    )
    optimizer = Optimizer.create(within, tree())
    message = complaint(TypeError, optimizer.apply_gradient, tree(5), learning_rate=0.1)
    assert "is a schedule, and `Scheduled` sets one of its numbers" in message


NAMED = eqopt.NamedChain(clip=eqopt.ClipByGlobalNorm(1.0), opt=eqopt.AdamW(0.1))
CHAIN = eqopt.Chain(eqopt.ClipByGlobalNorm(1.0), eqopt.AdamW(0.1))
EMA = eqopt.ParamEMA(CHAIN, 0.9, debias=False)
GROUPS = eqopt.Partition({"a": eqopt.SGD(0.1), "b": eqopt.SGD(0.2)}, {"a": "a", "branch": "b"})


@pytest.mark.parametrize(
    ("opt", "changes", "where"),
    [
        (CHAIN, {"max_norm": 0.5}, lambda t: t.links[0].max_norm),
        (CHAIN, {"links[1].b1": 0.5}, lambda t: t.links[1].b1),
        (NAMED, {"max_norm": 0.5}, lambda t: t.links["clip"].max_norm),
        (NAMED, {"weight_decay": 0.5}, lambda t: t.links["opt"].weight_decay),
        (GROUPS, {"transforms['b'].learning_rate": 0.5}, lambda t: t.transforms["b"].learning_rate),
        (EMA, {"decay": 0.5}, lambda t: t.decay),
        (EMA, {"eps": 0.5}, lambda t: t.inner.links[1].eps),
        (
            eqopt.Masked(eqopt.SGD(0.1), ByPath("a")),
            {"learning_rate": 0.5},
            lambda t: t.inner.learning_rate,
        ),
    ],
)
def test_names(opt: Any, changes: dict[str, float], where: Any):
    optimizer = Optimizer.create(opt, tree())
    found = optimizer.apply_gradient(tree(5), **changes)
    changed = eqx.tree_at(where, opt, 0.5)
    expected = Optimizer(changed, optimizer.state, tree()).apply_gradient(tree(5))
    assert same((found.target, found.state), (expected.target, expected.state))
    before = optimizer.apply_gradient(tree(5))
    assert not same((found.target, found.state), (before.target, before.state))
    kept = optimizer.replace(**changes)
    assert same(kept.transformation, canonicalize(changed))


@pytest.mark.parametrize(
    ("opt", "changes", "words"),
    [
        (
            eqopt.SGD(0.1),
            {"lr": 1.0},
            ["`SGD` has no numeric hyper-parameter `lr`", "`learning_rate`"],
        ),
        (eqopt.SGD(0.1), {"nesterov": True}, ["no numeric hyper-parameter `nesterov`"]),
        (eqopt.Identity(), {"lr": 1.0}, ["`Identity` has", "it has none"]),
        (CHAIN, {"lr": 1.0}, ["`Chain` has no", "`links[0].max_norm`", "`links[1].eps`"]),
        (
            GROUPS,
            {"learning_rate": 1.0},
            ["2 hyper-parameters `learning_rate`", "`transforms['a'].learning_rate`"],
        ),
        (CHAIN, {"b1": 0.5, "links[1].b1": 0.5}, ["`links[1].b1` is given twice"]),
        (
            eqopt.SGD(0.1),
            {"learning_rate": "fast"},
            ["`learning_rate` must be a number; got a str"],
        ),
        (eqopt.SGD(0.1), {"learning_rate": True}, ["`learning_rate` must be a number; got a bool"]),
        (eqopt.SGD(0.1), {"learning_rate": SCHEDULE}, ["must be a number; got a Linear"]),
        (eqopt.SGD(0.1), {"momentum": 0.9}, ["`state.states[0]` is a `EmptyState`"]),
    ],
)
def test_a_bad_override_is_named(opt: Any, changes: dict[str, Any], words: list[str]):
    optimizer = Optimizer.create(opt, tree())
    for call in (optimizer.apply_gradient, lambda _, **x: optimizer.optimize(quadratic, **x)):
        message = complaint(TypeError, call, tree(), **changes)
        assert all(word in message for word in words), message


def test_a_bad_value_is_named():
    optimizer = Optimizer.create(eqopt.SGD(0.1), tree())
    message = complaint(ValueError, optimizer.apply_gradient, tree(), learning_rate=-1.0)
    assert "`learning_rate` must be at least 0; got -1" in message
    message = complaint(ValueError, optimizer.apply_gradient, tree(), learning_rate=jnp.ones(2))
    assert "`learning_rate` must be one number" in message
