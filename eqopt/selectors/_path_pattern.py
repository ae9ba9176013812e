"""Patterns for the paths of a model's parameters, such as `layers.*.weight`."""

import difflib
import re
from collections.abc import Sequence
from typing import Any

import jax
from jaxtyping import PyTree

from .._base import checks

Pattern = str | re.Pattern[str]


def dotted_paths(params: PyTree) -> tuple[list[str], Any]:
    """The path of each leaf, `None` included, with dots; and the structure of the tree."""
    found, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=checks.is_none)
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in found], treedef


def matches(pattern: Pattern, names: Sequence[str]) -> list[bool]:
    """Which of the paths a pattern matches; see `ByPath`."""
    if isinstance(pattern, re.Pattern):
        search = pattern.search
    else:
        search = re.compile(_regex(pattern)).fullmatch
    return [search(name) is not None for name in names]


def no_match(pattern: Pattern, names: Sequence[str]) -> str:
    """Says that a pattern matches no path, and suggests similar ones."""
    text = pattern if isinstance(pattern, str) else pattern.pattern
    parts = [f"{text!r} matches the path of no parameter"]
    # Common mistakes: a part of the model, or only the last name of a path.
    meant = [f"{text}.**", f"**.{text}", f"**.{text}.**"] if isinstance(pattern, str) else []
    parts += [f"{x!r} would match" for x in meant if any(matches(x, names))][:1]
    plain = re.sub(r"[^\w.]+", ".", text).strip(".")
    near = difflib.get_close_matches(plain, names, n=3, cutoff=0.3) or names[:3]
    more = ", ..." if len(names) > len(near) else ""
    parts += [f"there are {', '.join(map(repr, near))}{more}"] if near else []
    return "; ".join(parts) + ". If that is right, pass `must_match=False`"


def _regex(pattern: str) -> str:
    parts = re.sub(r"\[['\"]?([^]'\"]*)['\"]?\]", r".\1", pattern).lstrip(".").split(".")
    regex = ""
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        if part == "**":
            regex += ".*" if last else r"(?:[^.]+\.)*"
        else:
            for char in part:
                regex += {"*": "[^.]*", "?": "[^.]"}.get(char, re.escape(char))
            regex += "" if last else r"\."
    # `a.**` also matches `a` itself: "any number of components, none included".
    return re.sub(r"\\\.\.\*$", r"(?:\\..*)?", regex)
