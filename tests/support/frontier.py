"""Cases of `tests/data/frontier_*.npz`, and the same by eqopt's classes.

`transformation` turns a case's source and hyper-parameters, in that source's names, into ours.
"""

import functools
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import eqopt
from eqopt import matrix
from eqopt.options import MuonDimensionNumbers
from tests.support import frontier_control

DATA = Path(__file__).parents[1] / "data"

# Matrices are (out, in).
OUT_IN = MuonDimensionNumbers(1, 0)

_COEFFICIENTS = {
    "simple": "standard",
    "quintic": "quintic",
    "polar_express": "polar_express_8",
    "cans": "cans",
    "aol": "aol",
    "deepseekv4": "deepseek",
}
_MODES = {"shape_scaling": "shape", "spectral": "spectral", "unit_rms_norm": "unit_rms"}


@functools.cache
def read(file: str) -> Any:
    return np.load(DATA / f"{file}.npz", allow_pickle=False)


def cases(file: str) -> list[str]:
    return json.loads(str(read(file)["index"]))


def meta(file: str, case: str) -> dict[str, Any]:
    return json.loads(str(read(file)[f"{case}/meta"]))


def transformation(
    case: str, meta: dict[str, Any]
) -> eqopt.writing.AbstractTransformation[Any] | None:
    """The case by eqopt's classes; `None` for a rule that eqopt does not have."""
    package, _, name = meta["source"].split()
    make = _EMERGING.get(name) if package == "emerging-optimizers" else None
    if make is None:
        return frontier_control.transformation(case, meta)
    return make(dict(meta["hyper"]))


# emerging-optimizers. Every option that is not given has that package's default.


def _momentum(hyper: dict[str, Any], **more: Any) -> eqopt.ScaleByMuon:
    return eqopt.ScaleByMuon(
        _COEFFICIENTS[hyper.get("coefficient_type", "quintic")],
        hyper.get("num_ns_steps", 5),
        hyper.get("momentum", 0.95),
        1e-15,
        nesterov=hyper.get("nesterov", False),
        momentum="ema",
        weight_dimension_numbers=OUT_IN,
        **more,
    )


def _scale(hyper: dict[str, Any]) -> eqopt.matrix.ScaleByShape:
    return eqopt.matrix.ScaleByShape(OUT_IN, mode=_MODES[hyper.get("scale_mode", "spectral")])


def _with_decay(hyper: dict[str, Any], *links: Any) -> Any:
    """The links, with decay before them or after them, and the rate."""
    rate, decay = hyper.get("lr", 3e-4), hyper.get("weight_decay", 0.01)
    method = hyper.get("weight_decay_method", "decoupled")
    factor = {"decoupled": 1.0, "l2": 1.0, "independent": 1 / rate, "palm": rate}[method]
    decayed = eqopt.AddDecayedWeights(decay * factor)
    links = (decayed, *links) if method == "l2" else (*links, decayed)
    return eqopt.Chain(*links, eqopt.ScaleByLearningRate(rate))


def _muon(hyper: dict[str, Any]) -> Any:
    more = eqopt.Scale(hyper.get("extra_scale_factor", 1.0))
    return _with_decay(hyper, _momentum(hyper), _scale(hyper), more)


def _adaptive_muon(hyper: dict[str, Any]) -> Any:
    kinds = {"normuon": matrix.NorMuon, "adamuon": matrix.AdaMuon, "namo": matrix.NAMO}
    return kinds[hyper.get("moment2_method", "adamuon")](
        hyper["lr"],
        hyper.get("beta2", 0.95),
        hyper.get("eps", 1e-8),
        hyper["weight_decay"],
        muon=_momentum(hyper),
        scale=_scale(hyper),
        weight_dimension_numbers=OUT_IN,
    )


def _polar_grad(hyper: dict[str, Any], method: str = "newton_schulz") -> Any:
    return matrix.PolarGrad(
        hyper.get("lr", 3e-4),
        hyper.get("weight_decay", 0.01),
        muon=_momentum(hyper, adaptive=True, method=method),
        weight_dimension_numbers=OUT_IN,
    )


def _exact_polar_grad(hyper: dict[str, Any]) -> Any:
    return _polar_grad(hyper, "svd")


def _scion(hyper: dict[str, Any]) -> Any:
    muon = _momentum(hyper)
    return matrix.Scion(
        hyper.get("lr", 3e-4),
        hyper.get("momentum", 0.95),
        hyper.get("spectral_radius", 1.0),
        orthogonalize=muon.orthogonalize(),
        weight_dimension_numbers=OUT_IN,
    )


def _hyperball(hyper: dict[str, Any]) -> Any:
    return matrix.MuonHyperball(
        hyper.get("lr", 3e-4),
        radius=hyper.get("hyperball_radius"),
        muon=_momentum(hyper),
        weight_dimension_numbers=OUT_IN,
    )


_EMERGING = {
    "Muon": _muon,
    "AdaptiveMuon": _adaptive_muon,
    "PolarGrad": _polar_grad,
    "MOP": _exact_polar_grad,
    "Scion": _scion,
    "MuonHyperball": _hyperball,
}


def tolerance(file: str, case: str, leaf: str) -> float:
    """How far the parameters may be from the data, as its README says."""
    about, data = meta(file, case), read(file)
    expected = data[f"{case}/{leaf}"].astype(np.float64)
    largest = np.max(np.abs(expected)).item()
    if about["dtype"] == "float64":
        # LaProp's bias correction is rounded to float32 in its source.
        return 1e-9 * largest
    if about["hyper"].get("coefficient_type") == "cans":
        # Its polynomials amplify rounding: the data itself is 1e-5 from the same in float64.
        return 1e-5 * largest
    exact = case.replace("float32", "float64")
    if exact != case and exact in cases(file):
        # A source that rounds after its decay, and again after its step, is itself as far from its
        # own run in float64.
        own = np.max(np.abs(expected - data[f"{exact}/{leaf}"])).item()
        return 1e-6 * largest + own
    decomposed = ("MOP", "SOAP", "REKLS", "Shampoo")
    return (1e-5 if any(x in about["source"] for x in decomposed) else 2e-6) * largest


def expected(file: str, case: str) -> dict[str, np.ndarray]:
    data = read(file)
    return {leaf: data[f"{case}/{leaf}"] for leaf in meta(file, case)["leaves"]}


def inputs(file: str, case: str) -> tuple[Any, Any]:
    """The first parameters, and the gradients of all steps."""
    data, about = read(file), meta(file, case)
    params, grads = (
        {leaf: jnp.asarray(data[f"{name}/{leaf}"], about["dtype"]) for leaf in about["leaves"]}
        for name in ("params0", "grads")
    )
    return params, grads
