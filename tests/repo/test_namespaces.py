"""The public names: where each stands, that it loads on first use, and what `dir` shows."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import eqopt

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "eqopt"
PUBLIC = {name: getattr(eqopt, name) for name in dir(eqopt)}
NAMESPACES: list[ModuleType] = [eqopt, *(x for x in PUBLIC.values() if isinstance(x, ModuleType))]

# What a training script types stands in the root too.
BOTH = {
    "eqopt.interop": {"as_optax", "from_optax"},
    "eqopt.linesearch": {"ScaleByBacktrackingLinesearch", "ScaleByZoomLinesearch"},
    "eqopt.quasi_newton": {"ScaleByLBFGS"},
    "eqopt.selectors": {"ByNdim", "ByPath"},
}

each = pytest.mark.parametrize("namespace", NAMESPACES, ids=lambda x: x.__name__)


def test_all_namespaces_are_known():
    found = [x.stem for x in PACKAGE.glob("*.py")] + [x.parent.name for x in PACKAGE.glob("*/*.py")]
    public = {f"eqopt.{x}" for x in found if not x.startswith("_")}
    assert {x.__name__ for x in NAMESPACES} == {"eqopt", *public}


@each
def test_dir_shows_the_public_names(namespace: ModuleType):
    assert dir(namespace) == sorted(namespace.__all__)
    assert not any(x.startswith("_") for x in namespace.__all__)
    for name in namespace.__all__:
        thing = getattr(namespace, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert thing.__name__ == name
        assert getattr(namespace, name) is thing
        assert thing is vars(namespace)[name]


@each
def test_the_docstring_says_where_to_begin(namespace: ModuleType):
    assert "\n\nBegin with " in (namespace.__doc__ or "")


def test_a_name_has_one_path():
    places: dict[str, list[str]] = {}
    for namespace in NAMESPACES:
        if namespace is not eqopt.flax_optim:  # whose names are flax's
            for name in namespace.__all__:
                places.setdefault(name, []).append(namespace.__name__)
    found: dict[str, set[str]] = {}
    for name, (first, *more) in places.items():
        for place in more:
            assert first == "eqopt"
            found.setdefault(place, set()).add(name)
    assert found == BOTH


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("Adams", "attribute `Adams`"),
        ("_Adam", "attribute `_Adam`"),
        ("TraceState", "; it is `eqopt.states.TraceState`"),
        ("Pair", "; it is `eqopt.quasi_newton.Pair`"),
    ],
)
def test_a_name_that_stands_elsewhere_is_found(name: str, end: str):
    with pytest.raises(AttributeError, match=rf"^module `eqopt` has no .*{re.escape(end)}$"):
        getattr(eqopt, name)
    with pytest.raises(ImportError, match=name):
        exec(f"from eqopt import {name}")


@pytest.mark.parametrize("stub", sorted(PACKAGE.rglob("*.pyi")), ids=lambda x: x.parent.name)
def test_a_stub_holds_imports_alone(stub: Path):
    for node in ast.parse(stub.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            assert node.level
            assert all(x.asname == x.name for x in node.names)
        else:
            assert ast.unparse(node) == "__version__: str"


def loaded(program: str) -> set[str]:
    """The files of the package that a fresh process has loaded after a program."""
    program += "\nimport sys\nprint(*[x for x in sys.modules if x.startswith('eqopt.')])"
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return set(found.split())


def test_import_loads_no_class():
    lazy = {"eqopt._base", "eqopt._base.lazy"}
    assert loaded("import eqopt") == lazy
    namespaces = {x.__name__ for x in NAMESPACES[1:]} - {"eqopt.plot", "eqopt.tree"}
    assert loaded(f"import {', '.join(sorted(namespaces))}") == lazy | namespaces


def test_a_name_loads_what_it_needs():
    found = loaded("import eqopt\neqopt.SGD(0.1)")
    assert "eqopt._optimizer.sgd" in found
    others = {x for x in found if x.startswith("eqopt._optimizer.")} - {"eqopt._optimizer.sgd"}
    assert others == set()
    assert not found & {"eqopt._minimize.minimize", "eqopt._train.fit", "eqopt.linesearch._base"}
