"""What the compiler makes of a step: arrays written, memory beside the step's own, repetitions.

Each program is a user's: it is given gradients, a state and parameters, and returns the state and
the parameters in the order in which they came, for JAX puts what is returned into the donated
buffers one after the other.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqopt
from eqopt._base.trees import all_finite

pytestmark = pytest.mark.default_flags
# Measured with jaxlib 0.7.2 and 0.10.2, by the default flags.
sums_are_fused = pytest.mark.skipif(
    jax.__version_info__ < (0, 8), reason="jaxlib 0.7 writes an array before it adds it up"
)

_SHAPE = (512, 2048)
_SIZE = 512 * 2048
# For programs of many leaves.
_SMALL = (64, 80)
_RATE = 0.1


def _compiled(
    optimizer: Any, apply: Callable[..., Any], num_leaves: int = 1, shape: tuple[int, ...] = _SHAPE
) -> Any:
    def step(grads: Any, state: Any, params: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return state, apply(params, updates)

    leaves = [jax.ShapeDtypeStruct(shape, np.float32)] * num_leaves
    state = jax.eval_shape(optimizer.init, leaves)
    return jax.jit(step, donate_argnums=(1, 2)).lower(leaves, state, leaves).compile()


def _entry(compiled: Any) -> str:
    text = compiled.as_text()
    return text[text.index("\nENTRY") :]


def _written(compiled: Any, *operations: str) -> int:
    """How many arrays of the leaf's size the program writes with one of the operations."""
    made = rf"= f32\[{_SHAPE[0]},{_SHAPE[1]}\]\S* (?:{'|'.join(operations)})\("
    return len(re.findall(made, _entry(compiled)))


def _temporaries(compiled: Any) -> int:
    """The bytes beside arguments and results. A leaf of booleans has `_SIZE` of them."""
    return compiled.memory_analysis().temp_size_in_bytes


def test_adamw_is_in_place() -> None:
    compiled = _compiled(eqopt.AdamW(_RATE), eqopt.apply_updates)
    assert _temporaries(compiled) < 4096
    assert _written(compiled, "copy") == 0
    assert _written(compiled, "fusion") == 3
    # Both averages and the parameters are written over what they were.
    assert compiled.memory_analysis().alias_size_in_bytes >= 3 * 4 * _SIZE


@sums_are_fused
@pytest.mark.parametrize("clip", [eqopt.ClipByGlobalNorm(1.0), eqopt.Normalize()])
def test_clipping_writes_no_gradient(clip: Any) -> None:
    chain = eqopt.Chain(clip, eqopt.AdamW(_RATE))
    compiled = _compiled(chain, eqopt.apply_updates)
    assert _temporaries(compiled) < _SIZE
    assert _written(compiled, "copy") == 0
    assert _written(compiled, "fusion") == 3


_PAIRS = {
    "SGD": (eqopt.SGD(_RATE), optax.sgd(_RATE)),
    "momentum": (eqopt.SGD(_RATE, momentum=0.9), optax.sgd(_RATE, momentum=0.9)),
    "Nesterov": (
        eqopt.SGD(_RATE, momentum=0.9, nesterov=True),
        optax.sgd(_RATE, momentum=0.9, nesterov=True),
    ),
    "Adam": (eqopt.Adam(_RATE), optax.adam(_RATE)),
    "AdamW": (eqopt.AdamW(_RATE), optax.adamw(_RATE)),
    "NAdamW": (eqopt.NAdamW(_RATE), optax.nadamw(_RATE)),
    "AdaBelief": (eqopt.AdaBelief(_RATE), optax.adabelief(_RATE)),
    "Adadelta": (eqopt.Adadelta(_RATE), optax.adadelta(_RATE)),
    "Adafactor": (eqopt.Adafactor(_RATE), optax.adafactor(_RATE)),
    "Adagrad": (eqopt.Adagrad(_RATE), optax.adagrad(_RATE)),
    "LAMB": (eqopt.LAMB(_RATE), optax.lamb(_RATE)),
    "LARS": (eqopt.LARS(_RATE), optax.lars(_RATE)),
    "Lion": (eqopt.Lion(_RATE), optax.lion(_RATE)),
    "RMSProp": (
        eqopt.RMSProp(_RATE, centered=True, momentum=0.9),
        optax.rmsprop(_RATE, centered=True, momentum=0.9),
    ),
    "clipped": (
        eqopt.Chain(eqopt.ClipByGlobalNorm(1.0), eqopt.AdamW(_RATE)),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(_RATE)),
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=sums_are_fused if x == "LARS" else ()) for x in _PAIRS]
)
def test_no_more_memory_than_optax(name: str) -> None:
    optimizer, other = _PAIRS[name]
    ours = _compiled(optimizer, eqopt.apply_updates)
    with jax.numpy_dtype_promotion("standard"):
        theirs = _compiled(other, optax.apply_updates)
    # But for a few numbers.
    assert _temporaries(ours) <= _temporaries(theirs) + 4096
    everything = ("copy", "fusion")
    assert 0 < _written(ours, *everything) <= _written(theirs, *everything)


@pytest.mark.parametrize("clip", [eqopt.ClipByGlobalNorm(1.0), eqopt.Normalize()])
def test_norm_is_not_repeated_in_each_leaf(clip: Any) -> None:
    """Twice as many leaves make a program twice as long, and not four times."""
    chain = eqopt.Chain(clip, eqopt.SGD(_RATE))
    few, many = (
        _num_instructions(_compiled(chain, eqopt.apply_updates, num, _SMALL)) for num in (32, 64)
    )
    assert many < 2.2 * few


def _num_instructions(compiled: Any) -> int:
    return len(re.findall(r"^\s+(?:ROOT )?%", compiled.as_text(), re.MULTILINE))


def test_global_norm_is_not_repeated() -> None:
    """Not by arithmetic on it either, in as many places as there are leaves."""

    def shortened(tree: list[Any]) -> list[Any]:
        factor = jnp.minimum(eqopt.global_norm(tree), 1)
        return [factor * x for x in tree]

    few, many = (
        _num_instructions(
            jax.jit(shortened).lower([jax.ShapeDtypeStruct(_SMALL, np.float32)] * num).compile()
        )
        for num in (32, 64)
    )
    assert many < 2.2 * few


@sums_are_fused
def test_looking_for_bad_numbers_writes_nothing() -> None:
    compiled = jax.jit(all_finite).lower([jax.ShapeDtypeStruct(_SHAPE, np.float32)]).compile()
    assert _temporaries(compiled) < _SIZE
