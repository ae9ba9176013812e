"""What must be settled before JAX is imported, and programs that are forgotten in time."""

import importlib.metadata
import os
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")

# The float width: `EQOPT_X64=1` runs everything in float64.
os.environ["JAX_ENABLE_X64"] = os.environ.get("EQOPT_X64", "0")

# Stricter than what users run: no dtype and no rank is promoted without a word.
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"

# Eight devices for the laws about sharding. Arrays live on the first of them unless a test says
# otherwise, and everything else runs as fast as on one (measured).
_FLAGS = ["--xla_force_host_platform_device_count=8"]
# Most of the time goes into compiling programs that run once. What comes after XLA's passes does
# less here, and a third of the time is saved; pages, examples and benchmarks run as users do. XLA
# dies of a flag that it does not know: where these are gone, nothing is lost but that time.
# Tests of compiled programs are marked `default_flags`. They run in processes without these flags,
# with `EQOPT_DEFAULT_FLAGS=1`.
_DEFAULT_FLAGS = os.environ.get("EQOPT_DEFAULT_FLAGS", "0") == "1"
_JAXLIB = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2]))
if not _DEFAULT_FLAGS and _JAXLIB <= (0, 12):
    _FLAGS += ["--xla_backend_optimization_level=0"]
if not _DEFAULT_FLAGS and _JAXLIB <= (0, 10):
    _FLAGS += ["--xla_cpu_use_fusion_emitters=false"]
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS]).strip()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("default_flags") is not None and not _DEFAULT_FLAGS:
        pytest.fail("this test runs with `EQOPT_DEFAULT_FLAGS=1`, as in `nox -s tests`")


# A compiled program takes up to hundreds of mappings of memory, of which Linux gives a process
# 65,530. It dies of one more, wherever it is.
_MAPPINGS, _MAX_MAPPINGS, _EVERY = Path("/proc/self/maps"), 20_000, 25
_num_tests = 0


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    global _num_tests
    _num_tests += 1
    if _num_tests % _EVERY or not _MAPPINGS.exists():
        return
    if _MAPPINGS.read_text().count("\n") > _MAX_MAPPINGS:
        import jax

        from eqopt._jit import function

        jax.clear_caches()
        # What is traced anew from here on is not traced once too often.
        function._traces.clear()
