"""What a transformation should be told, in NumPy, wherever in a nesting it is."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from tests.support.toolbox import flatten, FLOAT

# The leaves of all parameters, in their own form.
Point = list[np.ndarray | None]


def table(i: int, shape: tuple[int, ...]) -> np.ndarray:
    """Factors that tell each number of each leaf from all others."""
    return (0.1 * (i + 1) + 0.01 * np.arange(math.prod(shape)).reshape(shape)).astype(FLOAT)


def digest_of(leaves: Iterable[np.ndarray | None]) -> float:
    """What `digest` makes of such a list."""
    parts = [(table(i, x.shape), x) for i, x in enumerate(leaves) if x is not None]
    return float(sum(np.sum(f * np.real(x)) + 3 * np.sum(f * np.imag(x)) for f, x in parts))


def objective_of(point: Point, scale: float) -> float:
    """The value of `objective`."""
    there = [x for x in point if x is not None]
    return scale * float(sum(np.sum(table(i, x.shape) * abs(x) ** 2) for i, x in enumerate(there)))


def gradient_of(point: Point, scale: float) -> Point:
    """Its gradient, which points uphill."""
    there = iter(range(len(point)))
    return [
        None if x is None else np.asarray(2 * scale * table(next(there), x.shape) * x, x.dtype)
        for x in point
    ]


def holds(a: float, b: Any, tolerance: float) -> bool:
    return math.isclose(a, float(b), rel_tol=tolerance, abs_tol=tolerance)


# Where a spy looks from.


def numbers(tree: Any) -> Point:
    """The leaves of a tree of arrays, `None` included, in float64 at least."""

    def wide(x: Any) -> np.ndarray:
        return np.asarray(x).astype(np.complex128 if jnp.iscomplexobj(x) else np.float64)

    return [None if x is None else wide(x) for x in flatten(tree)]


@dataclasses.dataclass(frozen=True)
class Part:
    """A leaf of the parameters, or its real or imaginary part."""

    leaf: int
    taken: tuple[Callable[[Any], Any], ...] = ()

    def read(self, point: Point) -> np.ndarray:
        return functools.reduce(lambda x, fn: fn(x), self.taken, point[self.leaf])

    def taking(self, fn: Callable[[Any], Any]) -> "Part":
        return Part(self.leaf, (*self.taken, fn))


@dataclasses.dataclass(frozen=True)
class Zeros:
    """Zeros, where there is no leaf."""

    size: int

    def read(self, point: Point) -> np.ndarray:
        return np.zeros(self.size)

    def taking(self, fn: Callable[[Any], Any]) -> "Zeros":
        return self


@dataclasses.dataclass(frozen=True)
class Atom:
    """What is one leaf in the form of the moment: parts of the parameters, end to end."""

    parts: tuple[Part | Zeros, ...]
    shape: tuple[int, ...]
    dtype: Any

    def read(self, point: Point) -> np.ndarray:
        return np.concatenate([p.read(point).ravel() for p in self.parts]).reshape(self.shape)

    def taking(self, fn: Callable[[Any], Any], dtype: Any) -> "Atom":
        parts = tuple(p.taking(fn) for p in self.parts)
        return Atom(parts, self.shape, dtype)

    def halves(self) -> "tuple[Atom, Atom]":
        real = np.dtype(np.float32 if self.dtype == np.complex64 else np.float64)
        return self.taking(np.real, real), self.taking(np.imag, real)


View = tuple[Atom | None, ...]


@dataclasses.dataclass(frozen=True)
class Seen:
    """What is seen of the parameters, of trees like the updates, and of `weights`."""

    params: View
    given: View
    weights: View

    def masked(self, chosen: Sequence[bool], mask_extra: bool = False) -> "Seen":
        def hide(view: View) -> View:
            return tuple(x if c else None for x, c in zip(view, chosen, strict=True))

        weights = hide(self.weights) if mask_extra else self.weights
        return Seen(hide(self.params), hide(self.given), weights)

    def flattened(self) -> "Seen":
        dtypes = list(dict.fromkeys(x.dtype for x in self.params if x is not None))

        def vector(view: View, dtype: Any) -> Atom | None:
            own = [
                (x, y)
                for x, y in zip(self.params, view, strict=True)
                if x is not None and x.dtype == dtype
            ]
            if all(y is None for _, y in own):
                return None
            sizes = [math.prod(x.shape) for x, _ in own]
            parts = [
                (Zeros(size),) if y is None else y.parts
                for size, (_, y) in zip(sizes, own, strict=True)
            ]
            return Atom(tuple(itertools.chain(*parts)), (sum(sizes),), dtype)

        def join(view: View) -> View:
            return tuple(vector(view, dtype) for dtype in dtypes)

        return Seen(join(self.params), join(self.given), join(self.weights))

    def split(self) -> "Seen":
        pairs = [
            x is not None and jnp.issubdtype(x.dtype, jnp.complexfloating) for x in self.params
        ]

        def take_apart(view: View) -> View:
            apart: list[Atom | None] = []
            for x, pair in zip(view, pairs, strict=True):
                apart += [x] if not pair else [None, None] if x is None else x.halves()
            return tuple(apart)

        return Seen(take_apart(self.params), take_apart(self.given), take_apart(self.weights))

    def rewound(self, point: Point, to: Point) -> Point:
        """The point, with what is seen of the parameters as it was at another one."""
        new = [*point]
        for part in (part for x in self.params if x is not None for part in x.parts):
            assert isinstance(part, Part)
            i = part.leaf
            now, then = new[i], to[i]
            assert now is not None and then is not None
            if part.taken == ():
                new[i] = then
            elif part.taken == (np.real,):
                new[i] = np.real(then) + 1j * np.imag(now)
            else:
                assert part.taken == (np.imag,)
                new[i] = np.real(now) + 1j * np.imag(then)
        return new


def view_of(tree: Any) -> View:
    """The whole of a tree, seen from outside."""
    return tuple(
        None if x is None else Atom((Part(i),), x.shape, np.dtype(x.dtype))
        for i, x in enumerate(flatten(tree))
    )


# When a spy is called.


class Gate:
    """Whether a wrapper calls what is inside it, and with which parameters.

    **Arguments:**

    - `opens`: whether it does, from the number of its calls so far and `value`.
    - `period`: if given, the parameters inside are those at the last call whose number is divisible
        by it.
    - `forgets`: if given, the number of calls after which what is inside begins anew.
    - `combines`: if given, makes one value of those of all calls since it last opened.
    """

    def __init__(
        self,
        opens: Callable[[int, float], bool] = lambda count, value: True,
        period: int | None = None,
        forgets: int | None = None,
        combines: Callable[[list[float]], float] | None = None,
    ) -> None:
        self.opens, self.period, self.forgets = opens, period, forgets
        self.combines = combines
        self.count, self.kept = 0, []
        self.values: list[float] = []

    def enter(self, point: Point, seen: Seen, value: float) -> tuple[Point, float] | None:
        if self.period is not None and self.count % self.period == 0:
            self.kept = point
        opens = self.opens(self.count, value)
        self.count += 1
        self.values.append(value)
        if not opens:
            return None
        if self.combines is not None:
            value = self.combines(self.values)
        self.values = []
        return point if self.period is None else seen.rewound(point, self.kept), value

    def leave(self) -> bool:
        return self.forgets is not None and self.count % self.forgets == 0

    def reset(self) -> None:
        self.count, self.kept = 0, []
        self.values = []


def called(
    gates: list[tuple[Gate, Seen]], points: list[Point], values: list[float]
) -> tuple[int, int, Point, float]:
    """How often a spy behind some gates is called since it last began anew, and when last.

    Also gives the parameters and the value at that call. Of none, all is as before the first.
    """
    num, last, where, told = 0, 0, points[0], values[0]
    for now, (point, value) in enumerate(zip(points, values, strict=True)):
        entered, at = 0, point
        for gate, seen in gates:
            entered += 1
            inside = gate.enter(at, seen, value)
            if inside is None:
                break
            at, value = inside
        else:
            num, last, where, told = num + 1, now, at, value
        for i in reversed(range(entered)):
            if gates[i][0].leave():
                num = 0
                for gate, _ in gates[i + 1 :]:
                    gate.reset()
    return num, last, where, told
