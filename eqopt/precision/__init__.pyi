from ._cast import cast_floating as cast_floating
from ._compensated import Compensated as Compensated
from ._dynamic_scale import (
    DynamicScale as DynamicScale,
    DynamicScaleResult as DynamicScaleResult,
    ScaledStep as ScaledStep,
)
from ._master_weights import MasterWeights as MasterWeights
from ._stochastic import (
    apply_updates_stochastically as apply_updates_stochastically,
    StochasticRounding as StochasticRounding,
)
