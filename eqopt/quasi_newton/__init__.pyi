from ._base import (
    AbstractInitialMatrix as AbstractInitialMatrix,
    AbstractSecant as AbstractSecant,
    DiagonalMatrix as DiagonalMatrix,
    IdentityMatrix as IdentityMatrix,
    ModifiedSecant as ModifiedSecant,
    Pair as Pair,
    PlainSecant as PlainSecant,
    ScalarMatrix as ScalarMatrix,
)
from ._bfgs import ScaleByBFGS as ScaleByBFGS
from ._broyden import (
    AbstractBroydenUpdate as AbstractBroydenUpdate,
    BFGSUpdate as BFGSUpdate,
    SelfScaledBFGS as SelfScaledBFGS,
    SelfScaledBroyden as SelfScaledBroyden,
)
from ._conjugate_gradient import (
    AbstractConjugacy as AbstractConjugacy,
    ConjugacyProducts as ConjugacyProducts,
    DaiYuan as DaiYuan,
    FletcherReeves as FletcherReeves,
    HagerZhang as HagerZhang,
    PolakRibierePlus as PolakRibierePlus,
    ScaleByNonlinearCG as ScaleByNonlinearCG,
)
from ._lbfgs import ScaleByLBFGS as ScaleByLBFGS
from ._lbfgsb import ScaleByLBFGSB as ScaleByLBFGSB
from ._newton_cg import ScaleByNewtonCG as ScaleByNewtonCG
