"""The loop over batches, what it records, and reading hyper-parameters."""

import itertools
import signal
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

import eqopt
from eqopt._base.converters import float_dtype

X64 = float_dtype() == np.float64
TOLERANCE = 1e-12 if X64 else 1e-5


class Affine(eqx.Module):
    """A model with a frozen part, a number and a function in it."""

    weight: Float[Array, " n"]
    offset: Float[Array, ""]
    steps: Array
    scale: float
    activation: Any

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, ""]:
        return self.activation(jnp.sum(self.weight * x) * self.scale + self.offset)


def make_model() -> Affine:
    return Affine(jnp.arange(3.0), jnp.zeros(()), jnp.arange(4), 1.0, jnp.tanh)


def loss_fn(model: Affine, x: Float[Array, "b n"], y: Float[Array, " b"]) -> Float[Array, ""]:
    return jnp.mean((jax.vmap(model)(x) - y) ** 2)


def make_batches(num: int = 10, size: int = 4) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    dtype = float_dtype()
    return [
        (rng.normal(size=(size, 3)).astype(dtype), rng.normal(size=size).astype(dtype))
        for _ in range(num)
    ]


OPTIMIZER = eqopt.Chain(
    eqopt.ClipByGlobalNorm(1.0),
    eqopt.AdamW(eqopt.Linear(init_value=0.1, end_value=0.01, transition_steps=10)),
)


def assert_same(a: Any, b: Any, tolerance: float = TOLERANCE) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if eqx.is_array(x):
            assert np.allclose(x, y, rtol=tolerance, atol=tolerance)
        else:
            assert x == y


def by_hand(batches: list[Any]) -> tuple[Affine, list[Any], list[Any]]:
    """The same loop, written with `step`."""
    model, state = make_model(), OPTIMIZER.init(make_model())
    evaluations, rates = [], []
    for x, y in batches:
        rates.append(eqopt.hyperparameters(OPTIMIZER, state)["links[1].learning_rate"])
        model, state, evaluation = OPTIMIZER.step(loss_fn, model, state, x, y)
        evaluations.append(evaluation)
    return model, evaluations, rates


@pytest.mark.parametrize("steps_per_call", [1, 4, 32])
def test_does_what_steps_do(steps_per_call: int) -> None:
    batches = make_batches()
    expected, evaluations, rates = by_hand(batches)
    model = make_model()
    fit = eqopt.fit(loss_fn, OPTIMIZER, model, batches, steps_per_call=steps_per_call)
    assert_same(fit.model, expected)
    assert isinstance(fit.model, Affine) and fit.model.activation is jnp.tanh
    assert np.allclose(fit.history.loss, [e.value for e in evaluations], rtol=TOLERANCE)
    norms = [eqopt.global_norm(e.grad) for e in evaluations]
    assert np.allclose(fit.history.grad_norm, norms, rtol=TOLERANCE)
    assert fit.history.learning_rate is not None
    assert np.allclose(fit.history.learning_rate, rates, rtol=TOLERANCE)
    closed_form = 0.1 - 0.09 * np.arange(10) / 10
    assert np.allclose(fit.history.learning_rate, closed_form, rtol=1e-6)
    assert len(fit.history) == 10 and fit.history.aux is None
    assert not fit.interrupted
    assert_same(model, make_model(), 0.0)  # the model that was given is still there


def test_traces_once_also_when_called_again() -> None:
    traces = []

    def counted(model: Affine, x: Array, y: Array) -> Array:
        traces.append(None)
        return loss_fn(model, x, y)

    batches = make_batches()
    first = eqopt.fit(counted, OPTIMIZER, make_model(), batches)
    eqopt.fit(counted, OPTIMIZER, first.model, batches, state=first.state)
    faster = eqx.tree_at(lambda o: o.links[0].max_norm, OPTIMIZER, 0.5)
    eqopt.fit(counted, faster, make_model(), batches)
    assert len(traces) == 1


