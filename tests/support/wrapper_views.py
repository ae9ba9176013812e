"""Wrappers as data: what each shows to what is inside it, and when it calls that."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

import eqopt
from tests.support.expected_views import Gate, Seen

Transformation = eqopt.writing.AbstractTransformation[Any]


@dataclasses.dataclass(frozen=True)
class Layer(abc.ABC):
    """A wrapper, before it is around anything."""

    @abc.abstractmethod
    def build(self, inner: Transformation, side: Callable[[int], Transformation]) -> Any:
        """The wrapper around `inner`; where it needs more to wrap, around `side(0)`, ..."""

    def inside(self, seen: Seen) -> Seen:
        """What `inner` sees, of what the wrapper sees."""
        return seen

    def beside(self, seen: Seen) -> list[Seen]:
        """What the others see."""
        return []

    def gate(self) -> Gate:
        """When `inner` is called."""
        return Gate()

    def passed(self) -> Callable[[Array], Array] | None:
        """What becomes of the updates of what `inner` is not shown, if they are its business."""
        return None


# Masks. A leaf is told by its place: its path is another one in another form.


@dataclasses.dataclass(frozen=True)
class Bits:
    """A mask, or labels, for any tree: of the leaf in each place, over and over."""

    bits: tuple[Any, ...]

    def __call__(self, tree: Any) -> Any:
        leaves, treedef = jax.tree.flatten(tree, is_leaf=lambda x: x is None)
        return treedef.unflatten(self.of(len(leaves)))

    def of(self, num: int) -> list[Any]:
        return [self.bits[i % len(self.bits)] for i in range(num)]


class ByPlace(eqopt.selectors.AbstractSelector):
    """Chooses leaves by their place."""

    bits: Bits = eqx.field(static=True)

    def select(self, params: Any) -> Any:
        return self.bits(params)


def by_function(bits: Bits) -> Any:
    return lambda params: bits(params)


@dataclasses.dataclass(frozen=True)
class InMasked(Layer):
    bits: Bits
    form: Callable[[Bits], Any]
    mask_extra: bool

    def build(self, inner: Transformation, side: Callable[[int], Transformation]) -> Any:
        return eqopt.Masked(inner, self.form(self.bits), self.mask_extra)

    def inside(self, seen: Seen) -> Seen:
        return seen.masked(self.bits.of(len(seen.params)), self.mask_extra)

    def passed(self) -> Callable[[Array], Array] | None:
        return lambda update: update


@dataclasses.dataclass(frozen=True)
class InSelective(Layer):
    bits: Bits
    form: Callable[[Bits], Any]

    def build(self, inner: Transformation, side: Callable[[int], Transformation]) -> Any:
        frozen = Bits(tuple(not b for b in self.bits.bits))
        return eqopt.SelectiveTransform(inner, self.form(frozen))

    def inside(self, seen: Seen) -> Seen:
        return seen.masked(self.bits.of(len(seen.params)))

    def passed(self) -> Callable[[Array], Array] | None:
        return jnp.zeros_like


def labels_by_function(transforms: dict[int, Any], labels: Bits, mask_extra: bool) -> Any:
    return eqopt.Partition(transforms, lambda params: labels(params), mask_extra)


def groups_by_selector(transforms: dict[int, Any], labels: Bits, mask_extra: bool) -> Any:
    last, *others = reversed(transforms)
    rules: dict[Any, Any] = {
        ByPlace(Bits(tuple(x == label for x in labels.bits))): transforms[label]
        for label in reversed(others)
    }
    return eqopt.Partition({**rules, ...: transforms[last]}, None, mask_extra)


def labels_by_selector(transforms: dict[int, Any], labels: Bits, mask_extra: bool) -> Any:
    rules = {ByPlace(Bits(tuple(x == label for x in labels.bits))): label for label in transforms}
    return eqopt.Partition(transforms, rules, mask_extra)


@dataclasses.dataclass(frozen=True)
class InPartition(Layer):
    """Group 0 goes on; in each of the others there is a spy."""

    labels: Bits
    form: Callable[[dict[int, Any], Bits, bool], Any]
    mask_extra: bool

    def build(self, inner: Transformation, side: Callable[[int], Transformation]) -> Any:
        return self.form({0: inner, 1: side(0), 2: side(1)}, self.labels, self.mask_extra)

    def inside(self, seen: Seen) -> Seen:
        return self._group(seen, 0)

    def beside(self, seen: Seen) -> list[Seen]:
        return [self._group(seen, 1), self._group(seen, 2)]

    def _group(self, seen: Seen, label: int) -> Seen:
        labels = self.labels.of(len(seen.params))
        # What is there no more belongs to no group.
        chosen = [
            x is not None and own == label for x, own in zip(seen.params, labels, strict=True)
        ]
        return seen.masked(chosen, self.mask_extra)


# Other forms.


@dataclasses.dataclass(frozen=True)
class InFlatten(Layer):
    def build(self, inner: Transformation, side: Callable[[int], Transformation]) -> Any:
        return eqopt.Flatten(inner)

    def inside(self, seen: Seen) -> Seen:
        return seen.flattened()


@dataclasses.dataclass(frozen=True)
class InSplit(Layer):
    def build(self, inner: Transformation, side: Callable[[int], Transformation]) -> Any:
        return eqopt.SplitRealAndImaginary(inner)

    def inside(self, seen: Seen) -> Seen:
        return seen.split()


# Wrappers that call what is inside them at some of the calls.


def odd(step: Any) -> Any:
    return step % 2 == 1


def first(step: Any) -> Any:
    return step == 0


def by_value(step: Any, value: Any) -> Any:
    """Asks for one of the other arguments."""
    return value < 2.5


@dataclasses.dataclass(frozen=True)
class InConditional(Layer):
    wrapper: Callable[..., Any]
    fn: Callable[..., Any]

    def build(self, inner: Transformation, side: Callable[[int], Transformation]) -> Any:
        return self.wrapper(inner, self.fn, forward_extra_args=self.fn is by_value)

    def gate(self) -> Gate:
        fn = self.fn
        if fn is by_value:
            return Gate(opens=lambda count, value: fn(count, value))
        return Gate(opens=lambda count, value: fn(count))


@dataclasses.dataclass(frozen=True)
class InMultiSteps(Layer):
    k: int
    mean: bool
    skip: Callable[..., Any] | None

    def build(self, inner: Transformation, side: Callable[[int], Transformation]) -> Any:
        return eqopt.MultiSteps(inner, self.k, self.mean, self.skip)

    def gate(self) -> Gate:
        return Gate(
            opens=lambda count, value: count % self.k == self.k - 1,
            combines=lambda values: sum(values) / (len(values) if self.mean else 1),
        )


@dataclasses.dataclass(frozen=True)
class InSAM(Layer):
    period: int
    opaque: bool
    adversary: tuple[Transformation, ...]

    def build(self, inner: Transformation, side: Callable[[int], Transformation]) -> Any:
        adversary = eqopt.Chain(*self.adversary, side(0), eqopt.Scale(0.05))
        return eqopt.SAM(inner, adversary, self.period, opaque_mode=self.opaque)

    def beside(self, seen: Seen) -> list[Seen]:
        return [seen]

    def gate(self) -> Gate:
        if self.opaque:
            return Gate()
        last = self.period - 1
        return Gate(opens=lambda count, value: count % self.period == last, period=self.period)


# Wrappers that always do.


@dataclasses.dataclass(frozen=True)
class InLookahead(Layer):
    period: int
    reset: bool

    def build(self, inner: Transformation, side: Callable[[int], Transformation]) -> Any:
        return eqopt.Lookahead(inner, self.period, 0.6, self.reset)

    def gate(self) -> Gate:
        return Gate(forgets=self.period if self.reset else None)


@dataclasses.dataclass(frozen=True)
class InChain(Layer):
    before: tuple[Transformation, ...]
    after: tuple[Transformation, ...]

    def build(self, inner: Transformation, side: Callable[[int], Transformation]) -> Any:
        return eqopt.Chain(*self.before, inner, *self.after)


@dataclasses.dataclass(frozen=True)
class InNamedChain(Layer):
    before: tuple[Transformation, ...]
    after: tuple[Transformation, ...]

    def build(self, inner: Transformation, side: Callable[[int], Transformation]) -> Any:
        links = (*self.before, inner, *self.after)
        # In another order than that of the alphabet.
        return eqopt.NamedChain(*((f"link {9 - i}", x) for i, x in enumerate(links)))


@dataclasses.dataclass(frozen=True)
class Around(Layer):
    """Any other wrapper."""

    wrap: Callable[[Transformation], Transformation]

    def build(self, inner: Transformation, side: Callable[[int], Transformation]) -> Any:
        return self.wrap(inner)


def _step_size(chain: Any) -> Any:
    return chain.links[0].step_size


def scheduled(inner: Transformation) -> Transformation:
    chain = eqopt.Chain(eqopt.Scale(1.0), inner)
    return eqopt.Scheduled(chain, _step_size, eqopt.Linear(0.5, 0.25, 4))


def scheduled_ema(inner: Transformation) -> Transformation:
    ema = eqopt.ParamEMA(inner, 0.8)
    return eqopt.Scheduled(ema, lambda opt: opt.decay, eqopt.Linear(0.5, 0.25, 4))


def finite_only(inner: Transformation) -> Transformation:
    return eqopt.ApplyIfFinite(inner, 2)


def finite_only_always(inner: Transformation) -> Transformation:
    return eqopt.ApplyIfFinite(inner, 0, eqopt.options.skip_update)


def averaged(inner: Transformation) -> Transformation:
    return eqopt.ParamEMA(inner, 0.8)


def averaged_from_the_start(inner: Transformation) -> Transformation:
    return eqopt.ParamEMA(inner, 0.8, False)


def schedule_free(inner: Transformation) -> Transformation:
    return eqopt.ScheduleFree(inner, 0.05, 0.8)
