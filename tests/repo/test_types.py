"""What a type checker knows. Checked by pyright where it stands, and run to see that it is true."""

from typing import Any, assert_type

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

import eqopt
from eqopt import Chain, Evaluation, Masked, Optimizer, Scheduled
from eqopt.states import (
    ApplyIfFiniteState,
    ChainState,
    EmptyState,
    FlattenState,
    LookaheadState,
    MaskedState,
    MultiStepsState,
    ParamEMAState,
    SAMState,
    ScaleByAdamState,
    ScaleByLearningRateState,
    ScheduledState,
    SelectiveTransformState,
    SplitRealAndImaginaryState,
    TraceState,
)
from eqopt.writing import AbstractTransformation
from tests.support.toolbox import FLOAT

MODEL = eqx.nn.MLP(3, 2, 4, 1, dtype=FLOAT, key=jax.random.key(0))


def loss(model: eqx.nn.MLP, x: Array) -> Array:
    return jnp.sum(jnp.square(model(x)))


def loss_and_size(model: eqx.nn.MLP, x: Array) -> tuple[Array, int]:
    return loss(model, x), x.size


def test_the_model_keeps_its_type():
    x = jnp.ones(3, FLOAT)
    opt = eqopt.AdamW(1e-3)
    state = opt.init(MODEL)
    gradients = eqx.filter_grad(loss)(MODEL, x)

    updates, state = opt.update(gradients, state, MODEL)
    model = eqopt.apply_updates(MODEL, updates)
    assert_type(model, eqx.nn.MLP)
    assert type(model) is eqx.nn.MLP

    model, state, evaluation = opt.step(loss, model, state, x)
    assert_type(model, eqx.nn.MLP)
    assert_type(evaluation, Evaluation[Any])
    assert_type(evaluation.value, Array)
    assert type(model) is eqx.nn.MLP and isinstance(evaluation, Evaluation)

    model, state, evaluation = opt.step(loss_and_size, model, state, x, has_aux=True)
    assert_type(model, eqx.nn.MLP)
    assert evaluation.aux == 3

    tree = {"w": jnp.ones(3, FLOAT)}
    assert_type(eqopt.apply_updates(tree, tree), dict[str, Array])


def test_updates_have_the_type_of_the_gradients():
    opt = eqopt.SGD(1e-3)
    gradients = {"w": jnp.ones(3, FLOAT)}
    updates, _ = opt.update(gradients, opt.init(gradients), gradients)
    assert_type(updates, dict[str, Array])
    assert type(updates) is dict


def test_a_chain_is_typed_by_its_links():
    chain = Chain(eqopt.ClipByGlobalNorm(1.0), eqopt.ScaleByAdam(), eqopt.ScaleByLearningRate(1e-3))
    state = chain.init(MODEL)
    assert_type(state, ChainState[tuple[EmptyState, ScaleByAdamState, ScaleByLearningRateState]])
    _, adam, rate = state.states
    assert_type(adam, ScaleByAdamState)
    assert_type(rate.count, Array)
    assert isinstance(adam, ScaleByAdamState) and isinstance(rate, ScaleByLearningRateState)

    gradients = jax.tree.map(jnp.ones_like, eqx.filter(MODEL, eqx.is_inexact_array))
    _, state = chain.update(gradients, state, MODEL)
    assert_type(state, ChainState[tuple[EmptyState, ScaleByAdamState, ScaleByLearningRateState]])
    _, state, _ = chain.step(loss, MODEL, state, jnp.ones(3, FLOAT))
    assert_type(state, ChainState[tuple[EmptyState, ScaleByAdamState, ScaleByLearningRateState]])

    nested = Chain(chain, eqopt.Trace(0.9))
    inner, trace = nested.init(MODEL).states
    assert_type(trace, TraceState)
    assert_type(inner.states[1], ScaleByAdamState)
    assert isinstance(inner.states[1], ScaleByAdamState)

    several = [eqopt.Scale(2.0), eqopt.Scale(3.0)]
    assert_type(Chain(*several).init(MODEL), ChainState[tuple[Any, ...]])
    assert Chain().init(MODEL).states == ()


def test_wrappers_are_typed_by_what_they_wrap():
    masked = Masked(eqopt.ScaleByAdam(), eqopt.ByNdim(2))
    assert_type(masked.init(MODEL), MaskedState[ScaleByAdamState])
    scheduled = Scheduled(eqopt.Trace(0.9), lambda t: t.decay, lambda count: 0.9)
    assert_type(scheduled.init(MODEL), ScheduledState[TraceState])
    both = Chain(masked, scheduled)
    first, second = both.init(MODEL).states
    assert_type(first.inner_state.count, Array)
    assert_type(second.inner_state, TraceState)
    assert isinstance(first.inner_state, ScaleByAdamState)
    assert isinstance(second.inner_state, TraceState)


