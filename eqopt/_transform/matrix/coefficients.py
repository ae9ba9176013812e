"""The polynomials of the Newton-Schulz iteration.

In: a name, three numbers, or rows of three. Out: the coefficients of each step.
"""

from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import wadler_lindig as wl
from jaxtyping import Array, Float

from ..._base.converters import one_of, real, size
from ..._base.types import Scalar


class Quintic(eqx.Module):
    """The polynomial of one iteration.

    **Arguments:**

    - `linear`, `cubic`, `quintic`: its coefficients.
    """

    linear: Scalar = eqx.field(converter=real("ns_coeffs"))
    cubic: Scalar = eqx.field(converter=real("ns_coeffs"))
    quintic: Scalar = eqx.field(converter=real("ns_coeffs"))

    def __pdoc__(self, **kwargs: Any) -> wl.AbstractDoc:
        return wl.pdoc((self.linear, self.cubic, self.quintic), **kwargs)


class Quintics(eqx.Module):
    """The polynomials of an iteration of any number of steps.

    **Arguments:**

    - `rows`: three numbers for each of the first steps.
    - `end`: what follows the last row: `"repeat"`, the last row again and again, or `"cycle"`, all
        rows from the first. Static.

    Raises a `ValueError` if `rows` are not rows of three numbers, or for another `end`.
    """

    rows: tuple[Quintic, ...]
    end: str = eqx.field(converter=one_of("end", ("repeat", "cycle")), static=True)

    def __init__(self, rows: Any, end: str = "repeat") -> None:
        found = coefficients(rows)
        if not isinstance(found, tuple):
            raise ValueError(f"`rows` must be several times three numbers; got {rows!r}")
        self.rows = found
        self.end = end

    def steps(self, num: int) -> tuple[Quintic, ...]:
        """The polynomials of so many steps."""
        last = len(self.rows) - 1
        places = (i % len(self.rows) if self.end == "cycle" else min(i, last) for i in range(num))
        return tuple(self.rows[i] for i in places)


Coefficients: TypeAlias = Quintic | Quintics | tuple[Quintic, ...]


def polar_express(
    num_steps: int,
    *,
    lower: float = 1e-3,
    safety: float = 0.02,
    cushion: float = 0.02,
    safety_in_bounds: bool = True,
) -> Quintics:
    r"""Computes the coefficients of Polar Express: in each step the odd quintic polynomial $p$ that
    makes the largest $|1 - p(x)|$ on the interval $[l, u]$ of the singular values least.

    After a step the interval is $[p(l), 2 - p(l)]$. Remez' algorithm finds $p$ on
    $[\max(l, c\, u), u]$, where the cushion $c$ keeps it from being too steep; it is then scaled
    until $p(l)$ is as far below 1 as $p(u)$ is above it.

    **Arguments:**

    - `num_steps`: the number of steps, at least 1; further ones repeat the last.
    - `lower`: the least singular value to be brought near to 1, after the division by the norm; in
        $(0, 1)$.
    - `safety`: $s \ge 0$; all rows but the last are $p(x / (1 + s))$, against rounding.
    - `cushion`: $c$, in $[0, 1)$.
    - `safety_in_bounds`: whether the next interval is that of the divided polynomial. The first
        publication's is that of the undivided one.

    The defaults, in five steps, give the rows of `"polar_express"`; eight steps with `safety=0.01`,
    `cushion=0.02407327424182761` and `safety_in_bounds=False` those of the paper.

    **Raises:**

    A `ValueError` that names an argument out of its range.

    ??? cite "Reference"
        Amsel, Persson, Musco and Gower, *The Polar Express: Optimal Matrix Sign Methods and Their
        Application to the Muon Algorithm*, 2025 (arXiv 2505.16932), algorithm 1 and appendix.
    """
    num_steps = size("num_steps")(num_steps)
    for name, x, holds in (
        ("lower", lower, 0 < lower < 1),
        ("safety", safety, 0 <= safety < np.inf),
        ("cushion", cushion, 0 <= cushion < 1),
    ):
        if not holds:
            raise ValueError(f"`{name}` is out of its range; got {x!r}")
    low, high, shrink, powers = float(lower), 1.0, 1 + safety, np.array([1, 3, 5])
    rows: list[np.ndarray] = []
    for i in range(num_steps):
        row = _minimax(max(low, cushion * high), high)
        row = row * (2 / (row @ low**powers + row @ high**powers))
        divided = row / shrink**powers if i < num_steps - 1 else row
        rows.append(divided)
        low = float((divided if safety_in_bounds else row) @ low**powers)
        high = 2 - low
    return Quintics([tuple(map(float, row)) for row in rows], end="repeat")


