"""The code on the pages, in the README and in the docstrings runs."""

import doctest
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import pytest

import eqopt
from tests.support.markdown_code import docstrings, Fence, fences, run

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DOCSTRINGS = [
    pytest.param(found, id=f"{path.relative_to(ROOT)}-{name}")
    for path in sorted((ROOT / "eqopt").rglob("*.py"))
    for name, doc in docstrings(path)
    if (found := fences(doc))
]

# The pages show what JAX does unless it is told otherwise. (The tests are stricter.)
in_the_narrow_width = pytest.mark.skipif(
    jax.config.read("jax_enable_x64"), reason="the pages' numbers are those of the narrow width"
)


@pytest.fixture
def namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What a page's code begins with: a module and a folder of its own, and JAX's defaults."""
    page = ModuleType("eqopt_page")
    monkeypatch.setitem(sys.modules, page.__name__, page)
    monkeypatch.chdir(tmp_path)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield vars(page)
    plt.close("all")


@in_the_narrow_width
@pytest.mark.parametrize("page", PAGES, ids=lambda x: str(x.relative_to(ROOT)))
def test_page(page: Path, namespace: dict[str, Any]):
    run(fences(page.read_text(encoding="utf-8")), namespace, str(page))


@in_the_narrow_width
@pytest.mark.parametrize("found", DOCSTRINGS)
def test_docstring(found: list[Fence], namespace: dict[str, Any], request: pytest.FixtureRequest):
    namespace.update(eqopt=eqopt, eqx=eqx, jax=jax, jnp=jnp)
    run(found, namespace, request.node.name)


CODE = [*PAGES, *sorted((ROOT / "examples").glob("*.py")), *(ROOT / "docs").rglob("*.ipynb")]


@pytest.mark.parametrize("page", CODE, ids=lambda x: str(x.relative_to(ROOT)))
def test_public_names_suffice(page: Path):
    """No page and no example has a name such as `eqopt._base`."""
    assert not re.search(r"\beqopt(\.\w+)*\._\w|from eqopt[.\w]* import _", page.read_text("utf-8"))


# Of the reference, the code is in the docstrings.
_WITHOUT_CODE = {ROOT / "docs" / "design.md", *(ROOT / "docs" / "api").glob("*.md")}


@pytest.mark.parametrize(
    "page", [x for x in PAGES if x not in _WITHOUT_CODE], ids=lambda x: str(x.relative_to(ROOT))
)
def test_page_has_code(page: Path):
    assert fences(page.read_text(encoding="utf-8"))


PAGE = """
Text with ``` in it.

```python title="first.py"
x = 1
```

!!! example
    ```python
    def f():
        return x + 1
    ```

~~~pycon
>>> f()
2
~~~

```text
no code
```
"""


def test_fences():
    first, second, third = fences(PAGE)
    assert first == Fence("python", "x = 1\n", 4)
    assert second == Fence("python", "def f():\n    return x + 1\n", 9)
    assert third == Fence("pycon", ">>> f()\n2\n", 14)
    namespace: dict[str, Any] = {}
    run(fences(PAGE), namespace, "page")
    assert namespace["f"]() == 2


def test_fences_fail():
    with pytest.raises(NameError, match="y"):
        run(fences("```python\ny\n```"), {}, "page")
    with pytest.raises(doctest.DocTestFailure):
        run(fences(PAGE.replace("\n2\n", "\n3\n")), {}, "page")
    with pytest.raises(ValueError, match="no `>>>`"):
        run(fences("```pycon\n1\n```"), {}, "page")


@pytest.mark.parametrize("info", ["python no-run", "{.python}", "py", "Python", "python3"])
def test_no_fence_is_passed_over(info: str):
    with pytest.raises(ValueError, match="line 2"):
        fences(f"\n```{info}\nx = 1\n```")


def test_a_fence_is_closed():
    with pytest.raises(ValueError, match="not closed"):
        fences("```python\nx = 1\n")
