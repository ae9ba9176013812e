# Optimizers.
from .._optimizer.muon_kin import (
    AdaMuon as AdaMuon,
    NAMO as NAMO,
    NorMuon as NorMuon,
    PolarGrad as PolarGrad,
)
from .._optimizer.muon_clip import MuonClip as MuonClip
from .._optimizer.muon_hyperball import MuonHyperball as MuonHyperball
from .._optimizer.scion import Scion as Scion

# Links.
from .._transform.matrix.dual import ScaleByDualNorm as ScaleByDualNorm
from .._transform.matrix.muon import Orthogonalize as Orthogonalize, ScaleByShape as ScaleByShape
from .._transform.matrix.second_moment import (
    ScaleByNAMO as ScaleByNAMO,
    ScaleByNeuronRMS as ScaleByNeuronRMS,
)

# Coefficients of the iteration.
from .._transform.matrix.coefficients import (
    polar_express as polar_express,
    Quintic as Quintic,
    Quintics as Quintics,
)

# Which parameters are matrices, and blocks of them.
from .._transform.matrix.table import (
    matrices_of as matrices_of,
    MatrixRow as MatrixRow,
    MatrixTable as MatrixTable,
)
from .._wrapper.blocks import Blocks as Blocks, Cut as Cut
