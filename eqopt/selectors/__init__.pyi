from ._selector import (
    AbstractSelector as AbstractSelector,
    And as And,
    ByNdim as ByNdim,
    ByPath as ByPath,
    ByType as ByType,
    FunctionSelector as FunctionSelector,
    Not as Not,
    Or as Or,
    TreeSelector as TreeSelector,
    Where as Where,
)
