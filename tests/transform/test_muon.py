"""Muon equals optax's, its iteration a decomposition, and its program stays small."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqopt
from eqopt.options import MuonDimensionNumbers
from tests.support import parity
from tests.support.parity import between, fields_not_varied, power, Row, towards_one
from tests.support.toolbox import FLOAT, values, X64
from tests.support.trees import assert_near, conj, random_array

NUM_STEPS, NUM_DRAWS = (50, 3) if X64 else (12, 2)
# In float32 the iteration magnifies what is near a singular value of 0, by up to 3.4**5.
TOLERANCE = 1e-12 if X64 else 5e-4

SHAPES = {"stack": (2, 3, 4), "tall": (5, 3), "kernel": (3, 2, 2, 4), "bias": (4,), "wide": (3, 5)}
AXES = {"stack": (-2, -1), "tall": (0, 1), "wide": (1, 0), "kernel": ((1, 2), (3, 0))}


def dimensions(make: Any) -> Any:
    """Dimension numbers by leaf, `None` for a vector; also a stack and a kernel."""
    own = {name: make(*axes) for name, axes in AXES.items()}
    return {**own, "bias": None}


def each_is(make: Any, *given: Any) -> Any:
    """The dimension numbers of a link, for which every leaf must be a matrix."""
    return {name: x for name, x in dimensions(make).items() if x is not None}


# The transformations equal optax's.

BETA = {"beta": towards_one(-2, -0.5), "eps": power(-8, -6)}
ADAM = {
    "adam_b1": towards_one(-2, 0),
    "adam_b2": towards_one(-3, -1),
    "adam_eps_root": power(-8, -2),
}


def muon(
    name: str, draws: parity.Hyper, *, real: bool = False, link: bool = False, **flags: Any
) -> Row:
    """A row of `Muon`, or of `ScaleByMuon`."""
    cls, other = (
        (eqopt.ScaleByMuon, optax.contrib.scale_by_muon)
        if link
        else (eqopt.Muon, optax.contrib.muon)
    )
    field = "weight_dimension_numbers" if link else "muon_weight_dimension_numbers"
    numbers = each_is if link else dimensions
    num_masks = {"weight_decay_mask": eqopt.ByNdim(3)} if "weight_decay" in draws else {}
    their_masks = dict.fromkeys(num_masks, lambda tree: jax.tree.map(lambda x: x.ndim >= 3, tree))

    def schedules(h: parity.Hyper) -> parity.Hyper:
        scheduled = "adam_learning_rate" in h
        return h | ({"learning_rate": parity.falling(h["learning_rate"])} if scheduled else {})

    return Row(
        cls,
        name,
        lambda h: cls(
            **schedules(h), **flags, **num_masks, **{field: numbers(MuonDimensionNumbers)}
        ),
        lambda h: other(
            **schedules(h),
            **flags,
            **their_masks,
            **{field: numbers(optax.contrib.MuonDimensionNumbers)},
        ),
        draws,
        {*draws, *flags, *num_masks, field},
        real,
    )


ROWS = [
    muon("plain", {**parity.RATE, **BETA, **ADAM}),
    muon(
        "flags",
        {
            **parity.RATE,
            **BETA,
            **ADAM,
            "weight_decay": power(-4, -1),
            "adam_weight_decay": power(-4, -1),
            "adam_learning_rate": power(-3, 0),
            "consistent_rms": between(0.1, 0.5),
        },
        ns_coeffs="dion",
        nesterov=False,
        adaptive=True,
        preconditioning="aol",
    ),
    muon(
        "spectral",
        {**parity.RATE},
        preconditioning="spectral",
        ns_steps=2,
        mu_dtype=np.dtype(FLOAT),
        # To an average in a real dtype, optax casts a complex one.
        real=True,
    ),
    muon(
        "link",
        BETA,
        link=True,
        ns_coeffs=(2.0, -1.5, 0.5),
        ns_steps=3,
        mu_dtype=np.dtype(FLOAT),
        nesterov=False,
        adaptive=True,
        preconditioning="schatten",
        # Of complex matrices, optax transposes here without conjugating.
        real=True,
    ),
]


def tree_of(rng: np.random.Generator, row: Row, leading: tuple[int, ...] = ()) -> Any:
    names = [x for x in SHAPES if issubclass(row.cls, eqopt.Muon) or x in AXES]
    dtype = np.dtype(FLOAT)
    complex_ones = () if row.real else ("tall", "wide")
    return {
        name: random_array(
            rng,
            (*leading, *SHAPES[name]),
            np.result_type(dtype, np.complex64) if name in complex_ones else dtype,
        )
        for name in names
    }


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_trajectories_equal_those_of_optax(row: Row):
    @jax.jit
    def ours(h: Any, params: Any, gradients: Any) -> Any:
        return parity.trajectory(row.ours(h), eqopt.apply_updates, params, gradients)

    @jax.jit
    def theirs(h: Any, params: Any, gradients: Any) -> Any:
        return parity.trajectory(row.theirs(h), optax.apply_updates, params, conj(gradients))

    for draw in range(NUM_DRAWS):
        rng = np.random.default_rng(draw)
        h = {name: np.asarray(sample(rng), FLOAT) for name, sample in row.draws.items()}
        params, gradients = tree_of(rng, row), tree_of(rng, row, (NUM_STEPS,))
        left = ours(h, params, gradients)
        with jax.numpy_dtype_promotion("standard"):
            right = theirs(h, params, gradients)
        assert_near(left, right, TOLERANCE)


@pytest.mark.parametrize("cls", (eqopt.Muon, eqopt.ScaleByMuon))
def test_every_field_is_varied(cls: Any):
    # optax does not have these two; `test_orthogonal.py` has them.
    own = {"momentum", "method"} if cls is eqopt.ScaleByMuon else set()
    assert fields_not_varied(cls, ROWS) == own


# What it computes


def one_update(opt: Any, gradient: Any) -> Any:
    params = jax.tree.map(jnp.zeros_like, gradient)
    return opt.update(gradient, opt.init(params), params)[0]


def polar(x: np.ndarray) -> np.ndarray:
    """The nearest matrix with orthonormal rows or columns."""
    u, _, v = np.linalg.svd(x, full_matrices=False)
    return u @ v


# It converges, slowly, to singular values of 1.
CUBIC = (1.5, -0.5, 0.0)


@pytest.mark.parametrize("before", ("frobenius", "spectral", "schatten"))
@pytest.mark.parametrize("dtype", (FLOAT, np.result_type(FLOAT, np.complex64)), ids=str)
def test_many_steps_are_the_polar_factor(before: str, dtype: Any):
    rng = np.random.default_rng(0)
    gradient = {
        name: random_array(rng, shape, dtype)
        for name, shape in {"wide": (3, 5), "tall": (6, 3), "square": (4, 4), "row": (1, 4)}.items()
    }
    opt = eqopt.ScaleByMuon(CUBIC, 40, eps=0.0, preconditioning=before)
    expected = {name: polar(np.conj(x)) for name, x in gradient.items()}
    assert_near(
        one_update(opt, gradient), jax.tree.map(jnp.asarray, expected), 1e-12 if X64 else 5e-6
    )


@pytest.mark.parametrize("coeffs", ("standard", "dion"))
@pytest.mark.parametrize("before", ("frobenius", "spectral", "aol", "schatten"))
@pytest.mark.parametrize("size", (1e-5, 1.0, 1e5))
def test_singular_values_are_near_one(coeffs: str, before: str, size: float):
    gradient = {"w": size * values((16, 24), 3)}
    opt = eqopt.ScaleByMuon(coeffs, eps=1e-12, preconditioning=before)
    found = np.linalg.svd(np.float64(one_update(opt, gradient)["w"]), compute_uv=False)
    assert found.min() > 0.5 and found.max() < 1.3


def test_the_default_takes_singular_values_where_it_says():
    x, (a, b, c) = np.linspace(0.01, 1.0, 10001), (3.4445, -4.775, 2.0315)
    for _ in range(5):
        x = a * x + b * x**3 + c * x**5
    assert 0.68 <= x.min() and x.max() <= 1.14
    # And in two dimensions: a diagonal matrix of unit norm.
    diagonal = np.asarray([0.8, 0.6, 0.0], FLOAT)
    update = one_update(eqopt.ScaleByMuon(eps=0.0), {"w": jnp.diag(jnp.asarray(diagonal))})["w"]
    for _ in range(5):
        diagonal = a * diagonal + b * diagonal**3 + c * diagonal**5
    np.testing.assert_allclose(update, np.diag(diagonal), atol=1e-12 if X64 else 1e-5)


@pytest.mark.parametrize("before", ("frobenius", "spectral", "aol", "schatten"))
def test_before_the_iteration_no_singular_value_is_above_one(before: str):
    # One step of the identity, and what is seen is what was done before.
    opt = eqopt.ScaleByMuon(((1.0, 0.0, 0.0),), preconditioning=before, eps=0.0)
    found = one_update(opt, {"w": 7 * values((5, 8), 1), "v": 0.1 * values((9, 4), 2)})
    for x in jax.tree.leaves(found):
        largest = np.linalg.norm(np.float64(x), 2)
        assert 0.3 < largest <= 1 + 1e-5
        assert before != "spectral" or largest > 1 - 1e-5


def test_a_gradient_of_zero_is_no_direction():
    gradient = {"w": jnp.zeros((3, 4), FLOAT), "v": values((3, 4), 1)}
    for before in ("frobenius", "spectral", "aol", "schatten"):
        update = one_update(eqopt.ScaleByMuon(eps=0.0, preconditioning=before), gradient)
        np.testing.assert_array_equal(update["w"], 0)
        assert np.all(np.isfinite(update["v"]))


def test_a_leaf_with_a_nan_spoils_no_other_of_its_size():
    good = {"w": jnp.full((3, 4), np.nan, FLOAT), "v": values((3, 4), 1)}
    update = one_update(eqopt.ScaleByMuon(), good)
    assert np.all(np.isnan(update["w"])) and np.all(np.isfinite(update["v"]))


def test_the_first_average_is_the_gradient():
    # Debiased, with Nesterov's momentum too: b (1 - b) / (1 - b^2) + (1 - b) / (1 - b) of it.
    gradient = {"w": values((3, 4), 1)}
    plain = one_update(eqopt.ScaleByMuon(CUBIC, 40, 0.7, nesterov=False), gradient)
    ahead = one_update(eqopt.ScaleByMuon(CUBIC, 40, 0.7), gradient)
    assert_near(plain, ahead, 1e-6 if X64 else 1e-4)
    dual = one_update(eqopt.ScaleByMuon(CUBIC, 40, 0.7, nesterov=False, adaptive=True), gradient)
    x = np.float64(gradient["w"])
    expected = polar(np.asarray(x)) * np.linalg.svd(x, compute_uv=False).sum()
    np.testing.assert_allclose(dual["w"], expected, rtol=1e-6 if X64 else 1e-4)


# Mistakes


@pytest.mark.parametrize(
    ("kwargs", "message"),
    (
        ({"ns_coeffs": "quick"}, "`ns_coeffs` must be 'standard' or 'dion'"),
        ({"ns_coeffs": (1.0, 2.0)}, "`ns_coeffs` must be three numbers"),
        ({"ns_coeffs": ((1.0, 2.0, 3.0), (1.0, 2.0))}, "`ns_coeffs` must be three numbers"),
        ({"ns_coeffs": ()}, "`ns_coeffs` must be three numbers"),
        ({"ns_coeffs": (1.0, np.nan, 2.0)}, "`ns_coeffs` must be finite"),
        ({"ns_steps": 0}, "`ns_steps` must be at least 1"),
        ({"beta": 1.0}, "`beta` must be at least 0 and below 1"),
        ({"preconditioning": "none"}, "`preconditioning` must be a function"),
    ),
)
@pytest.mark.parametrize("make", (lambda **k: eqopt.Muon(0.1, **k), eqopt.ScaleByMuon))
def test_mistakes_are_named(make: Any, kwargs: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)