def test_batches_of_other_shapes_and_kinds() -> None:
    batches = [*make_batches(5), *make_batches(2, size=3), *make_batches(2)]
    expected, *_ = by_hand(batches)
    assert_same(eqopt.fit(loss_fn, OPTIMIZER, make_model(), batches).model, expected)
    grouped = eqopt.fit(loss_fn, OPTIMIZER, make_model(), iter(batches), steps_per_call=4)
    assert_same(grouped.model, expected)

    def of_one(model: Affine, batch: dict[str, Array]) -> Array:
        return loss_fn(model, batch["x"], batch["y"])

    dictionaries = [{"x": x, "y": y} for x, y in batches]
    assert_same(eqopt.fit(of_one, OPTIMIZER, make_model(), dictionaries).model, expected)


def test_resumes_bit_for_bit(tmp_path: Any) -> None:
    def noisy(model: Affine, x: Array, y: Array, key: Array) -> Array:
        return loss_fn(model, x + 0.1 * jax.random.normal(key, x.shape, x.dtype), y)

    batches, key = make_batches(), jax.random.PRNGKey(0)
    whole = eqopt.fit(noisy, OPTIMIZER, make_model(), batches, key=key)
    half = eqopt.fit(noisy, OPTIMIZER, make_model(), batches[:6], key=key)
    eqx.tree_serialise_leaves(tmp_path / "half.eqx", (half.model, half.state, half.key))
    like = (make_model(), OPTIMIZER.init(make_model()), key)
    model, state, key = eqx.tree_deserialise_leaves(tmp_path / "half.eqx", like)
    rest = eqopt.fit(noisy, OPTIMIZER, model, batches[6:], state=state, key=key)
    assert eqx.tree_equal(rest.model, whole.model)
    assert eqx.tree_equal(rest.state, whole.state)
    assert np.array_equal(rest.history.loss, whole.history.loss[6:])
    # Each step had a key of its own: without noise the losses are others.
    plain = eqopt.fit(loss_fn, OPTIMIZER, make_model(), batches)
    assert np.all(plain.history.loss != whole.history.loss)


@pytest.mark.parametrize("steps_per_call", [1, 4])
def test_aux_is_stacked(steps_per_call: int) -> None:
    def with_aux(model: Affine, x: Array, y: Array) -> tuple[Array, dict[str, Array]]:
        return loss_fn(model, x, y), {"mean": jnp.mean(x), "first": x[0]}

    batches = make_batches()
    fit = eqopt.fit(
        with_aux, OPTIMIZER, make_model(), batches, has_aux=True, steps_per_call=steps_per_call
    )
    assert fit.history.aux["first"].shape == (10, 3)
    means = np.stack([x for x, _ in batches]).mean(axis=(1, 2))
    assert np.allclose(fit.history.aux["mean"], means, rtol=1e-5, atol=1e-6)


def test_callback_sees_and_ends() -> None:
    seen: list[tuple[int, float]] = []
    kept: list[Any] = []

    def callback(progress: eqopt.writing.FitCallbackArgs[Affine]) -> bool:
        seen.append((progress.num_steps, float(progress.loss)))
        kept.append((progress.model, progress.state))
        return progress.num_steps >= 4

    endless = itertools.cycle(make_batches())
    fit = eqopt.fit(loss_fn, OPTIMIZER, make_model(), endless, callback=callback)
    assert [n for n, _ in seen] == [1, 2, 3, 4]
    assert np.allclose([x for _, x in seen], fit.history.loss)
    # Copies, which the loop has not written over.
    assert_same(kept[0][0], by_hand(make_batches(1))[0])
    assert_same(kept[-1][0], fit.model, 0.0)
    assert_same(kept[-1][1], fit.state, 0.0)


