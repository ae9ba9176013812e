"""Random nestings of wrappers, around a spy, and random models."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import assume, strategies as st
from jaxtyping import Array

import eqopt
from tests.support.expected_views import Gate, Seen
from tests.support.spies import Spy, Tapped, TappedState, Witness
from tests.support.toolbox import same, X64
from tests.support.wrapper_views import (
    Around,
    averaged,
    averaged_from_the_start,
    Bits,
    by_function,
    by_value,
    ByPlace,
    finite_only,
    finite_only_always,
    first,
    groups_by_selector,
    InChain,
    InConditional,
    InFlatten,
    InLookahead,
    InMasked,
    InMultiSteps,
    InNamedChain,
    InPartition,
    InSAM,
    InSelective,
    InSplit,
    labels_by_function,
    labels_by_selector,
    Layer,
    odd,
    schedule_free,
    scheduled,
    scheduled_ema,
    Transformation,
)

# How they are drawn.

STATELESS = [
    eqopt.Scale(0.5),
    eqopt.Normalize(),
    eqopt.ClipByGlobalNorm(0.5),
    eqopt.AddDecayedWeights(0.1),
]
_links = st.sampled_from([*STATELESS, eqopt.Trace(0.5), eqopt.ScaleByAdam()])
_bits = st.builds(Bits, st.lists(st.booleans(), min_size=2, max_size=5).map(tuple))
_labels = st.builds(Bits, st.lists(st.integers(0, 2), min_size=2, max_size=5).map(tuple))
_mask_forms = st.sampled_from([by_function, ByPlace])
_label_forms = st.sampled_from([labels_by_function, groups_by_selector, labels_by_selector])
_skips = st.sampled_from([None, eqopt.skip_not_finite])
_several = st.lists(_links, max_size=2).map(tuple)
_stateless = st.lists(st.sampled_from(STATELESS), max_size=2).map(tuple)

_selective = st.builds(InSelective, _bits, _mask_forms)
_multi_steps = st.builds(InMultiSteps, st.integers(1, 2), st.booleans(), _skips)
_lookahead = st.builds(InLookahead, st.integers(1, 3), st.booleans())
_finite = st.sampled_from([Around(finite_only), Around(finite_only_always)])
_others = [Around(x) for x in (averaged, schedule_free, scheduled, averaged_from_the_start)]
_around = st.sampled_from([*_others, Around(scheduled_ema)])
_fns = st.sampled_from([odd, first, by_value])

LAYERS = st.one_of(
    st.builds(InChain, _several, _several),
    st.builds(InNamedChain, _several, _several),
    st.builds(InMasked, _bits, _mask_forms, st.booleans()),
    st.builds(InPartition, _labels, _label_forms, st.booleans()),
    _selective,
    st.just(InFlatten()),
    st.just(InSplit()),
    _around,
    _finite,
    st.builds(
        InConditional,
        st.sampled_from([eqopt.ConditionallyTransform, eqopt.ConditionallyMask]),
        _fns,
    ),
    _multi_steps,
    _lookahead,
    st.just(Around(eqopt.Mechanize)),
    st.builds(InSAM, st.integers(1, 3), st.booleans(), _stateless),
)
# Those that let no NaN through which what is inside them does not let through.
TRANSPARENT = st.one_of(
    st.builds(InChain, _stateless, _several),
    _selective,
    st.sampled_from([InFlatten(), InSplit()]),
    _around,
    st.builds(InConditional, st.just(eqopt.ConditionallyMask), _fns),
    _lookahead,
)
GUARDS = st.one_of(_finite, _multi_steps)


def _up_to(depth: int) -> Any:
    # Lists alone would be short ones for the most part.
    sizes = st.integers(1, depth)
    return sizes.flatmap(lambda n: st.lists(LAYERS, min_size=n, max_size=depth).map(tuple))


@dataclasses.dataclass(frozen=True)
class Nesting:
    """Layers, the outermost first, around a spy."""

    layers: tuple[Layer, ...]

    def build(self, witness: Witness, names: tuple[str, ...] = ()) -> Transformation:
        """Builds it; a nesting that is refused because it makes no sense is not looked at."""
        opt: Transformation = Spy(witness, "inmost", names)
        for depth, layer in reversed([*enumerate(self.layers)]):

            def side(i: int, depth: int = depth) -> Transformation:
                return Spy(witness, f"{depth}.{i}", names)

            try:
                opt = layer.build(opt, side)
            except (TypeError, ValueError) as e:
                assume("makes no sense" not in str(e))
                raise
            if layer.passed() is not None:
                opt = Tapped(opt, str(depth))
        return opt

    def has(self, outer: type[Layer], inner: type[Layer]) -> bool:
        """Whether one kind of wrapper is within another."""
        places = [i for i, x in enumerate(self.layers) if isinstance(x, outer)]
        return any(isinstance(x, inner) for i in places[:1] for x in self.layers[i:])

    def spies(self, seen: Seen) -> Iterator[tuple[str, Seen, list[tuple[Gate, Seen]] | None]]:
        """The spies: what each sees, and the gates on the way to it.

        For an adversary's there are none: it begins anew after each step, and is called elsewhere.
        """
        outside: list[tuple[Layer, Seen]] = []

        def gates() -> list[tuple[Gate, Seen]]:  # which count, each for one spy
            return [(layer.gate(), seen) for layer, seen in outside]

        for depth, layer in enumerate(self.layers):
            for i, other in enumerate(layer.beside(seen)):
                yield f"{depth}.{i}", other, None if isinstance(layer, InSAM) else gates()
            outside.append((layer, seen))
            seen = layer.inside(seen)
        yield "inmost", seen, gates()

    def wrong_updates(self, seen: Seen, state: Any) -> list[str]:
        """Where the updates of what is masked out are not what they are to be."""
        found: dict[str, TappedState] = {}

        def look(x: Any) -> None:  # also into those that have been found, for they nest
            for y in jax.tree.leaves(x, is_leaf=lambda y: isinstance(y, TappedState)):
                if isinstance(y, TappedState):
                    found[y.name] = y
                    look(y.inner_state)

        look(state)
        wrong: list[str] = []
        for depth, layer in enumerate(self.layers):
            inside, passed = layer.inside(seen), layer.passed()
            for i, (x, y) in enumerate(zip(seen.params, inside.params, strict=False)):
                if passed is not None and x is not None and y is None:
                    before, after = found[str(depth)].before[i], found[str(depth)].after[i]
                    if before is None or not same(passed(before), after):
                        wrong.append(f"{i} at depth {depth}")
            seen = inside
        return wrong


NESTINGS = st.builds(Nesting, _up_to(4))


@st.composite
def _guarded(draw: Any) -> Nesting:
    outer = draw(st.lists(TRANSPARENT, max_size=2))
    inner = draw(st.lists(LAYERS, max_size=1))
    return Nesting((*outer, draw(GUARDS), *inner))


GUARDED = _guarded()


# Models.


@dataclasses.dataclass(frozen=True)
class Leaf:
    """An array to be."""

    shape: tuple[int, ...]
    dtype: Any


class Block(eqx.Module):
    """A model with a function among its leaves."""

    first: Any
    activation: Callable[[Array], Array]
    nothing: None
    second: Any


_DTYPES = [jnp.float32, jnp.bfloat16, jnp.complex64] + [jnp.float64] * X64
_SHAPES = [(2,), (), (2, 3)]
_leaves = st.builds(Leaf, st.sampled_from(_SHAPES), st.sampled_from(_DTYPES))
_no_leaves = st.sampled_from([None, jax.nn.relu, 3])


def _grown(trees: Any) -> Any:
    return st.one_of(
        st.lists(trees, min_size=1, max_size=3),
        st.lists(trees, min_size=1, max_size=3).map(tuple),
        st.dictionaries(st.sampled_from("abc"), trees, min_size=1, max_size=3),
        st.builds(Block, trees, st.just(jax.nn.tanh), st.none(), trees),
    )


MODELS = _grown(st.recursive(_leaves | _no_leaves, _grown, max_leaves=5)).filter(
    lambda tree: any(isinstance(x, Leaf) for x in jax.tree.leaves(tree))
)


def filled(model: Any, seed: int) -> Any:
    """The model, with numbers in its arrays, exact in every dtype."""
    rng = np.random.default_rng(seed)

    def fill(x: Any) -> Any:
        if not isinstance(x, Leaf):
            return x
        numbers = rng.integers(1, 8, x.shape) / 8
        if np.issubdtype(x.dtype, np.complexfloating):
            numbers = numbers + 1j * rng.integers(1, 8, x.shape) / 8
        return jnp.asarray(numbers, x.dtype)

    return jax.tree.map(fill, model)


def shapes(model: Any) -> Any:
    """The model, with shapes and dtypes in place of arrays."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if isinstance(x, Leaf) else x, model
    )


def _is_trained(x: Any) -> bool:
    return isinstance(x, jax.ShapeDtypeStruct | jax.Array) and jnp.issubdtype(x.dtype, jnp.inexact)


def holed(tree: Any, bits: Bits) -> Any:
    """The arrays of a tree, without those in some places."""
    params = eqx.filter(tree, _is_trained)
    leaves, treedef = jax.tree.flatten(params, is_leaf=lambda x: x is None)
    kept = zip(leaves, bits.of(len(leaves)), strict=True)
    return treedef.unflatten([None if hole else x for x, hole in kept])


HOLES = st.builds(Bits, st.lists(st.booleans(), min_size=1, max_size=4).map(tuple)) | st.just(
    Bits((False,))
)
