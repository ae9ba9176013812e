"""Every wrapper around every wrapper: what makes sense keeps the laws, and the rest is refused."""

import functools
import io
import itertools
import os
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import eqopt
from tests.laws.table.row import Transformation
from tests.support.toolbox import lane, X64

pytestmark = pytest.mark.skipif(
    X64, reason="float32 and bfloat16 are the matter here; each wrapper has its tests in float64"
)
NUM_STEPS, CUT = 4, 2  # saved in the middle of a window of three


def _early(step: Any) -> Any:
    return step < 3


def _odd(step: Any) -> Any:
    return step % 2 == 1


def _sgd() -> Transformation:
    return eqopt.SGD(0.05, 0.7)


# A part of the parameters is at least one leaf of each dtype.
_SOME = eqopt.ByPath("some.**")
_ADVERSARY = eqopt.Scale(-0.04)

WRAPPERS: dict[str, Callable[[Transformation], Transformation]] = {
    "Chain": lambda x: eqopt.Chain(eqopt.Clip(0.4), x),
    "Chain-first": lambda x: eqopt.Chain(x, eqopt.Scale(0.5)),
    "NamedChain": lambda x: eqopt.NamedChain(("clip", eqopt.ClipByGlobalNorm(0.6)), inner=x),
    "Masked": lambda x: eqopt.Masked(x, _SOME),
    "Partition": lambda x: eqopt.Partition({_SOME: x, ...: eqopt.SGD(0.02, 0.9)}),
    "SelectiveTransform": lambda x: eqopt.SelectiveTransform(x, ~_SOME),
    "Flatten": eqopt.Flatten,
    "SplitRealAndImaginary": eqopt.SplitRealAndImaginary,
    "WeightNorm": eqopt.WeightNorm,
    "Scheduled": lambda x: eqopt.Scheduled(
        eqopt.Chain(eqopt.Scale(1.0), x), lambda c: c.links[0].step_size, eqopt.Linear(1.0, 0.5, 4)
    ),
    "ApplyIfFinite": lambda x: eqopt.ApplyIfFinite(x, 2),
    "ConditionallyTransform": lambda x: eqopt.ConditionallyTransform(x, _early),
    "ConditionallyMask": lambda x: eqopt.ConditionallyMask(x, _odd),
    "MultiSteps": lambda x: eqopt.MultiSteps(x, 3),
    "Lookahead": lambda x: eqopt.Lookahead(x, 3, 0.6),
    "ParamEMA": lambda x: eqopt.ParamEMA(x, 0.8),
    "Mechanize": lambda x: eqopt.Mechanize(x, s_init=0.1),
    "MasterWeights": eqopt.precision.MasterWeights,
    "Compensated": eqopt.precision.Compensated,
    "StochasticRounding": eqopt.precision.StochasticRounding,
    "Project": lambda x: eqopt.Chain(x, eqopt.Project(eqopt.projections.LInfBall(0.9))),
    "SAM": lambda x: eqopt.SAM(x, _ADVERSARY, 3),
    "SAM-opaque": lambda x: eqopt.SAM(x, _ADVERSARY, 2, opaque_mode=True),
    "ScheduleFree": lambda x: eqopt.ScheduleFree(x, 0.05, 0.8),
    "SkipSpikes": lambda x: eqopt.control.SkipSpikes(x, 4, 1.0, loss=False, min_std=1e-3),
    "Graft": lambda x: eqopt.control.Graft(_sgd(), x),
}
BASES: dict[str, Callable[[], Transformation]] = {
    "SGD": _sgd,
    "AdamW": lambda: eqopt.AdamW(0.05, 0.8, 0.95),
    "LBFGS": lambda: eqopt.LBFGS(
        memory_size=2, linesearch=eqopt.ScaleByBacktrackingLinesearch(6, store_grad=True)
    ),
}

# What makes no sense directly within a wrapper; a dash stands for a class's flag.
_PRECISE = "MasterWeights Compensated StochasticRounding"
_FOLLOWERS = f"Lookahead ParamEMA Mechanize SAM ScheduleFree WeightNorm Project {_PRECISE}"
_CHOOSERS = "Masked Partition SelectiveTransform"
REFUSED = {
    "Chain": "SAM-opaque",
    "Chain-first": _FOLLOWERS,
    "NamedChain": "SAM-opaque",
    "Flatten": _CHOOSERS,
    "SplitRealAndImaginary": _CHOOSERS,
    "WeightNorm": f"{_CHOOSERS} {_FOLLOWERS}",
    "Scheduled": "SAM-opaque",
    "ConditionallyTransform": _FOLLOWERS,
    "MultiSteps": "SAM-opaque LBFGS",
    "Compensated": "Project",
    "StochasticRounding": "Project",
    "Project": _FOLLOWERS,
    "Lookahead": _FOLLOWERS,
    "ParamEMA": "ParamEMA SAM ScheduleFree",
    "Mechanize": _FOLLOWERS + " MultiSteps LBFGS",
    "SAM": f"SAM SAM-opaque LBFGS Project {_PRECISE}",
    "SAM-opaque": "SAM SAM-opaque LBFGS",
    "ScheduleFree": _FOLLOWERS + " MultiSteps LBFGS",
    "Graft": _FOLLOWERS + " LBFGS",
}


