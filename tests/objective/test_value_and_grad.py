"""`value_and_grad` against JAX's and Equinox's, with every option."""

import functools
import inspect
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jaxtyping import Array

import eqopt
from tests.support.toolbox import (
    assert_close,
    complaint,
    DTYPES,
    flatten,
    FLOAT,
    same,
    tree,
    values,
    Zoo,
    zoo_loss,
)

X = values((4, 3), 0)
EAGER_AND_JIT = pytest.mark.parametrize("wrap", [lambda fn: fn, jax.jit], ids=["eager", "jit"])


def _loss(params: Any, x: Array) -> Array:
    """Of `tree()` and a vector of 3; nonlinear in both."""
    y = jnp.tanh(params["a"] @ x) + params["branch"]["w"] @ jnp.cos(x)
    return jnp.sum(jnp.square(y)) + jnp.sum(params["branch"]["b"])


def _square(tree: Any) -> Array:
    """The sum of the squared moduli of all numbers."""
    return jnp.sum(jnp.stack([jnp.sum(jnp.square(jnp.abs(x))) for x in jax.tree.leaves(tree)]))


# Against JAX


@EAGER_AND_JIT
@pytest.mark.parametrize("argnums", [0, 1, -1, (0,), (1, 0), [0, 1], (-1, 0), np.int64(1)], ids=str)
def test_argnums(wrap: Any, argnums: Any):
    ours, theirs = eqopt.value_and_grad(_loss, argnums), jax.value_and_grad(_loss, argnums)
    assert same(wrap(ours)(tree(), X[0]), wrap(theirs)(tree(), X[0]))


def test_has_aux():
    def fn(p: Any, x: Array) -> Any:
        return _loss(p, x), {"x": 2 * x}

    ours = eqopt.value_and_grad(fn, (0, 1), has_aux=True)(tree(), X[0])
    theirs = jax.value_and_grad(fn, (0, 1), has_aux=True)(tree(), X[0])
    assert isinstance(ours[0], tuple) and len(ours[0]) == 2
    assert same(ours, theirs)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda x: np.dtype(x).name)
def test_dtypes(dtype: Any):
    def fn(p: Any, c: Any) -> Array:
        return _square(jax.tree.map(lambda x: x - c, p))

    params, c = tree(0, dtype), jnp.asarray(0.25, dtype)
    ours = jax.jit(eqopt.value_and_grad(fn))(params, c)
    assert same(ours, jax.jit(jax.value_and_grad(fn))(params, c))
    assert all(x.dtype == dtype for x in jax.tree.leaves(ours[1]))


def test_holomorphic():
    def fn(z: Any) -> Array:
        return jnp.sum(z["a"] ** 3)

    z = tree(0, jnp.complex64)
    ours = eqopt.value_and_grad(fn, holomorphic=True)(z)
    assert same(ours, jax.value_and_grad(fn, holomorphic=True)(z))
    # A derivative, and not the gradient of a real function.
    assert_close(ours[1]["a"], 3 * z["a"] ** 2)


def test_allow_int():
    def fn(p: Any) -> Array:
        return jnp.sum(p["x"]) * p["n"].astype(FLOAT)

    p = {"x": X, "n": jnp.asarray(3), "b": np.asarray([True, False])}
    value, grad = eqopt.value_and_grad(fn, allow_int=True)(p)
    expected = jax.value_and_grad(fn, allow_int=True)(p)
    assert same((value, grad), expected)
    assert grad["n"].dtype == grad["b"].dtype == jax.dtypes.float0
    assert grad["b"].shape == (2,)
    value, grad = eqopt.value_and_grad(fn)(p)
    assert grad["n"] is None and grad["b"] is None
    assert same(grad["x"], expected[1]["x"])


def test_allow_int_differentiates_a_bare_integer():
    value, grad = eqopt.value_and_grad(lambda n, x: n * x, (0, 1), allow_int=True)(3, 2.0)
    assert value == 6.0 and grad[1] == 3.0
    assert grad[0].dtype == jax.dtypes.float0 and grad[0].shape == ()


@pytest.mark.parametrize("x", [3.0, np.float32(3), np.float64(3), np.asarray([1.0, 2.0])], ids=repr)
def test_numbers_and_numpy_arrays(x: Any):
    def fn(x: Any) -> Any:
        return jnp.sum(jnp.square(x))

    value, grad = eqopt.value_and_grad(fn)(x)
    assert isinstance(grad, jax.Array)
    assert same((value, grad), jax.value_and_grad(fn)(x))


def test_a_bare_complex_number():
    def fn(z: Any) -> Any:
        return z**2

    ours = eqopt.value_and_grad(fn, holomorphic=True)(1 + 2j)
    assert same(ours, jax.value_and_grad(fn, holomorphic=True)(1 + 2j))


