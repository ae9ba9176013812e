"""GaLore equals the paper's recursion, and optax's where that can be compared."""

import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqopt
from eqopt.options import MuonDimensionNumbers
from eqopt.states import EmptyState
from eqopt.writing import Context
from tests.support import parity
from tests.support.parity import fields_not_varied, power, Row, row
from tests.support.toolbox import FLOAT, same, values, X64
from tests.support.trees import assert_near

# In float64 optax computes its projectors in float32 all the same: so far apart they are.
TOLERANCE = 1e-4 if X64 else 2e-3
NUM_STEPS, NUM_DRAWS = (50, 3) if X64 else (12, 2)
SHAPES = {"tall": (6, 3), "wide": (3, 5), "square": (4, 4), "bias": (4,), "kernel": (2, 3, 2)}

# One projector for all steps: from one to the next, singular vectors may change their sign, and by
# that the rule's memory its meaning.
ROWS = [
    row(
        eqopt.ScaleByGaLore,
        optax.contrib.scale_by_galore,
        {"scale": power(-1, 1)},
        rank=2,
        update_proj_gap=60,
        elsewhere=("base_optimizer", "weight_dimension_numbers"),
    ),
    row(
        eqopt.GaLore,
        optax.contrib.galore,
        {**parity.RATE, **parity.DECAY, "scale": power(-1, 1)},
        scheduled="learning_rate",
        masks=("mask",),
        rank=1,
        update_proj_gap=60,
        elsewhere=("base_optimizer", "weight_dimension_numbers"),
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_trajectories_equal_those_of_optax(row: Row):
    @jax.jit
    def ours(h: Any, params: Any, gradients: Any) -> Any:
        return parity.trajectory(row.ours(h), eqopt.apply_updates, params, gradients)

    @jax.jit
    def theirs(h: Any, params: Any, gradients: Any) -> Any:
        return parity.trajectory(row.theirs(h), optax.apply_updates, params, gradients)

    for draw in range(NUM_DRAWS):
        rng = np.random.default_rng(draw)
        h = {name: np.asarray(sample(rng), FLOAT) for name, sample in row.draws.items()}
        params = {name: rng.standard_normal(x).astype(FLOAT) for name, x in SHAPES.items()}
        gradients = {
            name: rng.standard_normal((NUM_STEPS, *x)).astype(FLOAT) for name, x in SHAPES.items()
        }
        left = ours(h, params, gradients)
        with jax.numpy_dtype_promotion("standard"):
            right = theirs(h, params, gradients)
        assert_near(left, right, TOLERANCE)


@pytest.mark.parametrize("cls", (eqopt.GaLore, eqopt.ScaleByGaLore))
def test_every_field_is_varied(cls: Any):
    assert fields_not_varied(cls, ROWS) == set()


# The paper's recursion, in NumPy and float64, with Adam for the rule.


class Paper:
    """One matrix."""

    def __init__(self, rank: int, gap: int, scale: float) -> None:
        self.rank, self.gap, self.scale = rank, gap, scale
        self.t, self.m, self.v = 0, np.zeros(()), np.zeros(())
        self.projector = np.zeros(())

    def step(self, g: np.ndarray, found: np.ndarray) -> np.ndarray:
        """Of the projector that was found, only the columns' phases are taken."""
        wide = g.shape[0] < g.shape[1]
        if self.t % self.gap == 0:
            u, _, v = np.linalg.svd(g)
            own = (v.conj().T if wide else u)[:, : self.rank]
            phases = np.sum(own.conj() * found, axis=0)
            np.testing.assert_allclose(np.abs(phases), 1, rtol=_PAPER)
            self.projector = own * phases
        self.t += 1
        p = self.projector
        low = g @ p if wide else p.conj().T @ g
        self.m = 0.9 * self.m + 0.1 * low
        self.v = 0.999 * self.v + 0.001 * np.abs(low) ** 2
        direction = self.m / (1 - 0.9**self.t)
        direction = direction / (np.sqrt(self.v / (1 - 0.999**self.t)) + 1e-8)
        return self.scale * (direction @ p.conj().T if wide else p @ direction)


_PAPER = 1e-10 if X64 else 2e-4


@pytest.mark.parametrize("dtype", (FLOAT, np.result_type(FLOAT, np.complex64)), ids=str)
def test_it_is_the_paper_recursion(dtype: Any):
    rng = np.random.default_rng(0)

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        x = rng.standard_normal(shape) + (1j * rng.standard_normal(shape))
        return np.asarray(x if np.issubdtype(dtype, np.complexfloating) else x.real, dtype)

    # The kernel is one matrix, its second axis by the others; the stack is two.
    shapes = {
        "tall": (6, 3),
        "wide": (3, 5),
        "square": (4, 4),
        "kernel": (2, 3, 2),
        "stack": (2, 3, 4),
    }
    numbers = {
        **dict.fromkeys(("tall", "wide", "square"), MuonDimensionNumbers()),
        "kernel": MuonDimensionNumbers(1, (0, 2)),
        "stack": MuonDimensionNumbers(1, 2),
    }
    opt = eqopt.ScaleByGaLore(2, 3, 0.7, weight_dimension_numbers=numbers)
    params = {name: jnp.zeros(shape, dtype) for name, shape in shapes.items()}
    state = opt.init(params)
    papers = {name: Paper(2, 3, 0.7) for name in (*shapes, "second")}
    for _ in range(50 if X64 else 12):
        gradient = {name: draw(shape) for name, shape in shapes.items()}
        updates, state = opt.update(gradient, state)
        found = {name: np.asarray(x) for name, x in state.projector.items()}
        for name in ("tall", "wide", "square"):
            expected = papers[name].step(np.conj(gradient[name]), found[name])
            assert_near(np.asarray(updates[name]), expected.astype(dtype), _PAPER)
        g = np.conj(gradient["kernel"]).transpose(1, 0, 2).reshape(3, 4)
        kernel = papers["kernel"].step(g, found["kernel"])
        expected = kernel.reshape(3, 2, 2).transpose(1, 0, 2)
        assert_near(np.asarray(updates["kernel"]), expected.astype(dtype), _PAPER)
        for i, name in enumerate(("stack", "second")):
            expected = papers[name].step(np.conj(gradient["stack"][i]), found["stack"][i])
            assert_near(np.asarray(updates["stack"])[i], expected.astype(dtype), _PAPER)


# Projectors


def test_projectors_are_orthonormal_and_stay_for_the_gap():
    opt = eqopt.ScaleByGaLore(2, 3)
    params = {"w": jnp.zeros((5, 4), FLOAT), "v": jnp.zeros((2, 4), FLOAT)}
    state = opt.init(params)
    seen = []
    for t in range(7):
        gradient = {"w": values((5, 4), t), "v": values((2, 4), 10 + t)}
        _, state = opt.update(gradient, state)
        seen.append(state.projector)
        for x in jax.tree.leaves(state.projector):
            np.testing.assert_allclose(x.T @ x, np.eye(2), atol=1e-12 if X64 else 1e-6)
    changes = [not same(a, b) for a, b in itertools.pairwise(seen)]
    assert changes == [False, False, True, False, False, True]


def test_of_full_rank_a_linear_rule_is_as_without():
    gradient = {"w": values((5, 3), 1), "v": values((3, 5), 2), "b": values((3,), 3)}
    opt = eqopt.ScaleByGaLore(base_optimizer=eqopt.Trace(0.7))
    updates, _ = opt.update(gradient, opt.init(gradient))
    assert_near(updates, gradient, 1e-12 if X64 else 5e-6)


def test_of_rank_one_what_is_left_is_the_largest_singular_value():
    gradient = {"w": values((5, 3), 1), "v": values((3, 5), 2)}
    opt = eqopt.ScaleByGaLore(1, scale=0.5, base_optimizer=eqopt.Identity())
    updates, _ = opt.update(gradient, opt.init(gradient))
    for name, x in gradient.items():
        u, s, v = np.linalg.svd(np.float64(x), full_matrices=False)
        expected = 0.5 * s[0] * np.outer(u[:, 0], v[0])
        np.testing.assert_allclose(updates[name], expected, atol=1e-12 if X64 else 1e-5)


def test_the_memory_is_of_the_rank():
    params = {
        "w": jnp.zeros((6, 4), FLOAT),
        "v": jnp.zeros((4, 7), FLOAT),
        "b": jnp.zeros(3, FLOAT),
    }
    state = eqopt.ScaleByGaLore(2).init(params)
    moments = jax.tree.map(jnp.shape, state.base_optimizer_state.mu, is_leaf=eqx.is_array)
    assert moments == {"w": (2, 4), "v": (4, 2), "b": (3,)}
    assert {name: None if x is None else x.shape for name, x in state.projector.items()} == {
        "w": (6, 2),
        "v": (7, 2),
        "b": None,
    }


def test_the_derivative_at_a_gradient_of_zero_is_finite():
    opt = eqopt.ScaleByGaLore(1)
    zeros = {"w": jnp.zeros((3, 3), FLOAT)}
    state = opt.init(zeros)
    found = jax.jacobian(lambda g: opt.update(g, state)[0]["w"])(zeros)
    assert np.all(np.isfinite(found["w"]))


# The base optimizer


class Seen(eqopt.writing.AbstractTransformation[EmptyState]):
    """Answers with the parameters, and the gradient that it was given, times a number."""

    def init_state(self, params: Any, context: Context) -> EmptyState:
        return EmptyState()

    def transform(
        self, updates: Any, state: EmptyState, params: Any, context: Context
    ) -> tuple[Any, EmptyState]:
        assert context.value_fn is None
        factor = context.require("factor", self) * context.require("value", self)
        grad = context.require("grad", self)
        assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
        return jax.tree.map(lambda u, x, g: u + factor * x + g, updates, params, grad), state


def test_the_base_optimizer_is_given_projected_parameters_and_all_arguments():
    params = {"w": values((5, 3), 1), "b": values((3,), 2)}
    gradient = {"w": values((5, 3), 3), "b": values((3,), 4)}
    opt = eqopt.ScaleByGaLore(1, base_optimizer=Seen())
    updates, state = opt.update(
        gradient,
        opt.init(params),
        params,
        value=jnp.asarray(2.0, FLOAT),
        grad=gradient,
        value_fn=lambda p: jnp.sum(p["b"]),
        factor=jnp.asarray(1.5, FLOAT),
    )
    p = np.asarray(state.projector["w"], np.float64)
    expected = {
        name: 2 * np.float64(gradient[name]) + 3 * np.float64(params[name]) for name in params
    }
    tolerance = 1e-12 if X64 else 1e-5
    np.testing.assert_allclose(updates["w"], p @ p.T @ expected["w"], atol=tolerance)
    np.testing.assert_allclose(updates["b"], expected["b"], atol=tolerance)


def test_what_has_no_gradient_keeps_its_projector():
    opt = eqopt.GaLore(0.1, 1, 1)
    model = eqx.nn.MLP(2, 3, 4, 1, dtype=FLOAT, key=jax.random.key(0))
    gradient = jax.tree.map(jnp.ones_like, eqx.filter(model, eqx.is_inexact_array))
    _, state = opt.update(gradient, opt.init(model), model)
    some = eqx.tree_at(lambda m: m.layers[0].weight, gradient, None)
    updates, after = opt.update(some, state, model)
    assert updates.layers[0].weight is None
    before, now = (s.states[0].projector.layers[0].weight for s in (state, after))
    assert same(before, now)
    assert updates.layers[1].weight.shape == (3, 4)


def test_decompositions_do_not_grow_with_the_leaves():
    shapes = ((3, 5), (4, 4), (5,))
    opt = eqopt.GaLore(0.1, 2)

    def count(num: int) -> int:
        params = {f"{i}": jnp.zeros(shapes[i % 3], FLOAT) for i in range(num)}
        lowered = jax.jit(opt.update).lower(params, opt.init(params), params)
        return lowered.as_text().count("gesdd")

    assert count(30) == count(3) > 0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    (
        ({"rank": 0}, "`rank` must be at least 1"),
        ({"update_proj_gap": 0}, "`update_proj_gap` must be from 1"),
        ({"scale": -1.0}, "`scale` must be at least 0"),
    ),
)
@pytest.mark.parametrize("make", (lambda **k: eqopt.GaLore(0.1, **k), eqopt.ScaleByGaLore))
def test_mistakes_are_named(make: Any, kwargs: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)
    with pytest.raises(TypeError, match="`base_optimizer` must be a transformation"):
        make(base_optimizer=optax.sgd(0.1))
    opt = make(weight_dimension_numbers=MuonDimensionNumbers())
    with pytest.raises(ValueError, match="has no axes"):
        opt.init({"b": jnp.zeros(3, FLOAT)})


def test_a_whole_optimizer_is_refused_where_it_would_climb():
    with pytest.raises(TypeError, match="`base_optimizer` must leave rate and sign to `GaLore`"):
        eqopt.GaLore(1e-3, base_optimizer=eqopt.Adam(1e-3))
