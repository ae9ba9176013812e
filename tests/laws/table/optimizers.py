"""The rows of the named optimizers."""

import eqopt
from eqopt import flax_optim, matrix
from tests.laws.table.row import (
    a_value,
    an_objective,
    direction,
    KEY,
    MATRICES,
    optimizer,
    private,
    Row,
    search,
)

_STEPS = {
    eqopt.ByNdim(0, 0): eqopt.Scale(0.7),
    eqopt.ByNdim(1, 1): matrix.ScaleByDualNorm("rms"),
}

ROWS = [
    direction("LBFGS", lambda: eqopt.LBFGS(0.05, 3, linesearch=None), descends=True),
    direction("BFGS", lambda: eqopt.BFGS(0.05, linesearch=None), descends=True),
    search("LBFGSB", lambda: eqopt.LBFGSB(3)),
    search(
        "NewtonCG", lambda: eqopt.NewtonCG(eqopt.quasi_newton.ScaleByNewtonCG(5, memory_size=3))
    ),
    search("NonlinearCG", eqopt.NonlinearCG),
    search(
        "ProximalGradient",
        lambda: eqopt.ProximalGradient(eqopt.projections.L1(0.2), 20, 0.6, 1.3),
    ),
    search("FISTA", lambda: eqopt.FISTA(eqopt.projections.L1(0.2), 20, 0.6, 1.3)),
    Row(
        "PolyakSGD",
        lambda: eqopt.PolyakSGD(0.05, 0.5, 0.1, 1e-3),
        descends=True,
        needs=a_value,
    ),
    Row("ScheduleFreeSGD", lambda: eqopt.ScheduleFreeSGD(0.05, b1=0.8), descends=True),
    optimizer("ScheduleFreeSGD-warmup", lambda: eqopt.ScheduleFreeSGD(0.05, 3, 0.8, 0.01)),
    optimizer("ScheduleFreeAdamW", lambda: eqopt.ScheduleFreeAdamW(0.05, 3, 0.8, 0.95, 1e-6, 0.01)),
    Row("SGD", lambda: eqopt.SGD(0.05), descends=True),
    Row("SGD-momentum", lambda: eqopt.SGD(0.05, 0.7, nesterov=True), descends=True),
    Row("Adam", lambda: eqopt.Adam(0.05, 0.8, 0.95, 1e-6), descends=True),
    Row("Adam-schedule", lambda: eqopt.Adam(eqopt.Linear(0.05, 0.01, 4)), descends=True),
    Row("AdamW", lambda: eqopt.AdamW(0.05, 0.8, 0.95), descends=True, needs_params=True),
    Row(
        "AdamW-mask",
        lambda: eqopt.AdamW(0.05, weight_decay=0.01, mask=MATRICES),
        descends=True,
        needs_params=True,
    ),
    Row("NAdam", lambda: eqopt.NAdam(0.05, 0.8, 0.95), descends=True),
    Row("NAdamW", lambda: eqopt.NAdamW(0.05, 0.8, 0.95), descends=True, needs_params=True),
    Row("AMSGrad", lambda: eqopt.AMSGrad(0.05, 0.8, 0.95, 1e-6, 1e-5), descends=True),
    Row("Adamax", lambda: eqopt.Adamax(0.05, 0.8, 0.95, 1e-5), descends=True),
    optimizer("AdamaxW", lambda: eqopt.AdamaxW(0.05, 0.8, 0.95, 1e-5, 0.01, MATRICES)),
    optimizer("Adan", lambda: eqopt.Adan(0.05, 0.8, 0.7, 0.95, 1e-6, 1e-5, 0.01, MATRICES)),
    Row("RAdam", lambda: eqopt.RAdam(0.05, 0.8, 0.95, 1e-6, 1e-5, 4.5), descends=True),
    Row("Yogi", lambda: eqopt.Yogi(0.05, 0.8, 0.95, 1e-4), descends=True),
    optimizer("NovoGrad", lambda: eqopt.NovoGrad(0.05, 0.8, 0.3, 1e-6, 1e-5, 0.01)),
    optimizer(
        "AdEMAMix",
        lambda: eqopt.AdEMAMix(
            0.05, 0.8, 0.95, 0.97, 2.5, 1e-6, 1e-5, weight_decay=0.01, mask=MATRICES
        ),
    ),
    optimizer(
        "SimplifiedAdEMAMix",
        lambda: eqopt.SimplifiedAdEMAMix(0.05, 0.8, 0.95, 2.5, 1e-6, 1e-5, 0.01, MATRICES),
    ),
    # Its first update is zero.
    Row("ADOPT", lambda: eqopt.ADOPT(0.05, 0.8, 0.95, 0.6, use_clipping=False)),
    optimizer("ACProp", lambda: eqopt.ACProp(0.05, 0.8, 0.95, 1e-6, 1e-5, 0.01, MATRICES)),
    Row(
        "OptimisticAdamV2",
        lambda: eqopt.OptimisticAdamV2(0.05, 0.9, 0.6, 0.8, 0.95, 1e-6, 1e-5),
        descends=True,
    ),
    Row("AdaBelief", lambda: eqopt.AdaBelief(0.05, 0.8, 0.95, 1e-6, 1e-5), descends=True),
    optimizer("Adadelta", lambda: eqopt.Adadelta(0.5, 0.8, 1e-4, 0.01, MATRICES)),
    optimizer("Adadelta-default", eqopt.Adadelta),
    optimizer("Adafactor", lambda: eqopt.Adafactor(0.05, 2, 0.7, 1, clipping_threshold=0.7)),
    optimizer(
        "Adafactor-all",
        lambda: eqopt.Adafactor(
            eqopt.Linear(0.05, 0.01, 4),
            2,
            0.7,
            1,
            True,
            0.6,
            0.8,
            None,
            0.01,
            1e-6,
            False,
            MATRICES,
        ),
    ),
    Row(
        "Adafactor-bare",
        lambda: eqopt.Adafactor(
            decay_offset=1, multiply_by_parameter_scale=False, clipping_threshold=None
        ),
        descends=True,
    ),
    Row("Adagrad", lambda: eqopt.Adagrad(0.05, 0.2, 1e-6), descends=True),
    optimizer("LAMB", lambda: eqopt.LAMB(0.05, 0.8, 0.95, 1e-5, 1e-6, 0.01, MATRICES)),
    optimizer("LARS", lambda: eqopt.LARS(0.5, 0.01, None, 0.02, 1e-6, momentum=0.7)),
    optimizer(
        "LARS-masks",
        lambda: eqopt.LARS(0.05, 0.01, MATRICES, 0.3, 1e-6, MATRICES, 0.7, nesterov=True),
    ),
    Row("Lion", lambda: eqopt.Lion(0.05, 0.8, 0.95), descends=True, needs_params=True),
    optimizer("Fromage", lambda: eqopt.Fromage(0.05, 0.01)),
    Row(
        "OptimisticGradientDescent",
        lambda: eqopt.OptimisticGradientDescent(0.05, 0.7, 0.4),
        descends=True,
    ),
    Row("SignSGD", lambda: eqopt.SignSGD(0.05), descends=True),
    Row("Signum", lambda: eqopt.Signum(0.05, 0.8), descends=True),
    Row("Rprop", lambda: eqopt.Rprop(0.05, 0.4, 1.3, 1e-3, 2.0), descends=True),
    Row("SM3", lambda: eqopt.SM3(0.05, 0.8), descends=True),
    Row("NoisySGD", lambda: eqopt.NoisySGD(0.05, 0.02, 0.6, key=KEY), descends=True),
    optimizer(
        "Muon",
        lambda: eqopt.Muon(
            0.05, "dion", 2, 0.8, 1e-6, 0.01, adam_weight_decay=0.02, consistent_rms=0.3
        ),
    ),
    optimizer("NorMuon", lambda: matrix.NorMuon(0.05, 0.8, 1e-6, 0.01)),
    optimizer("AdaMuon", lambda: matrix.AdaMuon(0.05, 0.8, 1e-6, 0.01)),
    optimizer("NAMO", lambda: matrix.NAMO(0.05, 0.8, 1e-6, 0.01)),
    optimizer("PolarGrad", lambda: matrix.PolarGrad(0.05, 0.01)),
    optimizer("MuonHyperball", lambda: matrix.MuonHyperball(0.05, 0.02)),
    optimizer("Scion", lambda: matrix.Scion(0.05, 0.8, 0.3, _STEPS)),
    Row(
        "GaLore",
        lambda: eqopt.GaLore(0.05, 1, 2, 0.3, weight_decay=0.01),
        descends=True,
        needs_params=True,
        differentiable=False,
    ),
    Row(
        "Sophia",
        lambda: eqopt.Sophia(0.05, 0.8, 0.7, 0.01, 0.02, MATRICES, 0.6, 4.0, 2),
        descends=True,
        needs_params=True,
        needs=an_objective,
    ),
    private("DPSGD", lambda: eqopt.DPSGD(0.05, 0.9, 0.003, KEY, 0.7), descends=True),
    Row("RMSProp", lambda: eqopt.RMSProp(0.05, 0.8), descends=True),
    Row(
        "RMSProp-centered",
        lambda: eqopt.RMSProp(0.05, 0.8, centered=True, momentum=0.7),
        descends=True,
    ),
    optimizer("COCOB", lambda: eqopt.COCOB(0.3, 20.0, 0.01, 0.02, MATRICES)),
    optimizer("DAdaptAdamW", lambda: eqopt.DAdaptAdamW(0.7, (0.8, 0.95), 1e-6, 0.05, 0.01)),
    optimizer(
        "Prodigy",
        lambda: eqopt.Prodigy(0.7, (0.8, 0.95), None, 1e-6, 0.05, 1.5, 0.01),
    ),
    optimizer("DoG", lambda: eqopt.DoG(0.7, ("heuristic", 0.01), 1e-3, 0.02, MATRICES)),
    optimizer("DoWG", lambda: eqopt.DoWG(0.7, 0.05, 1e-3, 0.02, MATRICES)),
    optimizer("MADGRAD", lambda: eqopt.MADGRAD(0.05, 0.7, 0.01, 1e-3)),
    Row(
        "MoMo",
        lambda: eqopt.MoMo(0.05, 0.7, 0.3, 0.01),
        descends=True,
        needs_params=True,
        needs=a_value,
    ),
    Row(
        "MoMoAdam",
        lambda: eqopt.MoMoAdam(0.05, 0.8, 0.95, 1e-6, 0.3, 0.01),
        descends=True,
        needs_params=True,
        needs=a_value,
    ),
    Row("flax_optim.GradientDescent", lambda: flax_optim.GradientDescent(0.05), descends=True),
    optimizer("flax_optim.Momentum", lambda: flax_optim.Momentum(0.05, 0.7, 0.01, True)),
    optimizer("flax_optim.Adam", lambda: flax_optim.Adam(0.05, 0.8, 0.95, 1e-6, 0.01)),
    optimizer("flax_optim.AdaBelief", lambda: flax_optim.AdaBelief(0.05, 0.8, 0.95, 1e-5, 0.01)),
    optimizer("flax_optim.Adadelta", lambda: flax_optim.Adadelta(0.5, 0.8, 1e-4, 0.01)),
    optimizer(
        "flax_optim.Adafactor",
        lambda: flax_optim.Adafactor(0.05, True, True, 0.8, 0.7, 1, 0.6, 0.01, 2, 1e-6, 0.02, None),
    ),
    Row(
        "flax_optim.Adafactor-bare",
        lambda: flax_optim.Adafactor(0.05, False, False, step_offset=1, clipping_threshold=None),
        descends=True,
    ),
    Row("flax_optim.Adagrad", lambda: flax_optim.Adagrad(0.05, 1e-6), descends=True),
    optimizer("flax_optim.LAMB", lambda: flax_optim.LAMB(0.05, 0.8, 0.95, 0.01, 1e-5)),
    optimizer("flax_optim.LARS", lambda: flax_optim.LARS(0.5, 0.7, 0.01, 0.02, 1e-6, True)),
    Row("flax_optim.RMSProp", lambda: flax_optim.RMSProp(0.05, 0.8, 1e-6), descends=True),
    Row(
        "flax_optim.RMSProp-centered",
        lambda: flax_optim.RMSProp(0.05, 0.8, 0.01, True),
        descends=True,
    ),
    optimizer(
        "flax_optim.WeightNorm",
        lambda: flax_optim.WeightNorm(flax_optim.Momentum(0.05, 0.7), 0.01, 1e-5),
    ),
    optimizer(
        "flax_optim.MultiOptimizer",
        lambda: flax_optim.MultiOptimizer(
            (MATRICES, flax_optim.Adam(0.05, 0.8, 0.95)), (~MATRICES, flax_optim.Momentum(0.03))
        ),
    ),
]
