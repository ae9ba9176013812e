"""The one table of every concrete transformation: the laws run over it; it is complete by test."""

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import equinox as eqx
import jax
import numpy as np
import pytest

import eqopt
from eqopt.writing import AbstractOptimizer, AbstractTransformation
from tests.laws.table import control, optimizers, transforms, wrappers
from tests.laws.table.row import Row, Transformation

ROWS = [*transforms.ROWS, *wrappers.ROWS, *optimizers.ROWS, *control.ROWS]
WRAPPERS = [*wrappers.WRAPPERS, *control.WRAPPERS]

# Classes that optax cannot judge, and the file in which something else does.
_ORACLES = """
wrapper/test_apply_if_finite ApplyIfFinite
control/test_decay Multiply
parity/test_recipes CautiousDecay MuonClip
control/test_qk_clip QKClip
control/test_rules AdamC AdamH CAME LaProp MARS ReduceVariance ScaleByCAME ScaleByLaProp
control/test_rules AddCautiousDecayedWeights CautiousUpdates ClipUpdateRMS DecayWeights Graft
control/test_rules Hyperball KeepRadius RadialBrake RelativeUpdate ScaleByStableAdam StableAdamW
control/test_rules UpdateFloor
control/test_spikes SkipSpikes
wrapper/test_conditional ConditionallyMask ConditionallyTransform
wrapper/test_flatten Flatten SplitRealAndImaginary
parity/test_flax_optim_groups WeightNorm
parity/test_from_optax FromOptax
wrapper/test_eval_params ParamEMA
linesearch/test_hager_zhang ScaleByHagerZhangLinesearch
wrapper/test_inject_hyperparams InjectedHyperparams
linesearch/test_conditions ScaleByBacktrackingLinesearch ScaleByZoomLinesearch
linesearch/test_failures ScaleByWolfeLinesearch
wrapper/test_lookahead Lookahead
transform/test_galore GaLore ScaleByGaLore
wrapper/test_mechanize Mechanize
transform/test_private DifferentiallyPrivateAggregate DPSGD
minimize/test_minimize BFGS LBFGS
minimize/test_bounds LBFGSB ScaleByLBFGSB
precision/test_mixed_precision Compensated MasterWeights StochasticRounding
transform/test_matrices ScaleByShape
transform/test_muon Muon ScaleByMuon
transform/test_orthogonal Orthogonalize ScaleByDualNorm ScaleByNAMO ScaleByNeuronRMS
transform/test_orthogonal Blocks
support/frontier AdaMuon MuonHyperball NAMO NorMuon PolarGrad Scion
wrapper/test_multi_steps ApplyEvery MultiSteps
wrapper/test_monitor Monitor Snapshot
wrapper/test_sam Normalize SAM
transform/test_sophia HutchinsonEstimatorDiagHessian ScaleBySophia Sophia
wrapper/test_named_chain NamedChain
minimize/test_newton_cg NewtonCG ScaleByNewtonCG
minimize/test_nonlinear_cg NonlinearCG ScaleByNonlinearCG
minimize/test_proximal FISTA ProximalGradient ScaleByProximalLinesearch
wrapper/test_partition Freeze Partition SelectiveTransform
parity/test_adaptive AdaBelief Adadelta Adafactor Adagrad LAMB LARS
parity/test_adaptive ClipByBlockRMS ScaleByAdadelta ScaleByBelief ScaleByFactoredRMS
parity/test_adaptive ScaleByParamBlockNorm ScaleByParamBlockRMS ScaleByRSS ScaleByTrustRatio
parity/test_adam_family ACProp ADOPT AMSGrad AdEMAMix Adamax AdamaxW Adan NovoGrad
parity/test_adam_family OptimisticAdamV2 RAdam ScaleByACProp ScaleByADOPT ScaleByAMSGrad
parity/test_adam_family ScaleByAdEMAMix ScaleByAdamax ScaleByAdan ScaleByNovoGrad ScaleByRAdam
parity/test_adam_family ScaleBySimplifiedAdEMAMix ScaleByYogi SimplifiedAdEMAMix Yogi
parity/test_learning_rate_free COCOB DAdaptAdamW DoG DoWG MADGRAD MoMo MoMoAdam Prodigy
parity/test_learning_rate_free ScaleByCOCOB ScaleByDistanceOverGradients ScaleByMADGRAD
transform/test_learning_rate_free ScaleByDAdaptAdam ScaleByDoG ScaleByDoWG ScaleByMoMo
transform/test_learning_rate_free ScaleByMoMoAdam ScaleByProdigy
transform/test_polyak PolyakSGD ScaleByPolyak
transform/test_project Project
parity/test_signs OptimisticGradientDescent Rprop ScaleByOptimisticGradient ScaleByRprop
parity/test_signs ScaleBySign ScaleBySM3 SignSGD Signum SM3
parity/test_simple AdaptiveGradClip AddNoise Centralize ContractByLearningRate Fromage
parity/test_simple KeepParamsNonnegative NoisySGD NormalizeByUpdateNorm StatelessWithTreeMap
parity/test_simple ZeroNaNs
transform/test_reduce_on_plateau ReduceOnPlateau
wrapper/test_schedule_free ScheduleFree ScheduleFreeAdamW ScheduleFreeSGD
minimize/test_quasi_newton ScaleByBFGS ScaleByLBFGS
"""
OTHER_ORACLES = {x: file for file, *xs in map(str.split, _ORACLES.split("\n")[1:-1]) for x in xs}

