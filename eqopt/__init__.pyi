from . import (
    control as control,
    flax_optim as flax_optim,
    interop as interop,
    linesearch as linesearch,
    matrix as matrix,
    options as options,
    plot as plot,
    precision as precision,
    projections as projections,
    quasi_newton as quasi_newton,
    selectors as selectors,
    states as states,
    tree as tree,
    writing as writing,
)

# Training: the loop, the bundle, and functions of models and states.
from ._base.norms import global_norm as global_norm
from ._base.types import RecompilationWarning as RecompilationWarning
from ._objective.from_state import value_and_grad_from_state as value_and_grad_from_state
from ._objective.micro_grad import micro_grad as micro_grad
from ._objective.objective import Evaluation as Evaluation
from ._objective.per_example import per_example_value_and_grad as per_example_value_and_grad
from ._objective.value_and_grad import value_and_grad as value_and_grad
from ._train.fit import Fit as Fit, fit as fit
from ._train.history import History as History
from ._train.hyperparameters import hyperparameters as hyperparameters
from ._train.optimizer import Optimizer as Optimizer
from ._transformation.apply import apply_updates as apply_updates
from ._transformation.averaging import (
    incremental_update as incremental_update,
    periodic_update as periodic_update,
)
from ._transformation.eval_params import (
    eval_params as eval_params,
    LookaheadParams as LookaheadParams,
)
from ._transform.monitor import measurements as measurements
from ._wrapper.multi_steps import (
    skip_large_updates as skip_large_updates,
    skip_not_finite as skip_not_finite,
)
from .interop._optax import as_optax as as_optax, from_optax as from_optax

# To convergence.
from ._minimize.convergence import MinimizeResult as MinimizeResult
from ._minimize.minimize import minimize as minimize, Solution as Solution
from ._optimizer.newton_cg import NewtonCG as NewtonCG
from ._optimizer.nonlinear_cg import NonlinearCG as NonlinearCG
from ._optimizer.polyak import PolyakSGD as PolyakSGD
from ._optimizer.proximal import FISTA as FISTA, ProximalGradient as ProximalGradient
from ._optimizer.quasi_newton import BFGS as BFGS, LBFGS as LBFGS, LBFGSB as LBFGSB

# Optimizers.
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
from ._optimizer.galore import GaLore as GaLore
from ._optimizer.lamb import LAMB as LAMB
from ._optimizer.lars import LARS as LARS
from ._optimizer.lion import Lion as Lion
from ._optimizer.madgrad import MADGRAD as MADGRAD
from ._optimizer.momo import MoMo as MoMo, MoMoAdam as MoMoAdam
from ._optimizer.muon import Muon as Muon
from ._optimizer.noisy_sgd import NoisySGD as NoisySGD
from ._optimizer.novograd import NovoGrad as NovoGrad
from ._optimizer.optimistic import OptimisticGradientDescent as OptimisticGradientDescent
from ._optimizer.optimistic_adam import OptimisticAdamV2 as OptimisticAdamV2
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

