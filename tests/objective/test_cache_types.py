"""The types of what a line search remembers, what is traced, and what mistakes are named."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import eqopt
from tests.objective.test_cache import _recalled, BATCH, CALLS, distance, searching, with_aux, X0
from tests.support.toolbox import assert_close, DTYPES, FLOAT, same, types, X64

# The types, and what is traced.


def test_the_state_is_strongly_typed_and_a_train_step_compiles_once():
    opt, x = searching(), jnp.asarray(X0)
    traces = []

    @eqx.filter_jit
    def step(x: Array, state: Any) -> Any:
        traces.append(None)
        x, state, _ = opt.step(distance, x, state, BATCH)
        return x, state

    state = opt.init(x)
    assert all(not leaf.weak_type for leaf in jax.tree.leaves(state))
    for _ in range(3):
        before = types(state)
        x, state = step(x, state)
        assert types(state) == before
    assert len(traces) == 1


def test_ten_eager_steps_with_a_lambda_made_anew_compile_once():
    opt, x = searching(), jnp.asarray(X0)
    state = opt.init(x)
    CALLS.reset()
    data = jnp.asarray(BATCH)
    for _ in range(10):
        x, state, _ = opt.step(lambda x, data=data: distance(x, data), x, state)
    first = CALLS.traces
    for _ in range(10):
        x, state, _ = opt.step(lambda x: distance(x, data), x, state)
    assert first <= 2
    assert CALLS.traces <= 2 * first


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(dtype: Any):
    x = jnp.asarray(X0).astype(dtype)

    def loss(x: Array) -> Array:
        wide = x.astype(np.float32) if x.dtype.itemsize == 2 else x
        return jnp.sum(jnp.square(jnp.abs(wide)))

    opt = searching()
    state = opt.init(x)
    for _ in range(4):
        x, state, evaluation = opt.step(loss, x, state)
        assert x.dtype == dtype
        assert bool(state.states[1].cache.valid)
        # The value kept is, to the last bits, that at the point that was reached.
        kept = state.states[1].cache.evaluation.value
        np.testing.assert_allclose(kept, loss(x), rtol=1e-12 if X64 and x.dtype == FLOAT else 1e-5)
        assert float(kept) < float(evaluation.value)
        assert_close(state.states[1].cache.point, x, 0)


def test_l_bfgs_donates_and_is_small():
    opt, x = eqopt.LBFGS(memory_size=5), jnp.ones(1000, FLOAT)
    state = opt.init(x)
    copies = sum(leaf.size for leaf in jax.tree.leaves(state)) / x.size
    assert copies <= 2 * 5 + 6

    @eqx.filter_jit(donate="all")
    def step(x: Array, state: Any) -> Any:
        x, state, _ = opt.step(lambda x: jnp.sum(jnp.square(x - 3)), x, state)
        return x, state

    for _ in range(3):
        x, state = step(x, state)
    np.testing.assert_allclose(x, 3, rtol=1e-5)


# Who gets which argument.


def test_the_objective_gets_what_it_accepts_and_links_the_rest():
    class Wants(eqopt.writing.AbstractTransformation[eqopt.states.EmptyState]):
        def init_state(
            self, params: Any, context: eqopt.writing.Context
        ) -> eqopt.states.EmptyState:
            return eqopt.states.EmptyState()

        def transform(
            self,
            updates: Any,
            state: eqopt.states.EmptyState,
            params: Any,
            context: eqopt.writing.Context,
        ) -> Any:
            context.require("other", self)
            return updates, state

    def loose(x: Array, **kwargs: Any) -> Array:
        return distance(x, kwargs["y"])

    for fn in (distance, loose):
        opt, x = eqopt.Chain(Wants(), *searching().links), jnp.asarray(X0)
        value, grad = jax.value_and_grad(fn)(x, y=jnp.asarray(BATCH))
        updates, _ = opt.update(
            grad, opt.init(x), x, value=value, grad=grad, value_fn=fn, y=BATCH, other=1
        )
        assert fn(eqopt.apply_updates(x, updates), y=jnp.asarray(BATCH)) < value


def test_within_masked_the_objective_sees_all_parameters():
    params = {"w": jnp.asarray(X0), "b": jnp.ones(3, FLOAT)}

    def loss(p: Any) -> Array:
        return jnp.sum(jnp.square(CALLS.counted(p["w"]) * p["b"] - 1))

    opt = eqopt.Chain(
        eqopt.Masked(searching(), eqopt.ByPath("w")),
        eqopt.Masked(eqopt.SetToZero(), eqopt.ByPath("b")),
    )
    state = opt.init(params)
    for i in range(4):
        old = params
        CALLS.reset()
        params, state, evaluation = opt.step(loss, params, state)
        jax.effects_barrier()
        search = state.states[0].inner_state.states[1]
        assert CALLS.evaluations == int(search.info.num_linesearch_steps) + (i == 0)
        np.testing.assert_allclose(evaluation.value, loss(old), rtol=1e-5)
        assert loss(params) < loss(old)
        assert same(params["b"], old["b"])


def test_parameters_called_value_and_grad():
    params = {"value": jnp.asarray(X0), "grad": jnp.ones(3, FLOAT)}
    CALLS.reset()

    def loss(p: Any) -> Array:
        return jnp.sum(jnp.square(CALLS.counted(p["value"]) - p["grad"]))

    for opt in (searching(), eqopt.LBFGS()):
        stepped, state, _ = opt.step(loss, params, opt.init(params))
        assert CALLS.of(lambda s=state, p=stepped: _recalled(loss, p, s)) == 0


# Mistakes.


def _raises(match: str, run: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=match) as caught:
        run()
    assert len(str(caught.value).splitlines()) <= 10


def test_mistakes_are_named():
    x, recall = jnp.asarray(X0), eqopt.value_and_grad_from_state(distance)
    adam, opt = eqopt.Adam(0.1), searching()
    _raises("no line search", lambda: recall(x, BATCH, state=adam.init(x)))
    two = eqopt.Chain(opt, *opt.links)
    _raises("2 line searches", lambda: recall(x, BATCH, state=two.init(x)))
    storeless = eqopt.Chain(eqopt.SGD(1.0), eqopt.ScaleByBacktrackingLinesearch(15))
    _raises("store_grad=True", lambda: recall(x, BATCH, state=storeless.init(x)))
    _raises("argnums", lambda: eqopt.value_and_grad_from_state(distance, argnums=()))
    _raises("argnums", lambda: eqopt.value_and_grad_from_state(distance, argnums=(1, 1)))
    _raises("by position", lambda: recall(x=x, y=BATCH, state=opt.init(x)))
    _raises("has_aux=True", lambda: opt.step(with_aux, x, opt.init(x), BATCH, has_aux=True))
    made = opt.init(x, value_fn=with_aux, args=(BATCH,), has_aux=True)
    _raises("has_aux=True", lambda: opt.step(distance, x, made, BATCH))

    def other_aux(x: Array, y: Array) -> Any:
        return distance(x, y), {"point": x[:2]}

    _raises("aux", lambda: opt.step(other_aux, x, made, BATCH, has_aux=True))

    def odd_aux(x: Array, y: Array) -> Any:
        return distance(x, y), {"name": "x"}

    _raises(r"aux\['name'\]", lambda: opt.init(x, value_fn=odd_aux, args=(BATCH,), has_aux=True))
    grad = jax.grad(distance)(x, jnp.asarray(BATCH))
    _raises("needs `value`", lambda: opt.update(grad, opt.init(x), x, grad=grad, value_fn=distance))
    _raises("needs `value_fn`", lambda: opt.update(grad, opt.init(x), x, value=1.0, grad=grad))
    _raises("needs `grad`", lambda: opt.update(grad, opt.init(x), x, value=1.0, value_fn=distance))
    _raises("needs the parameters", lambda: opt.update(grad, opt.init(x)))