def _refused(outer: str, inner: str, base: str) -> bool:
    return (
        inner in REFUSED.get(outer, "").split()
        or base in REFUSED.get(outer, "").split()
        or base in REFUSED.get(inner, "").split()
    )


SENSIBLE = [x for x in itertools.product(WRAPPERS, WRAPPERS, BASES) if not _refused(*x)]


def _is_chosen(outer: str, inner: str, base: str) -> bool:
    """Every pair around one of the first two bases, and every wrapper twice around the third."""
    distance = list(WRAPPERS).index(outer) - list(WRAPPERS).index(inner)
    if base == "LBFGS":
        return distance % len(WRAPPERS) == 1
    return base == ("SGD", "AdamW")[distance % 2]


# All of them, with `EQOPT_MATRIX=all`, take a quarter of an hour to compile.
CHOSEN = [x for x in SENSIBLE if os.environ.get("EQOPT_MATRIX") == "all" or _is_chosen(*x)]


def _build(outer: str, inner: str, base: str) -> Transformation:
    return WRAPPERS[outer](WRAPPERS[inner](BASES[base]()))


@pytest.mark.parametrize("outer", WRAPPERS)
def test_what_makes_no_sense_is_refused_with_the_reason(outer: str):
    for inner, base in itertools.product(WRAPPERS, BASES):
        if _refused(outer, inner, base):
            with pytest.raises(ValueError, match=r"`\w+` within `\w+` makes no sense: .*; .*"):
                _build(outer, inner, base)
        else:
            _build(outer, inner, base)


PARAMS = {
    name: {
        "wide": jnp.asarray(np.linspace(-1.0, 1.5, 6).reshape(2, 3) * sign, jnp.float32),
        "half": jnp.asarray(np.linspace(0.5, 1.0, 3) * sign, jnp.bfloat16),
    }
    for name, sign in (("rest", 1.0), ("some", -1.0))
}
LANES = [PARAMS, jax.tree.map(lambda x: x * jnp.asarray(0.7, x.dtype), PARAMS)]
SCALES = jnp.asarray(np.linspace(1.0, 1.5, NUM_STEPS), jnp.float32)


def _loss(params: Any, scale: Any) -> Any:
    wide = [x.astype(jnp.float32) for x in jax.tree.leaves(params)]
    return sum(jnp.sum(jnp.log1p(jnp.square(scale * x - 0.25))) for x in wide)


def _key(scale: Any) -> Any:
    """Of each step its own, for what rounds at random."""
    return jax.random.wrap_key_data(jnp.full(2, scale, jnp.float32).view(jnp.uint32))


def _run(opt: Transformation, params: Any, state: Any, scales: Any) -> Any:
    def step(carry: Any, scale: Any) -> Any:
        params, state, evaluation = opt.step(_loss, *carry, scale, key=_key(scale))
        return (params, state), evaluation.value

    return lax.scan(step, (params, state), scales)[0]


def _saved_and_restored(tree: Any) -> Any:
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, tree)
    file.seek(0)
    return eqx.tree_deserialise_leaves(file, jax.tree.map(jnp.zeros_like, tree))


@pytest.mark.parametrize(("outer", "inner", "base"), CHOSEN)
def test_the_laws_hold(outer: str, inner: str, base: str):
    opt = _build(outer, inner, base)
    # Not compiled, one step after the other, for each lane alone.
    with jax.disable_jit():
        lanes = [(params, opt.init(params)) for params in LANES]
        params, state = lanes[1]
        for scale in SCALES:
            params, state, _ = opt.step(_loss, params, state, scale, key=_key(scale))
    # Compiled, scanned, for two lanes at once, donated, and interrupted in the middle. A scan
    # takes only states that are a fixed point: their shapes and dtypes, weak or not.
    run = jax.jit(jax.vmap(functools.partial(_run, opt), (0, 0, None)), donate_argnums=(0, 1))
    before = run(*jax.tree.map(lambda *xs: jnp.stack(xs), *lanes), SCALES[:CUT])
    restored = _saved_and_restored(before)
    after = run(*restored, SCALES[CUT:])
    assert all(x.is_deleted() for x in jax.tree.leaves(restored))
    after_params, after_state = lane(after, 1)
    _assert_near(after_params, params)
    _assert_near(eqopt.eval_params(after_params, after_state), eqopt.eval_params(params, state))
    # L-BFGS remembers differences of what is nearly equal, and a search its points bit by bit.
    if base != "LBFGS":
        _assert_near(after_state, state)


def _assert_near(a: Any, b: Any) -> None:
    """Compares numbers to two roundings in bfloat16, and all else exactly."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        # A sum that is added up in another order may round to the next bfloat16, and through a
        # norm or a learned rate changes all other numbers too.
        tolerance = 2.0**-7 if jnp.issubdtype(x.dtype, jnp.inexact) else 0.0
        wide = np.asarray(x).astype(float), np.asarray(y).astype(float)
        np.testing.assert_allclose(*wide, rtol=tolerance, atol=tolerance)
