"""The optimizers of flax.optim: their trajectories, their rules, their names and defaults."""

import functools
import inspect
import json
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqopt import ByPath, flax_optim
from tests.support.flax_rules import RULES
from tests.support.toolbox import FLOAT, X64

GOLDEN = np.load(Path(__file__).parents[1] / "data" / "flax_optim.npz", allow_pickle=False)
META = {str(name): json.loads(str(GOLDEN[f"{name}/meta"])) for name in GOLDEN["index"]}
CASES = [name for name, meta in META.items() if X64 or meta["dtype"] == "float32"]

# Where each of flax's states is in ours; `{}` is the leaf.
STATES = {
    "grad_ema": ".mu['{}']",
    "grad_sq_ema": ".nu['{}']",
    "sq_avg": ".e_g['{}']",
    "acc_delta": ".e_x['{}']",
    "G": ".sum_of_squares['{}']",
    "momentum": ".trace['{}']",
    "v": ".nu['{}']",
    "direction_state.momentum": ".trace.direction['{}']",
    "scale_state.momentum": ".trace.scale['{}']",
    "direction": ".direction['{}']",
    "scale": ".scale['{}']",
}
ADAFACTOR_STATES = {"v": ".v['{}']", "v_row": ".v_row['{}']", "v_col": ".v_col['{}']"}


def tolerance(name: str) -> float:
    meta = META[name]
    if meta["dtype"] == "float64":
        # flax.optim keeps Adafactor's averages in float32.
        return 5e-7 if meta["optimizer"] == "Adafactor" else 1e-12
    return 5e-6


def made(name: str, hyper: dict[str, Any]) -> Any:
    return getattr(flax_optim, name)(**hyper)


def build(meta: dict[str, Any]) -> tuple[Any, Any]:
    """The optimizer of a case, and the focus."""
    name, hyper = meta["optimizer"], meta["hyper"]
    if name == "WeightNorm":
        return flax_optim.WeightNorm(made(hyper["inner"], hyper["inner_hyper"])), None
    if name == "MultiOptimizer":
        groups = [
            (ByPath(x["leaf"]), made(x["optimizer"], {k: x[k] for k in x.keys() - _NOT_HYPER}))
            for x in hyper
        ]
        return flax_optim.MultiOptimizer(*groups), None
    if name == "Adam(focus=w)":
        return flax_optim.Adam(**hyper), ByPath("w")
    return made(name, hyper), None


_NOT_HYPER = {"leaf", "optimizer"}


@functools.cache
def inputs(name: str) -> tuple[Any, Any]:
    """The parameters to begin with, and 20 gradients."""
    if name != "fact_float32":
        kept = f"inputs/{name}/"
        found = [x.removeprefix(kept).split("/") for x in GOLDEN.files if x.startswith(kept)]
        leaves = {leaf for _, leaf in found}
        starts = {x: GOLDEN[f"{kept}params0/{x}"] for x in leaves}
        return starts, {x: GOLDEN[f"{kept}grads/{x}"] for x in leaves}
    rng = np.random.RandomState(3)
    params, gradients = {}, {}
    for leaf, shape in (("b", (5,)), ("k", (130, 140)), ("r", (140, 130))):
        params[leaf] = (0.1 * rng.standard_normal(shape)).astype(np.float32)
        gradients[leaf] = rng.standard_normal((20, *shape)).astype(np.float32)
    return params, gradients


def run(opt: Any, params: Any, gradients: Any, focus: Any = None, overrides: Any = None) -> Any:
    """The optimizer after all steps, and the parameters after each."""

    @eqx.filter_jit
    def steps(bundle: Any, given: Any) -> Any:
        def step(bundle: Any, x: Any) -> Any:
            bundle = bundle.apply_gradient(x[0], **x[1])
            return bundle, bundle.target

        return jax.lax.scan(step, bundle, given)

    params, gradients = jax.tree.map(jnp.asarray, (params, gradients))
    return steps(opt.create(params, focus), (gradients, overrides or {}))


@functools.cache
def replayed(name: str) -> Any:
    meta = META[name]
    opt, focus = build(meta)
    each = meta["overrides"] or [{}]
    overrides = {k: np.asarray([x[k] for x in each], FLOAT) for k in each[0]}
    return run(opt, *inputs(meta["inputs"]), focus, overrides)


def assert_near(ours: Any, theirs: Any, rtol: float) -> None:
    """Relative to the largest number of the leaf, step by step."""
    ours, theirs = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (ours, theirs))
    error, size = np.abs(ours - theirs).max(1), np.abs(theirs).max(1)
    assert np.all(error <= rtol * size), np.max(error / size)


# The trajectories


