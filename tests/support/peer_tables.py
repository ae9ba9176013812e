"""Reads the tables of the pages `docs/coming-from-*.md`: what they say of a peer's names."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
_CODE = re.compile(r"`([^`]+)`")


def text_of(page: str) -> str:
    return (DOCS / f"{page}.md").read_text(encoding="utf-8")


def rows(page: str, section: str) -> list[list[str]]:
    """The rows of the table under a heading, without the two of its head."""
    _, _, rest = text_of(page).partition(f"\n### {section}\n")
    if not rest:
        raise ValueError(f"`{page}` has no section `{section}`")
    body = re.split(r"^#+ ", rest, maxsplit=1, flags=re.MULTILINE)[0]
    lines = [line for line in body.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def peer_names(page: str, section: str) -> list[str]:
    """The names in the first column, of all rows."""
    return [name for row in rows(page, section) for name in _CODE.findall(row[0])]


def arguments(page: str, section: str) -> list[tuple[str, list[str]]]:
    """Each argument in a cell such as "`a`, `b` of [`X`][eqopt.X]", and the names after it."""
    found: list[tuple[str, list[str]]] = []
    for _, own, *_ in rows(page, section):
        names, of, owners = own.partition(" of [")
        if of:
            linked = re.findall(r"\]\[eqopt\.([\w.]+)\]", owners)
            found += [(name, linked) for name in _CODE.findall(names)]
    return found


def calls(page: str) -> list[str]:
    """The code in tables that makes something of eqopt's, such as `Chain(SGD(1.0))`."""
    lines = [line for line in text_of(page).splitlines() if line.startswith("| ")]
    code = [x.removeprefix("eqopt.") for line in lines for x in _CODE.findall(line)]
    return [x for x in code if re.match(r"[A-Z]\w*\(", x)]


def own_names(page: str) -> set[str]:
    """The names of eqopt on a page: those that are linked, and those in code."""
    text = text_of(page)
    linked = re.findall(r"\]\[eqopt\.([\w.]+)\]", text)
    return {*linked, *re.findall(r"\beqopt\.([\w.]*\w)", text)}


def other_names(page: str) -> set[str]:
    """The names of JAX, optax and SciPy on a page."""
    return set(re.findall(r"`((?:jax|optax|scipy)\.[\w.]*\w)", text_of(page)))
