"""The rows of links: single transformations, directions and line searches."""

from typing import Any

import jax
import jax.numpy as jnp

import eqopt
from tests.table.row import a_value, direction, MATRICES, Row, search


def double(updates: Any, params: Any) -> Any:
    """For `Stateless`."""
    return jax.tree.map(lambda u: 2 * u, updates)


def constant_decay(step: Any, decay_rate: Any) -> Any:
    """For `ScaleByFactoredRMS`: unlike its own, not 0 in the first step."""
    return decay_rate


ROWS = [
    Row("Identity", eqopt.Identity),
    Row("Scale", lambda: eqopt.Scale(-0.3), descends=True),
    Row("ScaleByLearningRate", lambda: eqopt.ScaleByLearningRate(0.05), descends=True),
    Row("ScaleByLearningRate-up", lambda: eqopt.ScaleByLearningRate(0.05, flip_sign=False)),
    Row(
        "ScaleByLearningRate-schedule",
        lambda: eqopt.ScaleByLearningRate(eqopt.Linear(0.05, 0.01, 4)),
        descends=True,
    ),
    Row("ScaleBySchedule", lambda: eqopt.ScaleBySchedule(eqopt.Linear(0.5, 0.1, 4))),
    Row("SetToZero", eqopt.SetToZero),
    Row("Stateless", lambda: eqopt.Stateless(double)),
    Row("Trace", lambda: eqopt.Trace(0.7)),
    Row("Trace-nesterov", lambda: eqopt.Trace(0.7, nesterov=True)),
    Row("EMA", lambda: eqopt.EMA(0.7)),
    Row("EMA-biased", lambda: eqopt.EMA(0.7, debias=False)),
    Row("ScaleByAdam", lambda: eqopt.ScaleByAdam(0.8, 0.95, 1e-6, 1e-5)),
    Row("ScaleByAdam-nesterov", lambda: eqopt.ScaleByAdam(0.8, 0.95, nesterov=True)),
    Row("ScaleByAdam-mu_dtype", lambda: eqopt.ScaleByAdam(0.8, 0.95, mu_dtype=jnp.bfloat16)),
    Row("ScaleByLion", lambda: eqopt.ScaleByLion(0.8, 0.95)),
    Row("ScaleByLion-smooth", lambda: eqopt.ScaleByLion(0.8, 0.95, None, eqopt.lion_smooth, 2.0)),
    Row("ScaleByLion-refined", lambda: eqopt.ScaleByLion(0.8, 0.95, None, eqopt.lion_refined)),
    Row("ScaleByRMS", lambda: eqopt.ScaleByRMS(0.8, 1e-6, 0.1)),
    Row(
        "ScaleByRMS-debiased",
        lambda: eqopt.ScaleByRMS(0.8, 1e-6, eps_in_sqrt=False, bias_correction=True),
    ),
    Row("ScaleByStddev", lambda: eqopt.ScaleByStddev(0.8, 1e-6, 0.1, eps_in_sqrt=False)),
    Row(
        "ScaleByStddev-debiased",
        # The variance after one step is 0, and all of the denominator `eps`.
        lambda: eqopt.ScaleByStddev(0.8, 0.01, bias_correction=True),
    ),
    Row("ScaleByBelief", lambda: eqopt.ScaleByBelief(0.8, 0.95, 1e-6, 1e-5)),
    Row("ScaleByBelief-nesterov", lambda: eqopt.ScaleByBelief(0.8, 0.95, nesterov=True)),
    Row("ScaleByAdadelta", lambda: eqopt.ScaleByAdadelta(0.8, 1e-4)),
    Row("ScaleByRSS", lambda: eqopt.ScaleByRSS(0.2, 1e-6)),
    Row("ScaleByRSS-outside", lambda: eqopt.ScaleByRSS(0.0, 1e-6, eps_in_sqrt=False)),
    Row(
        "ScaleByFactoredRMS",
        lambda: eqopt.ScaleByFactoredRMS(True, 0.7, 1, 2, 1e-6, constant_decay),
    ),
    Row("ScaleByFactoredRMS-pow", lambda: eqopt.ScaleByFactoredRMS(True, 0.7, 1, 2)),
    Row(
        "ScaleByFactoredRMS-whole",
        lambda: eqopt.ScaleByFactoredRMS(False, 0.7, 1, 2, 1e-6, constant_decay),
    ),
    Row("ScaleByTrustRatio", lambda: eqopt.ScaleByTrustRatio(0.1, 0.3, 1e-3), needs_params=True),
    Row("ScaleByTrustRatio-plain", eqopt.ScaleByTrustRatio, needs_params=True),
    Row(
        "ScaleByTrustRatio-decay",
        lambda: eqopt.ScaleByTrustRatio(0.1, 0.3, 1e-3, 0.01, zeros_move=False),
        needs_params=True,
    ),
    Row("ScaleByParamBlockNorm", lambda: eqopt.ScaleByParamBlockNorm(0.01), needs_params=True),
    Row("ScaleByParamBlockRMS", lambda: eqopt.ScaleByParamBlockRMS(0.01), needs_params=True),
    Row("AddDecayedWeights", lambda: eqopt.AddDecayedWeights(0.01), needs_params=True),
    Row(
        "AddDecayedWeights-mask",
        lambda: eqopt.AddDecayedWeights(0.01, MATRICES),
        needs_params=True,
    ),
    Row("Clip", lambda: eqopt.Clip(0.4)),
    Row("ClipByBlockRMS", lambda: eqopt.ClipByBlockRMS(0.6)),
    Row("ClipByGlobalNorm", lambda: eqopt.ClipByGlobalNorm(0.6)),
    Row(
        "Monitor",
        lambda: eqopt.Monitor(
            {"norm": eqopt.global_norm, "average": eqopt.MeasureWithEMA(eqopt.global_norm, 0.7)}
        ),
    ),
    Row("Normalize", eqopt.Normalize),
    Row("Snapshot", lambda: eqopt.Snapshot("norm", eqopt.global_norm)),
    Row(
        "ReduceOnPlateau",
        lambda: eqopt.ReduceOnPlateau(0.3, 2, 0.1, 0.05, 3, 4, 0.2),
        needs=a_value,
    ),
    search(
        "ScaleByBacktrackingLinesearch", lambda: eqopt.ScaleByBacktrackingLinesearch(8, 0.01, 0.7)
    ),
    search(
        "ScaleByBacktrackingLinesearch-grad",
        lambda: eqopt.ScaleByBacktrackingLinesearch(8, 0.01, 0.7, store_grad=True),
    ),
    search("ScaleByZoomLinesearch", lambda: eqopt.ScaleByZoomLinesearch(8)),
    search("ScaleByHagerZhangLinesearch", lambda: eqopt.ScaleByHagerZhangLinesearch(8)),
    search("ScaleByWolfeLinesearch", lambda: eqopt.ScaleByWolfeLinesearch(8)),
    direction("ScaleByLBFGS", lambda: eqopt.ScaleByLBFGS(3)),
    direction(
        "ScaleByLBFGS-plain",
        lambda: eqopt.ScaleByLBFGS(
            3, first_step_rtol=0.5, init_matrix=eqopt.ScalarMatrix(), secant=eqopt.PlainSecant()
        ),
    ),
    direction("ScaleByBFGS", lambda: eqopt.ScaleByBFGS(first_step_rtol=0.5)),
    direction("ScaleByNonlinearCG", eqopt.ScaleByNonlinearCG),
    Row(
        "ScaleByPolyak",
        lambda: eqopt.ScaleByPolyak(0.1, 0.5, 1e-3),
        needs=a_value,
    ),
]
