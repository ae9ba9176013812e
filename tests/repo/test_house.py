"""The rules of the house hold in the whole repository, and each of them finds its fault."""

import ast
import importlib
import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import equinox as eqx
import pytest

import eqopt
from tests.support import house_rules
from tools import house as layout

ROOT = Path(__file__).parents[2]
EQOPT = ROOT / "eqopt"
COMPAT = EQOPT / "_base" / "compat.py"


def faults(rule: Callable[[Path], list[str]], paths: list[Path]) -> list[str]:
    assert paths
    return [fault for path in paths for fault in rule(path)]


# The repository


def test_the_package_keeps_its_measures():
    found = layout.figures(EQOPT)
    assert found.arrows_up == found.cycles == 0
    assert found.rooms <= 25
    assert found.floors <= 11
    # Ten of them are those of the namespaces `control` and `matrix`, which only collect names.
    assert found.arrows <= 130
    assert found.private_top_level_files <= 3
    assert found.public_names == len(dir(eqopt)) <= 200


def test_the_page_shows_the_layout():
    page = layout.PAGE.read_text(encoding="utf-8")
    assert layout.page_with(page, layout.layout(EQOPT)) == page


def test_words_that_do_not_occur():
    assert faults(house_rules.word_faults, house_rules.sources(ROOT, "eqopt")) == []


def test_large_modules_are_built_by_keyword():
    paths = house_rules.sources(ROOT, "eqopt")
    assert paths
    assert house_rules.positional_faults(paths) == []


def test_what_is_private_in_jax_stands_in_one_file():
    files = [x for x in house_rules.sources(ROOT, "eqopt") if x != COMPAT]
    assert faults(house_rules.private_faults, files) == []
    assert len(house_rules.private_faults(COMPAT)) >= 5


def test_no_comment_silences_a_tool():
    assert faults(house_rules.comment_faults, house_rules.all_sources(ROOT)) == []


def test_no_file_is_long():
    assert faults(house_rules.length_faults, house_rules.all_sources(ROOT)) == []


def test_no_file_names_a_machine():
    assert faults(house_rules.machine_path_faults, house_rules.repository_files(ROOT)) == []


def test_classes_are_abstract_or_final():
    assert house_rules.hierarchy_faults(house_rules.classes(eqopt)) == []


def test_states_are_public():
    states = {x.__name__ for x in house_rules.classes(eqopt) if x.__name__.endswith("State")}
    assert states
    public = {x for x in states if not x.startswith("_")} - {"ValueAndGradFromState"}
    assert public <= set(dir(eqopt.states))


def concrete() -> list[str]:
    return [
        name
        for name, x in house_rules.public(eqopt).items()
        if inspect.isfunction(x) or (issubclass(x, eqx.Module) and not inspect.isabstract(x))
    ]


@pytest.mark.parametrize("name", concrete())
def test_docstring_lists_the_arguments(name: str):
    assert house_rules.argument_faults(name, house_rules.public(eqopt)[name]) == []


def test_public_names_are_documented():
    pages = sorted((ROOT / "docs" / "api").glob("*.md"))
    public, mentioned = house_rules.public(eqopt), house_rules.mentioned(pages, "eqopt")
    # What has two paths is documented under one of them.
    documented = [x for name, x in public.items() if name in mentioned]
    assert [name for name, x in public.items() if x not in documented] == []


def run(program: str) -> str:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def test_import_and_construction_start_no_backend():
    program = """
import importlib, pkgutil
from jax._src import xla_bridge
import eqopt
for x in pkgutil.walk_packages(eqopt.__path__, "eqopt."):
    importlib.import_module(x.name)
schedule = eqopt.WarmupCosineDecay(peak_value=1e-3, warmup_steps=10, decay_steps=100)
eqopt.Chain(eqopt.ClipByGlobalNorm(1.0), eqopt.AdamW(schedule))
print(len(xla_bridge._backends))
import jax.numpy
jax.numpy.zeros(())
print(len(xla_bridge._backends))
"""
    before, after = map(int, run(program).split())
    assert before == 0
    assert after > 0


def test_import_warns_of_nothing():
    """Such as a part of JAX or Equinox that is to go. (Within tests every warning is an error.)"""
    program = """
import importlib, pkgutil, warnings
import beartype, equinox, jax, jaxtyping, numpy, optimistix, wadler_lindig
warnings.simplefilter("error")
import eqopt
for x in pkgutil.walk_packages(eqopt.__path__, "eqopt."):
    importlib.import_module(x.name)
print("done")
"""
    assert run(program) == "done\n"


