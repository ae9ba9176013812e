"""Nonlinear conjugate gradients with a line search."""

from typing import Any

import equinox as eqx
import numpy as np

from .._cache import LinesearchState
from .._hyperparameter import real
from .._linesearch.base import AbstractLinesearch, LinesearchInfo
from .._linesearch.wolfe import ScaleByWolfeLinesearch
from .._transform.conjugate_gradient import (
    AbstractConjugacy,
    HagerZhang,
    ScaleByNonlinearCG,
    ScaleByNonlinearCGState,
)
from .._transform.learning_rate import ScaleByLearningRate, ScaleByLearningRateState
from .._transformation import AbstractOptimizer, AbstractTransformation
from .._types import Scalar
from .._wrapper.chain import Chain, ChainState

_State = ChainState[
    tuple[ScaleByNonlinearCGState, ScaleByLearningRateState, LinesearchState[LinesearchInfo]]
]


class NonlinearCG(AbstractOptimizer[_State]):
    pass
