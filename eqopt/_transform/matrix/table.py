"""A table of the matrices in a model."""

from typing import Any, NamedTuple

from jaxtyping import PyTree

from ..._base import checks
from ..._base.models import split
from .dimensions import as_dimensions
from .matrices import forms_of


class MatrixRow(NamedTuple):
    """A parameter in the table of [`eqopt.matrix.matrices_of`][].

    **Arguments:**

    - `path`, `shape`: its path and shape.
    - `num`: how many matrices it is, 0 if it is none.
    - `size`: the sizes of the output and of the input of each, or `None`.
    """

    path: str
    shape: tuple[int, ...]
    num: int
    size: tuple[int, int] | None


def matrices_of(model: PyTree, weight_dimension_numbers: Any = None) -> "MatrixTable":
    """Tells which parameters of a model are matrices for [`eqopt.Muon`][] and its kin.

    The result prints as a table, to be looked at before a long run.

    **Arguments:**

    - `model`: the model.
    - `weight_dimension_numbers`: as for the optimizer; `None` goes by the layers of `eqx.nn`.

    **Raises:**

    A `ValueError` that names a parameter without the given axes.
    """
    params, _ = split(model, "model")
    dimensions = (
        None if weight_dimension_numbers is None else as_dimensions(weight_dimension_numbers)
    )
    forms = forms_of(params, dimensions, "model")
    leaves, _ = checks.flatten(params)
    rows = []
    for path, x, form in zip(checks.paths("model", params), leaves, forms, strict=True):
        if x is not None:
            num, *sides = (0, 0, 0) if form is None else form.sizes
            size = None if form is None else (sides[1], sides[0])
            rows.append(MatrixRow(path.removeprefix("model").lstrip("."), x.shape, num, size))
    return MatrixTable(rows)


class MatrixTable(list[MatrixRow]):
    """A list of [`eqopt.matrix.MatrixRow`][] that prints as a table."""

    def __repr__(self) -> str:
        def kind(row: MatrixRow) -> str:
            if row.size is None:
                return "no matrix"
            size = f"{row.size[0]} x {row.size[1]}"
            return size if row.num == 1 else f"{row.num} of {size}"

        cells = [(x.path, "x".join(map(str, x.shape)) or "scalar", kind(x)) for x in self]
        widths = [max(len(cell[i]) for cell in cells) for i in (0, 1)] if cells else []
        return "\n".join(f"{a:{widths[0]}}  {b:{widths[1]}}  {c}" for a, b, c in cells)