def test_import_brings_nothing_along():
    """Except for the one file that cannot do without another library, loaded on first use."""
    program = """
import importlib, pkgutil, sys
import beartype, equinox, jax, jaxtyping, numpy, wadler_lindig
known = {name.split(".")[0] for name in sys.modules} | set(sys.stdlib_module_names)
import eqopt
for x in pkgutil.walk_packages(eqopt.__path__, "eqopt."):
    if x.name != "eqopt.interop._optimistix":
        importlib.import_module(x.name)
print(*sorted({name.split(".")[0] for name in sys.modules} - known))
"""
    assert run(program).split() == ["eqopt"]


# The rules


@pytest.mark.parametrize(
    "line",
    [
        "import jax._src.core",
        "from jax import experimental",
        "from jax.core import Tracer",
        "from jax.experimental.shard_alike import shard_alike",
        "from jax.interpreters import ad",
        "from jax.lax import pvary",
        "import equinox.internal as eqxi",
        "from equinox._module import Module",
        "x = jax.core.Tracer",
        "x = lax.pcast(x)",
        "x = eqx.internal.while_loop",
        "if jax.config.jax_enable_x64: pass",
    ],
)
def test_private_parts_are_found(write: Callable[..., Path], line: str):
    assert len(house_rules.private_faults(write(f"import jax\n{line}"))) == 1
    assert (
        house_rules.private_faults(
            write("import jax\nfrom jax import lax\nlax.add(jax.numpy.ones)")
        )
        == []
    )


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(text: str, name: str = "pack/a.py") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


PACKAGE = {
    "__init__.py": "from .d import x",
    "a.py": "import json\nfrom collections import abc",
    "b.py": "from .a import x\nfrom . import a",
    "c.py": "from pack import a",
    "d.py": "from .fam.one import x\nfrom . import a, b",
    "fam/__init__.py": "",
    "fam/base.py": "from ..a import x",
    "fam/one.py": "from .base import x\nfrom .. import a",
    "fam/two.py": "from pack.fam.base import x",
}


def test_the_measures_of_a_package(write: Callable[..., Path]):
    files = [write(text, f"pack/{name}") for name, text in PACKAGE.items()]
    found = layout.figures(files[0].parent)
    assert (found.rooms, found.floors, found.arrows) == (6, 4, 7)
    assert (found.arrows_up, found.cycles) == (0, 0)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("a.py", "from .b import x"),
        ("a.py", "from . import b"),
        ("a.py", "import pack.b"),
        ("a.py", "from pack import b"),
        ("a.py", "from pack.fam.one import x"),
        ("a.py", "from . import anything"),
        ("a.py", "def f():\n    from .b import x"),
        ("fam/base.py", "from .two import x"),
        ("fam/base.py", "from . import one"),
    ],
)
def test_an_import_that_closes_a_cycle_is_found(write: Callable[..., Path], path: str, line: str):
    files = [write(text, f"pack/{name}") for name, text in PACKAGE.items()]
    write(PACKAGE[path] + "\n" + line, f"pack/{path}")
    assert layout.figures(files[0].parent).cycles > 0


def test_lines_of_code_are_counted(write: Callable[..., Path]):
    path = write('''"""Doc."""

# A comment.
from typing import Any


def f(x: Any) -> Any:  # A comment.
    """Doc,

    in lines.
    """
    return Made(1, 2,
                3, 4, *x)
''')
    assert layout.num_code_lines(path) == 4
    tree = ast.parse(path.read_text())
    assert layout.num_any(tree) == 3
    assert layout.num_positional_builds(tree) == 1
    assert layout.num_positional_builds(tree, at_least=6) == 0


@pytest.mark.parametrize(
    "line",
    [
        "from __future__ import annotations",
        "class A(B):\n    def f(self):\n        super().f()",
        "hasattr(x, 'y')",
        "getattr(x, 'y', None)",
        "class A(metaclass=B): pass",
    ],
)
def test_words_are_found(write: Callable[..., Path], line: str):
    assert len(house_rules.word_faults(write(line))) == 1
    assert house_rules.word_faults(write(f"'''{line}'''\ngetattr(x, 'y')")) == []


