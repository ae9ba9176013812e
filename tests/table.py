"""The one table of every concrete transformation: the laws run over it; it is complete by test."""

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqopt
from eqopt import AbstractTransformation

_T = AbstractTransformation[Any]


@dataclasses.dataclass(frozen=True)
class Row:
    """One transformation, with one choice of its flags.

    **Arguments:**

    - `name`: the class's name, and the choice.
    - `make`: builds it. Its numbers differ from each other and from 0 and 1, so that laws about
        them can fail.
    - `descends`: whether it is an optimizer by itself: its updates go downhill.
    - `needs_params`: whether `update` must be given the parameters.
    - `needs`: the keyword arguments that `update` must be given, built from the parameters.
    - `differentiable`: whether its updates have derivatives. A line search has none: it runs until
        it is done. Nor has what chooses by what it finds which steps to remember.
    """

    name: str
    make: Callable[[], _T]
    descends: bool = False
    needs_params: bool = False
    needs: Callable[[Any], dict[str, Any]] = lambda params: {}
    differentiable: bool = True


@dataclasses.dataclass(frozen=True)
class Wrapper:
    """A transformation of transformations, around any inner one."""

    name: str
    wrap: Callable[[_T], _T]


def double(updates: Any, params: Any) -> Any:
    """For `Stateless`."""
    return jax.tree.map(lambda u: 2 * u, updates)


def odd(step: Any) -> Any:
    """For `ConditionallyTransform`."""
    return step % 2 == 1


def first(step: Any) -> Any:
    """For `ConditionallyMask`."""
    return step == 0


def _last_step_size(chain: Any) -> Any:
    return chain.links[-1].step_size


def _scheduled(inner: _T) -> _T:
    return eqopt.Scheduled(
        eqopt.Chain(inner, eqopt.Scale(1.0)), _last_step_size, eqopt.Linear(0.5, 0.25, 4)
    )


def half_square(params: Any) -> Any:
    """An objective of whatever parameters there are."""
    leaves = [x for x in jax.tree.leaves(params) if eqx.is_inexact_array(x)]
    wide = [jnp.abs(x.astype(np.float32) if x.dtype.itemsize == 2 else x) for x in leaves]
    return sum(jnp.sum(jnp.square(x).astype(jnp.result_type(float))) for x in wide) / 2


def _of_objective(params: Any) -> dict[str, Any]:
    value, grad = eqx.filter_jit(eqx.filter_value_and_grad(half_square))(params)
    return {"value": value, "grad": grad, "value_fn": half_square}


def _a_value(params: Any) -> dict[str, Any]:
    return {"value": jnp.asarray(2.0)}


def _search(name: str, make: Callable[[], _T]) -> Row:
    return Row(name, make, needs_params=True, needs=_of_objective, differentiable=False)


def _optimizer(name: str, make: Callable[[], _T]) -> Row:
    return Row(name, make, descends=True, needs_params=True)


def _direction(name: str, make: Callable[[], _T], *, descends: bool = False) -> Row:
    # It does without the value, but makes use of one.
    return Row(name, make, descends, needs_params=True, needs=_a_value, differentiable=False)


_MATRICES = eqopt.ByNdim(2)


def _partition() -> _T:
    return eqopt.Partition({_MATRICES: eqopt.AdamW(0.05, 0.8, 0.95), ...: eqopt.SGD(0.03, 0.7)})


# One object: functions that are made anew would be compiled anew. Without `eps_root`, optax has no
# derivative at zero.
_ADAM_OF_OPTAX = optax.adam(0.05, 0.8, 0.95, eps_root=1e-8)

