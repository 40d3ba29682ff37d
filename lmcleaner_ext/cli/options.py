"""Arguments made from the fields of an options class, and --config FILE: the same names from a JSON or YAML file.

What stands on the command line wins over the file, the file over the defaults.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import yaml

from ..options import Options, kinds_of

EXPECTED = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
YAML = (".yaml", ".yml")


def shown_fields(options: type[Options], without: str | None = None) -> list[Field[Any]]:
    """The fields that the command line has, `without` one."""
    return [f for f in fields(options) if f.metadata["command_line"] and f.name != without]


def destination(f: Field[Any]) -> str:
    """Its attribute after parsing, and its key in a file."""
    return f.metadata["flag"] or f.name


def add_options(parser: Any, options: type[Options], without: str | None = None) -> None:
    """One argument per field; `parser` may be a group."""
    kinds = kinds_of(options)
    for f in shown_fields(options, without):
        name = destination(f)
        flag = f"-{name}" if len(name) == 1 else "--" + name.replace("_", "-")
        kind = next(kind for kind in kinds[f.name] if kind is not type(None))
        if kind is bool:
            parser.add_argument(flag, action="store_true", default=f.default, help=f.metadata["help"])
            continue
        parser.add_argument(
            flag,
            dest=name,
            type=None if kind is str else kind,
            default=f.default,
            choices=f.metadata["choices"],
            metavar=f.metadata["unit"] and f.metadata["unit"].upper(),
            help=f.metadata["help"] + ("" if f.default is None else " (default: %(default)s)"),
        )


def options_from(arguments: argparse.Namespace, options: type[Options], without: str | None = None) -> dict[str, Any]:
    """{field: value} as `add_options` had them parsed."""
    return {f.name: getattr(arguments, destination(f)) for f in shown_fields(options, without)}


def add_config(parser: argparse.ArgumentParser) -> None:
    """--config FILE of a command; `parse` reads it."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="options from a JSON or YAML file (configs/ has examples), with the names they have here; those given here win",
    )
    parser.set_defaults(command=parser)


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of a command; where they name a --config, parsed again with its values as the defaults."""
    parsed = parser.parse_args(arguments)
    if getattr(parsed, "config", None) is not None:
        parsed.command.set_defaults(**read_config(parsed.command, Path(parsed.config)))
        parsed = parser.parse_args(arguments)
    return parsed


def read_config(parser: argparse.ArgumentParser, path: Path) -> dict[str, Any]:
    """{argument: value} of a file, checked as the command line is; anything wrong is wrong usage, and names file, key and choices."""
    try:
        text = path.read_text(encoding="utf-8")
        options = yaml.safe_load(text) if path.suffix in YAML else json.loads(text)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        parser.error(f"--config {path}: {error}")
    if not isinstance(options, dict):
        parser.error(f"--config {path}: expected an object of options, found {type(options).__name__}")
    known = {a.dest: a for a in parser._actions if a.option_strings and a.dest not in ("help", "config")}
    values = {}
    for name, value in options.items():
        if name not in known:
            parser.error(f"--config {path}: this command has no option {name!r}, its options are {', '.join(known)}")
        try:
            values[name] = _value(known[name], value)
        except ValueError as error:
            parser.error(f"--config {path}: {name} is {error}, found {value!r}")
    return values


def _value(action: argparse.Action, value: Any) -> Any:
    """The value as the command line would give it; ValueError says what is expected."""
    if value is None and action.default is None:
        return None
    if action.choices is not None:
        if value not in list(action.choices):
            raise ValueError(f"one of {', '.join(map(str, action.choices))}")
        return value
    kind: Any = bool if action.nargs == 0 else action.type or str
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)  # YAML takes 1e-4 for a text
        except ValueError:
            pass
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(EXPECTED.get(kind, "of another type"))
    return value