def test_a_constant():
    value, grad = eqopt.value_and_grad(lambda x: 3.0)(X)
    assert value == 3.0 and same(grad, jnp.zeros_like(X))


# Of models


@EAGER_AND_JIT
def test_a_model_with_every_kind_of_leaf(wrap: Any):
    jit = eqx.filter_jit if wrap is jax.jit else wrap
    model = Zoo()
    value, grad = jit(eqopt.value_and_grad(zoo_loss))(model, X[0, :2])
    assert same((value, grad), jit(eqx.filter_value_and_grad(zoo_loss))(model, X[0, :2]))
    assert grad.rate is None and grad.integers is None and grad.activation is None
    assert jax.tree.structure(grad) == jax.tree.structure(eqx.filter(model, eqx.is_inexact_array))


def test_several_models():
    def fn(n: int, model: Zoo, x: Array, other: Zoo) -> Array:
        return n * zoo_loss(model, x) + zoo_loss(other, 2 * x)

    model, x = Zoo(), X[0, :2]
    other = eqx.tree_at(lambda m: m.weight, model, 2 * model.weight)

    def joint(models: Any) -> Array:
        return fn(3, models[1], models[2], models[0])

    value, grads = eqopt.value_and_grad(fn, (3, 1, 2))(3, model, x, other)
    assert isinstance(grads, tuple)
    assert same((value, grads), eqx.filter_value_and_grad(joint)((other, model, x)))


def test_aux_of_any_kind():
    model = Zoo()

    def fn(m: Zoo, x: Array) -> Any:
        return zoo_loss(m, x), ("text", jnp.tanh, m.name, m, {"none": None, "x": x})

    (_, aux), _ = eqopt.value_and_grad(fn, has_aux=True)(model, X[0, :2])
    assert aux[:3] == ("text", jnp.tanh, "zoo")
    assert same(aux[3], model) and same(aux[4], {"none": None, "x": X[0, :2]})


def test_keyword_arguments_are_handed_on():
    def fn(p: Any, x: Array, *, scale: Any, **others: Any) -> Array:
        assert others == {"self": "me", "fun": 2}
        return scale * _loss(p, x)

    half = jnp.asarray(0.5, FLOAT)
    others = {"self": "me", "fun": 2}
    value, grad = eqopt.value_and_grad(fn)(tree(), x=X[0], scale=half, **others)
    expected = jax.value_and_grad(lambda p: half * _loss(p, X[0]))(tree())
    assert_close((value, grad), expected)


class Objective(eqx.Module):
    center: Array

    def __call__(self, p: Array, power: int = 2) -> Array:
        return jnp.sum((p - self.center) ** power)

    def method(self, p: Array) -> Array:
        return self(p, 4)

    @functools.partial(eqopt.value_and_grad, argnums=1)
    def decorated(self, p: Array) -> Array:
        """Decorated."""
        return self(p, 3)


def test_objectives_that_are_models_and_methods():
    fn, p = Objective(X[0]), X[1]
    for ours, power in [
        (eqopt.value_and_grad(fn), 2),
        (eqopt.value_and_grad(fn.method), 4),
        (eqopt.value_and_grad(functools.partial(fn, power=3)), 3),
        (eqopt.value_and_grad(jax.jit(lambda p: fn(p))), 2),
        (fn.decorated, 3),
    ]:
        d = p - fn.center
        assert_close(ours(p), (jnp.sum(d**power), power * d ** (power - 1)))


def test_the_arrays_of_an_objective_are_arguments_of_its_program():
    num = 0

    @eqx.filter_jit
    def run(fn: Any, p: Array) -> Any:
        nonlocal num
        num += 1
        return fn(p)

    a = run(eqopt.value_and_grad(Objective(X[0]).method), X[1])
    b = run(eqopt.value_and_grad(Objective(X[2]).method), X[1])
    assert num == 1 and not same(a, b)


def test_looks_like_what_it_wraps():
    def fn(p: Any, x: Array, *, flag: bool = True) -> Array:
        """What it does."""
        return _loss(p, x)

    wrapped: Any = eqopt.value_and_grad(fn)
    assert wrapped.__name__ == "fn" and wrapped.__doc__ == "What it does."
    assert inspect.signature(wrapped) == inspect.signature(fn)
    assert str(inspect.signature(eqopt.value_and_grad(Objective(X[0])))) == str(
        inspect.signature(Objective(X[0]))
    )


def test_evaluates_once():
    num = 0

    def fn(p: Any, x: Array) -> Array:
        nonlocal num
        num += 1
        return _loss(p, x)

    eqopt.value_and_grad(fn)(tree(), X[0])
    eqopt.value_and_grad(fn, reduce_axes=())(tree(), X[0])
    assert num == 2


# Composed