ROWS = [
    Row("Identity", eqopt.Identity),
    Row("Scale", lambda: eqopt.Scale(-0.3), descends=True),
    Row("ScaleByLearningRate", lambda: eqopt.ScaleByLearningRate(0.05), descends=True),
    Row("ScaleByLearningRate-up", lambda: eqopt.ScaleByLearningRate(0.05, flip_sign=False)),
    Row(
        "ScaleByLearningRate-schedule",
        lambda: eqopt.ScaleByLearningRate(eqopt.Linear(0.05, 0.01, 4)),
        descends=True,
    ),
    Row("ScaleBySchedule", lambda: eqopt.ScaleBySchedule(eqopt.Linear(0.5, 0.1, 4))),
    Row("SetToZero", eqopt.SetToZero),
    Row("Stateless", lambda: eqopt.Stateless(double)),
    Row("Trace", lambda: eqopt.Trace(0.7)),
    Row("Trace-nesterov", lambda: eqopt.Trace(0.7, nesterov=True)),
    Row("EMA", lambda: eqopt.EMA(0.7)),
    Row("EMA-biased", lambda: eqopt.EMA(0.7, debias=False)),
    Row("ScaleByAdam", lambda: eqopt.ScaleByAdam(0.8, 0.95, 1e-6, 1e-5)),
    Row("ScaleByAdam-nesterov", lambda: eqopt.ScaleByAdam(0.8, 0.95, nesterov=True)),
    Row("ScaleByAdam-mu_dtype", lambda: eqopt.ScaleByAdam(0.8, 0.95, mu_dtype=jnp.bfloat16)),
    Row("ScaleByLion", lambda: eqopt.ScaleByLion(0.8, 0.95)),
    Row("ScaleByLion-smooth", lambda: eqopt.ScaleByLion(0.8, 0.95, None, eqopt.lion_smooth, 2.0)),
    Row("ScaleByLion-refined", lambda: eqopt.ScaleByLion(0.8, 0.95, None, eqopt.lion_refined)),
    Row("ScaleByRMS", lambda: eqopt.ScaleByRMS(0.8, 1e-6, 0.1)),
    Row(
        "ScaleByRMS-debiased",
        lambda: eqopt.ScaleByRMS(0.8, 1e-6, eps_in_sqrt=False, bias_correction=True),
    ),
    Row("ScaleByStddev", lambda: eqopt.ScaleByStddev(0.8, 1e-6, 0.1, eps_in_sqrt=False)),
    Row(
        "ScaleByStddev-debiased",
        # The variance after one step is 0, and all of the denominator `eps`.
        lambda: eqopt.ScaleByStddev(0.8, 0.01, bias_correction=True),
    ),
    Row("AddDecayedWeights", lambda: eqopt.AddDecayedWeights(0.01), needs_params=True),
    Row(
        "AddDecayedWeights-mask",
        lambda: eqopt.AddDecayedWeights(0.01, _MATRICES),
        needs_params=True,
    ),
    Row("Clip", lambda: eqopt.Clip(0.4)),
    Row("ClipByGlobalNorm", lambda: eqopt.ClipByGlobalNorm(0.6)),
    Row(
        "Monitor",
        lambda: eqopt.Monitor(
            {"norm": eqopt.global_norm, "average": eqopt.MeasureWithEMA(eqopt.global_norm, 0.7)}
        ),
    ),
    Row("Normalize", eqopt.Normalize),
    Row("Snapshot", lambda: eqopt.Snapshot("norm", eqopt.global_norm)),
    Row(
        "Chain",
        lambda: eqopt.Chain(
            eqopt.ClipByGlobalNorm(0.6), eqopt.Trace(0.7), eqopt.ScaleByLearningRate(0.05)
        ),
        descends=True,
    ),
    Row("FromOptax", lambda: eqopt.from_optax(_ADAM_OF_OPTAX), descends=True),
    Row("Masked", lambda: eqopt.Masked(eqopt.Adam(0.05), _MATRICES)),
    Row("Partition", _partition, descends=True, needs_params=True),
    Row("Freeze", lambda: eqopt.Freeze(eqopt.ByPath("branch.w"))),
    Row(
        "SelectiveTransform",
        lambda: eqopt.SelectiveTransform(eqopt.Adam(0.05), eqopt.ByPath("nowhere")),
        descends=True,
    ),
    Row("Flatten", lambda: eqopt.Flatten(eqopt.Adam(0.05, 0.8, 0.95)), descends=True),
    Row(
        "NamedChain",
        lambda: eqopt.NamedChain(
            ("trace", eqopt.Trace(0.7)),
            clip=eqopt.ClipByGlobalNorm(0.6),
            rate=eqopt.ScaleByLearningRate(0.05),
        ),
        descends=True,
    ),
    Row(
        "SplitRealAndImaginary",
        lambda: eqopt.SplitRealAndImaginary(eqopt.Adam(0.05, 0.8, 0.95)),
        descends=True,
    ),
    _optimizer("Mechanize", lambda: eqopt.Mechanize(eqopt.SGD(0.5), 0.02, 1e-6, 1e-3, 3)),
    Row("SAM", lambda: eqopt.SAM(eqopt.Trace(0.7), eqopt.Scale(-0.04)), needs_params=True),
    Row("Scheduled", lambda: _scheduled(eqopt.Trace(0.7))),
    _optimizer("Lookahead", lambda: eqopt.Lookahead(eqopt.SGD(0.05, 0.7), 2, 0.6)),
    # A long period: what is reset counts from 0 again.
    _optimizer("Lookahead-reset", lambda: eqopt.Lookahead(eqopt.Adam(0.05), 7, 0.6, True)),
    _optimizer("ParamEMA", lambda: eqopt.ParamEMA(eqopt.SGD(0.05, 0.7), 0.8)),
    Row(
        "ScheduleFree",
        lambda: eqopt.ScheduleFree(eqopt.SGD(0.05), eqopt.Linear(0.04, 0.05, 4), 0.8, 1.5),
        descends=True,
    ),
    Row("ApplyEvery", lambda: eqopt.ApplyEvery(2)),
    Row("ApplyIfFinite", lambda: eqopt.ApplyIfFinite(eqopt.Adam(0.05), 2), descends=True),
    Row(
        "ApplyIfFinite-skip",
        lambda: eqopt.ApplyIfFinite(eqopt.Trace(0.7), 2, eqopt.skip_update),
    ),
    Row("ConditionallyTransform", lambda: eqopt.ConditionallyTransform(eqopt.Trace(0.7), odd)),
    Row("ConditionallyMask", lambda: eqopt.ConditionallyMask(eqopt.Trace(0.7), odd)),
    # The second call, which most laws look at, closes the window.
    Row("MultiSteps", lambda: eqopt.MultiSteps(eqopt.Trace(0.7), 2)),
    Row(
        "MultiSteps-sum-skip",
        lambda: eqopt.MultiSteps(
            eqopt.Trace(0.7),
            eqopt.Linear(2.0, 3.0, 4),
            use_grad_mean=False,
            should_skip_update_fn=eqopt.skip_not_finite,
        ),
    ),
    _search(
        "ScaleByBacktrackingLinesearch", lambda: eqopt.ScaleByBacktrackingLinesearch(8, 0.01, 0.7)
    ),
    _search(
        "ScaleByBacktrackingLinesearch-grad",
        lambda: eqopt.ScaleByBacktrackingLinesearch(8, 0.01, 0.7, store_grad=True),
    ),
    _search("ScaleByZoomLinesearch", lambda: eqopt.ScaleByZoomLinesearch(8)),
    _search("ScaleByHagerZhangLinesearch", lambda: eqopt.ScaleByHagerZhangLinesearch(8)),
    _search("ScaleByWolfeLinesearch", lambda: eqopt.ScaleByWolfeLinesearch(8)),
    _direction("ScaleByLBFGS", lambda: eqopt.ScaleByLBFGS(3)),
    _direction(
        "ScaleByLBFGS-plain",
        lambda: eqopt.ScaleByLBFGS(
            3, first_step_rtol=0.5, init_matrix=eqopt.ScalarMatrix(), secant=eqopt.PlainSecant()
        ),
    ),
    _direction("ScaleByBFGS", lambda: eqopt.ScaleByBFGS(first_step_rtol=0.5)),
    _direction("ScaleByNonlinearCG", eqopt.ScaleByNonlinearCG),
    Row(
        "ScaleByPolyak",
        lambda: eqopt.ScaleByPolyak(0.1, 0.5, 1e-3),
        needs=_a_value,
    ),
    _direction("LBFGS", lambda: eqopt.LBFGS(0.05, 3, linesearch=None), descends=True),
    _direction("BFGS", lambda: eqopt.BFGS(0.05, linesearch=None), descends=True),
    _search("NonlinearCG", eqopt.NonlinearCG),
    Row(
        "PolyakSGD",
        lambda: eqopt.PolyakSGD(0.05, 0.5, 0.1, 1e-3),
        descends=True,
        needs=_a_value,
    ),
    Row("ScheduleFreeSGD", lambda: eqopt.ScheduleFreeSGD(0.05, b1=0.8), descends=True),
    _optimizer("ScheduleFreeSGD-warmup", lambda: eqopt.ScheduleFreeSGD(0.05, 3, 0.8, 0.01)),
    _optimizer(
        "ScheduleFreeAdamW", lambda: eqopt.ScheduleFreeAdamW(0.05, 3, 0.8, 0.95, 1e-6, 0.01)
    ),
    Row(
        "ReduceOnPlateau",
        lambda: eqopt.ReduceOnPlateau(0.3, 2, 0.1, 0.05, 3, 4, 0.2),
        needs=_a_value,
    ),
    Row("SGD", lambda: eqopt.SGD(0.05), descends=True),
    Row("SGD-momentum", lambda: eqopt.SGD(0.05, 0.7, nesterov=True), descends=True),
    Row("Adam", lambda: eqopt.Adam(0.05, 0.8, 0.95, 1e-6), descends=True),
    Row("Adam-schedule", lambda: eqopt.Adam(eqopt.Linear(0.05, 0.01, 4)), descends=True),
    Row("AdamW", lambda: eqopt.AdamW(0.05, 0.8, 0.95), descends=True, needs_params=True),
    Row(
        "AdamW-mask",
        lambda: eqopt.AdamW(0.05, weight_decay=0.01, mask=_MATRICES),
        descends=True,
        needs_params=True,
    ),
    Row("NAdam", lambda: eqopt.NAdam(0.05, 0.8, 0.95), descends=True),
    Row("NAdamW", lambda: eqopt.NAdamW(0.05, 0.8, 0.95), descends=True, needs_params=True),
    Row("Lion", lambda: eqopt.Lion(0.05, 0.8, 0.95), descends=True, needs_params=True),
    Row("RMSProp", lambda: eqopt.RMSProp(0.05, 0.8), descends=True),
    Row(
        "RMSProp-centered",
        lambda: eqopt.RMSProp(0.05, 0.8, centered=True, momentum=0.7),
        descends=True,
    ),
]

