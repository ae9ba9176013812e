"""Parity: random hyper-parameters, random trees, and the same steps by optax and by us."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import eqopt
from eqopt import ByNdim
from eqopt.writing import AbstractOptimizer, AbstractTransformation, Context
from tests.support.toolbox import FLOAT, X64
from tests.support.trees import assert_near, conj, is_matrix, random_array, random_like, random_tree

Hyper: TypeAlias = dict[str, Any]
Draw: TypeAlias = Callable[[np.random.Generator], float]
Shapes: TypeAlias = dict[str, tuple[int, ...]] | None

TOLERANCE = 1e-12 if X64 else 5e-6
NUM_STEPS, NUM_DRAWS = (50, 5) if X64 else (12, 2)
BOOLS = (False, True)


# Hyper-parameters: how each is drawn, by name.


def between(low: float, high: float) -> Draw:
    return lambda rng: rng.uniform(low, high)


def power(low: float, high: float) -> Draw:
    """As often between 1e-3 and 1e-2 as between 1e-2 and 1e-1."""
    return lambda rng: 10 ** rng.uniform(low, high)


def towards_one(low: float, high: float) -> Draw:
    """A decay: as often between 0.9 and 0.99 as between 0.99 and 0.999."""
    return lambda rng: 1 - 10 ** rng.uniform(low, high)


RATE = {"learning_rate": power(-3, 0)}
ADAM = {
    "b1": towards_one(-2, 0),
    "b2": towards_one(-3, -1),
    "eps": power(-8, -2),
    "eps_root": power(-8, -2),
}
DECAY = {"weight_decay": power(-4, -1)}

HALF = jnp.dtype(jnp.bfloat16)


def falling(rate: Any) -> Callable[[Any], Any]:
    """A schedule, as a function of the count."""
    return lambda count: rate / (1 + jnp.asarray(count, rate.dtype) / 8)


@dataclasses.dataclass(frozen=True)
class Row:
    """One class with one choice of its flags, and the same of optax.

    **Arguments:**

    - `cls`: the class.
    - `flags`: which choice.
    - `ours`, `theirs`: build the two from hyper-parameters.
    - `draws`: how the hyper-parameters are drawn, by name.
    - `fields`: the fields of the class that are not left at their defaults.
    - `real`: leaves out the complex parameters, with the reason at the row.
    - `values`: whether `update` is given a value, a positive number, in each step.
    """

    cls: type[AbstractTransformation[Any]]
    flags: str
    ours: Callable[[Hyper], AbstractTransformation[Any]]
    theirs: Callable[[Hyper], optax.GradientTransformation]
    draws: dict[str, Draw]
    fields: set[str]
    real: bool = False
    values: bool = False

    @property
    def name(self) -> str:
        return "-".join(x for x in (self.cls.__name__, self.flags) if x)


def row(
    cls: Any,
    other: Any,
    draws: dict[str, Draw],
    *,
    scheduled: str | None = None,
    masks: tuple[str, ...] = (),
    real: bool = False,
    values: bool = False,
    elsewhere: tuple[str, ...] = (),
    **flags: Any,
) -> Row:
    """A class and a function of optax that take the same arguments.

    What is tested `elsewhere` are fields that optax does not have, or not so.
    """

    def build(make: Any, mask: Any, h: Hyper) -> Any:
        h = {name: falling(x) if name == scheduled else x for name, x in h.items()}
        return make(**h, **flags, **dict.fromkeys(masks, mask))

    words = [x for x in ("momentum", "min_norm") if x in draws]
    words += ["schedule"] * bool(scheduled) + list(masks)
    words += [f"{name}={getattr(x, '__name__', x)}" for name, x in flags.items()]
    return Row(
        cls,
        "-".join(words),
        functools.partial(build, cls, ByNdim(2)),
        functools.partial(build, other, is_matrix),
        draws,
        {*draws, *flags, *masks, *elsewhere},
        # To an average in a real dtype, optax casts a complex one.
        real or HALF in flags.values(),
        values,
    )


# Trajectories: all steps in one compiled program, to which the hyper-parameters are data.


def trajectory(
    tx: Any, apply: Any, params: Any, gradients: Any, given: Hyper | None = None
) -> tuple[Any, Any]:
    """The updates, and the parameters after them, of each step; `given` by keyword in each."""

    def step(carry: Any, x: Any) -> tuple[Any, Any]:
        (params, state), (gradient, given) = carry, x
        updates, state = tx.update(gradient, state, params, **given)
        params = apply(params, updates)
        return (params, state), (updates, params)

    return lax.scan(step, (params, tx.init(params)), (gradients, given or {}))[1]


def params_after(opt: Any, params: Any, gradients: Any) -> Any:
    """The parameters after each step of ours."""

    @eqx.filter_jit
    def steps(opt: Any) -> Any:
        return trajectory(opt, eqopt.apply_updates, params, gradients)[1]

    return steps(opt)


def assert_same_steps(ours: Any, theirs: Any, params: Any, gradients: Any, rtol: float) -> None:
    """Fails unless the parameters are the same after each step; `theirs` is optax's."""

    @jax.jit
    def by_optax(gradients: Any) -> Any:
        return trajectory(theirs, optax.apply_updates, params, gradients)[1]

    with jax.numpy_dtype_promotion("standard"):
        expected = by_optax(conj(gradients))
    assert_near(params_after(ours, params, gradients), expected, rtol)


