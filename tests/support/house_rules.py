"""The rules of the house: functions from a source tree to a list of faults.

Each takes the tree as an argument, so that `test_house.py` can show that it finds a fault.
"""

import ast
import importlib
import inspect
import io
import pkgutil
import re
import subprocess
import tokenize
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import equinox as eqx

MAX_LINES = 400

_SUPPRESSION = re.compile(
    r"#\s*(type:\s*ignore|pyright:|mypy:|noqa|ruff:|pylint:|isort:|fmt:|pragma:)", re.IGNORECASE
)
_MACHINE_PATH = re.compile(r"(?<![\w.:/~-])/(?:work|root|home|Users|tmp|opt|mnt|private)/\w")
_ITEM = re.compile(r"- ((?:`\*{0,2}\w+`(?:, )?)+):")


# Sources


def sources(root: Path, *folders: str) -> list[Path]:
    """The Python files in some folders, or those folders that are files themselves."""
    found = [root / x if x.endswith(".py") else sorted((root / x).rglob("*.py")) for x in folders]
    return [y for x in found for y in ([x] if isinstance(x, Path) else x) if y.is_file()]


def all_sources(root: Path) -> list[Path]:
    return sources(root, "eqopt", "tests", "tools", "examples", "benchmarks", "docs", "noxfile.py")


def repository_files(root: Path) -> list[Path]:
    """Every file that is, or would be, in the repository."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    paths = [root / x for x in listed.split("\0") if x]
    return [x for x in paths if x.is_file()]


# What is private in JAX and Equinox

# Private, experimental, for libraries that extend JAX, or with another name in some versions.
_PRIVATE = re.compile(
    r"jax\.(_\w+|core|experimental|extend|interpreters|lib|util)\b|equinox\.(_\w+|internal)\b"
    r"|jax\.lax\.(pcast|pvary)\b|jax\.config\.jax_\w+"
)
_SHORT = {"eqx": "equinox", "lax": "jax.lax"}


def private_faults(path: Path) -> list[str]:
    """Imports and uses of what JAX and Equinox may take away without notice."""
    faults = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import):
            names = [x.name for x in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{x.name}" for x in node.names]
        elif isinstance(node, ast.Attribute):
            first, *rest = ast.unparse(node).split(".")
            names = [".".join([_SHORT.get(first, first), *rest])]
        faults += [
            f"{path.name}:{line} has `{x}`"
            for x in names
            if _PRIVATE.fullmatch(x)
            or (isinstance(node, ast.Import | ast.ImportFrom) and _PRIVATE.match(x))
        ]
    return faults


# Words that do not occur


def word_faults(path: Path) -> list[str]:
    """Constructs that the style does without, found in the syntax and not in the text."""
    faults = []
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        word = ""
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            word = "from __future__ import ..."
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            name, given = node.func.id, len(node.args)
            # A foreign object may lack an attribute; a comment beside it says why.
            if name == "hasattr" or (name == "getattr" and given == 3):
                beside = lines[max(0, node.lineno - 3) : node.lineno]
                word = "" if any("#" in x for x in beside) else f"{name}(...) without a comment"
            elif name == "super":
                word = "super(...)"
        elif isinstance(node, ast.ClassDef) and any(x.arg == "metaclass" for x in node.keywords):
            word = "metaclass=..."
        if word:
            faults.append(f"{path.name}:{getattr(node, 'lineno', 0)} has `{word}`")
    return faults


def positional_faults(paths: list[Path], limit: int = 5) -> list[str]:
    """Classes of some files that are built there from many arguments, told apart by their order."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}
    nodes = [(path, node) for path, tree in trees.items() for node in ast.walk(tree)]
    found = {node.name for _, node in nodes if isinstance(node, ast.ClassDef)}
    return [
        f"{path.name}:{node.lineno} builds `{ast.unparse(node.func)}` from {len(node.args)} values"
        for path, node in nodes
        if isinstance(node, ast.Call) and len(node.args) >= limit
        if ast.unparse(node.func).rpartition(".")[2] in found
    ]


def comment_faults(path: Path) -> list[str]:
    """Comments that silence a tool."""
    text = path.read_text(encoding="utf-8")
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = [x for x in tokens if x.type == tokenize.COMMENT and _SUPPRESSION.match(x.string)]
    return [f"{path.name}:{x.start[0]} has `{x.string}`" for x in comments]


def length_faults(path: Path, limit: int = MAX_LINES) -> list[str]:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    return [f"{path.name} has {lines} lines, more than {limit}"] if lines > limit else []


def machine_path_faults(path: Path) -> list[str]:
    """Absolute paths, which mean something on one machine only."""
    content = path.read_bytes()
    if b"\0" in content:
        return []
    lines = content.decode("utf-8").splitlines()
    return [
        f"{path.name}:{number} names `{match[0]}`"
        for number, line in enumerate(lines, 1)
        if (match := _MACHINE_PATH.search(line))
    ]


