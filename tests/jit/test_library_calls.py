"""The first call of a program makes few calls within the library: each is waited for."""

import os
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import eqopt
from tests.support.toolbox import FLOAT

_PACKAGE = os.path.dirname(eqopt.__file__)


def calls_of(run: Callable[[], Any]) -> Counter[str]:
    """How often each function of the library was called, after all programs were forgotten."""
    found: Counter[str] = Counter()

    def note(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(_PACKAGE):
            found[frame.f_code.co_qualname] += 1

    jax.clear_caches()
    before = sys.getprofile()
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(before)
    return found


def test_the_first_update_of_adamw():
    params = {"a": jnp.ones(3, FLOAT), "b": jnp.ones(2, FLOAT)}
    opt = eqopt.AdamW(1e-3)
    state = opt.init(params)
    found = calls_of(lambda: opt.update(params, state, params))
    assert 0 < found.total() <= 350
    assert found["AdamW.compose"] == 1


def test_the_first_minimize_by_bfgs():
    def bowl(x: Any) -> Any:
        return jnp.sum((x - 1) ** 2)

    minimize, opt, start = eqopt.minimize, eqopt.BFGS(), jnp.zeros(3, FLOAT)
    found = calls_of(lambda: minimize(bowl, opt, start))
    assert 0 < found.total() <= 1000
    assert found["BFGS.compose"] == 1
