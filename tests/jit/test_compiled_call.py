"""The front door: what is traced anew and what is not, and what it gives within larger programs."""

import io
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.core import Tracer
from jaxtyping import Array

import eqopt
from eqopt.writing import AbstractTransformation
from tests.support.toolbox import assert_close, FLOAT, Tally, Traced, tree, values

PARAMS, GRADS = tree(), tree(7)
RATES = (0.1, 0.2, 0.05)


def quadratic(params: Any, scale: Any = 1.0, shift: Any = 0.0) -> Array:
    parts = jax.tree.map(lambda x: jnp.sum(jnp.square(x - shift)), params)
    return scale * sum(jax.tree.leaves(parts))


def _traced(opt: AbstractTransformation[Any]) -> tuple[Tally, AbstractTransformation[Any]]:
    tally = Tally()
    return tally, eqopt.Chain(opt, Traced(tally))


def test_without_compiling_all_is_the_same():
    # As one debugs. Nothing is compiled, so nobody is warned of compiling too often.
    opt = eqopt.LBFGS()
    compiled = opt.step(quadratic, PARAMS, opt.init(PARAMS), 2.0)
    with jax.disable_jit():
        for _ in range(5):
            assert_close(opt.step(quadratic, PARAMS, opt.init(PARAMS), 2.0), compiled)


# What never retraces.


@pytest.mark.parametrize("name", ["value", "loss", "scale"])
def test_python_numbers_are_data(name: str):
    tally, opt = _traced(eqopt.SGD(0.1))
    state = opt.init(PARAMS)
    for number in (1.0, 2.0, -3.5):
        given: dict[str, Any] = {name: number}
        _, state = opt.update(GRADS, state, PARAMS, **given)
    assert tally.num == 1
    (context,) = tally.seen
    assert isinstance(context.require(name, opt), Tracer)


def test_any_kind_of_number_as_value_is_one_program():
    tally, opt = _traced(eqopt.SGD(0.1))
    state = opt.init(PARAMS)
    kinds = (1.0, 2, np.array(3.0, FLOAT), FLOAT(4.0), jnp.asarray(5.0, FLOAT))
    for value in kinds:
        _, state = opt.update(GRADS, state, PARAMS, value=value)
    assert tally.num == 1


def test_flags_and_strings_as_extra_arguments_are_static():
    tally, opt = _traced(eqopt.SGD(0.1))
    state = opt.init(PARAMS)
    for flag, mode in ((True, "a"), (False, "a"), (False, "b"), (True, "a")):
        opt.update(GRADS, state, PARAMS, flag=flag, mode=mode)
    assert [(c.extra["flag"], c.extra["mode"]) for c in tally.seen] == [
        (True, "a"),
        (False, "a"),
        (False, "b"),
    ]


def test_numbers_deep_within_extra_arguments_are_data():
    tally, opt = _traced(eqopt.SGD(0.1))
    state = opt.init(PARAMS)
    for number in (1.0, 2.0):
        opt.update(GRADS, state, PARAMS, info={"losses": [number, 2 * number], "step": 3})
    assert tally.num == 1


def _as_built(rate: float) -> eqopt.AdamW:
    return eqopt.AdamW(rate)


def _by_tree_at(rate: float) -> eqopt.AdamW:
    return eqx.tree_at(lambda o: o.learning_rate, eqopt.AdamW(0.1), rate)


def _by_arithmetic(rate: float) -> eqopt.AdamW:
    opt: Any = eqopt.AdamW(0.1)
    return eqx.tree_at(lambda o: o.learning_rate, opt, opt.learning_rate * (rate / 0.1))


def _by_jax_arithmetic(rate: float) -> eqopt.AdamW:
    return eqx.tree_at(lambda o: o.learning_rate, eqopt.AdamW(0.1), jnp.asarray(rate) * 1)


def _by_weak_array(rate: float) -> eqopt.AdamW:
    return eqx.tree_at(lambda o: o.learning_rate, eqopt.AdamW(0.1), jnp.asarray(1.0) * 0 + rate)


def _by_replace(rate: float) -> eqopt.AdamW:
    return eqopt.AdamW(0.1).replace(learning_rate=rate)


def _by_jit(rate: float) -> eqopt.AdamW:
    return eqx.filter_jit(lambda o: o)(eqopt.AdamW(rate))


