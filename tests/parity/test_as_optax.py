"""Our transformations among optax's."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import eqopt
from eqopt.states import EmptyState
from eqopt.writing import AbstractTransformation, Context
from tests.support.interop import (
    falling,
    labels,
    PROBED,
    Probed,
    problem,
    run_ours,
    run_theirs,
    TOLERANCE,
)
from tests.support.toolbox import FLOAT, same, Tally, Traced, types
from tests.support.trees import assert_near, conj, is_matrix

PAIRS = {
    "AdamW": (eqopt.AdamW(1e-2), optax.adamw(1e-2)),
    "AdamW-mask": (
        eqopt.AdamW(1e-2, weight_decay=0.1, mask=eqopt.ByNdim(2)),
        optax.adamw(1e-2, weight_decay=0.1, mask=is_matrix),
    ),
    "SGD": (eqopt.SGD(falling, 0.9), optax.sgd(falling, 0.9)),
    "Lion": (eqopt.Lion(1e-2), optax.lion(1e-2)),
}
every_pair = pytest.mark.parametrize("name", PAIRS)


@every_pair
def test_as_optax_in_a_chain(name: str):
    ours, theirs = PAIRS[name]
    params, gradients = problem()
    clip = optax.clip_by_global_norm(3.0)
    mixed = run_theirs(optax.chain(clip, eqopt.as_optax(ours)), params, gradients)
    assert_near(mixed, run_theirs(optax.chain(clip, theirs), params, gradients), TOLERANCE)


WRAPPERS = {
    "masked": lambda tx: optax.masked(tx, is_matrix),
    "masked-branch": lambda tx: optax.masked(
        tx, {"kernel": True, "layers": False, "pair": True, "complex": True}
    ),
    "partition": lambda tx: optax.partition({"adam": tx, "sgd": optax.sgd(0.1)}, labels),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 2),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
    "named_chain": lambda tx: optax.named_chain(("one", tx), ("two", optax.scale(0.5))),
    "schedule_free": lambda tx: optax.contrib.schedule_free(tx, 0.1),
    "mechanize": lambda tx: optax.contrib.mechanize(tx),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_as_optax_in_wrappers(wrapper: str):
    params, gradients = problem(wrapper)
    wrap, (ours, theirs) = WRAPPERS[wrapper], PAIRS["AdamW"]
    left = run_theirs(wrap(eqopt.as_optax(ours)), params, gradients)
    assert_near(left, run_theirs(wrap(theirs), params, gradients), TOLERANCE)


def test_hyper_parameters_of_as_optax_are_injected():
    def ours(learning_rate: Any) -> optax.GradientTransformation:
        return eqopt.as_optax(eqopt.SGD(learning_rate))

    params, gradients = problem("inject_hyperparams")
    schedule = optax.linear_schedule(0.1, 0.0, 9)
    a, b = (optax.inject_hyperparams(x)(learning_rate=schedule) for x in (ours, optax.sgd))
    assert_near(run_theirs(a, params, gradients), run_theirs(b, params, gradients), TOLERANCE)


def test_state_of_as_optax_is_mapped_by_optax():
    params, _ = problem()
    tx = eqopt.as_optax(eqopt.Adam(0.1))
    state: Any = optax.tree_map_params(tx, lambda x: x + 1, tx.init(params))
    moments, rate = state.states
    assert all(bool(jnp.all(x == 1)) for x in jax.tree.leaves((moments.mu, moments.nu)))
    assert int(moments.count) == int(rate.count) == 0


def test_extra_arguments_of_optax_reach_ours():
    params, gradients = problem()
    probe = jnp.asarray(0.3, FLOAT)
    for wrap in (optax.chain, WRAPPERS["masked"], WRAPPERS["apply_if_finite"]):
        ours, theirs = wrap(eqopt.as_optax(Probed())), wrap(PROBED)
        left = run_theirs(ours, params, gradients, probe=probe)
        assert_near(left, run_theirs(theirs, params, gradients, probe=probe), TOLERANCE)
    tx = optax.chain(optax.scale(1.0), eqopt.as_optax(Probed()))
    with pytest.raises(ValueError, match="`Probed` needs `probe`"):
        tx.update(gradients[0], tx.init(params), params)


class Told(AbstractTransformation[EmptyState]):
    """Replaces the updates by the gradient that came as an extra argument, beside all others."""

    def init_state(self, params: Any, context: Context) -> EmptyState:
        return EmptyState()

    def transform(
        self, updates: Any, state: EmptyState, params: Any, context: Context
    ) -> tuple[Any, EmptyState]:
        assert all(x is not None for x in (context.value, context.value_fn, context.key))
        assert context.extra == {"name": "x"}
        return context.grad, state


@pytest.mark.parametrize("wrapper", ["apply_if_finite", "masked", "masked-branch"])
def test_all_that_optax_passes_arrives(wrapper: str):
    tx = WRAPPERS[wrapper](eqopt.as_optax(Told()))
    params, (gradient, other, *_) = problem()
    extra = {"value": jnp.ones(()), "value_fn": jnp.sum, "key": jax.random.key(0), "name": "x"}
    updates, _ = tx.update(conj(gradient), tx.init(params), params, grad=conj(other), **extra)
    # What is masked in the parameters is masked in the gradient.
    kept = jax.tree.map(lambda x: wrapper != "masked" or x.ndim >= 2, params)
    if wrapper == "masked-branch":
        kept["layers"] = jax.tree.map(lambda x: False, params["layers"])
    pick = jax.tree.map(lambda keep, x, y: x if keep else y, kept, other, gradient)
    assert same(updates, conj(pick))


def test_as_optax_casts_to_the_dtypes_of_the_parameters():
    def widen(updates: Any, params: Any) -> Any:
        return jax.tree.map(lambda u: u.astype(jnp.float32), updates)

    params: Any = {"w": jnp.ones(3, jnp.bfloat16), "none": None}
    gradient: Any = {"w": jnp.asarray([0.5, -2.0, 3.0], jnp.bfloat16), "none": None}
    opt = eqopt.Adam(0.1)
    tx = optax.chain(optax.stateless(widen), eqopt.as_optax(opt))
    updates, _ = tx.update(gradient, tx.init(params), params)
    assert same(updates, opt.update(gradient, opt.init(params), params)[0])
    # What does not fit is named, as ever.
    with pytest.raises(ValueError, match=r"`updates\['w'\]` has shape \(2,\)"):
        tx.update({**gradient, "w": jnp.ones(2)}, tx.init(params), params)


@every_pair
def test_state_of_as_optax_is_a_fixed_point(name: str):
    tally = Tally()
    tx = optax.chain(eqopt.as_optax(PAIRS[name][0]), eqopt.as_optax(Traced(tally)))
    params, gradients = problem()
    state = jax.jit(tx.init)(params)
    update = jax.jit(tx.update)
    _, after = update(gradients[0], state, params)
    assert types(after) == types(state) == types(tx.init(params))
    update(gradients[1], after, params)
    assert tally.num == 1


def test_as_optax_without_parameters():
    params, gradients = problem()
    tx = eqopt.as_optax(eqopt.Adam(0.1))
    without, _ = tx.update(gradients[0], tx.init(params))
    assert_near(without, tx.update(gradients[0], tx.init(params), params)[0], TOLERANCE)


def test_there_and_back():
    tx = optax.adam(0.1)
    assert eqopt.as_optax(eqopt.from_optax(tx)) == tx
    plain = eqopt.as_optax(eqopt.from_optax(optax.scale(2.0)))
    assert isinstance(plain, optax.GradientTransformationExtraArgs)
    assert type(plain.init({})) is optax.ScaleState

    params, gradients = problem()
    opt = eqopt.AdamW(0.1)
    back = eqopt.from_optax(eqopt.as_optax(opt))
    assert_near(run_ours(back, params, gradients), run_ours(opt, params, gradients), TOLERANCE)


def test_what_as_optax_refuses():
    wrong: Any
    for wrong in (3, eqopt.SGD, optax.sgd(0.1)):
        with pytest.raises(TypeError, match="must be one of eqopt's"):
            eqopt.as_optax(wrong)


def test_without_optax():
    program = """
import sys
sys.modules["optax"] = None
import eqopt
for function in (eqopt.as_optax, eqopt.from_optax):
    try:
        function(eqopt.SGD(0.1))
    except ImportError as e:
        assert "eqopt[optax]" in str(e)
    else:
        raise AssertionError
"""
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root)
