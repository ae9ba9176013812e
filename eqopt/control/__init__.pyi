# Norms of parameters and updates.
from ._graft import Graft as Graft
from ._hyperball import Hyperball as Hyperball, KeepRadius as KeepRadius
from ._relative import (
    ClipUpdateRMS as ClipUpdateRMS,
    RadialBrake as RadialBrake,
    RelativeUpdate as RelativeUpdate,
    UpdateFloor as UpdateFloor,
)

# Signs, decay, factors by path.
from ._cautious import (
    AddCautiousDecayedWeights as AddCautiousDecayedWeights,
    CautiousUpdates as CautiousUpdates,
    over_count as over_count,
    over_mean as over_mean,
    over_next_count as over_next_count,
)
from ._decay import DecayByRate as DecayByRate, DecayWeights as DecayWeights
from ._multiply import Multiply as Multiply

# Guards.
from ._qk_clip import QKClip as QKClip
from ._spikes import SkipSpikes as SkipSpikes

# Optimizers, and links of theirs.
from ._adam_c import AdamC as AdamC
from ._adam_h import AdamH as AdamH
from ._came import CAME as CAME, ScaleByCAME as ScaleByCAME
from ._laprop import LaProp as LaProp, ScaleByLaProp as ScaleByLaProp
from ._mars import MARS as MARS, ReduceVariance as ReduceVariance
from ._stable_adam import ScaleByStableAdam as ScaleByStableAdam, StableAdamW as StableAdamW
