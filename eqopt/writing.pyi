# Abstract classes. Those of selectors, searches, projections and quasi-Newton methods are there.
from ._base.progress import AbstractProgress as AbstractProgress
from ._objective.micro_grad import AbstractAccumulator as AbstractAccumulator
from ._schedule.base import AbstractSchedule as AbstractSchedule
from ._transform.dog import AbstractInitialStep as AbstractInitialStep
from ._transformation.base import (
    AbstractLeafwise as AbstractLeafwise,
    AbstractOptimizer as AbstractOptimizer,
    AbstractTransformation as AbstractTransformation,
)
from ._transform.monitor import AbstractMeasure as AbstractMeasure

# Objects that a transformation is given, or gives.
from ._objective.bounds import Bounds as Bounds
from ._objective.from_state import ValueAndGradFromState as ValueAndGradFromState
from ._objective.objective import (
    Context as Context,
    FullProblem as FullProblem,
    Objective as Objective,
    require_params as require_params,
)
from ._train.fit import FitCallbackArgs as FitCallbackArgs
from ._transformation.leafwise import Rule as Rule

# Which transformations make no sense within which.
from ._transformation.nesting import (
    AbstractConstrained as AbstractConstrained,
    check_nesting as check_nesting,
    Requirement as Requirement,
)

# Converters of fields.
from ._base.converters import (
    decay_factor as decay_factor,
    non_negative as non_negative,
    positive as positive,
    real as real,
    size as size,
    steps as steps,
)
from ._schedule.base import scheduled_real as scheduled_real

# Kernels and states.
from ._base.checks import typed as typed
from ._base.trees import (
    bias_correction as bias_correction,
    increment as increment,
    zeros_like as zeros_like,
)