# Adam with a bfloat16 average has a hyper-parameter's worth of rounding noise; no derivative of it
# can be checked by differences.
ROUNDED = {"ScaleByAdam-mu_dtype"}


def each(rows: Iterable[Row]) -> pytest.MarkDecorator:
    """Runs a law over some rows. All that is tested of a row is tested by one process, which then
    has the row's programs already."""
    params = [pytest.param(x, id=x.name, marks=pytest.mark.xdist_group(x.name)) for x in rows]
    return pytest.mark.parametrize("row", params)


every = each(ROWS)
every_differentiable = each(row for row in ROWS if row.differentiable)
every_optimizer = each(row for row in ROWS if row.descends)
every_wrapper = pytest.mark.parametrize("wrapper", WRAPPERS, ids=lambda wrapper: wrapper.name)


def concrete_classes() -> set[type[Transformation]]:
    """Every concrete transformation that is defined anywhere in the package."""
    modules = [
        importlib.import_module(info.name)
        for info in pkgutil.walk_packages(eqopt.__path__, "eqopt.")
    ]
    return {
        x
        for module in modules
        for x in vars(module).values()
        if isinstance(x, type)
        and issubclass(x, AbstractTransformation)
        and not inspect.isabstract(x)
        and x.__module__.startswith("eqopt.")
    }


def parts(transformation: Any) -> Iterator[type[Any]]:
    """The classes that it is made of, itself among them."""
    yield type(transformation)
    if isinstance(transformation, AbstractOptimizer):
        yield from parts(transformation.compose())
    for field in dataclasses.fields(transformation):
        inner = getattr(transformation, field.name)
        for x in inner if isinstance(inner, tuple) else [inner]:
            if isinstance(x, AbstractTransformation):
                yield from parts(x)


def holds_transformations(transformation: Transformation) -> bool:
    """Whether one of the fields is a transformation, or several."""
    values = [getattr(transformation, f.name) for f in dataclasses.fields(transformation)]
    values = [list(v.values()) if isinstance(v, dict) else v for v in values]
    inner = [x for v in values for x in (v if isinstance(v, tuple | list) else (v,))]
    return any(isinstance(x, AbstractTransformation) for x in inner)


def numbers(module: eqx.Module) -> list[str]:
    """The names of the fields that hold one number each."""
    return [f.name for f in dataclasses.fields(module) if _is_number(getattr(module, f.name))]


def _is_number(x: Any) -> bool:
    return isinstance(x, np.ndarray | np.generic | jax.Array) and x.shape == ()


def is_key(x: Any) -> bool:
    """Whether it is a key of the old kind."""
    return isinstance(x, np.ndarray) and x.dtype == np.uint32


def tuned(module: Any, change: Callable[[Any], Any]) -> Any:
    """Changes every number in an optimizer, those of its schedules too."""
    return jax.tree.map(lambda x: change(x) if _is_number(x) else x, module)
