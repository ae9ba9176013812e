"""A mistake is named: where it is, what was expected and what was given, in a few lines."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from tests.support import mistakes_arguments, mistakes_building, mistakes_places
from tests.support.mistakes_arguments import (
    Case,
    GRADS,
    MODEL,
    OPT,
    SGD,
    STATE,
    update,
    with_weight,
)
from tests.support.toolbox import finite, FLOAT

GROUPS = {
    "updates": mistakes_arguments.UPDATES,
    "state": mistakes_arguments.STATES,
    "objective": mistakes_arguments.OBJECTIVES,
    "apply": mistakes_arguments.APPLIES,
    "mask": mistakes_building.MASKS,
    "number": mistakes_building.NUMBERS,
    "part": mistakes_building.PARTS,
    "Python number": mistakes_places.PYTHON_NUMBERS,
    "place": mistakes_places.PLACES,
    "schedule": mistakes_places.SCHEDULES,
    "infinity": mistakes_places.INFINITIES,
    "key": mistakes_places.KEYS,
    "value": mistakes_places.VALUES,
}
CASES = [pytest.param(c, id=f"{group}-{c.name}") for group, cases in GROUPS.items() for c in cases]


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_named(case: Case):
    with pytest.raises(case.error) as caught:
        case.run()
    message = str(caught.value)
    assert type(caught.value) is case.error
    assert 1 <= len(message.splitlines()) <= 10
    assert all(len(line) < 250 for line in message.splitlines())
    assert [word for word in case.words if word not in message] == []
    # Nothing is lost: what was given can be used again.
    updates, _ = update(GRADS)
    assert finite(updates)


@pytest.mark.parametrize("inside", [eqx.filter_jit, eqx.filter_vmap(in_axes=None, axis_size=1)])
def test_a_mistake_is_named_within_a_transformed_function(inside: Any):
    with pytest.raises(ValueError, match=r"`updates\.layers\[0\]\.weight` has shape") as caught:
        inside(lambda g: OPT.update(g, STATE, MODEL)[0])(with_weight(jnp.ones((3, 4), FLOAT)))
    assert len(str(caught.value).splitlines()) <= 10


def test_none_is_no_mistake():
    updates, _ = update(with_weight(None))
    assert updates.layers[0].weight is None
    updates, _ = update(eqx.tree_at(lambda g: g.layers[1], GRADS, None))
    assert jax.tree.leaves(updates.layers[1]) == []
    updates, state = update(None)
    assert jax.tree.leaves(updates) == []
    assert jax.tree.structure(state) == jax.tree.structure(STATE)


def test_many_mistakes_are_summed_up():
    params = {f"layer{i}": jnp.ones(2, FLOAT) for i in range(100)}
    gradients = {name: jnp.ones(3, FLOAT) for name in params}
    with pytest.raises(ValueError, match="and 96 more") as caught:
        SGD.update(gradients, SGD.init(params), params)
    lines = str(caught.value).splitlines()
    assert len(lines) <= 10 and "`updates['layer0']` has shape (3,)" in lines[0]


_PROGRAM = """
import jaxtyping, jax.numpy as jnp, numpy as np, eqopt
assert jaxtyping.config.jaxtyping_disable
params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
opt = eqopt.Chain(eqopt.ClipByGlobalNorm(1.0), eqopt.AdamW(0.1, mask=eqopt.ByNdim(2)))
state = opt.init(params)
updates, state = opt.update(params, state, params)
params = eqopt.apply_updates(params, updates)
loss = lambda p, x: jnp.sum(p["w"] ** 2) * x + jnp.sum(p["b"] ** 2)
before = loss(params, 2.0)
params, state, evaluation = opt.step(loss, params, state, 2.0)
assert abs(evaluation.value - before) < 1e-5
assert loss(params, 2.0) < before
"""


def test_valid_programs_run_without_checks():
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "JAXTYPING_DISABLE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