# Transformations, the links of a chain.
from ._transform.matrix.galore import ScaleByGaLore as ScaleByGaLore
from ._transform.matrix.muon import ScaleByMuon as ScaleByMuon
from ._transform.acprop import ScaleByACProp as ScaleByACProp
from ._transform.adadelta import ScaleByAdadelta as ScaleByAdadelta
from ._transform.adam import ScaleByAdam as ScaleByAdam
from ._transform.adamax import ScaleByAdamax as ScaleByAdamax
from ._transform.adan import ScaleByAdan as ScaleByAdan
from ._transform.adaptive_clip import AdaptiveGradClip as AdaptiveGradClip
from ._transform.ademamix import (
    ScaleByAdEMAMix as ScaleByAdEMAMix,
    ScaleBySimplifiedAdEMAMix as ScaleBySimplifiedAdEMAMix,
)
from ._transform.adopt import ScaleByADOPT as ScaleByADOPT
from ._transform.amsgrad import ScaleByAMSGrad as ScaleByAMSGrad
from ._transform.apply_every import ApplyEvery as ApplyEvery
from ._transform.average import EMA as EMA, Trace as Trace
from ._transform.basic import (
    Identity as Identity,
    Scale as Scale,
    SetToZero as SetToZero,
    Stateless as Stateless,
    StatelessWithTreeMap as StatelessWithTreeMap,
)
from ._transform.belief import ScaleByBelief as ScaleByBelief
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
from ._transform.cocob import ScaleByCOCOB as ScaleByCOCOB
from ._transform.dadapt import (
    ScaleByDAdaptAdam as ScaleByDAdaptAdam,
    ScaleByProdigy as ScaleByProdigy,
)
from ._transform.decay import AddDecayedWeights as AddDecayedWeights
from ._transform.dog import (
    ScaleByDistanceOverGradients as ScaleByDistanceOverGradients,
    ScaleByDoG as ScaleByDoG,
    ScaleByDoWG as ScaleByDoWG,
)
from ._transform.factored import ScaleByFactoredRMS as ScaleByFactoredRMS
from ._transform.hutchinson import (
    HutchinsonEstimatorDiagHessian as HutchinsonEstimatorDiagHessian,
    ScaleBySophia as ScaleBySophia,
)
from ._transform.learning_rate import (
    ScaleByLearningRate as ScaleByLearningRate,
    ScaleBySchedule as ScaleBySchedule,
)
from ._transform.lion import ScaleByLion as ScaleByLion
from ._transform.madgrad import ScaleByMADGRAD as ScaleByMADGRAD
from ._transform.momo import ScaleByMoMo as ScaleByMoMo, ScaleByMoMoAdam as ScaleByMoMoAdam
from ._transform.nans import ZeroNaNs as ZeroNaNs
from ._transform.noise import AddNoise as AddNoise
from ._transform.nonnegative import KeepParamsNonnegative as KeepParamsNonnegative
from ._transform.novograd import ScaleByNovoGrad as ScaleByNovoGrad
from ._transform.optimistic import ScaleByOptimisticGradient as ScaleByOptimisticGradient
from ._transform.polyak import ScaleByPolyak as ScaleByPolyak
from ._transform.private import DifferentiallyPrivateAggregate as DifferentiallyPrivateAggregate
from ._transform.project import Project as Project
from ._transform.radam import ScaleByRAdam as ScaleByRAdam
from ._transform.reduce_on_plateau import ReduceOnPlateau as ReduceOnPlateau
from ._transform.rms import ScaleByRMS as ScaleByRMS, ScaleByStddev as ScaleByStddev
from ._transform.rprop import ScaleByRprop as ScaleByRprop
from ._transform.rss import ScaleByRSS as ScaleByRSS
from ._transform.sign import ScaleBySign as ScaleBySign
from ._transform.sm3 import ScaleBySM3 as ScaleBySM3
from ._transform.yogi import ScaleByYogi as ScaleByYogi
from ._transform.monitor import Snapshot as Snapshot
from .linesearch._backtracking import ScaleByBacktrackingLinesearch as ScaleByBacktrackingLinesearch
from .linesearch._zoom import ScaleByZoomLinesearch as ScaleByZoomLinesearch
from .quasi_newton._lbfgs import ScaleByLBFGS as ScaleByLBFGS

# Wrappers, around other transformations.
from ._wrapper.chain import Chain as Chain
from ._wrapper.conditional import (
    ConditionallyMask as ConditionallyMask,
    ConditionallyTransform as ConditionallyTransform,
)
from ._wrapper.finite import ApplyIfFinite as ApplyIfFinite
from ._wrapper.flatten import Flatten as Flatten
from ._wrapper.freeze import Freeze as Freeze, SelectiveTransform as SelectiveTransform
from ._wrapper.inject_hyperparams import (
    InjectedHyperparams as InjectedHyperparams,
    InjectHyperparams as InjectHyperparams,
)
from ._wrapper.lookahead import Lookahead as Lookahead
from ._wrapper.masked import Masked as Masked
from ._wrapper.mechanize import Mechanize as Mechanize
from ._transform.monitor import MeasureWithEMA as MeasureWithEMA, Monitor as Monitor
from ._wrapper.multi_steps import MultiSteps as MultiSteps
from ._wrapper.named_chain import NamedChain as NamedChain
from ._wrapper.param_ema import ParamEMA as ParamEMA
from ._wrapper.partition import Partition as Partition
from ._wrapper.sam import SAM as SAM
from ._wrapper.schedule_free import ScheduleFree as ScheduleFree
from ._wrapper.scheduled import Scheduled as Scheduled
from ._wrapper.split_complex import SplitRealAndImaginary as SplitRealAndImaginary
from ._wrapper.weight_norm import WeightNorm as WeightNorm

# Schedules.
from ._schedule.base import Constant as Constant, FunctionSchedule as FunctionSchedule
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

# Selectors, which say which parameters; the others are in `eqopt.selectors`.
from .selectors._selector import (
    ByNdim as ByNdim,
    ByPath as ByPath,
)

__version__: str