@pytest.mark.parametrize("outer", [jax.jacfwd, jax.jacrev])
def test_second_derivatives(outer: Any):
    def grad(p: Any) -> Any:
        return eqopt.value_and_grad(_loss)(p, X[0])[1]

    hessian = jax.jit(jax.hessian(_loss))(tree(), X[0])
    assert_close(jax.jit(outer(grad))(tree()), hessian, rtol=1e-4)


def test_of_itself():
    def square_of_slope(p: Any, x: Array) -> Array:
        _, grad = eqopt.value_and_grad(_loss)(p, x)
        return _square(grad)

    def reference(p: Any, x: Array) -> Array:
        return _square(jax.grad(_loss)(p, x))

    ours = jax.jit(eqopt.value_and_grad(square_of_slope))(tree(), X[0])
    assert_close(ours, jax.jit(jax.value_and_grad(reference))(tree(), X[0]), rtol=1e-5)


def test_under_abstract_evaluation():
    fn = eqopt.value_and_grad(_loss)
    shapes = jax.eval_shape(fn, tree(), X[0])
    assert [(x.shape, x.dtype) for x in flatten(shapes)] == [
        (x.shape, x.dtype) for x in flatten(fn(tree(), X[0]))
    ]


# Mistakes


@pytest.mark.parametrize("argnums", [2, -3, (0, 2)])
def test_argnums_out_of_range(argnums: Any):
    message = complaint(ValueError, lambda: eqopt.value_and_grad(_loss, argnums)(tree(), X[0]))
    assert "`argnums`" in message and "2 were given by position" in message


def test_argnums_that_cannot_be():
    assert "twice" in complaint(
        ValueError, lambda: eqopt.value_and_grad(_loss, (0, -2))(tree(), X[0])
    )
    assert "empty" in complaint(ValueError, lambda: eqopt.value_and_grad(_loss, ()))
    assert "by keyword" in complaint(
        ValueError, lambda: eqopt.value_and_grad(_loss)(params=tree(), x=X[0])
    )
    with pytest.raises(TypeError, match="integer"):
        eqopt.value_and_grad(_loss, _any(0.5))


def _any(x: Any) -> Any:
    return x


@pytest.mark.parametrize(
    "arg",
    [jnp.arange(3), 3, True, {"n": 1.0, "f": jnp.tanh}, None, (), "text"],
    ids=lambda x: type(x).__name__,
)
def test_nothing_to_differentiate(arg: Any):
    def fn(x: Array, n: Any) -> Array:
        return jnp.sum(x)

    message = complaint(TypeError, lambda: eqopt.value_and_grad(fn, (0, 1))(X, arg))
    assert message.startswith("`n` has no floating-point or complex array to differentiate")


def test_arguments_are_named_as_the_function_does():
    def fn(x: Array, *others: Any) -> Array:
        return jnp.sum(x)

    args = (X, 1, 2)
    assert "`others[1]`" in complaint(TypeError, lambda: eqopt.value_and_grad(fn, 2)(*args))
    assert "`p`" in complaint(TypeError, lambda: eqopt.value_and_grad(Objective(X[0]).method)(2))
    assert "`args[0]`" in complaint(TypeError, lambda: eqopt.value_and_grad(max)(1, 2))


@pytest.mark.parametrize(
    ("out", "said"),
    [
        (lambda x: x, "float"),
        (lambda x: (x[0], 1), "a tuple of 2. To return `(value, aux)`, pass `has_aux=True`"),
        (lambda x: [x[0]], "a list of 1"),
        (lambda x: None, "None"),
        (lambda x: "text", "a str"),
        (lambda x: 3, "an int"),
        (lambda x: jnp.argmax(x), "int"),
        (lambda x: jnp.sum(x) > 0, "bool[]"),
        (lambda x: lax.complex(x[0], x[0]), "(`holomorphic=True` differentiates"),
    ],
)
def test_what_is_returned_must_be_one_real_number(out: Any, said: str):
    message = complaint(TypeError, lambda: eqopt.value_and_grad(out)(X[0]))
    assert message.startswith("`fun` must return one ") and said in message


@pytest.mark.parametrize("out", [lambda x: x[0], lambda x: (x[0],), lambda x: (x[0], 1, 2)])
def test_with_aux_a_pair_must_be_returned(out: Any):
    message = complaint(TypeError, lambda: eqopt.value_and_grad(out, has_aux=True)(X[0]))
    assert "`fun` must return a pair `(value, aux)`" in message


def test_holomorphic_functions_are_complex():
    z = tree(0, jnp.complex64)
    message = complaint(
        TypeError,
        lambda: eqopt.value_and_grad(lambda p: jnp.sum(p["a"]), holomorphic=True)({**z, "x": X}),
    )
    assert message.startswith("`p['x']` is float")
    message = complaint(
        TypeError,
        lambda: eqopt.value_and_grad(lambda p: jnp.sum(jnp.abs(p["a"])), holomorphic=True)(z),
    )
    assert message.startswith("`fun` must return one complex number") and "float" in message
