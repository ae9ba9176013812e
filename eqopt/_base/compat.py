"""The parts of JAX that eqopt uses and that are private, experimental or differ between versions.

No other file imports such a part; a test checks that. A comment at each part names the versions
that have it (0.7.2 is the oldest supported, 0.12.0 the newest tried), and what eqopt would do
without it.
"""

import operator
from collections.abc import Hashable
from typing import Any

import jax
from jax import lax

# 0.7.2 to 0.12.0. Without it: a function that has kept a tracer of an earlier trace would get it as
# data, which JAX refuses.
from jax._src.core import trace_state_clean as trace_state_clean

# 0.7.2 to 0.12.0. Most of `jax.core` is deprecated. Without it: there is no public way to ask
# whether an array is traced, and the type of an argument within `jax.jit` would have to do.
from jax.core import Tracer as Tracer

# 0.7.2 to 0.12.0, for libraries that extend JAX. Without it: `reduce_axes` is refused for axes of
# `vmap`, because nothing public tells which of them an argument varies over.
from jax.extend.core import ClosedJaxpr, Jaxpr, Primitive as Primitive
from jax.interpreters import ad, batching, mlir

# 0.7.2 to 0.12.0: the type of a program's arguments while `jax.jit` or `scan` traces it. Without
# it: any `Tracer` counts, and an eager call under `vmap` or `grad` is not one compiled program.
from jax.interpreters.partial_eval import DynamicJaxprTracer

from .types import Function

JitTracer = DynamicJaxprTracer

# 0.7.2 to 0.12.0. Without it: a program that reads a tracer from a dictionary would be kept, with
# the tracer in it.
_trace = operator.attrgetter("_trace")


def of_one_trace(x: Tracer, y: Tracer) -> bool:
    """Whether two tracers belong to the same trace."""
    return _trace(x) is _trace(y)


# 0.7.2 to 0.12.0, for libraries that extend JAX. Without it: callbacks are not found, and an
# objective that logs is compiled again whenever its log has changed.
JAXPRS = Jaxpr, ClosedJaxpr


# 0.7.2 to 0.12.0. The type of JAX's configuration does not tell what attributes it has.
_disable_jit = operator.attrgetter("jax_disable_jit")


def jit_is_disabled() -> bool:
    """Whether `jax.disable_jit` is in force."""
    return bool(_disable_jit(jax.config))


def varying(x: object) -> frozenset[Hashable]:
    """The axes of `shard_map` that `x` varies over."""
    kind: Any = jax.typeof(x)
    try:
        return kind.manual_axis_type.varying
    except AttributeError:
        return kind.vma  # its name in 0.7.2


def pcast(x: object, names: tuple[Hashable, ...]) -> Any:
    """Makes `x` vary over more axes of `shard_map`."""
    if "pcast" in vars(lax):
        return lax.pcast(x, names, to="varying")
    return vars(lax)["pvary"](x, names)  # its name in 0.7.2


# 0.7.2 to 0.12.0. Without these tables a primitive has no rules.


def register_rules(
    primitive: Primitive,
    *,
    lower: Function,
    batch: Function,
    jvp: Function,
    transpose: Function,
) -> None:
    """Gives a primitive its rules; `batch` also gets the axis."""
    mlir.register_lowering(primitive, lower)
    batching.fancy_primitive_batchers[primitive] = batch
    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transpose


def instantiate_zeros(tangent: object) -> Any:
    """Makes an array from a tangent that is known to be zero."""
    return ad.instantiate_zeros(tangent)
