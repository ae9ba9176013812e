"""Orthogonal updates in all their forms, against plain NumPy."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import eqopt
from eqopt import matrix
from eqopt.options import MuonDimensionNumbers
from tests.support.toolbox import FLOAT, X64

OUT_IN = MuonDimensionNumbers(1, 0)
RTOL = 1e-12 if X64 else 2e-5
RNG = np.random.default_rng(0)
SHAPES = {"wide": (3, 5), "tall": (6, 2), "square": (4, 4)}
GRADS = [{k: RNG.normal(size=s) for k, s in SHAPES.items()} for _ in range(3)]

# Published rows, and what follows the last.
ROWS: dict[str, tuple[list[tuple[float, float, float]], bool]] = {
    "standard": ([(3.4445, -4.775, 2.0315)], True),
    "quintic": (
        [
            (4.0848, -6.8946, 2.9270),
            (3.9505, -6.3029, 2.6377),
            (3.7418, -5.5913, 2.3037),
            (2.8769, -3.1427, 1.2046),
            (2.8366, -3.0525, 1.2012),
        ],
        True,
    ),
    "aol": (
        [
            (4.0098, -7.0585, 2.4635),
            (3.4585, -5.5479, 2.5959),
            (2.7573, -3.2939, 1.4254),
            (2.7215, -3.0494, 1.3169),
        ],
        True,
    ),
    "cans": (
        [
            (8.4703, -25.1081, 18.6293),
            (4.1828, -3.1087, 0.5806),
            (3.9619, -2.9541, 0.5630),
            (3.2866, -2.4647, 0.5074),
            (2.2737, -1.6447, 0.4162),
        ],
        False,
    ),
    "polar_express": (
        [
            (8.156554524902461, -22.48329292557795, 15.878769915207462),
            (4.042929935166739, -2.808917465908714, 0.5000178451051316),
            (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
            (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
            (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
        ],
        False,
    ),
    "polar_express_8": (
        [
            (8.2051, -22.9019, 16.4607),
            (4.0664, -2.8612, 0.5184),
            (3.9096, -2.8234, 0.5250),
            (3.2856, -2.4153, 0.4853),
            (2.2779, -1.6198, 0.3985),
            (1.8726, -1.2307, 0.3585),
            (1.8564, -1.2132, 0.3568),
            (1.8750, -1.2500, 0.3750),
        ],
        False,
    ),
    "deepseek": ([(3.4445, -4.7750, 2.0315)] * 8 + [(2.0, -1.5, 0.5)] * 2, False),
}


def newton_schulz(x: np.ndarray, name: str = "standard", num_steps: int = 5) -> np.ndarray:
    rows, cycles = ROWS[name]
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (np.linalg.norm(x) + 1e-8)
    for i in range(num_steps):
        a, b, c = rows[i % len(rows)] if cycles else rows[min(i, len(rows) - 1)]
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def polar(x: np.ndarray) -> np.ndarray:
    u, _, vh = np.linalg.svd(x, full_matrices=False)
    return u @ vh


def updates_of(opt: Any, grads: list[Any] = GRADS) -> list[Any]:
    """The updates of each step."""
    grads = [jax.tree.map(lambda g: jnp.asarray(g, FLOAT), g) for g in grads]
    params = jax.tree.map(jnp.zeros_like, grads[0])
    state, found = opt.init(params), []
    for grad in grads:
        updates, state = opt.update(grad, state, params)
        found.append(updates)
    return found


def assert_same(found: Any, expected: Any, rtol: float = RTOL) -> None:
    for name, x in expected.items():
        atol = rtol * np.max(np.abs(x)).item()
        np.testing.assert_allclose(found[name], x, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("num_steps", (1, 5, 12))
@pytest.mark.parametrize("name", ROWS)
def test_each_set_of_coefficients(name: str, num_steps: int):
    (found,) = updates_of(matrix.Orthogonalize(name, num_steps), GRADS[:1])
    # Far from 1, rounding grows with each step.
    rtol = RTOL * 10 if X64 else 5e-4
    assert_same(found, {k: newton_schulz(g, name, num_steps) for k, g in GRADS[0].items()}, rtol)


def test_the_exact_form():
    (found,) = updates_of(matrix.Orthogonalize(method="svd"), GRADS[:1])
    assert_same(found, {k: polar(g) for k, g in GRADS[0].items()})


def test_what_has_no_direction_stays_zero():
    column = np.outer(np.arange(1.0, 4), np.arange(1.0, 3))  # of rank 1
    grads = [{"zero": np.zeros((3, 2)), "column": column}]
    (found,) = updates_of(matrix.Orthogonalize(method="svd"), grads)
    assert_same(found, {"column": column / np.linalg.norm(column)})
    assert not np.any(found["zero"])
    for method in ("svd", "newton_schulz"):
        (found,) = updates_of(matrix.Orthogonalize(method=method, eps=0.0), grads)
        assert not np.any(found["zero"])


MOMENTA = {
    ("ema", False): lambda m, g, b: (m := b * m + (1 - b) * g, m),
    ("ema", True): lambda m, g, b: (m := b * m + (1 - b) * g, b * m + (1 - b) * g),
    ("heavy_ball", False): lambda m, g, b: (m := b * m + g, m),
    ("heavy_ball", True): lambda m, g, b: (m := b * m + g, b * m + g),
}


@pytest.mark.parametrize("momentum, nesterov", MOMENTA)
def test_momenta(momentum: str, nesterov: bool):
    rule, beta = MOMENTA[momentum, nesterov], 0.7
    opt = eqopt.ScaleByMuon(
        beta=beta, momentum=momentum, nesterov=nesterov, adaptive=True, method="svd"
    )
    averages = {k: np.zeros(s) for k, s in SHAPES.items()}
    for grads, found in zip(GRADS, updates_of(opt), strict=True):
        expected = {}
        for k, g in grads.items():
            averages[k], x = rule(averages[k], g, beta)
            # The nuclear norm, so that the size of the average matters.
            expected[k] = polar(x) * np.linalg.svd(x, compute_uv=False).sum()
        assert_same(found, expected, RTOL * 10)


@pytest.mark.parametrize("mode", ("shape", "unit_rms", "spectral"))
def test_scales_by_shape(mode: str):
    (found,) = updates_of(eqopt.matrix.ScaleByShape(OUT_IN, mode=mode), GRADS[:1])
    expected = {}
    for k, g in GRADS[0].items():
        out, fan_in = g.shape
        factors = {
            "shape": max(1, out / fan_in),
            "unit_rms": out / fan_in,
            "spectral": max(g.shape),
        }
        expected[k] = g * np.sqrt(factors[mode])
    assert_same(found, expected)


@pytest.mark.parametrize("eps_place", ("clamp", "outside"))
@pytest.mark.parametrize("axis", ("shorter", "input"))
def test_rows_over_their_size(axis: str, eps_place: str):
    eps, b2 = 0.1, 0.6
    opt = matrix.ScaleByNeuronRMS(b2, eps, axis, eps_place, weight_dimension_numbers=OUT_IN)
    averages: dict[str, Any] = dict.fromkeys(SHAPES, 0.0)
    for grads, found in zip(GRADS, updates_of(opt), strict=True):
        expected = {}
        for k, x in grads.items():
            along = 1 if axis == "input" or x.shape[0] >= x.shape[1] else 0
            v = b2 * averages[k] + (1 - b2) * np.mean(x**2, axis=along, keepdims=True)
            averages[k] = v
            size = np.sqrt(np.maximum(v, eps)) if eps_place == "clamp" else np.sqrt(v) + eps
            y = x / size
            expected[k] = y * np.linalg.norm(x) / max(np.linalg.norm(y), eps)
        assert_same(found, expected)


def test_the_norm_of_the_momentum_over_that_of_gradients():
    beta, b2, eps = 0.7, 0.6, 0.1
    muon = eqopt.ScaleByMuon(beta=beta, momentum="ema", nesterov=True)
    averages, v = {k: np.zeros(s) for k, s in SHAPES.items()}, dict.fromkeys(SHAPES, 0.0)
    found = updates_of(matrix.ScaleByNAMO(muon, b2, eps))
    for grads, updates in zip(GRADS, found, strict=True):
        expected = {}
        for k, g in grads.items():
            averages[k], x = MOMENTA["ema", True](averages[k], g, beta)
            v[k] = b2 * v[k] + (1 - b2) * np.sum(g**2)
            expected[k] = newton_schulz(x) * np.linalg.norm(x) / (np.sqrt(v[k]) + eps)
        assert_same(updates, expected, RTOL * 10)


def test_the_norms_of_scion():
    g = GRADS[0]["wide"]
    out, fan_in = g.shape
    expected = {
        "sign": np.sign(g) / fan_in,
        "column": g / (np.linalg.norm(g, axis=0, keepdims=True) / np.sqrt(out) + 1e-8),
        "row": g / (np.linalg.norm(g, axis=1, keepdims=True) * np.sqrt(fan_in) + 1e-8),
        "rms": g / (np.sqrt(np.mean(g**2)) + 1e-8),
    }
    for norm, x in expected.items():
        link = matrix.ScaleByDualNorm(norm, weight_dimension_numbers=OUT_IN)
        (found,) = updates_of(link, [{"x": g}])
        assert_same(found, {"x": x})


def test_a_stack_is_many_matrices():
    """Each of them as if it were alone."""
    numbers = MuonDimensionNumbers(-1, -2)
    stack = RNG.normal(size=(3, 4, 5))
    for link in (
        matrix.Orthogonalize(weight_dimension_numbers=numbers),
        matrix.ScaleByNeuronRMS(weight_dimension_numbers=numbers),
        matrix.ScaleByNAMO(eqopt.ScaleByMuon(weight_dimension_numbers=numbers)),
        matrix.ScaleByDualNorm("row", weight_dimension_numbers=numbers),
    ):
        (whole,) = updates_of(link, [{"x": stack}])
        for i in range(3):
            (alone,) = updates_of(link, [{"x": stack[i]}])
            np.testing.assert_allclose(whole["x"][i], alone["x"], rtol=RTOL * 10)


# Coefficients


def test_polar_express_gives_the_published_rows():
    rows = matrix.polar_express(5).rows
    np.testing.assert_allclose(
        [(x.linear, x.cubic, x.quintic) for x in rows],
        ROWS["polar_express"][0],
        rtol=1e-12 if X64 else 1e-6,
    )
    rows = matrix.polar_express(
        8, safety=0.01, cushion=0.02407327424182761, safety_in_bounds=False
    ).rows
    # Published with four decimals, some of them cut off.
    found = [(x.linear, x.cubic, x.quintic) for x in rows]
    np.testing.assert_allclose(found, ROWS["polar_express_8"][0], atol=1.01e-4)


def test_more_steps_of_polar_express_are_nearer_to_orthogonal():
    gaps = []
    for num_steps in (3, 5, 8):
        opt = matrix.Orthogonalize(matrix.polar_express(num_steps, safety=0.0), num_steps)
        (found,) = updates_of(opt, GRADS[:1])
        values = np.linalg.svd(found["square"], compute_uv=False)
        gaps.append(np.max(np.abs(values - 1)))
    assert gaps[2] < gaps[1] < gaps[0]
    assert gaps[2] < 1e-6 if X64 else 1e-4


def test_bad_arguments_are_refused():
    bad: Any = 3
    with pytest.raises(ValueError, match="`ns_coeffs` must be"):
        matrix.Orthogonalize("septic")
    with pytest.raises(ValueError, match="`method` must be 'newton_schulz' or 'svd'"):
        matrix.Orthogonalize(method="qr")
    with pytest.raises(ValueError, match="`momentum` must be"):
        eqopt.ScaleByMuon(momentum="nesterov")
    with pytest.raises(ValueError, match="`mode` must be"):
        eqopt.matrix.ScaleByShape(mode="rms_norm")
    with pytest.raises(ValueError, match="`axis` must be"):
        matrix.ScaleByNeuronRMS(axis="rows")
    with pytest.raises(ValueError, match="`norm` must be"):
        matrix.ScaleByDualNorm("spectral")
    with pytest.raises(ValueError, match="`end` must be"):
        matrix.Quintics([(1.0, 2.0, 3.0)], end="stop")
    with pytest.raises(ValueError, match="`rows` must be"):
        matrix.Quintics((1.0, 2.0, 3.0))
    with pytest.raises(ValueError, match="`lower` is out of its range"):
        matrix.polar_express(5, lower=1.0)
    with pytest.raises(TypeError, match="`muon` must be a `ScaleByMuon`"):
        matrix.NorMuon(0.1, muon=bad)
    with pytest.raises(TypeError, match="`rest`"):
        matrix.NorMuon(0.1, rest=bad)
    with pytest.raises(TypeError, match="`steps` must be"):
        matrix.Scion(0.1, steps=bad)
    with pytest.raises(ValueError, match=r"`params\['x'\]` has shape \(3,\), and is no matrix"):
        matrix.Orthogonalize().init({"x": jnp.ones(3)})


# Blocks


def test_blocks_are_matrices_of_their_own():
    fused = RNG.normal(size=(12, 4))
    # The first selector decides.
    cuts = {
        eqopt.ByPath("qkv"): matrix.Cut((4, 8), num_heads=2),
        eqopt.ByPath("*kv"): matrix.Cut(num_heads=3),
    }
    opt = matrix.Blocks(matrix.Orthogonalize(), cuts)
    (found,) = updates_of(opt, [{"kv": fused, "qkv": fused, "other": GRADS[0]["wide"]}])
    parts = [newton_schulz(x) for x in (fused[:2], fused[2:4], fused[4:8], fused[8:])]
    thirds = [newton_schulz(x) for x in (fused[:4], fused[4:8], fused[8:])]
    expected = {
        "kv": np.concatenate(thirds),
        "qkv": np.concatenate(parts),
        "other": newton_schulz(GRADS[0]["wide"]),
    }
    assert_same(found, expected, RTOL * 10)


def test_blocks_that_do_not_fit_are_refused():
    for bad, words in (
        ({"qkv": matrix.Cut()}, "the keys of `cuts` are selectors.*'qkv'"),
        ({eqopt.ByPath("qkv"): 2}, "`cuts` must be a dictionary of `eqopt.matrix.Cut`.*an int"),
        (matrix.Cut(), "`cuts` must be a dictionary of `eqopt.matrix.Cut`.*Cut"),
    ):
        cuts: Any = bad
        with pytest.raises(TypeError, match=words):
            matrix.Blocks(matrix.Orthogonalize(), cuts)

    def init(cut: matrix.Cut, name: str = "x") -> None:
        opt = matrix.Blocks(matrix.Orthogonalize(), {eqopt.ByPath(name): cut})
        opt.init({"x": jnp.ones((6, 4))})

    with pytest.raises(ValueError, match=r"`params\['x'\]` has shape \(6, 4\); the sizes \(2, 3\)"):
        init(matrix.Cut((2, 3)))
    with pytest.raises(ValueError, match="4 heads do not divide"):
        init(matrix.Cut(num_heads=4))
    with pytest.raises(ValueError, match="it has no axis -3"):
        init(matrix.Cut(num_heads=2, axis=-3))
    with pytest.raises(ValueError, match="`ByPath`"):
        init(matrix.Cut(num_heads=2), "y")


# On many devices


@pytest.mark.default_flags
@pytest.mark.parametrize("num", (8, 5))
@pytest.mark.parametrize("kind", (AxisType.Auto, AxisType.Explicit), ids=("auto", "explicit"))
def test_each_device_has_its_own_matrices(kind: AxisType, num: int):
    """Matrices sharded by rows move to whole ones and back, and nothing moves within the loop."""
    mesh = jax.make_mesh((8,), ("d",), axis_types=(kind,))
    by_rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d", None))
    whole = {str(i): jnp.asarray(RNG.normal(size=(32, 16)), FLOAT) for i in range(num)}
    sharded = jax.device_put(whole, by_rows)
    opt = matrix.Orthogonalize()

    def compiled(grads: Any) -> Any:
        return jax.jit(lambda g: opt.update(g, opt.init(g), g)[0]).lower(grads).compile()

    program, alone = compiled(sharded), compiled(whole)
    text = program.as_text()
    kinds = ("all-to-all", "all-gather", "all-reduce", "reduce-scatter", "collective-permute")
    found = {x: len(re.findall(rf" {x}(?:-start)?\(", text)) for x in kinds}
    assert found == {**dict.fromkeys(kinds, 0), "all-to-all": 2}
    # Five matrices are padded to eight.
    operations = program.cost_analysis()["flops"] / alone.cost_analysis()["flops"]
    assert operations <= 1.1 / 8 * (8 / num)
    updates = program(sharded)
    assert all(x.sharding.spec == by_rows.spec for x in jax.tree.leaves(updates))
    assert_same(updates, jax.tree.map(np.asarray, alone(whole)), RTOL * 10)
