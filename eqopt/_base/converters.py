"""Converters: from what a user may write for a hyper-parameter to what is stored.

A numeric hyper-parameter is stored as a NumPy scalar (`np.float32(0.1)`): a leaf, so that a new
value never recompiles, but not a JAX array, so that building an optimizer starts no backend. Its
dtype is JAX's default (float64 under x64, else float32). Equinox loads a NumPy scalar from a file
that holds any number. So an optimizer that was just built loads a number that was saved as a Python
number (put there by `eqx.tree_at`) or as an array (returned by a compiled program).
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import wadler_lindig as wl
from jaxtyping import Array

from . import checks
from .compat import Tracer
from .key_data import is_key, is_typed_key, kept, KeyData
from .types import Scalar, ScalarLike, Steps, StepsLike

# Makes what a field holds of what a user gives.
Converter: TypeAlias = Callable[[Any], Any]

_Module = TypeVar("_Module", bound=eqx.Module)


def float_dtype() -> np.dtype:
    """The dtype in which hyper-parameters, schedules and norms are computed."""
    return np.dtype(jax.dtypes.canonicalize_dtype(np.float64))


def real(
    name: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    finite: bool = True,
) -> Callable[[ScalarLike], Scalar]:
    """Makes the converter of a real number within bounds, for `eqx.field(converter=...)`.

    The converter returns a leaf: a NumPy scalar, or a tracer. Traced numbers are not compared with
    the bounds.

    **Arguments:**

    - `name`: the field's name, for messages.
    - `at_least`, `above`, `at_most`, `below`: the bounds, or `None`.
    - `finite`: whether infinity is refused; NaN always is.
    """

    def convert(value: ScalarLike) -> Scalar:
        x = _number(name, value)
        if isinstance(x, Tracer):
            return x.astype(float_dtype())
        number = float(x)
        inside = (
            not np.isnan(number)
            and (np.isfinite(number) or not finite)
            and (at_least is None or number >= at_least)
            and (above is None or number > above)
            and (at_most is None or number <= at_most)
            and (below is None or number < below)
        )
        if not inside:
            bounds = (("at least", at_least), ("above", above), ("at most", at_most))
            words = [
                f"{word} {bound:g}"
                for word, bound in (*bounds, ("below", below))
                if bound is not None
            ]
            if np.isnan(number) or (finite and not np.isfinite(number)):
                words.insert(0, "finite" if finite else "no NaN")
            expected = " and ".join(words)
            raise ValueError(f"`{name}` must be {expected}; got {number:g}")
        return float_dtype().type(x)

    return convert


def one_of(name: str, choices: tuple[str, ...]) -> Callable[[str], str]:
    """Makes the converter of a choice by name."""

    def convert(value: str) -> str:
        if value not in choices:
            raise ValueError(f"`{name}` must be {' or '.join(map(repr, choices))}; got {value!r}")
        return value

    return convert


def non_negative(name: str) -> Callable[[ScalarLike], Scalar]:
    """Makes the converter of a finite number that is at least 0."""
    return real(name, at_least=0)


def positive(name: str) -> Callable[[ScalarLike], Scalar]:
    """Makes the converter of a finite number above 0."""
    return real(name, above=0)


def decay_factor(name: str) -> Callable[[ScalarLike], Scalar]:
    """Makes the converter of the decay of an average, a number in [0, 1)."""
    return real(name, at_least=0, below=1)


def steps(name: str, *, at_least: int | None = 0) -> Callable[[StepsLike], Steps]:
    """Makes the converter of a number of steps, a leaf stored as int32 like the counts.

    **Arguments:**

    - `name`: the field's name, for messages.
    - `at_least`: the smallest number allowed; `None` is the smallest int32.
    """
    limits = np.iinfo(np.int32)
    least = limits.min if at_least is None else at_least

    def convert(value: StepsLike) -> Steps:
        x = _number(name, value)
        if isinstance(x, Tracer):
            return x.astype(np.int32)
        number = float(x)
        if not number.is_integer():
            raise ValueError(f"`{name}` must be a whole number of steps; got {number}")
        if not least <= number <= limits.max:
            raise ValueError(f"`{name}` must be from {least} to 2**31 - 1; got {int(number)}")
        return np.int32(x)

    return convert


def size(name: str, *, at_least: int = 1) -> Callable[[int], int]:
    """Makes the converter of a size that shapes depend on, a Python int for a static field.

    **Arguments:**

    - `name`: the field's name, for messages.
    - `at_least`: the smallest size allowed.
    """

    def convert(value: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise TypeError(f"`{name}` must be an int; got {value!r}")
        if value < at_least:
            raise ValueError(f"`{name}` must be at least {at_least}; got {value}")
        return int(value)

    return convert


def optional(convert: Converter) -> Converter:
    """Keeps `None`, and converts everything else."""
    return lambda value: None if value is None else convert(value)


def flag(name: str) -> Callable[[bool], bool]:
    """Makes the converter of a flag, which is static."""

    def convert(value: bool) -> bool:
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"`{name}` must be True or False; got {value!r}")
        return bool(value)

    return convert


def to_dtype(name: str) -> Callable[[Any], np.dtype | None]:
    """Makes the converter of an optional floating-point dtype, which is static."""

    def convert(value: Any) -> np.dtype | None:
        if value is None:
            return None
        try:
            dtype = jnp.dtype(value)
        except TypeError:
            raise TypeError(f"`{name}` must be a floating-point dtype; got {value!r}") from None
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(f"`{name}` must be a floating-point dtype; got {dtype}")
        # Without x64, float64 becomes float32, as in every JAX array.
        return jnp.dtype(jax.dtypes.canonicalize_dtype(dtype))

    return convert


def prng_key(name: str) -> Converter:
    """Makes the converter of a PRNG key; a typed one becomes an [`eqopt.states.KeyData`][].

    **Arguments:**

    - `name`: the field's name, for messages.
    """

    def convert(value: Any) -> Any:
        own = kept(value)
        words = own.words if isinstance(own, KeyData) else own
        if not is_key(words):
            raise TypeError(
                f"`{name}` must be a PRNG key, such as `jax.random.key(0)`; got {_brief(value)}"
            )
        if words.ndim != 1:
            shape = words.shape if isinstance(value, KeyData) else value.shape
            raise ValueError(
                f"`{name}` must be one PRNG key; got an array of shape {shape}. To build one "
                "optimizer for each of several keys, map its class with `eqx.filter_vmap`"
            )
        return own.copy() if isinstance(own, np.ndarray) else own

    return convert


def _number(name: str, value: object) -> Any:
    """Refuses anything but one real number; returns a NumPy scalar array, or a tracer."""
    numeric = isinstance(value, int | float | np.ndarray | np.generic | jax.Array)
    if isinstance(value, bool) or not numeric:
        raise TypeError(
            f"`{name}` must be a number or an array of shape (); got {_brief(value)}"
            + (f". {_BY_SCHEDULE.format(name)}" if callable(value) else "")
        )
    x: object = value if isinstance(value, Tracer) else np.asarray(value)
    if x.shape != ():
        raise ValueError(
            f"`{name}` must be one number; got shape {x.shape}. To build one optimizer for "
            "each of several values, map its class: `eqx.filter_vmap(Optimizer)(values)`"
        )
    if not (jnp.issubdtype(x.dtype, jnp.integer) or jnp.issubdtype(x.dtype, jnp.floating)):
        raise TypeError(f"`{name}` must be a real number; got {x.dtype}")
    return x


_BY_SCHEDULE = "For a schedule, use `eqopt.Scheduled(optimizer, lambda o: o.{}, schedule)`"


def _brief(value: object) -> str:
    text = "a function" if inspect.isroutine(value) else repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"


def canonicalize(module: _Module) -> _Module:
    """Puts every hyper-parameter back into the form that its converter gives it.

    `eqx.tree_at` with a Python number, and arithmetic on an optimizer, leave numbers of other types
    in the leaves. For other types, a compiled program would be compiled again.
    """
    # Only such leaves cost time: an optimizer without them is returned unchanged.
    if _are_settled(jax.tree.leaves(module)):
        return module
    return jax.tree.map(
        lambda x: _settle_module(x) if isinstance(x, eqx.Module) else x,
        module,
        is_leaf=lambda x: isinstance(x, eqx.Module),
    )


def _are_settled(leaves: list[object]) -> bool:
    wide = float_dtype()
    for x in leaves:
        if isinstance(x, jax.Array):
            settled = isinstance(x, Tracer) or not (isinstance(x.dtype, np.dtype) and x.weak_type)
        elif isinstance(x, np.generic):
            settled = x.dtype in (wide, np.int32, np.bool_)
        else:
            settled = isinstance(x, bool) or not isinstance(x, int | float)
        if not settled:
            return False
    return True


def _settle_module(module: _Module) -> _Module:
    fields = [f for f in dataclasses.fields(module) if not f.metadata.get("static", False)]
    old = [getattr(module, f.name) for f in fields]
    new = [
        f.metadata["converter"](x)
        if _is_number(x) and "converter" in f.metadata
        else canonicalize(x)
        for f, x in zip(fields, old, strict=True)
    ]
    changed = [i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a is not b]
    if not changed:
        return module
    return eqx.tree_at(
        lambda m: [getattr(m, fields[i].name) for i in changed],
        module,
        [new[i] for i in changed],
        is_leaf=checks.is_none,
    )


def _is_number(x: object) -> bool:
    # A field may also be a pair of numbers. A Module inside converts its own fields.
    return not _are_settled(jax.tree.leaves(x, is_leaf=lambda y: isinstance(y, eqx.Module)))


def module_pdoc(module: eqx.Module, **kwargs: Any) -> wl.AbstractDoc:
    """Prints a Module with the numbers in it, and without what is left at its default of None."""
    kwargs["custom"] = _print_number
    shown = [
        (f.name, getattr(module, f.name))
        for f in dataclasses.fields(module)
        if f.repr and not _is_default(f, getattr(module, f.name))
    ]
    return wl.bracketed(
        begin=wl.TextDoc(f"{type(module).__name__}("),
        docs=wl.named_objs(shown, **kwargs),
        sep=wl.comma,
        end=wl.TextDoc(")"),
        indent=kwargs["indent"],
    )


def _is_default(field: Any, value: Any) -> bool:
    # Numbers are always shown; `False` and `None` are not.
    return value is None or (isinstance(value, bool) and value is field.default)


def _print_number(x: object) -> wl.AbstractDoc | None:
    if isinstance(x, np.ndarray | np.generic) and np.shape(x) == ():
        return wl.TextDoc(_shortest(x))
    if isinstance(x, Array) and not isinstance(x, Tracer) and x.shape == () and not is_typed_key(x):
        return wl.TextDoc(_shortest(np.asarray(x)))
    if isinstance(x, np.ndarray) and x.ndim == 1 and x.size <= 8:
        return wl.TextDoc("[" + ", ".join(map(_shortest, x)) + "]")
    if isinstance(x, Array | np.ndarray):
        return wl.array_summary(x.shape, x.dtype.name, kind=None)
    return None


def _shortest(x: Any) -> str:
    # The shortest digits of this float32, not the digits of the same number in float64.
    return repr(float(str(x))) if np.issubdtype(x.dtype, np.floating) else str(x)
