"""A field of an optimizer is documented as the field of its link that it is passed to."""

import inspect
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

from eqopt.writing import AbstractOptimizer, AbstractTransformation
from tests.laws import table
from tests.support.house_rules import argument_docs, without_symbols

# The fields whose documentation differs, and why.
DIFFERENCES = {
    "the links around it decide what the decay is in proportion to": """
        ACProp.weight_decay AdEMAMix.weight_decay AdamW.weight_decay Adadelta.weight_decay
        AdamaxW.weight_decay Adan.weight_decay COCOB.weight_decay DoG.weight_decay
        DoWG.weight_decay GaLore.weight_decay LAMB.weight_decay LARS.weight_decay
        Lion.weight_decay MADGRAD.weight_decay Muon.weight_decay NAdamW.weight_decay
        ScheduleFreeAdamW.weight_decay ScheduleFreeSGD.weight_decay
        SimplifiedAdEMAMix.weight_decay Sophia.weight_decay
        CAME.weight_decay LaProp.weight_decay MARS.weight_decay StableAdamW.weight_decay
        AdaMuon.weight_decay MuonClip.weight_decay NAMO.weight_decay NorMuon.weight_decay
        PolarGrad.weight_decay
    """,
    "the links before it decide how long a step of rate 1 is": """
        Adadelta.learning_rate Adafactor.learning_rate BFGS.learning_rate COCOB.learning_rate
        DoG.learning_rate DoWG.learning_rate Fromage.learning_rate GaLore.learning_rate
        LARS.trust_coefficient LBFGS.learning_rate PolyakSGD.max_learning_rate
        ScheduleFreeSGD.learning_rate SignSGD.learning_rate
        Signum.learning_rate AdamH.learning_rate
    """,
    "it is passed to several links, or only some parameters have the link": """
        Muon.beta Muon.consistent_rms Muon.eps Muon.nesterov RMSProp.decay MARS.b1 MARS.mask
        AdaMuon.weight_dimension_numbers MuonClip.weight_dimension_numbers
        MuonHyperball.fixed MuonHyperball.learning_rate
        MuonHyperball.radius MuonHyperball.weight_dimension_numbers NAMO.muon
        NAMO.weight_dimension_numbers NorMuon.weight_dimension_numbers
        PolarGrad.weight_dimension_numbers Scion.weight_dimension_numbers
    """,
    "the link's documentation refers to its rule": """
        ADOPT.nesterov BFGS.scale_init_precond Fromage.min_norm LBFGS.scale_init_precond
        Muon.adaptive Muon.ns_coeffs Muon.preconditioning OptimisticAdamV2.alpha
        OptimisticGradientDescent.alpha NAMO.b2 NAMO.eps NorMuon.b2 NorMuon.eps
    """,
    "its default differs": "AdEMAMix.alpha",
    "it is by name only": "NoisySGD.key",
}
DIFFERENT = {name for names in DIFFERENCES.values() for name in names.split()}


def links(x: AbstractTransformation[Any]) -> Iterator[AbstractTransformation[Any]]:
    """The transformations that one is made of, at every depth."""
    inner = [x.compose()] if isinstance(x, AbstractOptimizer) else list(vars(x).values())
    for y in jax.tree.leaves(inner, is_leaf=lambda y: isinstance(y, AbstractTransformation)):
        if isinstance(y, AbstractTransformation):
            yield y
            yield from links(y)


def docs(x: AbstractTransformation[Any]) -> dict[str, str]:
    return argument_docs(inspect.cleandoc(type(x).__doc__ or ""))


def is_passed_on(value: Any, of_link: Any) -> bool:
    """Whether a link has been given an optimizer's value. (No two numbers of a row are equal.)"""
    if isinstance(value, np.generic):
        return isinstance(of_link, np.generic) and value == of_link
    return type(value) is type(of_link)


def differing(optimizer: AbstractTransformation[Any]) -> tuple[set[str], int]:
    """The fields whose documentation differs, and how many there were to compare."""
    own, found, num = docs(optimizer), set[str](), 0
    for link in links(optimizer):
        others = docs(link)
        for name in own.keys() & others.keys():
            if is_passed_on(getattr(optimizer, name), getattr(link, name)):
                num += 1
                if without_symbols(own[name]) != without_symbols(others[name]):
                    found.add(f"{type(optimizer).__name__}.{name}")
    return found, num


def test_fields_are_documented_as_those_of_the_links():
    optimizers = [row.make() for row in table.ROWS if issubclass(row.cls, AbstractOptimizer)]
    compared = [differing(x) for x in optimizers if "flax" not in type(x).__module__]
    assert sum(num for _, num in compared) > 250
    assert set[str]().union(*(found for found, _ in compared)) == DIFFERENT


@pytest.mark.parametrize(
    ("of_link", "of_optimizer", "equal"),
    [
        (r"the decay $\beta_1$ of it, in $[0, 1)$.", "the decay of it, in $[0, 1)$.", True),
        (r"added to it, $\bar\epsilon \ge 0$.", "added to it, not negative.", True),
        (r"added to it, $\epsilon > 0$.", "added to it, positive.", True),
        (r"added to it, $\epsilon > 0$.", "added to it, not negative.", False),
        (r"the decay $\beta_1$ of it, in $[0, 1)$.", "the decay of it, in $[0, 1]$.", False),
        (r"the decay $\beta_1$ of it.", "the decay of that.", False),
    ],
)
def test_texts_are_compared_without_symbols(of_link: str, of_optimizer: str, equal: bool):
    assert (without_symbols(of_link) == without_symbols(of_optimizer)) is equal