def _by_mapping(rate: float) -> eqopt.AdamW:
    doubled = jax.tree.map(lambda x: x * 2, eqopt.AdamW(rate / 2, b1=0.45, b2=0.4995))
    return eqx.tree_at(lambda o: [o.eps, o.weight_decay], doubled, [1e-8, 1e-4])


WAYS = [
    _as_built,
    _by_tree_at,
    _by_arithmetic,
    _by_jax_arithmetic,
    _by_weak_array,
    _by_replace,
    _by_jit,
    _by_mapping,
]


def _loss_and_traces() -> tuple[Callable[..., Array], list[None]]:
    traces: list[None] = []

    def loss(params: Any, scale: Any = 1.0, shift: Any = 0.0) -> Array:
        traces.append(None)
        return quadratic(params, scale, shift)

    return loss, traces


def test_a_new_rate_is_no_new_program_however_it_is_made():
    loss, traces = _loss_and_traces()
    state = _as_built(0.1).init(PARAMS)
    for rate in RATES:
        expected = _as_built(rate).step(loss, PARAMS, state, 1.0)
        for way in WAYS:
            got = way(rate).step(loss, PARAMS, state, 1.0)
            assert_close(got[0], expected[0])
    assert len(traces) == 1


@pytest.mark.parametrize("way", WAYS)
def test_every_optimizer_loads_whatever_was_saved(way: Callable[[float], eqopt.AdamW]):
    opt, fresh = way(0.2), eqopt.AdamW(0.3)
    before = opt, opt.init(PARAMS)
    for saved in (before, eqx.filter_jit(lambda *x: x)(*before)):
        file = io.BytesIO()
        eqx.tree_serialise_leaves(file, saved)
        file.seek(0)
        loaded, _ = eqx.tree_deserialise_leaves(file, (fresh, fresh.init(PARAMS)))
        assert eqx.tree_equal(loaded, eqopt.AdamW(0.2))


def test_data_in_arguments_are_no_new_program():
    loss, traces = _loss_and_traces()
    opt = eqopt.Adam(0.1)
    model, state = PARAMS, opt.init(PARAMS)
    for scale in (1.0, 2.0, 3.0):
        before = quadratic(model, scale)
        model, state, evaluation = opt.step(loss, model, state, scale)
        np.testing.assert_allclose(evaluation.value, before, rtol=1e-6)
    assert len(traces) == 1


_CACHE_PROGRAM = """
import os, sys
import jax, jax.numpy as jnp, eqopt
rate, folder = float(sys.argv[1]), sys.argv[2]
jax.config.update("jax_compilation_cache_dir", folder)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
loss = lambda p, x: jnp.sum(p["w"] ** 2) * x + jnp.sum(p["b"] ** 2)
opt = eqopt.AdamW(rate, b1=rate, weight_decay=rate)
state = opt.init(params)
opt.update(params, state, params)
opt.step(loss, params, state, rate)
print(sorted(x for x in os.listdir(folder) if x.endswith("-cache")))
"""