def problem(row: Row, draw: int, num_steps: int, shapes: Shapes = None) -> tuple[Hyper, Any, Any]:
    """Hyper-parameters, parameters and gradients: of the same shapes in each draw."""
    same, rng = np.random.default_rng(len(row.name)), np.random.default_rng(draw)
    tree = random_tree(same, FLOAT)
    tree |= {name: random_array(same, shape, FLOAT) for name, shape in (shapes or {}).items()}
    if not row.real:
        tree["complex"] = random_array(same, (3, 2), np.result_type(FLOAT, np.complex64))
    hyper = {name: np.asarray(sample(rng), FLOAT) for name, sample in row.draws.items()}
    return hyper, random_like(rng, tree), random_like(rng, tree, leading=(num_steps,))


def compare(row: Row, shapes: Shapes = None) -> None:
    """Fails unless both take the same steps."""

    @jax.jit
    def ours(h: Hyper, params: Any, gradients: Any, given: Hyper) -> Any:
        return trajectory(row.ours(h), eqopt.apply_updates, params, gradients, given)

    @jax.jit
    def theirs(h: Hyper, params: Any, gradients: Any, given: Hyper) -> Any:
        return trajectory(row.theirs(h), optax.apply_updates, params, conj(gradients), given)

    for draw in range(NUM_DRAWS):
        h, params, gradients = problem(row, draw, NUM_STEPS, shapes)
        values = np.random.default_rng(draw).uniform(0.1, 10, NUM_STEPS).astype(FLOAT)
        given = {"value": values} if row.values else {}
        left = ours(h, params, gradients, given)
        with jax.numpy_dtype_promotion("standard"):
            right = theirs(h, params, gradients, given)
        assert_near(left[1], right[1], TOLERANCE)
        # In float32 only the parameters: in the first steps optax's own updates are off by 1e-5,
        # for its `1 - decay**count` cancels.
        if X64:
            assert_near(left[0], right[0], TOLERANCE)


# An optimizer runs its links in one compiled program, fused. Each for itself does the same.


@eqx.filter_jit
def _alone(link: AbstractTransformation[Any], updates: Any, state: Any, params: Any) -> Any:
    return link.transform(updates, state, params, Context())


def one_by_one(
    row: Row, num_steps: int, shapes: Shapes = None
) -> Iterator[tuple[tuple[Any, Any], tuple[Any, Any]]]:
    """The updates and states of an optimizer in each step, and those of its links by themselves."""
    h, params, gradients = problem(row, 0, num_steps, shapes)
    opt = row.ours(h)
    assert isinstance(opt, AbstractOptimizer)
    chain = opt.compose()
    assert isinstance(chain, eqopt.Chain)
    state = opt.init(params)
    states = list(state.states)
    for t in range(num_steps):
        gradient = jax.tree.map(lambda x, t=t: jnp.asarray(x[t]), gradients)
        updates, state = opt.update(gradient, state, params)
        alone = conj(gradient)
        for i, link in enumerate(chain.links):
            alone, states[i] = _alone(link, alone, states[i], params)
        yield (updates, state.states), (alone, tuple(states))


# About extra arguments; here there are none.
_NOT_VARIED = {"mask_compatible_extra_args"}


def fields_not_varied(cls: type[AbstractTransformation[Any]], rows: Sequence[Row]) -> set[str]:
    """The fields of a class that are at their defaults in every row."""
    varied = {name for row in rows if row.cls is cls for name in row.fields}
    return {f.name for f in dataclasses.fields(cls)} - _NOT_VARIED - varied


# The tests of a family, each of which is given its rows.


def each(rows: Sequence[Row]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", rows, ids=lambda row: row.name)


def trajectories(rows: Sequence[Row], shapes: Shapes = None) -> Callable[[Row], None]:
    """Trajectories equal optax's; also with leaves of some more shapes."""

    @each(rows)
    def test(row: Row) -> None:
        compare(row, shapes)

    return test


def fields(rows: Sequence[Row]) -> Callable[[Any], None]:
    """Every field of every class is varied."""

    @pytest.mark.parametrize("cls", dict.fromkeys(x.cls for x in rows), ids=lambda x: x.__name__)
    def test(cls: type[AbstractTransformation[Any]]) -> None:
        assert fields_not_varied(cls, rows) == set()

    return test


def links(rows: Sequence[Row], num_eps: int, shapes: Shapes = None) -> Callable[[Row], None]:
    """The updates of an optimizer are those of its links, one by one, to some roundings."""

    @each([x for x in rows if issubclass(x.cls, AbstractOptimizer)])
    def test(row: Row) -> None:
        for (updates, _), (alone, _) in one_by_one(row, 3, shapes):
            assert_near(updates, alone, num_eps * float(jnp.finfo(FLOAT).eps))

    return test
