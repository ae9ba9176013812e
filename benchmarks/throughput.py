"""AdamW on big parameters: updated and applied in place, as fast as memory can be read and written.

A step reads parameter, gradient and two moments, and writes three of them: seven times the bytes of
the parameters. "copying as much" is the time in which so many bytes are read and written in place.
"""

import dataclasses
import functools
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import _timing
from ._sides import EQOPT, FLATTENED, OPTAX, RATE, Side, torch_on_cpu, Update
from ._timing import Row, shown, timed, timed_against, Times

PASSES = 7
COPY = "copying as much"


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is done: for numbers, or only to see that it runs."""

    repetitions: int
    num_steps: int
    one_leaf: int
    num_leaves: int
    leaf: int


FULL = Size(repetitions=9, num_steps=4, one_leaf=2**25, num_leaves=128, leaf=2**18)
SMOKE = Size(repetitions=1, num_steps=2, one_leaf=2**12, num_leaves=4, leaf=2**8)


def run(smoke: bool) -> list[Row]:
    size = SMOKE if smoke else FULL
    one = rows(f"AdamW, 1 leaf of {size.one_leaf}", [size.one_leaf], size, 0.6)
    many = [size.leaf] * size.num_leaves
    return one + rows(f"AdamW, {size.num_leaves} leaves of {size.leaf}", many, size, 1.0)


def rows(name: str, lengths: list[int], size: Size, at_most: float) -> list[Row]:
    values: dict[str, list[float]] = {}
    sides = {
        "eqopt": ours(EQOPT, EQOPT.make, lengths),
        "optax": ours(OPTAX, OPTAX.make, lengths),
        "eqopt clipping": ours(EQOPT, EQOPT.clipping, lengths),
        "optax clipping": ours(OPTAX, OPTAX.clipping, lengths),
        "eqopt Flatten": ours(FLATTENED, FLATTENED.make, lengths),
        COPY: copy(lengths),
    }
    torch = torch_on_cpu()
    if torch is not None:
        sides["torch fused"] = torch_fused(torch, lengths)

    def one(side: str) -> float:
        seconds, values[side] = sides[side](size.num_steps)
        return seconds / size.num_steps * (PASSES / 2 if side == COPY else 1)

    timed_sides = {side: functools.partial(one, side) for side in sides}
    times = _timing.alternate(timed_sides, size.repetitions)
    del values[COPY]
    title = f"{name} [ms]"
    first = timed_against(title, times, "optax", 1e-3, {"eqopt": at_most}, values)
    if torch is not None:
        bound = 2.0 if len(lengths) == 1 else None
        first.append(timed(title, times, ("eqopt", "torch fused"), 1e-3, bound))
    return [
        *first,
        timed(title, times, ("eqopt", COPY), 1e-3),
        timed(title, times, ("eqopt clipping", "eqopt"), 1e-3, 1.35),
        timed(title, times, ("eqopt clipping", "optax clipping"), 1e-3),
        timed(title, times, ("eqopt Flatten", "eqopt"), 1e-3),
        _rates(f"{name}: GB/s", times, 4 * sum(lengths)),
    ]


def _rates(name: str, times: Times, num_bytes: int) -> Row:
    """Bytes in a second: medians."""
    others = ("eqopt clipping", "optax clipping", "eqopt Flatten")
    fast = {side.partition(" ")[0]: x for side, x in times.items() if side not in others}
    rates = {side: PASSES * num_bytes / statistics.median(x) for side, x in fast.items()}
    return shown(name, {side: f"{rate * 1e-9:.3g}" for side, rate in rates.items()})


# A side does some steps, going on from where it is: the seconds, and what the parameters have come
# to.
_Steps = Callable[[int], tuple[float, list[float]]]


def ours(side: Side, make: Callable[[float], Any], lengths: list[int]) -> _Steps:
    optimizer = make(RATE)
    update, params, grads = Update(side, optimizer), _ones(lengths), _grads(lengths)
    now = params, optimizer.init(params)

    def some(num_steps: int) -> tuple[float, list[float]]:
        def steps() -> tuple[Any, Any]:
            params, state = now
            for _ in range(num_steps):
                params, state = update(params, state, grads)
            return params, state

        nonlocal now
        seconds, now = _timing.clock(steps)
        return seconds, [float(now[0][0][0]), float(now[0][-1][-1])]

    return some


def copy(lengths: list[int]) -> _Steps:
    """Reads and writes everything, in place."""
    negate = jax.jit(lambda arrays: [-x for x in arrays], donate_argnums=0)
    now = _ones(lengths)

    def some(num_steps: int) -> tuple[float, list[float]]:
        def steps() -> list[Any]:
            arrays = now
            for _ in range(num_steps):
                arrays = negate(arrays)
            return arrays

        nonlocal now
        seconds, now = _timing.clock(steps)
        return seconds, []

    return some


def torch_fused(torch: Any, lengths: list[int]) -> _Steps:
    params = [torch.nn.Parameter(torch.ones(length)) for length in lengths]
    for param, grad in zip(params, _grads(lengths), strict=True):
        param.grad = torch.from_numpy(np.array(grad))
    optimizer = torch.optim.AdamW(params, lr=RATE, weight_decay=1e-4, fused=True)

    def some(num_steps: int) -> tuple[float, list[float]]:
        def steps() -> None:
            for _ in range(num_steps):
                optimizer.step()

        seconds, _ = _timing.clock(steps)
        return seconds, [params[0][0].item(), params[-1][-1].item()]

    return some


def _ones(lengths: list[int]) -> list[Any]:
    return [jnp.ones(length, jnp.float32) for length in lengths]


def _grads(lengths: list[int]) -> list[Any]:
    return [jnp.linspace(-1.0, 1.0, length, dtype=jnp.float32) for length in lengths]