def test_three_rates_are_one_entry_of_the_persistent_cache(tmp_path: Path):
    entries = [
        subprocess.run(
            [sys.executable, "-c", _CACHE_PROGRAM, str(rate), str(tmp_path)],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for rate in RATES
    ]
    assert "jit__body" in entries[0]
    assert len(set(entries)) == 1


# What must be right, though it is made anew or reads from elsewhere.

SHIFT: Any = 0.0


def _reads_a_global(params: Any) -> Array:
    return quadratic(params, 1.0, SHIFT)


def _reads_it_through_a_helper(params: Any) -> Array:
    return 2 * _reads_a_global(params)


def _right(loss: Callable[[Any], Array], value: Any) -> bool:
    opt = eqopt.SGD(0.1)
    model, _, evaluation = opt.step(loss, PARAMS, opt.init(PARAMS))
    np.testing.assert_allclose(evaluation.value, value, rtol=1e-6)
    gradients = jax.grad(loss)(PARAMS)
    assert_close(model, jax.tree.map(lambda x, g: x - FLOAT(0.1) * g, PARAMS, gradients))
    return True


def test_fresh_lambdas_over_the_same_data_are_one_program():
    loss, traces = _loss_and_traces()
    opt = eqopt.SGD(0.1)

    def step(batch: Array) -> Any:
        return opt.step(lambda p: loss(p, 1.0, batch), PARAMS, opt.init(PARAMS))

    batches = [values((), seed) for seed in range(3)]
    for batch in batches:
        step(batch)
        _, _, evaluation = step(batch)
        np.testing.assert_allclose(evaluation.value, quadratic(PARAMS, 1.0, batch), rtol=1e-6)
    assert len(traces) == 3


class _Log:
    def __init__(self) -> None:
        self.num = 0


def test_what_the_objective_counts_is_no_input():
    log = _Log()

    def loss(params: Any) -> Array:
        log.num += 1
        return quadratic(params)

    opt = eqopt.SGD(0.1)
    for _ in range(3):
        opt.step(loss, PARAMS, opt.init(PARAMS))
    assert log.num == 1


def test_fresh_lambdas_with_defaults_are_right():
    for seed in range(2):
        batch = values((), seed)
        assert _right(lambda p, b=batch: quadratic(p, 1.0, b), quadratic(PARAMS, 1.0, batch))


@pytest.mark.filterwarnings("ignore:.*has been compiled")
@pytest.mark.parametrize("kind", [float, FLOAT, partial(jnp.asarray, dtype=FLOAT)])
def test_globals_that_are_rebound_are_right(monkeypatch: pytest.MonkeyPatch, kind: Any):
    for shift in (0.25, -0.5, 0.25):
        monkeypatch.setattr(sys.modules[__name__], "SHIFT", kind(shift))
        value = quadratic(PARAMS, 1.0, kind(shift))
        assert _right(_reads_a_global, value)
        assert _right(_reads_it_through_a_helper, 2 * value)


# Within larger programs.


def _two_steps(opt: Any, params: Any) -> Any:
    state = opt.init(params)
    for _ in range(2):
        updates, state = opt.update(jax.grad(quadratic)(params), state, params)
        params = eqopt.apply_updates(params, updates)
    return params


OPTS = [eqopt.AdamW(0.1), eqopt.Chain(eqopt.ClipByGlobalNorm(0.5), eqopt.SGD(0.1, 0.9))]
each = pytest.mark.parametrize("opt", OPTS, ids=["AdamW", "Chain"])


@each
def test_within_jit(opt: Any):
    assert_close(eqx.filter_jit(_two_steps)(opt, PARAMS), _two_steps(opt, PARAMS))


@each
def test_within_scan(opt: Any):
    def step(carry: Any, _: None) -> Any:
        params, state = carry
        updates, state = opt.update(jax.grad(quadratic)(params), state, params)
        return (eqopt.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (PARAMS, opt.init(PARAMS)), None, length=2)
    assert_close(params, _two_steps(opt, PARAMS))


@each
def test_within_vmap(opt: Any):
    several = jax.tree.map(lambda *x: jnp.stack(x), PARAMS, GRADS)
    got = jax.vmap(lambda p: _two_steps(opt, p))(several)
    assert_close(jax.tree.map(lambda x: x[0], got), _two_steps(opt, PARAMS))
    assert_close(jax.tree.map(lambda x: x[1], got), _two_steps(opt, GRADS))


@each
def test_step_within_jit_and_scan(opt: Any):
    def step(carry: Any, _: None) -> Any:
        params, state, evaluation = opt.step(quadratic, *carry)
        return (params, state), evaluation.value

    @eqx.filter_jit
    def run(params: Any) -> Any:
        return jax.lax.scan(step, (params, opt.init(params)), None, length=2)

    (params, _), losses = run(PARAMS)
    assert_close(params, _two_steps(opt, PARAMS))
    np.testing.assert_allclose(losses[0], quadratic(PARAMS), rtol=1e-6)


def test_a_step_is_one_program():
    """An eager step, update and init are each one compiled call, however many the links."""
    links = [eqopt.Scale(1.0), eqopt.ClipByGlobalNorm(1.0), eqopt.AdamW(0.1)] * 3
    opt = eqopt.Chain(*links)
    state = opt.init(PARAMS)
    tally, counted = _traced(opt)
    counted_state = counted.init(PARAMS)
    for _ in range(2):
        counted.update(GRADS, counted_state, PARAMS)
    assert tally.num == 1
    # Within somebody else's program it is no program of its own.
    jaxpr = jax.make_jaxpr(lambda g, s, p: opt.update(g, s, p))(GRADS, state, PARAMS)
    names = [str(eqn.params.get("name", "")) for eqn in jaxpr.eqns]
    assert "_body" not in names
