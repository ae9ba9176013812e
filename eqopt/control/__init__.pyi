# Norms of parameters and updates.
from .._transform.contract import ContractByLearningRate as ContractByLearningRate
from .._transform.control.hyperball import Hyperball as Hyperball, KeepRadius as KeepRadius
from .._transform.control.relative import (
    ClipUpdateRMS as ClipUpdateRMS,
    RadialBrake as RadialBrake,
    RelativeUpdate as RelativeUpdate,
    UpdateFloor as UpdateFloor,
)
from .._wrapper.graft import Graft as Graft

# Signs, decay, factors by path.
from .._transform.control.cautious import (
    AddCautiousDecayedWeights as AddCautiousDecayedWeights,
    CautiousDecay as CautiousDecay,
    CautiousUpdates as CautiousUpdates,
    over_count as over_count,
    over_mean as over_mean,
    over_next_count as over_next_count,
)
from .._transform.control.decay import DecayByRate as DecayByRate, DecayWeights as DecayWeights
from .._transform.control.multiply import Multiply as Multiply

# Guards.
from .._transform.control.qk_clip import QKClip as QKClip
from .._wrapper.spikes import SkipSpikes as SkipSpikes

# Optimizers, and links of theirs.
from .._optimizer.adam_c import AdamC as AdamC
from .._optimizer.adam_h import AdamH as AdamH
from .._optimizer.came import CAME as CAME
from .._transform.came import ScaleByCAME as ScaleByCAME
from .._optimizer.laprop import LaProp as LaProp
from .._transform.laprop import ScaleByLaProp as ScaleByLaProp
from .._optimizer.mars import MARS as MARS
from .._transform.mars import ReduceVariance as ReduceVariance
from .._transform.stable_adam import ScaleByStableAdam as ScaleByStableAdam
from .._optimizer.stable_adam import StableAdamW as StableAdamW
