"""What a code object reads, and which code does not change under our feet."""

import builtins
import dis
import functools
import os
import sys
import sysconfig
import types
import warnings
from collections.abc import Hashable
from typing import Any


class RecompilationWarning(UserWarning):
    """A function is compiled again and again."""


class Code:
    """What is known of a code object, once and for all, and how often it has been traced."""

    def __init__(self, code: types.CodeType):
        self.code = code
        self.uses: dict[str, set[str | None]] = {}
        self.globals: set[str] = set()
        self.attributes: set[str] = set()
        self.unseen: str | None = None
        self._read(code)
        # A list that is appended to, and nothing else, is not read: it is as good as a constant.
        self.logs = {name for name, uses in self.uses.items() if uses == {"append"}}
        self.passes_self = None in self.uses.get((*code.co_varnames, "")[0], ())
        self.pinned = False
        self.signatures: set[Hashable] = set()
        self.repeats = 0

    def _read(self, code: types.CodeType) -> None:
        steps = list(dis.get_instructions(code))
        for i, step in enumerate(steps):
            op, name = step.opname, step.argval
            is_global = "GLOBAL" in op or op == "LOAD_NAME"
            if is_global:
                self.globals.add(name)
            if "ATTR" in op or op in ("LOAD_METHOD", "IMPORT_FROM"):
                self.attributes.add(name)
                if name in ("__globals__", "import_module"):
                    self.unseen = f"uses `{name}`"
            elif op == "IMPORT_NAME" and (steps[i - 2].argval != 0 or not known_name(name)):
                self.unseen = f"imports `{name}`"
            elif op == "LOAD_CLOSURE" or (op == "LOAD_FAST" and name in code.co_freevars):
                pass  # a cell handed on to a nested function, whose own code says what it does
            elif is_global or "DEREF" in op or "FAST" in op:
                after = steps[i + 1] if op.startswith("LOAD") else step
                attribute = "ATTR" in after.opname or after.opname == "LOAD_METHOD"
                for used in name if isinstance(name, tuple) else (name,):
                    self.uses.setdefault(used, set()).add(after.argval if attribute else None)
        for nested in code.co_consts:
            if isinstance(nested, types.CodeType):
                self._read(nested)

    def note_trace(self, signature: Hashable, reason: str | None) -> None:
        """Counts traces for which there was no need, and warns at the third."""
        if signature not in self.signatures:
            if len(self.signatures) < 256:
                self.signatures.add(signature)
            return
        self.repeats += 1
        if self.repeats != 3:
            return
        path, line = self.code.co_filename, self.code.co_firstlineno
        warnings.warn_explicit(
            f"`{self.code.co_qualname}` ({path}:{line}) is compiled again and again:\n"
            f"{reason or 'a number or another constant that it reads is another each time'}.\n"
            "Pass the data as arguments, `opt.step(fn, model, state, x, y)`,\n"
            "or make the function an `eqx.Module` that holds them.",
            RecompilationWarning,
            path,
            line,
        )


_codes: dict[int, Code] = {}  # by id, and kept alive: hashing a code object reads all of it


def code_of(code: types.CodeType) -> Code:
    found = _codes.get(id(code))
    if found is None:
        if len(_codes) >= 4096:
            _codes.clear()
        found = _codes[id(code)] = Code(code)
    return found


# What is installed does not change under our feet, and is not looked into. Nor is eqopt.
_PREFIXES = ("<frozen ", os.path.dirname(__file__) + os.sep, sysconfig.get_path("stdlib") + os.sep)
_FOLDERS = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


@functools.lru_cache(4096)
def installed(path: str) -> bool:
    return path.startswith(_PREFIXES) or any(folder in path for folder in _FOLDERS)


def known(module: types.ModuleType) -> bool:
    file = vars(module).get("__file__")
    if file is not None:
        return installed(file)
    # Built in; unless it is of the user's own making, under whatever name.
    name = module.__name__
    builtin = name.partition(".")[0] in sys.stdlib_module_names and name != "__main__"
    return builtin and sys.modules.get(name) is module


def known_name(name: str) -> bool:
    module = sys.modules.get(name)
    return name in sys.stdlib_module_names if module is None else known(module)


def known_class(cls: type) -> bool:
    if cls.__module__ == "builtins":  # so says a class, too, if a notebook has no `__name__`
        return vars(builtins).get(cls.__name__) is cls or not cls.__flags__ & 1 << 9
    module = sys.modules.get(cls.__module__)
    return module is not None and known(module)


def known_function(fn: types.FunctionType) -> bool:
    if not installed(fn.__code__.co_filename):
        return False
    module = sys.modules.get(fn.__module__ or "")
    if module is not None and known(module) and vars(module).get(fn.__name__) is fn:
        return True
    # A closure, such as `jax.grad(fn)`, holds what the user gave.
    return fn.__closure__ is None and "<locals>" not in fn.__qualname__


@functools.lru_cache(256)
def nodes(treedef: Any) -> tuple[tuple[type, ...], tuple[Any, ...]]:
    """The user's classes in a tree, and the functions in its static fields."""
    node = treedef.node_data()
    if node is None:
        return (), ()
    classes = () if known_class(node[0]) else (node[0],)
    functions, rest = (), [node[1]]
    while rest:
        aux = rest.pop()
        if isinstance(aux, tuple | list):
            rest.extend(aux)
        elif callable(aux):
            functions += (aux,)
    inner = [nodes(child) for child in treedef.children()]
    return sum((c for c, _ in inner), classes), sum((f for _, f in inner), functions)
