# Of optimizers and transformations.
from ._transform.matrix.dimensions import MuonDimensionNumbers as MuonDimensionNumbers
from ._transform.matrix.newton_schulz import (
    muon_aol as muon_aol,
    muon_frobenius as muon_frobenius,
    muon_schatten as muon_schatten,
    muon_spectral as muon_spectral,
)
from ._transform.adopt import clip_value_pow as clip_value_pow
from ._transform.dog import (
    InitialDistance as InitialDistance,
    InitialDistanceHeuristic as InitialDistanceHeuristic,
    InitialLearningRate as InitialLearningRate,
)
from ._transform.factored import decay_rate_pow as decay_rate_pow
from ._transform.lion import (
    lion_hard as lion_hard,
    lion_refined as lion_refined,
    lion_smooth as lion_smooth,
)

# Of wrappers.
from ._wrapper.finite import (
    accept_update as accept_update,
    raise_error as raise_error,
    skip_update as skip_update,
)
from ._wrapper.multi_steps import ShouldSkipUpdateFunction as ShouldSkipUpdateFunction

# Of schedules.
from ._schedule.base import (
    cosine_interpolation as cosine_interpolation,
    linear_interpolation as linear_interpolation,
)

# Of gradients by parts: micro-batches and single examples.
from ._objective.micro_grad import (
    MeanAccumulator as MeanAccumulator,
    RunningMeanAccumulator as RunningMeanAccumulator,
    StackAccumulator as StackAccumulator,
    SumAccumulator as SumAccumulator,
)
from ._objective.per_example import (
    per_example_global_norm_clip as per_example_global_norm_clip,
    per_example_layer_norm_clip as per_example_layer_norm_clip,
)

# Of loops.
from ._base.progress import (
    RichProgress as RichProgress,
    TextProgress as TextProgress,
    TqdmProgress as TqdmProgress,
)