def test_the_cases_are_all_there():
    assert len(META) == 35
    cases = {x["optimizer"] for x in META.values()}
    assert cases == {*RULES, "WeightNorm", "MultiOptimizer", "Adam(focus=w)"}
    assert set(dir(flax_optim)) == {*RULES, "WeightNorm", "MultiOptimizer", "AbstractOptimizerDef"}


@pytest.mark.parametrize("name", CASES)
def test_trajectory(name: str):
    bundle, params = replayed(name)
    for leaf, start in inputs(META[name]["inputs"])[0].items():
        ours, theirs = params[leaf], GOLDEN[f"{name}/params/{leaf}"]
        assert ours.dtype == start.dtype
        if name == "LAMB/a/edge_float64" and leaf == "w":
            # flax.optim divides by the norm of an update that is zero; see below.
            assert np.isnan(theirs).all() and np.isfinite(ours).all()
            continue
        if f"{name}/last/{leaf}" in GOLDEN.files:
            assert_near(ours[-1:], GOLDEN[f"{name}/last/{leaf}"][None], tolerance(name))
            ours = ours.reshape(20, -1)[:, ::37]
        assert_near(ours, theirs, tolerance(name))
        assert np.array_equal(bundle.target[leaf], params[leaf][-1])


@pytest.mark.parametrize("name", CASES)
def test_final_state(name: str):
    bundle, _ = replayed(name)
    found, _ = jax.tree_util.tree_flatten_with_path(bundle.state)
    ours = {jax.tree_util.keystr(path): x for path, x in found}
    prefix = f"{name}/state/"
    theirs = {x.removeprefix(prefix): GOLDEN[x] for x in GOLDEN.files if x.startswith(prefix)}
    kind = META[name]["optimizer"]
    for key, expected in theirs.items():
        if key == "step":
            counts = [x for path, x in ours.items() if path.endswith(".count")]
            assert counts and all(int(x) == expected == 20 for x in counts)
            continue
        _, leaf, own = key.split(".", 2)
        if kind == "Adafactor" and expected.shape == (1,):
            continue  # there is none
        if kind == "WeightNorm" and leaf == "b" and own == "direction":
            # What is not taken apart has no direction: it is the parameter itself.
            assert_near(bundle.target["b"][None], expected[None], tolerance(name))
            continue
        ending = (ADAFACTOR_STATES if kind == "Adafactor" else STATES)[own].format(leaf)
        matches = sorted([path for path in ours if path.endswith(ending)], key=len)
        # The learning rate comes before LARS's momentum, and turns it downhill.
        sign = -1 if kind == "LARS" else 1
        if not np.isfinite(expected).all():
            assert name == "LAMB/a/edge_float64"
            continue
        # Without 64 bits, `1 - 0.999` is off by 1.3e-5, and so is what has that weight.
        rounded = own == "grad_sq_ema" and not X64
        rtol = 2e-5 if rounded else tolerance(name)
        assert_near(sign * ours[matches[0]][None], expected[None], rtol)


def test_what_is_out_of_focus_has_no_state():
    params = {"w": jnp.ones((2, 3), FLOAT), "b": jnp.ones(3, FLOAT)}
    bundle = flax_optim.Adam(0.1).create(params, ByPath("w"))
    shapes = [x.shape for x in jax.tree.leaves(bundle.state)]
    assert sorted(shapes) == [(), (), (2, 3), (2, 3)]


# The rules

