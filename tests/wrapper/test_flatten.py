"""Parameters in another form: end to end as vectors, and complex ones as pairs of real ones."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import eqopt
from eqopt import ByNdim, Flatten
from eqopt.states import EmptyState
from eqopt.writing import AbstractTransformation, Context
from tests.support.parity import assert_same_steps
from tests.support.toolbox import assert_close, FLOAT, same, Tally, Traced, tree, values, X64
from tests.support.trees import conj, random_array, random_like, random_tree

NUM_STEPS = 60
TOLERANCE = 1e-12 if X64 else 5e-6
COMPLEX = np.result_type(FLOAT, np.complex64)


@functools.cache
def _problem(with_complex: bool) -> tuple[Any, Any]:
    rng = np.random.default_rng(5)
    params = random_tree(rng, FLOAT)
    if with_complex:
        params["complex"] = random_array(rng, (3, 2), COMPLEX)
    return params, random_like(rng, params, leading=(NUM_STEPS,))


def _compare(ours: Any, theirs: Any, with_complex: bool) -> None:
    params, gradients = _problem(with_complex)
    assert_same_steps(ours, theirs, params, gradients, TOLERANCE)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            # Not with 0.999, where `1 - decay**count`, as in optax, has no digits in float32.
            eqopt.Chain(eqopt.ClipByGlobalNorm(2.0), eqopt.AdamW(0.05, 0.8, 0.95)),
            optax.chain(optax.clip_by_global_norm(2.0), optax.adamw(0.05, 0.8, 0.95)),
        ),
        (eqopt.SGD(0.1, 0.9), optax.sgd(0.1, 0.9)),
    ],
    ids=["AdamW", "SGD"],
)
def test_flattened_trajectories_equal_those_of_optax(ours: Any, theirs: Any):
    _compare(Flatten(ours), optax.flatten(theirs), False)
    # With a dtype more, optax makes one vector of all: there is nothing to compare with but what
    # does without.
    _compare(Flatten(ours), theirs, True)


def test_split_trajectories_equal_those_of_optax():
    ours = eqopt.SplitRealAndImaginary(eqopt.Adam(0.05, 0.8, 0.95))
    theirs = optax.contrib.split_real_and_imaginary(optax.adam(0.05, 0.8, 0.95))
    _compare(ours, theirs, True)


# Dtypes, shapes, holes.


def _mixed() -> dict[str, Any]:
    return {
        "half": values((2, 3), 0, jnp.bfloat16),
        "number": values((), 1, jnp.float32),
        "other": values((4,), 2, jnp.bfloat16),
        "z": values((2,), 3, jnp.complex64),
        "none": None,
        "empty": jnp.zeros((0, 3), jnp.float32),
    }


class _Seen(AbstractTransformation[EmptyState]):
    """Notes what it is given."""

    tally: Tally = eqx.field(static=True)

    def init_state(self, params: Any, context: Context) -> EmptyState:
        return EmptyState()

    def transform(self, updates: Any, state: Any, params: Any, context: Context) -> Any:
        self.tally.seen.append(context)
        shapes = [(x.shape, x.dtype) for x in jax.tree.leaves(updates)]
        assert shapes == [(x.shape, x.dtype) for x in jax.tree.leaves(params)]
        assert shapes == [((1,), jnp.float32), ((10,), jnp.bfloat16), ((2,), jnp.complex64)]
        return updates, state


def test_one_vector_for_each_dtype_and_each_leaf_gets_its_own_back():
    """optax makes them all float32, or all complex, and leaves them so."""
    params = _mixed()
    opt = Flatten(_Seen(Tally()))
    updates, _ = opt.update(conj(params), opt.init(params), params)
    assert same(updates, params)


def test_half_precision_is_as_without():
    params, opt = _mixed(), eqopt.Chain(eqopt.Trace(0.9), eqopt.ClipByGlobalNorm(1.0))
    # After a link that has made some of the updates wider.
    wide = eqopt.Masked(eqopt.Scale(1.0 / 3), lambda p: jax.tree.map(lambda x: x.ndim == 1, p))
    ours, plain = eqopt.Chain(wide, Flatten(opt)), eqopt.Chain(wide, opt)
    state, expected_state = ours.init(params), plain.init(params)
    for _ in range(3):
        updates, state = ours.update(params, state, params)
        expected, expected_state = plain.update(params, expected_state, params)
        assert_close(updates, expected)


@pytest.mark.parametrize("params", [values((2, 3), 0), values((), 1), {}, {"a": None}, ()])
def test_one_leaf_and_none(params: Any):
    """optax has no empty tree: a ValueError."""
    inner = eqopt.Chain(eqopt.ClipByGlobalNorm(0.3), eqopt.Adam(0.1))
    wrapped: list[Any] = [Flatten(inner), eqopt.SplitRealAndImaginary(inner)]
    for opt in wrapped:
        updates, _ = opt.update(params, opt.init(params), params)
        expected, _ = inner.update(params, inner.init(params), params)
        assert_close(updates, expected)


def test_what_has_no_gradient_keeps_its_memory():
    params, both, opt = tree(), tree(7), Flatten(eqopt.Adam(0.1))
    missing = {"a": both["a"], "branch": {"b": None, "w": both["branch"]["w"]}}
    plain = eqopt.Adam(0.1)
    state, expected_state = opt.init(params), plain.init(params)
    for gradients in (both, missing, {"a": None, "branch": None}, both):
        updates, state = opt.update(gradients, state, params)
        expected, expected_state = plain.update(gradients, expected_state, params)
        assert_close(updates, expected)


@pytest.mark.parametrize("wrap", [Flatten, eqopt.SplitRealAndImaginary])
def test_a_state_of_other_parameters_is_refused(wrap: Any):
    params = tree()
    opt = wrap(eqopt.Trace(0.9))
    with pytest.raises(ValueError, match="made for 1 leaves; `updates` has 3"):
        opt.update(params, opt.init(params["a"]))


def test_a_state_of_other_shapes_is_refused():
    opt = Flatten(eqopt.Scale(2.0))
    state = opt.init({"a": jnp.ones((2, 3))})
    with pytest.raises(
        ValueError, match=r"`updates\['a'\]` has shape \(3, 2\); `state` was made for \(2, 3\)"
    ):
        opt.update({"a": jnp.ones((3, 2))}, state)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name)
def test_sharded(kind: AxisType):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    plain = {"matrix": values((8, 4), 0), "vector": values((6,), 1)}
    specs = {"matrix": PartitionSpec("x", "y"), "vector": PartitionSpec("y")}
    params = {k: jax.device_put(x, NamedSharding(mesh, specs[k])) for k, x in plain.items()}
    opt, inner = Flatten(eqopt.AdamW(0.1)), eqopt.AdamW(0.1)
    state = opt.init(params)
    for gradients in (params, {"matrix": params["matrix"], "vector": None}):
        updates, state = opt.update(gradients, state, params)
        for name, u in updates.items():
            assert u is None or u.sharding.is_equivalent_to(params[name].sharding, u.ndim)
    expected_state = inner.init(plain)
    _, expected_state = inner.update(plain, expected_state, plain)
    expected, _ = inner.update({**plain, "vector": None}, expected_state, plain)
    assert_close(jax.device_get(updates), jax.device_get(expected))


# What else is given: `grad` and trees like the parameters in the same form, and the objective as a
# function of it.


class _All(AbstractTransformation[EmptyState]):
    """Multiplies by everything that is a tree, and by the objective."""

    def init_state(self, params: Any, context: Context) -> EmptyState:
        return EmptyState()

    def transform(self, updates: Any, state: Any, params: Any, context: Context) -> Any:
        grad, weights = context.require("grad", self), context.require("weights", self)
        value_fn, other = context.require("value_fn", self), context.require("other", self)
        found = value_fn.evaluate(params)
        value, _ = value_fn(params)
        factor = value + found.value + context.require("probe", self) + other["x"].astype(FLOAT)
        out = jax.tree.map(
            lambda u, g, w, d: (u + g + w + jnp.conj(d)) * factor.astype(u.dtype),
            updates,
            grad,
            weights,
            found.grad,
        )
        return out, state


def _quartic(params: Any) -> Any:
    leaves = jax.tree.leaves(params)
    # Not symmetric in the real and the imaginary part.
    return sum(jnp.sum(jnp.real(x) ** 4 + 3 * jnp.imag(x) ** 2 * jnp.real(x)) for x in leaves)


@pytest.mark.parametrize(
    "wrap",
    [
        Flatten,
        eqopt.SplitRealAndImaginary,
        lambda inner: eqopt.SplitRealAndImaginary(Flatten(inner)),
        lambda inner: Flatten(eqopt.SplitRealAndImaginary(inner)),
        lambda inner: Flatten(Flatten(inner)),
    ],
    ids=["Flatten", "Split", "Split-Flatten", "Flatten-Split", "Flatten-Flatten"],
)
def test_all_that_is_given_comes_in_the_same_form(wrap: Any):
    params = {**tree(), "z": values((2,), 4, COMPLEX)}
    grad, weights = {**tree(3), "z": values((2,), 5, COMPLEX)}, jax.tree.map(jnp.sin, params)
    # An extra argument meets complex numbers as it is; updates and `grad` are conjugated.
    given: dict[str, Any] = {
        "grad": grad,
        "weights": weights,
        "value_fn": _quartic,
        "probe": jnp.asarray(0.5, FLOAT),
        "other": {"x": jnp.asarray(2)},
    }
    gradients = jax.tree.map(jnp.cos, params)
    plain, opt = _All(), wrap(_All())
    expected, _ = plain.update(gradients, plain.init(params), params, **given)
    updates, _ = opt.update(gradients, opt.init(params), params, **given)
    assert_close(updates, expected)


def test_a_number_is_no_tree_of_parameters():
    tally, x = Tally(), jnp.ones((), FLOAT)
    opt = Flatten(Traced(tally))
    opt.update(x, opt.init(x), x, value=x, probe=x)
    assert tally.seen[0].extra["probe"].shape == ()


# Searches inside.


def _bowl(p: Any) -> Any:
    scales = (1.0, 5.0, 20.0, 3.0)
    return sum(
        jnp.sum(s * jnp.square(jnp.abs(x - 1)))
        for s, x in zip(scales, jax.tree.leaves(p), strict=False)
    )


_SEARCHING = eqopt.Chain(eqopt.SGD(0.2), eqopt.ScaleByBacktrackingLinesearch(12, store_grad=True))


def _to_pairs(p: Any) -> Any:
    return {**p, "z": (p["z"].real, p["z"].imag)}


def _from_pairs(p: Any) -> Any:
    return {**p, "z": lax.complex(*p["z"])}


def _bowl_of_pairs(p: Any) -> Any:
    return _bowl(_from_pairs(p))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("wrap", "fn", "there", "back"),
    [
        (Flatten, _bowl, lambda p: p, lambda p: p),
        (eqopt.SplitRealAndImaginary, _bowl_of_pairs, _to_pairs, _from_pairs),
    ],
    ids=["Flatten", "Split"],
)
def test_a_line_search_inside(wrap: Any, fn: Any, there: Any, back: Any, masked: bool):
    """The points are those to which the search goes without, of pairs written by hand."""
    params = {"a": values((2, 3), 0), "b": values((3,), 1), "z": values((2,), 4, COMPLEX)}
    ours, plain = wrap(_SEARCHING), _SEARCHING
    if masked:
        ours, plain = (eqopt.SelectiveTransform(x, eqopt.ByPath("b")) for x in (ours, plain))

    @eqx.filter_jit
    def step(opt: Any, fn: Any, params: Any, state: Any) -> Any:
        return opt.step(fn, params, state)

    state, moved = ours.init(params), params
    expected = there(params)
    expected_state = plain.init(expected)
    for _ in range(6):
        moved, state, found = step(ours, _bowl, moved, state)
        expected, expected_state, evaluation = step(plain, fn, expected, expected_state)
        assert_close(found.value, evaluation.value, 1e-9 if X64 else 1e-3)
        assert_close(moved, back(expected), 1e-9 if X64 else 1e-3)
    frozen = 5 * float(jnp.sum(jnp.square(params["b"] - 1))) if masked else 0.0
    assert _bowl(moved) - frozen < 0.5 * (_bowl(params) - frozen)
    assert not masked or same(moved["b"], params["b"])


def test_minimize_with_vectors():
    params = {"a": values((2, 3), 0), "b": values((3,), 1)}
    solution = eqopt.minimize(_bowl, Flatten(eqopt.LBFGS()), params, max_steps=60)
    for x in jax.tree.leaves(solution.params):
        np.testing.assert_allclose(x, 1.0, atol=1e-5 if X64 else 1e-3)


def test_a_search_inside_keeps_aux():
    def fn(p: Any) -> Any:
        return _bowl(p), {"norm": eqopt.global_norm(p)}

    params, opt = tree(), Flatten(_SEARCHING)
    state = opt.init(params, value_fn=fn, has_aux=True)
    for _ in range(2):
        new, state, evaluation = opt.step(fn, params, state, has_aux=True)
        assert_close(evaluation.aux["norm"], eqopt.global_norm(params))
        assert _bowl(new) < _bowl(params)
        params = new


def test_what_asks_for_dimensions_belongs_outside():
    """As the warning says: inside, there are vectors only."""
    params = tree()
    zeros = jax.tree.map(jnp.zeros_like, params)
    decay = eqopt.AddDecayedWeights(0.5, ByNdim(2))
    with pytest.raises(ValueError, match="`AddDecayedWeights` within `Flatten` makes no sense"):
        Flatten(decay)
    outside = eqopt.Chain(Flatten(eqopt.Scale(1.0)), decay)
    updates, _ = outside.update(zeros, outside.init(params), params)
    assert_close(updates["a"], params["a"] / 2)
    assert same(updates["branch"]["b"], zeros["branch"]["b"])


# The convention of gradients: inside, the parts are the derivatives by each of them.


def test_the_parts_of_a_complex_parameter_are_two_parameters():
    """Closed form. optax wants the gradient conjugated by hand."""
    z = jnp.asarray([1 + 2j, -3 + 0.5j], COMPLEX)
    opt = eqopt.SplitRealAndImaginary(eqopt.SGD(0.1))

    def loss(z: Any) -> Any:
        return jnp.sum(2 * jnp.real(z) ** 2 + 3 * jnp.imag(z))  # derivatives 4x and 3

    updates, _ = opt.update(jax.grad(loss)(z), opt.init(z), z)
    np.testing.assert_allclose(updates, -0.1 * (4 * np.array([1, -3]) + 3j), rtol=1e-6)


def test_each_part_is_scaled_by_itself():
    z = jnp.asarray([1e-3 + 100j], COMPLEX)
    gradients = z  # of real and imaginary part: 1e-3 and -100
    opt = eqopt.SplitRealAndImaginary(eqopt.Adam(0.1, eps=0.0))
    updates, _ = opt.update(gradients, opt.init(z), z)
    np.testing.assert_allclose(updates, [-0.1 + 0.1j], rtol=1e-5)


def test_an_infinite_part_leaves_the_other_alone():
    """`real + 1j * imag`, as in optax, makes a NaN of it."""
    z = lax.complex(jnp.ones(1, FLOAT), jnp.full(1, np.inf, FLOAT))
    opt = eqopt.SplitRealAndImaginary(eqopt.Scale(1.0))
    updates, _ = opt.update(jnp.conj(z), opt.init(z), z)
    assert same(updates, z)
