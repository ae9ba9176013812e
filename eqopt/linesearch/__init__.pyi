from ._backtracking import ScaleByBacktrackingLinesearch as ScaleByBacktrackingLinesearch
from ._base import ACCEPT as ACCEPT, FAIL as FAIL, RETURN as RETURN, TRY as TRY
from ._base import (
    AbstractLinesearch as AbstractLinesearch,
    Answer as Answer,
    LinesearchInfo as LinesearchInfo,
    LinesearchResult as LinesearchResult,
    Origin as Origin,
    Trial as Trial,
)
from ._first_step import double_step as double_step, keep_step as keep_step, unit_step as unit_step
from ._hager_zhang import ScaleByHagerZhangLinesearch as ScaleByHagerZhangLinesearch
from ._proximal import ScaleByProximalLinesearch as ScaleByProximalLinesearch
from ._wolfe import ScaleByWolfeLinesearch as ScaleByWolfeLinesearch
from ._zoom import ScaleByZoomLinesearch as ScaleByZoomLinesearch
