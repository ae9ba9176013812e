"""Models as users have them: every row of what goes wrong elsewhere, and odd trees."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import eqopt
from tests.support.toolbox import assert_close, finite, FLOAT, same, Tally, Traced, tree, values

OPT = eqopt.AdamW(0.1)


def _mlp() -> eqx.nn.MLP:
    return eqx.nn.MLP(3, 2, 4, 1, dtype=FLOAT, key=jax.random.key(0))


def _loss(model: Callable[[Array], Array], x: Array, y: Array) -> Array:
    return jnp.mean(jnp.square(jax.vmap(model)(x) - y))


X, Y = values((4, 3), 0), values((4, 2), 1)


def test_a_whole_model_unfiltered():
    model = _mlp()
    state = OPT.init(model)
    gradients = eqx.filter_grad(_loss)(model, X, Y)
    updates, state = OPT.update(gradients, state, model)
    new = eqopt.apply_updates(model, updates)
    assert new.activation is model.activation
    newer, state, evaluation = OPT.step(_loss, new, state, X, Y)
    assert evaluation.value < _loss(model, X, Y)
    assert _loss(newer, X, Y) < evaluation.value


class CallableMask(eqx.Module):
    """A tree of booleans that is callable, as a mapped model is."""

    layer: Any

    def __call__(self, x: Any) -> Any:
        raise AssertionError("a mask that is a tree is not called")


class Callable_(eqx.Module):
    layer: eqx.nn.Linear

    def __call__(self, x: Array) -> Array:
        return self.layer(x)


def _callable_model() -> Callable_:
    return Callable_(eqx.nn.Linear(3, 2, dtype=FLOAT, key=jax.random.key(0)))


def test_a_mask_that_is_a_callable_module_is_a_tree():
    model = _mlp()
    mask = jax.tree.map(lambda x: eqx.is_array(x) and x.ndim == 2, model)
    assert callable(mask)
    by_tree = eqopt.AdamW(0.1, weight_decay=0.5, mask=mask)
    by_selector = eqopt.AdamW(0.1, weight_decay=0.5, mask=eqopt.ByNdim(2))
    gradients = eqx.filter_grad(_loss)(model, X, Y)
    updates, _ = by_tree.update(gradients, by_tree.init(model), model)
    expected, _ = by_selector.update(gradients, by_selector.init(model), model)
    assert same(updates, expected)

    masked = eqopt.Masked(eqopt.SetToZero(), jax.tree.map(lambda b: not b, mask))
    updates, _ = masked.update(gradients, masked.init(model), model)
    assert same(updates.layers[0].weight, gradients.layers[0].weight)
    assert same(updates.layers[0].bias, jnp.zeros(4, FLOAT))


def test_a_callable_mask_is_never_called():
    model = _callable_model()
    gradients = jax.tree.map(jnp.ones_like, model)
    layer = eqx.tree_at(lambda m: (m.weight, m.bias), model.layer, (True, False))
    mask = eqx.tree_at(lambda m: m.layer, model, layer)
    opt = eqopt.Masked(eqopt.SetToZero(), mask)
    updates, _ = opt.update(gradients, opt.init(model), model)
    assert same(updates.layer.weight, jnp.zeros((2, 3), FLOAT))
    assert same(updates.layer.bias, jnp.ones(2, FLOAT))
    with pytest.raises(ValueError, match="`mask` is a CallableMask; `params` is a Callable_"):
        eqopt.Masked(eqopt.SetToZero(), CallableMask(True)).init(model)


class Biases(eqopt.selectors.AbstractSelector):
    """A mask function that is a Module, with data of its own."""

    name: str = eqx.field(static=True, default="bias")

    def select(self, params: Any) -> Any:
        return eqopt.ByPath(f"**.{self.name}").select(params)


def test_a_selector_is_a_function_by_type():
    model = _mlp()
    gradients = eqx.filter_grad(_loss)(model, X, Y)
    opt = eqopt.Masked(eqopt.SetToZero(), Biases())
    updates, _ = opt.update(gradients, opt.init(model), model)
    for layer, raw in zip(updates.layers, gradients.layers, strict=True):
        assert same(layer.bias, jnp.zeros_like(layer.bias))
        assert same(layer.weight, raw.weight)


@pytest.mark.parametrize("names", [("value", "grad"), ("value_fn", "key"), ("state", "count")])
def test_parameters_may_have_any_name(names: tuple[str, str]):
    params = dict.fromkeys(names, jnp.ones(3, FLOAT))
    gradients = dict.fromkeys(names, jnp.full(3, 0.5, FLOAT))
    opt = eqopt.Chain(eqopt.ClipByGlobalNorm(1.0), eqopt.AdamW(0.1))
    state = opt.init(params)
    updates, state = opt.update(gradients, state, params, value=1.0, grad=gradients)
    assert set(updates) == set(names)
    new, _, _ = opt.step(lambda p: jnp.sum(p[names[0]] ** 2), params, state)
    assert set(new) == set(names)
    assert same(updates[names[0]], updates[names[1]])


@pytest.mark.parametrize("name", ["state", "params", "fn", "value", "grad", "updates"])
def test_arguments_of_the_objective_may_have_any_name(name: str):
    # `state` above all: it is what Equinox calls that of its stateful layers.
    def loss(model: Any, **kwargs: Any) -> Array:
        return kwargs[name] * jnp.sum(model)

    opt, model = eqopt.SGD(0.1), jnp.ones(3, FLOAT)
    given: dict[str, Any] = {name: 2.0}
    new, _, evaluation = opt.step(loss, model, opt.init(model), **given)
    assert evaluation.value == 6
    assert_close(new, jnp.full(3, 0.8, FLOAT))


@pytest.mark.parametrize("shape", [(5, 3), (1, 3), (1,), (), (3, 1)])
def test_a_gradient_that_would_broadcast_is_refused(shape: tuple[int, ...]):
    params = {"w": jnp.ones(3, FLOAT)}
    with pytest.raises(
        ValueError, match=r"`updates\['w'\]` has shape .*; the parameter has \(3,\)"
    ):
        OPT.update({"w": jnp.ones(shape, FLOAT)}, OPT.init(params), params)
    with pytest.raises(
        ValueError, match=r"`updates\['w'\]` has shape .*; the parameter has \(3,\)"
    ):
        eqopt.apply_updates(params, {"w": jnp.ones(shape, FLOAT)})


def test_the_derivative_of_adam_at_a_zero_gradient():
    def size(scale: Array) -> Array:
        opt = eqopt.ScaleByAdam()
        updates, _ = opt.update(scale * jnp.zeros(2, FLOAT), opt.init(jnp.ones(2, FLOAT)))
        return jnp.sum(updates)

    assert finite(jax.grad(size)(jnp.ones((), FLOAT)))


# Schedules of any hyper-parameter.


def _run(opt: Any, num_steps: int = 4) -> list[Any]:
    params, trail = tree(), []
    state = opt.init(params)
    for seed in range(num_steps):
        updates, state = opt.update(tree(seed), state, params)
        trail.append(updates)
    return trail


@pytest.mark.parametrize(
    ("inner", "where", "value"),
    [
        (eqopt.AdamW(0.1), lambda o: o.learning_rate, 0.1),
        (eqopt.AdamW(0.1, b1=0.8), lambda o: o.b1, 0.8),
        (eqopt.AdamW(0.1, weight_decay=0.3), lambda o: o.weight_decay, 0.3),
        (eqopt.NAdamW(0.1, mu_dtype=jnp.float32), lambda o: o.b2, 0.999),
        (eqopt.SGD(0.1, 0.9, nesterov=True), lambda o: o.momentum, 0.9),
        (eqopt.ClipByGlobalNorm(0.5), lambda o: o.max_norm, 0.5),
        (eqopt.Chain(eqopt.Clip(0.6), eqopt.Trace(0.9)), lambda o: o.links[0].max_delta, 0.6),
        (eqopt.Masked(eqopt.Trace(0.9), eqopt.ByNdim(2)), lambda o: o.inner.decay, 0.9),
        (eqopt.AdamW(eqopt.Linear(0.1, 0.0, 4)), lambda o: o.learning_rate.init_value, 0.1),
    ],
)
def test_a_scheduled_constant_is_the_constant(inner: Any, where: Any, value: float):
    scheduled = eqopt.Scheduled(inner, where, eqopt.Constant(value))
    assert same(_run(scheduled), _run(inner))


def test_a_schedule_agrees_with_a_constant_where_the_values_do():
    half = eqopt.PiecewiseConstant(0.1, {2: 0.5})
    by_scheduled = _run(eqopt.Scheduled(eqopt.AdamW(0.7), lambda o: o.learning_rate, half))
    by_schedule = _run(eqopt.AdamW(half))
    before, after = _run(eqopt.AdamW(0.1)), _run(eqopt.AdamW(0.05))
    assert same(by_scheduled, by_schedule)
    assert same(by_scheduled[:2], before[:2])
    assert same(by_scheduled[2:], after[2:])


def test_what_is_scheduled_can_be_edited():
    ramp = eqopt.Scheduled(eqopt.SGD(0.1, 0.9), lambda o: o.momentum, eqopt.Linear(0.0, 0.8, 2))
    edited = eqx.tree_at(lambda s: s.inner.learning_rate, ramp, 0.2)
    for update, doubled in zip(_run(ramp), _run(edited), strict=True):
        assert_close(jax.tree.map(lambda u: 2 * u, update), doubled)
    steeper = eqx.tree_at(lambda s: s.schedule.end_value, ramp, 0.4)
    assert same(_run(steeper)[0], _run(ramp)[0]) and not same(_run(steeper)[2], _run(ramp)[2])


def test_schedules_nest():
    once = eqopt.Scheduled(eqopt.SGD(0.1, 0.9), lambda o: o.momentum, eqopt.Linear(0.0, 0.8, 2))
    twice = eqopt.Scheduled(once, lambda s: s.inner.learning_rate, eqopt.Linear(0.1, 0.2, 4))
    same_in_one = eqopt.Scheduled(
        eqopt.SGD(eqopt.Linear(0.1, 0.2, 4), 0.9), lambda o: o.momentum, eqopt.Linear(0.0, 0.8, 2)
    )
    assert same(_run(twice), _run(same_in_one))


# Trees of every kind.


class Pair(NamedTuple):
    left: Any
    right: Any


ODD_TREES = {
    "array": lambda: jnp.ones(3, FLOAT),
    "scalar": lambda: jnp.ones((), FLOAT),
    "tuple": lambda: (jnp.ones(3, FLOAT), jnp.ones((), FLOAT)),
    "named tuple": lambda: Pair(jnp.ones(3, FLOAT), [jnp.ones(2, FLOAT)]),
    "nested None": lambda: {"a": None, "b": [None, jnp.ones(2, FLOAT)], "c": ()},
    "NumPy": lambda: {"a": np.ones(3, FLOAT), "n": np.arange(3)},
    "empty array": lambda: {"a": jnp.ones((0, 3), FLOAT), "b": jnp.ones(2, FLOAT)},
    "twice the same array": lambda: [jnp.ones(3, FLOAT)] * 2,
    "widths": lambda: [jnp.ones(3, d) for d in (jnp.float32, jnp.bfloat16, jnp.float16, FLOAT)],
    "whole numbers and words": lambda: {"a": jnp.ones(3, FLOAT), "depth": 3, "x": "x", "on": True},
    "a rate in a module": lambda: {"a": jnp.ones(3, FLOAT), "dropout": eqx.nn.Dropout(0.5)},
    "object": lambda: {"a": jnp.ones(3, FLOAT), "marker": object()},
    "nothing to train": lambda: {"n": jnp.arange(3), "f": jax.nn.relu},
    "empty": dict,
}


def _total(tree: Any) -> Array:
    leaves = [x for x in jax.tree.leaves(tree) if eqx.is_inexact_array(x)]
    return sum((jnp.sum(jnp.square(x.astype(FLOAT))) for x in leaves), jnp.zeros((), FLOAT))


@pytest.mark.parametrize("make", ODD_TREES.values(), ids=ODD_TREES.keys())
def test_any_tree_is_a_model(make: Callable[[], Any]):
    model = make()
    opt = eqopt.Chain(eqopt.ClipByGlobalNorm(1.0), eqopt.AdamW(0.1, mask=eqopt.ByNdim(1)))
    state = opt.init(model)
    gradients = eqx.filter_grad(_total)(model)
    updates, state = opt.update(gradients, state, model)
    new = eqopt.apply_updates(model, updates)
    by_step, state, evaluation = opt.step(_total, model, opt.init(model))
    for result in (new, by_step):
        assert jax.tree.structure(result) == jax.tree.structure(model)
        for x, y in zip(jax.tree.leaves(model), jax.tree.leaves(result), strict=True):
            if eqx.is_inexact_array(x):
                assert (y.shape, y.dtype) == (x.shape, x.dtype)
                assert x.size == 0 or bool(jnp.all(y < x))
            elif eqx.is_array_like(x) and not isinstance(x, bool | int | float):
                np.testing.assert_array_equal(x, y)
            else:
                assert x is y
    assert same(evaluation.value, _total(model))


def test_gradients_of_integers_count_as_none():
    params = {"x": jnp.ones(2, FLOAT), "n": jnp.arange(2)}
    gradients = jax.grad(_total, allow_int=True)(params)
    assert gradients["n"].dtype == jax.dtypes.float0
    opt = eqopt.Adam(0.1)
    updates, _ = opt.update(gradients, opt.init(params), params)
    assert updates["n"] is None
    assert same(eqopt.apply_updates(params, updates)["n"], params["n"])


class Normalized(eqx.Module):
    """A model whose layers have state, randomness and shared parts."""

    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    cell: eqx.nn.GRUCell
    tied: eqx.nn.Shared

    def __init__(self, key: Any) -> None:
        a, b = jax.random.split(key)
        self.norm = eqx.nn.BatchNorm(3, "batch", mode="batch", dtype=FLOAT)
        self.dropout = eqx.nn.Dropout(0.5)
        self.cell = eqx.nn.GRUCell(3, 3, dtype=FLOAT, key=a)
        embedding = eqx.nn.Linear(3, 3, dtype=FLOAT, key=b)
        readout = eqx.nn.Linear(3, 3, dtype=FLOAT, key=b)
        self.tied = eqx.nn.Shared(
            (embedding, readout), lambda m: m[1].weight, lambda m: m[0].weight
        )

    def __call__(self, x: Array, state: Any, key: Any) -> Any:
        embedding, readout = self.tied()
        x, state = self.norm(embedding(x), state)
        x = self.cell(self.dropout(x, key=key), jnp.zeros(3, FLOAT))
        return readout(x), state


def test_layers_with_state_randomness_and_shared_parts():
    model, model_state = eqx.nn.make_with_state(Normalized)(jax.random.key(0))

    def loss(model: Normalized, model_state: Any, x: Array, *, key: Any) -> Any:
        batched = jax.vmap(model, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))
        out, model_state = batched(x, model_state, jax.random.split(key, len(x)))
        return jnp.mean(jnp.square(out - 1)), model_state

    tally = Tally()
    opt = eqopt.Chain(eqopt.AdamW(0.05), Traced(tally))
    state, losses = opt.init(model), []
    for i in range(5):
        model, state, evaluation = opt.step(
            loss, model, state, model_state, X, has_aux=True, key=jax.random.key(i)
        )
        model_state = evaluation.aux
        losses.append(float(evaluation.value))
    assert tally.num == 1
    assert losses[-1] < losses[0]
    assert model.dropout.p == 0.5
    (context,) = tally.seen
    assert context.key is not None


def test_switching_a_model_to_inference_is_seen():
    model = eqx.nn.Dropout(1.0)
    params = {"x": jnp.ones(3, FLOAT), "drop": model}

    def loss(p: Any, *, key: Any) -> Array:
        return jnp.sum(p["drop"](p["x"], key=key))

    key = jax.random.key(0)
    opt = eqopt.SGD(0.1)
    _, _, evaluation = opt.step(loss, params, opt.init(params), key=key)
    assert evaluation.value == 0
    _, _, evaluation = opt.step(loss, eqx.nn.inference_mode(params), opt.init(params), key=key)
    assert evaluation.value == 3
