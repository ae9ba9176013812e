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


@pytest.mark.parametrize("file, case", KNOWN)
def test_the_same_trajectory(file: str, case: str):
    meta = frontier.meta(file, case)
    if X64 != (meta["dtype"] == "float64"):
        pytest.skip("this case belongs to the other float width")
    opt = frontier.transformation(case, meta)
    found = trajectory(opt, *frontier.inputs(file, case))
    for leaf, expected in frontier.expected(file, case).items():
        atol = frontier.tolerance(case, meta) * np.max(np.abs(expected)).item()
        np.testing.assert_allclose(found[leaf], expected, rtol=0, atol=atol, err_msg=leaf)


def test_every_rule_of_these_packages_is_known():
    """SOAP and its kin, Shampoo, and Spel, which sets the parameters to be orthogonal, are not."""
    unknown = {frontier.meta(*x)["source"].split()[-1] for x in CASES if x not in KNOWN}
    assert unknown <= {"SOAP", "REKLS", "ScalableShampoo", "KLShampoo", "KLSOAP", "Spel"}
