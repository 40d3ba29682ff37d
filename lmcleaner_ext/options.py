"""Options as frozen dataclasses: a field is a default, its choices and bounds, and one line of help.

What has options takes them as keywords and shows them in `help()` and `inspect.signature` (`takes_options`); the command line and the
keys of --config are made from the same fields (cli/options.py).
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import Field, dataclass, field, fields
from functools import wraps
from inspect import Parameter, signature
from numbers import Integral, Real
from typing import Any, TypeVar, get_args, get_type_hints

from .errors import ConfigurationError

KINDS: dict[type, tuple[type, str]] = {
    bool: (bool, "True or False"),
    int: (Integral, "a whole number"),
    float: (Real, "a finite number"),
    str: (str, "a text"),
}
"""What a field of each type takes, and its name in messages."""

Callee = TypeVar("Callee", bound=Callable[..., Any])


def option(
    default: Any,
    help: str,
    *,
    choices: Iterable[Any] | None = None,
    at_least: int | None = None,
    above: int | None = None,
    unit: str | None = None,
    flag: str | None = None,
    command_line: bool = True,
) -> Any:
    """A field of an `Options` class.

    choices: the values it can have (None too, where that is the default).  at_least, above: bounds, inclusive and exclusive.
    unit: what a number counts.  flag: its name on the command line and in --config, where that is another.
    command_line: False for what makes sense from Python alone.
    """
    return field(
        default=default,
        metadata={
            "help": help,
            "choices": None if choices is None else tuple(choices),
            "at_least": at_least,
            "above": above,
            "unit": unit,
            "flag": flag,
            "command_line": command_line,
        },
    )


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of the options classes: raises ConfigurationError for a value that a field does not take."""

    def __post_init__(self) -> None:
        kinds = kinds_of(type(self))
        for f in fields(self):
            _check(f, getattr(self, f.name), kinds[f.name])


def kinds_of(options: type[Options]) -> dict[str, tuple[type, ...]]:
    """{field: the types of its values}, NoneType among them where None is one."""
    hints = get_type_hints(options)
    return {f.name: get_args(hints[f.name]) or (hints[f.name],) for f in fields(options)}


def _check(f: Field[Any], value: Any, kinds: tuple[type, ...]) -> None:
    if value is None and type(None) in kinds:
        return
    choices = f.metadata["choices"]
    if choices is not None:
        if value not in choices:
            shown = ", ".join(map(repr, [*choices, *([None] if type(None) in kinds else [])]))
            raise ConfigurationError(f"{f.name} is one of {shown}, found {value!r}")
        return
    at_least, above = f.metadata["at_least"], f.metadata["above"]
    bound = f" >= {at_least}" if at_least is not None else f" > {above}" if above is not None else ""
    for accepted, what in (KINDS[kind] for kind in kinds if kind in KINDS):
        fits = isinstance(value, accepted) and (accepted is bool or not isinstance(value, bool))
        if fits and isinstance(value, Real) and not isinstance(value, bool):
            fits = math.isfinite(value) and (at_least is None or value >= at_least) and (above is None or value > above)
        if not fits:
            raise ConfigurationError(f"{f.name} is {what}{bound}, found {value!r}")


def takes_options(
    options: type[Options] | Callable[..., Any], without: Iterable[str] = ()
) -> Callable[[Callee], Callee]:
    """Decorator of a function, or of a class by its constructor, with **options: its signature and its docstring show the fields of
    `options` as keywords.

    options: an options class, or a function, whose keywords are then taken.  without: those that this function does not take.
    Another keyword is a TypeError, as of any function. In the docstring the line `**options` becomes one entry per field.
    """
    hidden = set(without)
    if isinstance(options, type):
        shown = [f for f in fields(options) if f.name not in hidden]
        taken = [Parameter(f.name, Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type) for f in shown]
    else:
        shown = []
        taken = [p for p in signature(options).parameters.values() if p.kind is p.KEYWORD_ONLY and p.name not in hidden]

    def decorate(function: Callee) -> Callee:
        if isinstance(function, type):
            function.__init__ = decorate(function.__init__)  # type: ignore[misc]
            function.__doc__ = with_options(function.__doc__, shown)
            return function
        own = [p for p in signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
        public = signature(function).replace(parameters=sorted([*own, *taken], key=lambda p: p.kind))

        @wraps(function)
        def checked(*arguments: Any, **named: Any) -> Any:
            try:
                public.bind(*arguments, **named)
            except TypeError as error:
                raise TypeError(f"{function.__qualname__}: {error}") from None
            return function(*arguments, **named)

        checked.__signature__ = public  # type: ignore[attr-defined]
        checked.__doc__ = with_options(function.__doc__, shown)
        return checked  # type: ignore[return-value]

    return decorate


def with_options(docstring: str | None, shown: Iterable[Field[Any]]) -> str | None:
    """The docstring with one entry per field in place of its line `**options`."""
    if docstring is None:
        return None
    lines = []
    for line in docstring.splitlines():
        if line.strip() != "**options":
            lines.append(line)
            continue
        indent = line[: len(line) - len(line.lstrip())]
        for f in shown:
            lines += textwrap.wrap(
                f"{f.name}: {describe(f)}", 140, initial_indent=indent, subsequent_indent=indent + "    "
            )
    return "\n".join(lines)


def describe(f: Field[Any]) -> str:
    """A field's choices, its help and its default."""
    choices, default = f.metadata["choices"], f.default
    values = "" if choices is None else " | ".join(map(repr, choices)) + "; "
    return values + f.metadata["help"] + ("." if default is None or default is False else f" (default {default!r}).")
