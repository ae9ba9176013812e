"""The parameters to evaluate with, found through any nesting; and averaged parameters."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import eqopt
from tests.support.toolbox import (
    assert_close,
    FLOAT,
    same,
    Tally,
    tree,
    types,
    values,
    X64,
    Zoo,
    zoo_loss,
)
from tests.support.trees import assert_near, conj, random_array, random_like, random_tree

# In 0.7.2 it stands among what is experimental.
_home: Any = jax if hasattr(jax, "enable_x64") else jax.experimental
enable_x64 = _home.enable_x64
NUM_STEPS = 60
TOLERANCE = 1e-12 if X64 else 5e-6


def _after(opt: Any, params: Any, num_steps: int = 3) -> tuple[Any, Any]:
    state = opt.init(params)
    for t in range(num_steps):
        updates, state = opt.update(tree(7 + t), state, params)
        params = eqopt.apply_updates(params, updates)
    return params, state


# Averaged parameters.


def _trajectory(opt: Any, params: Any, grads: Any) -> tuple[Any, Any]:
    def step(carry: Any, grad: Any) -> Any:
        params, state = carry
        updates, state = opt.update(grad, state, params)
        params = eqopt.apply_updates(params, updates)
        return (params, state), (params, eqopt.eval_params(params, state))

    return lax.scan(step, (params, opt.init(params)), grads)[1]


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.999])
def test_the_average_is_optax_s_ema_of_the_parameters(decay: float):
    rng = np.random.default_rng(0)
    params = random_tree(rng, FLOAT)
    params["complex"] = random_array(rng, (3, 2), np.result_type(FLOAT, np.complex64))
    grads = random_like(rng, params, leading=(NUM_STEPS,))
    opt = eqopt.ParamEMA(eqopt.SGD(0.1, 0.9), decay)
    points, averages = _run(opt, params, grads)
    # In float64, or in float32 optax's `1 - decay**count` would cancel.
    with enable_x64(True), jax.numpy_dtype_promotion("standard"):
        wide = jax.tree.map(lambda x: np.asarray(x).astype(_wide(x)), points)
        ema = optax.ema(decay, debias=True)
        zeros = jax.tree.map(lambda x: np.zeros_like(x[0]), wide)

        def average(state: Any, x: Any) -> Any:
            found, state = ema.update(x, state)
            return state, found

        expected = jax.jit(lambda xs: lax.scan(average, ema.init(zeros), xs)[1])(wide)
        expected = jax.tree.map(lambda x, p: np.asarray(x).astype(p.dtype), expected, points)
    assert_near(averages, expected, TOLERANCE)

    # And the updates are those of the optimizer alone.
    alone = optax.sgd(0.1, 0.9)

    @jax.jit
    def theirs(params: Any, grads: Any) -> Any:
        def step(carry: Any, grad: Any) -> Any:
            updates, state = alone.update(grad, carry[1], carry[0])
            params = optax.apply_updates(carry[0], updates)
            return (params, state), params

        return lax.scan(step, (params, alone.init(params)), grads)[1]

    with jax.numpy_dtype_promotion("standard"):
        assert_near(points, theirs(params, conj(grads)), TOLERANCE)


_run = eqx.filter_jit(_trajectory)


def _wide(x: Any) -> Any:
    return np.complex128 if np.iscomplexobj(x) else np.float64


def test_a_biased_average_begins_at_the_initial_parameters():
    params = np.array([1.0, -2.0])
    grads = np.random.default_rng(0).standard_normal((NUM_STEPS, 2))
    opt = eqopt.ParamEMA(eqopt.SGD(0.1), 0.9, debias=False)
    points, averages = _run(opt, jnp.asarray(params, FLOAT), jnp.asarray(grads, FLOAT))
    average, expected = params, []
    for point in np.asarray(points, np.float64):
        average = 0.9 * average + 0.1 * point
        expected.append(average)
    np.testing.assert_allclose(averages, expected, rtol=1e-12 if X64 else 1e-5, atol=1e-7)


def test_before_the_first_step_the_average_is_the_model():
    params = tree()
    state = eqopt.ParamEMA(eqopt.SGD(0.1), 0.9).init(params)
    assert same(eqopt.eval_params(params, state), params)


def test_what_has_no_gradient_is_its_own_average():
    params = tree()
    grads = {"a": tree(7)["a"], "branch": None}
    for debias in (False, True):
        opt = eqopt.ParamEMA(eqopt.SGD(0.1), 0.9, debias)
        _, state = opt.update(grads, opt.init(params), params)
        assert same(eqopt.eval_params(params, state)["branch"], params["branch"])


def test_the_average_of_bfloat16_is_of_what_the_user_has():
    # Updates below the precision of the parameters do not move them, nor their average.
    params = jnp.ones(2, jnp.bfloat16)
    opt = eqopt.ParamEMA(eqopt.SGD(1e-3), 0.5)
    updates, state = opt.update(jnp.ones(2, jnp.bfloat16), opt.init(params), params)
    assert same(eqopt.apply_updates(params, updates), params)
    assert same(state.ema, jnp.ones(2, jnp.float32))
    assert types(eqopt.eval_params(params, state)) == types(params)


# Found through any nesting.

_NESTINGS: dict[str, Callable[[Any], Any]] = {
    "itself": lambda inner: inner,
    "Chain": lambda inner: eqopt.Chain(eqopt.Clip(10.0), inner),
    "Scheduled": lambda inner: eqopt.Scheduled(
        eqopt.Chain(eqopt.Scale(1.0), inner), lambda o: o.links[0].step_size, eqopt.Constant(1.0)
    ),
    "Masked": lambda inner: eqopt.Masked(inner, eqopt.ByPath("**")),
    "NamedChain": lambda inner: eqopt.NamedChain(("clip", eqopt.Clip(10.0)), ("rest", inner)),
    "Partition": lambda inner: eqopt.Partition(
        {"all": inner}, lambda params: jax.tree.map(lambda _: "all", params)
    ),
    "Flatten": lambda inner: eqopt.Flatten(inner),
    "Split": lambda inner: eqopt.SplitRealAndImaginary(inner),
}

_AVERAGING: dict[str, Callable[[], Any]] = {
    "Lookahead": lambda: eqopt.Lookahead(eqopt.SGD(0.3, 0.9), 2, 0.5),
    "ParamEMA": lambda: eqopt.ParamEMA(eqopt.SGD(0.3, 0.9), 0.7),
    "ScheduleFree": lambda: eqopt.ScheduleFreeSGD(0.3, b1=0.7),
}


@pytest.mark.parametrize("nesting", _NESTINGS)
@pytest.mark.parametrize("averaging", _AVERAGING)
def test_through_any_nesting(averaging: str, nesting: str):
    alone = eqopt.eval_params(*_after(_AVERAGING[averaging](), tree()))
    twice = _NESTINGS[nesting](eqopt.Chain(_NESTINGS[nesting](_AVERAGING[averaging]())))
    params, state = _after(twice, tree())
    assert_close(eqopt.eval_params(params, state), alone, 1e-12 if X64 else 1e-5)
    assert not same(alone, params)


@pytest.mark.parametrize("averaging", _AVERAGING)
def test_complex_parameters_within_another_form(averaging: str):
    opt, dtype = _AVERAGING[averaging](), np.result_type(FLOAT, np.complex64)
    params = {"a": random_array(np.random.default_rng(0), (3, 2), dtype), "b": tree()["a"]}

    def after(opt: Any, params: Any) -> Any:
        state = opt.init(params)
        for _ in range(3):
            updates, state = opt.update(jax.tree.map(lambda x: x / 2, params), state, params)
            params = eqopt.apply_updates(params, updates)
        return eqopt.eval_params(params, state)

    found = after(eqopt.SplitRealAndImaginary(eqopt.Flatten(opt)), params)
    assert_close(found, after(opt, params), 1e-12 if X64 else 1e-5)


def test_the_outermost_decides():
    params, state = _after(eqopt.ParamEMA(eqopt.Lookahead(eqopt.SGD(0.3), 2, 0.5), 0.7), tree(), 3)
    assert same(eqopt.eval_params(params, state), state.ema)
    assert same(eqopt.eval_params(params, state.inner_state), state.inner_state.slow)


@pytest.mark.parametrize("num_steps", [3, 4])
def test_an_average_within_sam(num_steps: int):
    sam = eqopt.SAM(eqopt.ParamEMA(eqopt.SGD(0.3), 0.7), eqopt.SGD(0.1))
    params, state = _after(sam, tree(), num_steps)
    assert same(eqopt.eval_params(params, state), state.opt_state.ema)
    assert int(state.opt_state.count) == num_steps // 2


@pytest.mark.parametrize("averaging", _AVERAGING)
def test_what_is_masked_out_is_evaluated_as_it_is(averaging: str):
    opt = eqopt.Chain(eqopt.Masked(_AVERAGING[averaging](), eqopt.ByPath("branch.**")))
    params, state = _after(opt, tree())
    found = eqopt.eval_params(params, state)
    alone, alone_state = _after(_AVERAGING[averaging](), tree())
    expected = eqopt.eval_params(alone, alone_state)
    assert same(found["a"], params["a"]) and not same(found["a"], expected["a"])
    assert_close(found["branch"], expected["branch"])


def test_a_masked_pair():
    opt = eqopt.Masked(eqopt.Lookahead(eqopt.SGD(0.3), 2, 0.5), eqopt.ByPath("**.branch.**"))
    params = eqopt.LookaheadParams.init_synced(tree())
    params, state = _after(opt, params)
    found = eqopt.eval_params(params, state)
    assert same(found.fast, {"a": params.fast["a"], "branch": params.slow["branch"]})
    assert same(found.slow, params.slow)


def test_each_for_its_own_leaves():
    matrices = eqopt.ByNdim(2)
    opt = eqopt.Chain(
        eqopt.Masked(eqopt.ParamEMA(eqopt.SGD(0.3), 0.7), matrices),
        eqopt.Masked(eqopt.ScheduleFreeSGD(0.3), ~matrices),
    )
    found = eqopt.eval_params(*_after(opt, tree()))
    averaged = eqopt.eval_params(*_after(eqopt.ParamEMA(eqopt.SGD(0.3), 0.7), tree()))
    free = eqopt.eval_params(*_after(eqopt.ScheduleFreeSGD(0.3), tree()))
    assert_close(found["a"], averaged["a"])
    assert_close(found["branch"], {"b": free["branch"]["b"], "w": averaged["branch"]["w"]})


def test_two_for_one_leaf_is_a_mistake():
    ema = eqopt.ParamEMA(eqopt.Identity(), 0.7)
    opt = eqopt.Chain(eqopt.SGD(0.3), eqopt.Masked(ema, eqopt.ByPath("**")), ema)
    params, state = _after(opt, tree())
    with pytest.raises(ValueError, match=r"for `params\['a'\]`, and neither is within the other"):
        eqopt.eval_params(params, state)
    assert_close(eqopt.eval_params(params, state.states[2]), state.states[2].ema)


def test_none_found_gives_the_parameters_back():
    params = Zoo()
    for opt in (eqopt.AdamW(0.1), eqopt.Chain(), eqopt.Masked(eqopt.SGD(0.1), eqopt.ByNdim(2))):
        assert eqopt.eval_params(params, opt.init(params)) is params
    found = eqopt.eval_params(params, eqopt.Flatten(eqopt.AdamW(0.1)).init(params))
    assert type(found) is Zoo and same(found, params)


def test_the_state_of_other_parameters_is_a_mistake():
    state = eqopt.ParamEMA(eqopt.SGD(0.3), 0.7).init(tree())
    with pytest.raises(ValueError, match=r"`state.ema\['a'\]`"):
        eqopt.eval_params({"branch": tree()["branch"]}, state)
    other = {**tree(), "a": jnp.ones((3, 3), FLOAT)}
    with pytest.raises(ValueError, match=r"`state.ema\['a'\]` has shape \(2, 3\)"):
        eqopt.eval_params(other, state)


# Models, buffers, programs.


@pytest.mark.parametrize("averaging", _AVERAGING)
def test_whole_models(averaging: str):
    model, x, opt = Zoo(), values((2,), 5), _AVERAGING[averaging]()
    state = opt.init(model)
    for _ in range(3):
        model, state, _ = opt.step(zoo_loss, model, state, x)
    found = eqopt.eval_params(model, state)
    assert type(found) is Zoo and found.activation is model.activation
    is_trained = eqx.is_inexact_array
    assert same(
        eqx.filter(found, is_trained, inverse=True), eqx.filter(model, is_trained, inverse=True)
    )
    assert types(eqx.filter(found, is_trained)) == types(eqx.filter(model, is_trained))
    assert np.isfinite(zoo_loss(found, x)) and zoo_loss(found, x) != zoo_loss(model, x)


@pytest.mark.parametrize("averaging", _AVERAGING)
def test_the_next_step_may_donate_everything(averaging: str):
    opt = _AVERAGING[averaging]()
    params, state = _after(opt, tree())
    found = eqopt.eval_params(params, state)
    before = jax.tree.map(np.array, found)

    @eqx.filter_jit(donate="all")
    def step(params: Any, state: Any) -> Any:
        updates, state = opt.update(tree(9), state, params)
        return eqopt.apply_updates(params, updates), state

    step(params, state)
    assert same(found, before)


def test_traced_once_and_within_a_program():
    tally, opt = Tally(), eqopt.ParamEMA(eqopt.SGD(0.3), 0.7)
    params, state = _after(opt, tree())

    @eqx.filter_jit
    def evaluate(params: Any, state: Any) -> Any:
        tally.num += 1
        return eqopt.eval_params(params, state)

    first = evaluate(params, state)
    params, state = eqopt.apply_updates(params, tree(3)), _after(opt, tree(), 2)[1]
    evaluate(params, state)
    assert tally.num == 1
    assert not same(first, evaluate(params, state))
    assert same(evaluate(params, state), eqopt.eval_params(params, state))


def test_over_several_models():
    opt = eqopt.ParamEMA(eqopt.SGD(0.3), 0.7)
    several = jax.tree.map(lambda x, y: jnp.stack([x, y]), tree(0), tree(40))
    states = jax.vmap(opt.init)(several)
    _, states = jax.vmap(opt.update)(several, states, several)
    found = jax.vmap(eqopt.eval_params)(several, states)
    for i in range(2):
        params, state = jax.tree.map(lambda x, i=i: x[i], (several, states))
        assert_close(jax.tree.map(lambda x, i=i: x[i], found), eqopt.eval_params(params, state))
