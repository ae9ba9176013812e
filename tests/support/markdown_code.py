"""Finds the code in Markdown and runs it."""

import ast
import doctest
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_OPEN = re.compile(r"^(?P<indent>[ ]*)(?P<ticks>`{3,}|~{3,})\s*(?P<info>[^`]*)$")
# What else may stand behind the language: none of it changes what is run.
_TITLE = re.compile(r'(?:\s+(?:title|hl_lines|linenums)="[^"]*")*$')


@dataclass(frozen=True)
class Fence:
    """A fenced block: its language, its code, and the number of the line above the code."""

    language: str
    code: str
    line: int


def fences(text: str) -> list[Fence]:
    """The blocks of Python in a text; a `ValueError` for one that would be passed over."""
    found: list[Fence] = []
    lines = enumerate(text.splitlines(), 1)
    for number, line in lines:
        if match := _OPEN.match(line):
            body: list[str] = []
            for _, inner in lines:
                if inner.strip() == match["ticks"]:
                    break
                body.append(inner)
            else:
                raise ValueError(f"line {number}: the block is not closed")
            language, *_ = [*match["info"].split(), ""]
            if language in ("python", "pycon"):
                if not _TITLE.match(match["info"].strip().removeprefix(language)):
                    raise ValueError(f"line {number}: `{match['info']}` is more than a language")
                code = textwrap.dedent("\n".join(body)) + "\n"
                found.append(Fence(language, code, number))
            elif re.search(r"\bpy", match["info"].lower()):
                raise ValueError(
                    f"line {number}: `{match['info']}` is neither `python` nor `pycon`"
                )
    return found


def run(found: list[Fence], namespace: dict[str, Any], where: str) -> None:
    """Runs blocks in order, in one namespace; `pycon` must print what it says."""
    for fence in found:
        if fence.language == "python":
            # Blank lines above, so that a traceback gives the line in the page.
            program = compile("\n" * fence.line + fence.code, where, "exec")
            exec(program, namespace)
        else:
            parser = doctest.DocTestParser()
            test = parser.get_doctest(fence.code, namespace, where, where, fence.line)
            if not test.examples:
                raise ValueError(f"{where}, line {fence.line}: there is no `>>>` in the block")
            test.globs = namespace
            options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            doctest.DebugRunner(optionflags=options).run(test, clear_globs=False)


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """The names and docstrings of the classes and functions in a file, and of the file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.Module):
            name = "module" if isinstance(node, ast.Module) else node.name
            if doc := ast.get_docstring(node):
                yield name, doc
