"""The adaptive and layerwise optimizers equal optax's, and the papers' formulas."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

import eqopt
from tests.support.parity import (
    ADAM,
    between,
    BOOLS,
    DECAY,
    fields,
    links,
    params_after,
    power,
    RATE,
    row,
    towards_one,
    trajectories,
)
from tests.support.toolbox import FLOAT, X64

# Axes of equal size, and more of them than two: which are the largest?
SHAPES = {"even": (3, 4, 4, 3)}

# The average may not be the gradient itself, for then the distance between them is rounding error.
BELIEF = {**ADAM, "b1": towards_one(-2, -0.5)}
ADADELTA = {"rho": towards_one(-2, 0), "eps": power(-6, -2)}
RSS = {"initial_accumulator_value": power(-4, 0), "eps": power(-8, -2)}
TRUST = {"trust_coefficient": power(-3, 0), "eps": power(-6, -1)}
MIN_SCALE = {"min_scale": power(-3, 1)}
MOMENTUM = {"momentum": between(0, 0.99)}
FACTORED = {"decay_rate": between(0.3, 1)}
EPSILON = {"epsilon": power(-30, -2)}
ADAFACTOR = {
    **FACTORED,
    "eps": power(-30, -2),
    "clipping_threshold": between(0.2, 2),
    "learning_rate": power(-3, -1),
}


def bounded(step: Any, decay_rate: Any) -> Any:
    """A decay that stops short of 1, for `decay_rate_fn`."""
    t = jnp.asarray(step + 1, FLOAT)
    return jnp.minimum(1 - t**-decay_rate, jnp.asarray(0.8, FLOAT))


ROWS = [
    *(row(eqopt.ScaleByBelief, optax.scale_by_belief, BELIEF, nesterov=x) for x in BOOLS),
    # Of complex gradients, optax averages the complex square, which is no measure of their size.
    row(eqopt.ScaleByAdadelta, optax.scale_by_adadelta, ADADELTA, real=True),
    row(eqopt.ScaleByRSS, optax.scale_by_rss, RSS, elsewhere=("eps_in_sqrt",)),
    *(
        row(
            eqopt.ScaleByFactoredRMS,
            optax.scale_by_factored_rms,
            {**FACTORED, **EPSILON},
            factored=factored,
            min_dim_size_to_factor=size,
            decay_rate_fn=fn,
            elsewhere=("step_offset",),
        )
        for factored, size, fn in (
            (True, 1, bounded),
            (True, 3, bounded),
            (False, 1, bounded),
        )
    ),
    row(
        eqopt.ScaleByFactoredRMS,
        optax.scale_by_factored_rms,
        {**FACTORED, **EPSILON},
        min_dim_size_to_factor=2,
    ),
    row(
        eqopt.ScaleByTrustRatio,
        optax.scale_by_trust_ratio,
        TRUST,
        elsewhere=("weight_decay", "zeros_move"),
    ),
    row(
        eqopt.ScaleByTrustRatio, optax.scale_by_trust_ratio, {**TRUST, "min_norm": between(0.1, 5)}
    ),
    row(eqopt.ScaleByParamBlockNorm, optax.scale_by_param_block_norm, MIN_SCALE),
    row(eqopt.ScaleByParamBlockRMS, optax.scale_by_param_block_rms, MIN_SCALE),
    row(eqopt.ClipByBlockRMS, optax.clip_by_block_rms, {"threshold": between(0.2, 2)}),
    row(eqopt.AdaBelief, optax.adabelief, {**RATE, **BELIEF}),
    row(
        eqopt.AdaBelief,
        optax.adabelief,
        {**RATE, **BELIEF},
        scheduled="learning_rate",
        nesterov=True,
    ),
    row(eqopt.Adadelta, optax.adadelta, {**RATE, **ADADELTA}, real=True),
    row(
        eqopt.Adadelta,
        optax.adadelta,
        {**RATE, **ADADELTA, **DECAY},
        scheduled="learning_rate",
        masks=("weight_decay_mask",),
        real=True,
    ),
    row(eqopt.Adagrad, optax.adagrad, {**RATE, **RSS}),
    row(eqopt.Adagrad, optax.adagrad, {**RATE, **RSS}, scheduled="learning_rate"),
    row(eqopt.LAMB, optax.lamb, {**RATE, **ADAM}),
    row(
        eqopt.LAMB,
        optax.lamb,
        {**RATE, **ADAM, **DECAY},
        scheduled="learning_rate",
        masks=("mask",),
    ),
    row(eqopt.LARS, optax.lars, {**RATE, **TRUST, **MOMENTUM}),
    row(eqopt.LARS, optax.lars, {**RATE, **TRUST, **MOMENTUM, **DECAY}, nesterov=True),
    row(
        eqopt.LARS,
        optax.lars,
        {**RATE, **TRUST, **MOMENTUM, **DECAY},
        scheduled="learning_rate",
        masks=("weight_decay_mask", "trust_ratio_mask"),
    ),
    row(eqopt.Adafactor, optax.adafactor, ADAFACTOR, min_dim_size_to_factor=2),
    row(
        eqopt.Adafactor,
        optax.adafactor,
        {**ADAFACTOR, **MOMENTUM, "weight_decay_rate": power(-4, -2)},
        scheduled="learning_rate",
        masks=("weight_decay_mask",),
        # In float32, optax's default, a long run in float64 has not the digits to compare.
        dtype_momentum=np.dtype(FLOAT),
        # To an average in a real dtype, optax casts a complex one.
        real=True,
        elsewhere=("decay_offset",),
    ),
    row(
        eqopt.Adafactor,
        optax.adafactor,
        FACTORED,
        clipping_threshold=None,
        multiply_by_parameter_scale=False,
        factored=False,
    ),
]


test_trajectories_equal_those_of_optax = trajectories(ROWS, SHAPES)
test_every_field_is_varied = fields(ROWS)
# Sums over a leaf are added up in another order where they are fused with what is summed; and
# in an average of updates of either sign, what they differ by is more of what is left.
test_an_optimizer_is_its_links_one_by_one = links(ROWS, 128, SHAPES)


# The papers' own formulas, in NumPy and float64.

_PAPER = 1e-12 if X64 else 2e-5


def _numbers(*shape: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(len(shape))
    return rng.standard_normal(shape).astype(FLOAT), rng.standard_normal((20, *shape)).astype(FLOAT)


def test_adadelta_is_that_of_the_paper():
    x, gradients = _numbers(3, 2)
    found = params_after(eqopt.Adadelta(rho=0.95, eps=1e-4), x, gradients)
    x, e_g, e_x = x.astype(np.float64), np.zeros((3, 2)), np.zeros((3, 2))
    for g, ours in zip(gradients.astype(np.float64), found, strict=True):
        e_g = 0.95 * e_g + 0.05 * g**2
        step = -np.sqrt(e_x + 1e-4) / np.sqrt(e_g + 1e-4) * g
        e_x = 0.95 * e_x + 0.05 * step**2
        x = x + step
        np.testing.assert_allclose(ours, x, rtol=_PAPER, atol=_PAPER)


def test_adadelta_without_a_rate_descends():
    w = jnp.asarray([1.0, -2.0], FLOAT)
    opt = eqopt.Adadelta()
    updates, _ = opt.update(w, opt.init(w), w)
    # The first step: G = g^2 / 10 and X = 0.
    expected = -np.sqrt(1e-6) / np.sqrt(0.1 * np.asarray(w) ** 2 + 1e-6) * np.asarray(w)
    np.testing.assert_allclose(updates, expected, rtol=1e-12 if X64 else 1e-6)
    tx = optax.adadelta()
    climbing: Any = tx.update(w, tx.init(w), w)[0]
    np.testing.assert_allclose(climbing, -expected, rtol=1e-12 if X64 else 1e-6)


def test_lamb_is_that_of_the_paper():
    x, gradients = _numbers(4, 3)
    found = params_after(eqopt.LAMB(0.1, 0.8, 0.9, 1e-6, weight_decay=0.05), x, gradients)
    x, m, v = x.astype(np.float64), np.zeros((4, 3)), np.zeros((4, 3))
    for t, (g, ours) in enumerate(zip(gradients.astype(np.float64), found, strict=True), 1):
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
        r = (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.9**t)) + 1e-6) + 0.05 * x
        x = x - 0.1 * np.linalg.norm(x) / np.linalg.norm(r) * r
        np.testing.assert_allclose(ours, x, rtol=_PAPER, atol=_PAPER)


def test_lars_without_decay_is_that_of_the_paper():
    x, gradients = _numbers(4, 3)
    found = params_after(eqopt.LARS(0.5, trust_coefficient=0.1), x, gradients)
    x, v = x.astype(np.float64), np.zeros((4, 3))
    for g, ours in zip(gradients.astype(np.float64), found, strict=True):
        v = 0.9 * v + 0.5 * 0.1 * np.linalg.norm(x) / np.linalg.norm(g) * g
        x = x - v
        np.testing.assert_allclose(ours, x, rtol=_PAPER, atol=_PAPER)


def test_adagrad_outside_of_the_root_is_torchs():
    x, gradients = _numbers(4)
    found = params_after(
        eqopt.Chain(eqopt.ScaleByRSS(0.0, 1e-3, eps_in_sqrt=False), eqopt.Scale(-0.1)), x, gradients
    )
    squares = np.cumsum(gradients.astype(np.float64) ** 2, 0)
    expected = x - np.cumsum(0.1 * gradients / (np.sqrt(squares) + 1e-3), 0)
    np.testing.assert_allclose(found, expected, rtol=_PAPER, atol=_PAPER)


def test_factored_rms_is_exact_where_the_squares_have_rank_one():
    """Adafactor's approximation is the whole average there: the updates are the signs."""
    rng = np.random.default_rng(0)
    g = np.outer(rng.standard_normal(4), rng.standard_normal(3)).astype(FLOAT)
    opt = eqopt.ScaleByFactoredRMS(min_dim_size_to_factor=2)
    state = opt.init(g)
    for _ in range(3):
        updates, state = opt.update(g, state)
        np.testing.assert_allclose(updates, np.sign(g), rtol=1e-12 if X64 else 1e-5)