def test_optimizers_are_typed_by_their_composition():
    state = eqopt.AdamW(1e-3).init(MODEL)
    assert_type(state, ChainState[tuple[ScaleByAdamState, EmptyState, ScaleByLearningRateState]])
    assert isinstance(state.states[0], ScaleByAdamState)


def test_hyper_parameters_keep_the_optimizer_s_type():
    opt = eqopt.AdamW(1e-3)
    assert_type(opt.replace(weight_decay=0.1), eqopt.AdamW)
    assert type(opt.replace(weight_decay=0.1)) is eqopt.AdamW


def train_step(
    opt: AbstractTransformation[ScaleByAdamState], model: eqx.nn.MLP, state: ScaleByAdamState
) -> tuple[eqx.nn.MLP, ScaleByAdamState]:
    """What a user writes who names the types."""
    gradients = eqx.filter_grad(loss)(model, jnp.ones(3, FLOAT))
    updates, state = opt.update(gradients, state, model)
    return eqopt.apply_updates(model, updates), state


def test_a_state_can_be_named():
    opt = eqopt.ScaleByAdam()
    model, state = train_step(opt, MODEL, opt.init(MODEL))
    assert type(model) is eqx.nn.MLP and int(state.count) == 1


def test_wrappers_are_typed_by_what_is_in_them():
    adam = eqopt.ScaleByAdam()
    finite = eqopt.ApplyIfFinite(eqopt.ParamEMA(adam, 0.9), 5)
    state = finite.init(MODEL)
    assert_type(state, ApplyIfFiniteState[ParamEMAState[ScaleByAdamState]])
    assert_type(state.inner_state.inner_state.count, Array)
    assert isinstance(state.inner_state.inner_state, ScaleByAdamState)
    assert_type(eqopt.eval_params(MODEL, state), eqx.nn.MLP)

    collected = eqopt.MultiSteps(eqopt.Lookahead(adam, 5, 0.5), 4)
    assert_type(collected.init(MODEL), MultiStepsState[LookaheadState[ScaleByAdamState]])

    sam = eqopt.SAM(adam, eqopt.Scale(0.1))
    assert_type(sam.init(MODEL), SAMState[ScaleByAdamState, EmptyState])
    assert isinstance(sam.init(MODEL).opt_state, ScaleByAdamState)

    flat = eqopt.Flatten(eqopt.SplitRealAndImaginary(adam))
    assert_type(flat.init(MODEL), FlattenState[SplitRealAndImaginaryState[ScaleByAdamState]])

    pair = eqopt.LookaheadParams.init_synced(MODEL)
    assert_type(pair.slow, eqx.nn.MLP)
    assert type(pair.slow) is eqx.nn.MLP


def test_a_bundle_is_typed_by_its_model_and_state():
    x = jnp.ones(3, FLOAT)
    optimizer = Optimizer.create(eqopt.ScaleByAdam(), MODEL)
    assert_type(optimizer, Optimizer[eqx.nn.MLP, ScaleByAdamState])
    assert_type(optimizer.target, eqx.nn.MLP)
    assert_type(optimizer.state, ScaleByAdamState)
    assert_type(optimizer.eval_target, eqx.nn.MLP)

    value, gradients = optimizer.compute_gradient(loss, x)
    assert_type(value, Array)
    assert_type(gradients, eqx.nn.MLP)
    value, aux, gradients = optimizer.compute_gradient(loss_and_size, x, has_aux=True)
    assert aux == 3 and type(gradients) is eqx.nn.MLP

    optimizer = optimizer.apply_gradient(gradients, b1=0.5)
    optimizer, value = optimizer.optimize(loss, x)
    optimizer, evaluation = optimizer.step(loss, x)
    assert_type(optimizer, Optimizer[eqx.nn.MLP, ScaleByAdamState])
    assert_type(evaluation, Evaluation[Any])
    assert_type(optimizer.replace(b1=0.5), Optimizer[eqx.nn.MLP, ScaleByAdamState])
    assert type(optimizer.target) is eqx.nn.MLP and isinstance(optimizer.state, ScaleByAdamState)

    focused = Optimizer.create(eqopt.ScaleByAdam(), MODEL, eqopt.ByNdim(2))
    assert_type(focused, Optimizer[eqx.nn.MLP, SelectiveTransformState[ScaleByAdamState]])
    assert_type(focused.state.inner_state, ScaleByAdamState)
    assert isinstance(focused.state.inner_state, ScaleByAdamState)
