"""The counts that the benchmarks assert, and how they compare."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqopt
from benchmarks import (
    _report,
    _timing,
    characters,
    compile,
    cutest,
    memory,
    minimize,
    pinn,
    tpu,
    which,
)
from benchmarks._timing import Row, Spread
from tests.support.toolbox import in_one_width


def test_counts_of_traces_and_compilations():
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        rows = compile.counts(num_steps=2)
    rows += [compile.cost_of_checks(num_leaves=8), *minimize.counts()]
    assert _timing.wrong(rows) == []
    # That rows can be wrong: optax's program is another for each learning rate, and a program
    # traced without checks takes what the checks refuse.
    assert "optax 3" in str(rows[0].result)
    params = {"a": jnp.zeros(2, jnp.bfloat16)}
    grads = {"a": jnp.zeros(2, jnp.float16)}
    optimizer = eqopt.AdamW(1e-3)
    state = optimizer.init(params)
    with compile.unchecked():
        optimizer.update(grads, state, params)
    with pytest.raises(ValueError, match="float16"):
        compile.lower(optimizer.update, grads, state, params)


def test_counts_of_bytes():
    size = memory.Size(blocks=1, blocks_of_kernels=1, width=32)
    pairs = [memory.PAIRS["AdamW"], memory.PAIRS["SGD"]]
    with jax.numpy_dtype_promotion("standard"):
        rows = [row for pair in pairs for row in memory.compared("", pair, size)]
        swapped = memory.Pair(pairs[0].eqopt, pairs[1].optax)
        wrong = memory.compared("swapped", swapped, size)
    assert _timing.wrong(rows) == []
    # The moments of AdamW are two copies of the parameters; SGD has none.
    assert _timing.wrong(wrong) == ["swapped: bytes of the state"]
    num_bytes = memory.num_bytes(memory.parameters(1, 32))
    assert num_bytes == 4 * (32 * 256 + 32 + 3 * 3 * 8 * 16)


def test_peak_of_an_overwriting_step():
    step = jax.jit(lambda x, y: (x + y, jnp.sum(y)), donate_argnums=0)
    x, y = jnp.ones(1000, jnp.float32), jnp.ones(1000, jnp.float32)
    stats = memory.donating(lambda: step(x, y))
    assert stats.alias_size_in_bytes == 4000
    # The two arguments, and a number; the sum of them is where the first was.
    assert 8004 <= memory.peak(stats) < 9000


def test_kernels_are_counted_wherever_they_are():
    program = """
HloModule jit_step

%fused_computation (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  %m = f32[4]{0} multiply(%p, %p)
  ROOT %n = f32[4]{0} negate(%m)
}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %s = f32[] add(%a, %b)
}

%command_buffer (p.1: f32[4]) -> f32[4] {
  %p.1 = f32[4]{0} parameter(0)
  ROOT %f.1 = f32[4]{0} fusion(%p.1), kind=kLoop, calls=%fused_computation
}

