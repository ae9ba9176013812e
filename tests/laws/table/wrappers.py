"""The rows of wrappers and combinators, and how each goes around anything."""

from typing import Any

import optax

import eqopt
from tests.laws.table.row import a_key, a_value, MATRICES, optimizer, Row, Transformation, Wrapper


def odd(step: Any) -> Any:
    """For `ConditionallyTransform`."""
    return step % 2 == 1


def first(step: Any) -> Any:
    """For `ConditionallyMask`."""
    return step == 0


def _step_size(chain: Any) -> Any:
    return chain.links[0].step_size


def scheduled(inner: Transformation) -> Transformation:
    """One whose first link follows a schedule."""
    return eqopt.Scheduled(
        eqopt.Chain(eqopt.Scale(1.0), inner), _step_size, eqopt.Linear(0.5, 0.25, 4)
    )


def _partition() -> Transformation:
    return eqopt.Partition({MATRICES: eqopt.AdamW(0.05, 0.8, 0.95), ...: eqopt.SGD(0.03, 0.7)})


# One object: functions that are made anew would be compiled anew. Without `eps_root`, optax has no
# derivative at zero.
_ADAM_OF_OPTAX = optax.adam(0.05, 0.8, 0.95, eps_root=1e-8)

# The laws run over trees of several kinds.
_BRANCH = eqopt.ByPath("branch.w", must_match=False)
_NOWHERE = eqopt.ByPath("nowhere", must_match=False)
ROWS = [
    Row(
        "Chain",
        lambda: eqopt.Chain(
            eqopt.ClipByGlobalNorm(0.6), eqopt.Trace(0.7), eqopt.ScaleByLearningRate(0.05)
        ),
        descends=True,
    ),
    Row("FromOptax", lambda: eqopt.from_optax(_ADAM_OF_OPTAX), descends=True),
    Row("Masked", lambda: eqopt.Masked(eqopt.Adam(0.05), MATRICES)),
    Row("Partition", _partition, descends=True, needs_params=True),
    Row("Freeze", lambda: eqopt.Freeze(_BRANCH)),
    Row(
        "SelectiveTransform",
        lambda: eqopt.SelectiveTransform(eqopt.Adam(0.05), _NOWHERE),
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
    optimizer("Mechanize", lambda: eqopt.Mechanize(eqopt.SGD(0.5), 0.02, 1e-6, 1e-3, 3)),
    Row("SAM", lambda: eqopt.SAM(eqopt.Trace(0.7), eqopt.Scale(-0.04)), needs_params=True),
    optimizer(
        "InjectedHyperparams",
        lambda: eqopt.InjectHyperparams(eqopt.AdamW)(
            eqopt.Linear(0.05, 0.02, 4), 0.8, 0.95, weight_decay=0.01, mask=MATRICES
        ),
    ),
    Row("Scheduled", lambda: scheduled(eqopt.Trace(0.7))),
    optimizer("Lookahead", lambda: eqopt.Lookahead(eqopt.SGD(0.05, 0.7), 2, 0.6)),
    # A long period: what is reset counts from 0 again.
    optimizer("Lookahead-reset", lambda: eqopt.Lookahead(eqopt.Adam(0.05), 7, 0.6, True)),
    optimizer("ParamEMA", lambda: eqopt.ParamEMA(eqopt.SGD(0.05, 0.7), 0.8)),
    Row(
        "MasterWeights", lambda: eqopt.precision.MasterWeights(eqopt.AdamW(0.05)), needs_params=True
    ),
    Row("Compensated", lambda: eqopt.precision.Compensated(eqopt.AdamW(0.05)), needs_params=True),
    Row(
        "StochasticRounding",
        lambda: eqopt.precision.StochasticRounding(eqopt.AdamW(0.05)),
        needs_params=True,
        needs=a_key,
    ),
    Row(
        "ScheduleFree",
        lambda: eqopt.ScheduleFree(eqopt.SGD(0.05), eqopt.Linear(0.04, 0.05, 4), 0.8, 1.5),
        descends=True,
    ),
    optimizer("WeightNorm", lambda: eqopt.WeightNorm(eqopt.SGD(0.05, 0.7), 0.01, 1e-5)),
    Row("ApplyEvery", lambda: eqopt.ApplyEvery(2)),
    Row("ApplyIfFinite", lambda: eqopt.ApplyIfFinite(eqopt.Adam(0.05), 2), descends=True),
    Row(
        "ApplyIfFinite-skip",
        lambda: eqopt.ApplyIfFinite(eqopt.Trace(0.7), 2, eqopt.options.skip_update),
    ),
    Row("ConditionallyTransform", lambda: eqopt.ConditionallyTransform(eqopt.Trace(0.7), odd)),
    Row("ConditionallyMask", lambda: eqopt.ConditionallyMask(eqopt.Trace(0.7), odd)),
    # The second call, which most laws look at, closes the window.
    # The state has the values, so the laws give the same ones wherever they compare states.
    Row("MultiSteps", lambda: eqopt.MultiSteps(eqopt.Trace(0.7), 2), needs=a_value),
    Row(
        "MultiSteps-sum-skip",
        lambda: eqopt.MultiSteps(
            eqopt.Trace(0.7),
            eqopt.Linear(2.0, 3.0, 4),
            use_grad_mean=False,
            should_skip_update_fn=eqopt.skip_not_finite,
        ),
        needs=a_value,
    ),
]

# Those within which anything may stand; laws about what is passed on run over these.
WRAPPERS = [
    Wrapper("Chain", lambda inner: eqopt.Chain(eqopt.Clip(0.4), eqopt.Scale(1.0), inner)),
    Wrapper("Masked", lambda inner: eqopt.Masked(inner, eqopt.ByPath("**"))),
    Wrapper("Partition", lambda inner: eqopt.Partition({"all": inner}, "all")),
    Wrapper(
        "SelectiveTransform",
        lambda inner: eqopt.SelectiveTransform(inner, _NOWHERE),
    ),
    Wrapper("Flatten", eqopt.Flatten),
    Wrapper("NamedChain", lambda inner: eqopt.NamedChain(("scale", eqopt.Scale(1.0)), inner=inner)),
    Wrapper("SplitRealAndImaginary", eqopt.SplitRealAndImaginary),
    Wrapper("Scheduled", scheduled),
    # What is taken apart has another gradient inside.
    Wrapper(
        "WeightNorm",
        lambda inner: eqopt.WeightNorm(inner, mask=_NOWHERE),
    ),
    Wrapper("ApplyIfFinite", lambda inner: eqopt.ApplyIfFinite(inner, 2)),
    Wrapper("ConditionallyTransform", lambda inner: eqopt.ConditionallyTransform(inner, first)),
    Wrapper("ConditionallyMask", lambda inner: eqopt.ConditionallyMask(inner, first)),
    Wrapper("MultiSteps", lambda inner: eqopt.MultiSteps(inner, 1)),
    Wrapper("Lookahead", lambda inner: eqopt.Lookahead(inner, 2, 0.6)),
    Wrapper("ParamEMA", lambda inner: eqopt.ParamEMA(inner, 0.8)),
    Wrapper("Mechanize", eqopt.Mechanize),
    Wrapper("MasterWeights", eqopt.precision.MasterWeights),
    Wrapper("Compensated", eqopt.precision.Compensated),
    Wrapper("StochasticRounding", eqopt.precision.StochasticRounding),
    Wrapper("SAM", lambda inner: eqopt.SAM(inner, eqopt.Identity(), 1)),
    Wrapper("ScaleBySophia", lambda inner: eqopt.ScaleBySophia(hessian_diagonal_fn=inner)),
    Wrapper("ScheduleFree", lambda inner: eqopt.ScheduleFree(inner, 0.05, 0.8)),
]
