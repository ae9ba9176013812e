"""The rows of what keeps a run in bounds: links, wrappers and optimizers of `eqopt.control`."""

from typing import Any

import jax.numpy as jnp
import numpy as np

import eqopt
from eqopt import control
from tests.laws.table.row import a_value, MATRICES, optimizer, Row, Wrapper

# The laws run over trees of several kinds.
_BRANCH = eqopt.ByPath("branch.w", must_match=False)
_NOWHERE = eqopt.ByPath("nowhere", must_match=False)
_FACTORS = {_BRANCH: 0.6, MATRICES: 1.3, ...: 0.8}


def max_logits(params: Any) -> dict[str, Any]:
    """Of two heads of each matrix that `QKClip` is to clip; one of them is too large."""
    branch = params.get("branch") if isinstance(params, dict) else None
    has_one = isinstance(branch, dict) and "w" in branch
    return {"max_logits": jnp.asarray([0.5, 3.0], np.float32)} if has_one else {}


def link(name: str, make: Any) -> Row:
    """The row of a link that needs the parameters."""
    return Row(name, make, needs_params=True)


ROWS = [
    optimizer("Hyperball", lambda: control.Hyperball(0.05)),
    optimizer(
        "Hyperball-rows", lambda: control.Hyperball(eqopt.Linear(0.05, 0.02, 4), block_ndim=1)
    ),
    optimizer("Hyperball-current", lambda: control.Hyperball(0.05, fixed=False, block_ndim=None)),
    # The first step goes to the radius, wherever that is.
    link("Hyperball-given", lambda: control.Hyperball(0.05, 1.7)),
    link("KeepRadius", control.KeepRadius),
    link("RelativeUpdate", control.RelativeUpdate),
    link("UpdateFloor", lambda: control.UpdateFloor(1.4)),
    link("UpdateFloor-rows", lambda: control.UpdateFloor(0.9, block_ndim=1, exponent=0.7)),
    link("RadialBrake", lambda: control.RadialBrake(0.3, 0.8)),
    Row("ClipUpdateRMS", lambda: control.ClipUpdateRMS(0.6)),
    optimizer("Graft", lambda: control.Graft(eqopt.SGD(0.05), eqopt.AdamW(0.03, 0.8, 0.95))),
    # Where signs change, it jumps.
    Row(
        "CautiousUpdates",
        lambda: control.CautiousUpdates(eqopt.ScaleByAdam(0.8, 0.95, 1e-6, 1e-5)),
        differentiable=False,
    ),
    Row(
        "AddCautiousDecayedWeights",
        lambda: control.AddCautiousDecayedWeights(eqopt.Linear(0.02, 0.01, 4), MATRICES),
        needs_params=True,
        differentiable=False,
    ),
    link("DecayWeights", lambda: control.DecayWeights(0.02)),
    link(
        "DecayWeights-factors",
        lambda: control.DecayWeights(
            control.DecayByRate(0.2, eqopt.Linear(0.05, 0.02, 4), 0.06), MATRICES, _FACTORS, True
        ),
    ),
    Row("Multiply", lambda: control.Multiply(_FACTORS)),
    Row(
        "QKClip",
        lambda: control.QKClip(_BRANCH, None, 2, max_logit=1.5, alpha=0.7),
        needs_params=True,
        needs=max_logits,
    ),
    optimizer(
        "CautiousDecay",
        lambda: control.CautiousDecay(
            eqopt.ScaleByLearningRate(0.05), eqopt.Linear(0.02, 0.01, 4), MATRICES
        ),
    ),
    Row(
        "Blocks",
        lambda: eqopt.matrix.Blocks(
            eqopt.Adam(0.05, 0.8, 0.95),
            {_BRANCH: eqopt.matrix.Cut(num_heads=2), _NOWHERE: eqopt.matrix.Cut()},
        ),
        descends=True,
    ),
    Row(
        "MuonClip",
        lambda: eqopt.matrix.MuonClip(
            0.05, control.QKClip(_BRANCH, None, 2, max_logit=1.5), weight_decay=0.02
        ),
        needs_params=True,
        needs=max_logits,
    ),
    Row(
        "SkipSpikes",
        lambda: control.SkipSpikes(eqopt.Adam(0.05), 4, 3.0),
        descends=True,
        needs=a_value,
    ),
    Row(
        "SkipSpikes-norms",
        lambda: control.SkipSpikes(eqopt.Adam(0.05), 4, 3.0, loss=False, min_count=3),
        descends=True,
    ),
    Row("ScaleByLaProp", lambda: control.ScaleByLaProp(0.8, 0.95, 1e-6, 1e-5)),
    link("ScaleByStableAdam", lambda: control.ScaleByStableAdam(0.8, 0.95, 1e-3)),
    link(
        "ScaleByStableAdam-mask",
        lambda: control.ScaleByStableAdam(0.8, 0.95, 1e-3, None, 0.01, MATRICES),
    ),
    Row("ReduceVariance", lambda: control.ReduceVariance(0.1, 0.8, 0.9)),
    Row("ReduceVariance-mask", lambda: control.ReduceVariance(0.1, 0.8, None, MATRICES)),
    Row("ScaleByCAME", lambda: control.ScaleByCAME(0.8, 0.95, 0.97, 0.6, 1e-3, 1e-2)),
    optimizer("LaProp", lambda: control.LaProp(0.05, 0.8, 0.95, 1e-6, 1e-5, None, 0.01)),
    optimizer(
        "StableAdamW", lambda: control.StableAdamW(0.05, 0.8, 0.95, 1e-3, None, 0.01, MATRICES)
    ),
    optimizer(
        "MARS",
        lambda: control.MARS(0.05, 0.8, 0.95, 0.1, 0.9, 1e-6, 1e-5, weight_decay=0.01),
    ),
    optimizer("CAME", lambda: control.CAME(0.05, 0.8, 0.95, 0.97, 0.6, 1e-3, 1e-2)),
    optimizer(
        "AdamC",
        lambda: control.AdamC(
            eqopt.Linear(0.05, 0.02, 4),
            0.06,
            0.8,
            0.95,
            1e-6,
            1e-5,
            weight_decay=0.1,
            normalized=MATRICES,
        ),
    ),
    optimizer("AdamC-everywhere", lambda: control.AdamC(0.05, 0.06, weight_decay=0.1)),
    optimizer(
        "AdamH",
        lambda: control.AdamH(
            0.05, 0.8, 0.95, 1e-6, 1e-5, adam_learning_rate=0.03, adam_weight_decay=0.01
        ),
    ),
]

WRAPPERS = [
    Wrapper("SkipSpikes", lambda inner: control.SkipSpikes(inner, 4, loss=False)),
    Wrapper("Blocks", lambda inner: eqopt.matrix.Blocks(inner, {_NOWHERE: eqopt.matrix.Cut()})),
    Wrapper("CautiousUpdates", control.CautiousUpdates),
    Wrapper("CautiousDecay", lambda inner: control.CautiousDecay(inner, 0.02)),
    Wrapper("Graft", lambda inner: control.Graft(eqopt.Scale(0.5), inner)),
]
