from ._balls import L2Ball as L2Ball, L2Sphere as L2Sphere
from ._base import AbstractPenalty as AbstractPenalty, AbstractProjection as AbstractProjection
from ._boxes import (
    Box as Box,
    Hypercube as Hypercube,
    LInfBall as LInfBall,
    NonNegative as NonNegative,
)
from ._penalties import (
    ElasticNet as ElasticNet,
    GroupL2 as GroupL2,
    L1 as L1,
    NuclearNorm as NuclearNorm,
)
from ._planes import Halfspace as Halfspace, Hyperplane as Hyperplane, Line as Line
from ._simplex import L1Ball as L1Ball, L1Sphere as L1Sphere, Simplex as Simplex
