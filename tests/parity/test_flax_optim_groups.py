"""flax.optim's optimizers of optimizers: for groups, and for directions and lengths."""

import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqopt
from eqopt import ByNdim, ByPath, flax_optim
from eqopt.flax_optim import Adam, GradientDescent, Momentum, MultiOptimizer
from tests.support.flax_rules import weight_norm
from tests.support.toolbox import assert_close, FLOAT, same, Tally, Traced, tree, X64

W, B, REST = ByPath("branch.w"), ByPath("branch.b"), ByPath("a")


# Groups


def test_what_is_in_no_group_stays():
    params, gradients = tree(), tree(7)
    bundle = MultiOptimizer((W, Adam(0.1)), (B, Momentum(0.2))).create(params)
    after = bundle.apply_gradient(gradients).target
    assert same(after["a"], params["a"])
    for leaf, opt in (("w", Adam(0.1)), ("b", Momentum(0.2))):
        own = params["branch"][leaf]
        alone = opt.create(own).apply_gradient(gradients["branch"][leaf])
        assert same(after["branch"][leaf], alone.target)


def test_a_dictionary_is_pairs():
    pairs, by_name = MultiOptimizer((W, Adam(0.1))), MultiOptimizer({W: Adam(0.1)})
    assert eqx.tree_equal(pairs, by_name)


def test_groups_may_be_masks_and_functions():
    def a(params: Any) -> Any:
        return {"a": True, "branch": False}

    params, gradients = tree(), tree(7)
    by_selector = MultiOptimizer((REST, Adam(0.1))).create(params).apply_gradient(gradients)
    for mask in (a, a(params)):
        other = MultiOptimizer((mask, Adam(0.1))).create(params).apply_gradient(gradients)
        assert same(other.target, by_selector.target)


def test_groups_that_overlap_are_refused_by_the_leaf():
    opt = MultiOptimizer((ByNdim(2), Adam(0.1)), (REST, Adam(0.1)), (W, Adam(0.1)))
    expected = (
        "`params['a']` is in more than one group: 0, 1\n"
        "`params['branch']['w']` is in more than one group: 0, 2"
    )
    with pytest.raises(ValueError, match="^" + re.escape(expected)):
        opt.create(tree())


def test_overrides_go_to_all():
    params, gradients = tree(), tree(7)
    groups = MultiOptimizer((W, Adam(123.0)), (B, Momentum()))
    wrong = groups.create(params)
    right = MultiOptimizer((W, Adam(0.1)), (B, Momentum(0.1))).create(params)
    after = wrong.apply_gradient(gradients, learning_rate=0.1)
    assert same(after.target, right.apply_gradient(gradients).target)
    assert eqx.tree_equal(after.transformation, groups)
    with pytest.raises(TypeError, match="`Momentum` has no numeric hyper-parameter `beta1`"):
        wrong.apply_gradient(gradients, learning_rate=0.1, beta1=0.5)


def test_new_rates_never_retrace():
    tally, params, gradients = Tally(), tree(), tree(7)
    opt = MultiOptimizer((W, eqopt.Chain(Adam(), Traced(tally))), (B, Momentum()))
    bundle = opt.create(params)
    for rate in (0.1, 0.2, 0.05, jnp.asarray(0.3, FLOAT)):
        bundle = bundle.apply_gradient(gradients, learning_rate=rate)
    assert tally.num == 1


def test_mistakes_are_named():
    with pytest.raises(TypeError, match=r"`groups\[1\]` must be a pair of a selector and an opt"):
        MultiOptimizer((W, Adam(0.1)), Adam(0.1))
    with pytest.raises(TypeError, match=r"`groups\[0\]\[1\]` must be a transformation; got a fl"):
        MultiOptimizer((W, 0.1))
    with pytest.raises(ValueError, match="`focus` chooses no parameter"):
        Adam(0.1).create(tree(), ByPath("nowhere", must_match=False))


# Directions and lengths


def _matrix(seed: int, *leading: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((*leading, 4, 3)).astype(FLOAT)


def _trajectory(opt: Any, params: Any, gradients: Any) -> Any:
    @eqx.filter_jit
    def steps(state: Any) -> Any:
        def step(carry: Any, g: Any) -> Any:
            params, state = carry
            updates, state = opt.update(g, state, params)
            params = eqopt.apply_updates(params, updates)
            return (params, state), params

        return jax.lax.scan(step, (params, state), gradients)[1]

    params, gradients = jax.tree.map(jnp.asarray, (params, gradients))
    return steps(opt.init(params))


def test_weight_norm_is_its_formula():
    p, gradients = _matrix(0), _matrix(1, 6)
    opt = flax_optim.WeightNorm(Momentum(0.1, 0.8), wn_decay=0.3, wn_eps=0.05)
    ours = _trajectory(opt, p, gradients)
    wide = p.astype(np.float64), gradients.astype(np.float64)
    theirs = weight_norm(*wide, 0.1, 0.8, 0.3, 0.05)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12 if X64 else 2e-5, atol=1e-12)


