"""The names that the code of a test file uses. Comments, strings and imports do not count."""

import ast
from pathlib import Path

TESTS = Path(__file__).parents[1]


def used_names(file: str) -> set[str]:
    """Those of a test file, such as `wrapper/test_sam`: `optax.adam`, and `adam` too."""
    tree = ast.parse((TESTS / f"{file}.py").read_text(encoding="utf-8"))
    found = [x for x in ast.walk(tree) if isinstance(x, ast.Attribute | ast.Name)]
    dotted = {ast.unparse(x) for x in found}
    return dotted | {x.attr for x in found if isinstance(x, ast.Attribute)}
