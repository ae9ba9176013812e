"""The names of all transforms, for `__init__.py`: the list is long."""

from ._matrix.muon import (
    ScaleByMuon as ScaleByMuon,
    ScaleByMuonState as ScaleByMuonState,
    ScaleByShape as ScaleByShape,
)
from ._transform.acprop import (
    ScaleByACProp as ScaleByACProp,
    ScaleByACPropState as ScaleByACPropState,
)
from ._transform.adadelta import (
    ScaleByAdadelta as ScaleByAdadelta,
    ScaleByAdadeltaState as ScaleByAdadeltaState,
)
from ._transform.adam import ScaleByAdam as ScaleByAdam, ScaleByAdamState as ScaleByAdamState
from ._transform.adamax import (
    ScaleByAdamax as ScaleByAdamax,
    ScaleByAdamaxState as ScaleByAdamaxState,
)
from ._transform.adan import ScaleByAdan as ScaleByAdan, ScaleByAdanState as ScaleByAdanState
from ._transform.adaptive_clip import AdaptiveGradClip as AdaptiveGradClip
from ._transform.ademamix import (
    ScaleByAdEMAMix as ScaleByAdEMAMix,
    ScaleByAdEMAMixState as ScaleByAdEMAMixState,
    ScaleBySimplifiedAdEMAMix as ScaleBySimplifiedAdEMAMix,
    ScaleBySimplifiedAdEMAMixState as ScaleBySimplifiedAdEMAMixState,
)
from ._transform.adopt import (
    clip_value_pow as clip_value_pow,
    ScaleByADOPT as ScaleByADOPT,
    ScaleByADOPTState as ScaleByADOPTState,
)
from ._transform.amsgrad import (
    ScaleByAMSGrad as ScaleByAMSGrad,
    ScaleByAMSGradState as ScaleByAMSGradState,
)
from ._transform.apply_every import ApplyEvery as ApplyEvery, ApplyEveryState as ApplyEveryState
from ._transform.average import (
    EMA as EMA,
    EMAState as EMAState,
    Trace as Trace,
    TraceState as TraceState,
)
from ._transform.basic import (
    Identity as Identity,
    Scale as Scale,
    SetToZero as SetToZero,
    Stateless as Stateless,
    StatelessWithTreeMap as StatelessWithTreeMap,
)
from ._transform.belief import (
    ScaleByBelief as ScaleByBelief,
    ScaleByBeliefState as ScaleByBeliefState,
)
from ._transform.block import (
    ScaleByParamBlockNorm as ScaleByParamBlockNorm,
    ScaleByParamBlockRMS as ScaleByParamBlockRMS,
    ScaleByTrustRatio as ScaleByTrustRatio,
)
from ._transform.centralize import Centralize as Centralize
from ._transform.clip import (
    Clip as Clip,
    ClipByBlockRMS as ClipByBlockRMS,
    ClipByGlobalNorm as ClipByGlobalNorm,
    Normalize as Normalize,
    NormalizeByUpdateNorm as NormalizeByUpdateNorm,
)
from ._transform.cocob import ScaleByCOCOB as ScaleByCOCOB, ScaleByCOCOBState as ScaleByCOCOBState
from ._transform.contract import (
    ContractByLearningRate as ContractByLearningRate,
    ContractByLearningRateState as ContractByLearningRateState,
)
from ._transform.dadapt import (
    ScaleByDAdaptAdam as ScaleByDAdaptAdam,
    ScaleByDAdaptAdamState as ScaleByDAdaptAdamState,
    ScaleByProdigy as ScaleByProdigy,
    ScaleByProdigyState as ScaleByProdigyState,
)
from ._transform.decay import AddDecayedWeights as AddDecayedWeights
from ._transform.dog import (
    AbstractInitialStep as AbstractInitialStep,
    InitialDistance as InitialDistance,
    InitialDistanceHeuristic as InitialDistanceHeuristic,
    InitialLearningRate as InitialLearningRate,
    ScaleByDistanceOverGradients as ScaleByDistanceOverGradients,
    ScaleByDistanceOverGradientsState as ScaleByDistanceOverGradientsState,
    ScaleByDoG as ScaleByDoG,
    ScaleByDoGState as ScaleByDoGState,
    ScaleByDoWG as ScaleByDoWG,
    ScaleByDoWGState as ScaleByDoWGState,
)
from ._transform.factored import (
    decay_rate_pow as decay_rate_pow,
    ScaleByFactoredRMS as ScaleByFactoredRMS,
    ScaleByFactoredRMSState as ScaleByFactoredRMSState,
)
from ._transform.hutchinson import (
    HutchinsonEstimatorDiagHessian as HutchinsonEstimatorDiagHessian,
    HutchinsonEstimatorDiagHessianState as HutchinsonEstimatorDiagHessianState,
    ScaleBySophia as ScaleBySophia,
    ScaleBySophiaState as ScaleBySophiaState,
)
from ._transform.learning_rate import (
    ScaleByLearningRate as ScaleByLearningRate,
    ScaleByLearningRateState as ScaleByLearningRateState,
    ScaleBySchedule as ScaleBySchedule,
    ScaleByScheduleState as ScaleByScheduleState,
)
from ._transform.lion import (
    lion_hard as lion_hard,
    lion_refined as lion_refined,
    lion_smooth as lion_smooth,
    ScaleByLion as ScaleByLion,
    ScaleByLionState as ScaleByLionState,
)
from ._transform.madgrad import (
    ScaleByMADGRAD as ScaleByMADGRAD,
    ScaleByMADGRADState as ScaleByMADGRADState,
)
from ._transform.momo import (
    ScaleByMoMo as ScaleByMoMo,
    ScaleByMoMoAdam as ScaleByMoMoAdam,
    ScaleByMoMoAdamState as ScaleByMoMoAdamState,
    ScaleByMoMoState as ScaleByMoMoState,
)
from ._transform.nans import ZeroNaNs as ZeroNaNs, ZeroNaNsState as ZeroNaNsState
from ._transform.noise import AddNoise as AddNoise, AddNoiseState as AddNoiseState
from ._transform.nonnegative import KeepParamsNonnegative as KeepParamsNonnegative
from ._transform.novograd import (
    ScaleByNovoGrad as ScaleByNovoGrad,
    ScaleByNovoGradState as ScaleByNovoGradState,
)
from ._transform.optimistic import (
    ScaleByOptimisticGradient as ScaleByOptimisticGradient,
    ScaleByOptimisticGradientState as ScaleByOptimisticGradientState,
)
from ._transform.polyak import ScaleByPolyak as ScaleByPolyak
from ._transform.private import (
    DifferentiallyPrivateAggregate as DifferentiallyPrivateAggregate,
    DifferentiallyPrivateAggregateState as DifferentiallyPrivateAggregateState,
)
from ._transform.project import Project as Project
from ._transform.radam import ScaleByRAdam as ScaleByRAdam, ScaleByRAdamState as ScaleByRAdamState
from ._transform.reduce_on_plateau import (
    ReduceOnPlateau as ReduceOnPlateau,
    ReduceOnPlateauState as ReduceOnPlateauState,
)
from ._transform.rms import (
    ScaleByRMS as ScaleByRMS,
    ScaleByRMSState as ScaleByRMSState,
    ScaleByStddev as ScaleByStddev,
    ScaleByStddevState as ScaleByStddevState,
)
from ._transform.rprop import ScaleByRprop as ScaleByRprop, ScaleByRpropState as ScaleByRpropState
from ._transform.rss import ScaleByRSS as ScaleByRSS, ScaleByRSSState as ScaleByRSSState
from ._transform.sign import ScaleBySign as ScaleBySign
from ._transform.sm3 import ScaleBySM3 as ScaleBySM3, ScaleBySM3State as ScaleBySM3State
from ._transform.yogi import ScaleByYogi as ScaleByYogi, ScaleByYogiState as ScaleByYogiState
from .quasi_newton._conjugate_gradient import (
    AbstractConjugacy as AbstractConjugacy,
    ConjugacyProducts as ConjugacyProducts,
    DaiYuan as DaiYuan,
    FletcherReeves as FletcherReeves,
    HagerZhang as HagerZhang,
    PolakRibierePlus as PolakRibierePlus,
    ScaleByNonlinearCG as ScaleByNonlinearCG,
    ScaleByNonlinearCGState as ScaleByNonlinearCGState,
)
