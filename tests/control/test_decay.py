"""Decay, factors by path, and signs that must agree: what they choose, and mistakes."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqopt
from eqopt import ByNdim, ByPath, control
from tests.support.toolbox import assert_close, FLOAT, same, tree, values

untyped: Any = eqopt.control
PARAMS, GRADS = tree(0), tree(5)
RTOL = 1e-6


def _updates(opt: Any, params: Any = PARAMS, grads: Any = GRADS) -> Any:
    return opt.update(grads, opt.init(params), params)[0]


# Factors by path


def test_the_first_selector_decides():
    table = {ByPath("branch.w"): 3.0, ByPath("branch.**"): 5.0, ...: 0.5}
    updates = _updates(control.Multiply(table))
    np.testing.assert_allclose(updates["a"], 0.5 * GRADS["a"])
    np.testing.assert_allclose(updates["branch"]["b"], 5 * GRADS["branch"]["b"])
    np.testing.assert_allclose(updates["branch"]["w"], 3 * GRADS["branch"]["w"])


def test_other_parameters_have_the_factor_one():
    updates = _updates(control.Multiply({ByPath("branch.w"): 0.0}))
    assert same(updates["a"], GRADS["a"])
    assert not np.any(updates["branch"]["w"])


def test_factors_are_learning_rates_by_path():
    """As with one optimizer for each group, but with one state and one count."""
    table = {ByPath("a"): 0.3, ByPath("branch.b"): 2.0}
    rate = eqopt.Linear(0.1, 0.02, 4)
    opt = eqopt.Chain(eqopt.AdamW(rate, weight_decay=0.1), control.Multiply(table))
    groups = eqopt.Partition(
        {
            selector: eqopt.AdamW(eqopt.Linear(0.1 * c, 0.02 * c, 4), weight_decay=0.1)
            for selector, c in (*table.items(), (..., 1.0))
        }
    )
    one, several = PARAMS, PARAMS
    state, states = opt.init(one), groups.init(several)
    for i in range(4):
        updates, state = opt.update(tree(i), state, one)
        one = eqopt.apply_updates(one, updates)
        updates, states = groups.update(tree(i), states, several)
        several = eqopt.apply_updates(several, updates)
    assert_close(one, several, 1e-5)
    assert len([x for x in jax.tree.leaves(state) if x.shape == ()]) == 2


def test_factors_are_numbers_that_do_not_recompile():
    opt = control.Multiply({ByPath("a"): 0.3})

    @eqx.filter_jit
    def update(opt: Any, grads: Any) -> Any:
        traces.append(0)
        return opt.update(grads, opt.init(PARAMS), PARAMS)[0]

    traces: list[int] = []
    changed = eqx.tree_at(lambda o: o.factors.values[0], opt, np.asarray(0.7, FLOAT)[()])
    np.testing.assert_allclose(update(opt, GRADS)["a"], 0.3 * GRADS["a"], rtol=RTOL)
    np.testing.assert_allclose(update(changed, GRADS)["a"], 0.7 * GRADS["a"], rtol=RTOL)
    assert len(traces) == 1


def test_missing_gradients_stay_missing():
    grads = {**GRADS, "a": None}
    for opt in (
        control.Multiply({ByNdim(2): 3.0}),
        control.DecayWeights(0.1, factors={ByPath("a"): 2.0}),
        control.CautiousUpdates(eqopt.Trace(0.9)),
        control.Graft(eqopt.SGD(0.1), eqopt.Adam(0.1)),
    ):
        updates = _updates(opt, grads=grads)
        assert updates["a"] is None
        assert updates["branch"]["b"] is not None


# Decay


def test_decay_of_some_parameters_by_their_factors():
    opt = control.DecayWeights(0.25, ByNdim(2), {ByPath("branch.w"): 2.0, ...: 0.5})
    updates = _updates(opt)
    assert same(updates["branch"]["b"], GRADS["branch"]["b"])
    expected = GRADS["a"] - 0.125 * PARAMS["a"]
    np.testing.assert_allclose(updates["a"], expected, rtol=RTOL)
    expected = GRADS["branch"]["w"] - 0.5 * PARAMS["branch"]["w"]
    np.testing.assert_allclose(updates["branch"]["w"], expected, rtol=RTOL)


def test_adam_c_is_adam_w_at_the_highest_rate():
    opt = control.AdamC(0.05, 0.05, weight_decay=0.1)
    assert_close(_updates(opt), _updates(eqopt.AdamW(0.05, weight_decay=0.1)), 1e-5)


def test_adam_c_decays_what_a_normalization_follows_less_below_it():
    opt = control.AdamC(0.05, 0.2, weight_decay=0.1, normalized=ByNdim(2))
    updates, plain = _updates(opt), _updates(eqopt.AdamW(0.05, weight_decay=0.1))
    less = _updates(eqopt.AdamW(0.05, weight_decay=0.1 * 0.05 / 0.2))
    assert_close(updates["branch"]["b"], plain["branch"]["b"], 1e-5)
    assert_close(updates["a"], less["a"], 1e-5)


def test_a_schedule_of_decay_is_elementwise():
    rate = eqopt.Linear(0.1, 0.3, 2)
    counts = jnp.arange(4)
    found = control.DecayByRate(0.5, rate, 0.2)(counts)
    np.testing.assert_allclose(found, 0.5 * np.asarray([0.1, 0.2, 0.3, 0.3]) ** 2 / 0.2, rtol=RTOL)
    np.testing.assert_allclose(control.DecayByRate(0.5, 0.1)(counts), [0.05] * 4, rtol=RTOL)


@pytest.mark.parametrize("zeros_decay", [True, False])
def test_cautious_decay_where_the_update_is_zero(zeros_decay: bool):
    params = {"x": jnp.asarray([1.0, -1.0, 1.0, -1.0, 0.0], FLOAT)}
    grads = {"x": jnp.asarray([2.0, 2.0, 0.0, 0.0, 2.0], FLOAT)}
    opt = control.AddCautiousDecayedWeights(0.5, zeros_decay=zeros_decay)
    expected = [2.5, 2.0, 0.5, -0.5, 2.0] if zeros_decay else [2.5, 2.0, 0.0, 0.0, 2.0]
    np.testing.assert_allclose(_updates(opt, params, grads)["x"], expected)


# Signs


def test_signs_are_compared_and_not_products():
    tiny = float(jnp.finfo(FLOAT).tiny) * 4
    params = {"x": jnp.zeros(2, FLOAT)}
    grads = {"x": jnp.asarray([tiny, -tiny], FLOAT)}
    opt = control.CautiousUpdates(eqopt.Scale(0.5), None)
    np.testing.assert_array_equal(_updates(opt, params, grads)["x"], 0.5 * grads["x"])


def test_complex_entries_agree_below_ninety_degrees():
    grads = {"x": jnp.asarray([1 + 1j, 1 + 1j, 1 + 1j], jnp.complex64)}
    # Averages with the gradient before: 10, 80 and 100 degrees away from this one.
    turned = jnp.asarray(np.exp(1j * np.deg2rad([10.0, 80.0, 100.0])), jnp.complex64)

    class Turn(eqx.Module):
        def __call__(self, updates: Any, params: Any) -> Any:
            return {"x": updates["x"] * turned}

    opt = control.CautiousUpdates(eqopt.Stateless(Turn()), None)
    updates = _updates(opt, grads, grads)
    assert [bool(x) for x in updates["x"] != 0] == [True, True, False]


def test_no_entry_agrees():
    params = {"x": values((2, 3), 0)}
    for rescale in (control.over_mean, control.over_count, control.over_next_count, None):
        opt = control.CautiousUpdates(eqopt.Scale(-1.0), rescale)
        assert not np.any(_updates(opt, params, params)["x"])


def test_a_rescaling_of_ones_own():
    opt = control.CautiousUpdates(eqopt.Trace(0.0), lambda kept, size: 3 * kept / size)
    np.testing.assert_allclose(_updates(opt)["a"], 3 * GRADS["a"], rtol=RTOL)


# Mistakes


@pytest.mark.parametrize(
    ("build", "error", "words"),
    [
        (lambda: untyped.Multiply([1.0]), TypeError, "`factors` must be a dictionary"),
        (lambda: untyped.Multiply({"a": 1.0}), TypeError, "keys of `factors` are selectors.*'a'"),
        (lambda: untyped.Multiply({...: -1.0}), ValueError, "`factors` must be at least 0"),
        (lambda: untyped.DecayWeights(1.5), ValueError, "`decay` must be at least 0 and at most 1"),
        (lambda: untyped.DecayWeights(0.1, factors=3), TypeError, "`factors` must be a dictionary"),
        (lambda: untyped.DecayByRate(0.1, 0.1, 0.0), ValueError, "`max_learning_rate` must be"),
        (lambda: untyped.AddCautiousDecayedWeights(-1.0), ValueError, "`weight_decay` must be"),
        (lambda: untyped.CautiousUpdates(3), TypeError, "`inner` must be a transformation"),
        (
            lambda: untyped.CautiousUpdates(eqopt.Trace(0.9), "mean"),
            TypeError,
            r"`rescale` must be `eqopt\.control\.over_mean`",
        ),
        (
            lambda: control.CautiousUpdates(eqopt.AdamW(0.1)),
            ValueError,
            "`ScaleByLearningRate` within `CautiousUpdates` makes no sense: it turns the sign",
        ),
    ],
)
def test_mistakes_when_built(build: Any, error: Any, words: str):
    with pytest.raises(error, match=words):
        build()


NOTHING = ByPath("branch.c")


@pytest.mark.parametrize(
    "opt",
    [
        control.Multiply({NOTHING: 2.0}),
        control.DecayWeights(0.1, factors={NOTHING: 2.0}),
        control.DecayWeights(0.1, NOTHING),
        control.AddCautiousDecayedWeights(0.1, NOTHING),
        control.ReduceVariance(mask=NOTHING),
        control.ScaleByStableAdam(mask=NOTHING),
        control.QKClip(NOTHING, None, 1),
        control.QKClip(ByPath("a"), NOTHING, 1),
        control.AdamH(0.1, matrices=NOTHING),
        control.AdamC(0.1, 0.1, normalized=NOTHING),
    ],
    ids=lambda x: type(x).__name__,
)
def test_a_selector_that_matches_nothing(opt: Any):
    with pytest.raises(ValueError, match=r"`ByPath`: 'branch\.c' matches the path of no"):
        opt.init(PARAMS)
