"""Which parameters are matrices, and how often matrices are made orthogonal."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqopt
from eqopt import control, matrix
from tests.support.toolbox import FLOAT, values


class Network(eqx.Module):
    embedding: eqx.nn.Embedding
    layers: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    kernel: eqx.nn.Conv2d
    cell: eqx.nn.GRUCell
    own: Any

    def __init__(self) -> None:
        key = jax.random.key(0)
        self.embedding = eqx.nn.Embedding(7, 4, key=key)
        self.layers = eqx.filter_vmap(lambda k: eqx.nn.Linear(4, 5, key=k))(
            jax.random.split(key, 3)
        )
        self.norm = eqx.nn.LayerNorm((2, 2))
        self.kernel = eqx.nn.Conv2d(2, 3, 5, key=key)
        self.cell = eqx.nn.GRUCell(2, 3, key=key)
        self.own = jnp.ones((2, 6))


def test_matrices_go_by_layers():
    rows = {x.path: x for x in matrix.matrices_of(Network())}
    sizes = {path: (x.num, x.size) for path, x in rows.items() if x.num}
    assert sizes == {
        "layers.weight": (3, (5, 4)),
        "kernel.weight": (1, (3, 50)),
        "cell.weight_ih": (1, (9, 2)),
        "cell.weight_hh": (1, (9, 3)),
        "own": (1, (6, 2)),  # outside the layers of Equinox the output is the last axis
    }
    assert {"embedding.weight", "layers.bias", "norm.weight"} <= {x for x in rows if x not in sizes}
    text = repr(matrix.matrices_of(Network()))
    assert "layers.weight" in text and "3 of 5 x 4" in text and "no matrix" in text


def test_optimizers_give_the_matrices_to_muon():
    model, rate = Network(), 0.1
    exact = eqopt.ScaleByMuon(momentum="ema", nesterov=False, method="svd")
    opt = matrix.NorMuon(rate, muon=exact, rest=eqopt.SGD(1.0))
    ones = jax.tree.map(jnp.ones_like, eqx.filter(model, eqx.is_inexact_array))
    updates, _ = opt.update(ones, opt.init(model), model)
    assert np.all(updates.embedding.weight == -1) and np.all(updates.layers.bias == -1)
    # A matrix of ones has one singular value, which becomes 1, and then 0.2 max(5, 4)^.5.
    norms = np.linalg.norm(updates.layers.weight, axis=(1, 2))
    np.testing.assert_allclose(norms, rate * 0.2 * np.sqrt(5), rtol=1e-5)


def test_a_selector_says_which_of_the_layers():
    model, chosen = Network(), ~eqopt.ByPath("cell.weight_ih")
    rows = {x.path for x in matrix.matrices_of(model, chosen) if x.num}
    assert rows == {x.path for x in matrix.matrices_of(model) if x.num} - {"cell.weight_ih"}
    ones = jax.tree.map(jnp.ones_like, eqx.filter(model, eqx.is_inexact_array))
    for opt in (
        eqopt.Muon(0.1, adam_learning_rate=0.0, muon_weight_dimension_numbers=chosen),
        matrix.NorMuon(0.1, rest=eqopt.SGD(0.0), weight_dimension_numbers=chosen),
        matrix.MuonHyperball(0.1, rest=eqopt.SGD(0.0), weight_dimension_numbers=chosen),
    ):
        updates, _ = opt.update(ones, opt.init(model), model)
        assert np.all(updates.cell.weight_ih == 0)
        assert np.all(updates.cell.weight_hh != 0) and np.all(updates.layers.weight != 0)
    with pytest.raises(ValueError, match="`ByPath`"):
        eqopt.Muon(0.1, muon_weight_dimension_numbers=eqopt.ByPath("cel")).init(model)


def test_matrices_of_one_size_are_one_iteration():
    shapes: list[Any] = []

    def counted(x: Any, eps: Any) -> Any:
        shapes.append(x.shape)
        return eqopt.options.muon_frobenius(x, eps)

    sizes = [(4, 6), (6, 4), (3, 3), (2, 5)]
    params = {str(i): jnp.ones(sizes[i % 4]) for i in range(200)}
    opt = eqopt.Muon(0.1, preconditioning=counted)
    state = jax.eval_shape(opt.init, params)
    jax.eval_shape(opt.update, params, state, params)
    assert sorted(shapes) == [(50, 2, 5), (50, 3, 3), (100, 4, 6)]


CLIP = control.QKClip(eqopt.ByPath("w"), None, 2)


@pytest.mark.parametrize(
    ("make", "rate"),
    [
        (eqopt.Muon, 0.2),
        (matrix.NorMuon, 0.2),
        (matrix.AdaMuon, 0.2),
        (matrix.NAMO, 0.2),
        (matrix.PolarGrad, 0.05),
        (lambda rate: matrix.Scion(rate, radius=1.0, constrained=False), 0.2),
        (matrix.MuonHyperball, 0.1),
        (lambda rate: matrix.MuonClip(rate, CLIP, weight_decay=0.0), 0.2),
    ],
)
def test_matrices_converge(make: Any, rate: float):
    aim = values((4, 6), 0)
    opt = make(eqopt.Linear(rate, 0.0, 300))
    start = {"w": aim[::-1]}  # which has the norm of the aim

    def step(carry: Any, _: None) -> Any:
        params, state = carry
        grads = {"w": params["w"] - aim}
        updates, state = opt.update(grads, state, params, max_logits=jnp.zeros(2, FLOAT))
        return (eqopt.apply_updates(params, updates), state), None

    (final, _), _ = jax.jit(lambda: jax.lax.scan(step, (start, opt.init(start)), length=300))()
    distance = np.linalg.norm(final["w"] - aim) / np.linalg.norm(start["w"] - aim)
    assert distance < 0.02