ENTRY %main (x: f32[4]) -> (f32[4], f32[]) {
  %x = f32[4]{0} parameter(0)
  %zero = f32[] constant(0)
  %c = f32[4]{0} copy(%x)
  %f = f32[4]{0} call(%c), to_apply=%command_buffer
  %r = f32[] reduce(%f, %zero), dimensions={0}, to_apply=%add
  ROOT %t = (f32[4]{0}, f32[]) tuple(%f, %r)
}
"""
    assert memory.num_kernels(program) == 3  # the fusion, the copy and the reduction


def test_alternation_and_ratios():
    order = []

    def side(name, seconds):
        def run():
            order.append(name)
            return {"whole": seconds * len(order), "part": seconds}

        return run

    times = _timing.alternate_phases({"a": side("a", 1.0), "b": side("b", 4.0)}, repetitions=2)
    assert order == ["b", "a", "a", "b", "b", "a"]
    assert times["whole"] == {"a": [3.0, 6.0], "b": [16.0, 20.0]}  # the first round not counted
    assert _timing.ratio(times["whole"], "b", "a") == Spread(26 / 6, 20 / 6, 16 / 3)
    row = _timing.timed("what", times["part"], ("a", "b"), 1.0, 0.2)
    assert (row.ok, row.at_most, row.result) == (False, 0.2, Spread(0.25, 0.25, 0.25))
    assert _timing.timed("what", times["part"], ("a", "b"), 1.0, 0.25).ok


def test_files(tmp_path):
    results = {
        "one": [Row("a / b", Spread(0.5, 0.25, 1.0), "at most 0.4", False, at_most=0.4)],
        "other": [Row("bytes", "eqopt 1, optax 2", "eqopt 1", True, counted=True)],
    }
    header = {"device": "cpu", "cores": "2", "jax": "0"}
    _report.write(tmp_path / "new" / "results.json", header, results)
    found = json.loads((tmp_path / "new" / "results.json").read_text())
    assert found["machine"] == header
    assert found["suites"]["one"][0]["result"] == {"median": 0.5, "low": 0.25, "high": 1.0}
    _report.draw(tmp_path / "new" / "picture.png", header, results)
    assert (tmp_path / "new" / "picture.png").read_bytes().startswith(b"\x89PNG")
    lines = list(_report.verdicts([row for rows in results.values() for row in rows]))
    assert "MISSED" in lines[0]
    assert "ok" in lines[1]


@in_one_width  # its data are in float32
def test_which_optimizer():
    """The comparison runs, learns, and is what the page shows."""
    (task, *_) = which.tasks().values()
    size = which.Size(num_steps=40, num_seeds=2, rates=(1e-6, 1e-2))
    losses = which.held_out_losses(task, eqopt.Adam, size)
    assert losses.shape == (2, 2)
    found = which.summary(losses, size.rates)
    assert (found["rate"], found["near"]) == (1e-2, 1) and found["loss"] < 1.0
    page = (_report.RESULTS.parent / "which-optimizer.md").read_text(encoding="utf-8")
    assert which.table(json.loads(which.FILE.read_text(encoding="utf-8"))) in page


def test_physics_informed_network():
    # The source is that of the exact solution, whose residual is zero.
    p = jnp.asarray([0.3, -0.7])
    source = (1 - 17 * jnp.pi**2) * pinn.exact(p)
    np.testing.assert_allclose(pinn.helmholtz(pinn.exact, p), source, rtol=1e-4)
    page = (_report.RESULTS.parent / "minimizing.md").read_text(encoding="utf-8")
    found = json.loads(pinn.FILE.read_text(encoding="utf-8"))
    assert pinn.table(found["table"]) in page
    assert found["table"] == {
        name: pytest.approx(pinn.summary(curves), rel=0.01)
        for name, curves in found["runs"].items()
    }


def cutest_results(file: str) -> tuple[dict[str, dict[str, cutest.Result]], dict[str, set[str]]]:
    """The results of each solver, and the problems that it solves."""
    found = json.loads((_report.RESULTS / file).read_text(encoding="utf-8"))
    results = {
        solver: {name: cutest.Result(**x) for name, x in by_name.items()}
        for solver, by_name in found["results"].items()
    }
    return results, {solver: cutest.solved(results, solver) for solver in results}


def page_of(name: str) -> str:
    return (_report.RESULTS.parent / name).read_text(encoding="utf-8")


def test_the_figures_of_bounded_problems():
    """The table of the page is that of the committed results."""
    results, own = cutest_results("bounded.json")
    page, common = page_of("constraints.md"), sorted(set.intersection(*own.values()))
    assert f"over the {len(common)} problems" in page.replace("\n", " ")
    rows = {"`LBFGSB`": "eqopt", "SciPy's `L-BFGS-B`": "scipy", "jaxopt's `LBFGSB`": "jaxopt"}
    for shown, solver in rows.items():
        mean = cutest.geometric_mean(results, solver, common)
        assert f"| {shown} | {len(own[solver])} | {mean:.1f} |" in page
    both = sorted(own["eqopt"] & own["scipy"])
    means = [cutest.geometric_mean(results, x, both) for x in ("eqopt", "scipy")]
    assert f"it takes {means[0] / means[1]:.2f} of SciPy's evaluations" in page
    assert set(results["eqopt"]) - own["eqopt"] == {"PALMER5B", "PALMER7E", "RAYBENDL"}


def test_the_figures_of_problems_without_bounds():
    results, own = cutest_results("cutest.json")
    page = page_of("minimizing.md")
    common = set.intersection(*(own[x] for x in cutest.PEERS))
    assert f"of the {len(common)} problems that all four other libraries solve" in page
    rows = {
        "`LBFGS`": "eqopt",
        "`NewtonCG`": "eqopt-newton",
        "SciPy's `L-BFGS-B`": "scipy",
        "optax's `lbfgs`": "optax",
        "jaxopt's `LBFGS`": "jaxopt",
        "optimistix's `LBFGS`": "optimistix",
    }
    for shown, solver in rows.items():
        mean = cutest.geometric_mean(results, solver, sorted(common & own[solver]))
        assert f"| {shown} | {len(own[solver])} | {mean:.1f} |" in page
    assert common - own["eqopt"] == {"HEART8LS"}
    pair = own["eqopt"], own["eqopt-newton"]
    assert len(pair[0] - pair[1]) == len(pair[1] - pair[0]) == 2


@in_one_width  # its model is in float32
def test_characters():
    """A transformer learns, and the table of the page is that of the committed runs."""
    size = dataclasses.replace(characters.SMOKE, num_steps=60)
    run = characters.trainer(characters.text(), size)
    first, *_, last = run(characters.OPTIMIZERS["Muon"].make(0.02, 0.01), 0)
    assert last < first < 5
    points = np.asarray(characters.rates((1e-2, 1e-3), 16))
    assert np.all((points > [1e-3, 1e-4]) & (points < [1e-1, 1e-2]))
    assert tuple(points[0]) == pytest.approx((1e-2, 1e-3))
    runs = json.loads(characters.FILE.read_text(encoding="utf-8"))["runs"]
    assert [len(x["trials"]) for x in runs.values()] == [16] * 4
    assert [len(x["curves"]) for x in runs.values()] == [3] * 4
    assert characters.table(characters.summary(runs)) in page_of("training-transformers.md")


def test_programs_for_tpus():
    found = json.loads(tpu.FILE.read_text(encoding="utf-8"))["programs"]
    assert tpu.table(found) in page_of("training-transformers.md")
    text = """%body.1 (x: f32[2]) -> f32[2] {
  %y = f32[2] all-reduce(%x)
}

ENTRY %main (x: f32[2]) -> f32[2] {
  %a = f32[2] all-to-all-start(%x)
  %b = f32[2] while(%a), condition=%test.1, body=%body.1
}
"""
    assert tpu.count(text) == {
        **dict.fromkeys(tpu.COLLECTIVES, 0),
        "all-to-all": 1,
        "all-reduce": 1,
    }
    assert [tpu.count(x)["all-reduce"] for x in tpu.loop_bodies(text)] == [1]
