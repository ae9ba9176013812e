"""How a function that has been read is put together again."""

import builtins
import operator
import types
import weakref
from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeAlias

import equinox as eqx
import jax


class Same:
    """A constant, compared by identity."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


class Equal:
    """A constant, compared by a key that holds its type: `1 == 1.0 == True`, but not here."""

    def __init__(self, value: Any, *key: Hashable):
        self.value, self.key = value, (type(value), *key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Equal) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


class Once:
    """A constant that equals no other, not even if it holds the same."""

    def __init__(self, value: Any):
        self.value = value


class Weak:
    """Something that is not kept alive, compared by identity; once dead it equals nothing."""

    def __init__(self, value: Any):
        self.ref, self.key = weakref.ref(value), id(value)

    @property
    def value(self) -> Any:
        return self.ref()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Weak) and self.value is other.value is not None

    def __hash__(self) -> int:
        return self.key


class Aside:
    """Something that is not compared, and not kept alive where that can be helped."""

    def __init__(self, value: Any):
        try:
            self.ref: Callable[[], Any] = weakref.ref(value)
        except TypeError:
            self.ref = lambda: value

    @property
    def value(self) -> Any:
        return self.ref()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Aside)

    def __hash__(self) -> int:
        return 0


EMPTY = Same(object())  # a cell that is not assigned yet
Ref: TypeAlias = int | Same | Equal | Weak  # a slot's number: rebuilt at each call; a constant


class Code(Protocol):
    """What is known of a function's code."""

    pinned: bool  # whether it must be given what it reads itself, and no copies

    def note_trace(self, signature: Hashable, reason: str | None) -> None: ...


class Plan:
    """All of a function that is static. A program may serve again for an equal plan."""

    def __init__(
        self,
        key: tuple[Ref, tuple[tuple[Any, ...], ...], tuple[Hashable, ...]],
        pinned: bool,
        code: Code | None,
        origin: Aside,
    ):
        self.key = (pinned, *key)
        self.hash = hash(self.key)
        self.root, self.slots, _ = key
        self.pinned, self.code, self.origin = pinned, code, origin

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.hash == other.hash and self.key == other.key

    def __hash__(self) -> int:
        return self.hash


class Hoisted(eqx.Module):
    """A function whose arrays are leaves.

    **Arguments:**

    - `leaves`: the arrays that the function reads.
    - `plan`: everything else.
    """

    leaves: tuple[Any, ...]
    plan: Plan = eqx.field(static=True)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        origin, code = self.plan.origin.value, self.plan.code
        if self.plan.pinned and origin is not None:
            return origin(*args, **kwargs)
        builder = _Builder(self.plan, self.leaves)
        copy = builder.build()
        if origin is None or code is None:
            return copy(*args, **kwargs)
        try:
            result = copy(*args, **kwargs)
            if builder.unchanged():
                return result
        except Exception:
            pass
        # A traced array would not do (a NumPy mask, `int(x)`), or a copy (a dict of functions, a
        # counter that was increased). The function itself decides. If it fails too, that is its
        # user's error. Else it is pinned from now on, and the program that is being traced, which
        # holds as constants what the function reads, must not serve again.
        result = origin(*args, **kwargs)
        code.pinned = True
        return result

    @property
    def __wrapped__(self) -> Callable[..., Any]:  # where `inspect.signature` looks
        origin = self.plan.origin.value
        return _Builder(self.plan, self.leaves).build() if origin is None else origin


class Opaque(eqx.Module):
    """A function that cannot be seen into.

    **Arguments:**

    - `fn`: the function.
    - `code`: what is known of its code.
    - `reason`: what cannot be seen into.
    """

    fn: Once = eqx.field(static=True)
    code: Code | None = eqx.field(static=True)
    reason: str = eqx.field(static=True)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self.fn.value(*args, **kwargs)

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        return self.fn.value


