"""Derivatives through `minimize`: of any order, in any mode, whatever the objective reads."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import eqopt
from tests.support.toolbox import assert_close, FLOAT, X64

TIGHT = 1e-10 if X64 else 1e-5
RTOL = 1e-7 if X64 else 1e-3


def bowl(x: Array, y: Array) -> Array:
    """Its minimizer is the logarithm of `y`, with derivatives of every order."""
    return jnp.sum(jnp.exp(x) - x * y)


Y = np.array([1.5, 2.0, 0.7], FLOAT)


def close(actual: Any, expected: Any, rtol: float = RTOL) -> None:
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rtol)


def minimizer(fn: Any, *args: Any) -> Array:
    return found(fn, *args).params


def found(fn: Any, *args: Any, **kwargs: Any) -> Any:
    x = jnp.zeros(3, FLOAT)
    return eqopt.minimize(fn, eqopt.LBFGS(), x, args, gtol=TIGHT, throw=False, **kwargs)


# Where the objective may find what is differentiated.


class Bowl(eqx.Module):
    y: Array
    name: str = "bowl"

    def __call__(self, x: Array) -> Array:
        return bowl(x, self.y)

    def method(self, x: Array) -> Array:
        return bowl(x, self.y)


class Problem:
    """An object of plain Python."""

    def __init__(self, y: Any) -> None:
        self.y = y

    def loss(self, x: Array) -> Array:
        return bowl(x, self.y)


PROBLEM = Problem(None)
GLOBAL: dict[str, Any] = {}


def _default(y: Array) -> Any:
    def loss(x: Array, y: Array = y) -> Array:
        return bowl(x, y)

    return loss


def _keyword_default(y: Array) -> Any:
    def loss(x: Array, *, y: Array = y) -> Array:
        return bowl(x, y)

    return loss


def _changed_object(y: Array) -> Any:
    PROBLEM.y = y
    return PROBLEM.loss


def _global(x: Array) -> Array:
    return bowl(x, GLOBAL["y"])


def _changed_global(y: Array) -> Any:
    GLOBAL["y"] = y
    return _global


def _contained(y: Any, get: Callable[[Any], Array]) -> Any:
    return lambda x: bowl(x, get(y))


def _scanned(y: Array) -> Any:
    kept = [y]

    def loss(x: Array) -> Array:
        def add(total: Array, i: Array) -> tuple[Array, None]:
            return total + jnp.exp(x[i]) - x[i] * kept[0][i], None

        return jax.lax.scan(add, jnp.zeros((), FLOAT), jnp.arange(3))[0]

    return loss


PLACES: dict[str, Callable[[Any], Any]] = {
    "closure": lambda y: lambda x: bowl(x, y),
    "default": _default,
    "keyword default": _keyword_default,
    "partial": lambda y: functools.partial(bowl, y=y),
    "module": Bowl,
    "method": lambda y: Bowl(y).method,
    "tuple": lambda y: _contained((y, 1), lambda c: c[0]),
    "dictionary": lambda y: _contained({"y": y}, lambda c: c["y"]),
    "list of modules": lambda y: _contained([Bowl(y)], lambda c: c[0].y),
    "object": lambda y: Problem(y).loss,
    "changed object": _changed_object,
    "global": _changed_global,
    "jitted": lambda y: jax.jit(lambda x: bowl(x, y)),
    "jitted, dictionary": lambda y: jax.jit(_contained({"y": y}, lambda c: c["y"])),
    "filter-jitted": lambda y: eqx.filter_jit(lambda x: bowl(x, y)),
    "checkpointed": lambda y: jax.checkpoint(_contained({"y": y}, lambda c: c["y"])),
    "scanned": _scanned,
}


def in_place(place: str) -> Callable[[Array], Array]:
    """The sum of the minimizer's squares, as a function of what stands in that place."""
    return lambda y: jnp.sum(jnp.square(minimizer(PLACES[place](y))))


def slope(y: Any) -> Any:
    return 2 * np.log(y) / y


def curvature(y: Any) -> Any:
    return np.diag((2 - 2 * np.log(y)) / y**2)


# What is in a dictionary is read when compiling; a warning says so when it changes again and again.
@pytest.mark.filterwarnings("ignore::eqopt.RecompilationWarning")
@pytest.mark.parametrize("place", PLACES)
def test_derivatives_wherever_the_objective_finds_it(place: str):
    outer = in_place(place)
    for y in (Y, Y + 1):  # no value of an earlier call comes back
        first, second = jax.jvp(jax.grad(outer), (jnp.asarray(y),), (jnp.ones_like(y),))
        close(first, slope(y))
        close(second, np.diagonal(curvature(y)), 10 * RTOL)
    close(outer(jnp.asarray(Y)), np.sum(np.log(Y) ** 2))


