"""The law of copies, over every transformation: what is copied, pickled or read from a file is the
same, and does the same."""

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import eqopt
from tests.laws.table import every, Row
from tests.laws.table.row import half_square
from tests.support.copying import assert_equal, COPIES, every_copy, Layers, through_a_file
from tests.support.toolbox import FLOAT, same, tree, types, values


@every
def test_transformations_states_and_optimizers(row: Row):
    params, gradients, opt = tree(), tree(7), row.make()
    needs = row.needs(params)
    # What `step` does not find out by itself.
    others = {x: y for x, y in needs.items() if x not in ("value", "grad", "value_fn", "key")}
    start = opt.init(params)
    _, state = opt.update(gradients, start, params, **needs)
    optimizer = eqopt.Optimizer(opt, state, params)
    expected = opt.update(gradients, state, params, **needs)
    after, _ = optimizer.step(half_square, **others)
    whole = opt, start, state, optimizer

    fresh = row.make()
    like = fresh, fresh.init(params), fresh.init(params), eqopt.Optimizer.create(fresh, params)
    loaded = through_a_file(whole, like)
    assert_equal(loaded, whole)
    copies = [loaded]
    for name, make_copy in COPIES.items():
        # A transformation of optax's is a pair of functions within functions. cloudpickle takes
        # them along, as functions of their own, which are equal to no others.
        of_optax = row.cls is eqopt.interop.FromOptax and "pickle" in name
        if of_optax and name == "pickle":
            with pytest.raises(AttributeError, match="local object"):
                make_copy(opt)
            continue
        copied = tuple(map(make_copy, whole))
        assert same(copied, whole)
        if not of_optax:
            assert_equal(copied, whole)
        assert types(copied[1:3]) == types(whole[1:3])
        copies.append(copied)

    for one, _, its_state, its_optimizer in copies:
        assert same(one.update(gradients, its_state, params, **needs), expected)
        stepped, _ = its_optimizer.step(half_square, **others)
        assert same((stepped.target, stepped.state), (after.target, after.state))


# What is made anew, and so cannot be pickled by its name.


@pytest.mark.parametrize("name", ["deepcopy", "cloudpickle"])
def test_functions_that_have_no_name(name: str):
    rate = 0.5
    opt = eqopt.Chain(
        eqopt.Masked(eqopt.Trace(0.9), lambda params: jax.tree.map(lambda x: x.ndim > 0, params)),
        eqopt.Scheduled(
            eqopt.Scale(1.0), lambda o: o.step_size, lambda count: rate / (1 + count.astype(FLOAT))
        ),
        eqopt.SelectiveTransform(eqopt.Scale(2.0), eqopt.selectors.Where(lambda model: model["b"])),
    )
    params = {"a": values((2,), 3), "b": values((), 4)}
    state = opt.init(params)
    _, state = opt.update(params, state, params)
    one, its_state = COPIES[name](opt), COPIES[name](state)
    assert same(its_state, state)
    assert same(one.update(params, its_state, params), opt.update(params, state, params))


# Trees that are kept as what is static: masks, labels, axes of matrices.


LAYERS = Layers(values((3, 2), 1), values((2,), 2), Layers(values((2, 2), 3), None))


def _total(params: Any, factor: Any) -> Any:
    return sum([jnp.sum(factor * x**2) for x in jax.tree.leaves(params)])


OF_TREES: dict[str, Callable[[], Any]] = {
    "mask": lambda: eqopt.Masked(eqopt.Trace(0.9), Layers(True, False, Layers(True, None))),
    "mask, a prefix": lambda: eqopt.Freeze(Layers(True, False, True)),
    "labels": lambda: eqopt.Partition(
        {"a": eqopt.SGD(0.1, 0.9), "b": eqopt.Adam(0.1)}, Layers("a", "b", "a")
    ),
    "axes": lambda: eqopt.Muon(
        0.1,
        muon_weight_dimension_numbers=Layers(
            eqopt.options.MuonDimensionNumbers(0, 1),
            None,
            Layers(eqopt.options.MuonDimensionNumbers((1,), 0), None),
        ),
    ),
}


@every_copy
@pytest.mark.parametrize("make", OF_TREES.values(), ids=OF_TREES.keys())
def test_trees_of_modules(make: Callable[[], Any], make_copy: Callable[[Any], Any]):
    opt = make()
    state = opt.init(LAYERS)
    one = make_copy(opt)
    assert_equal(one, opt)
    assert hash(jax.tree.structure(one)) == hash(jax.tree.structure(opt))
    assert_equal(one.init(LAYERS), state)
    updates, after = one.update(LAYERS, make_copy(state), LAYERS)
    assert same((updates, after), opt.update(LAYERS, state, LAYERS))


@every_copy
def test_hyperparameters_in_a_state_stay_editable(make_copy: Callable[[Any], Any]):
    params = jnp.ones(2, FLOAT)
    opt = eqopt.InjectHyperparams(eqopt.AdamW)(0.1, weight_decay=0.01)
    state = opt.init(params)
    copied = make_copy(state)
    assert_equal(copied, state)
    copied.hyperparams["learning_rate"] = 0.5
    assert float(copied.hyperparams["learning_rate"]) == 0.5
    with pytest.raises(KeyError, match="no hyper-parameter `rate`; there is b1"):
        copied.hyperparams["rate"] = 0.5
    if make_copy is not copy.copy:  # which shares what a Module holds
        assert float(state.hyperparams["learning_rate"]) == FLOAT(0.1)
    mine = make_copy(opt.init(params).hyperparams)
    mine["b1"] = 0.25
    assert type(mine) is type(state.hyperparams) and float(mine["b1"]) == 0.25


def test_what_was_pickled_goes_on_in_another_process(tmp_path: Path):
    key = jax.random.key(3, impl="rbg")
    opt = eqopt.Chain(
        eqopt.AddNoise(0.1, 0.5, key),
        eqopt.Masked(eqopt.Trace(0.9), Layers(True, False, True)),
        eqopt.InjectHyperparams(eqopt.SGD)(0.1),
    )
    fit = eqopt.fit(_total, opt, LAYERS, [(1.0,)] * 3, key=key)
    optimizer = eqopt.Optimizer(opt, fit.state, fit.model)
    (tmp_path / "pickled").write_bytes(pickle.dumps((opt, fit, optimizer)))
    program = f"""
import pickle
from pathlib import Path
import eqopt, jax
from tests.laws.test_copies import _total
folder = Path({str(tmp_path)!r})
opt, fit, optimizer = pickle.loads((folder / "pickled").read_bytes())
rest = eqopt.fit(_total, opt, fit.model, [(2.0,)] * 3, state=fit.state, key=fit.key)
after, _ = optimizer.step(_total, 3.0)
(folder / "back").write_bytes(pickle.dumps((rest.model, rest.state, rest.key, after)))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import tests.conftest\n{program}"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rest = eqopt.fit(_total, opt, fit.model, [(2.0,)] * 3, state=fit.state, key=fit.key)
    after, _ = optimizer.step(_total, 3.0)
    back = pickle.loads((tmp_path / "back").read_bytes())
    assert_equal(back, (rest.model, rest.state, rest.key, after))