@pytest.fixture
def interruptible() -> Iterator[None]:
    # A process that was started in the background ignores Ctrl-C, and so would these tests.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_interrupt_returns_what_has_been_reached() -> None:
    def interrupting() -> Iterator[Any]:
        for i, batch in enumerate(make_batches()):
            if i == 3:
                signal.raise_signal(signal.SIGINT)
            yield batch

    fit = eqopt.fit(loss_fn, OPTIMIZER, make_model(), interrupting())
    assert fit.interrupted and len(fit.history) == 3
    assert_same(fit.model, by_hand(make_batches()[:3])[0])


@pytest.mark.usefixtures("interruptible")
def test_interrupt_within_a_step_waits_for_its_end() -> None:
    def loss(model: Affine, x: Array, y: Array) -> Array:
        signal.raise_signal(signal.SIGINT)  # while tracing: in the middle of the first call
        return loss_fn(model, x, y)

    fit = eqopt.fit(loss, OPTIMIZER, make_model(), make_batches())
    assert fit.interrupted and len(fit.history) == 1
    assert_same(fit.model, by_hand(make_batches(1))[0])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_interrupt_is_ignored_where_it_is_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:

        def loss(model: Affine, x: Array, y: Array) -> Array:
            signal.raise_signal(signal.SIGINT)
            return loss_fn(model, x, y)

        fit = eqopt.fit(loss, OPTIMIZER, make_model(), make_batches(3))
    finally:
        signal.signal(signal.SIGINT, before)
    assert not fit.interrupted and len(fit.history) == 3


def test_no_batches() -> None:
    fit = eqopt.fit(loss_fn, OPTIMIZER, make_model(), [])
    assert_same(fit.model, make_model(), 0.0)
    assert len(fit.history) == 0


class Recorder(eqopt.writing.AbstractProgress):
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def start(self, total: int | None) -> None:
        self.calls.append(("start", total))

    def update(self, steps: int, message: str) -> None:
        self.calls.append(("update", steps, message))

    def close(self) -> None:
        self.calls.append("close")


def test_progress_is_told() -> None:
    recorder = Recorder()

    # The bar shows the latest loss that has arrived. To read a loss is to wait for it.
    def wait(args: eqopt.writing.FitCallbackArgs[Affine]) -> bool:
        return args.loss < 0

    fit = eqopt.fit(
        loss_fn, OPTIMIZER, make_model(), make_batches(), progress=recorder, callback=wait
    )
    assert recorder.calls[0] == ("start", 10)
    assert recorder.calls[-2][1] == 10 and recorder.calls[-1] == "close"
    assert recorder.calls[-2][2] == f"loss {fit.history.loss[-1]:.4g}"

    def failing(model: Affine, x: Array, y: Array) -> Array:
        raise RuntimeError("no loss today")

    with pytest.raises(RuntimeError, match="no loss today"):
        eqopt.fit(failing, OPTIMIZER, make_model(), make_batches(), progress=recorder)
    assert recorder.calls[-1] == "close"


@pytest.mark.parametrize(
    "make",
    [
        eqopt.options.TqdmProgress,
        eqopt.options.RichProgress,
        lambda: eqopt.options.TextProgress(interval=0.0),
    ],
)
def test_progress_bars(make: Any, capfd: pytest.CaptureFixture[str]) -> None:
    eqopt.fit(loss_fn, OPTIMIZER, make_model(), make_batches(), progress=make())
    captured = capfd.readouterr()
    assert "10/10" in captured.out + captured.err


MISTAKES = {
    "steps_per_call": ({"steps_per_call": 0}, "`steps_per_call` must be at least 1; got 0"),
    "progress": ({"progress": "tqdm"}, "`progress` must be True, False or"),
    "state": (
        {"state": eqopt.SGD(0.1).init(make_model())},
        "`state` holds no `ChainState`, the state of `links[0]`",
    ),
}


