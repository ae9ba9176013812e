"""The same parameters, step by step, as the public implementations in torch."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import eqopt
from tests.support.frontier_control import transformation
from tests.support.toolbox import X64

GOLDEN = np.load(Path(__file__).parents[1] / "data" / "frontier_control.npz", allow_pickle=False)
CASES: list[str] = json.loads(str(GOLDEN["index"]))

# The sources' numbers, such as a decay of 0.9999, are float64, also for float32 parameters.
pytestmark = pytest.mark.skipif(not X64, reason="the sources' hyper-parameters are float64")


def _trajectory(case: str, meta: dict[str, Any]) -> dict[str, np.ndarray]:
    opt = transformation(case, meta)
    assert opt is not None
    trees = case.partition("/")[0]

    def given(kind: str) -> dict[str, Any]:
        return {
            x: jnp.asarray(GOLDEN[f"{trees}/{kind}/{x}"], meta["dtype"]) for x in meta["leaves"]
        }

    def step(carry: Any, grads: Any) -> Any:
        params, state = carry
        updates, state = opt.update(grads, state, params)
        params = eqopt.apply_updates(params, updates)
        return (params, state), params

    params = given("params0")
    _, after = lax.scan(step, (params, opt.init(params)), given("grads"))
    return jax.tree.map(np.asarray, after)


@pytest.mark.parametrize("case", CASES)
def test_the_steps_are_those_of_the_source(case: str):
    meta = json.loads(str(GOLDEN[f"{case}/meta"]))
    for leaf, found in _trajectory(case, meta).items():
        expected = np.asarray(GOLDEN[f"{case}/{leaf}"], np.float64)
        assert found.dtype == meta["dtype"]
        largest = np.max(np.abs(expected))
        # In float64, LaProp's bias correction is rounded to float32 in its source: 1e-9.
        allowed = (1e-9 if meta["dtype"] == "float64" else 1e-6) * largest
        exact = case.replace("float32", "float64")
        if exact != case and exact in CASES:
            # A source that rounds after its decay, and again after its step, is itself as far from
            # its own run in float64.
            allowed += np.max(np.abs(expected - GOLDEN[f"{exact}/{leaf}"]))
        np.testing.assert_allclose(found.astype(np.float64), expected, rtol=0, atol=allowed)


def test_what_is_not_known():
    meta = {"source": "somewhere 1.0 Somebody", "hyper": {}}
    assert transformation("x", meta) is None
    meta = {"source": "pytorch-optimizer 4.1.0 LaProp", "hyper": {"rate": 1.0}}
    with pytest.raises(ValueError, match=r"x: LaProp has arguments .* \['rate'\]"):
        transformation("x", meta)
