"""The optimizer that holds its target does what its parts do, to the last bit."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import eqopt
from eqopt import ByPath, Optimizer
from tests.support.evaluations import Calls
from tests.support.toolbox import assert_close, complaint, FLOAT, same, tree, values, Zoo

MODEL = eqx.nn.MLP(3, 1, 4, 1, dtype=FLOAT, key=jax.random.key(0))
X, Y = values((5, 3), 0), values((5, 1), 1)
SCHEDULE = eqopt.Linear(init_value=0.1, end_value=0.01, transition_steps=5)


def loss(model: eqx.nn.MLP, x: Array, y: Array) -> Array:
    return jnp.mean(jnp.square(jax.vmap(model)(x) - y))


def loss_and_size(model: eqx.nn.MLP, x: Array, y: Array) -> tuple[Array, int]:
    return loss(model, x, y), x.size


def quadratic(params: Any) -> Array:
    return sum((jnp.sum(x**2 + x) for x in jax.tree.leaves(params)), start=jnp.zeros((), FLOAT))


def arrays(x: Any) -> Any:
    return eqx.filter(x, eqx.is_array)


# The same as with the parts


TRANSFORMATIONS = [
    eqopt.AdamW(SCHEDULE),
    eqopt.SGD(0.1, momentum=0.9),
    eqopt.Chain(eqopt.ClipByGlobalNorm(0.1), eqopt.SGD(SCHEDULE)),
    eqopt.Partition({ByPath("**.bias"): eqopt.SGD(0.1), ...: eqopt.Adam(0.01)}),
    eqopt.ScheduleFreeSGD(0.1),
    eqopt.Chain(eqopt.SGD(1.0), eqopt.ScaleByBacktrackingLinesearch(15, store_grad=True)),
    eqopt.Chain(eqopt.SGD(0.1), eqopt.ReduceOnPlateau(patience=1)),
]


def objective(model: Any) -> Array:
    return loss(model, X, Y)


@pytest.mark.parametrize("opt", TRANSFORMATIONS, ids=lambda x: type(x).__name__)
def test_step_is_that_of_the_parts(opt: eqopt.writing.AbstractTransformation[Any]):
    optimizer = Optimizer.create(opt, MODEL)
    model, state = MODEL, opt.init(MODEL)
    assert same(optimizer.state, state)
    for _ in range(3):
        optimizer, evaluation = optimizer.step(loss, X, Y)
        value, grads = eqx.filter_value_and_grad(objective)(model)
        given: dict[str, Any] = {"value": value, "grad": grads, "value_fn": objective}
        updates, state = opt.update(grads, state, model, **given)
        model = eqopt.apply_updates(model, updates)
        assert_close(evaluation.value, value)
        assert_close(arrays(optimizer.target), arrays(model))
        assert same(optimizer.eval_target, eqopt.eval_params(optimizer.target, optimizer.state))
        model, state = optimizer.target, optimizer.state
    assert not same(model, MODEL)


@pytest.mark.parametrize("opt", TRANSFORMATIONS[:5], ids=lambda x: type(x).__name__)
def test_apply_gradient_is_that_of_the_parts(opt: eqopt.writing.AbstractTransformation[Any]):
    optimizer = Optimizer.create(opt, MODEL)
    model, state = MODEL, opt.init(MODEL)
    for _ in range(3):
        value, grads = optimizer.compute_gradient(loss, X, Y)
        expected, expected_grads = eqx.filter_jit(eqx.filter_value_and_grad(loss))(model, X, Y)
        assert same((value, grads), (expected, expected_grads))
        optimizer = optimizer.apply_gradient(grads)
        updates, state = opt.update(grads, state, model)
        # The sum is in the same program here, where a multiplication before it may be fused.
        assert_close(arrays(optimizer.target), arrays(eqopt.apply_updates(model, updates)))
        assert_close(optimizer.state, state)
        model, state = optimizer.target, optimizer.state
    assert not same(model, MODEL)


def test_a_model_of_everything():
    model = Zoo()
    x = values((2,), 3)

    def fn(model: Zoo) -> Array:
        return jnp.sum(jnp.square(model(x)))

    optimizer = Optimizer.create(eqopt.Adam(0.1), model)
    _, grads = optimizer.compute_gradient(fn)
    given = optimizer.apply_gradient(grads)
    stepped, _ = optimizer.step(fn)
    assert_close(given.target.weight, stepped.target.weight)
    for new in (given.target, stepped.target):
        assert not same(new.weight, model.weight)
        assert same((new.integers, new.key, new.name), (model.integers, model.key, model.name))
        assert new.activation is model.activation


def test_aux():
    optimizer = Optimizer.create(eqopt.SGD(0.1), MODEL)
    value, aux, grads = optimizer.compute_gradient(loss_and_size, X, Y, has_aux=True)
    assert aux == X.size
    assert same((value, grads), optimizer.compute_gradient(loss, X, Y))
    after, value, aux = optimizer.optimize(loss_and_size, X, Y, has_aux=True)
    assert aux == X.size
    assert same((after.target, value), (optimizer.optimize(loss, X, Y)[0].target, value))
    stepped, evaluation = optimizer.step(loss_and_size, X, Y, has_aux=True)
    assert same(stepped.target, after.target) and evaluation.aux == X.size


def test_keyword_arguments_reach_the_loss():
    optimizer = Optimizer.create(eqopt.SGD(0.1), MODEL)
    by_name, _ = optimizer.step(loss, x=X, y=Y)
    assert same(by_name.target, optimizer.step(loss, X, Y)[0].target)
    assert same(optimizer.compute_gradient(loss, X, y=Y), optimizer.compute_gradient(loss, X, Y))


def test_a_line_search_evaluates_once_at_each_point():
    calls = Calls()

    def counted(params: Array) -> Array:
        return calls.counted(jnp.sum((params - 3.0) ** 2))

    def evaluations(step: Any, *args: Any) -> int:
        return calls.of(lambda: eqx.filter(step(counted, *args), eqx.is_array))

    start = jnp.zeros(3, FLOAT)
    opt = eqopt.LBFGS()
    state = opt.init(start)
    optimizer = Optimizer.create(opt, start)
    for _ in range(2):
        expected = evaluations(opt.step, start, state)
        assert evaluations(optimizer.step) == expected
        assert evaluations(optimizer.optimize) == expected
        start, state, _ = opt.step(counted, start, state)
        optimizer, _ = optimizer.step(counted)
        assert same(optimizer.target, start)


def test_a_line_search_keeps_aux():
    def fn(params: Array) -> tuple[Array, Array]:
        return jnp.sum((params - 3.0) ** 2), params[0]

    start = jnp.zeros(3, FLOAT)
    optimizer = Optimizer.create(eqopt.LBFGS(), start, value_fn=fn, has_aux=True)
    optimizer, _ = optimizer.step(fn, has_aux=True)
    before = optimizer.target
    optimizer, evaluation = optimizer.step(fn, has_aux=True)
    assert same(evaluation.aux, before[0])


# Mistakes


def test_bad_gradients_are_named():
    optimizer = Optimizer.create(eqopt.SGD(0.1), tree())
    wrong = {**tree(), "a": jnp.ones(3, FLOAT)}
    message = complaint(ValueError, optimizer.apply_gradient, wrong)
    assert message == "`grads['a']` has shape (3,); the parameter has (2, 3)"
    message = complaint(ValueError, optimizer.apply_gradient, {"a": tree()["a"]})
    assert message == "missing, though `target` has it: `grads['branch']`"
    message = complaint(ValueError, optimizer.apply_gradient, jnp.ones(3, FLOAT))
    assert "`grads` is" in message and "`target` is a dict" in message


def test_what_needs_more_than_gradients_says_so():
    optimizer = Optimizer.create(eqopt.PolyakSGD(), tree())
    message = complaint(ValueError, optimizer.apply_gradient, tree())
    assert "needs `value`" in message and "`step`" in message


def test_what_is_no_transformation_is_named():
    message = complaint(TypeError, Optimizer.create, tree(), eqopt.SGD(0.1))
    assert "`transformation` must be a transformation; got a dict" in message
    with pytest.raises(TypeError, match="`transformation` must be"):
        Optimizer.create(eqopt.SGD(0.1), tree()).replace(transformation=0.1)


# Focus


FOCI = {
    "selector": ByPath("a"),
    "function": lambda params: {"a": True, "branch": False},
    "prefix": {"a": True, "branch": False},
    "tree": {"a": np.True_, "branch": {"b": False, "w": False}},
}
# Norms over all that is trained: were anything else seen, it would show.
NORMED = eqopt.Chain(eqopt.ClipByGlobalNorm(0.01), eqopt.AdamW(0.1, weight_decay=0.1))


@pytest.mark.parametrize("focus", FOCI.values(), ids=FOCI.keys())
def test_only_what_is_in_focus_is_trained(focus: Any):
    # A negative zero and a NaN stay as they are.
    frozen = {"b": values((3,), 1) * jnp.array([-0.0, jnp.nan, 1.0], FLOAT), "w": values((2, 3), 2)}
    params = {"a": tree()["a"], "branch": frozen}
    optimizer = Optimizer.create(NORMED, params, focus)
    alone = Optimizer.create(NORMED, {"a": params["a"]})
    sizes = [x.size for x in jax.tree.leaves(optimizer.state)]
    assert sizes == [x.size for x in jax.tree.leaves(alone.state)]
    for _ in range(2):
        optimizer = optimizer.apply_gradient(tree(7), learning_rate=0.2)
        alone = alone.apply_gradient({"a": tree(7)["a"]}, learning_rate=0.2)
        assert same(optimizer.target["branch"], frozen)
        assert_close(optimizer.target["a"], alone.target["a"])
        assert same(jax.tree.leaves(optimizer.state), jax.tree.leaves(alone.state))

    def fn(params: Any) -> Array:
        return jnp.sum(params["a"] ** 2) + jnp.sum(jnp.nan_to_num(params["branch"]["b"]))

    _, grads = optimizer.compute_gradient(fn)
    assert grads["branch"] == {"b": None, "w": None}
    _, expected = alone.compute_gradient(lambda params: jnp.sum(params["a"] ** 2))
    assert same(grads["a"], expected["a"])
    stepped, evaluation = optimizer.step(fn)
    assert same(stepped.target["branch"], frozen)
    assert evaluation.grad["branch"] == {"b": None, "w": None}
    assert_close(stepped.target["a"], optimizer.apply_gradient(grads).target["a"])
    assert optimizer.hyperparameters().keys() == alone.hyperparameters().keys()


def test_a_focus_that_is_a_model_of_booleans():
    everywhere = jax.tree.map(lambda x: False if eqx.is_array(x) else x, MODEL)
    mask = eqx.tree_at(lambda m: m.layers[-1].weight, everywhere, True)
    optimizer, _ = Optimizer.create(eqopt.SGD(0.1), MODEL, mask).step(loss, X, Y)
    by_path, _ = Optimizer.create(eqopt.SGD(0.1), MODEL, ByPath("layers.1.weight")).step(loss, X, Y)
    assert same(optimizer.target, by_path.target)
    assert not same(optimizer.target.layers[1].weight, MODEL.layers[1].weight)
    assert same(optimizer.target.layers[1].bias, MODEL.layers[1].bias)


def test_a_line_search_in_focus():
    optimizer = Optimizer.create(eqopt.LBFGS(), tree(), ByPath("branch.**"))
    for _ in range(5):
        optimizer, evaluation = optimizer.step(quadratic)
        assert evaluation.grad["a"] is None
    assert same(optimizer.target["a"], tree()["a"])
    # The minimum of x**2 + x.
    for x in jax.tree.leaves(optimizer.target["branch"]):
        np.testing.assert_allclose(x, -0.5, atol=1e-5)


@pytest.mark.parametrize(
    "focus", [ByPath("c", must_match=False), lambda params: False, ByPath("integers")]
)
def test_a_focus_that_chooses_nothing(focus: Any):
    target = {**tree(), "integers": jnp.arange(3)}
    message = complaint(ValueError, Optimizer.create, eqopt.SGD(0.1), target, focus)
    assert "`focus` chooses no parameter" in message
    assert "`target['branch']['w']`" in message and "integers']" not in message


def test_a_focus_that_does_not_fit():
    message = complaint(ValueError, Optimizer.create, eqopt.SGD(0.1), tree(), {"a": True})
    assert "branch" in message


# The rest of it


@pytest.mark.parametrize("focus", [None, ByPath("**.bias")])
def test_eval_target(focus: Any):
    optimizer = Optimizer.create(eqopt.ParamEMA(eqopt.SGD(0.1), 0.5, debias=False), MODEL, focus)
    after, _ = optimizer.step(loss, X, Y)
    mean = jax.tree.map(
        lambda x, y: (x + y) / 2, *(eqx.filter(x, eqx.is_array) for x in (MODEL, after.target))
    )
    assert_close(eqx.filter(after.eval_target, eqx.is_array), mean)
    assert not same(after.eval_target, after.target)
    assert isinstance(after.eval_target, eqx.nn.MLP)


def test_replace():
    optimizer = Optimizer.create(eqopt.AdamW(0.1), tree())
    other = optimizer.replace(target=tree(3), learning_rate=0.5)
    assert same(other.target, tree(3)) and same(other.state, optimizer.state)
    assert float(other.hyperparameters()["learning_rate"]) == 0.5
    assert same(optimizer.transformation, eqopt.AdamW(0.1))
    with pytest.raises(TypeError, match="no numeric hyper-parameter `focus`"):
        optimizer.replace(focus=None)


def test_repr():
    opt = eqopt.SGD(0.1)
    assert repr(Optimizer.create(opt, MODEL)) == (
        f"Optimizer(transformation={opt!r}, state=ChainState(...), target=MLP(...))"
    )
    focused = repr(Optimizer.create(opt, MODEL, ByPath("**.bias")))
    assert "focus=ByPath(pattern='**.bias')" in focused
    assert "state=SelectiveTransformState(...)" in focused and "Array" not in focused