@pytest.mark.parametrize("kwargs, message", MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        eqopt.fit(loss_fn, eqopt.Chain(eqopt.AdamW(0.1)), make_model(), make_batches(), **kwargs)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 10


def test_optimizer_must_be_one() -> None:
    wrong: Any = 0.1
    with pytest.raises(TypeError, match="`optimizer` must be a transformation; got a float"):
        eqopt.fit(loss_fn, wrong, make_model(), make_batches())


def test_hyperparameters_in_force() -> None:
    params = jnp.ones(2)
    decay = eqopt.Linear(init_value=1e-2, end_value=0.0, transition_steps=4)
    optimizer = eqopt.Chain(
        eqopt.Scheduled(
            eqopt.AdamW(lambda count: 0.5 ** count.astype(float_dtype()), b1=0.8),
            lambda o: o.weight_decay,
            decay,
        ),
        eqopt.Masked(eqopt.Scale(2.0), True),
        eqopt.ScaleBySchedule(eqopt.Constant(3.0)),
    )
    state = optimizer.init(params)
    for i in range(3):
        found = eqopt.hyperparameters(optimizer, state)
        assert found["links[0].learning_rate"] == 0.5**i
        assert np.isclose(found["links[0].weight_decay"], 1e-2 * (1 - i / 4), rtol=1e-6)
        assert np.isclose(found["links[0].b1"], 0.8, rtol=1e-6)
        assert found["links[1].inner.step_size"] == 2
        assert found["links[2].step_size_fn"] == 3
        inside = eqx.filter_jit(eqopt.hyperparameters)(optimizer, state)
        assert all(np.isclose(inside[name], found[name]) for name in found)
        _, state = optimizer.update(params, state, params)
    with pytest.raises(TypeError, match="`state` is a `EmptyState`; `Adam` has"):
        eqopt.hyperparameters(eqopt.Adam(0.1), eqopt.states.EmptyState())


def test_hyperparameters_after_an_edit_with_a_number() -> None:
    params = jnp.ones(2)
    optimizer = eqopt.Scheduled(eqopt.AdamW(0.1), lambda o: o.weight_decay, eqopt.Constant(0.5))
    edited = eqx.tree_at(lambda o: (o.inner.b1, o.inner.weight_decay), optimizer, (0.25, 5.0))
    found = eqopt.hyperparameters(edited, optimizer.init(params))
    assert found["b1"] == 0.25 and found["weight_decay"] == 0.5


def test_pictures() -> None:
    fit = eqopt.fit(loss_fn, OPTIMIZER, make_model(), make_batches())
    figure = eqopt.plot.history(fit.history)
    assert [ax.get_ylabel() for ax in figure.axes] == ["loss", "gradient norm", "learning rate"]
    drawn = figure.axes[0].lines[0].get_ydata()
    assert np.array_equal(drawn, fit.history.loss)
    with pytest.raises(ValueError, match="`axes` must hold 3 axes; it holds 1"):
        eqopt.plot.history(fit.history, figure.axes[0])
    schedule = eqopt.Linear(init_value=1.0, end_value=0.0, transition_steps=10)
    line = eqopt.plot.schedule(schedule, 11).axes[0].lines[0]
    assert np.allclose(line.get_ydata(), np.linspace(1, 0, 11), atol=1e-6)


def test_what_does_not_move_keeps_its_bits():
    dtype = float_dtype()
    # A number that arithmetic may take for zero, the other zero, and a NaN's own bits.
    odd = np.array([np.finfo(dtype).smallest_subnormal, -0.0, np.nan], dtype)
    model = {"still": jnp.asarray(odd), "moves": jnp.ones(2, dtype)}

    def loss(model, x):
        return jnp.sum(x * model["moves"] ** 2)

    opt = eqopt.SelectiveTransform(eqopt.SGD(0.1), {"still": True, "moves": False})
    before = np.asarray(model["still"]).tobytes()
    for steps_per_call in (1, 2):
        batches = [(jnp.asarray(x, dtype),) for x in (1.0, np.nan)]
        found = eqopt.fit(loss, opt, model, batches, steps_per_call=steps_per_call)
        assert np.asarray(found.model["still"]).tobytes() == before
