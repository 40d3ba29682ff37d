"""`lmcleaner show-config`: backends, instruction sets and versions on this machine."""

from __future__ import annotations

import argparse
from typing import Any

from ..installation import show_config
from .output import add_json, print_json


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("show-config", help="backends, instruction sets, versions; what is missing, and why")
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    if arguments.json:
        print_json(show_config(as_dict=True))
    else:
        show_config()
