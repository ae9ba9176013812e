"""Models that follow another one: as optax's do, in their own dtypes, and whole."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqopt
from tests.support.toolbox import FLOAT, same, Tally, X64
from tests.support.trees import assert_near


def _model(seed: int, dtype: Any = FLOAT) -> dict[str, Any]:
    layer = eqx.nn.Linear(3, 2, dtype=dtype, key=jax.random.key(seed))
    return {"layer": layer, "count": jnp.asarray(seed), "name": "net", "act": jnp.tanh, "no": None}


def _numbers(model: Any) -> Any:
    return eqx.filter(model, eqx.is_inexact_array)


@pytest.mark.parametrize("step_size", [0.0, 0.3, 1.0])
def test_incremental_update(step_size: float):
    new, old = _model(1), _model(2)
    found = eqopt.incremental_update(new, old, step_size)
    theirs = optax.incremental_update(_numbers(new), _numbers(old), step_size)
    assert_near(_numbers(found), theirs, 1e-14 if X64 else 1e-6)
    assert same(*(eqx.filter(x, eqx.is_inexact_array, inverse=True) for x in (found, new)))


@pytest.mark.parametrize("steps", range(7))
def test_periodic_update(steps: int):
    new, old = _model(1), _model(2)
    found = eqopt.periodic_update(new, old, steps, 3)
    theirs = optax.periodic_update(_numbers(new), _numbers(old), jnp.asarray(steps), 3)
    assert same(_numbers(found), theirs)
    assert int(found["count"]) == (1 if steps % 3 == 0 else 2)
    assert found["act"] is jnp.tanh and found["name"] == "net"


def test_an_average_keeps_its_dtype():
    new, old = _model(1, jnp.bfloat16), _model(2, jnp.float32)
    found = eqopt.incremental_update(new, old, 0.25)
    x, y = np.float64(new["layer"].weight), np.float64(old["layer"].weight)
    assert found["layer"].weight.dtype == jnp.float32
    np.testing.assert_allclose(found["layer"].weight, 0.25 * x + 0.75 * y, rtol=1e-6, atol=1e-7)
    back = eqopt.incremental_update(old, new, 0.25)
    assert back["layer"].weight.dtype == jnp.bfloat16
    replaced = eqopt.periodic_update(new, old, 0, 2)
    assert same(replaced["layer"].weight, new["layer"].weight.astype(jnp.float32))


def test_what_counts_for_nothing_may_be_nan():
    bad, good = jnp.full(2, np.nan, FLOAT), jnp.ones(2, FLOAT)
    assert same(eqopt.incremental_update(bad, good, 0.0), good)
    assert same(eqopt.incremental_update(good, bad, 1.0), good)


def test_keys_go_along_with_their_period():
    new, old = {"key": jax.random.key(1)}, {"key": jax.random.key(2)}
    assert same(eqopt.periodic_update(new, old, 4, 2), new)
    assert same(eqopt.periodic_update(new, old, 5, 2), old)


def test_other_numbers_do_not_retrace():
    tally, new, old = Tally(), _model(1), _model(2)

    @eqx.filter_jit
    def both(new: Any, old: Any, size: Any, steps: Any, period: Any) -> Any:
        tally.num += 1
        follows = eqopt.incremental_update(new, old, size)
        return follows, eqopt.periodic_update(new, old, steps, period)

    for size, steps, period in ((0.1, 4, 2), (0.2, 5, 2), (0.3, 6, 4)):
        numbers = (jnp.asarray(size), jnp.asarray(steps), jnp.asarray(period))
        follows, replaced = both(new, old, *numbers)
        assert_near(_numbers(follows), _numbers(eqopt.incremental_update(new, old, size)), 1e-6)
        assert same(replaced["count"], eqopt.periodic_update(new, old, steps, period)["count"])
    assert tally.num == 1


def test_a_number_out_of_bounds_is_named():
    x, half = jnp.ones(2), np.asarray(1.5)
    with pytest.raises(ValueError, match="`step_size` must be at least 0 and at most 1; got 2"):
        eqopt.incremental_update(x, x, 2.0)
    with pytest.raises(ValueError, match="`update_period` must be from 1"):
        eqopt.periodic_update(x, x, 1, 0)
    with pytest.raises(ValueError, match="`steps` must be a whole number"):
        eqopt.periodic_update(x, x, half, 2)
    with pytest.raises(ValueError, match=r"`step_size` must be one number; got shape \(2,\)"):
        eqopt.incremental_update(x, x, x)


@pytest.mark.parametrize(
    ("old", "message"),
    [
        ({"a": jnp.ones(3)}, r"`old_tensors\['a'\]` is float\d+\[3\]; `new_tensors\['a'\]` is"),
        ({"a": None}, r"`old_tensors\['a'\]` is None; `new_tensors\['a'\]` is float\d+\[2\]"),
        ({"a": jnp.arange(2)}, r"`old_tensors\['a'\]` is int\d+\[2\]; "),
        ({"b": jnp.ones(2)}, r"missing, though `new_tensors` has it: `old_tensors\['a'\]`"),
    ],
)
def test_models_that_do_not_fit_are_refused_by_the_leafs_name(old: Any, message: str):
    new = {"a": jnp.ones(2)}
    with pytest.raises(ValueError, match=message):
        eqopt.incremental_update(new, old, 0.5)
    with pytest.raises(ValueError, match=message):
        eqopt.periodic_update(new, old, 1, 2)


def test_a_complex_model_is_not_followed_by_a_real_one():
    new, old = {"a": jnp.ones(2, jnp.complex64)}, {"a": jnp.ones(2, jnp.float32)}
    with pytest.raises(
        ValueError, match=r"`old_tensors\['a'\]` is float32\[2\]; .* complex64\[2\]"
    ):
        eqopt.incremental_update(new, old, 0.5)
    found = eqopt.incremental_update(old, new, 0.5)
    assert same(found["a"], new["a"])
