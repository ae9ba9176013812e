"""Trajectories of what trains language models, against those of other packages."""

from typing import Any

import jax
import numpy as np
import pytest

import eqopt
from tests.support import frontier
from tests.support.toolbox import X64

FILES = ("frontier_a", "frontier_b")
CASES = [(file, case) for file in FILES for case in frontier.cases(file)]
KNOWN = [
    (file, case)
    for file, case in CASES
    if frontier.transformation(case, frontier.meta(file, case)) is not None
]


def trajectory(opt: Any, params: Any, grads: Any) -> Any:
    def step(carry: Any, grad: Any) -> Any:
        params, state = carry
        updates, state = opt.update(grad, state, params)
        params = eqopt.apply_updates(params, updates)
        return (params, state), params

    return jax.jit(lambda: jax.lax.scan(step, (params, opt.init(params)), grads)[1])()


@pytest.mark.skipif(not X64, reason="the sources' hyper-parameters are float64")
@pytest.mark.parametrize("file, case", KNOWN)
def test_the_same_trajectory(file: str, case: str):
    meta = frontier.meta(file, case)
    found = trajectory(frontier.transformation(case, meta), *frontier.inputs(file, case))
    for leaf, expected in frontier.expected(file, case).items():
        assert found[leaf].dtype == meta["dtype"]
        atol = frontier.tolerance(file, case, leaf)
        np.testing.assert_allclose(found[leaf], expected, rtol=0, atol=atol, err_msg=leaf)


def test_the_rules_that_are_not_known():
    """SOAP and its kin, Shampoo, an average of iterates that is tested elsewhere, and Spel."""
    unknown = {frontier.meta(*x)["source"].split()[-1] for x in CASES if x not in KNOWN}
    averages = {"AdamWScheduleFreeReference"}
    shampoo = {"SOAP", "REKLS", "ScalableShampoo", "KLShampoo", "KLSOAP"}
    assert unknown == {*averages, *shampoo, "Spel"}


def test_what_is_not_known():
    assert frontier.transformation("x", {"source": "somewhere 1.0 Somebody", "hyper": {}}) is None
    meta = {"source": "pytorch-optimizer 4.1.0 LaProp", "hyper": {"rate": 1.0}}
    with pytest.raises(ValueError, match=r"x: LaProp has arguments .* \['rate'\]"):
        frontier.transformation("x", meta)
