# Of every kind.
from ._base.key_data import KeyData as KeyData
from ._transformation.base import EmptyState as EmptyState
from ._transformation.eval_params import AbstractEvalState as AbstractEvalState
from ._wrapper.chain import ChainState as ChainState
from ._wrapper.named_chain import NamedChainState as NamedChainState

# Of line searches.
from ._objective.cache import Cache as Cache, LinesearchState as LinesearchState
from .linesearch._proximal import (
    ScaleByProximalLinesearchState as ScaleByProximalLinesearchState,
)

# Of quasi-Newton methods and conjugate gradients.
from .quasi_newton._base import (
    DiagonalMatrixState as DiagonalMatrixState,
    ScalarMatrixState as ScalarMatrixState,
)
from .quasi_newton._bfgs import ScaleByBFGSState as ScaleByBFGSState
from .quasi_newton._conjugate_gradient import ScaleByNonlinearCGState as ScaleByNonlinearCGState
from .quasi_newton._lbfgs import ScaleByLBFGSState as ScaleByLBFGSState
from .quasi_newton._newton_cg import ScaleByNewtonCGState as ScaleByNewtonCGState

# Of wrappers.
from ._wrapper.conditional import (
    ConditionallyMaskState as ConditionallyMaskState,
    ConditionallyTransformState as ConditionallyTransformState,
)
from ._wrapper.finite import ApplyIfFiniteState as ApplyIfFiniteState
from ._wrapper.blocks import BlocksState as BlocksState
from ._wrapper.flatten import FlattenState as FlattenState
from ._wrapper.freeze import SelectiveTransformState as SelectiveTransformState
from ._wrapper.inject_hyperparams import InjectHyperparamsState as InjectHyperparamsState
from ._wrapper.lookahead import LookaheadState as LookaheadState
from ._wrapper.masked import MaskedState as MaskedState
from ._wrapper.mechanize import MechanizeState as MechanizeState
from ._transform.monitor import MonitorState as MonitorState
from ._wrapper.multi_steps import MultiStepsState as MultiStepsState
from ._wrapper.param_ema import ParamEMAState as ParamEMAState
from ._wrapper.partition import PartitionState as PartitionState
from ._wrapper.sam import SAMState as SAMState
from ._wrapper.schedule_free import ScheduleFreeState as ScheduleFreeState
from ._wrapper.scheduled import ScheduledState as ScheduledState
from ._wrapper.split_complex import SplitRealAndImaginaryState as SplitRealAndImaginaryState
from ._wrapper.weight_norm import WeightNormState as WeightNormState
from .interop._optax import FromOptaxState as FromOptaxState
from .precision._compensated import CompensatedState as CompensatedState
from .precision._master_weights import MasterWeightsState as MasterWeightsState
from .precision._stochastic import StochasticRoundingState as StochasticRoundingState

# Of what keeps a run in bounds.
from ._transform.control.cautious import (
    AddCautiousDecayedWeightsState as AddCautiousDecayedWeightsState,
    CautiousDecayState as CautiousDecayState,
    CautiousUpdatesState as CautiousUpdatesState,
)
from ._transform.came import ScaleByCAMEState as ScaleByCAMEState
from ._transform.control.decay import DecayWeightsState as DecayWeightsState
from ._wrapper.graft import GraftState as GraftState
from ._transform.control.hyperball import HyperballState as HyperballState
from ._transform.laprop import ScaleByLaPropState as ScaleByLaPropState
from ._transform.mars import ReduceVarianceState as ReduceVarianceState
from ._wrapper.spikes import SkipSpikesState as SkipSpikesState
from ._transform.stable_adam import ScaleByStableAdamState as ScaleByStableAdamState

# Of transformations.
from ._transform.matrix.galore import ScaleByGaLoreState as ScaleByGaLoreState
from ._transform.matrix.muon import ScaleByMuonState as ScaleByMuonState
from ._transform.matrix.second_moment import (
    ScaleByNAMOState as ScaleByNAMOState,
    ScaleByNeuronRMSState as ScaleByNeuronRMSState,
)
from ._transform.acprop import ScaleByACPropState as ScaleByACPropState
from ._transform.adadelta import ScaleByAdadeltaState as ScaleByAdadeltaState
from ._transform.adam import ScaleByAdamState as ScaleByAdamState
from ._transform.adamax import ScaleByAdamaxState as ScaleByAdamaxState
from ._transform.adan import ScaleByAdanState as ScaleByAdanState
from ._transform.ademamix import (
    ScaleByAdEMAMixState as ScaleByAdEMAMixState,
    ScaleBySimplifiedAdEMAMixState as ScaleBySimplifiedAdEMAMixState,
)
from ._transform.adopt import ScaleByADOPTState as ScaleByADOPTState
from ._transform.amsgrad import ScaleByAMSGradState as ScaleByAMSGradState
from ._transform.apply_every import ApplyEveryState as ApplyEveryState
from ._transform.average import EMAState as EMAState, TraceState as TraceState
from ._transform.belief import ScaleByBeliefState as ScaleByBeliefState
from ._transform.cocob import ScaleByCOCOBState as ScaleByCOCOBState
from ._transform.contract import ContractByLearningRateState as ContractByLearningRateState
from ._transform.dadapt import (
    ScaleByDAdaptAdamState as ScaleByDAdaptAdamState,
    ScaleByProdigyState as ScaleByProdigyState,
)
from ._transform.dog import (
    ScaleByDistanceOverGradientsState as ScaleByDistanceOverGradientsState,
    ScaleByDoGState as ScaleByDoGState,
    ScaleByDoWGState as ScaleByDoWGState,
)
from ._transform.factored import ScaleByFactoredRMSState as ScaleByFactoredRMSState
from ._transform.hutchinson import (
    HutchinsonEstimatorDiagHessianState as HutchinsonEstimatorDiagHessianState,
    ScaleBySophiaState as ScaleBySophiaState,
)
from ._transform.learning_rate import (
    ScaleByLearningRateState as ScaleByLearningRateState,
    ScaleByScheduleState as ScaleByScheduleState,
)
from ._transform.lion import ScaleByLionState as ScaleByLionState
from ._transform.madgrad import ScaleByMADGRADState as ScaleByMADGRADState
from ._transform.momo import (
    ScaleByMoMoAdamState as ScaleByMoMoAdamState,
    ScaleByMoMoState as ScaleByMoMoState,
)
from ._transform.nans import ZeroNaNsState as ZeroNaNsState
from ._transform.noise import AddNoiseState as AddNoiseState
from ._transform.novograd import ScaleByNovoGradState as ScaleByNovoGradState
from ._transform.optimistic import ScaleByOptimisticGradientState as ScaleByOptimisticGradientState
from ._transform.private import (
    DifferentiallyPrivateAggregateState as DifferentiallyPrivateAggregateState,
)
from ._transform.radam import ScaleByRAdamState as ScaleByRAdamState
from ._transform.reduce_on_plateau import ReduceOnPlateauState as ReduceOnPlateauState
from ._transform.rms import (
    ScaleByRMSState as ScaleByRMSState,
    ScaleByStddevState as ScaleByStddevState,
)
from ._transform.rprop import ScaleByRpropState as ScaleByRpropState
from ._transform.rss import ScaleByRSSState as ScaleByRSSState
from ._transform.sm3 import ScaleBySM3State as ScaleBySM3State
from ._transform.yogi import ScaleByYogiState as ScaleByYogiState
