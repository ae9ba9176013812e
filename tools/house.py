"""Measures the package, and draws its layout: rooms, floors and the imports between them.

A room is a folder or a file at the top level of the package. An arrow is one room that imports
another. A room's floor is one above the highest room that it imports. `python -m tools.house`
prints the figures of `eqopt/`, or of another package whose path is given; with `--layout` it
writes the table of rooms into `docs/design.md`, where a test compares it with the code.
"""

import argparse
import ast
import io
import statistics
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "design.md"
BEGIN, END = "<!-- layout -->\n", "<!-- /layout -->"


class Figures(NamedTuple):
    """What `figures` measures, in the order in which it is printed."""

    files: int
    lines: int
    longest_file: int
    median_file: float
    private_top_level_files: int
    rooms: int
    floors: int
    arrows: int
    arrows_up: int
    cycles: int
    any_per_1000_code_lines: float
    positional_builds: int
    public_names: int


def figures(package: Path) -> Figures:
    """The measures of one package. A module with a stub beside it is read from the stub."""
    files = sources(package)
    lengths = [len(x.read_text(encoding="utf-8").splitlines()) for x in files]
    trees = [ast.parse(x.read_text(encoding="utf-8")) for x in files]
    arrows = graph(package)
    floors = floors_of(arrows)
    num_code = sum(map(num_code_lines, files))
    return Figures(
        files=len(files),
        lines=sum(lengths),
        longest_file=max(lengths),
        median_file=statistics.median(lengths),
        private_top_level_files=len([x for x in package.glob("_*.py") if x.stem != "__init__"]),
        rooms=len(arrows),
        floors=max(floors.values()),
        arrows=sum(map(len, arrows.values())),
        arrows_up=sum(floors[x] <= floors[y] for x, ys in arrows.items() for y in ys),
        cycles=num_cycles(arrows) + num_cycles(file_graph(package)),
        any_per_1000_code_lines=round(1000 * sum(map(num_any, trees)) / num_code, 1),
        positional_builds=sum(map(num_positional_builds, trees)),
        public_names=len(public_names(package)),
    )


# Rooms


def sources(package: Path) -> list[Path]:
    """Every file of Python in the package, and every stub."""
    return sorted([*package.rglob("*.py"), *package.rglob("*.pyi")])


def graph(package: Path) -> dict[str, set[str]]:
    """For each room, the rooms that it imports; the package's own `__init__` is a room too."""
    found: dict[str, set[str]] = {}
    for path in sources(package):
        own = room(package, path)
        found.setdefault(own, set())
        for target in imports(package, path):
            found[own].add(room(package, target))
    return {x: ys - {x} for x, ys in found.items()}


def file_graph(package: Path) -> dict[str, set[str]]:
    """For each file, the files that it imports, without any `__init__`: these pass names on."""
    files = [x for x in sources(package) if x.stem != "__init__"]
    return {
        str(x.relative_to(package)): {
            str(y.relative_to(package)) for y in imports(package, x) if y.stem != "__init__"
        }
        for x in files
    }


def room(package: Path, path: Path) -> str:
    """`_jit/` for a file in that folder, `plot.py` for a file at the top level."""
    first, *rest = path.relative_to(package).parts
    return f"{first}/" if rest else first.removesuffix("i")


def imports(package: Path, path: Path) -> Iterator[Path]:
    """The files of the package that a file imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[tuple[str, ...]] = []
        if isinstance(node, ast.Import):
            names = [tuple(x.name.split(".")) for x in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = (package.name, *path.relative_to(package).parts)[: -node.level or None]
            stem = (*(above if node.level else ()), *(node.module or "").split("."))
            names = [(*filter(None, stem), x.name) for x in node.names]
        for first, *rest in names:
            if first == package.name:
                yield _file(package, rest)


def _file(package: Path, names: list[str]) -> Path:
    for n in range(len(names), 0, -1):
        stem = package.joinpath(*names[:n])
        for candidate in (stem.with_name(stem.name + ".py"), stem / "__init__.py"):
            if candidate.is_file():
                return candidate
    return package / "__init__.py"


def floors_of(arrows: dict[str, set[str]]) -> dict[str, int]:
    """The floor of each room, counted from 1; rooms of one cycle share a floor."""
    floors = dict.fromkeys(arrows, 1)
    for _ in arrows:
        for x, ys in arrows.items():
            outside = [floors[y] for y in ys if x not in reachable(arrows, y)]
            floors[x] = max([floors[x], *(n + 1 for n in outside)])
    return floors


def reachable(arrows: dict[str, set[str]], start: str) -> set[str]:
    """The rooms that a room imports, directly or through others."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = arrows.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    return found


