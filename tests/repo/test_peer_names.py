"""The pages for those who come from SciPy and jaxopt name all that these have, and what exists."""

import inspect
import json
import operator
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize

import eqopt
from tests.support.peer_tables import arguments, calls, other_names, own_names, peer_names, rows

PAGES = ("coming-from-jaxopt", "coming-from-scipy")
SCIPY, JAXOPT = "coming-from-scipy", "coming-from-jaxopt"

# jaxopt 0.8.5, which is the last.
JAXOPT_NAMES: dict[str, list[str]] = json.loads(
    (Path(__file__).parents[1] / "data/jaxopt.json").read_text(encoding="utf-8")
)
# Modules that SciPy lists though they are deprecated.
OLD = set(
    "cobyla lbfgsb linesearch minpack minpack2 moduleTNC nonlin optimize slsqp tnc zeros".split()
)
_FUNCTIONS = "Other functions and classes"
SECTIONS = {
    SCIPY: ["Methods", "Arguments of minimize", "Options", "The result", _FUNCTIONS],
    JAXOPT: [*JAXOPT_NAMES],
}
WITH_OPTIONS = "BFGS CG Newton-CG L-BFGS-B TNC trust-ncg trust-krylov trust-exact dogleg".split()


def test_every_public_name_of_scipy_has_a_row():
    found = peer_names(SCIPY, _FUNCTIONS)
    assert set(found) == {*scipy.optimize.__all__} - OLD


def test_every_method_of_scipy_has_a_row():
    listed = scipy.optimize.show_options("minimize", disp=False)
    assert isinstance(listed, str)
    methods = re.findall(r"^(\S+)\n=+$", listed, re.MULTILINE)
    assert len(methods) >= 15
    assert sorted(x.lower() for x in peer_names(SCIPY, "Methods")) == sorted(methods)


def test_every_argument_of_scipy_has_a_row():
    parameters = inspect.signature(scipy.optimize.minimize).parameters
    assert sorted(peer_names(SCIPY, "Arguments of minimize")) == sorted(parameters)


@pytest.mark.parametrize("method", WITH_OPTIONS)
def test_every_option_of_scipy_has_a_row(method: str):
    words = scipy.optimize.show_options("minimize", method.lower(), disp=False)
    assert isinstance(words, str)
    options = set(re.findall(r"^\s*(\w+) : ", words, re.MULTILINE))
    assert options
    assert options <= {*peer_names(SCIPY, "Options")}


@pytest.mark.parametrize("method", ["BFGS", "CG", "L-BFGS-B", "Newton-CG", "trust-krylov"])
def test_every_field_of_a_result_of_scipy_has_a_row(method: str):
    second = {"hess": scipy.optimize.rosen_hess} if method in ("Newton-CG", "trust-krylov") else {}
    result = scipy.optimize.minimize(
        scipy.optimize.rosen, np.zeros(2), jac=scipy.optimize.rosen_der, method=method, **second
    )
    assert result.keys() <= {*peer_names(SCIPY, "The result")}


@pytest.mark.parametrize("section", JAXOPT_NAMES)
def test_every_public_name_of_jaxopt_has_a_row(section: str):
    assert sorted(set(peer_names(JAXOPT, section))) == sorted(JAXOPT_NAMES[section])


@pytest.mark.parametrize("page", PAGES)
def test_every_name_of_eqopt_exists(page: str):
    found = own_names(page)
    assert len(found) > 20
    for name in found:
        operator.attrgetter(name)(eqopt)


@pytest.mark.parametrize("page", PAGES)
def test_every_name_of_another_library_exists(page: str):
    found = other_names(page)
    assert len(found) > 5
    for name in found:
        pkgutil.resolve_name(name)


@pytest.mark.parametrize("page", PAGES)
def test_every_argument_of_eqopt_exists(page: str):
    found = [x for section in SECTIONS[page] for x in arguments(page, section)]
    assert len(found) > 15
    for name, owners in found:
        taken = [inspect.signature(operator.attrgetter(x)(eqopt)).parameters for x in owners]
        assert any(name in x for x in taken), (name, owners)


@pytest.mark.parametrize("code", [x for page in PAGES for x in calls(page)])
def test_code_in_the_tables_runs(code: str):
    numbers = {"lam": 0.5, "gamma": 2.0, "strength": 0.1}
    eval(code, {**vars(eqopt), **vars(eqopt.projections), **numbers})


@pytest.mark.parametrize(
    ("page", "section"), [(page, section) for page in PAGES for section in SECTIONS[page]]
)
def test_every_row_says_what_takes_the_place_of_a_name(page: str, section: str):
    found = rows(page, section)
    assert found and all(len(row) == 3 and row[0] and row[1] for row in found)
