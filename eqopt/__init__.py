"""Optimizers for Equinox."""

from . import flax_optim as flax_optim, plot as plot, projections as projections, tree as tree
from ._base.checks import typed as typed
from ._base.converters import real as real, size as size, steps as steps
from ._base.key_data import KeyData as KeyData
from ._base.norms import global_norm as global_norm
from ._base.progress import (
    AbstractProgress as AbstractProgress,
    RichProgress as RichProgress,
    TextProgress as TextProgress,
    TqdmProgress as TqdmProgress,
)
from ._base.trees import (
    bias_correction as bias_correction,
    increment as increment,
    zeros_like as zeros_like,
)
from ._jit.function import RecompilationWarning as RecompilationWarning
from ._matrix.matrices import MuonDimensionNumbers as MuonDimensionNumbers
from ._matrix.newton_schulz import (
    muon_aol as muon_aol,
    muon_frobenius as muon_frobenius,
    muon_schatten as muon_schatten,
    muon_spectral as muon_spectral,
)
from ._minimize.loop import MinimizeResult as MinimizeResult
from ._minimize.minimize import minimize as minimize, Solution as Solution
from ._objective.cache import Cache as Cache, LinesearchState as LinesearchState
from ._objective.from_state import (
    value_and_grad_from_state as value_and_grad_from_state,
    ValueAndGradFromState as ValueAndGradFromState,
)
from ._objective.micro_grad import (
    AbstractAccumulator as AbstractAccumulator,
    MeanAccumulator as MeanAccumulator,
    micro_grad as micro_grad,
    RunningMeanAccumulator as RunningMeanAccumulator,
    StackAccumulator as StackAccumulator,
    SumAccumulator as SumAccumulator,
)
from ._objective.objective import (
    Context as Context,
    Evaluation as Evaluation,
    FullProblem as FullProblem,
    Objective as Objective,
)
from ._objective.per_example import (
    per_example_global_norm_clip as per_example_global_norm_clip,
    per_example_layer_norm_clip as per_example_layer_norm_clip,
    per_example_value_and_grad as per_example_value_and_grad,
)
from ._objective.value_and_grad import value_and_grad as value_and_grad
from ._optimizer.acprop import ACProp as ACProp
from ._optimizer.adabelief import AdaBelief as AdaBelief
from ._optimizer.adadelta import Adadelta as Adadelta
from ._optimizer.adafactor import Adafactor as Adafactor
from ._optimizer.adagrad import Adagrad as Adagrad
from ._optimizer.adam import Adam as Adam, AdamW as AdamW, NAdam as NAdam, NAdamW as NAdamW
from ._optimizer.adamax import Adamax as Adamax, AdamaxW as AdamaxW
from ._optimizer.adan import Adan as Adan
from ._optimizer.ademamix import AdEMAMix as AdEMAMix, SimplifiedAdEMAMix as SimplifiedAdEMAMix
from ._optimizer.adopt import ADOPT as ADOPT
from ._optimizer.amsgrad import AMSGrad as AMSGrad
from ._optimizer.cocob import COCOB as COCOB
from ._optimizer.dadapt import DAdaptAdamW as DAdaptAdamW, Prodigy as Prodigy
from ._optimizer.dog import DoG as DoG, DoWG as DoWG
from ._optimizer.dpsgd import DPSGD as DPSGD
from ._optimizer.fromage import Fromage as Fromage
from ._optimizer.galore import (
    GaLore as GaLore,
    ScaleByGaLore as ScaleByGaLore,
    ScaleByGaLoreState as ScaleByGaLoreState,
)
from ._optimizer.lamb import LAMB as LAMB
from ._optimizer.lars import LARS as LARS
from ._optimizer.lion import Lion as Lion
from ._optimizer.madgrad import MADGRAD as MADGRAD
from ._optimizer.momo import MoMo as MoMo, MoMoAdam as MoMoAdam
from ._optimizer.muon import Muon as Muon
from ._optimizer.noisy_sgd import NoisySGD as NoisySGD
from ._optimizer.nonlinear_cg import NonlinearCG as NonlinearCG
from ._optimizer.novograd import NovoGrad as NovoGrad
from ._optimizer.optimistic import OptimisticGradientDescent as OptimisticGradientDescent
from ._optimizer.optimistic_adam import OptimisticAdamV2 as OptimisticAdamV2
from ._optimizer.polyak import PolyakSGD as PolyakSGD
from ._optimizer.quasi_newton import BFGS as BFGS, LBFGS as LBFGS
from ._optimizer.radam import RAdam as RAdam
from ._optimizer.rmsprop import RMSProp as RMSProp
from ._optimizer.rprop import Rprop as Rprop
from ._optimizer.schedule_free import (
    ScheduleFreeAdamW as ScheduleFreeAdamW,
    ScheduleFreeSGD as ScheduleFreeSGD,
)
from ._optimizer.sgd import SGD as SGD
from ._optimizer.sign import SignSGD as SignSGD, Signum as Signum
from ._optimizer.sm3 import SM3 as SM3
from ._optimizer.sophia import Sophia as Sophia
from ._optimizer.yogi import Yogi as Yogi
from ._precision.cast import cast_floating as cast_floating
from ._precision.compensated import Compensated as Compensated, CompensatedState as CompensatedState
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
from ._schedule.onecycle import CosineOneCycle as CosineOneCycle, LinearOneCycle as LinearOneCycle
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
from ._train.fit import Fit as Fit, fit as fit, FitCallbackArgs as FitCallbackArgs
from ._train.history import History as History
from ._train.hyperparameters import hyperparameters as hyperparameters
from ._train.optimizer import Optimizer as Optimizer
from ._transformation.apply import apply_updates as apply_updates
from ._transformation.averaging import (
    incremental_update as incremental_update,
    periodic_update as periodic_update,
)
from ._transformation.base import (
    AbstractLeafwise as AbstractLeafwise,
    AbstractOptimizer as AbstractOptimizer,
    AbstractTransformation as AbstractTransformation,
    EmptyState as EmptyState,
)
from ._transformation.eval_params import (
    AbstractEvalState as AbstractEvalState,
    eval_params as eval_params,
    LookaheadParams as LookaheadParams,
)
from ._transformation.leafwise import Rule as Rule
from ._transforms import *
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
    SelectiveTransform as SelectiveTransform,
    SelectiveTransformState as SelectiveTransformState,
)
from ._wrapper.inject_hyperparams import (
    InjectedHyperparams as InjectedHyperparams,
    InjectHyperparams as InjectHyperparams,
    InjectHyperparamsState as InjectHyperparamsState,
)
from ._wrapper.lookahead import Lookahead as Lookahead, LookaheadState as LookaheadState
from ._wrapper.masked import Masked as Masked, MaskedState as MaskedState
from ._wrapper.mechanize import Mechanize as Mechanize, MechanizeState as MechanizeState
from ._wrapper.monitor import (
    AbstractMeasure as AbstractMeasure,
    measurements as measurements,
    MeasureWithEMA as MeasureWithEMA,
    Monitor as Monitor,
    MonitorState as MonitorState,
    Snapshot as Snapshot,
)
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
from .linesearch._backtracking import ScaleByBacktrackingLinesearch as ScaleByBacktrackingLinesearch
from .linesearch._base import (
    AbstractLinesearch as AbstractLinesearch,
    Answer as Answer,
    LinesearchInfo as LinesearchInfo,
    LinesearchResult as LinesearchResult,
    Origin as Origin,
    Trial as Trial,
)
from .linesearch._first_step import (
    double_step as double_step,
    keep_step as keep_step,
    unit_step as unit_step,
)
from .linesearch._hager_zhang import ScaleByHagerZhangLinesearch as ScaleByHagerZhangLinesearch
from .linesearch._wolfe import ScaleByWolfeLinesearch as ScaleByWolfeLinesearch
from .linesearch._zoom import ScaleByZoomLinesearch as ScaleByZoomLinesearch
from .quasi_newton._base import (
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
from .quasi_newton._bfgs import ScaleByBFGS as ScaleByBFGS, ScaleByBFGSState as ScaleByBFGSState
from .quasi_newton._lbfgs import (
    ScaleByLBFGS as ScaleByLBFGS,
    ScaleByLBFGSState as ScaleByLBFGSState,
)
from .selectors._selector import (
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