@pytest.mark.parametrize(
    "call", ["A(1, 2, 3, 4, 5)", "a.A(1, *x, 3, 4, 5)", "A(1, 2, 3, 4, 5, f=6)"]
)
def test_positional_builds_are_found(write: Callable[..., Path], call: str):
    where = write("class A:\n    x: int")
    harmless = "A(1, 2, 3, 4, e=5)\nB(1, 2, 3, 4, 5)\na.f(1, 2, 3, 4, 5)"
    fine = write(harmless, "pack/b.py")
    assert house_rules.positional_faults([where, fine]) == []
    assert len(house_rules.positional_faults([where, fine, write(call, "pack/c.py")])) == 1


@pytest.mark.parametrize(
    ("tool", "order"), [("type", "ignore"), ("pyright", "basic"), ("noqa", "E501"), ("fmt", "skip")]
)
def test_silencing_comments_are_found(write: Callable[..., Path], tool: str, order: str):
    word = f"{tool}: {order}"
    assert len(house_rules.comment_faults(write(f"x = 1  # {word}"))) == 1
    assert house_rules.comment_faults(write(f"x = '# {word}'  # the word `{word}`")) == []


def test_length_is_found(write: Callable[..., Path]):
    assert house_rules.length_faults(write("\n" * 3), limit=3) == []
    assert len(house_rules.length_faults(write("\n" * 4), limit=3)) == 1


@pytest.mark.parametrize("folder", ["home", "root", "tmp", "Users", "work"])
def test_machine_paths_are_found(write: Callable[..., Path], folder: str):
    assert len(house_rules.machine_path_faults(write(f"x = '/{folder}/me'", "a.txt"))) == 1
    harmless = f"https://example.org/{folder}/x\n./{folder}/x\n~/{folder}/x\n{folder}/x"
    assert house_rules.machine_path_faults(write(harmless, "a.txt")) == []


HIERARCHY = '''
import abc
import equinox as eqx


class AbstractA(eqx.Module):
    @abc.abstractmethod
    def f(self): ...
    def g(self): ...
    def __check_init__(self): ...


class B(AbstractA):
    """B.

    **Arguments:**

    - `x`, `y`: two
        numbers - `z`: not one of them.
    - `w`: another.

    **Raises:**

    - `v`: not an argument.
    """
    x: int
    y: int = eqx.field(default=1)
    w: int = 2
    hidden: int = eqx.field(init=False, default=0)

    def f(self): ...
    def __check_init__(self): ...
'''


@pytest.fixture
def load(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], ModuleType]]:
    names: list[str] = []

    def load(more: str) -> ModuleType:
        name = f"eqopt_house_{len(names)}"
        path = write(HIERARCHY + more, f"{name}/_a.py")
        write("from ._a import *", f"{name}/__init__.py")
        monkeypatch.syspath_prepend(path.parents[1])
        names.append(name)
        return importlib.import_module(name)

    yield load
    for name in names:
        del sys.modules[name], sys.modules[f"{name}._a"]


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        ("class C(B): ...", "`B` is concrete, and has subclasses ['C']"),
        ("class C(AbstractA): ...", "`C` lacks ['f']"),
        ("class AbstractC(eqx.Module): ...", "`AbstractC` has no abstract method"),
        (
            "class C(AbstractA):\n    def f(self): ...\n    def g(self): ...",
            "`C.g` overrides `AbstractA.g`",
        ),
    ],
)
def test_hierarchy_faults_are_found(load: Callable[[str], ModuleType], more: str, fault: str):
    assert house_rules.hierarchy_faults(house_rules.classes(load(""))) == []
    assert house_rules.hierarchy_faults(house_rules.classes(load(more))) == [fault]


@pytest.mark.parametrize("more", ["    v: int = 0", "    def __init__(self, y, x): ..."])
def test_docstring_faults_are_found(load: Callable[[str], ModuleType], more: str):
    right = house_rules.public(load(""))["eqopt_house_0.B"]
    assert house_rules.listed_arguments(inspect.cleandoc(right.__doc__)) == ["x", "y", "w"]
    assert house_rules.argument_faults("B", right) == []
    wrong = house_rules.public(load(more))["eqopt_house_1.B"]
    assert len(house_rules.argument_faults("B", wrong)) == 1


def test_names_on_pages_are_whole_names(write: Callable[..., Path]):
    page = write(
        "::: eqopt.AdamW\n    options: {}\n\n`eqopt.plot.history`, not eqopting.Lion", "a.md"
    )
    assert house_rules.mentioned([page], "eqopt") == {"eqopt.AdamW", "eqopt.plot.history"}
