"""What must be settled before JAX is imported."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")

# The float width: `EQOPT_X64=1` runs everything in float64.
os.environ["JAX_ENABLE_X64"] = os.environ.get("EQOPT_X64", "0")

# Stricter than what users run: no dtype and no rank is promoted without a word.
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"

# Eight devices for the laws about sharding. Arrays live on the first of them unless a test says
# otherwise, and everything else runs as fast as on one (measured).
_FLAGS = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{_FLAGS} --xla_force_host_platform_device_count=8".strip()
