"""All that optax has is here: by name, in the docs, under the laws, and beside optax's own."""

import importlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import eqopt
from eqopt.writing import AbstractTransformation
from tests.laws import table
from tests.support import migration
from tests.support.migration import NAMES
from tests.support.used_names import used_names

TESTS = Path(__file__).parents[1]
ROWS: list[Any] = [
    row
    for path in sorted(TESTS.glob("parity/test_*.py"))
    for row in vars(importlib.import_module(f"tests.parity.{path.stem}")).get("ROWS", [])
]

# What is held against optax, live, in a file of its own.
_LIVE = """
schedule/test_schedules Constant CosineDecay CosineOneCycle ExponentialDecay Join Linear
schedule/test_schedules LinearOneCycle PiecewiseConstant PiecewiseInterpolate Polynomial
schedule/test_schedules SGDR WarmupConstant WarmupCosineDecay WarmupExponentialDecay
wrapper/test_monitor Monitor Snapshot MeasureWithEMA
parity/test_functions apply_updates global_norm skip_large_updates skip_not_finite
parity/test_functions value_and_grad_from_state
linesearch/test_conditions ScaleByBacktrackingLinesearch ScaleByZoomLinesearch
minimize/test_quasi_newton ScaleByLBFGS
models/test_following_models incremental_update periodic_update
wrapper/test_inject_hyperparams InjectHyperparams
transform/test_muon Muon ScaleByMuon
transform/test_private DifferentiallyPrivateAggregate DPSGD
transform/test_sophia Sophia
"""
LIVE = {x: file for file, *xs in map(str.split, _LIVE.split("\n")[1:-1]) for x in xs}

# How it is called now, or what else of optax takes the same steps without a warning.
_NOW = {
    "optax.global_norm": "optax.tree.norm",
    "optax.contrib.dpsgd": "optax.contrib.differentially_private_aggregate",
}

# What takes other steps than optax's, why, and the file that has another oracle.
EXCEPTIONS = {
    "Adan": ("optax looks ahead by 1 - b2, the paper by b2", "parity/test_adam_family"),
    "GaLore": ("the sign of a singular vector is anybody's choice", "transform/test_galore"),
    "ScaleByGaLore": ("as for GaLore", "transform/test_galore"),
    "HutchinsonEstimatorDiagHessian": (
        "other draws, unless the Hessian is diagonal",
        "transform/test_sophia",
    ),
    "LBFGS": ("another line search by default", "minimize/test_minimize"),
    "Mechanize": ("optax's own sum cancels: equal to 1e-8 only", "wrapper/test_mechanize"),
    "Rprop": ("optax gives the update of the step before", "parity/test_signs"),
    "ScaleByRprop": ("as for Rprop", "parity/test_signs"),
}


def compared() -> set[str]:
    """The classes that are in a row, or a link of what is in one."""
    rng = np.random.default_rng(0)
    built = [row.ours({name: draw(rng) for name, draw in row.draws.items()}) for row in ROWS]
    return {cls.__name__ for x in built for cls in table.parts(x)}


def test_every_name_resolves():
    assert [x for x in NAMES.values() if x not in dir(eqopt)] == []


def test_every_name_is_documented():
    pages = "".join(x.read_text(encoding="utf-8") for x in (TESTS.parent / "docs/api").glob("*.md"))
    documented = set(re.findall(r"^::: eqopt\.(\w+)$", pages, re.MULTILINE))
    assert set(NAMES.values()) <= documented


def test_every_transformation_is_under_the_laws():
    found = [getattr(eqopt, x) for x in NAMES.values()]
    classes = {x for x in found if isinstance(x, type) and issubclass(x, AbstractTransformation)}
    assert classes <= {row.cls for row in table.ROWS}


@pytest.mark.parametrize("name", [x for x, own in NAMES.items() if own in {*LIVE, *EXCEPTIONS}])
def test_it_is_held_against_optax_or_another_oracle_elsewhere(name: str):
    own = NAMES[name]
    if own in EXCEPTIONS:
        assert own in used_names(EXCEPTIONS[own][1])
    else:
        assert {_NOW.get(name, name), own} <= used_names(LIVE[own])


def test_all_others_are_held_against_optax_here():
    assert set(NAMES.values()) - LIVE.keys() - EXCEPTIONS.keys() <= compared()


def test_there_are_few_exceptions():
    assert len(EXCEPTIONS) <= 15
    assert EXCEPTIONS.keys() <= set(NAMES.values())


def test_the_page_has_the_tables():
    """`python -m tests.support.migration` writes them."""
    assert migration.page() == migration.PAGE.read_text(encoding="utf-8")


def test_every_note_is_about_a_name():
    assert migration.NOTES.keys() <= NAMES.keys()