def _minimax(low: float, high: float) -> np.ndarray:
    """The odd quintic polynomial nearest to 1 on an interval: its error is the same in four places,
    with signs that take turns."""
    if low >= (1 - 5e-6) * high:  # there the system is singular; this is the limit
        return np.array([15, -10, 3]) / 8 / high ** np.array([1, 3, 5])
    inner, row, before = np.array([3 * low + high, low + 3 * high]) / 4, np.zeros(3), np.inf
    for _ in range(100):  # a handful is enough
        places = np.array([low, *inner, high])
        system = np.stack([places, places**3, places**5, np.array([1, -1, 1, -1])], axis=1)
        *row, error = np.linalg.solve(system, np.ones(4))
        if abs(error - before) <= 1e-15:
            break
        before = error
        a, b, c = row
        root = np.sqrt(9 * b * b - 20 * a * c)
        inner = np.sqrt((-3 * b + np.array([-1, 1]) * root) / (10 * c))
    return np.array(row)


STANDARD = (3.4445, -4.775, 2.0315)
_KELLER = (
    (4.0848, -6.8946, 2.927),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
_POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
_POLAR_EXPRESS_8 = (
    (8.2051, -22.9019, 16.4607),
    (4.0664, -2.8612, 0.5184),
    (3.9096, -2.8234, 0.5250),
    (3.2856, -2.4153, 0.4853),
    (2.2779, -1.6198, 0.3985),
    (1.8726, -1.2307, 0.3585),
    (1.8564, -1.2132, 0.3568),
    (1.875, -1.25, 0.375),
)
_CANS = (
    (8.4703, -25.1081, 18.6293),
    (4.1828, -3.1087, 0.5806),
    (3.9619, -2.9541, 0.5630),
    (3.2866, -2.4647, 0.5074),
    (2.2737, -1.6447, 0.4162),
)
_AOL = (
    (4.0098, -7.0585, 2.4635),
    (3.4585, -5.5479, 2.5959),
    (2.7573, -3.2939, 1.4254),
    (2.7215, -3.0494, 1.3169),
)
_DEEPSEEK = (*[STANDARD] * 8, *[(2.0, -1.5, 0.5)] * 2)

# A name whose rows are all of its steps, as in optax, or the rows and what follows them.
_PRESETS: dict[str, Any] = {
    "standard": STANDARD,
    "dion": _KELLER,
    "quintic": (_KELLER, "cycle"),
    "polar_express": (_POLAR_EXPRESS, "repeat"),
    "polar_express_8": (_POLAR_EXPRESS_8, "repeat"),
    "cans": (_CANS, "repeat"),
    "aol": (_AOL, "cycle"),
    "deepseek": (_DEEPSEEK, "repeat"),
}


def coefficients(value: Any) -> Coefficients:
    """The converter of `ns_coeffs`."""
    if isinstance(value, Quintics):
        return value
    if isinstance(value, str):
        if value not in _PRESETS:
            known = " or ".join(f"{name!r}" for name in _PRESETS)
            raise ValueError(f"`ns_coeffs` must be {known}, or numbers; got {value!r}")
        value = _PRESETS[value]
        if isinstance(value[-1], str):
            return Quintics(*value)
    rows = [_quintic(x) for x in value] if _is_several(value) and len(value) else []
    whole = _quintic(value)
    if whole is not None:
        return whole
    polynomials = tuple(row for row in rows if row is not None)
    if not rows or len(polynomials) < len(rows):
        raise ValueError(f"`ns_coeffs` must be three numbers, or several times three; got {value}")
    return polynomials


def _quintic(x: Any) -> Quintic | None:
    if isinstance(x, Quintic):
        return x
    if _is_several(x) and len(x) == 3 and not any(map(_is_several, x)):
        return None if any(isinstance(a, Quintic) for a in x) else Quintic(*x)
    return None


def _is_several(x: object) -> bool:
    return isinstance(x, tuple | list) or (isinstance(x, np.ndarray | jax.Array) and x.ndim > 0)


def table_of(polynomials: Coefficients, num_steps: int, dtype: np.dtype) -> Float[Array, "steps 3"]:
    """The coefficients of each step."""

    def row(x: Quintic) -> Array:
        return jnp.stack([jnp.asarray(a).astype(dtype) for a in (x.linear, x.cubic, x.quintic)])

    if isinstance(polynomials, Quintic):
        return jnp.broadcast_to(row(polynomials), (num_steps, 3))
    if isinstance(polynomials, Quintics):
        polynomials = polynomials.steps(num_steps)
    return jnp.stack([row(x) for x in polynomials])
