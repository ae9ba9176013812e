"""Turns LaTeX into MathML when the pages are built.

Browsers show MathML by themselves, so the pages need no script and no other server; and a formula
that is wrong stops the build, which a script in the reader's browser would not.
"""

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

# What `pymdownx.arithmatex` leaves: `\(...\)` in a span, `\[...\]` in a div.
_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.+?)\\[)\]]</(?P=tag)>', re.DOTALL
)
# What the notebook converter asks of other servers, and its settings for it.
_SCRIPT = re.compile(
    r'<script[^>]+(?:src="https?://[^"]*"|x-mathjax-config")[^>]*>.*?</script>', re.DOTALL
)
_ASSET = re.compile(
    r'<(?:script|img|iframe|link rel="(?:stylesheet|preconnect)")[^>]+"(https?://[^"]+)"'
)


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Converts the formulas of one page."""

    def replace(match: re.Match[str]) -> str:
        block = match["tag"] == "div"
        return to_mathml(html.unescape(match["latex"]), block=block, where=page.file.src_uri)

    return _SCRIPT.sub("", _FORMULA.sub(replace, content))


def to_mathml(latex: str, *, block: bool, where: str) -> str:
    """Converts one formula; a `ValueError` if there is a command in it that is not known."""
    known = latex.replace("{aligned}", "{align*}")
    mathml = convert(known, display="block" if block else "inline")
    if unknown := re.findall(r"<mi>(\\[A-Za-z]+|&)</mi>", mathml):
        raise ValueError(f"{where}: cannot convert {', '.join(unknown)} in the formula {latex!r}")
    return mathml


def on_post_build(config: Any, **_: Any) -> None:
    """Refuses a page that would fetch something from another server."""
    for page in sorted(Path(config.site_dir).rglob("*.html")):
        if found := _ASSET.findall(page.read_text(encoding="utf-8")):
            raise ValueError(f"{page.relative_to(config.site_dir)} loads {', '.join(found)}")
