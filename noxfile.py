"""The door to everything that is run here: `nox -l` lists it.

Versions and groups of dependencies are read from `pyproject.toml`.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import nox
from packaging.requirements import Requirement

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.error_on_external_run = True
nox.options.reuse_venv = "yes"
nox.options.sessions = ["tests", "lint", "docs"]

ROOT = Path(__file__).parent
PYPROJECT = nox.project.load_toml(ROOT / "pyproject.toml")

# Compiled programs are kept from run to run, and shared by the processes of one run.
COMPILED = {
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
}
PROCESSES = ("-n", "2", "--dist", "loadgroup")

# What another Python with another JAX is most likely to break: the laws of these rows, and files.
LAWS = ("laws/test_models.py", "laws/test_states.py", "laws/test_numbers.py", "laws/test_copies.py")
ROWS = "AdamW or LBFGS or Muon or MultiSteps or Partition"
LEAN = (
    "jit/test_compile_counts.py",
    "repo/test_docs.py",
    "jit/test_compiled_call.py",
    "jit/test_functions_that_call_back.py",
    "train/test_fit.py",
    "wrapper/test_flatten.py",
    "repo/test_house.py",
    "repo/test_namespaces.py",
    "transform/test_matrices.py",
    "minimize/test_minimize.py",
    "repo/test_optax_names.py",
    "objective/test_value_and_grad_axes.py",
)


def pythons() -> list[str]:
    """The versions of Python that are installed and supported, the oldest first."""
    oldest = int(PYPROJECT["project"]["requires-python"].removeprefix(">=3."))
    found = [f"3.{minor}" for minor in range(oldest, oldest + 10)]
    own = f"3.{sys.version_info.minor}"
    return [x for x in found if x == own or _runs(f"python{x}")]


def _runs(python: str) -> bool:
    # There may be a file of that name that only says that no such Python has been chosen.
    path = shutil.which(python)
    return (
        path is not None and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0
    )


OLDEST, NEWEST = pythons()[0], pythons()[-1]


def install(session: nox.Session, *groups: str, editable: bool = True) -> None:
    """Installs eqopt and some groups of dependencies into the session's environment."""
    wanted = nox.project.dependency_groups(PYPROJECT, *groups)
    session.install(*wanted, *(["-e", "."] if editable else ["."]))


def pytest(
    session: nox.Session,
    *arguments: str,
    x64: bool = False,
    default_flags: bool = False,
    cache: bool = True,
) -> None:
    """Runs tests in one float width, on two processes; a group of tests on one of them.

    With `default_flags` it runs the tests that are marked so, with XLA's default flags, and without
    it all others.
    """
    env = {"EQOPT_X64": str(int(x64)), "EQOPT_DEFAULT_FLAGS": str(int(default_flags))}
    marks = "default_flags" if default_flags else "not default_flags"
    # 5: among the tests that the user asks for there is none with these marks.
    session.run(
        *("python", "-m", "pytest", *PROCESSES, "-m", marks, *arguments),
        env={**(COMPILED if cache else {}), **env},
        success_codes=[0, 5] if set(session.posargs) - {"--lean"} else [0],
    )


def all_tests(session: nox.Session) -> None:
    """Runs the tests in both float widths, and those of compiled programs."""
    pytest(session, *session.posargs, default_flags=True)
    for x64 in (False, True):
        pytest(session, *session.posargs, x64=x64)


@nox.session
def quickstart(session: nox.Session) -> None:
    """Trains a small network on handwritten digits: `examples/quickstart.py`."""
    install(session, "quickstart", editable=False)
    session.run("python", "examples/quickstart.py", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Runs the tests in both float widths; arguments go to pytest."""
    install(session, "tests")
    all_tests(session)


@nox.session
def lint(session: nox.Session) -> None:
    """Checks style, format and types."""
    install(session, "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("pyright")


@nox.session
def docs(session: nox.Session) -> None:
    """Runs the pages' code and builds them into `site/`, notebooks too; `-- serve` to look.

    `-- --lean` only builds, and runs the example: the pages' code is in `tests` as well.
    """
    install(session, "docs")
    if session.posargs not in ([], ["--lean"]):
        session.run("mkdocs", *session.posargs)
        return
    if not session.posargs:
        pytest(session, "tests/repo/test_docs.py")
    session.run("python", "examples/float16.py")
    session.run(
        "mkdocs",
        "build",
        "--strict",
        env={**COMPILED, "JAX_PLATFORMS": "cpu", "NO_MKDOCS_2_WARNING": "1"},
    )


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Compares with the peers, side by side: `-- overhead` is one suite, `-- --smoke` is short."""
    install(session, "benchmarks", editable=False)
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def cutest(session: nox.Session) -> None:
    """Minimizes CUTEst's problems, next to four other libraries: `-- --smoke` takes three."""
    install(session, "cutest", editable=False)
    session.run("python", "-m", "benchmarks.cutest", *session.posargs)


@nox.session
def bounded(session: nox.Session) -> None:
    """Minimizes CUTEst's problems with bounds: `-- --smoke` takes three."""
    install(session, "cutest", editable=False)
    session.run("python", "-m", "benchmarks.cutest", "--bounded", *session.posargs)


@nox.session
def matrix(session: nox.Session) -> None:
    """Tests every wrapper around every wrapper around each optimizer: a quarter of an hour."""
    install(session, "tests")
    env = {**COMPILED, "EQOPT_MATRIX": "all"}
    session.run("python", "-m", "pytest", *PROCESSES, "tests/laws/test_matrix.py", env=env)


@nox.session(python=NEWEST)
def newest(session: nox.Session) -> None:
    """Runs the tests on the newest Python at hand, with the newest versions that it gets.

    `-- --lean` runs the quickstart and a part of the tests; other arguments go to pytest.
    """
    groups = nox.project.dependency_groups(PYPROJECT, "tests", "quickstart")
    session.install("--upgrade", "--upgrade-strategy", "eager", *groups, "-e", ".")
    session.run("python", "-m", "pip", "list")
    if "--lean" not in session.posargs:
        all_tests(session)
        return
    arguments = [x for x in session.posargs if x != "--lean"]
    session.run("python", "examples/quickstart.py")
    pytest(session, *arguments, *(f"tests/{x}" for x in LEAN))
    pytest(session, *arguments, *(f"tests/{x}" for x in LAWS), "-k", ROWS)


@nox.session(python=OLDEST)
def oldest(session: nox.Session) -> None:
    """Runs the tests on the oldest Python at hand, with the oldest versions of `pyproject.toml`."""
    floors = [floor(Requirement(x)) for x in PYPROJECT["project"]["dependencies"]]
    groups = nox.project.dependency_groups(PYPROJECT, "tests")
    session.install(*groups, *floors, "-e", ".")
    # The oldest `jaxlib` dies now and then of reading a program that was kept.
    for default_flags in (True, False):
        pytest(session, *session.posargs, default_flags=default_flags, cache=False)


def floor(requirement: Requirement) -> str:
    """Turns `name>=1.2` into `name==1.2`."""
    (lowest,) = [x.version for x in requirement.specifier if x.operator == ">="]
    return f"{requirement.name}=={lowest}"
