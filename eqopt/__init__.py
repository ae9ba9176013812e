"""Optimizers for Equinox."""

from . import flax_optim as flax_optim, plot as plot
from ._bundle import Optimizer as Optimizer
from ._cache import Cache as Cache, LinesearchState as LinesearchState
from ._check import typed as typed
from ._closure import RecompilationWarning as RecompilationWarning
from ._descent import MinimizeResult as MinimizeResult
from ._eval_params import (
    AbstractEvalState as AbstractEvalState,
    eval_params as eval_params,
    LookaheadParams as LookaheadParams,
)
from ._first_step import (
    double_step as double_step,
    keep_step as keep_step,
    unit_step as unit_step,
)
from ._fit import Fit as Fit, fit as fit, FitProgress as FitProgress
from ._history import History as History
from ._hyperparameter import real as real, size as size, steps as steps
from ._hyperparameters import hyperparameters as hyperparameters
from ._kernel import Rule as Rule
from ._linesearch.backtracking import (
    ScaleByBacktrackingLinesearch as ScaleByBacktrackingLinesearch,
)
from ._linesearch.base import (
    AbstractLinesearch as AbstractLinesearch,
    Answer as Answer,
    LinesearchInfo as LinesearchInfo,
    LinesearchResult as LinesearchResult,
    Origin as Origin,
    Trial as Trial,
)
from ._linesearch.hager_zhang import ScaleByHagerZhangLinesearch as ScaleByHagerZhangLinesearch
from ._linesearch.wolfe import ScaleByWolfeLinesearch as ScaleByWolfeLinesearch
from ._linesearch.zoom import ScaleByZoomLinesearch as ScaleByZoomLinesearch
from ._minimize import minimize as minimize, Solution as Solution
from ._monitor import (
    AbstractMeasure as AbstractMeasure,
    measurements as measurements,
    MeasureWithEMA as MeasureWithEMA,
    Monitor as Monitor,
    MonitorState as MonitorState,
    Snapshot as Snapshot,
)
from ._objective import (
    Context as Context,
    Evaluation as Evaluation,
    Objective as Objective,
    Whole as Whole,
)
from ._optimizer.adabelief import AdaBelief as AdaBelief
from ._optimizer.adadelta import Adadelta as Adadelta
from ._optimizer.adafactor import Adafactor as Adafactor
from ._optimizer.adagrad import Adagrad as Adagrad
from ._optimizer.adam import Adam as Adam, AdamW as AdamW, NAdam as NAdam, NAdamW as NAdamW
from ._optimizer.lamb import LAMB as LAMB
from ._optimizer.lars import LARS as LARS
from ._optimizer.lion import Lion as Lion
from ._optimizer.nonlinear_cg import NonlinearCG as NonlinearCG
from ._optimizer.polyak import PolyakSGD as PolyakSGD
from ._optimizer.quasi_newton import BFGS as BFGS, LBFGS as LBFGS
from ._optimizer.rmsprop import RMSProp as RMSProp
from ._optimizer.schedule_free import (
    ScheduleFreeAdamW as ScheduleFreeAdamW,
    ScheduleFreeSGD as ScheduleFreeSGD,
)
from ._optimizer.sgd import SGD as SGD
from ._precision.cast import cast_floating as cast_floating
from ._precision.compensated import (
    Compensated as Compensated,
    CompensatedState as CompensatedState,
)
from ._precision.dynamic_scale import (
    DynamicScale as DynamicScale,
    DynamicScaleResult as DynamicScaleResult,
    ScaledStep as ScaledStep,
)
from ._precision.master_weights import (
    MasterWeights as MasterWeights,
    MasterWeightsState as MasterWeightsState,
)
from ._precision.stochastic import (
    apply_updates_stochastically as apply_updates_stochastically,
    StochasticRounding as StochasticRounding,
    StochasticRoundingState as StochasticRoundingState,
)
from ._progress import (
    AbstractProgress as AbstractProgress,
    RichProgress as RichProgress,
    TextProgress as TextProgress,
    TqdmProgress as TqdmProgress,
)
from ._quasi_newton.base import (
    AbstractInitialMatrix as AbstractInitialMatrix,
    AbstractSecant as AbstractSecant,
    DiagonalMatrix as DiagonalMatrix,
    DiagonalMatrixState as DiagonalMatrixState,
    IdentityMatrix as IdentityMatrix,
    ModifiedSecant as ModifiedSecant,
    Pair as Pair,
    PlainSecant as PlainSecant,
    ScalarMatrix as ScalarMatrix,
    ScalarMatrixState as ScalarMatrixState,
)
from ._quasi_newton.bfgs import (
    ScaleByBFGS as ScaleByBFGS,
    ScaleByBFGSState as ScaleByBFGSState,
)
from ._quasi_newton.lbfgs import (
    ScaleByLBFGS as ScaleByLBFGS,
    ScaleByLBFGSState as ScaleByLBFGSState,
)
from ._schedule.base import (
    AbstractSchedule as AbstractSchedule,
    Constant as Constant,
    cosine_interpolation as cosine_interpolation,
    FunctionSchedule as FunctionSchedule,
    linear_interpolation as linear_interpolation,
    scheduled_real as scheduled_real,
)
from ._schedule.cosine import CosineDecay as CosineDecay
from ._schedule.exponential import ExponentialDecay as ExponentialDecay
from ._schedule.join import Join as Join
from ._schedule.onecycle import (
    CosineOneCycle as CosineOneCycle,
    LinearOneCycle as LinearOneCycle,
)
from ._schedule.piecewise import (
    PiecewiseConstant as PiecewiseConstant,
    PiecewiseInterpolate as PiecewiseInterpolate,
)
from ._schedule.polynomial import Linear as Linear, Polynomial as Polynomial
from ._schedule.warmup import (
    SGDR as SGDR,
    WarmupConstant as WarmupConstant,
    WarmupCosineDecay as WarmupCosineDecay,
    WarmupExponentialDecay as WarmupExponentialDecay,
)
from ._selector import (
    AbstractSelector as AbstractSelector,
    And as And,
    ByNdim as ByNdim,
    ByPath as ByPath,
    ByType as ByType,
    FunctionSelector as FunctionSelector,
    Not as Not,
    Or as Or,
    TreeSelector as TreeSelector,
    Where as Where,
)
from ._transform.adadelta import (
    ScaleByAdadelta as ScaleByAdadelta,
    ScaleByAdadeltaState as ScaleByAdadeltaState,
)
from ._transform.adam import ScaleByAdam as ScaleByAdam, ScaleByAdamState as ScaleByAdamState
from ._transform.apply_every import (
    ApplyEvery as ApplyEvery,
    ApplyEveryState as ApplyEveryState,
)
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
from ._transform.clip import (
    Clip as Clip,
    ClipByBlockRMS as ClipByBlockRMS,
    ClipByGlobalNorm as ClipByGlobalNorm,
    Normalize as Normalize,
)
from ._transform.conjugate_gradient import (
    AbstractConjugacy as AbstractConjugacy,
    ConjugacyProducts as ConjugacyProducts,
    DaiYuan as DaiYuan,
    FletcherReeves as FletcherReeves,
    HagerZhang as HagerZhang,
    PolakRibierePlus as PolakRibierePlus,
    ScaleByNonlinearCG as ScaleByNonlinearCG,
    ScaleByNonlinearCGState as ScaleByNonlinearCGState,
)
from ._transform.decay import AddDecayedWeights as AddDecayedWeights
from ._transform.factored import (
    decay_rate_pow as decay_rate_pow,
    ScaleByFactoredRMS as ScaleByFactoredRMS,
    ScaleByFactoredRMSState as ScaleByFactoredRMSState,
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
from ._transform.polyak import ScaleByPolyak as ScaleByPolyak
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
from ._transform.rss import ScaleByRSS as ScaleByRSS, ScaleByRSSState as ScaleByRSSState
from ._transformation import (
    AbstractLeafwise as AbstractLeafwise,
    AbstractOptimizer as AbstractOptimizer,
    AbstractTransformation as AbstractTransformation,
    apply_updates as apply_updates,
    EmptyState as EmptyState,
)
from ._tree import (
    bias_correction as bias_correction,
    global_norm as global_norm,
    increment as increment,
    zeros_like as zeros_like,
)
from ._value_and_grad import value_and_grad as value_and_grad
from ._value_and_grad_from_state import (
    value_and_grad_from_state as value_and_grad_from_state,
    ValueAndGradFromState as ValueAndGradFromState,
)
from ._wrapper.chain import Chain as Chain, ChainState as ChainState
from ._wrapper.conditional import (
    ConditionallyMask as ConditionallyMask,
    ConditionallyMaskState as ConditionallyMaskState,
    ConditionallyTransform as ConditionallyTransform,
    ConditionallyTransformState as ConditionallyTransformState,
)
from ._wrapper.finite import (
    accept_update as accept_update,
    ApplyIfFinite as ApplyIfFinite,
    ApplyIfFiniteState as ApplyIfFiniteState,
    raise_error as raise_error,
    skip_update as skip_update,
)
from ._wrapper.flatten import Flatten as Flatten, FlattenState as FlattenState
from ._wrapper.freeze import (
    Freeze as Freeze,
    FreezeState as FreezeState,
    SelectiveTransform as SelectiveTransform,
    SelectiveTransformState as SelectiveTransformState,
)
from ._wrapper.lookahead import Lookahead as Lookahead, LookaheadState as LookaheadState
from ._wrapper.masked import Masked as Masked, MaskedState as MaskedState
from ._wrapper.mechanize import Mechanize as Mechanize, MechanizeState as MechanizeState
from ._wrapper.multi_steps import (
    MultiSteps as MultiSteps,
    MultiStepsState as MultiStepsState,
    ShouldSkipUpdateFunction as ShouldSkipUpdateFunction,
    skip_large_updates as skip_large_updates,
    skip_not_finite as skip_not_finite,
)
from ._wrapper.named_chain import NamedChain as NamedChain, NamedChainState as NamedChainState
from ._wrapper.param_ema import ParamEMA as ParamEMA, ParamEMAState as ParamEMAState
from ._wrapper.partition import Partition as Partition, PartitionState as PartitionState
from ._wrapper.sam import SAM as SAM, SAMState as SAMState
from ._wrapper.schedule_free import (
    ScheduleFree as ScheduleFree,
    ScheduleFreeState as ScheduleFreeState,
)
from ._wrapper.scheduled import Scheduled as Scheduled, ScheduledState as ScheduledState
from ._wrapper.split_complex import (
    SplitRealAndImaginary as SplitRealAndImaginary,
    SplitRealAndImaginaryState as SplitRealAndImaginaryState,
)
from ._wrapper.weight_norm import WeightNorm as WeightNorm, WeightNormState as WeightNormState
from .interop._optax import (
    as_optax as as_optax,
    from_optax as from_optax,
    FromOptax as FromOptax,
    FromOptaxState as FromOptaxState,
)
