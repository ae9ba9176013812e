"""`value_and_grad` over the axes of `vmap` and `shard_map`: per example, and summed."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

import eqopt
from tests.support.toolbox import assert_close, complaint, FLOAT, same, tree, values, Zoo, zoo_loss

X = values((4, 3), 0)
# Within `jit` nothing that is traced knows yet what a surrounding `vmap` maps.
WITHIN_JIT_TOO = pytest.mark.parametrize("wrap", [lambda fn: fn, jax.jit], ids=["bare", "jit"])


def _loss(params: Any, x: Array) -> Array:
    """Of `tree()` and a vector of 3; nonlinear in both."""
    y = jnp.tanh(params["a"] @ x) + params["branch"]["w"] @ jnp.cos(x)
    return jnp.sum(jnp.square(y)) + jnp.sum(params["branch"]["b"])


# Over axes of `vmap`


@jax.jit
def _per_example(params: Any, xs: Array) -> Any:
    return jax.vmap(jax.value_and_grad(_loss), (None, 0))(params, xs)


def _map(fn: Any, where: Any, out: Any = 0, name: str | None = "batch") -> Any:
    # Compiled from outside, which is no other program, and faster.
    return jax.jit(jax.vmap(fn, where, out, axis_name=name) if name else jax.vmap(fn, where, out))


def _sum(x: Any, axis: int | tuple[int, ...] = 0) -> Any:
    return jax.tree.map(lambda leaf: jnp.sum(leaf, axis), x)


@WITHIN_JIT_TOO
@pytest.mark.parametrize("axes", ["batch", ("batch",), ["batch", "batch"]], ids=str)
def test_reduce_axes_sums_over_a_batch(wrap: Any, axes: Any):
    fn = wrap(eqopt.value_and_grad(_loss, reduce_axes=axes))
    ours = jax.vmap(fn, (None, 0), (0, None), axis_name="batch")(tree(), X)  # also when eager
    value, grad = _per_example(tree(), X)
    assert_close(ours, (value, _sum(grad)), rtol=1e-5)
    # Not a number of the batch: a gradient that is the same in each example.
    assert np.all(ours[1]["branch"]["b"] == 4)


@WITHIN_JIT_TOO
def test_without_reduce_axes_gradients_are_per_example(wrap: Any):
    fn = wrap(eqopt.value_and_grad(_loss))
    ours = _map(fn, (None, 0))(tree(), X)
    assert_close(ours, _per_example(tree(), X), rtol=1e-5)


@WITHIN_JIT_TOO
def test_reduce_axes_goes_leaf_by_leaf(wrap: Any):
    params = tree()
    params["a"] = values((4, 2, 3), 5)
    where = {"a": 0, "branch": None}
    fn = wrap(eqopt.value_and_grad(_loss, (0, 1), reduce_axes="batch"))
    out = (0, ({"a": 0, "branch": None}, 0))
    value, grads = _map(fn, (where, 0), out)(params, X)
    expected, slopes = _map(jax.value_and_grad(_loss, (0, 1)), (where, 0))(params, X)
    slopes[0]["branch"] = _sum(slopes[0]["branch"])
    assert_close((value, grads), (expected, slopes), rtol=1e-5)


def test_reduce_axes_of_a_model():
    model, xs = Zoo(), X[:, :2]
    where: Any = {"in_axes": (None, 0)}
    fn: Any = eqx.filter_vmap(
        eqopt.value_and_grad(zoo_loss, reduce_axes="batch"),
        out_axes=(0, None),
        axis_name="batch",
        **where,
    )
    value, grad = eqx.filter_jit(fn)(model, xs)
    reference: Any = eqx.filter_vmap(eqx.filter_value_and_grad(zoo_loss), **where)
    expected = eqx.filter_jit(reference)(model, xs)
    assert_close((value, grad), (expected[0], _sum(expected[1])), rtol=1e-5)
    assert grad.activation is None


def test_reduce_axes_with_integers_aux_and_numbers():
    def fn(p: Any, s: float, x: Array) -> Any:
        return s * p["n"].astype(FLOAT) * _loss(p, x), (x, p["n"])

    p = {**tree(), "n": jnp.asarray(2)}
    ours: Any = eqopt.value_and_grad(fn, (0, 1), has_aux=True, allow_int=True, reduce_axes="batch")
    out = ((0, (0, None)), None)
    # Gradients with respect to integers are no arrays, which `vmap` could not return.
    (value, aux), (grad, slope) = _map(
        lambda p, s, x: _without_float0(ours(p, s, x)), (None, None, 0), out
    )(p, 0.5, X)
    expected, reference = _per_example(tree(), X)
    assert grad.pop("n") is None
    assert_close((value, grad), (expected, _sum(reference)), rtol=1e-5)
    assert_close(slope, 2 * jnp.sum(expected), rtol=1e-5)
    assert same(aux, (X, p["n"]))


def _without_float0(x: Any) -> Any:
    return jax.tree.map(lambda y: None if y.dtype == jax.dtypes.float0 else y, x)


@WITHIN_JIT_TOO
@pytest.mark.parametrize("axes", [(), ("i",), ("j",), ("i", "j")], ids=str)
@pytest.mark.parametrize("swap", [False, True])
def test_nested_axes(wrap: Any, axes: Any, swap: bool):
    """Three arguments vary over no axis, and over one each; and one `vmap` has no name."""

    def fn(p: Array, q: Array, r: Array, x: Array) -> Array:
        return jnp.sum(jnp.sin(p * x) + q * jnp.exp(r) * x)

    p, q, r, x = values((3,), 1), values((2, 3), 2), values((5, 3), 3), values((2, 4, 5, 3), 4)
    ours = wrap(eqopt.value_and_grad(fn, (0, 1, 2), reduce_axes=axes[::-1] if swap else axes))
    ours = _map(ours, (None, None, 0, 0), name="j")
    ours = _map(ours, (None, None, None, 0), name=None)
    _, grads = _map(ours, (None, 0, None, 0), name="i")(p, q, r, x)
    all_p, all_q, all_r, _ = jnp.broadcast_arrays(p, q[:, None, None], r, x)
    slopes: Any = jax.grad(lambda p, q, r: fn(p, q, r, x), (0, 1, 2))(all_p, all_q, all_r)
    places = {"i": 0, "j": 2}
    for grad, slope, own in zip(grads, slopes, ["", "i", "j"], strict=True):
        where = tuple(places[a] for a in axes if a not in own)
        expected = jnp.broadcast_to(jnp.sum(slope, where, keepdims=True), slope.shape)
        assert_close(grad, expected, rtol=1e-5)


def test_an_inner_axis_hides_an_outer_one_of_its_name():
    ours: Any = eqopt.value_and_grad(_loss, reduce_axes="i")
    xs = values((2, 4, 3), 3)
    inner = jax.vmap(ours, (None, 0), (0, None), axis_name="i")
    _, grad = _map(inner, (None, 0), name="i")(tree(), xs)
    expected = _map(lambda x: _sum(_per_example(tree(), x)[1]), 0)(xs)
    assert_close(grad, expected, rtol=1e-5)


@WITHIN_JIT_TOO
def test_nothing_that_varies_is_not_summed(wrap: Any):
    fn = wrap(eqopt.value_and_grad(_loss, reduce_axes="batch"))

    def one(_: Array) -> Any:
        return fn(tree(), X[0])

    ours = _map(one, 0, None)(X)
    assert_close(ours, jax.value_and_grad(_loss)(tree(), X[0]), rtol=1e-5)


@WITHIN_JIT_TOO
def test_a_value_that_is_averaged_already(wrap: Any):
    """One value for all examples: its gradient, and not its gradient times their number."""

    def mean(p: Any, x: Array) -> Array:
        return lax.pmean(_loss(p, x), "batch")

    ours = wrap(eqopt.value_and_grad(mean, reduce_axes="batch"))
    expected = jax.tree.map(lambda x: jnp.mean(x, 0), _per_example(tree(), X))
    assert_close(_map(ours, (None, 0), None)(tree(), X), expected, rtol=1e-5)


def test_a_training_loop_within_vmap_keeps_shared_parameters():
    """Parameters that start out shared and are updated by sums stay so, through `scan`."""
    rate = jnp.asarray(1e-2, FLOAT)

    def train(params: Any, x: Array) -> Any:
        def step(params: Any, _: None) -> Any:
            value, grad = eqopt.value_and_grad(_loss, reduce_axes="batch")(params, x)
            return jax.tree.map(lambda p, g: p - rate * g, params, grad), value

        return lax.scan(step, params, None, length=3)

    ours, history = _map(train, (None, 0), (None, 0))(tree(), X)
    params, expected = tree(), []
    for _ in range(3):
        value, grad = _per_example(params, X)
        params = jax.tree.map(lambda p, g: p - rate * jnp.sum(g, 0), params, grad)
        expected.append(value)
    assert_close((ours, history), (params, jnp.stack(expected, 1)), rtol=1e-5)


@WITHIN_JIT_TOO
@pytest.mark.parametrize("outer", [jax.jacfwd, jax.jacrev])
def test_derivatives_of_a_sum_are_those_of_psum(wrap: Any, outer: Any):
    def with_psum(p: Any, x: Array) -> Any:
        grad = jax.grad(_loss)(p, x)
        return lax.psum(grad, "batch")

    def ours(p: Any, x: Array) -> Any:
        return wrap(eqopt.value_and_grad(_loss, reduce_axes="batch"))(p, x)[1]

    a, b = (_map(outer(fn, argnums=(0, 1)), (None, 0))(tree(), X) for fn in (ours, with_psum))
    assert_close(a, b, rtol=1e-4)


def test_reduce_axes_in_half_precision():
    xs = jnp.asarray([1.0, *[2.0**-9] * 512], jnp.bfloat16)
    fn = eqopt.value_and_grad(lambda p, x: p * x, reduce_axes="batch")
    _, grad = _map(fn, (None, 0), (0, None))(xs[0], xs)
    assert grad.dtype == jnp.bfloat16 and grad == 2.0  # one by one, it would stay at 1


# Over axes of `shard_map`


MESH = {"axis_types": (jax.sharding.AxisType.Auto,) * 2}
ROWS = values((8, 3), 9)


def _on_devices(fn: Callable[..., Any], wrap: Any, out: Any, check_vma: bool = True) -> Any:
    mesh = jax.make_mesh((4, 2), ("d", "m"), **MESH)
    specs = {"in_specs": (P(), P(("d", "m"))), "out_specs": out, "check_vma": check_vma}
    return wrap(jax.shard_map(fn, mesh=mesh, **specs))(tree(), ROWS)


@pytest.mark.parametrize(
    ("wrap", "axes"),
    [*[(jax.jit, x) for x in [(), ("d",), ("m",), ("d", "m")]], (lambda fn: fn, ("d",))],
    ids=["none", "d", "m", "both", "d-bare"],
)
def test_shard_map(wrap: Any, axes: Any):
    def run(p: Any, rows: Array) -> Any:
        value, grad = eqopt.value_and_grad(_loss, reduce_axes=axes)(p, rows[0])
        kept = tuple(a for a in ("d", "m") if a not in axes)
        assert all(jax.tree.leaves(jax.tree.map(lambda g: _axes_of(g) == {*kept}, grad)))
        return value[None], jax.tree.map(lambda g: g[None], grad)

    kept = tuple(a for a in ("d", "m") if a not in axes)
    value, grad = _on_devices(run, wrap, (P(("d", "m")), P(kept) if kept else P()))
    expected, slopes = _per_example(tree(), ROWS)
    summed = tuple({"d": 0, "m": 1}[a] for a in axes)
    size = {"d": 4, "m": 2}
    slopes = jax.tree.map(
        lambda g: jnp.sum(g.reshape(4, 2, *g.shape[1:]), summed).reshape(
            int(np.prod([size[a] for a in kept])), *g.shape[1:]
        ),
        slopes,
    )
    assert_close((value, grad), (expected, slopes), rtol=1e-5)


def _axes_of(x: Any) -> set[Any]:
    kind: Any = jax.typeof(x)
    try:
        return set(kind.manual_axis_type.varying)
    except AttributeError:
        return set(kind.vma)


def test_shard_map_over_all_axes_is_what_jax_does():
    def run(p: Any, rows: Array) -> Any:
        # aux that is made of the parameters alone is the same on all devices, and stays so.
        def fn(p: Any) -> Any:
            return _loss(p, rows[0]), p["a"] * 2

        ours = eqopt.value_and_grad(fn, has_aux=True, reduce_axes=("m", "d"))(p)
        theirs = jax.value_and_grad(fn, has_aux=True)(p)
        return [((v[None], aux), grad) for (v, aux), grad in (ours, theirs)]

    out = ((P(("d", "m")), P()), P())
    ours, theirs = _on_devices(run, jax.jit, [out, out])
    assert_close(ours, theirs)


@pytest.mark.parametrize("axes", [(), ("d",), ("d", "m")], ids=str)
def test_shard_map_with_one_value_for_all_devices(axes: Any):
    def run(p: Any, rows: Array) -> Any:
        def fn(p: Any) -> Array:
            return lax.pmean(_loss(p, rows[0]), ("d", "m"))

        return eqopt.value_and_grad(fn, reduce_axes=axes)(p)

    ours = _on_devices(run, jax.jit, (P(), P()))
    assert_close(ours, jax.tree.map(lambda x: jnp.mean(x, 0), _per_example(tree(), ROWS)), 1e-5)


def test_vmap_within_shard_map_and_around_it():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    fn = eqopt.value_and_grad(_loss, reduce_axes=("d", "batch"))
    within = jax.shard_map(
        jax.vmap(fn, (None, 0), (0, None), axis_name="batch"),
        mesh=mesh,
        in_specs=(P(), P("d")),
        out_specs=(P("d"), P()),
    )
    xs = values((16, 3), 3)
    value, grad = _per_example(tree(), xs)
    assert_close(jax.jit(within)(tree(), xs), (value, _sum(grad)), rtol=1e-5)

    def one(p: Any, rows: Array) -> Any:
        value, grad = fn(p, rows[0])
        return value[None], grad

    sharded = jax.shard_map(one, mesh=mesh, in_specs=(P(), P("d")), out_specs=(P("d"), P()))
    around = jax.vmap(sharded, (None, 0), (0, None), axis_name="batch")
    ours = jax.jit(around)(tree(), xs.reshape(2, 8, 3))
    assert_close(ours, (value.reshape(2, 8), _sum(grad)), rtol=1e-5)


# Mistakes


def test_an_axis_that_is_not_there():
    fn = eqopt.value_and_grad(_loss, reduce_axes=("batch", "other"))
    said = complaint(ValueError, lambda: fn(tree(), X[0]))
    assert "'batch', which is no axis" in said
    run = jax.vmap(fn, (None, 0), axis_name="batch")
    assert "'other', which is no axis" in complaint(ValueError, lambda: run(tree(), X))


@WITHIN_JIT_TOO
def test_an_axis_that_cannot_be_seen(wrap: Any):
    def run(p: Any, rows: Array) -> Any:
        return eqopt.value_and_grad(_loss, reduce_axes="d")(p, rows[0])[1]

    said = complaint(ValueError, lambda: _on_devices(run, wrap, P(), check_vma=False))
    assert "`reduce_axes` names 'd'" in said and "`check_vma=True`" in said


def test_shard_map_without_types_is_per_device():
    def run(p: Any, rows: Array) -> Any:
        value, grad = eqopt.value_and_grad(_loss)(p, rows[0])
        return value[None], jax.tree.map(lambda g: g[None], grad)

    ours = _on_devices(run, jax.jit, P(("d", "m")), check_vma=False)
    assert_close(ours, _per_example(tree(), ROWS), rtol=1e-5)