def test_the_axis_of_the_outputs():
    p, gradients = _matrix(0), _matrix(1, 3)
    last = _trajectory(eqopt.WeightNorm(Momentum(0.1), 0.1, axis=-1), p, gradients)
    first = _trajectory(eqopt.WeightNorm(Momentum(0.1), 0.1), p.T, gradients.transpose(0, 2, 1))
    assert_close(first, last.transpose(0, 2, 1), 1e-13 if X64 else 1e-6)


def test_only_what_has_several_numbers_for_each_output_is_taken_apart():
    params = {"kernel": jnp.ones((2, 3, 4)), "bias": jnp.ones(4), "row": jnp.ones((1, 4))}
    params = {**params, "scalar": jnp.ones(()), "other": jnp.ones((2, 2))}
    opt = eqopt.WeightNorm(eqopt.SGD(0.1), axis=-1, mask=~ByPath("other"))
    state = opt.init(params)
    assert {k: x.shape for k, x in state.scale.items() if x is not None} == {"kernel": (1, 1, 4)}
    updates, _ = opt.update(params, state, params)
    for name in params.keys() - {"kernel"}:
        assert_close(updates[name], -0.1 * params[name])


def test_the_decay_is_of_directions_only():
    params = {"w": jnp.asarray(_matrix(0)), "b": jnp.ones(3, FLOAT)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    opt = flax_optim.WeightNorm(GradientDescent(0.1), wn_decay=0.5)
    updates, state = opt.update(zeros, opt.init(params), params)
    # A shorter direction is the same weight, but for a rounding, and for the 1e-8 that is added to
    # the square of its length.
    atol = (1e-8 + float(jnp.finfo(FLOAT).eps)) * float(jnp.max(jnp.abs(params["w"])))
    np.testing.assert_allclose(updates["w"], 0, atol=atol)
    before = opt.init(params).direction["w"]
    np.testing.assert_allclose(state.direction["w"], 0.95 * before, rtol=1e-6)
    assert not np.any(updates["b"])


def test_overrides_reach_the_wrapped_optimizer():
    params, gradients = tree(), tree(7)
    wrong = flax_optim.WeightNorm(Momentum(), 0.1).create(params)
    right = flax_optim.WeightNorm(Momentum(0.2, 0.5), 0.3).create(params)
    after = wrong.apply_gradient(gradients, learning_rate=0.2, beta=0.5, wn_decay=0.3)
    assert same(after.target, right.apply_gradient(gradients).target)
    with pytest.raises(TypeError, match="no numeric hyper-parameter `rho`"):
        wrong.apply_gradient(gradients, rho=0.5)


def test_zero_weights_are_no_harm():
    params, gradients = jnp.zeros((4, 3), FLOAT), jnp.asarray(_matrix(1))
    after = flax_optim.WeightNorm(Momentum(0.1)).create(params).apply_gradient(gradients)
    assert np.isfinite(after.target).all()


def test_a_line_search_sees_the_objective():
    target = jnp.asarray(_matrix(2))

    def loss(params: Any) -> Any:
        return jnp.sum(jnp.square(params - target))

    bundle = eqopt.Optimizer.create(eqopt.WeightNorm(eqopt.LBFGS()), jnp.asarray(_matrix(0)))
    values = []
    for _ in range(12):
        bundle, evaluation = bundle.step(loss)
        values.append(float(evaluation.value))
    assert values == sorted(values, reverse=True)
    assert values[-1] < 1e-3 * values[0]


def test_nestings_that_make_no_sense():
    opt = Momentum(0.1)
    with pytest.raises(ValueError, match="`MultiOptimizer` within `WeightNorm` makes no sense"):
        flax_optim.WeightNorm(MultiOptimizer((W, opt)))
    with pytest.raises(ValueError, match="`ParamEMA` within `WeightNorm` makes no sense"):
        eqopt.WeightNorm(eqopt.ParamEMA(opt, 0.9))
    with pytest.raises(ValueError, match="`WeightNorm` within `Lookahead` makes no sense"):
        eqopt.Lookahead(eqopt.WeightNorm(opt), 2, 0.5)
    with pytest.raises(ValueError, match="`WeightNorm` within `Chain` makes no sense"):
        eqopt.Chain(eqopt.WeightNorm(opt), eqopt.Scale(0.5))
    with pytest.raises(ValueError, match="needs the parameters"):
        eqopt.WeightNorm(opt).update(tree(7), eqopt.WeightNorm(opt).init(tree()))
    with pytest.raises(TypeError, match="`axis` must be an int; got True"):
        eqopt.WeightNorm(opt, axis=True)
