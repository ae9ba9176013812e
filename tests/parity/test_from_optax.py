"""optax's transformations among ours."""

import io
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jaxtyping import Array

import eqopt
from eqopt.writing import AbstractTransformation
from tests.support.interop import (
    init_nothing,
    labels,
    PROBED,
    problem,
    run_ours,
    run_theirs,
    TOLERANCE,
)
from tests.support.toolbox import FLOAT, same, Tally, Traced, types, Zoo, zoo_loss
from tests.support.trees import assert_near, is_matrix

THEIRS = {
    "scale": optax.scale(-0.1),
    "adam": optax.adam(1e-2),
    "adamw": optax.adamw(1e-2, mask=is_matrix),
    # optax computes the rate in float32, and each program may round it otherwise. These are exact.
    "inject_hyperparams": optax.inject_hyperparams(optax.sgd)(
        optax.linear_schedule(0.125, 0.0, 8), momentum=0.9
    ),
    "partition": optax.partition({"adam": optax.adam(0.1), "sgd": optax.sgd(0.1, 0.5)}, labels),
    "apply_if_finite": optax.apply_if_finite(optax.adam(0.1), 2),
    "MultiSteps": optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
    "scale_by_lbfgs": optax.scale_by_lbfgs(),
}
every_theirs = pytest.mark.parametrize("name", THEIRS)


@every_theirs
def test_from_optax_in_a_chain(name: str):
    ours = eqopt.Chain(eqopt.ClipByGlobalNorm(3.0), eqopt.from_optax(THEIRS[name]))
    theirs = optax.chain(optax.clip_by_global_norm(3.0), THEIRS[name])
    params, gradients = problem(name)
    assert_near(run_ours(ours, params, gradients), run_theirs(theirs, params, gradients), TOLERANCE)


@every_theirs
def test_state_of_from_optax_is_a_fixed_point(name: str):
    tally = Tally()
    opt = eqopt.Chain(Traced(tally), eqopt.from_optax(THEIRS[name]))
    params, gradients = problem(name)
    state = opt.init(params)

    @eqx.filter_jit
    def train(opt: Any, params: Any, state: Any, gradients: Any) -> Any:
        def step(carry: Any, gradient: Any) -> tuple[Any, None]:
            updates, state = opt.update(gradient, carry[1], carry[0])
            return (eqopt.apply_updates(carry[0], updates), state), None

        return lax.scan(step, (params, state), gradients)[0]

    stacked = jax.tree.map(lambda *x: jnp.stack(x), *gradients)
    scanned, after = train(opt, params, state, stacked)
    assert types(after) == types(state)
    assert tally.num == 1
    assert_near(scanned, run_ours(opt, params, gradients)[-1], TOLERANCE)


def _init_odd(params: Any) -> Any:
    numbers = {
        "int": 0,
        "float": 1.0,
        "bool": False,
        "numpy": np.float32(1),
        "weak": jnp.asarray(2.0),
    }
    return numbers, jax.random.key(0), (params, params), {"leaves": jax.tree.leaves(params)}


def _update_odd(updates: Any, state: Any, params: Any = None) -> Any:
    numbers = {
        "int": state[0]["int"] + 1,
        "float": 2.0,
        "bool": True,
        "numpy": state[0]["numpy"] * jnp.asarray(0.5, FLOAT),
        "weak": 3.0,
    }
    return updates, (numbers, jax.random.split(state[1])[0], (params, params), state[3])


def test_states_of_python_numbers_become_arrays_of_one_type():
    opt = eqopt.from_optax(optax.GradientTransformation(_init_odd, _update_odd))
    params, gradients = problem()
    state = opt.init(params)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(state))
    _, after = opt.update(gradients[0], state, params)
    assert types(after) == types(state) and not any(weak for *_, weak in types(state)[1])
    key = jax.random.split(jax.random.key(0))[0]
    assert after.inner_state[1].wrap() == key
    numbers = after.inner_state[0]
    assert [numbers[x].item() for x in ("int", "float", "bool", "numpy")] == [1, 2.0, True, 0.5]
    # Whatever is kept twice, or is the parameters' own, all may be donated.
    arrays = jax.tree.leaves((params, state))
    assert len({x.unsafe_buffer_pointer() for x in arrays}) == len(arrays)