# Classes that optax cannot judge, and the file in which something else does.
_ORACLES = """
test_apply_if_finite ApplyIfFinite
test_conditional ConditionallyMask ConditionallyTransform
test_flatten Flatten SplitRealAndImaginary
test_from_optax FromOptax
test_eval_params ParamEMA
test_hager_zhang ScaleByHagerZhangLinesearch
test_linesearches ScaleByBacktrackingLinesearch ScaleByZoomLinesearch ScaleByWolfeLinesearch
test_lookahead Lookahead
test_mechanize Mechanize
test_minimize BFGS LBFGS
test_multi_steps ApplyEvery MultiSteps
test_monitor Monitor Snapshot
test_sam Normalize SAM
test_named_chain NamedChain
test_nonlinear_cg NonlinearCG ScaleByNonlinearCG
test_partition Freeze Partition SelectiveTransform
test_polyak PolyakSGD ScaleByPolyak
test_reduce_on_plateau ReduceOnPlateau
test_schedule_free ScheduleFree ScheduleFreeAdamW ScheduleFreeSGD
test_quasi_newton ScaleByBFGS ScaleByLBFGS
"""
OTHER_ORACLES = {x: file for file, *xs in map(str.split, _ORACLES.split("\n")[1:-1]) for x in xs}

# Those within which anything may stand; laws about what is passed on run over these.
WRAPPERS = [
    Wrapper("Chain", lambda inner: eqopt.Chain(eqopt.Clip(0.4), inner, eqopt.Scale(1.0))),
    Wrapper("Masked", lambda inner: eqopt.Masked(inner, eqopt.ByPath("**"))),
    Wrapper("Partition", lambda inner: eqopt.Partition({"all": inner}, "all")),
    Wrapper(
        "SelectiveTransform", lambda inner: eqopt.SelectiveTransform(inner, eqopt.ByPath("nowhere"))
    ),
    Wrapper("Flatten", eqopt.Flatten),
    Wrapper(
        "NamedChain", lambda inner: eqopt.NamedChain(("inner", inner), another=eqopt.Scale(1.0))
    ),
    Wrapper("SplitRealAndImaginary", eqopt.SplitRealAndImaginary),
    Wrapper("Scheduled", _scheduled),
    Wrapper("ApplyIfFinite", lambda inner: eqopt.ApplyIfFinite(inner, 2)),
    Wrapper("ConditionallyTransform", lambda inner: eqopt.ConditionallyTransform(inner, first)),
    Wrapper("ConditionallyMask", lambda inner: eqopt.ConditionallyMask(inner, first)),
    Wrapper("MultiSteps", lambda inner: eqopt.MultiSteps(inner, 1)),
    Wrapper("Lookahead", lambda inner: eqopt.Lookahead(inner, 2, 0.6)),
    Wrapper("ParamEMA", lambda inner: eqopt.ParamEMA(inner, 0.8)),
    Wrapper("Mechanize", eqopt.Mechanize),
    Wrapper("SAM", lambda inner: eqopt.SAM(inner, eqopt.Identity(), 1)),
    Wrapper("ScheduleFree", lambda inner: eqopt.ScheduleFree(inner, 0.05, 0.8)),
]

