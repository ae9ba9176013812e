"""The optimizers on the page about transformers, against their sources' rules in plain NumPy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqopt
from eqopt import ByNdim, ByPath, control, matrix
from tests.support.markdown_code import fences
from tests.support.toolbox import FLOAT, X64

PAGE = Path(__file__).parents[2] / "docs" / "training-transformers.md"
RNG = np.random.default_rng(0)
NUM_HEADS, RATE = 2, 0.05
SHAPES = {"query": (6, 4), "key": (6, 4), "up": (8, 4), "down": (4, 8)}
PARAMS = {name: RNG.normal(size=(2, *shape)) for name, shape in SHAPES.items()}
GRADS = [{name: RNG.normal(size=x.shape) for name, x in PARAMS.items()} for _ in range(6)]
# The first head's logits are too large at first, the second's never are.
LOGITS = [np.array([[40.0, 5.0], [9.0, 20.0]]) / (1 + i) for i in range(6)]

Rule = Callable[[np.ndarray, np.ndarray], np.ndarray]


def recipe(name: str) -> Any:
    """The function of this name on the page."""
    (found,) = [
        x.code for x in fences(PAGE.read_text(encoding="utf-8")) if f"def {name}(" in x.code
    ]
    space = {"eqopt": eqopt, "ByNdim": ByNdim, "ByPath": ByPath, "control": control}
    body = found.split("\n\n\n")[0]
    exec(body, space | {"matrix": matrix}, space)
    return space[name]


class Model(eqx.Module):
    """Stacks of two layers, and a vector that is no matrix."""

    blocks: dict[str, eqx.nn.Linear]
    scale: jax.Array

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.blocks, self.scale = {}, jnp.ones(3, FLOAT)
        for name, x in arrays.items():
            layer = eqx.nn.Linear(*x.shape[:0:-1], use_bias=False, key=jax.random.key(0))
            self.blocks[name] = eqx.tree_at(lambda y: y.weight, layer, jnp.asarray(x, FLOAT))


def norm(x: np.ndarray) -> Any:
    return np.sqrt(np.sum(x * x))


def newton_schulz(x: np.ndarray, size: Callable[[np.ndarray], Any], rows: Any) -> np.ndarray:
    if x.shape[0] > x.shape[1]:
        return newton_schulz(x.T, size, rows).T
    x = x / size(x)
    for a, b, c in rows:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def schatten(x: np.ndarray) -> Any:
    return np.maximum(np.sqrt(norm(x @ x.T)), 1e-7)


def record() -> Rule:
    """modded-nanogpt, track 3, result 46: `Muon.step` without SOAP, in the order of its lines."""
    momentum: Any = 0.0

    def step(p: np.ndarray, grad: np.ndarray) -> np.ndarray:
        nonlocal momentum
        momentum = momentum + (1 - 0.95) * (grad - momentum)
        update = newton_schulz(grad + 0.95 * (momentum - grad), schatten, 12 * [(2, -1.5, 0.5)])
        update *= max(1, p.shape[0] / p.shape[1]) ** 0.5
        coeff = np.sum(update * p) / np.sum(p * p)
        update = update - coeff * p + (0.5 if coeff < 0 else 1.0) * coeff * p
        rows, own = (np.linalg.norm(x, axis=1, keepdims=True) for x in (p, update))
        update = update * np.maximum(0.3825 * rows / own, 1)
        target = norm(p) - RATE * np.sum(update * p) / norm(p)
        mask = update * p > 0
        p = p - RATE * update
        p = p * target / norm(p)
        return p * (1 - RATE * 0.025 * mask)

    return step


def muon_h() -> Rule:
    """modded-nanogpt, track 3: `muon_update` and `scale_invariant_update_` of MuonH."""
    momentum: Any = 0.0

    def step(p: np.ndarray, grad: np.ndarray) -> np.ndarray:
        nonlocal momentum
        momentum = momentum + (1 - 0.95) * (grad - momentum)
        update = grad + 0.95 * (momentum - grad)
        update = newton_schulz(update, lambda x: norm(x) + 1e-7, 12 * [(2, -1.5, 0.5)])
        new = p - RATE * update * norm(p) / norm(update)
        return new / norm(new) * norm(p)

    return step


def muon_clip() -> Rule:
    """Kimi K2, algorithm 1, before the clip: heavy ball, and a root mean square of 0.2."""
    momentum: Any = 0.0

    def step(p: np.ndarray, grad: np.ndarray) -> np.ndarray:
        nonlocal momentum
        momentum = 0.95 * momentum + grad
        rows = 5 * [(3.4445, -4.775, 2.0315)]
        update = newton_schulz(momentum, lambda x: norm(x) + 1e-8, rows)
        return p - RATE * (0.2 * max(p.shape) ** 0.5 * update + 0.1 * p)

    return step


def clipped(name: str, p: np.ndarray, max_logits: np.ndarray) -> np.ndarray:
    """The clip of one layer's queries or keys, head by head."""
    if name not in ("query", "key"):
        return p
    share = np.minimum(1, 10.0 / max_logits) ** 0.5
    return np.concatenate([x * y for x, y in zip(share, np.split(p, NUM_HEADS), strict=True)])


@pytest.mark.parametrize(
    ("name", "cls", "rule", "hyper"),
    [
        ("record", control.CautiousDecay, record, {}),
        ("muon_h", matrix.MuonHyperball, muon_h, {}),
        ("muon_clip", matrix.MuonClip, muon_clip, {"max_logit": 10.0}),
    ],
)
def test_the_page_has_the_rule_of_the_source(
    name: str, cls: type[Any], rule: Callable[[], Rule], hyper: Any
):
    opt = recipe(name)(RATE, **hyper)
    assert f"{cls.__name__}(" in repr(opt)
    model = Model(PARAMS)
    state, expected = opt.init(model), PARAMS
    rules = {leaf: [rule(), rule()] for leaf in SHAPES}
    for i, grads in enumerate(GRADS):
        logits = {"max_logits": jnp.asarray(LOGITS[i], FLOAT)} if name == "muon_clip" else {}
        updates, state = opt.update(Model(grads), state, model, **logits)
        model = eqopt.apply_updates(model, updates)
        expected = {
            leaf: np.stack([rules[leaf][j](x[j], grads[leaf][j]) for j in range(2)])
            for leaf, x in expected.items()
        }
        if name == "muon_clip":
            expected = {
                leaf: np.stack([clipped(leaf, x[j], LOGITS[i][j]) for j in range(2)])
                for leaf, x in expected.items()
            }
        for leaf, x in expected.items():
            found = model.blocks[leaf].weight
            np.testing.assert_allclose(found, x, rtol=0, atol=1e-11 if X64 else 2e-5)
