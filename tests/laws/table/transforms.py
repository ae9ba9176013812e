"""The rows of links: single transformations, directions and line searches."""

from typing import Any

import jax
import jax.numpy as jnp

import eqopt
from eqopt import matrix
from tests.laws.table.row import (
    a_value,
    an_objective,
    direction,
    KEY,
    MATRICES,
    private,
    Row,
    search,
)


def double(updates: Any, params: Any) -> Any:
    """For `Stateless`."""
    return jax.tree.map(lambda u: 2 * u, updates)


def double_leaf(update: Any, param: Any) -> Any:
    """For `StatelessWithTreeMap`."""
    return 2 * update


def constant_decay(step: Any, decay_rate: Any) -> Any:
    """For `ScaleByFactoredRMS`: unlike its own, not 0 in the first step."""
    return decay_rate


def matrices_or_rows(params: Any) -> Any:
    """For `ScaleByMuon`: a vector is a matrix with one row."""
    row, whole = eqopt.options.MuonDimensionNumbers((), 0), eqopt.options.MuonDimensionNumbers()
    return jax.tree.map(lambda x: whole if x.ndim == 2 else row, params)


NUMBERS = matrices_or_rows


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
    Row("StatelessWithTreeMap", lambda: eqopt.StatelessWithTreeMap(double_leaf)),
    Row("Trace", lambda: eqopt.Trace(0.7)),
    Row("Trace-nesterov", lambda: eqopt.Trace(0.7, nesterov=True)),
    Row("EMA", lambda: eqopt.EMA(0.7)),
    Row("EMA-biased", lambda: eqopt.EMA(0.7, debias=False)),
    Row("ScaleByAdam", lambda: eqopt.ScaleByAdam(0.8, 0.95, 1e-6, 1e-5)),
    Row("ScaleByAdam-nesterov", lambda: eqopt.ScaleByAdam(0.8, 0.95, nesterov=True)),
    Row("ScaleByAdam-mu_dtype", lambda: eqopt.ScaleByAdam(0.8, 0.95, mu_dtype=jnp.bfloat16)),
    Row("ScaleByAMSGrad", lambda: eqopt.ScaleByAMSGrad(0.8, 0.95, 1e-6, 1e-5)),
    Row("ScaleByAdamax", lambda: eqopt.ScaleByAdamax(0.8, 0.95, 1e-5)),
    Row("ScaleByAdan", lambda: eqopt.ScaleByAdan(0.8, 0.7, 0.95, 1e-6, 1e-5)),
    # Its steps are rectified only later; for these there are tests with its numbers.
    Row("ScaleByRAdam", lambda: eqopt.ScaleByRAdam(0.8, 0.95, 1e-6, 1e-5, 4.5)),
    Row("ScaleByYogi", lambda: eqopt.ScaleByYogi(0.8, 0.95, 1e-3, 1e-5, 0.02)),
    Row(
        "ScaleByNovoGrad",
        lambda: eqopt.ScaleByNovoGrad(0.8, 0.3, 1e-6, 1e-5, 0.01),
        needs_params=True,
    ),
    Row(
        "ScaleByAdEMAMix",
        lambda: eqopt.ScaleByAdEMAMix(0.8, 0.95, 0.97, eqopt.Linear(2.5, 6.0, 4), 1e-6, 1e-5),
    ),
    Row(
        "ScaleBySimplifiedAdEMAMix",
        lambda: eqopt.ScaleBySimplifiedAdEMAMix(0.8, 0.95, 2.5, 1e-6, 1e-5),
    ),
    Row(
        "ScaleByADOPT",
        # In the second step, 0.35: of what is not below `eps`, most is clipped.
        lambda: eqopt.ScaleByADOPT(0.8, 0.95, 0.6, clip_value_fn=eqopt.Linear(0.2, 0.8, 4)),
    ),
    Row("ScaleByACProp", lambda: eqopt.ScaleByACProp(0.8, 0.95, 1e-6, 1e-5)),
    Row("ScaleByLion", lambda: eqopt.ScaleByLion(0.8, 0.95)),
    Row(
        "ScaleByLion-smooth",
        lambda: eqopt.ScaleByLion(0.8, 0.95, None, eqopt.options.lion_smooth, 2.0),
    ),
    Row(
        "ScaleByLion-refined",
        lambda: eqopt.ScaleByLion(0.8, 0.95, None, eqopt.options.lion_refined),
    ),
    Row(
        "ScaleByMuon",
        lambda: eqopt.ScaleByMuon(
            (3.2, -4.1, 1.7), 3, 0.8, 1e-6, weight_dimension_numbers=matrices_or_rows
        ),
    ),
    Row("ScaleByShape", lambda: eqopt.matrix.ScaleByShape(matrices_or_rows, 0.3)),
    Row(
        "Orthogonalize",
        lambda: matrix.Orthogonalize(
            matrix.Quintics([(3.2, -4.1, 1.7), (2.9, -3.3, 1.3)]),
            3,
            1e-6,
            weight_dimension_numbers=NUMBERS,
        ),
    ),
    Row(
        "ScaleByNeuronRMS", lambda: matrix.ScaleByNeuronRMS(0.8, 1e-6, "input", "outside", NUMBERS)
    ),
    Row(
        "ScaleByNAMO",
        lambda: matrix.ScaleByNAMO(
            # More steps amplify the rounding of sums, whose order is another on many devices.
            eqopt.ScaleByMuon(
                ns_steps=2, beta=0.7, momentum="heavy_ball", weight_dimension_numbers=NUMBERS
            ),
            0.8,
            1e-6,
        ),
    ),
    Row("ScaleByDualNorm", lambda: matrix.ScaleByDualNorm("rms", 1e-6)),
    Row("ScaleByDualNorm-row", lambda: matrix.ScaleByDualNorm("row", 1e-6, NUMBERS)),
    # It takes its projectors for constants.
    Row("ScaleByGaLore", lambda: eqopt.ScaleByGaLore(1, 2, 0.3), differentiable=False),
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
    Row("ScaleByOptimisticGradient", lambda: eqopt.ScaleByOptimisticGradient(0.7, 0.4)),
    Row("ScaleBySign", eqopt.ScaleBySign),
    Row("ScaleByRprop", lambda: eqopt.ScaleByRprop(0.05, 0.4, 1.3, 1e-3, 2.0)),
    Row("ScaleBySM3", lambda: eqopt.ScaleBySM3(0.8, 0.95, 1e-4)),
    Row(
        "ContractByLearningRate",
        lambda: eqopt.control.ContractByLearningRate(0.3),
        needs_params=True,
    ),
    Row("Centralize", eqopt.Centralize),
    Row("AddNoise", lambda: eqopt.AddNoise(0.02, 0.6, KEY)),
    Row("ZeroNaNs", eqopt.ZeroNaNs),
    Row("AdaptiveGradClip", lambda: eqopt.AdaptiveGradClip(0.3, 0.01), needs_params=True),
    Row("KeepParamsNonnegative", eqopt.KeepParamsNonnegative, needs_params=True),
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
    Row("NormalizeByUpdateNorm", lambda: eqopt.NormalizeByUpdateNorm(-0.7, 0.01)),
    Row("Snapshot", lambda: eqopt.Snapshot("norm", eqopt.global_norm)),
    Row(
        "Project",
        lambda: eqopt.Project(eqopt.projections.Box(-0.3, 0.6)),
        needs_params=True,
    ),
    Row(
        "Project-whole",
        lambda: eqopt.Project(eqopt.projections.L1Ball(1.7)),
        needs_params=True,
    ),
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
    search("ScaleByHagerZhangLinesearch", lambda: eqopt.linesearch.ScaleByHagerZhangLinesearch(8)),
    search(
        "ScaleByProximalLinesearch",
        lambda: eqopt.linesearch.ScaleByProximalLinesearch(
            eqopt.projections.GroupL2(0.3), True, 20, 0.6, 1.3
        ),
    ),
    search("ScaleByWolfeLinesearch", lambda: eqopt.linesearch.ScaleByWolfeLinesearch(8)),
    Row(
        "HutchinsonEstimatorDiagHessian",
        lambda: eqopt.HutchinsonEstimatorDiagHessian(KEY),
        needs_params=True,
        needs=an_objective,
    ),
    Row(
        "ScaleBySophia",
        lambda: eqopt.ScaleBySophia(0.8, 0.7, 0.01, 0.6, 4.0, 2),
        needs_params=True,
        needs=an_objective,
    ),
    private(
        "DifferentiallyPrivateAggregate",
        lambda: eqopt.DifferentiallyPrivateAggregate(0.9, 0.03, KEY),
    ),
    Row(
        "ScaleByCOCOB",
        lambda: eqopt.ScaleByCOCOB(20.0, 0.01),
        descends=True,
        needs_params=True,
    ),
    Row(
        "ScaleByDAdaptAdam",
        lambda: eqopt.ScaleByDAdaptAdam(0.7, (0.8, 0.95), 1e-6, 0.05, 0.01),
        needs_params=True,
    ),
    Row(
        "ScaleByProdigy",
        lambda: eqopt.ScaleByProdigy(0.7, (0.8, 0.95), 0.9, 1e-6, 0.05, 1.5, 0.01, True),
        needs_params=True,
    ),
    Row("ScaleByDoG", lambda: eqopt.ScaleByDoG(("distance", 0.05), 1e-3), needs_params=True),
    Row("ScaleByDoWG", lambda: eqopt.ScaleByDoWG(0.05, 1e-3), needs_params=True),
    Row(
        "ScaleByDistanceOverGradients",
        lambda: eqopt.ScaleByDistanceOverGradients(0.05, 1e-3, None, -0.7),
        descends=True,
        needs_params=True,
    ),
    Row(
        "ScaleByMADGRAD",
        lambda: eqopt.ScaleByMADGRAD(0.05, 0.7, 1e-3),
        descends=True,
        needs_params=True,
    ),
    Row(
        "ScaleByMoMo",
        lambda: eqopt.ScaleByMoMo(0.05, 0.7, 0.3, 0.01, True),
        needs_params=True,
        needs=a_value,
    ),
    Row(
        "ScaleByMoMoAdam",
        lambda: eqopt.ScaleByMoMoAdam(0.05, 0.8, 0.95, 1e-6, 0.3, 0.01, True),
        needs_params=True,
        needs=a_value,
    ),
    direction("ScaleByLBFGS", lambda: eqopt.ScaleByLBFGS(3)),
    direction(
        "ScaleByLBFGS-plain",
        lambda: eqopt.ScaleByLBFGS(
            3,
            first_step_rtol=0.5,
            init_matrix=eqopt.quasi_newton.ScalarMatrix(),
            secant=eqopt.quasi_newton.PlainSecant(),
        ),
    ),
    direction("ScaleByLBFGSB", lambda: eqopt.quasi_newton.ScaleByLBFGSB(3)),
    search("ScaleByNewtonCG", lambda: eqopt.quasi_newton.ScaleByNewtonCG(5, memory_size=3)),
    direction("ScaleByBFGS", lambda: eqopt.quasi_newton.ScaleByBFGS(first_step_rtol=0.5)),
    direction(
        "ScaleByBFGS-self-scaled",
        lambda: eqopt.quasi_newton.ScaleByBFGS(
            first_step_rtol=0.5, update_rule=eqopt.quasi_newton.SelfScaledBroyden()
        ),
    ),
    direction("ScaleByNonlinearCG", eqopt.quasi_newton.ScaleByNonlinearCG),
    Row(
        "ScaleByPolyak",
        lambda: eqopt.ScaleByPolyak(0.1, 0.5, 1e-3),
        needs=a_value,
    ),
]
