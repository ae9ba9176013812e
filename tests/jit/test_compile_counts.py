"""What is traced, lowered and compiled does not grow with the leaves more than it must."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from jaxtyping import Array, PyTree

import eqopt
from eqopt._base import trace_sharing
from eqopt._transformation.base import leafwise

SHAPES = [(2, 1 + i) for i in range(7)]


def many_leaves(num: int, dtype: Any = np.float32) -> dict[str, Array]:
    """Matrices of seven shapes in turn."""
    return {f"{i:04}": jnp.full(SHAPES[i % 7], 0.5, dtype) for i in range(num)}


def step(grads: PyTree, state: Any, params: PyTree) -> tuple[PyTree, Any]:
    opt = eqopt.Chain(eqopt.ClipByGlobalNorm(1.0), eqopt.AdamW(1e-3))
    updates, state = opt.update(grads, state, params)
    return eqopt.apply_updates(params, updates), state


def arguments(num: int) -> tuple[Any, Any, Any]:
    params = many_leaves(num)
    opt = eqopt.Chain(eqopt.ClipByGlobalNorm(1.0), eqopt.AdamW(1e-3))
    return params, opt.init(params), params


# A leaf costs less than an equation


def test_a_step_of_many_leaves_has_fewer_equations_than_leaves() -> None:
    num = 700
    args = arguments(num)
    assert len(jax.make_jaxpr(step)(*args).eqns) < num / 2
    # One leaf alone goes through fifty operations.
    assert len(jax.jit(step).lower(*args).as_text().splitlines()) < 3 * num


def test_applying_to_many_leaves_has_fewer_equations_than_leaves() -> None:
    params = many_leaves(700)
    assert len(jax.make_jaxpr(eqopt.apply_updates)(params, params).eqns) < 70


def test_a_norm_of_many_leaves_has_fewer_equations_than_leaves() -> None:
    assert len(jax.make_jaxpr(eqopt.global_norm)(many_leaves(700)).eqns) < 140


@pytest.mark.parametrize("num", (7, 9, 24, 101))
def test_a_kernel_is_traced_once_a_shape(num: int) -> None:
    traces: list[tuple[int, ...]] = []

    def kernel(update: Array) -> Array:
        traces.append(update.shape)
        return -update

    def run(updates: PyTree) -> PyTree:
        rule = leafwise.Rule(kernel, eqopt.states.EmptyState())
        return leafwise.run((rule,), updates, None)[0]

    updates = many_leaves(num)
    out = jax.jit(run)(updates)
    assert traces == [x.shape for x in list(updates.values())[:7]]
    assert all((x == -0.5).all() for x in out.values())


# What is compiled


def compiled(function: Callable[..., Any], *args: Any) -> str:
    return jax.jit(function).lower(*args).compile().as_text() or ""


@pytest.mark.default_flags
def test_small_leaves_share_a_sum() -> None:
    assert 1 <= compiled(eqopt.global_norm, many_leaves(56)).count(" reduce(") < 28


# Bundles


@pytest.mark.parametrize("counts", ((), (1,), (2,), (5,), (3, 3), (40, 1), (13, 7, 29), (143,) * 7))
def test_bundles_are_alike_and_hold_every_leaf_once(counts: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    kinds = rng.permutation([i for i, n in enumerate(counts) for _ in range(n)]).tolist()
    bundles, rest = trace_sharing.bundle_by_kind(kinds)
    held = [i for bundle in [rest, *bundles] for i in bundle]
    assert Counter(held) == Counter(range(len(kinds)))
    assert len({tuple(kinds[i] for i in bundle) for bundle in bundles}) <= 1
    assert all(len(bundles) + len(x) <= max(len(kinds), 1) for x in (rest, *bundles))


def test_leaves_are_mapped_in_their_order() -> None:
    leaves = [jnp.full(SHAPES[i % 7], i, np.float32) for i in range(40)]
    halves = [
        jnp.full(x.shape, 0.5, np.float16 if i % 3 else np.float32) for i, x in enumerate(leaves)
    ]
    out = trace_sharing.map_leaves(_minus, leaves, halves)
    assert [x.shape for x in out] == [x.shape for x in leaves]
    assert [float(x[0, 0]) for x in out] == [i - 0.5 for i in range(40)]


def _minus(x: Array, y: Array) -> Array:
    return x - y.astype(x.dtype)


# The norm, of leaves small and large


def some_leaves() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    leaves: dict[str, Any] = {
        f"{i}": jnp.asarray(rng.normal(size=shape), dtype)
        for i, (shape, dtype) in enumerate(
            [((), np.float32), ((3,), np.float32), ((0, 4), np.float32), ((70, 80), np.float32)]
            + [((2, 3), np.float16), ((2, 3), jnp.bfloat16), ((9000,), np.float32)] * 5
        )
    }
    real, imaginary = rng.normal(size=(2, 4, 5))
    return leaves | {"complex": jnp.asarray(real + 1j * imaginary, np.complex64)}


def _exactly(tree: PyTree) -> float:
    wide = [np.abs(np.asarray(x).astype(np.complex128)) ** 2 for x in jax.tree.leaves(tree)]
    return float(np.sqrt(sum(np.sum(x) for x in wide)))


def test_the_norm_of_leaves_of_every_kind() -> None:
    leaves = some_leaves()
    np.testing.assert_allclose(eqopt.global_norm(leaves), _exactly(leaves), rtol=1e-6)


def test_the_slope_of_the_norm() -> None:
    leaves = {k: x for k, x in some_leaves().items() if x.dtype == np.float32}
    norm, slope = jax.value_and_grad(eqopt.global_norm)(leaves)
    for name, x in leaves.items():
        np.testing.assert_allclose(slope[name], x / norm, rtol=1e-5)
    zeros = jax.grad(eqopt.global_norm)(jax.tree.map(jnp.zeros_like, leaves))
    assert all((x == 0).all() for x in zeros.values())


@pytest.mark.parametrize("kind", (jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit))
def test_the_norm_of_divided_leaves(kind: jax.sharding.AxisType) -> None:
    mesh = jax.make_mesh((2,), ("x",), axis_types=(kind,))
    leaves = {f"{i}": jnp.arange(8.0, dtype=np.float32) + i for i in range(6)}
    expected = _exactly(leaves)
    with jax.set_mesh(mesh):
        placed = {
            name: jax.device_put(
                x,
                jax.sharding.NamedSharding(mesh, PartitionSpec("x" if i % 2 else None)),
            )
            for i, (name, x) in enumerate(leaves.items())
        }
        norm = jax.jit(eqopt.global_norm)(placed)
    np.testing.assert_allclose(norm, expected, rtol=1e-6)


def test_the_norm_within_shard_map() -> None:
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    divided, whole = jnp.arange(8.0, dtype=np.float32), jnp.arange(3.0, dtype=np.float32)

    def norm(divided: Array, whole: Array) -> Array:
        return eqopt.global_norm((divided, whole))[None]

    specs = PartitionSpec("x"), PartitionSpec()
    found = jax.shard_map(norm, mesh=mesh, in_specs=specs, out_specs=specs[0])(divided, whole)
    expected = [_exactly((part, whole)) for part in (divided[:4], divided[4:])]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
