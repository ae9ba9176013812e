"""Shows the fields of a Module as the arguments that it is made from."""

from typing import Any

from griffe import (
    Attribute,
    Class,
    Expr,
    ExprCall,
    ExprKeyword,
    Extension,
    Function,
    Module,
    Parameter,
    ParameterKind,
    Parameters,
)


class Fields(Extension):
    """Gives each class of the package that has fields, and no `__init__`, the generated one."""

    def on_package(self, *, pkg: Module, **kwargs: Any) -> None:
        _visit(pkg)


def _visit(owner: Module | Class) -> None:
    for member in list(owner.members.values()):
        if isinstance(member, Module | Class):
            _visit(member)
    if isinstance(owner, Class) and "__init__" not in owner.members:
        fields = [x for x in map(_parameter, owner.members.values()) if x is not None]
        fields.sort(key=lambda x: x.kind is ParameterKind.keyword_only)
        if fields:
            first = Parameter("self", kind=ParameterKind.positional_or_keyword)
            init = Function("__init__", parameters=Parameters(first, *fields), parent=owner)
            owner.set_member("__init__", init)


def _parameter(member: Any) -> Parameter | None:
    if not isinstance(member, Attribute) or member.annotation is None:
        return None
    if "property" in member.labels:
        return None
    options = _options(member.value)
    if options is None:
        default, kind = member.value, ParameterKind.positional_or_keyword
    elif str(options.get("init")) == "False":
        return None
    else:
        default = options.get("default")
        if "default_factory" in options:
            default = f"{options['default_factory']}()"
        keyword_only = str(options.get("kw_only")) == "True"
        kind = ParameterKind.keyword_only if keyword_only else ParameterKind.positional_or_keyword
    return Parameter(member.name, annotation=member.annotation, kind=kind, default=default)


def _options(value: Any) -> dict[str, str | Expr] | None:
    """The keyword arguments of `eqx.field(...)`, or `None` if it is something else."""
    if isinstance(value, ExprCall) and value.canonical_path in (
        "equinox.field",
        "dataclasses.field",
    ):
        return {x.name: x.value for x in value.arguments if isinstance(x, ExprKeyword)}
    return None
