"""`lmcleaner demo`: a small language model forgets an author, next to the model that never met her."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from ..errors import ConfigurationError
from .output import add_json, errors, print_json, results


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="train a small model, forget an author, compare with retraining (under three minutes)",
        description="Trains a Llama of one million parameters on fictitious authors with AdamW while logging every step, forgets one "
        "author, retrains without her, and compares. Writes demo.png, demo.html, demo.md and demo.json. Needs transformers and tokenizers.",
    )
    parser.add_argument(
        "--out", default="lmcleaner-demo", metavar="DIR", help="where the files go (default: ./%(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="authors, initial weights and batches (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, metavar="N", help="steps of the logged fine-tuning")
    parser.add_argument(
        "--quick", action="store_true", help="a much smaller model, for tests: seconds instead of minutes"
    )
    parser.add_argument("--no-exact", action="store_true", help="leave out the exact curvature, the slowest method")
    parser.add_argument("--keep-log", action="store_true", help="keep the training log in DIR/log")
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from ..demo import DemoSettings, run_demo  # matplotlib and transformers load only for this command
    from ..demo.progress import Reporter
    from ..demo.table import demo_table
    from ..installation import describe

    settings = DemoSettings.quick(arguments.seed) if arguments.quick else DemoSettings(seed=arguments.seed)
    if arguments.steps is not None:
        if arguments.steps < 2:
            raise ConfigurationError(f"--steps is at least 2, found {arguments.steps}")
        settings = replace(settings, steps=arguments.steps)
    settings = replace(settings, exact=not arguments.no_exact)
    result = run_demo(arguments.out, settings, keep_log=arguments.keep_log, reporter=Reporter(errors()))
    if arguments.json:
        print_json(result.as_dict())
        return
    console = results()
    console.print(demo_table(result))
    console.print(
        "residual and KL ratio: 1 = as if nothing was done, 0 = the retrained model", style="dim", highlight=False
    )
    console.print(describe(result.environment), style="dim", highlight=False)
    console.print(f"picture  {result.picture}\npage     {result.page}", highlight=False)
    if result.log is not None:
        console.print(f"log      {result.log}", highlight=False)
