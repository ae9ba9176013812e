"""Names that load on first use (PEP 562).

A namespace lists its names in a stub, `x.pyi` beside `x.py`: relative imports and nothing else.
Type checkers, editors and the docs read the stub. At run time `attach` reads it too, and imports
the file that defines a name when the name is first used. So `import eqopt` makes no class, and a
program loads only the files that it uses.
"""

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


# Not `lazy_loader.attach_stub`: its stubs may import only from below the namespace, and
# `eqopt.states` has names from folders beside it.
def attach(
    module: str, file: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Makes the functions `__getattr__` and `__dir__`, and the list `__all__`, of a namespace.

    `module` and `file` are the namespace's own `__name__` and `__file__`.
    """
    stub = Path(file).with_suffix(".pyi")
    package = module if stub.stem == "__init__" else module.rpartition(".")[0]
    submodules, origins = _names(stub)

    def load(name: str) -> Any:
        if name in submodules:
            value = importlib.import_module(f".{name}", package)
        elif name in origins:
            value = getattr(importlib.import_module(origins[name], package), name)
        else:
            raise AttributeError(f"module `{module}` has no attribute `{name}`{hint(name)}")
        vars(sys.modules[module])[name] = value
        return value

    def hint(name: str) -> str:
        for x in submodules:
            below = stub.parent / x
            for path in (below.with_suffix(".pyi"), below / "__init__.pyi"):
                if not name.startswith("_") and path.is_file() and name in _names(path)[1]:
                    return f"; it is `{module}.{x}.{name}`"
        return ""

    def names() -> list[str]:
        return sorted({*submodules, *origins})

    return load, names, names()


def _names(stub: Path) -> tuple[set[str], dict[str, str]]:
    """The modules that a stub lists, and for each other name the module that defines it."""
    submodules: set[str] = set()
    origins: dict[str, str] = {}
    for node in ast.parse(stub.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            names = [x.name for x in node.names]
            if node.module is None:
                submodules.update(names)
            else:
                origins.update(dict.fromkeys(names, "." * node.level + node.module))
    return submodules, origins