# Classes


def modules(package: ModuleType) -> list[ModuleType]:
    """The package and all its modules, imported."""
    prefix = package.__name__ + "."
    found = pkgutil.walk_packages(package.__path__, prefix)
    return [package, *(importlib.import_module(x.name) for x in found)]


def classes(package: ModuleType) -> list[type[Any]]:
    """Every Module class that is defined in the package."""
    return [
        x
        for module in modules(package)
        for x in vars(module).values()
        if isinstance(x, type) and issubclass(x, eqx.Module) and x.__module__ == module.__name__
    ]


def public(package: ModuleType) -> dict[str, Any]:
    """The public classes and functions, by the names that users write."""
    open_modules = [x for x in modules(package) if "._" not in x.__name__]
    return {
        f"{module.__name__}.{name}": x
        for module in open_modules
        for name in dir(module)
        if not name.startswith("_")
        and (inspect.isclass(x := getattr(module, name)) or inspect.isfunction(x))
    }


def written_methods(cls: type[Any]) -> dict[str, bool]:
    """The methods in a class's source, and whether each is abstract. (No generated ones.)"""
    tree = ast.parse(Path(inspect.getfile(cls)).read_text(encoding="utf-8"))
    (node,) = [x for x in ast.walk(tree) if isinstance(x, ast.ClassDef) and x.name == cls.__name__]
    return {
        x.name: any("abstractmethod" in ast.unparse(d) for d in x.decorator_list)
        for x in node.body
        if isinstance(x, ast.FunctionDef)
    }


def hierarchy_faults(found: Iterable[type[Any]]) -> list[str]:
    """Classes neither abstract nor final, and methods that override a concrete one."""
    found = list(found)
    faults = []
    for cls in found:
        name, abstract = cls.__name__, bool(cls.__abstractmethods__)
        subclasses = [x.__name__ for x in found if cls in x.__bases__]
        if name.lstrip("_").startswith("Abstract"):
            if not abstract:
                faults.append(f"`{name}` has no abstract method")
        else:
            if abstract:
                faults.append(f"`{name}` lacks {sorted(cls.__abstractmethods__)}")
            if subclasses:
                faults.append(f"`{name}` is concrete, and has subclasses {subclasses}")
        for base in set(cls.__mro__[1:]).intersection(found):
            concrete = {x for x, is_abstract in written_methods(base).items() if not is_abstract}
            # Equinox calls every `__check_init__` of a hierarchy: none overrides another.
            for method in sorted(concrete & written_methods(cls).keys() - {"__check_init__"}):
                faults.append(f"`{name}.{method}` overrides `{base.__name__}.{method}`")
    return faults


# Documentation


def argument_faults(name: str, thing: Any) -> list[str]:
    """Differences between the arguments that a docstring lists and those of the signature."""
    doc = inspect.getdoc(thing) if inspect.isfunction(thing) else thing.__doc__
    listed = listed_arguments(inspect.cleandoc(doc or ""))
    actual = list(inspect.signature(thing).parameters)
    if not doc:
        return [f"`{name}` has no docstring"]
    if inspect.isfunction(thing) and not listed:
        return []
    return [] if listed == actual else [f"`{name}` lists {listed}; its arguments are {actual}"]


def listed_arguments(doc: str) -> list[str]:
    """The names in the list under `**Arguments:**`."""
    return list(argument_docs(doc))


def argument_docs(doc: str) -> dict[str, str]:
    """The text about each name in the list under `**Arguments:**`."""
    _, _, after = doc.partition("**Arguments:**\n")
    texts: dict[str, str] = {}
    names: list[str] = []
    for line in after.splitlines():
        if match := _ITEM.match(line):
            names = re.findall(r"\w+", match[1])
            texts |= dict.fromkeys(names, line[match.end() :].strip())
        elif line.startswith(" "):
            texts |= {name: f"{texts[name]} {line.strip()}" for name in names}
        elif line:
            break
    return texts


def without_symbols(text: str) -> str:
    r"""The text of a docstring for readers who do not see the rule that has the symbols.

    A bound that is given by a symbol is given in words: `, $\epsilon \ge 0$` is "not negative".
    """
    text = re.sub(r",? \$[^$]* \\ge 0\$", ", not negative", text)
    text = re.sub(r",? \$[^$]* > 0\$", ", positive", text)
    return re.sub(r",? \$[^$\[\](<>=|/+]*\$", "", text)


def mentioned(pages: Iterable[Path], package: str) -> set[str]:
    """The names of the package that occur in some pages."""
    pattern = re.compile(rf"\b{package}(?:\.\w+)+")
    return {x for page in pages for x in pattern.findall(page.read_text(encoding="utf-8"))}