def num_cycles(arrows: dict[str, set[str]]) -> int:
    """The number of rooms that import themselves through others."""
    return sum(x in reachable(arrows, x) for x in arrows)


# Lines


def num_code_lines(path: Path) -> int:
    """Lines without blank ones, comments and docstrings."""
    text = path.read_text(encoding="utf-8")
    ignored = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    lines: set[int] = set()
    for x in tokenize.generate_tokens(io.StringIO(text).readline):
        if x.type not in (*ignored, tokenize.ENDMARKER):
            lines.update(range(x.start[0], x.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            doc = node.body[0]
            lines.difference_update(range(doc.lineno, (doc.end_lineno or doc.lineno) + 1))
    return len(lines)


def num_any(tree: ast.Module) -> int:
    """How often `Any` is written, its imports counted too."""
    return sum(
        (isinstance(x, ast.Name) and x.id == "Any")
        or (isinstance(x, ast.alias) and x.name == "Any")
        for x in ast.walk(tree)
    )


def num_positional_builds(tree: ast.Module, at_least: int = 5) -> int:
    """How many calls pass many positional arguments to something that is named like a class."""
    found = 0
    for x in ast.walk(tree):
        if isinstance(x, ast.Call) and len(x.args) >= at_least:
            name = ast.unparse(x.func).rpartition(".")[2].lstrip("_")
            found += name[:1].isupper()
    return found


def public_names(package: Path) -> list[str]:
    """The names that the package's `__init__` offers, read from its stub if there is one."""
    stub, module = package / "__init__.pyi", package / "__init__.py"
    path = stub if stub.is_file() else module
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = [x for x in ast.walk(tree) if isinstance(x, ast.ImportFrom)]
    found = {y.asname or y.name for x in nodes for y in x.names}
    for star in [x.module for x in nodes if x.names[0].name == "*"]:
        other = ast.parse((package / f"{star}.py").read_text(encoding="utf-8"))
        found |= {y.name for x in ast.walk(other) if isinstance(x, ast.ImportFrom) for y in x.names}
    return sorted(x for x in found if not x.startswith("_") and x != "*")


# The table of rooms


def layout(package: Path) -> str:
    """A table of the floors, the highest first: each room, its first line, and what it imports."""
    arrows = graph(package)
    floors = floors_of(arrows)
    rows = ["| floor | room | what it holds | imports |", "| ---: | --- | --- | --- |"]
    for floor in range(max(floors.values()), 0, -1):
        for x in sorted(y for y in floors if floors[y] == floor):
            below = ", ".join(f"`{y}`" for y in sorted(arrows[x]))
            rows.append(f"| {floor} | `{x}` | {_summary(package / x)} | {below} |")
    return "\n".join(rows) + "\n"


def _summary(path: Path) -> str:
    source = path / "__init__.py" if path.is_dir() else path
    doc = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    return " ".join(doc.partition("\n\n")[0].split())


def page_with(page: str, table: str) -> str:
    """The text of a page with the table in its place."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}{table}{END}{rest.partition(END)[2]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("package", nargs="?", type=Path, default=ROOT / "eqopt")
    parser.add_argument("--layout", action="store_true", help="rewrite the table in docs/design.md")
    options = parser.parse_args()
    if options.layout:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(page_with(page, layout(options.package)), encoding="utf-8")
        return
    for name, value in figures(options.package)._asdict().items():
        print(f"{name.replace('_', ' '):28}{value:>10}")


if __name__ == "__main__":
    main()
