"""Matrices by dimension numbers, those of one size together, in one small program."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import eqopt
from eqopt.options import MuonDimensionNumbers
from tests.support.toolbox import assert_close, FLOAT, values, X64
from tests.support.trees import assert_near

# It converges, slowly, to singular values of 1.
CUBIC = (1.5, -0.5, 0.0)


def one_update(opt: Any, gradient: Any) -> Any:
    params = jax.tree.map(jnp.zeros_like, gradient)
    return opt.update(gradient, opt.init(params), params)[0]


# Shapes


def test_factors_of_the_shape():
    ones = {"square": (4, 4), "wide": (2, 8), "tall": (8, 2), "stack": (3, 2, 8), "swapped": (8, 2)}
    params = {name: jnp.ones(shape, FLOAT) for name, shape in ones.items()}
    axes = {**dict.fromkeys(ones, (0, 1)), "stack": (1, 2), "swapped": (1, 0)}
    numbers = {name: MuonDimensionNumbers(*own) for name, own in axes.items()}
    factors = {"square": 1.0, "wide": 2.0, "tall": 1.0, "stack": 2.0, "swapped": 2.0}
    for rms in (None, 0.5):
        opt = eqopt.matrix.ScaleByShape(numbers, rms)
        updates, _ = opt.update(params, opt.init(params))
        for name, x in updates.items():
            largest = max(ones[name][-2:])
            expected = factors[name] if rms is None else rms * np.sqrt(largest)
            np.testing.assert_allclose(x, expected, rtol=1e-6)


def test_consistent_rms_is_the_root_mean_square():
    gradient = {"w": values((6, 9), 1), "k": values((2, 3, 3, 3), 2)}
    numbers = {"w": MuonDimensionNumbers(), "k": MuonDimensionNumbers((1, 2, 3), 0)}
    opt = eqopt.Chain(
        eqopt.ScaleByMuon(CUBIC, 60, weight_dimension_numbers=numbers),
        eqopt.matrix.ScaleByShape(numbers, 0.2),
    )
    for x in jax.tree.leaves(one_update(opt, gradient)):
        np.testing.assert_allclose(np.sqrt(np.mean(np.square(x))), 0.2, rtol=1e-5)


def test_batch_axes_are_matrices_of_their_own():
    stack = values((2, 3, 4, 5), 1)
    opt = eqopt.ScaleByMuon(weight_dimension_numbers=MuonDimensionNumbers(-1, 1))
    found = one_update(opt, {"w": stack})["w"]
    alone = {f"{i}{j}": stack[i, :, j] for i in range(2) for j in range(4)}
    for name, x in one_update(eqopt.ScaleByMuon(), alone).items():
        assert_near(found[int(name[0]), :, int(name[1])], x, 1e-12 if X64 else 1e-5)


def test_a_kernel_is_the_matrix_that_its_axes_make():
    kernel = values((4, 3, 2, 5), 1)
    numbers = MuonDimensionNumbers((2, 0), (3, 1))
    found = one_update(eqopt.ScaleByMuon(weight_dimension_numbers=numbers), {"w": kernel})["w"]
    matrix = kernel.transpose(2, 0, 3, 1).reshape(8, 15)
    expected = one_update(eqopt.ScaleByMuon(), {"w": matrix})["w"]
    assert_near(found.transpose(2, 0, 3, 1).reshape(8, 15), expected, 1e-12 if X64 else 1e-5)


class Net(eqx.Module):
    """A convolution and a layer, with what is no matrix."""

    conv: eqx.nn.Conv2d
    linear: eqx.nn.Linear
    activation: Any = jax.nn.relu

    def __init__(self) -> None:
        self.conv = eqx.nn.Conv2d(2, 3, 2, dtype=FLOAT, key=jax.random.key(0))
        self.linear = eqx.nn.Linear(3, 4, dtype=FLOAT, key=jax.random.key(1))


def kernels(net: Net) -> Any:
    """Dimension numbers made by mapping over a model."""

    def own(x: Any) -> Any:
        if x.ndim < 2 or x.shape[1:] == (1, 1):
            return None
        return MuonDimensionNumbers(tuple(range(1, x.ndim)), 0)

    return jax.tree.map(own, eqx.filter(net, eqx.is_inexact_array))


@pytest.mark.parametrize("form", ("function", "tree", "prefix"))
def test_models_and_dimension_numbers_of_every_form(form: str):
    net = Net()
    # The prefix takes all of the layer, its bias too, for matrices with one row.
    row = MuonDimensionNumbers((), 0)
    numbers: Any = {
        "function": kernels,
        "tree": kernels(net),
        "prefix": eqx.tree_at(lambda n: (n.conv, n.linear), net, (None, row)),
    }[form]
    opt = eqopt.Muon(0.1, muon_weight_dimension_numbers=numbers)
    state = opt.init(net)
    muon = [None, None, "muon", "muon"] if form == "prefix" else ["muon", None, "muon", None]
    labels = [x for x in state.labels if x is not None]
    assert labels == [x or "adam" for x in muon]
    gradients = jax.tree.map(jnp.ones_like, eqx.filter(net, eqx.is_inexact_array))
    gradients = eqx.tree_at(lambda n: n.conv.weight, gradients, None)
    updates, after = opt.update(gradients, state, net)
    assert updates.conv.weight is None
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert all(float(jnp.max(jnp.abs(x))) > 0.01 for x in jax.tree.leaves(updates))


# Mistakes


def test_what_is_no_matrix_is_named():
    params = {"w": jnp.ones((2, 3), FLOAT), "b": jnp.ones(3, FLOAT)}
    with pytest.raises(ValueError, match=r"`params\['b'\]` has shape \(3,\), and is no matrix"):
        eqopt.ScaleByMuon().init(params)
    with pytest.raises(ValueError, match=r"`params\['b'\]` has shape \(3,\); it has no axes"):
        eqopt.ScaleByMuon(weight_dimension_numbers=MuonDimensionNumbers()).init(params)
    with pytest.raises(ValueError, match=r"`params\['w'\]`.* are not different ones"):
        eqopt.matrix.ScaleByShape(MuonDimensionNumbers(0, (0, 1))).init({"w": params["w"]})
    with pytest.raises(TypeError, match="must hold `MuonDimensionNumbers`"):
        eqopt.Muon(0.1, muon_weight_dimension_numbers={"w": 1, "b": None})
    with pytest.raises(TypeError, match="`output_axis` must be an axis"):
        MuonDimensionNumbers(0, 1.5)


def test_dimension_numbers_are_hashable_and_equal_by_value():
    assert MuonDimensionNumbers() == MuonDimensionNumbers(0, 1)
    assert MuonDimensionNumbers([0, 2], 1) == MuonDimensionNumbers((0, 2), 1)
    assert (
        len({MuonDimensionNumbers(), MuonDimensionNumbers(0, 1), MuonDimensionNumbers(1, 0)}) == 2
    )
    assert jax.tree.leaves(MuonDimensionNumbers()) == []


# One program


def many(num: int, shapes: Any) -> dict[str, Any]:
    return {f"{i:04}": jnp.full(shapes[i % len(shapes)], 0.5, np.float32) for i in range(num)}


def lowered(opt: Any, params: Any) -> str:
    def step(gradients: Any, state: Any, params: Any) -> Any:
        updates, state = opt.update(gradients, state, params)
        return eqopt.apply_updates(params, updates), state

    return jax.jit(step).lower(params, opt.init(params), params).as_text()


@pytest.mark.parametrize("before", ("frobenius", "spectral", "aol"))
def test_products_do_not_grow_with_the_leaves(before: str):
    # Three sizes, one of them transposed, and in a stack.
    shapes = ((3, 5), (5, 3), (4, 4), (2, 6), (7,))
    opt = eqopt.Muon(0.1, preconditioning=before)
    few, more = (lowered(opt, many(num, shapes)) for num in (5, 100))
    products = 3 * 3 + (3 if before == "aol" else 0)
    for text in (few, more):
        assert text.count("stablehlo.dot_general") == products
        assert text.count("stablehlo.while") == 3


def test_a_step_of_many_matrices_has_fewer_equations_than_a_leaf_alone_has_operations():
    params = many(500, ((3, 5), (4, 4), (2, 6), (5, 5)))
    opt = eqopt.Muon(0.1)
    state = opt.init(params)
    jaxpr = jax.make_jaxpr(opt.update)(params, state, params)
    assert len(str(jaxpr).splitlines()) < 20 * 500


@pytest.mark.parametrize("kind", (AxisType.Auto, AxisType.Explicit), ids=lambda kind: kind.name)
def test_divided_parameters_of_every_form(kind: AxisType):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    specs = {
        "w": PartitionSpec("x", "y"),
        "k": PartitionSpec("y", None, "x"),
        "v": PartitionSpec("y", "x"),
    }
    plain = {"w": values((8, 4), 1), "k": values((4, 2, 8), 2), "v": values((4, 8), 3)}
    numbers = {
        "w": MuonDimensionNumbers(),
        "k": MuonDimensionNumbers((0, 1), 2),
        "v": MuonDimensionNumbers(),
    }
    divided = {
        name: jax.device_put(x, NamedSharding(mesh, specs[name])) for name, x in plain.items()
    }
    opt = eqopt.Muon(0.1, adaptive=True, muon_weight_dimension_numbers=numbers)
    updates, _ = opt.update(divided, opt.init(divided), divided)
    for name, x in divided.items():
        assert updates[name].sharding.is_equivalent_to(x.sharding, x.ndim)
    expected, _ = opt.update(plain, opt.init(plain), plain)
    assert_close(jax.device_get(updates), jax.device_get(expected), 1e-12 if X64 else 2e-5)


def test_new_coefficients_do_not_trace_anew():
    gradient = {"w": values((3, 4), 1)}
    opt = eqopt.ScaleByMuon()
    state = opt.init(gradient)
    num_traces = 0

    @eqx.filter_jit
    def update(opt: Any) -> Any:
        nonlocal num_traces
        num_traces += 1
        return opt.update(gradient, state)[0]

    other = eqx.tree_at(lambda o: o.ns_coeffs.cubic, opt, -4.0)
    first, second = update(opt), update(eqopt.ScaleByMuon((3.0, -4.0, 1.5)))
    assert num_traces == 1
    assert not np.allclose(first["w"], second["w"])
    assert_close(
        other.update(gradient, state)[0],
        eqopt.ScaleByMuon((3.4445, -4.0, 2.0315)).update(gradient, state)[0],
    )