# Adam with a bfloat16 average has a hyper-parameter's worth of rounding noise; no derivative of it
# can be checked by differences.
ROUNDED = {"ScaleByAdam-mu_dtype"}


def _name(row: Row | Wrapper) -> str:
    return row.name


every_differentiable = pytest.mark.parametrize(
    "row", [r for r in ROWS if r.differentiable], ids=_name
)
every = pytest.mark.parametrize("row", ROWS, ids=_name)
every_optimizer = pytest.mark.parametrize("row", [r for r in ROWS if r.descends], ids=_name)
every_wrapper = pytest.mark.parametrize("wrapper", WRAPPERS, ids=_name)


def concrete_classes() -> set[type[_T]]:
    """Every concrete transformation that is defined anywhere in the package."""
    modules = [
        importlib.import_module(info.name)
        for info in pkgutil.walk_packages(eqopt.__path__, "eqopt.")
    ]
    return {
        x
        for module in modules
        for x in vars(module).values()
        if isinstance(x, type)
        and issubclass(x, AbstractTransformation)
        and not inspect.isabstract(x)
        and x.__module__.startswith("eqopt.")
    }


def holds_transformations(transformation: _T) -> bool:
    """Whether one of the fields is a transformation, or several."""
    values = [getattr(transformation, f.name) for f in dataclasses.fields(transformation)]
    values = [list(v.values()) if isinstance(v, dict) else v for v in values]
    inner = [x for v in values for x in (v if isinstance(v, tuple | list) else (v,))]
    return any(isinstance(x, AbstractTransformation) for x in inner)


def numbers(module: eqx.Module) -> list[str]:
    """The names of the fields that hold one number each."""
    return [f.name for f in dataclasses.fields(module) if _is_number(getattr(module, f.name))]


def _is_number(x: Any) -> bool:
    return isinstance(x, np.ndarray | np.generic | jax.Array) and x.shape == ()


def tuned(module: Any, change: Callable[[Any], Any]) -> Any:
    """Changes every number in an optimizer, those of its schedules too."""
    return jax.tree.map(lambda x: change(x) if _is_number(x) else x, module)
