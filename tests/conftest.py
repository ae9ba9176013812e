"""What must be settled before JAX is imported."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")

# The float width: `EQOPT_X64=1` runs everything in float64.
os.environ["JAX_ENABLE_X64"] = os.environ.get("EQOPT_X64", "0")

# Eight devices for the laws about sharding. Arrays live on the first of them unless a test says
# otherwise, so everything else runs as on one. One thread a device: xdist has a process for each
# core already, and on two cores the default of a thread pool per process only adds switching.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_cpu_multi_thread_eigen=false",
    ]
).strip()

# Stricter than what users run: no dtype and no rank is promoted without a word.
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