def _scalar(outer: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda s: outer(s * jnp.asarray(Y))


TWICE = np.stack([Y, 2 * Y])
BOTH_SLOPES = np.stack([slope(y) for y in TWICE])
BOTH_CURVATURES = np.stack([curvature(y) for y in TWICE])
MODES: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "forward": (lambda f: jax.jacfwd(f)(Y), slope(Y)),
    "reverse over reverse": (lambda f: jax.jacrev(jax.jacrev(f))(Y), curvature(Y)),
    "reverse over forward": (lambda f: jax.jacrev(jax.jacfwd(f))(Y), curvature(Y)),
    "forward over forward": (lambda f: jax.jacfwd(jax.jacfwd(f))(Y), curvature(Y)),
    "hessian": (lambda f: jax.hessian(f)(Y), curvature(Y)),
    "jit of hessian": (lambda f: jax.jit(jax.hessian(f))(Y), curvature(Y)),
    "grad of jit": (lambda f: jax.grad(jax.jit(f))(Y), slope(Y)),
    "vmap of grad": (lambda f: jax.vmap(jax.grad(f))(TWICE), BOTH_SLOPES),
    "vmap of hessian": (lambda f: jax.vmap(jax.hessian(f))(TWICE), BOTH_CURVATURES),
    "grad of vmap": (lambda f: jax.grad(lambda y: jnp.sum(jax.vmap(f)(y)))(TWICE), BOTH_SLOPES),
    # The sum of (log s + log y)**2, at s = 1.
    "third": (
        lambda f: jax.grad(jax.grad(jax.grad(_scalar(f))))(jnp.ones((), FLOAT)),
        np.sum(4 * np.log(Y) - 6),
    ),
}


@pytest.mark.filterwarnings("ignore::eqopt.RecompilationWarning")
@pytest.mark.parametrize("mode", MODES)
def test_derivatives_in_every_mode(mode: str):
    derivative, expected = MODES[mode]
    close(derivative(in_place("dictionary")), expected, 10 * RTOL)


def test_mixed_derivatives_of_an_argument_and_a_dictionary():
    def outer(y: Array, z: Array) -> Array:
        kept = {"z": z}
        return jnp.sum(jnp.square(minimizer(lambda x, y: bowl(x, y * kept["z"]), y)))

    y, z = jnp.asarray(Y), jnp.asarray(Y[::-1])
    expected = np.diag(2 / (Y * Y[::-1]))
    close(jax.jacfwd(jax.grad(outer, 1), 0)(y, z), expected, 10 * RTOL)
    close(jax.jacrev(jax.grad(outer, 0), 1)(y, z), expected, 10 * RTOL)


def test_value_and_aux_have_second_derivatives_and_all_else_is_constant():
    def objective(x: Array, y: Array) -> Any:
        aux = {"product": x * y, "number": 2.0, "count": jnp.arange(2), "key": jax.random.key(0)}
        return bowl(x, y), aux

    def outer(y: Array) -> Any:
        solution = found(objective, y, has_aux=True, history=True, max_steps=100)
        return eqx.filter(solution, eqx.is_inexact_array)

    first, second = jax.jacrev(outer), jax.jacfwd(jax.jacrev(outer))
    y = jnp.asarray(Y)
    close(first(y).value, -np.log(Y))
    close(second(y).value, -np.diag(1 / Y), 10 * RTOL)
    # The product is y log y, for each entry.
    close(jnp.sum(second(y).aux["product"], 0), np.diag(1 / Y), 10 * RTOL)
    constant = first(y)
    assert_close(
        (constant.grad, constant.stats["grad_norm"]),
        (np.zeros((3, 3), FLOAT), np.zeros(3, FLOAT)),
        0,
    )


def test_values_that_have_no_tangent():
    def objective(x: Array, y: Array, i: Array, k: int, none: None, key: Array) -> Array:
        factor = k * i.astype(FLOAT) + 0 * jax.random.normal(key, (3,), FLOAT)
        return bowl(x, y * factor)

    def outer(y: Array, i: Array, key: Array) -> Array:
        return minimizer(objective, y, i, 2, None, key)

    y, i, key = jnp.asarray(Y), jnp.asarray([1, 2, 3]), jax.random.key(0)
    nothing = np.zeros(3, jax.dtypes.float0), np.zeros((), jax.dtypes.float0)
    primal, tangent = jax.jvp(outer, (y, i, key), (jnp.ones_like(y), *nothing))
    close(primal, np.log(2 * Y * [1, 2, 3]))
    close(tangent, 1 / Y)


def test_a_map_over_integers_and_keys_that_are_in_a_dictionary():
    def outer(scale: Array, i: Array, key: Array) -> Array:
        kept = {"scale": scale, "i": i, "key": key}

        def objective(x: Array) -> Array:
            noise = jax.random.normal(kept["key"], (3,), FLOAT)
            target = kept["scale"] ** 3 * kept["i"].astype(FLOAT) * noise
            return jnp.sum(jnp.square(x - target))

        return jnp.sum(minimizer(objective))

    keys, i = jax.random.split(jax.random.key(0), 2), jnp.asarray([1, 3])
    scale = jnp.asarray(1.5, FLOAT)
    noise = jax.vmap(lambda key: jnp.sum(jax.random.normal(key, (3,), FLOAT)))(keys)
    first, second = jax.grad(outer), jax.grad(jax.grad(outer))
    sums = jnp.asarray([1, 3], FLOAT) * noise
    close(jax.vmap(first, (None, 0, 0))(scale, i, keys), 3 * scale**2 * sums)
    close(jax.vmap(second, (None, 0, 0))(scale, i, keys), 6 * scale * sums)
