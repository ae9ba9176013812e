"""Wrappers in wrappers: what those inside are told, and what comes back out."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import example, given, HealthCheck, Phase, settings, strategies as st

import eqopt
from tests.support.expected_views import (
    called,
    digest_of,
    gradient_of,
    holds,
    numbers,
    objective_of,
    Seen,
    view_of,
)
from tests.support.random_nestings import (
    filled,
    GUARDED,
    holed,
    HOLES,
    Leaf,
    MODELS,
    Nesting,
    NESTINGS,
    shapes,
)
from tests.support.spies import kinds, objective, objective_with_aux, SpyState, WEIGHTS, Witness
from tests.support.toolbox import finite, FLOAT, types, X64
from tests.support.wrapper_views import (
    Bits,
    by_function,
    ByPlace,
    InFlatten,
    InLookahead,
    InMasked,
    InSAM,
    InSelective,
    InSplit,
)

NONE = Bits((False,))
# Also those that are names of fields, of arguments, and of what wrappers give to each other.
NAMES = ["inner", "params2", "inner_state", "states", "count", "fn", "labels", "transforms"]
NUMBERS = st.dictionaries(st.sampled_from(NAMES), st.sampled_from([0.5, 2.0, 3.25]), max_size=3)
TWO = [Leaf((2,), jnp.float32), {"b": Leaf((2,), jnp.complex64)}, Leaf((), jnp.float32)]
HALF = InMasked(Bits((True, True, False)), by_function, False)
FROZEN = InSelective(Bits((True, False, True)), ByPlace)
AWAY = InSAM(2, False, ())


def _settings(max_examples: int) -> Any:
    return settings(
        max_examples=max_examples,
        deadline=None,
        derandomize=True,
        # Not to explain, which takes minutes where an example takes a tenth of a second.
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )


@_settings(120)
@given(
    nesting=NESTINGS,
    model=MODELS,
    holes=HOLES,
    weight_holes=HOLES,
    aux=st.booleans(),
    extra=NUMBERS,
)
def test_everything_reaches_the_inside(
    nesting: Nesting, model: Any, holes: Bits, weight_holes: Bits, aux: bool, extra: Any
):
    """When tracing: which arguments, of which shapes, with which holes."""
    params = shapes(model)
    gradients, weights = holed(params, holes), holed(params, weight_holes)
    arrays = {**extra, "array": jax.ShapeDtypeStruct((3,), FLOAT), WEIGHTS: weights, "scale": 0.5}
    witness = Witness()
    opt = nesting.build(witness, tuple(arrays))
    state = eqx.filter_eval_shape(opt.init, params)

    def update(gradients: Any, state: Any, params: Any, value: Any, key: Any, arrays: Any) -> Any:
        return opt.update(
            gradients,
            state,
            params,
            value=value,
            grad=gradients,
            value_fn=objective_with_aux if aux else objective,
            key=key,
            word="nested",
            function=jnp.tanh,
            **arrays,
        )

    key = jax.eval_shape(jax.random.key, 0)
    value = jax.ShapeDtypeStruct((), FLOAT)
    args = (gradients, state, params, value, key, arrays)
    updates, new_state = eqx.filter_eval_shape(update, *args)

    assert types(new_state) == types(state)
    assert types(updates) == types(gradients)

    outside = Seen(view_of(holed(params, NONE)), view_of(gradients), view_of(weights))
    found = {name: [x for x in witness.sights if x.name == name] for name in _names(witness)}
    expected = {name: seen for name, seen, _ in nesting.spies(outside)}
    assert found.keys() == expected.keys()
    for name, seen in expected.items():
        for sight in found[name]:
            assert sight.params == kinds(seen.params)
            assert sight.grad == kinds(seen.given)
            assert sight.weights == kinds(seen.weights)
            assert sight.extra == {*arrays, "word", "function"}
            assert set(sight.statics) == {"nested", jnp.tanh}
            for own, atom in zip(sight.updates, seen.given, strict=True):
                assert (own is None) == (atom is None)
                if own is not None and atom is not None:
                    assert own[0] == atom.shape
                    # Its dtype may be wider, but of the same kind.
                    assert _is_complex(own[1]) == _is_complex(atom.dtype)
                    assert own[1].itemsize >= atom.dtype.itemsize


def _is_complex(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.complexfloating))


def _names(witness: Witness) -> set[str]:
    return {x.name for x in witness.sights}


@_settings(18)
@given(nesting=NESTINGS, model=MODELS, holes=HOLES, steps=st.booleans(), extra=NUMBERS)
# What is masked out of what is not frozen.
@example(Nesting((FROZEN, InLookahead(2, True), HALF)), TWO, NONE, False, {})
# Parameters that are elsewhere, inside, than the user's.
@example(Nesting((AWAY, HALF, InFlatten())), TWO, NONE, False, {})
@example(Nesting((AWAY, HALF, InSplit())), TWO, NONE, True, {})
def test_what_reaches_the_inside_is_what_was_given(
    nesting: Nesting, model: Any, holes: Bits, steps: bool, extra: Any
):
    """By the numbers, over several calls, of `update` and of `step`."""
    # `Flatten` keeps the state of a parameter without a gradient, also what `SAM` remembers of it.
    holes = NONE if steps or nesting.has(InFlatten, InSAM) else holes
    scale = 0.75
    models = [filled(model, seed) for seed in (0, 1, 2, 3)]
    params = [holed(x, NONE) for x in models]
    gradients = [holed(filled(model, seed), holes) for seed in (4, 5, 6, 7)]
    weights = [holed(filled(model, seed), NONE) for seed in (8, 9, 10, 11)]
    keys = [jax.random.key(seed) for seed in range(4)]
    # What may not be an argument of `update`, may be one of `step`.
    extra = {**extra, "updates": 4.5, "state": 5.5, "params": 6.5} if steps else extra
    names = (*extra, "array", WEIGHTS, "scale")
    opt = nesting.build(Witness(), names)
    state = opt.init(models[0])
    points = [numbers(x) for x in params]
    if steps:
        values = [objective_of(x, scale) for x in points]
        grads = [gradient_of(x, scale) for x in points]
    else:
        values = [2.0, 3.0, 1.5, 2.25]
        # Those of complex parameters, as `jax.grad` gives them, point downhill.
        grads = [numbers(jax.tree.map(jnp.conj, x)) for x in gradients]
    arrays = [np.arange(3, dtype=FLOAT) + i for i in range(4)]
    for i in range(4):
        now = {name: x + i for name, x in extra.items()}
        now = {**now, "array": arrays[i], WEIGHTS: weights[i], "scale": scale, "key": keys[i]}
        if steps:
            _, state, _ = opt.step(objective, models[i], state, **now)
        else:
            _, state = opt.update(
                gradients[i],
                state,
                models[i],
                value=values[i],
                grad=gradients[i],
                value_fn=objective,
                **now,
            )

    outside = Seen(view_of(params[0]), view_of(gradients[0]), view_of(weights[0]))
    assert nesting.wrong_updates(outside, state) == []
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, SpyState))
    found = {x.name: x for x in leaves if isinstance(x, SpyState)}
    half = any(x is not None and x.dtype == jnp.bfloat16 for x in view_of(params[0]))
    tolerance = 1e-2 if steps and half else 1e-12 if X64 and not steps else 1e-5
    for name, seen, gates in nesting.spies(outside):
        if gates is None:
            continue
        own = found[name]
        num, last, where, value = called(gates, points, values)
        assert own.num_calls == num
        if num == 0:
            continue
        assert holds(digest_of(_read(seen.params, where)), own.params, 1e-5)
        assert holds(value, own.value, 1e-6)
        assert holds(digest_of(_read(seen.given, grads[last])), own.grad, tolerance)
        assert holds(objective_of(where, scale), own.objective, 1e-5)
        np.testing.assert_array_equal(jax.random.key_data(keys[last]), own.key)
        of_weights = digest_of(_read(seen.weights, numbers(weights[last])))
        assert holds(of_weights, own.extra[WEIGHTS], 1e-5)
        assert holds(digest_of([arrays[last]]), own.extra["array"], 1e-5)
        for key, x in extra.items():
            assert holds(digest_of([np.asarray(x + last)]), own.extra[key], 1e-5)


def _read(view: Any, point: Any) -> list[Any]:
    return [None if x is None else x.read(point) for x in view]


@_settings(8)
@given(
    nesting=GUARDED, model=MODELS, where=st.integers(0, 4), bad=st.sampled_from([np.nan, np.inf])
)
def test_a_bad_number_does_not_pass_a_guard(nesting: Nesting, model: Any, where: int, bad: float):
    """Once in a while, in one leaf; the parameters are finite all along."""
    opt = nesting.build(Witness(), (WEIGHTS,))
    params, state = filled(model, 0), opt.init(filled(model, 0))
    for call in range(5):
        leaves, treedef = jax.tree.flatten(holed(filled(model, call + 1), NONE))
        if call == 1:
            leaves[where % len(leaves)] *= bad
        gradients = treedef.unflatten(leaves)
        updates, state = opt.update(
            gradients,
            state,
            params,
            value=1.0,
            grad=gradients,
            value_fn=objective,
            key=jax.random.key(0),
            weights=gradients,
            scale=0.5,
        )
        assert finite(updates)
        params = eqopt.apply_updates(params, updates)
        assert finite(holed(params, NONE))
