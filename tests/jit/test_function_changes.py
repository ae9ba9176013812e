"""A loss that sets what it reads is seen to change all the same."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import eqopt
from tests.support import function_changes
from tests.support.function_changes import AFTER, After, BEFORE, Made
from tests.support.toolbox import FLOAT, in_one_width

P = jnp.asarray([0.75, -1.25], FLOAT)
SQUARES = 0.75**2 + 1.25**2
OPT = eqopt.SGD(0.1)
STATE = OPT.init(P)


def by_python(loss: Any) -> Any:
    return loss(P)


def by_step(loss: Any) -> Any:
    return OPT.step(loss, P, STATE)[2].value


def by_optimizer(loss: Any) -> Any:
    return eqopt.Optimizer.create(OPT, P).step(loss)[1].value


# A counter that is changed from outside too is a reason to trace at each call.
@pytest.mark.filterwarnings("ignore::eqopt.RecompilationWarning")
@in_one_width
@pytest.mark.parametrize("door", [by_python, by_step, by_optimizer])
@pytest.mark.parametrize("make", function_changes.CASES, ids=lambda x: x.__name__)
def test_a_change_is_seen(make: Callable[[], Made], door: Callable[[Any], Any]):
    loss, change = make()
    if isinstance(loss, After):
        door(loss.first)
        loss = loss.loss
    np.testing.assert_allclose(door(loss), BEFORE * SQUARES)
    np.testing.assert_allclose(door(loss), BEFORE * SQUARES)
    change()
    np.testing.assert_allclose(door(loss), AFTER * SQUARES)
    assert float(loss(P)) == float(door(loss))
