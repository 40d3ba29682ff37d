"""`lmcleaner`: what the commands are, and what they return to the shell.

Exit codes: 0 done, 1 an error that the message on stderr explains, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from .._version import __version__
from ..errors import LMCleanerError
from . import demo, forget, inspect, log, show_config
from .options import parse
from .output import errors

COMMANDS = (
    demo.add_parser,
    inspect.add_parser,
    forget.add_plan,
    forget.add_unlearn,
    forget.add_verify,
    log.add_parser,
    show_config.add_parser,
)


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command; each module adds its own."""
    parser = argparse.ArgumentParser(
        prog="lmcleaner",
        description="Forget training samples: replay the logged optimizer steps and correct the weights, without retraining.",
        epilog="exit codes: 0 done, 1 error (explained on stderr), 2 wrong usage, 130 interrupted",
    )
    parser.add_argument("--version", action="version", version=f"lmcleaner {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add_parser in COMMANDS:
        add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Wrong usage leaves through argparse with code 2."""
    parsed = parse(build_parser(), arguments)
    try:
        parsed.run(parsed)
    except BrokenPipeError:  # the reader of stdout, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains when it flushes
        return 1
    except (LMCleanerError, OSError) as error:
        errors().print(f"[bold red]error:[/] {type(error).__name__}:", end=" ")
        errors().print(str(error), markup=False, highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        errors().print("interrupted")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