OPTIONS = [
    ("GradientDescent", {}),
    ("Momentum", {"beta": 0.7, "weight_decay": 0.1}),
    ("Momentum", {"beta": 0.7, "weight_decay": 0.1, "nesterov": True}),
    ("Adam", {"beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.1}),
    ("AdaBelief", {"beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.1}),
    ("Adadelta", {"rho": 0.8, "eps": 1e-3, "weight_decay": 0.1}),
    ("Adagrad", {"eps": 1e-2}),
    ("RMSProp", {"beta2": 0.8, "eps": 1e-2}),
    # Of the first gradient, the variance is what rounding leaves of it, and `eps` all there is.
    ("RMSProp", {"beta2": 0.8, "eps": 1e-1, "centered": True}),
    ("LAMB", {"beta1": 0.8, "beta2": 0.95, "weight_decay": 0.1, "eps": 1e-3}),
    ("LARS", {"beta": 0.7, "weight_decay": 0.5, "trust_coefficient": 0.3, "eps": 0.1}),
    ("LARS", {"beta": 0.7, "weight_decay": 0.5, "trust_coefficient": 0.3, "nesterov": True}),
    (
        "Adafactor",
        {
            "beta1": 0.8,
            "decay_rate": 0.7,
            "clipping_threshold": 0.6,
            "weight_decay_rate": 0.01,
            "min_dim_size_to_factor": 2,
            "epsilon1": 1e-4,
            "epsilon2": 5.0,
        },
    ),
    ("Adafactor", {"factored": False, "min_dim_size_to_factor": 2, "beta1": 0.5}),
    (
        "Adafactor",
        {
            "multiply_by_parameter_scale": False,
            "clipping_threshold": None,
            "min_dim_size_to_factor": 2,
            "step_offset": 0,
        },
    ),
    ("Adafactor", {"min_dim_size_to_factor": 2, "step_offset": -10}),
]


def _random(seed: int, *, zeros: bool = False) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    shapes = {"w": (4, 3), "b": (5,), "c": (2, 3, 3)}
    params = {k: rng.standard_normal(s).astype(FLOAT) for k, s in shapes.items()}
    gradients = {k: rng.standard_normal((6, *s)).astype(FLOAT) for k, s in shapes.items()}
    if zeros:
        params["b"][...] = 0
        for g in gradients.values():
            g[[0, 3]] = 0
    return params, gradients


def by_rule(name: str, params: Any, gradients: Any, hyper: dict[str, Any]) -> Any:
    found = {}
    for leaf, start in params.items():
        p, state, found[leaf] = start.astype(np.float64), {}, []
        for t, g in enumerate(gradients[leaf].astype(np.float64)):
            p = RULES[name](t, p, g, state, **hyper)
            found[leaf].append(p)
    return found


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_rule(name: str, options: dict[str, Any]):
    params, gradients = _random(1)
    hyper = {"learning_rate": 0.05, **options}
    wide = {"dtype_momentum": None} if name == "Adafactor" else {}
    _, ours = run(made(name, {**hyper, **wide}), params, gradients)
    for leaf, theirs in by_rule(name, params, gradients, hyper).items():
        assert_near(ours[leaf], theirs, 1e-12 if X64 else 5e-6)


@pytest.mark.parametrize("name", RULES)
def test_zero_parameters_and_zero_gradients(name: str):
    params, gradients = _random(2, zeros=True)
    _, ours = run(made(name, {"learning_rate": 0.05}), params, gradients)
    if name == "Adafactor":
        # By `epsilon1` alone: in float32 its square root is a normal number, and its square none.
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(ours))
        assert all(np.array_equal(x[0], params[k]) for k, x in ours.items())
        return
    for leaf, theirs in by_rule(name, params, gradients, {"learning_rate": 0.05}).items():
        np.testing.assert_allclose(ours[leaf], theirs, rtol=1e-11 if X64 else 1e-5, atol=1e-7)
    if name == "LAMB":
        assert not np.any(ours["b"])  # what is zero stays so
    else:
        assert np.all(ours["b"][-1] != 0)


# The names


DEFAULTS: dict[str, dict[str, Any]] = {
    "GradientDescent": {},
    "Momentum": {"beta": 0.9, "weight_decay": 0.0, "nesterov": False},
    "Adam": {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0},
    "AdaBelief": {"beta1": 0.9, "beta2": 0.999, "eps": 1e-16, "weight_decay": 0.0},
    "Adadelta": {"rho": 0.9, "eps": 1e-6, "weight_decay": 0.0},
    "Adagrad": {"eps": 1e-8},
    "RMSProp": {"beta2": 0.9, "eps": 1e-8, "centered": False},
    "LAMB": {"beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0, "eps": 1e-6},
    "LARS": {
        "beta": 0.9,
        "weight_decay": 0.0,
        "trust_coefficient": 0.001,
        "eps": 0.0,
        "nesterov": False,
    },
    "Adafactor": {
        "factored": True,
        "multiply_by_parameter_scale": True,
        "beta1": None,
        "decay_rate": 0.8,
        "step_offset": 0,
        "clipping_threshold": 1.0,
        "weight_decay_rate": None,
        "min_dim_size_to_factor": 128,
        "epsilon1": 1e-30,
        "epsilon2": 1e-3,
        "dtype_momentum": np.float32,
    },
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_names_and_defaults(name: str):
    parameters = inspect.signature(getattr(flax_optim, name)).parameters
    found = {k: x.default for k, x in parameters.items()}
    assert list(found.items()) == [("learning_rate", None), *DEFAULTS[name].items()]


@pytest.mark.parametrize("name", DEFAULTS)
def test_the_learning_rate_may_come_later(name: str):
    params, gradients = ({"w": jnp.ones((2, 3), FLOAT)} for _ in range(2))
    without, given = made(name, {}).create(params), made(name, {"learning_rate": 0.5})
    with pytest.raises(ValueError, match=r"there is no learning rate: give one .*apply_gradient"):
        without.apply_gradient(gradients)
    after = without.apply_gradient(gradients, learning_rate=0.5)
    expected = given.create(params).apply_gradient(gradients)
    assert np.array_equal(after.target["w"], expected.target["w"])
    assert after.transformation.learning_rate is None
