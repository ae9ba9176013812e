"""Models that can be called, and masks like them: trees, and not functions of the parameters."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import eqopt
from tests.support.toolbox import FLOAT, same


@jax.tree_util.register_pytree_node_class
class Layer:
    """A model of somebody else's library: a PyTree that is called, and no Module."""

    def __init__(self, w: Any, b: Any) -> None:
        self.w, self.b = w, b

    def __call__(self, x: Any) -> Any:
        return self.w * x + self.b

    def tree_flatten(self) -> tuple[tuple[Any, Any], None]:
        return (self.w, self.b), None

    @classmethod
    def tree_unflatten(cls, _: None, leaves: Any) -> "Layer":
        return cls(*leaves)


LAYER = Layer(jnp.ones(2, FLOAT), jnp.ones(3, FLOAT))
PLACES = {
    "Masked": lambda mask: eqopt.Masked(eqopt.SGD(0.1), mask),
    "Freeze": lambda mask: eqopt.Chain(eqopt.SGD(0.1), eqopt.Freeze(mask)),
    "SelectiveTransform": lambda mask: eqopt.SelectiveTransform(eqopt.SGD(0.1), mask),
    "AdamW": lambda mask: eqopt.AdamW(0.1, mask=mask),
    "WeightNorm": lambda mask: eqopt.WeightNorm(eqopt.SGD(0.1), mask=mask),
    "labels": lambda mask: eqopt.Partition({True: eqopt.SGD(0.1), False: eqopt.SGD(1.0)}, mask),
    "MultiOptimizer": lambda mask: eqopt.flax_optim.MultiOptimizer(
        (mask, eqopt.flax_optim.GradientDescent(0.1))
    ),
    "InjectHyperparams": lambda mask: eqopt.InjectHyperparams(eqopt.AdamW)(0.1, mask=mask),
}


@pytest.mark.parametrize("make", PLACES.values(), ids=PLACES.keys())
def test_a_mask_of_a_model_that_can_be_called(make: Any):
    """It is a tree, and not a function of the parameters; and a function is one in any form."""
    by_tree = make(Layer(True, False))
    updates, _ = by_tree.update(LAYER, by_tree.init(LAYER), LAYER)
    for mask in (
        lambda params: Layer(True, False),
        functools.partial(lambda on, params: Layer(on, False), True),
        jax.tree_util.Partial(lambda params: Layer(True, False)),
        Masks(True).of,
        eqx.filter_jit(lambda params: Layer(True, False)),
    ):
        opt = make(mask)
        same_updates, _ = opt.update(LAYER, opt.init(LAYER), LAYER)
        assert same(jax.tree.leaves(same_updates), jax.tree.leaves(updates))


class Masks(eqx.Module):
    on: bool

    def of(self, params: Any) -> Any:
        return Layer(self.on, False)


def test_a_focus_on_a_model_that_can_be_called():
    bundle = eqopt.Optimizer.create(eqopt.SGD(0.1), LAYER, Layer(True, False))
    moved = bundle.apply_gradient(LAYER).target
    assert same(moved.w, jnp.full(2, FLOAT(1) - FLOAT(0.1))) and same(moved.b, LAYER.b)


def test_axes_of_a_model_that_can_be_called():
    matrices = Layer(jnp.ones((2, 3), FLOAT), jnp.ones((3, 2), FLOAT))
    axes = Layer(eqopt.options.MuonDimensionNumbers(0, 1), None)
    opt = eqopt.Muon(0.1, muon_weight_dimension_numbers=axes)
    updates, _ = opt.update(matrices, opt.init(matrices), matrices)
    assert updates.w.shape == (2, 3)
