"""The tables of `docs/coming-from-optax.md`, made from a list of names and a few words on some.

`python -m tests.support.migration` writes them anew.
"""

import json
import typing
from pathlib import Path
from typing import Any

import equinox as eqx

import eqopt
from eqopt.writing import AbstractTransformation

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "coming-from-optax.md"
BEGIN, END = "<!-- names: begin -->\n", "<!-- names: end -->\n"

# optax's names and ours, and what is to be said of some of them.
NAMES: dict[str, str] = json.loads((ROOT / "tests/data/names.json").read_text(encoding="utf-8"))
NOTES: dict[str, str] = json.loads((ROOT / "tests/data/notes.json").read_text(encoding="utf-8"))

# The headings, and the folders whose classes are under them.
SECTIONS = {
    "Optimizers": ("_optimizer",),
    "Transformations": ("_transform", "linesearch", "quasi_newton"),
    "Wrappers": ("_wrapper",),
    "Schedules": ("_schedule",),
    "Functions": (),
}


def tables() -> str:
    """All of them, as they stand on the page."""
    rows: dict[str, list[str]] = {section: [] for section in SECTIONS}
    for name, own in sorted(NAMES.items(), key=_without_prefix):
        rows[_section(own)].append(_row(name, own))
    return "\n".join(
        f"### {section}\n\n| optax | eqopt | |\n| --- | --- | --- |\n" + "".join(found)
        for section, found in rows.items()
    )


def _without_prefix(item: tuple[str, str]) -> str:
    return item[0].removeprefix("optax.").removeprefix("contrib.").lower()


def _section(own: str) -> str:
    parts = getattr(eqopt, own).__module__.split(".")
    found = [section for section, folders in SECTIONS.items() if parts[1] in folders]
    return found[0] if found else "Functions"


def _row(name: str, own: str) -> str:
    words = [x for x in (_state(getattr(eqopt, own)), NOTES.get(name, "")) if x]
    return f"| `{name.removeprefix('optax.')}` | [`{own}`][eqopt.{own}] | {'; '.join(words)} |\n"


def _state(cls: Any) -> str:
    """The state of a single transformation; that of an optimizer is a chain's."""
    if not (isinstance(cls, type) and issubclass(cls, AbstractTransformation)):
        return ""
    for base in vars(cls)["__orig_bases__"]:
        for state in typing.get_args(base):
            state = typing.get_origin(state) or state
            if isinstance(state, type) and issubclass(state, eqx.Module):
                name = state.__name__
                # Most are called after their class; then there is nothing to say.
                return "" if name in (f"{cls.__name__}State", "ChainState") else f"`{name}`"
    return ""


def page() -> str:
    """The page, with the tables as they should be."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + "\n" + tables() + "\n" + END + after


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
