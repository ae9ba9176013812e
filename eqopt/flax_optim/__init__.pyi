from ._adafactor import Adafactor as Adafactor
from ._adam import AdaBelief as AdaBelief, Adam as Adam, LAMB as LAMB
from ._adaptive import Adadelta as Adadelta, Adagrad as Adagrad, RMSProp as RMSProp
from ._base import AbstractOptimizerDef as AbstractOptimizerDef
from ._momentum import GradientDescent as GradientDescent, LARS as LARS, Momentum as Momentum
from ._multi_optimizer import MultiOptimizer as MultiOptimizer
from ._weight_norm import WeightNorm as WeightNorm
