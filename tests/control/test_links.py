"""Links of the optimizers, by themselves: before others, and with masks."""

from typing import Any

import jax
import numpy as np
import pytest

import eqopt
from eqopt import ByNdim, control
from tests.support.toolbox import assert_close, same, tree

PARAMS = tree(0)
GRADS = [tree(i + 1) for i in range(4)]


def _updates(opt: Any, grads: list[Any], params: Any = PARAMS) -> list[Any]:
    state, found = opt.init(params), list[Any]()
    for g in grads:
        updates, state = opt.update(g, state, params)
        found.append(updates)
    return found


def _corrected(weight: float) -> list[Any]:
    """The gradients with that multiple of their change."""
    before = [jax.tree.map(np.zeros_like, PARAMS), *GRADS[:-1]]
    return [
        jax.tree.map(lambda g, h: g + g.dtype.type(weight) * (g - h), g, h)
        for g, h in zip(GRADS, before, strict=True)
    ]


@pytest.mark.parametrize(
    "link",
    [eqopt.ScaleByMuon(beta=0.8), eqopt.ScaleByLion(0.8, 0.8), eqopt.Muon(0.1)],
    ids=["ScaleByMuon", "ScaleByLion", "Muon"],
)
def test_variance_is_reduced_before_any_link(link: Any):
    gamma, b1 = 0.1, 0.8
    opt = eqopt.Chain(control.ReduceVariance(gamma, b1, None), link)
    params = PARAMS if isinstance(link, eqopt.Muon) else {"a": PARAMS["a"]}

    def shown(grads: list[Any]) -> list[Any]:
        return [{x: g[x] for x in params} for g in grads]

    found = _updates(opt, shown(GRADS), params)
    expected = _updates(link, shown(_corrected(gamma * b1 / (1 - b1))), params)
    for own, other in zip(found, expected, strict=True):
        assert_close(own, other, 1e-4)


def test_variance_of_some_parameters():
    opt = control.ReduceVariance(0.1, 0.8, None, ByNdim(2))
    for own, plain, other in zip(_updates(opt, GRADS), GRADS, _corrected(0.4), strict=True):
        assert same(own["branch"]["b"], plain["branch"]["b"])
        assert_close(own["a"], other["a"], 1e-5)


def test_decay_of_some_parameters_within_stable_adam():
    def stable(weight_decay: float, mask: Any = None) -> list[Any]:
        opt = control.ScaleByStableAdam(0.8, 0.9, 1e-6, None, weight_decay, mask)
        return _updates(opt, GRADS)

    for own, all_decay, none_decays in zip(
        stable(0.3, ByNdim(2)), stable(0.3), stable(0.0), strict=True
    ):
        assert_close(own["a"], all_decay["a"], 1e-6)
        assert_close(own["branch"]["b"], none_decays["branch"]["b"], 1e-6)
        assert not np.allclose(own["a"], none_decays["a"])


def test_other_parameters_of_adam_h_step_as_with_adam_w():
    opt = control.AdamH(0.1, 0.8, 0.9, adam_learning_rate=0.02, adam_weight_decay=0.3)
    plain = eqopt.AdamW(0.02, 0.8, 0.9, weight_decay=0.3)
    for own, other in zip(_updates(opt, GRADS), _updates(plain, GRADS), strict=True):
        assert_close(own["branch"]["b"], other["branch"]["b"], 1e-6)
    chosen = control.AdamH(0.1, 0.8, 0.9, matrices=eqopt.ByPath("a"))
    for own, other in zip(
        _updates(chosen, GRADS), _updates(eqopt.Adam(0.1, 0.8, 0.9), GRADS), strict=True
    ):
        assert_close(own["branch"]["w"], other["branch"]["w"], 1e-6)
        assert not np.allclose(own["a"], other["a"])