class _Builder:
    def __init__(self, plan: Plan, leaves: tuple[Any, ...]):
        self.plan, self.leaves = plan, leaves
        self.built: dict[int, Any] = {}
        # Functions refer to each other: first all of them are made, then their insides.
        self.todo: list[Callable[[], None]] = []
        self.checks: list[Callable[[], bool]] = []

    def build(self) -> Callable[..., Any]:
        root = self.get(self.plan.root)
        while self.todo:
            self.todo.pop()()
        return root

    def get(self, ref: Ref) -> Any:
        if not isinstance(ref, int):
            return ref.value
        if ref not in self.built:
            make, *parts = self.plan.slots[ref]
            self.built[ref] = make(self, *parts)
        return self.built[ref]

    def fill(self, namespace: dict[str, Any], table: tuple[tuple[str, Ref], ...]) -> None:
        def now() -> None:
            namespace.update((name, self.get(ref)) for name, ref in table)
            before = dict(namespace)
            self.checks.append(lambda: _same_items(before, namespace))

        self.todo.append(now)

    def unchanged(self) -> bool:
        return all(check() for check in self.checks)


def _same_items(before: dict[str, Any], after: dict[str, Any]) -> bool:
    names = after.keys() - {"__warningregistry__"}
    return names == before.keys() and all(after[name] is before[name] for name in names)


# A slot is one of these functions, and what it is called with.


def make_leaf(builder: _Builder, i: int) -> Any:
    return builder.leaves[i]


def make_object(builder: _Builder, kind: type, content: Ref, x: Aside) -> Any:
    del builder, kind, content  # the key
    return x.value


def make_weakref(builder: _Builder, ref: Ref) -> Any:
    return weakref.ref(builder.get(ref))


def make_tree(builder: _Builder, treedef: Any, refs: tuple[Ref, ...]) -> Any:
    leaves = [builder.get(ref) for ref in refs]
    tree = treedef.unflatten(leaves)

    def check() -> bool:
        after, structure = jax.tree.flatten(tree)
        return structure == treedef and all(map(operator.is_, after, leaves))

    builder.checks.append(check)
    return tree


def make_function(
    builder: _Builder,
    code: Equal,
    names: Equal,
    environment: Ref,
    cells: tuple[Ref, ...],
    defaults: Ref,
    kwdefaults: Ref,
    attributes: Ref,
) -> types.FunctionType:
    closure = tuple(types.CellType() for _ in cells)
    fn = types.FunctionType(code.value, builder.get(environment), closure=closure)
    fn.__name__, fn.__qualname__, fn.__module__ = names.value

    def fill() -> None:
        contents = [builder.get(ref) for ref in cells]
        for cell, content, ref in zip(closure, contents, cells, strict=True):
            if ref is not EMPTY:
                cell.cell_contents = content
        fn.__defaults__ = builder.get(defaults)
        fn.__kwdefaults__ = builder.get(kwdefaults)
        fn.__dict__.update(builder.get(attributes) or {})
        before = dict(fn.__dict__)
        builder.checks.append(lambda: _same_items(before, fn.__dict__))
        builder.checks.append(lambda: all(map(_holds, closure, contents)))

    builder.todo.append(fill)
    return fn


def _holds(cell: types.CellType, content: Any) -> bool:
    try:
        return cell.cell_contents is content
    except ValueError:
        return content is EMPTY.value


def make_globals(builder: _Builder, table: tuple[tuple[str, Ref], ...]) -> dict[str, Any]:
    namespace: dict[str, Any] = {"__builtins__": builtins}
    builder.fill(namespace, table)
    return namespace


def make_module(
    builder: _Builder, module: Same, table: tuple[tuple[str, Ref], ...]
) -> types.ModuleType:
    copy = types.ModuleType(module.value.__name__)
    vars(copy).update(vars(module.value))
    builder.fill(vars(copy), table)
    return copy


def make_method(builder: _Builder, fn: Ref, owner: Ref) -> types.MethodType:
    return types.MethodType(builder.get(fn), builder.get(owner))


def make_partial(
    builder: _Builder, kind: type, fn: Ref, args: Ref, keywords: Ref
) -> Callable[..., Any]:
    return kind(builder.get(fn), *builder.get(args), **builder.get(keywords))
