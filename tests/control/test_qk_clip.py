"""Matrices of queries and keys that shrink by head, against what attention makes of them."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqopt
from eqopt import ByPath
from eqopt.control import QKClip
from tests.support.toolbox import FLOAT, same, values

untyped: Any = eqopt.matrix

HEADS, SIZE, IN = 4, 3, 5
RTOL = 1e-12 if FLOAT is np.float64 else 1e-5
TAU = 10.0


def _params(num_key_heads: int = HEADS, stack: tuple[int, ...] = ()) -> dict[str, Any]:
    return {
        "q": 3 * values((*stack, HEADS * SIZE, IN), 0),
        "k": 3 * values((*stack, num_key_heads * SIZE, IN), 1),
        "rest": values((IN,), 2),
    }


def _max_logits(params: Any, x: np.ndarray) -> np.ndarray:
    """The largest logit of each head, of one layer."""
    q = np.asarray(params["q"], np.float64).reshape(HEADS, SIZE, IN)
    k = np.asarray(params["k"], np.float64)
    k = k.reshape(-1, SIZE, IN)
    k = np.repeat(k, HEADS // len(k), axis=0)
    logits = np.einsum("hdi,ni,hdj,mj->hnm", q, x, k, x)
    return logits.max((1, 2))


def _stepped(opt: Any, params: Any, logits: Any, scale: float = 0.0) -> Any:
    grads = jax.tree.map(lambda x: FLOAT(scale) * values(x.shape, 7), params)
    updates, _ = opt.update(grads, opt.init(params), params, max_logits=logits)
    return eqopt.apply_updates(params, updates)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8, 1.0])
def test_the_largest_logit_becomes_the_limit(alpha: float):
    params = _params()
    x = np.random.default_rng(3).normal(size=(6, IN))
    # One head is below the limit.
    smallest, second = np.sort(_max_logits(params, x))[:2]
    x *= np.sqrt(2 * TAU / (smallest + second))
    before = _max_logits(params, x)
    assert np.sum(before < TAU) >= 1 and np.sum(before > TAU) >= 2
    opt = QKClip(ByPath("q"), ByPath("k"), HEADS, max_logit=TAU, alpha=alpha)
    after = _stepped(opt, params, jnp.asarray(before, FLOAT))
    np.testing.assert_allclose(_max_logits(after, x), np.minimum(before, TAU), rtol=10 * RTOL)
    assert same(after["rest"], params["rest"])
    assert same(after["q"], params["q"]) is (alpha == 0)
    assert same(after["k"], params["k"]) is (alpha == 1)
    below = int(np.argmin(before))
    rows = slice(below * SIZE, (below + 1) * SIZE)
    assert same(after["q"][rows], params["q"][rows])


def test_it_is_the_matrix_after_the_step_that_shrinks():
    params, logits = _params(), jnp.asarray([5.0, 40.0, 20.0, 10.0], FLOAT)
    opt = eqopt.Chain(eqopt.SGD(0.1), QKClip(ByPath("q"), ByPath("k"), HEADS, max_logit=TAU))
    plain = _stepped(eqopt.SGD(0.1), params, logits, 1.0)
    after = _stepped(opt, params, logits, 1.0)
    factor = np.repeat(np.sqrt([1.0, 0.25, 0.5, 1.0]), SIZE)[:, None]
    for name in "qk":
        np.testing.assert_allclose(after[name], factor * plain[name], rtol=10 * RTOL)
    assert same(after["q"][:SIZE], plain["q"][:SIZE])


def test_shared_keys_take_the_smallest_factor_of_their_group():
    params = _params(2)
    logits = np.asarray([5.0, 40.0, 20.0, 160.0])
    opt = QKClip(ByPath("q"), ByPath("k"), HEADS, 2, TAU, 0.25)
    after = _stepped(opt, params, jnp.asarray(logits, FLOAT))
    share = np.minimum(1, TAU / logits)
    factor = np.repeat(share**0.25, SIZE)[:, None]
    np.testing.assert_allclose(after["q"], factor * params["q"], rtol=RTOL)
    factor = np.repeat([share[1] ** 0.75, share[3] ** 0.75], SIZE)[:, None]
    np.testing.assert_allclose(after["k"], factor * params["k"], rtol=RTOL)


def test_rotated_queries_shrink_in_full():
    params = {**_params(), "r": values((HEADS * 2, IN), 5)}
    logits = np.asarray([5.0, 40.0, 20.0, 160.0])
    opt = QKClip(ByPath("q"), ByPath("k"), HEADS, None, TAU, rotary_query=ByPath("r"))
    after = _stepped(opt, params, jnp.asarray(logits, FLOAT))
    factor = np.repeat(np.minimum(1, TAU / logits), 2)[:, None]
    np.testing.assert_allclose(after["r"], factor * params["r"], rtol=RTOL)


def test_layers_are_a_stack_or_several_matrices():
    stacked = _params(stack=(2,))
    logits = jnp.asarray([[5.0, 40.0, 20.0, 10.0], [80.0, 1.0, 30.0, 90.0]], FLOAT)
    opt = QKClip(ByPath("q"), ByPath("k"), HEADS, max_logit=TAU)
    together = _stepped(opt, stacked, logits, 0.1)
    layers = [{x: stacked[x][i] for x in "qk"} for i in range(2)]
    several = QKClip(ByPath("*.q"), ByPath("*.k"), HEADS, max_logit=TAU)
    grads = [{x: FLOAT(0.1) * values(stacked[x].shape, 7)[i] for x in "qk"} for i in range(2)]
    updates, _ = several.update(grads, several.init(layers), layers, max_logits=list(logits))
    apart = eqopt.apply_updates(layers, updates)
    for i in range(2):
        for x in "qk":
            np.testing.assert_allclose(apart[i][x], together[x][i], rtol=RTOL)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -3.0, 0.0, TAU])
def test_logits_that_change_nothing(bad: float):
    params = _params()
    opt = QKClip(ByPath("q"), ByPath("k"), HEADS, max_logit=TAU)
    after = _stepped(opt, params, jnp.full(HEADS, bad, FLOAT), 0.1)
    assert same(after, _stepped(eqopt.Identity(), params, None, 0.1))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_logits_in_any_dtype(dtype: Any):
    params = _params()
    opt = QKClip(ByPath("q"), None, HEADS, max_logit=TAU, alpha=1.0)
    after = _stepped(opt, params, jnp.full(HEADS, 40.0, dtype))
    assert after["q"].dtype == FLOAT
    np.testing.assert_allclose(after["q"], 0.25 * params["q"], rtol=RTOL)


def test_only_the_queries():
    params = _params()
    opt = QKClip(ByPath("q"), None, HEADS, max_logit=TAU, alpha=1.0)
    after = _stepped(opt, params, jnp.full(HEADS, 20.0, FLOAT))
    np.testing.assert_allclose(after["q"], 0.5 * params["q"], rtol=RTOL)
    assert same(after["k"], params["k"])


@pytest.mark.parametrize(
    ("opt", "logits", "words"),
    [
        (
            QKClip(ByPath("q"), ByPath("k"), HEADS),
            None,
            "`QKClip` needs `max_logits`: return it in the objective's aux",
        ),
        (
            QKClip(ByPath("q"), ByPath("k"), HEADS),
            jnp.ones(3, FLOAT),
            r"`max_logits` must hold real arrays of shape \(\.\.\., 4\)",
        ),
        (
            QKClip(ByPath("q"), ByPath("k"), HEADS),
            [jnp.ones(4, FLOAT)] * 2,
            "`max_logits` holds 2 arrays; `query` chooses 1 matrices",
        ),
        (
            QKClip(ByPath("q"), ByPath("k"), HEADS),
            jnp.ones((2, 4), FLOAT),
            r"`max_logits` for `params\['q'\]`, of shape \(12, 5\), must have shape \(4,\)",
        ),
    ],
)
def test_mistakes_when_traced(opt: Any, logits: Any, words: str):
    params = _params()
    with pytest.raises(ValueError, match=words):
        given = {} if logits is None else {"max_logits": logits}
        opt.update(params, opt.init(params), params, **given)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: QKClip(ByPath("q"), ByPath("k"), 5),
            r"`params\['q'\]`, which `query` chooses, has shape \(12, 5\).*with 5 heads",
        ),
        (
            lambda: QKClip(ByPath("rest"), None, 1),
            r"`params\['rest'\]`, which `query` chooses, has shape \(5,\)",
        ),
        (
            lambda: QKClip(eqopt.ByNdim(2), ByPath("k"), HEADS),
            "`query` chooses 2 matrices, and `key` 1; there must be one for each",
        ),
        (
            lambda: QKClip(ByPath("q"), ByPath("k"), HEADS, 3),
            "`num_key_heads` must divide `num_heads`; got 3 and 4",
        ),
        (lambda: QKClip(ByPath("q"), None, 0), "`num_heads` must be at least 1"),
        (lambda: QKClip(ByPath("q"), None, 1, max_logit=0.0), "`max_logit` must be above 0"),
        (lambda: QKClip(ByPath("q"), None, 1, alpha=1.5), "`alpha` must be at least 0 and at most"),
    ],
)
def test_mistakes_at_the_start(make: Any, words: str):
    with pytest.raises(ValueError, match=words):
        make().init(_params())


def test_links_after_it_are_refused():
    clip = QKClip(ByPath("q"), None, HEADS)
    with pytest.raises(ValueError, match=r"`QKClip` within `Chain` makes no sense.*Put it last"):
        eqopt.Chain(clip, eqopt.Scale(0.5))


def test_the_matrices_of_equinox():
    attention = eqx.nn.MultiheadAttention(2, 6, key=jax.random.key(0))
    opt = QKClip(ByPath("query_proj.weight"), ByPath("key_proj.weight"), 2, max_logit=1.0)
    grads = jax.tree.map(jnp.zeros_like, eqx.filter(attention, eqx.is_inexact_array))
    updates, _ = opt.update(
        grads, opt.init(attention), attention, max_logits=jnp.asarray([4.0, 0.5], FLOAT)
    )
    after = eqopt.apply_updates(attention, updates)
    factor = np.repeat([0.5, 1.0], 3)[:, None]
    for x in ("query_proj", "key_proj"):
        before, now = (getattr(m, x).weight for m in (attention, after))
        np.testing.assert_allclose(now, factor * before, rtol=RTOL)


def _loss(params: Any, logits: Any) -> Any:
    return jnp.sum(params["q"]) + jnp.sum(params["k"]) + jnp.sum(params["rest"]), logits


def test_logits_in_the_aux():
    params, logits = _params(), {"max_logits": jnp.asarray([20.0, 1.0, 1.0, 40.0], FLOAT)}
    opt = eqopt.Chain(eqopt.SGD(0.1), QKClip(ByPath("q"), ByPath("k"), HEADS, max_logit=TAU))
    state = opt.init(params)
    ones = jax.tree.map(jnp.ones_like, params)
    updates, _ = opt.update(ones, state, params, max_logits=logits["max_logits"])
    expected = eqopt.apply_updates(params, updates)
    found, _, _ = opt.step(_loss, params, state, logits, has_aux=True)
    assert same(found, expected)
    assert same(eqopt.fit(_loss, opt, params, [(logits,)], has_aux=True).model, expected)
    with pytest.raises(ValueError, match="`QKClip` needs `max_logits`"):
        opt.step(_loss, params, state, logits["max_logits"], has_aux=True)


def test_muon_clip_needs_a_clip():
    with pytest.raises(TypeError, match="`clip` must be a `QKClip`; got"):
        untyped.MuonClip(0.1, eqopt.Identity())