def test_extra_arguments_reach_optax():
    params, gradients = problem()
    chain = eqopt.Chain(eqopt.Scale(2.0), eqopt.from_optax(PROBED))
    theirs = optax.chain(optax.scale(2.0), PROBED)
    extra = {"probe": jnp.asarray(0.3, FLOAT), "value": jnp.asarray(1.0)}
    left = run_ours(chain, params, gradients, **extra)
    assert_near(left, run_theirs(theirs, params, gradients, **extra), TOLERANCE)
    with pytest.raises(KeyError, match="probe"):
        chain.update(gradients[0], chain.init(params), params)
    # A plain transformation takes none, and is given none.
    plain = eqopt.from_optax(optax.scale(-1.0))
    assert_near(
        run_ours(plain, params, gradients, **extra),
        run_theirs(optax.scale(-1.0), params, gradients),
        TOLERANCE,
    )


def test_optax_is_given_what_it_takes_and_the_user_gave():
    seen: dict[str, Any] = {}

    def everything(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        seen.update(extra)
        return updates, state

    def one(updates: Any, state: Any, params: Any = None, *, probe: Any = None) -> Any:
        seen["one"] = probe
        return updates, state

    txs = [optax.GradientTransformationExtraArgs(init_nothing, x) for x in (everything, one)]
    opt = eqopt.Chain(*map(eqopt.from_optax, txs))
    params, gradients = {"a": jnp.ones(2)}, {"a": jnp.ones(2)}
    opt.update(gradients, opt.init(params), params, value=1.0, probe=2.0)
    assert seen.keys() == {"value", "probe", "one"}
    seen.clear()
    opt.step(
        lambda p, x: jnp.sum(p["a"] * x), params, opt.init(params), x=3.0, key=jax.random.key(0)
    )
    assert seen.keys() == {"value", "grad", "value_fn", "key", "x", "one"}


def quadratic(model: dict[str, Any], x: Array, y: Array) -> Array:
    assert callable(model["activation"])
    # The user's own rules of promotion hold within the user's own function.
    assert jax.numpy_dtype_promotion.value == "strict"
    return jnp.sum((model["w"] * x - y) ** 2) + (model["b"] - 3) ** 2


@pytest.mark.parametrize(
    "opt",
    [
        eqopt.from_optax(optax.lbfgs()),
        eqopt.from_optax(optax.lbfgs(linesearch=optax.scale_by_backtracking_linesearch(20))),
        eqopt.Chain(
            eqopt.SGD(1.0),
            eqopt.from_optax(optax.scale_by_backtracking_linesearch(20, store_grad=True)),
        ),
    ],
    ids=["zoom", "backtracking", "gradient-descent"],
)
def test_line_searches_of_optax(opt: AbstractTransformation[Any]):
    model: dict[str, Any] = {"w": jnp.zeros(3), "b": jnp.zeros(()), "activation": jax.nn.relu}
    x, y = jnp.asarray([1.0, 1.5, 2.0]), jnp.asarray([1.0, -1.0, 2.0])
    state = opt.init(model)
    before = types(state)
    for _ in range(40):
        # Arguments for the objective, and one that is for none.
        model, state, _ = opt.step(quadratic, model, state, x, y=y, unused=1.0)
    assert types(state) == before
    np.testing.assert_allclose(model["w"], y / x, atol=1e-3)
    np.testing.assert_allclose(model["b"], 3.0, atol=1e-3)


def test_value_fn_of_update_reaches_optax():
    params = {"w": jnp.zeros(3), "b": jnp.zeros(()), "activation": jax.nn.relu}
    x, y = jnp.asarray([1.0, 1.5, 2.0]), jnp.asarray([1.0, -1.0, 2.0])
    opt = eqopt.from_optax(optax.lbfgs())
    state = opt.init(params)
    value, grad = eqx.filter_value_and_grad(quadratic)(params, x, y)
    updates, _ = opt.update(
        grad, state, params, value=value, grad=grad, value_fn=quadratic, x=x, y=y
    )
    moved = opt.step(quadratic, params, state, x, y)[0]
    assert_near(_arrays(eqopt.apply_updates(params, updates)), _arrays(moved), TOLERANCE)
    with pytest.raises(TypeError, match="value_fn"):
        opt.update(grad, state, params, value=value, grad=grad)


def _arrays(model: Any) -> Any:
    return eqx.filter(model, eqx.is_inexact_array)


def test_whole_models_in_from_optax():
    model, x = Zoo(), jnp.ones(2, FLOAT)
    opt, tx = eqopt.from_optax(optax.adamw(0.1)), optax.adamw(0.1)
    state = opt.init(model)
    after, state, evaluation = opt.step(zoo_loss, model, state, x)
    assert isinstance(after, Zoo)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = tx.update(evaluation.grad, tx.init(_arrays(model)), _arrays(model))
    assert_near(_arrays(after), optax.apply_updates(_arrays(model), updates), TOLERANCE)


@pytest.mark.parametrize("name", ["adam", "adamw", "partition", "inject_hyperparams"])
def test_what_has_no_gradient_keeps_its_state_in_from_optax(name: str):
    opt = eqopt.from_optax(THEIRS[name])
    params, (gradient, partial, *_) = problem(name)
    _, state = opt.update(gradient, opt.init(params), params)
    partial["layers"][0] = {"weight": None, "bias": None}
    updates, after = opt.update(partial, state, params)
    assert updates["layers"][0] == {"weight": None, "bias": None}
    # All else is as though these gradients were zero.
    zeros = {**partial, "layers": [jax.tree.map(jnp.zeros_like, params["layers"][0])]}
    zeros["layers"] += partial["layers"][1:]
    expected, expected_state = opt.update(zeros, state, params)
    expected["layers"][0] = {"weight": None, "bias": None}
    assert same(updates, expected)
    num_kept = 0
    leaves = [jax.tree_util.tree_leaves_with_path(x) for x in (after, state, expected_state)]
    for (path, x), (_, old), (_, new) in zip(*leaves, strict=True):
        kept = "['layers'][0]" in jax.tree_util.keystr(path)
        num_kept += kept
        assert same(x, old if kept else new)
    assert num_kept > 0


def test_no_gradient_where_the_state_is_one_vector():
    opt = eqopt.from_optax(optax.flatten(optax.trace(0.5)))
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    _, state = opt.update(params, opt.init(params), params)
    updates, _ = opt.update({"a": jnp.ones(2), "b": None}, state, params)
    assert same(updates, {"a": jnp.full(2, 1.5), "b": None})


def test_half_precision_in_from_optax_is_kept_in_float32():
    seen = []

    def fn(model: dict[str, Array]) -> Array:
        seen.append(model["w"].dtype)
        return jnp.sum(model["w"].astype(jnp.float32) ** 2)

    model = {"w": jnp.asarray([1.0, -2.0], jnp.bfloat16)}
    opt = eqopt.from_optax(optax.adam(1e-2, b1=0.5))
    gradient = {"w": jnp.ones(2, jnp.bfloat16)}
    updates, state = opt.update(gradient, opt.init(model), model)
    assert updates["w"].dtype == jnp.bfloat16
    for _ in range(2999):
        _, state = opt.update(gradient, state, model)
    moments = state.inner_state[0]
    assert moments.nu["w"].dtype == jnp.float32
    # In bfloat16 it would stall at a half.
    np.testing.assert_allclose(moments.nu["w"], 1 - 0.999**3000, rtol=1e-4)

    search = eqopt.from_optax(optax.lbfgs())
    state = search.init(model)
    for _ in range(5):
        model, state, _ = search.step(fn, model, state)
    assert {*seen} == {jnp.dtype(jnp.bfloat16)}
    assert float(jnp.max(jnp.abs(model["w"]))) < 1e-3


def test_masked_from_optax():
    params, gradients = problem()
    ours = eqopt.Masked(eqopt.from_optax(optax.adam(0.1)), is_matrix)
    theirs = optax.masked(optax.adam(0.1), is_matrix)
    assert_near(run_ours(ours, params, gradients), run_theirs(theirs, params, gradients), TOLERANCE)


def test_a_state_that_changes_its_structure_is_let_be():
    tx = optax.monitor({"norm": optax.tree.norm})
    opt = eqopt.from_optax(tx)
    params, gradients = {"a": jnp.ones(4)}, {"a": jnp.ones(4)}
    _, state = opt.update(gradients, opt.init(params), params)
    _, state = opt.update(gradients, state, params)
    assert float(state.inner_state.measurements["norm"]) == 2.0


def test_from_optax_is_saved_and_loaded():
    opt = eqopt.from_optax(optax.lbfgs())
    model = {"w": jnp.ones(3), "b": jnp.zeros(()), "activation": jax.nn.relu}
    arguments = jnp.ones(3), jnp.zeros(3)
    _, state, _ = opt.step(quadratic, model, opt.init(model), *arguments)
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, (opt, state))
    file.seek(0)
    loaded = eqx.tree_deserialise_leaves(file, (opt, opt.init(model)))
    assert loaded[0] == opt
    assert same(loaded[1], state)


def test_what_from_optax_refuses():
    wrong: Any
    for wrong in (3, eqopt.SGD(0.1), optax.MultiSteps(optax.sgd(0.1), 2)):
        with pytest.raises(TypeError, match=f"GradientTransformation.*{type(wrong).__name__}"):
            eqopt.from_optax(wrong)

    def shorten(updates: Any, params: Any) -> Any:
        return {"a": updates["a"][:1]}

    opt = eqopt.from_optax(optax.stateless(shorten))
    params = {"a": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"`updates\['a'\]` has shape \(1,\)"):
        opt.update(params, opt.init(params), params)
